"""What cannot be searched, one line for each field."""

from collections.abc import Mapping
from typing import Any

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import differences, prepared_with
from mtrec_ray.project.load import value_at, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.project.ranges import parse_range
from mtrec_ray.search.space import space_of

# Fields that are the same in all trials, and why.
FIXED_FIELDS = {
    "root": "where data lies",
    "run": "resources",
    "search": "the search itself",
    "evaluation": "the score that trials are judged by",
    "training.epochs": "search.epochs sets it for all trials",
    "training.rows_per_epoch": "search.rows_per_epoch sets it for all trials",
    "training.teacher": "the teacher is fitted once, for all trials",
}


# Fields that may change in the middle of a run.
PBT_FIELDS = ("training.lr", "training.lr_encoder", "training.weight_decay", "training.clip_norm")


def space_problems(project: Project) -> list[str]:
    """One line for each searched field that cannot be searched."""
    search = project.search
    problems = [
        f"search.{line}" for field in search.fields or {} for line in field_problems(project, field)
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
    fixed = [
        f for f in search.fields or {} if not f.startswith("scenarios.") and f not in PBT_FIELDS
    ]
    problems += [
        f"search.{field}: found with scheduler: pbt, whose trials go on with other values; "
        f"allowed: weights, {', '.join(PBT_FIELDS)}"
        for field in fixed
    ]
    return problems


def field_problems(project: Project, field: str) -> list[str]:
    """What is wrong with a searched field; the lines begin with it."""
    known = unknown_part(project.dump(), field)
    if known:
        return [f"{field}: found {known}"]
    fixed = [why for name, why in FIXED_FIELDS.items() if f"{field}.".startswith(f"{name}.")]
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
