"""Gradient-boosted trees as a teacher of the network.

A teacher's predictions are mixed into the labels that the network learns from
(`teacher_labels.py`): trees read thresholds of statistics well, and a prediction says more about a
row than a 0 or 1. No row's teacher has seen a label of its user: users are split into folds, and
trees fitted on the other folds predict.

Letters: N rows, T tasks.
"""

from typing import TYPE_CHECKING

import numpy as np

from mtrec_ray.data import storage
from mtrec_ray.data.kinds import own_units
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays, read_rows, write_predictions
from mtrec_ray.project.project import Project
from mtrec_ray.project.training import Teacher
from mtrec_ray.training.boosted_trees import (
    BATCH_ROWS,
    Columns,
    Examples,
    examples,
    fit_trees,
    fold_of,
    num_rarer_labels,
)

if TYPE_CHECKING:
    import lightgbm


def fit_teacher(
    project: Project, prepared: Prepared, name: str, folder: str, num_threads: int = 1
) -> dict[str, int]:
    """Write the teacher's predictions of a scenario's training rows, a file for each shard.

    Returns the number of trees of each task, summed over folds. A task with too few labels
    has no predictions.
    """
    options = project.training.teacher
    facts, columns = prepared.scenarios[name], Columns.of(project, prepared, name)
    train = examples(prepared, columns, name, "train", options.rows)
    valid = examples(prepared, columns, name, "valid", options.rows)
    boosters, trees = {}, {}
    for task, kind in enumerate(facts.kinds.values()):
        folds = fit_folds(kind, task, train, valid, columns.num_categorical, options, num_threads)
        if folds:
            boosters[task] = folds
            trees[facts.tasks[task]] = sum(b.best_iteration for b in folds)
    for shard_path in prepared.shard_paths(name, "train"):
        predicted = [
            predict_out_of_fold(columns, rows, boosters, options.folds)
            for rows in read_rows([shard_path], BATCH_ROWS, 0, 10**12)
        ]
        path = storage.join(folder, name, storage.name_of(shard_path))
        write_predictions(path, np.concatenate(predicted))
    return trees


def fit_folds(
    kind: str,
    task: int,
    train: Examples,
    valid: Examples,
    num_categorical: int,
    options: Teacher,
    num_threads: int,
) -> list["lightgbm.Booster"]:
    """Returns for each fold the trees of all other folds; empty with too few labels."""
    fold, valid_rows = fold_of(train.user, options.folds), valid.of_task(task)
    num_labels = num_rarer_labels(kind, train.of_task(task)[1])
    if num_labels < options.least_labels or not num_rarer_labels(kind, valid_rows[1]):
        return []
    return [
        fit_trees(
            kind, train.of_task(task, fold != f), valid_rows, num_categorical,
            weights=train.weights_of(task, fold != f),
            seed=f, num_threads=num_threads, rounds=options.rounds,
        )
        for f in range(options.folds)
    ]  # fmt: skip


def predict_out_of_fold(
    columns: Columns, rows: Arrays, boosters: dict[int, list["lightgbm.Booster"]], folds: int
) -> np.ndarray:
    """Returns f32[N, T], out-of-fold predictions of labelled rows, NaN for others."""
    labels = rows["labels"]
    predicted = np.full(labels.shape, np.nan, np.float32)
    inputs = columns.every(rows)
    fold = fold_of(rows["person"], folds)
    kinds = list(columns.facts.kinds.values())
    for task, without_fold in boosters.items():
        for f, booster in enumerate(without_fold):
            chosen = (fold == f) & np.isfinite(labels[:, task])
            if chosen.any():
                scores = np.asarray(booster.predict(inputs[chosen], num_threads=1))
                predicted[chosen, task] = own_units(kinds[task], scores)
    return predicted
