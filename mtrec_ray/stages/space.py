"""What a search may try: its variables, how a point of them changes the project, what cannot be.

A point holds a number or option for each variable: `lambda.NAME` of a scenario (u of
`learning/simplex.py`) and the names of searched fields. Its overrides are values by field.
"""

import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mtrec_ray.config import ProjectError, parse_project
from mtrec_ray.learning.simplex import MARGIN, lattice, numbers_of, scaled, weights_of
from mtrec_ray.ranges import Range, parse_range
from mtrec_ray.schema import Project
from mtrec_ray.stages.marks import differences, prepared_with

LAMBDA = "lambda."
FACTOR = 5.0  # of the default ranges, below and above the project's own value
Point = dict[str, Any]
Overrides = dict[str, Any]

# Fields that are the same in all trials, and why.
SAME = {
    "root": "where data lies",
    "run": "resources",
    "search": "the search itself",
    "evaluation": "the score that trials are judged by",
    "training.epochs": "search.epochs sets it for all trials",
    "training.rows_per_epoch": "search.rows_per_epoch sets it for all trials",
    "training.teacher": "the teacher is fitted once, for all trials",
}

# Fields that may change in the middle of a run.
MOVING = ("training.lr", "training.lr_encoder", "training.weight_decay", "training.clip_norm")


@dataclass(frozen=True)
class Space:
    """Scenarios whose weights are searched (none: empty), and the ranges of searched fields."""

    scenarios: tuple[str, ...]
    ranges: dict[str, Range]

    def distributions(self) -> dict[str, BaseDistribution]:
        """The variables as Optuna has them."""
        unit = FloatDistribution(MARGIN, 1 - MARGIN)
        lambdas: dict[str, BaseDistribution] = {LAMBDA + name: unit for name in self.scenarios}
        return lambdas | {field: distribution(found) for field, found in self.ranges.items()}

    def overrides(self, point: Mapping[str, Any]) -> Overrides:
        """The values by field of a point."""
        weights = weights_of([point[LAMBDA + name] for name in self.scenarios])
        fields = {f: json.loads(point[f]) if r.values else point[f] for f, r in self.ranges.items()}
        return weight_overrides(self.scenarios, weights) | fields

    def point_of(self, project: Project) -> Point:
        """The point of a project's own values, moved into the ranges where they are outside."""
        weights = [project.scenarios[name].weight for name in self.scenarios]
        point: Point = {
            LAMBDA + name: u
            for name, u in zip(self.scenarios, numbers_of(weights) if weights else [], strict=True)
        }
        tree = project.dump()
        return point | {f: nearest(value_at(tree, f), r) for f, r in self.ranges.items()}

    def grid(self, steps: int) -> Iterator[Point]:
        """All combinations of the simplex in steps and of the values of grids and choices.

        Other ranges take part with both ends and the middle.
        """
        corners = lattice(len(self.scenarios), steps) if self.scenarios else [[]]
        lambdas = [
            {LAMBDA + n: u for n, u in zip(self.scenarios, numbers_of(w), strict=True)} if w else {}
            for w in corners
        ]
        for point in lambdas:
            for values in itertools.product(*map(levels, self.ranges.values())):
                yield {**point, **dict(zip(self.ranges, values, strict=True))}


def distribution(found: Range) -> BaseDistribution:
    """A range as Optuna has it."""
    if found.values:
        return CategoricalDistribution(found.values)
    if found.kind == "randint":
        return IntDistribution(int(found.low), int(found.high))
    return FloatDistribution(found.low, found.high, log=found.kind == "loguniform")


