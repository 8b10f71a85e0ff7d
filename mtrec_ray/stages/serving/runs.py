"""Other runs of a project whose models can be served beside its own."""

from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.run_folder import RunFolder


def project_of_run(project: Project, storage_path: str, run: str) -> Project:
    """Returns the project of another run of the same storage: with its model and its training.

    What the joint model depends on is read from the run's own record; all else is the project's.

    Raises:
        ProjectError: there is no finished joint model of that run.
    """
    made_from = RunFolder(storage_path, run).train.made_from
    if made_from is None:
        folder = storage.join(storage_path, run)
        raise ProjectError([f"run: found no joint model in {folder}; allowed: a trained run"])
    tree = project.dump()
    tree["run"]["name"] = run
    for section in ("model", "training", "evaluation", "scenarios"):
        merge(tree[section], made_from.get(section, {}))
    return parse_project(tree)


def merge(tree: dict[str, Any], values: dict[str, Any]) -> None:
    """Set the leaves of one tree to those that another one has."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value
