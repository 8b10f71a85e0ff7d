"""The teacher of training: trees for every scenario, fitted by Ray tasks."""

from dataclasses import replace
from typing import Any

import ray

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, TeacherLabels, load_prepared
from mtrec_ray.progress import Log
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect, task_of
from mtrec_ray.stages.run_folder import DONE, find_finished, mark_started
from mtrec_ray.training.teacher import fit_teacher


def add_teacher_labels(project: Project, prepared: Prepared, run_folder: str, log: Log) -> Prepared:
    """The prepared data with the teacher's predictions, if the project wants one.

    They lie in the run's folder; scenarios that are finished are not repeated.
    """
    options = project.training.teacher
    if not options.share:
        return prepared
    folder = storage.join(run_folder, "teacher")
    fitted = {k: v for k, v in options.model_dump().items() if k != "share"}
    made_with = {"prepared": prepared.fingerprint, "training": {"teacher": fitted}}
    taught = replace(prepared, taught=TeacherLabels(folder, options.share))
    if find_finished(folder, made_with, job="train", run=project.run.name):
        return taught
    mark_started(folder, made_with)
    connect(project.run)
    log("fitting the teacher's trees")
    task = task_of(fit_scenario_teacher, project.run, gpu=False)
    waiting = {
        task.remote(project.dump(), prepared.folder, name, folder): name
        for name in prepared.scenarios
        if not storage.exists(storage.join(folder, name, DONE))
    }
    while waiting:
        ready, _ = ray.wait(list(waiting))
        trees = ray.get(ready[0])
        name = waiting.pop(ready[0])
        storage.write_json(storage.join(folder, name, DONE), trees)
        log(f"teacher of {name}: " + ", ".join(f"{t} {n} trees" for t, n in trees.items()))
    storage.write_json(storage.join(folder, DONE), {"scenarios": list(prepared.scenarios)})
    return taught


def fit_scenario_teacher(
    project_tree: dict[str, Any], prepared_path: str, name: str, folder: str
) -> dict[str, int]:
    """Fit and predict for a scenario, in a Ray task."""
    project = parse_project(project_tree)
    threads = project.run.cpus_per_worker
    return fit_teacher(project, load_prepared(prepared_path), name, folder, threads)
