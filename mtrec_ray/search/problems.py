"""What cannot be searched, one line for each field."""

from collections.abc import Mapping

from mtrec_ray.project.base import ProjectError, Section
from mtrec_ray.project.depends_on import differences, prepared_data_depends_on
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.project.weighting import FREE
from mtrec_ray.search.space import space_of

# Fields that are the same in all trials, and why.
FIXED_FIELDS = {
    "root": "where data lies",
    "run": "resources",
    "search": "the search itself",
    "evaluation": "the score that trials are judged by",
    "training.epochs": "search.epochs sets it for all trials",
    "training.validations": "search.grace sets it for all trials",
    "training.rows_per_epoch": "search.rows_per_epoch sets it for all trials",
    "training.teacher": "the teacher is fitted once, for all trials",
}


# Fields that may change in the middle of a run.
PBT_FIELDS = ("training.lr", "training.lr_encoder", "training.weight_decay", "training.clip_norm")


# Fields that only matter where the encoder learns.
FIELDS_OF_LEARNING: tuple[str, ...] = (
    "training.lr_encoder",
    "model.encoder.every",
    "model.encoder.gather",
    "model.encoder.gather_items",
)


def space_problems(project: Project) -> list[str]:
    """Returns one line for each searched field that cannot be searched."""
    search = project.search
    problems = [
        f"search.{line}" for field in search.fields or {} for line in field_problems(project, field)
    ]
    epochs = search.epochs or project.training.epochs
    if search.scenario_weights and project.training.weighting.method in FREE:
        problems.append(
            f"search.scenario_weights: found true with training.weighting.method "
            f"{project.training.weighting.method}, which sets them itself; allowed: false"
        )
    if search.scheduler != "none" and search.first_stop > epochs:
        problems.append(f"search.grace: found {search.grace:g}; allowed: at most {epochs} epochs")
    if search.scheduler == "pbt":
        problems += pbt_problems(project)
    if not problems and not space_of(project).distributions():
        problems.append(
            "search: found nothing to search; allowed: scenario_weights with two scenarios or "
            "more, or ranges of fields"
        )
    return problems


def pbt_problems(project: Project) -> list[str]:
    """Returns a line for what a population cannot do: other processes, grids, differing models."""
    search = project.search
    problems = []
    if search.num_workers != 0:
        problems.append(
            f"search.num_workers: found {search.num_workers} with scheduler: pbt; allowed: 0"
        )
    if search.algorithm == "grid":
        problems.append("search.algorithm: found grid with scheduler: pbt; allowed: random, optuna")
    searched = [f for f in search.fields or {} if not f.startswith("scenarios.")]
    problems += [
        f"search.{field}: found with scheduler: pbt, whose trials go on with other values; "
        f"allowed: weights, {', '.join(PBT_FIELDS)}"
        for field in searched
        if field not in PBT_FIELDS
    ]
    return problems


def field_problems(project: Project, field: str) -> list[str]:
    """Returns what is wrong with a searched field; the lines begin with it."""
    unknown = unknown_part(project, field)
    if unknown:
        return [f"{field}: found {unknown}"]
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


def unknown_part(project: Project, field: str) -> str:
    """Returns what a field's path lacks, and what is there; empty where the field exists."""
    inside = parts_of(project)
    for part in field.split("."):
        if inside is None or part not in inside:
            allowed = "no deeper field" if inside is None else ", ".join(sorted(inside))
            return f"no such field ({part}); allowed: {allowed}"
        inside = parts_of(inside[part])
    return "" if inside is None else f"a section; allowed: one of {', '.join(sorted(inside))}"


def parts_of(value: object) -> Mapping[str, object] | None:
    """Returns the fields of a section, or the values by name; None for a plain value."""
    if isinstance(value, Section):
        fields = type(value).model_fields.items()
        return {field.alias or name: getattr(value, name) for name, field in fields}
    return value if isinstance(value, Mapping) else None


def idle_fields(project: Project) -> dict[str, tuple[str, str]]:
    """Returns the fields without effect here, each with the field that causes it and its value."""
    model, encoder = project.model, project.model.encoder
    trainable: tuple[str, str] = ("model.encoder.trainable", encoder.trainable)
    idle: dict[str, tuple[str, str]] = {}
    if encoder.trainable == "none":
        idle |= dict.fromkeys(FIELDS_OF_LEARNING, trainable)
    if encoder.trainable != "top_k":
        idle["model.encoder.top_k"] = trainable
    if encoder.trainable != "lora":
        idle["model.encoder.lora"] = trainable
    if model.sharing not in ("mmoe", "ple"):
        idle["model.experts"] = ("model.sharing", model.sharing)
    if model.layout != "pair":
        idle["model.pair_tokens"] = ("model.layout", model.layout)
    return idle


def without_effect(project: Project, field: str) -> str:
    """Returns why a field changes nothing here; empty where it does, or its cause is searched."""
    for name, (cause, value) in idle_fields(project).items():
        inside = f"{field}.".startswith(f"{name}.")
        if inside and cause not in (project.search.fields or {}):
            return f"{cause} is {value}"
    return ""


def wrong_values(project: Project, field: str) -> list[str]:
    """Returns lines for values that the schema refuses or that prepared data depends on."""
    for value in (project.search.fields or {})[field].samples:
        try:
            other = with_overrides(project, {field: value})
        except ProjectError as error:
            return error.problems[:1]
        if list(differences(prepared_data_depends_on(project), prepared_data_depends_on(other))):
            return [
                f"{field}: found a field that prepared data depends on, which all trials share; "
                "allowed: fields of training and model"
            ]
    return []
