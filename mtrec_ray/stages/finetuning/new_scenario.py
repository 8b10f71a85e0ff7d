"""A scenario that joins a finished joint model: its data, by the users that the model knows."""

from mtrec_ray.data.end_states import stored_users
from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.data.preparing.inputs import input_fingerprint
from mtrec_ray.data.preparing.profiles import KnownUsers
from mtrec_ray.data.preparing.taken_rows import Beside
from mtrec_ray.progress import Log
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import prepared_data_depends_on
from mtrec_ray.project.project import Project
from mtrec_ray.stages.prepare import (
    load_finished,
    prepare_into,
    with_parquet,
    with_sample_world,
)
from mtrec_ray.stages.run_folder import RunFolder


def open_new_scenario(project: Project, run: RunFolder, name: str) -> Prepared | None:
    """Returns the prepared data of a scenario that joined; None where it was not prepared.

    Raises:
        ProjectError: it was made from other values than the project has.
    """
    stage = run.prepare_new(name)
    made_from = prepared_data_depends_on(project.only([name]))
    return load_finished(stage, made_from) if stage.finished(made_from) else None


def prepare_new_scenario(
    project: Project, joint: Prepared, run: RunFolder, name: str, log: Log
) -> Prepared:
    """Prepares a new scenario's data against the users of the joint data, or finds it prepared.

    Raises:
        ProjectError: unusable inputs, changed ones, or users of a space that the model lacks.
    """
    own = with_sample_world(project.only([name]), run.storage, log)
    refuse(user_space_problems(own, joint, name))
    refuse(input_problems(own))
    stage, inputs = run.prepare_new(name), input_fingerprint(own)
    report = stage.finished(prepared_data_depends_on(own))
    if report and report["inputs"] != inputs:
        raise ProjectError(
            [
                f"scenarios.{name}: found other input files than its data was prepared from; "
                f"allowed: the same ones, or delete {stage.folder}"
            ]
        )
    if not report:
        log(f"{name}: joins {', '.join(joint.scenarios)}")
        space = own.scenarios[name].users
        beside = others_of(project, joint, run, name, log)
        users = known_users(joint, space)
        prepare_into(own, run.storage, stage, inputs, log, users, beside)
    return load_prepared(stage.folder)


def others_of(
    project: Project, joint: Prepared, run: RunFolder, name: str, log: Log
) -> Beside | None:
    """Returns the joint model's scenarios with the users of a new one, if it asks for them.

    The new one sees what was taken in them; their own data is finished, and sees nothing of it.
    """
    space = project.scenarios[name].users
    names = [n for n, facts in joint.scenarios.items() if facts.user_space == space]
    if not project.scenarios[name].history.elsewhere or not names:
        return None
    whole = with_sample_world(project.only(names), run.storage, log)
    return Beside(with_parquet(whole, run.storage, log), joint.only(names))


def known_users(joint: Prepared, space: str | None) -> dict[str, KnownUsers]:
    """Returns the users of an id space that the joint model knows; nothing of another space."""
    if space is None or space not in user_spaces(joint):
        return {}
    return {space: KnownUsers(stored_users(joint, space), joint.users.get(space))}


def user_space_problems(own: Project, joint: Prepared, name: str) -> list[str]:
    """Returns a line if the scenario shares users of a space that the joint model lacks."""
    space, spaces = own.scenarios[name].users, user_spaces(joint)
    if space is None or space == name or space in spaces:
        return []
    return [
        f"scenarios.{name}.users: found {space!r}, which the joint model does not have; "
        f"allowed: null, {', '.join(spaces)}"
    ]


def user_spaces(joint: Prepared) -> list[str]:
    """Returns the id spaces of users that the joint data has."""
    return sorted({facts.user_space for facts in joint.scenarios.values()})
