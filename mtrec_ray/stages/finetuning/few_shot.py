"""A new scenario's learning curve: joined with 0, 64, 1,024, ... of its rows, against alone.

With 0 rows the general head of the joint model scores it (zero-shot); alone there is nothing. Both
take as many rows, epochs and steps, each with its own learning rate (`finetune.lr`,
`training.lr`). The statistics and histories of its rows come from the whole log, as a live system
has them: a shot is a row that is learned from.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from mtrec_ray.data import storage
from mtrec_ray.evaluation.metrics import task_metrics
from mtrec_ray.progress import Log
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
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
    scenario_project,
    single,
    start_of,
    store_delta,
)
from mtrec_ray.stages.parallel_runs import Record, run_in_parallel
from mtrec_ray.stages.run_folder import DONE
from mtrec_ray.stages.train import BEST, TrainingRun, train_model
from mtrec_ray.stages.trained_model import TrainedModel, joint_model

STEPS_AN_EPOCH = 8  # at least: with few rows batches are smaller


def check_shots(words: Sequence[str]) -> tuple[str, ...]:
    """Numbers of rows, or `all`.

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
) -> dict[str, Any]:
    """Test metrics of a new scenario by number of rows: joined, and alone; also as shots.json."""
    have = joint_run.data(name).scenarios[name].num_rows("train")
    numbers = {w: have if w == "all" else min(int(w), have) for w in shots}
    points = {
        f"{w} rows, {how}": (rows, how)
        for w, rows in numbers.items()
        for how in ("joined", "alone")
        if rows or (how == "joined" and joint_run.project.model.general)
    }
    with open_channel(log) as sender:
        jobs = {  # one for each that is different: there may be fewer rows than asked for
            label_of(rows, how): functools.partial(
                curve_point, joint_run, name, project, rows, how, sender
            )
            for rows, how in dict.fromkeys(points.values())
        }
        done = run_in_parallel(jobs, project, log)
    found = {label: done[label_of(rows, how)] for label, (rows, how) in points.items()}
    storage.write_json(storage.join(joint_run.folder(name), "shots.json"), found)
    return found


def label_of(rows: int, how: str) -> str:
    """The name of a point of the curve."""
    return f"{rows:,} rows, {how}"


def with_few_rows(tree: dict[str, Any], rows: int) -> dict[str, Any]:
    """A project's tree whose batches are so small that an epoch has some steps."""
    training = tree["training"]
    batch = min(training["batch_size"], max(rows // STEPS_AN_EPOCH, 1))
    training |= {"batch_size": batch, "accumulation": 1, "rows_per_epoch": max(rows, 1)}
    return tree


def curve_point(
    joint_run: JointRun, name: str, project: Project, rows: int, how: str, sender: Sender
) -> Record:
    """Metrics on test of a scenario that learned from so many rows."""
    if not rows:
        return test_metrics(
            joint_run, name, with_use_options(zero_shot_model(joint_run, name, project), project)
        )
    folder = storage.join(joint_run.folder(name), "shots", f"{how}-{rows}")
    data, tuned = joint_run.data(name), project.finetune.of(name)
    workers = {"num_workers": 1}  # batches may be of a few rows
    if how == "alone":
        tree = with_few_rows(single(project, name), rows)
        tree["training"] |= {"epochs": tuned.epochs, "patience": tuned.patience}
        start = None
    else:
        tree = with_few_rows(scenario_project(joint_run, name, tuned, project).dump(), rows)
        start = start_of(joint_run, name, tuned)
    tree["run"] |= workers
    own = parse_project(tree)
    if not storage.exists(storage.join(folder, "training", DONE)):
        told = sender.named(label_of(rows, how))
        train_model(TrainingRun(own, data, folder, "training", start=start, rows=rows, log=told))
    best = storage.join(folder, "training", BEST)
    if start is None:
        return test_metrics(joint_run, name, joint_model(own, data.folder, best))
    delta = storage.join(folder, DELTA_FOLDER)
    facts = {"tuned": tuned.model_dump(mode="json")}
    task = task_of(store_delta, project.run, gpu=False)
    ray.get(task.remote(own, data, start, best, delta, facts))
    return test_metrics(joint_run, name, finetuned_model_in(joint_run, name, project, delta))


def test_metrics(joint_run: JointRun, name: str, trained_model: TrainedModel) -> Record:
    """Metrics of each task on test."""
    users, labels, scores = score_split_by_tasks(trained_model, name, "test")
    facts = joint_run.data(name).scenarios[name]
    return dict(task_metrics(facts, np.asarray(users), labels, scores))
