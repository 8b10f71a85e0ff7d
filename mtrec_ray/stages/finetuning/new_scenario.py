"""A scenario that joins a finished joint model: its data, by the users that the model knows."""

from mtrec_ray.data import storage
from mtrec_ray.data.end_states import stored_users
from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.data.preparing.inputs import input_fingerprint, input_problems
from mtrec_ray.progress import Log
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import prepare_fingerprint, prepared_with
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.prepare import prepare_into, with_sample_world
from mtrec_ray.stages.run_folder import refuse_changes


def restricted(project: Project, names: list[str]) -> Project:
    """The project with some of its scenarios only."""
    tree = project.dump()

    def some(values: dict[str, object]) -> dict[str, object]:
        return {n: v for n, v in values.items() if n in names}

    tree["scenarios"] = some(tree["scenarios"])
    tree["evaluation"]["weights"] = some(tree["evaluation"]["weights"])
    if not any(tree["evaluation"]["weights"].values()):  # all of those that remain were 0
        tree["evaluation"]["weights"] = {}
    tree["finetune"]["scenarios"] = some(tree["finetune"]["scenarios"])
    tree["recommend"]["by"] = some(tree["recommend"]["by"])
    tree["search"]["preference"] = some(tree["search"]["preference"])
    if not any(tree["search"]["preference"].values()) and tree["search"]["choose"] == "preference":
        tree["search"] |= {"choose": "joint", "preference": {}}
    return parse_project(tree)


def joined_folder(run_folder: str, name: str) -> str:
    """Where the prepared data of a joined scenario lies."""
    return storage.join(run_folder, "scenarios", name, "prepared")


def open_joined(project: Project, run_folder: str, name: str) -> Prepared | None:
    """The prepared data of a joined scenario; None where it has not been prepared.

    Raises:
        ProjectError: it was made with other values than the project has.
    """
    folder = joined_folder(run_folder, name)
    if not storage.exists(storage.join(folder, "manifest.json")):
        return None
    prepared = load_prepared(folder)
    now = prepared_with(restricted(project, [name]))
    run = project.run.name
    refuse_changes(prepared.made_with, now, job="prepare", run=run, folder=folder)
    return prepared


def prepare_joined(
    project: Project, stored: Prepared, run_folder: str, storage_path: str, name: str, log: Log
) -> Prepared:
    """Prepare a new scenario's data against the stored users, or find it prepared.

    Raises:
        ProjectError: unusable inputs, changed ones, or users of a space that the model lacks.
    """
    own = with_sample_world(restricted(project, [name]), storage_path, log)
    space = own.scenarios[name].users
    spaces = sorted({f.user_space for f in stored.scenarios.values()})
    if space is not None and space != name and space not in spaces:
        refuse(
            [
                f"scenarios.{name}.users: found {space!r}, which the joint model does not have; "
                f"allowed: null, {', '.join(spaces)}"
            ]
        )
    refuse(input_problems(own))
    mark = prepare_fingerprint(own, input_fingerprint(own))
    found = open_joined(project, run_folder, name)
    if found and found.fingerprint != mark:
        raise ProjectError(
            [
                f"scenarios.{name}: found other input files than its data was prepared from; "
                f"allowed: the same ones, or delete {joined_folder(run_folder, name)}"
            ]
        )
    if found:
        return found
    log(f"{name}: joins {', '.join(stored.scenarios)}")
    users = {s: stored_users(stored, s) for s in spaces if s == space}
    folder = joined_folder(run_folder, name)
    prepare_into(own, folder, mark, log, users)
    return load_prepared(folder)
