"""The prepare stage: samples, catalogues and states from a project's logs, audited."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, load_prepared, parse_scenario
from mtrec_ray.data.preparing.audit import audit
from mtrec_ray.data.preparing.inputs import input_fingerprint, input_problems
from mtrec_ray.data.preparing.prepare import NO_USERS, prepare
from mtrec_ray.data.sample_world import write_sample_world
from mtrec_ray.model.encoder import encoder_problems
from mtrec_ray.progress import Log, begin_stage, warn
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import fingerprint, prepare_fingerprint, prepared_with
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.run_folder import refuse_changes


def prepared_folder(project: Project, storage_path: str) -> str:
    """Where a run's prepared data lies."""
    return storage.join(storage_path, project.run.name, "prepared")


def open_prepared(project: Project, storage_path: str) -> Prepared:
    """The finished prepared data of a run.

    Raises:
        ProjectError: there is none, or it was made with other values than the project has.
    """
    folder = prepared_folder(project, storage_path)
    prepared = load_prepared(folder)
    now, name = prepared_with(project), project.run.name
    refuse_changes(prepared.made_with, now, job="prepare", run=name, folder=folder)
    return prepared


def with_sample_world(project: Project, storage_path: str, log: Log) -> Project:
    """The project itself, or one whose root is the generated sample world that it asks for.

    The world lies in the storage, which every node reaches, once for each seed and size.
    """
    world = project.sample_world
    if world is None:
        return project
    root = storage.join(storage_path, f"sample_world-{fingerprint(world.model_dump())}")
    marker = storage.join(root, "sample_world.json")
    if not storage.exists(marker):
        begin_stage(log, f"data: writing the GENERATED sample world (not real data) to {root}")
        write_sample_world(
            root, seed=world.seed, users=world.users, items=world.items, events=world.events
        )
        storage.write_json(marker, world.model_dump())
    return project.model_copy(update={"root": root})


def run_prepare(project: Project, storage_path: str, log: Log) -> dict[str, Any]:
    """Prepare a project's data, or find it prepared; returns the data report.

    Raises:
        ProjectError: unusable inputs, a changed configuration, or a failed leakage audit.
    """
    storage.check_writable(storage_path)
    project = with_sample_world(project, storage_path, log)
    refuse(input_problems(project) + encoder_problems(project.model.encoder))
    folder = prepared_folder(project, storage_path)
    mark = prepare_fingerprint(project, input_fingerprint(project))
    if storage.exists(storage.join(folder, "manifest.json")):
        found = open_prepared(project, storage_path)
        if found.fingerprint == mark:
            begin_stage(log, "prepare: already done")
            return storage.read_json(storage.join(folder, "manifest.json"))["report"]
        raise ProjectError(
            [
                f"run.name: found {project.run.name!r}, whose prepared data was made from other "
                "input files (their names, sizes or times have changed); allowed: the same ones, "
                f"another name, or delete {folder}"
            ]
        )
    begin_stage(log, f"prepare: {', '.join(project.scenarios)}")
    return prepare_into(project, folder, mark, log)


def prepare_into(
    project: Project,
    folder: str,
    mark: str,
    log: Log,
    stored_users: Mapping[str, np.ndarray] = NO_USERS,
) -> dict[str, Any]:
    """Prepare a project's data in a folder and audit it; returns the data report."""
    connect(project.run)
    storage.remove_folder(folder)
    try:
        manifest = prepare(project, folder, log, stored_users)
        check_leakage(project, folder, mark, manifest, log)
    except ProjectError:
        storage.remove_folder(folder)
        raise
    storage.remove_folder(storage.join(folder, "work"))
    for name in project.scenarios:
        for text in suspicious(name, manifest["report"][name]):
            warn(log, text)
    return manifest["report"]


def suspicious(name: str, report: Mapping[str, Any]) -> list[str]:
    """A line for rows of a scenario that were dropped, and for those that repeat others."""
    lines = [f"{name}: {n:,} rows dropped ({why})" for why, n in report["dropped"].items() if n]
    repeated = report.get("duplicates", 0)
    if repeated:
        lines.append(f"{name}: {repeated:,} rows repeat the user, item and time of another")
    return lines


def check_leakage(
    project: Project, folder: str, mark: str, manifest: dict[str, Any], log: Log
) -> None:
    """Audit the prepared data; the manifest is written only where the audit passes."""
    log("leakage audit")
    scenarios = {n: parse_scenario(s) for n, s in manifest["scenarios"].items()}
    problems = audit(project, Prepared(folder, mark, scenarios))
    refuse([f"leakage audit: {line}" for line in problems[:20]])
    manifest["report"]["audit"] = {"passed": True, "rows_per_split": 12}
    made = {"fingerprint": mark, "made_with": prepared_with(project)}
    storage.write_json(storage.join(folder, "manifest.json"), made | manifest)