def levels(found: Range) -> list[Any]:
    """The values of a range in a grid: all of them, or both ends and the middle."""
    if found.values:
        return list(found.values)
    if found.kind == "randint":
        return sorted({int(found.low), int((found.low + found.high) // 2), int(found.high)})
    log = found.kind == "loguniform"
    middle = (found.low * found.high) ** 0.5 if log else (found.low + found.high) / 2
    return [found.low, middle, found.high]


def nearest(value: Any, found: Range) -> Any:
    """The value itself, or where the range does not hold it the nearest that it holds."""
    if found.values:
        near = functools.partial(distance, value)
        return min(found.values, key=lambda text: near(json.loads(text)))
    inside = min(max(float(value or 0), found.low), found.high)
    return round(inside) if found.kind == "randint" else inside


def distance(one: Any, other: Any) -> float:
    """How far two values are from each other: of others than numbers nothing, or infinitely."""
    if isinstance(one, bool) == isinstance(other, bool) and one == other:
        return 0.0
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
    return abs(one - other) if numbers else math.inf


def weight_overrides(names: tuple[str, ...], weights: list[float]) -> Overrides:
    """Values by field of the scenarios' weights."""
    return {f"scenarios.{n}.weight": w for n, w in zip(names, weights, strict=True)}


def space_of(project: Project) -> Space:
    """What the project's search tries."""
    search = project.search
    names = tuple(project.scenarios) if search.scenario_weights else ()
    fields = default_fields(project) if search.fields is None else search.fields
    return Space(
        scenarios=names if len(names) > 1 else (),
        ranges={field: parse_range(text) for field, text in fields.items()},
    )


def default_fields(project: Project) -> dict[str, str]:
    """Both learning rates, or only that of the heads with a frozen encoder, around their values."""
    options = project.training
    rates = {"training.lr": options.lr}
    if project.model.encoder.trainable != "none":
        rates["training.lr_encoder"] = options.lr_encoder
    return {
        field: f"loguniform({rate / FACTOR:.6g}, {rate * FACTOR:.6g})"
        for field, rate in rates.items()
    }


def references(project: Project) -> dict[str, Overrides]:
    """Trials that every search begins with: `own`, `uniform`, and for worst_case `only NAME`.

    Where the project's own weights are uniform there is no second trial of them.
    """
    names = tuple(project.scenarios)
    own = scaled([s.weight for s in project.scenarios.values()])
    found: dict[str, Overrides] = {"own": {}}
    if len(set(own)) > 1:
        found["uniform"] = weight_overrides(names, [1.0] * len(names))
    if project.search.choose == "worst_case":
        epochs = project.search.epochs or project.training.epochs
        for name in names:  # its best epoch is judged by this scenario alone: none ends it early
            weights = weight_overrides(names, [float(n == name) for n in names])
            found[f"only_{name}"] = weights | {"training.patience": epochs}
    return found


def with_overrides(project: Project, overrides: Mapping[str, Any]) -> Project:
    """The project with values set by field.

    Raises:
        ProjectError: values that the schema does not allow.
    """
    return parse_project(tree_with(project, overrides))


def tree_with(project: Project, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The project's tree with values set by field, whether the schema allows them or not."""
    tree = project.dump()
    for field, value in overrides.items():
        *parents, leaf = field.split(".")
        node = tree
        for part in parents:
            node = node[part]
        node[leaf] = value
    return tree


def value_at(tree: Mapping[str, Any], field: str) -> Any:
    """The value of a field in a project's tree."""
    found: Any = tree
    for part in field.split("."):
        found = found[part]
    return found


def space_problems(project: Project) -> list[str]:
    """One line for each searched field that cannot be searched."""
    search = project.search
    problems = [
        f"search.{line}" for field in search.fields or {} for line in of_field(project, field)
    ]
    epochs = search.epochs or project.training.epochs
    if search.scheduler != "none" and search.grace > epochs:
        problems.append(f"search.grace: found {search.grace}; allowed: at most {epochs} epochs")
    if search.scheduler == "pbt":
        problems += pbt_problems(project)
    if not problems and not space_of(project).distributions():
        problems.append(
            "search: found nothing to search; allowed: scenario_weights with two scenarios or "
            "more, or ranges of fields"
        )
    return problems


def pbt_problems(project: Project) -> list[str]:
    """A line for whatever a population cannot do: other processes, grids, models that differ."""
    search = project.search
    problems = []
    if search.num_workers != 0:
        problems.append(
            f"search.num_workers: found {search.num_workers} with scheduler: pbt; allowed: 0"
        )
    if search.algorithm == "grid":
        problems.append("search.algorithm: found grid with scheduler: pbt; allowed: random, optuna")
    fixed = [f for f in search.fields or {} if not f.startswith("scenarios.") and f not in MOVING]
    problems += [
        f"search.{field}: found with scheduler: pbt, whose trials go on with other values; "
        f"allowed: weights, {', '.join(MOVING)}"
        for field in fixed
    ]
    return problems


def of_field(project: Project, field: str) -> list[str]:
    """What is wrong with a searched field; the lines begin with it."""
    known = unknown_part(project.dump(), field)
    if known:
        return [f"{field}: found {known}"]
    fixed = [why for name, why in SAME.items() if f"{field}.".startswith(f"{name}.")]
    if fixed:
        return [f"{field}: found a field that all trials share ({fixed[0]}); allowed: others"]
    if project.search.scenario_weights and field in {
        f"scenarios.{name}.weight" for name in project.scenarios
    }:
        return [f"{field}: found beside scenario_weights: true, which searches it; allowed: one"]
    idle = without_effect(project, field)
    if idle:
        return [f"{field}: found a range for a field without effect ({idle}); allowed: none"]
    return wrong_values(project, field)


def unknown_part(tree: Mapping[str, Any], field: str) -> str:
    """What the tree does not have of a field's path, and what it has; empty where all is there."""
    found: Any = tree
    for part in field.split("."):
        if not isinstance(found, Mapping) or part not in found:
            allowed = ", ".join(sorted(found)) if isinstance(found, Mapping) else "no deeper field"
            return f"no such field ({part}); allowed: {allowed}"
        found = found[part]
    return (
        f"a section; allowed: one of {', '.join(sorted(found))}" if isinstance(found, dict) else ""
    )


def without_effect(project: Project, field: str) -> str:
    """Why a field changes nothing here; empty where it does, or where its cause is searched."""
    encoder, model = project.model.encoder, project.model
    frozen = "model.encoder.trainable" if encoder.trainable == "none" else ""
    reasons = {
        "training.lr_encoder": frozen,
        "model.encoder.every": frozen,
        "model.encoder.gather": frozen,
        "model.encoder.gather_items": frozen,
        "model.encoder.history_share": frozen,
        "model.encoder.max_age": frozen,
        "model.encoder.top_k": "model.encoder.trainable" if encoder.trainable != "top_k" else "",
        "model.encoder.lora": "model.encoder.trainable" if encoder.trainable != "lora" else "",
        "model.experts": "model.sharing" if model.sharing not in ("mmoe", "ple") else "",
        "model.pair_tokens": "model.layout" if model.layout != "pair" else "",
    }
    tree = project.dump()
    for name, cause in reasons.items():
        if (
            cause
            and f"{field}.".startswith(f"{name}.")
            and cause not in (project.search.fields or {})
        ):
            return f"{cause} is {value_at(tree, cause)}"
    return ""


def wrong_values(project: Project, field: str) -> list[str]:
    """What the schema does not allow of a field's range, or that prepared data depends on it."""
    text = (project.search.fields or {})[field]
    for value in parse_range(text).options:
        try:
            other = with_overrides(project, {field: value})
        except ProjectError as error:
            return error.problems[:1]
        if list(differences(prepared_with(project), prepared_with(other))):
            return [
                f"{field}: found a field that prepared data depends on, which all trials share; "
                "allowed: fields of training and model"
            ]
    return []
