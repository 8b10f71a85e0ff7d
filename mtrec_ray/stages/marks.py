"""What a stage was made with, kept beside what it made: another configuration is refused."""

from collections.abc import Iterator, Mapping
from typing import Any

from mtrec_ray.config import ProjectError, fingerprint, shorten
from mtrec_ray.data import storage
from mtrec_ray.schema import Project

MARK, DONE = "mark.json", "done.json"
SHOWN_FIELDS = 4
FORMAT = 2  # of prepared data; another one cannot be read

Tree = Mapping[str, Any]


def prepared_with(project: Project) -> dict[str, Any]:
    """The fields that prepared data depends on, as a tree."""
    tree = project.dump()
    for scenario in tree["scenarios"].values():
        scenario.pop("weight")
        for task in scenario["tasks"].values():
            task.pop("weight")
    encoder = tree["model"]["encoder"]
    return {
        "format": FORMAT,
        "data_seed": tree["data_seed"],
        "sample_world": tree["sample_world"],
        "scenarios": tree["scenarios"],
        "model": {"encoder": {k: encoder[k] for k in ("source", "max_tokens")}},
    }


def trained_with(project: Project) -> dict[str, Any]:
    """The fields that the joint model depends on beside the prepared data, as a tree."""
    weights = {
        name: {
            "weight": scenario.weight,
            "tasks": {n: {"weight": task.weight} for n, task in scenario.tasks.items()},
        }
        for name, scenario in project.scenarios.items()
    }
    tree = project.dump()
    tree["training"].pop("max_skipped")
    score = {key: tree["evaluation"][key] for key in ("weights", "valid_rows")}
    return {
        "scenarios": weights,
        "model": tree["model"],
        "training": tree["training"],
        "evaluation": score,
    }


def differences(before: object, now: object, field: str = "") -> Iterator[str]:
    """`field = value (now value)` for each leaf that differs between two trees."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(k for k in now if k not in before)]:
            inner = f"{field}.{key}" if field else str(key)
            yield from differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{field} = {shorten(before)} (now {shorten(now)})"


def refuse_changes(before: Tree, now: Tree, *, job: str, run: str, folder: str) -> None:
    """Refuse to go on with what was made with other values.

    Raises:
        ProjectError: names the fields, what they were and what they are.
    """
    found = list(differences(before, now))
    if not found:
        return
    more = f" and {len(found) - SHOWN_FIELDS} more" if len(found) > SHOWN_FIELDS else ""
    raise ProjectError(
        [
            f"run.name: found {run!r}, whose {job} stage was made with "
            f"{', '.join(found[:SHOWN_FIELDS])}{more}; "
            f"allowed: the same values, another name, or delete {folder}"
        ]
    )


def find_finished(folder: str, made_with: Tree, *, job: str, run: str) -> dict[str, Any] | None:
    """The record of a finished stage, or None where it is still to be done.

    Raises:
        ProjectError: the folder belongs to another configuration.
    """
    started = storage.join(folder, MARK)
    if storage.exists(started):
        refuse_changes(storage.read_json(started), made_with, job=job, run=run, folder=folder)
    finished = storage.join(folder, DONE)
    return storage.read_json(finished) if storage.exists(finished) else None


def begin(folder: str, made_with: Tree) -> None:
    """Note what a stage is being made with; after this its folder belongs to it."""
    storage.write_json(storage.join(folder, MARK), made_with)


def prepare_fingerprint(project: Project, inputs: str) -> str:
    """Changes with the fields and the input files that prepared data depends on."""
    return fingerprint(prepared_with(project), inputs)
