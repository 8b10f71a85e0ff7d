"""What a search may try: its variables, and how a point of them changes the project.

A point holds a number or option for each variable: `lambda.NAME` of a scenario (u of
`simplex.py`) and the names of searched fields. Its overrides are values by field.
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

from mtrec_ray.project.load import value_at
from mtrec_ray.project.project import Project
from mtrec_ray.project.ranges import Range
from mtrec_ray.search.simplex import MARGIN, lattice, numbers_of, scaled, weights_of

LAMBDA = "lambda."


FACTOR = 5.0  # of the default ranges, below and above the project's own value


Point = dict[str, Any]


Overrides = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Scenarios whose weights are searched (none: empty), and the ranges of searched fields."""

    scenarios: tuple[str, ...]
    ranges: dict[str, Range]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Returns the variables as Optuna has them."""
        unit = FloatDistribution(MARGIN, 1 - MARGIN)
        lambdas: dict[str, BaseDistribution] = {LAMBDA + name: unit for name in self.scenarios}
        return lambdas | {field: optuna_distribution(found) for field, found in self.ranges.items()}

    def overrides(self, point: Mapping[str, Any]) -> Overrides:
        """Returns the values by field of a point."""
        weights = weights_of([point[LAMBDA + name] for name in self.scenarios])
        fields = {f: json.loads(point[f]) if r.values else point[f] for f, r in self.ranges.items()}
        return weight_overrides(self.scenarios, weights) | fields

    def point_of(self, project: Project) -> Point:
        """Returns the point of a project's own values, clipped to the ranges."""
        weights = [project.scenarios[name].weight for name in self.scenarios]
        point: Point = {
            LAMBDA + name: u
            for name, u in zip(self.scenarios, numbers_of(weights) if weights else [], strict=True)
        }
        return point | {f: nearest(value_at(project, f), r) for f, r in self.ranges.items()}

    def grid(self, steps: int) -> Iterator[Point]:
        """Yields all combinations of the simplex in steps and of the values of grids and choices.

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


def optuna_distribution(searched: Range) -> BaseDistribution:
    """Returns a range as Optuna has it."""
    if searched.values:
        return CategoricalDistribution(searched.values)
    if searched.randint:
        return IntDistribution(*searched.randint)
    return FloatDistribution(*searched.ends, log=searched.kind == "loguniform")


def levels(searched: Range) -> list[Any]:
    """Returns the values of a range in a grid: all of them, or both ends and the middle."""
    if searched.values:
        return list(searched.values)
    if searched.randint:
        low, high = searched.randint
        return sorted({low, (low + high) // 2, high})
    low, high = searched.ends
    middle = (low * high) ** 0.5 if searched.kind == "loguniform" else (low + high) / 2
    return [low, middle, high]


def nearest(value: Any, searched: Range) -> Any:
    """Returns the nearest value that the range holds: the value itself where it does."""
    if searched.values:
        near = functools.partial(distance, value)
        return min(searched.values, key=lambda text: near(json.loads(text)))
    low, high = searched.ends
    inside = min(max(float(value or 0), low), high)
    return round(inside) if searched.randint else inside


def distance(one: Any, other: Any) -> float:
    """Returns the distance of two values; of others than numbers 0 where equal, else infinity."""
    if isinstance(one, bool) == isinstance(other, bool) and one == other:
        return 0.0
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
    return abs(one - other) if numbers else math.inf


def weight_overrides(names: tuple[str, ...], weights: list[float]) -> Overrides:
    """Returns values by field of the scenarios' weights."""
    return {f"scenarios.{n}.weight": w for n, w in zip(names, weights, strict=True)}


def is_weight(field: str) -> bool:
    """Returns whether a field is the weight of a scenario."""
    return field.startswith("scenarios.") and field.endswith(".weight") and field.count(".") == 2


def space_of(project: Project) -> Space:
    """Returns what the project's search tries."""
    search = project.search
    names = tuple(project.scenarios) if search.scenario_weights else ()
    fields = default_fields(project) if search.fields is None else search.fields
    return Space(
        scenarios=names if len(names) > 1 else (),
        ranges=dict(fields),
    )


def default_fields(project: Project) -> dict[str, Range]:
    """Returns ranges around both learning rates; with a frozen encoder that of the heads alone."""
    options = project.training
    rates = {"training.lr": options.lr}
    if project.model.encoder.trainable != "none":
        rates["training.lr_encoder"] = options.lr_encoder
    return {
        field: Range(loguniform=(float(f"{rate / FACTOR:.6g}"), float(f"{rate * FACTOR:.6g}")))
        for field, rate in rates.items()
    }


def references(project: Project) -> dict[str, Overrides]:
    """Returns the first trials of every search: `own`, `uniform`, for worst_case `only NAME`.

    `uniform` is left out where the project's own weights are uniform.
    """
    names = tuple(project.scenarios)
    own_weights = scaled([s.weight for s in project.scenarios.values()])
    trials: dict[str, Overrides] = {"own": {}}
    if len(set(own_weights)) > 1:
        trials["uniform"] = weight_overrides(names, [1.0] * len(names))
    if project.search.choose == "worst_case":
        epochs = project.search.epochs or project.training.epochs
        for name in names:  # this scenario alone gives its best epoch: no scheduler ends it early
            weights = weight_overrides(names, [float(n == name) for n in names])
            trials[f"only_{name}"] = weights | {"training.patience": epochs}
    return trials
