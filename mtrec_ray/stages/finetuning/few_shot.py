"""A new scenario's learning curve: joined with 0, 64, 1,024, ... of its rows, against alone.

With 0 rows the general head of the joint model scores it (zero-shot); alone there is nothing. Both
take equally many rows, epochs and steps, each with its own learning rate (`finetune.lr`,
`training.lr`). The statistics and histories of its rows come from the whole log, as a live system
has them: a shot is a row that is learned from.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from mtrec_ray.data import storage
from mtrec_ray.evaluation.metrics import task_metrics
from mtrec_ray.progress import Log
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import Fields, task_weights
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.stages.channel import Sender, open_channel
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.finetuning.chosen_model import (
    finetuned_model_in,
    score_split_by_tasks,
    with_use_options,
    zero_shot_model,
)
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.finetuning.recipe import (
    DELTA_FOLDER,
    STEPS_AN_EPOCH,
    scenario_project,
    start_of,
    store_delta,
)
from mtrec_ray.stages.parallel_runs import run_in_parallel
from mtrec_ray.stages.run_folder import BEST, Record
from mtrec_ray.stages.train import TrainingRun, train_model
from mtrec_ray.stages.trained_model import TrainedModel, joint_model


def check_shots(words: Sequence[str]) -> tuple[str, ...]:
    """Returns numbers of rows, or `all`.

    Raises:
        ProjectError: another word.
    """
    wrong = [w for w in words if w != "all" and not w.isdigit()]
    if wrong:
        found = ", ".join(wrong)
        raise ProjectError([f"--shots: found {found}; allowed: numbers and all, as 0,64,1024,all"])
    return tuple(words)


def draw_curve(
    joint_run: JointRun, name: str, project: Project, shots: Sequence[str], log: Log
) -> Record:
    """Returns test metrics of a new scenario by number of rows, joined and alone.

    They are kept as shots.json, too.
    """
    have = joint_run.data(name).scenarios[name].num_rows("train")
    numbers = {word: have if word == "all" else min(int(word), have) for word in shots}
    points = {
        f"{word} rows, {way}": (rows, way)
        for word, rows in numbers.items()
        for way in ("joined", "alone")
        if rows or (way == "joined" and joint_run.project.model.general)
    }
    with open_channel(log) as sender:
        jobs = {  # one for each that is different: there may be fewer rows than asked for
            label_of(rows, way): functools.partial(
                curve_point, joint_run, name, project, rows, way, sender
            )
            for rows, way in dict.fromkeys(points.values())
        }
        done = run_in_parallel(jobs, project, log)
    curve = {label: done[label_of(rows, way)] for label, (rows, way) in points.items()}
    storage.write_json(storage.join(joint_run.folder(name), "shots.json"), curve)
    return curve


def label_of(rows: int, way: str) -> str:
    """Returns the name of a point of the curve."""
    return f"{rows:,} rows, {way}"


def curve_point(
    joint_run: JointRun, name: str, project: Project, rows: int, way: str, sender: Sender
) -> Record:
    """Returns the metrics on test of a scenario that learned from so many rows."""
    if not rows:
        zero_shot = with_use_options(zero_shot_model(joint_run, name, project), project)
        return test_metrics(joint_run, name, zero_shot)
    stage = joint_run.run.stage("finetune --shots", "scenarios", name, "shots", f"{way}-{rows}")
    made_from = point_depends_on(joint_run, name, project)
    finished = stage.finished(made_from)
    if finished:
        return finished
    stage.start(made_from)
    point = CurvePoint(rows, stage.folder, sender.named(label_of(rows, way)))
    train = train_point_joined if way == "joined" else train_point_alone
    return stage.finish(test_metrics(joint_run, name, train(joint_run, name, project, point)))


@dataclass(frozen=True)
class CurvePoint:
    """A model of the curve: its number of rows, its folder, and where its progress is shown."""

    rows: int
    folder: str
    log: Log


def point_depends_on(joint_run: JointRun, name: str, project: Project) -> Fields:
    """Returns whatever a point of the curve depends on beside its number of rows."""
    return {
        "prepared": joint_run.data(name).fingerprint,
        "joint": {"fingerprint": joint_run.fingerprint},
        "finetune": project.finetune.of(name).model_dump(mode="json"),
        "training": project.training.model_dump(mode="json"),
        **task_weights(project, name),
    }


def train_point_alone(
    joint_run: JointRun, name: str, project: Project, point: CurvePoint
) -> TrainedModel:
    """Returns a model of the scenario by itself that learned from so many rows."""
    tuned, data = project.finetune.of(name), joint_run.data(name)
    lengths = {"training.epochs": tuned.epochs, "training.patience": tuned.patience}
    small_project = with_few_rows(with_overrides(project.single(name), lengths), point.rows)
    training = TrainingRun(
        small_project, data, point.folder, "training", rows=point.rows, log=point.log
    )
    return joint_model(small_project, data.folder, best_weights(training))


def train_point_joined(
    joint_run: JointRun, name: str, project: Project, point: CurvePoint
) -> TrainedModel:
    """Returns a model of the scenario that started from the joint one and so many rows."""
    tuned, data = project.finetune.of(name), joint_run.data(name)
    small_project = with_few_rows(scenario_project(joint_run, name, tuned, project), point.rows)
    start = start_of(joint_run, name, tuned)
    training = TrainingRun(
        small_project, data, point.folder, "training", start=start, rows=point.rows, log=point.log
    )
    best, folder = best_weights(training), point.folder
    delta = storage.join(folder, DELTA_FOLDER)
    task = task_of(store_delta, project.run, gpu=False)
    more = {"tuned": tuned.model_dump(mode="json")}
    ray.get(task.remote(small_project, data, start, best, delta, more))
    return finetuned_model_in(joint_run, name, project, delta)


def with_few_rows(project: Project, rows: int) -> Project:
    """Returns the project with one worker and batches so small that an epoch has some steps."""
    batch = min(project.training.batch_size, max(rows // STEPS_AN_EPOCH, 1))
    return with_overrides(
        project,
        {
            "training.batch_size": batch,
            "training.accumulation": 1,
            "training.rows_per_epoch": rows,
            "run.num_workers": 1,
        },
    )


def best_weights(training: TrainingRun) -> str:
    """Trains a model unless it is finished; returns the folder of its best weights."""
    if training.stage.result is None:
        train_model(training)
    return storage.join(training.stage.folder, BEST)


def test_metrics(joint_run: JointRun, name: str, trained_model: TrainedModel) -> Record:
    """Returns the metrics of each task on test."""
    users, labels, scores = score_split_by_tasks(trained_model, name, "test")
    facts = joint_run.data(name).scenarios[name]
    return dict(task_metrics(facts, np.asarray(users), labels, scores))
