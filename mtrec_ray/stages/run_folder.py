"""What a stage was made with, kept beside what it made: another configuration is refused."""

from collections.abc import Mapping
from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import differences
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project

MARK, DONE = "mark.json", "done.json"


SHOWN_FIELDS = 4


Tree = Mapping[str, Any]


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


def mark_started(folder: str, made_with: Tree) -> None:
    """Note what a stage is being made with; after this its folder belongs to it."""
    storage.write_json(storage.join(folder, MARK), made_with)


FILE = "settled.json"


def keep_search_choice(project: Project, storage_path: str, chosen: Mapping[str, Any]) -> None:
    """Keep a search's chosen trial for all jobs of the run."""
    kept = {"trial": chosen["trial"], "overrides": chosen["overrides"]}
    storage.write_json(path_of(project, storage_path), kept)


def has_search_choice(project: Project, storage_path: str) -> bool:
    """Whether the run's pipeline has searched, and kept what it chose."""
    return storage.exists(path_of(project, storage_path))


def with_search_choice(project: Project, storage_path: str) -> Project:
    """The project with the values that its pipeline chose; as it is where it chose none."""
    if not project.search.pipeline_trials or not has_search_choice(project, storage_path):
        return project
    return with_overrides(project, storage.read_json(path_of(project, storage_path))["overrides"])


def path_of(project: Project, storage_path: str) -> str:
    """The file of a run."""
    return storage.join(storage_path, project.run.name, FILE)
