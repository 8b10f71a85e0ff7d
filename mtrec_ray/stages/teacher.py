"""The teacher of training: trees for every scenario, fitted by Ray tasks."""

from dataclasses import replace

import ray

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, TeacherLabels, load_prepared
from mtrec_ray.progress import Log
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect, task_of
from mtrec_ray.stages.run_folder import Stage
from mtrec_ray.training.teacher import fit_teacher


def add_teacher_labels(project: Project, prepared: Prepared, folder: str, log: Log) -> Prepared:
    """Returns the prepared data with the teacher's predictions, if the project wants a teacher.

    They lie in `teacher/` below a folder; scenarios that are finished are not repeated.
    """
    options = project.training.teacher
    if not options.share:
        return prepared
    fitted = options.model_dump(exclude={"share"})
    stage = Stage(storage.join(folder, "teacher"), "train", project.run.name)
    made_from = {"prepared": prepared.fingerprint, "training": {"teacher": fitted}}
    labelled = replace(prepared, teacher_labels=TeacherLabels(stage.folder, options.share))
    if stage.finished(made_from):
        return labelled
    stage.start(made_from)
    connect(project.run)
    log("fitting the teacher's trees")
    fit_scenarios(project, prepared, stage, log)
    stage.finish({"scenarios": list(prepared.scenarios)})
    return labelled


def fit_scenarios(project: Project, prepared: Prepared, stage: Stage, log: Log) -> None:
    """Fits the trees of all scenarios that are not finished, side by side."""
    task = task_of(fit_scenario_teacher, project.run, gpu=False)
    stages = {name: stage.part(name) for name in prepared.scenarios}
    waiting = {
        task.remote(project, prepared.folder, name, stage.folder): name
        for name, part in stages.items()
        if part.result is None
    }
    while waiting:
        ready, _ = ray.wait(list(waiting))
        name = waiting.pop(ready[0])
        trees = stages[name].finish(ray.get(ready[0]))
        log(f"teacher of {name}: " + ", ".join(f"{t} {n} trees" for t, n in trees.items()))


def fit_scenario_teacher(project: Project, prepared: str, name: str, folder: str) -> dict[str, int]:
    """Fits and predicts for a scenario, in a Ray task; returns the number of trees by task."""
    return fit_teacher(project, load_prepared(prepared), name, folder, project.run.cpus_per_worker)
