"""What a pipeline's search settled on: a run's other jobs take it from there.

RUN/settled.json: the chosen trial's name and overrides, written once, before the joint model is
trained with them.
"""

from collections.abc import Mapping
from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.schema import Project
from mtrec_ray.stages.space import with_overrides

FILE = "settled.json"


def settle(project: Project, storage_path: str, chosen: Mapping[str, Any]) -> None:
    """Keep a search's chosen trial for all jobs of the run."""
    kept = {"trial": chosen["trial"], "overrides": chosen["overrides"]}
    storage.write_json(path_of(project, storage_path), kept)


def is_settled(project: Project, storage_path: str) -> bool:
    """Whether the run's pipeline has searched, and kept what it chose."""
    return storage.exists(path_of(project, storage_path))


def as_settled(project: Project, storage_path: str) -> Project:
    """The project with the values that its pipeline chose; as it is where it chose none."""
    if not project.search.pipeline_trials or not is_settled(project, storage_path):
        return project
    return with_overrides(project, storage.read_json(path_of(project, storage_path))["overrides"])


def path_of(project: Project, storage_path: str) -> str:
    """The file of a run."""
    return storage.join(storage_path, project.run.name, FILE)
