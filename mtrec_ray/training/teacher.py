"""Gradient-boosted trees on prepared rows: what a user would build instead, and a teacher.

A teacher's predictions are mixed into the labels that the network learns from
(`teacher_labels.py`): trees read thresholds of statistics well, and a prediction says more about a
row than a 0 or 1. No row's teacher has seen a label of its user: users are split into folds, and
trees fitted on the other folds predict.

Letters: N rows, T tasks, F columns, D width of text vectors.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mtrec_ray.data import storage
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays, read_rows, write_predictions
from mtrec_ray.model.history import cosines, similarity_summary
from mtrec_ray.project.project import Project
from mtrec_ray.project.training import Teacher
from mtrec_ray.training.build import pretrained_vectors

if TYPE_CHECKING:
    import lightgbm

NUM_COMPONENTS = 32


PATIENCE = 50


TEACHER_BATCH_ROWS = 65_536


PARAMETERS = {
    "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 50, "lambda_l2": 1.0,
    "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1, "verbosity": -1,
}  # fmt: skip


class Columns:
    """The columns that trees read of a scenario's rows.

    Attributes:
        num_categorical: how many of the plain columns, from the first, are codes of categories.
    """

    def __init__(self, project: Project, prepared: Prepared, name: str) -> None:
        self.facts, self.catalogue = prepared.scenarios[name], prepared.catalogue(name)
        self.vectors = pretrained_vectors(project, prepared, name, torch.device("cpu"))
        known = self.vectors.numpy()[self.catalogue.known]
        number = min(NUM_COMPONENTS, *known.shape)
        from sklearn.decomposition import PCA

        components = PCA(number, random_state=0).fit(known)
        self.reduced = components.transform(self.vectors.numpy()).astype(np.float32)
        self.num_categorical = self.catalogue.categorical.shape[1] + len(self.facts.category_sizes)

    def plain(self, rows: Arrays) -> np.ndarray:
        """Returns f32[N, F]: categories, statistics and numbers."""
        item = rows["item"]
        codes = [self.catalogue.categorical[item], rows["categorical"]]
        columns = [*codes, rows["numeric"], self.catalogue.numeric[item]]
        return np.concatenate(columns, 1).astype(np.float32)

    def text(self, rows: Arrays) -> np.ndarray:
        """Returns f32[N, 3 + 32]: cosines of candidate and history, and principal components."""
        return np.concatenate([self.similarity(rows), self.reduced[rows["item"]]], 1)

    def similarity(self, rows: Arrays) -> np.ndarray:
        """Returns f32[N, 3]: cosine of candidate and history, mean, maximum and latest."""
        parts = []
        for start in range(0, len(rows["item"]), 8192):
            candidate = torch.from_numpy(rows["item"][start : start + 8192].astype(np.int64))
            places = torch.from_numpy(rows["history"][start : start + 8192].astype(np.int64))
            cosine = cosines(self.vectors, candidate, places.clamp(min=0))
            parts.append(similarity_summary(cosine, places >= 0))
        return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Examples:
    """Rows as trees are fitted on them: f32[N, F] inputs, f32[N, T] labels, i64[N] users."""

    inputs: np.ndarray
    labels: np.ndarray
    user: np.ndarray

    def of_task(self, task: int, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs and labels of the rows (of those chosen) that have a label of the task."""
        known = np.isfinite(self.labels[:, task])
        known = known if chosen is None else known & chosen
        return self.inputs[known], self.labels[known, task]


def fit_trees(
    kind: str,
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    num_categorical: int,
    *,
    seed: int,
    num_threads: int,
    rounds: int = 1500,
) -> "lightgbm.Booster":
    """Returns trees for a task, as many as give the lowest loss on the valid rows."""
    parameters = PARAMETERS | {
        "objective": "binary" if kind == "binary" else "regression",
        "seed": seed,
        "num_threads": num_threads,
    }
    codes = list(range(num_categorical))
    import lightgbm

    first = lightgbm.Dataset(*train, categorical_feature=codes)
    second = lightgbm.Dataset(*valid, categorical_feature=codes, reference=first)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    return lightgbm.train(parameters, first, rounds, valid_sets=[second], callbacks=[stop])


def fit_teacher(
    project: Project, prepared: Prepared, name: str, folder: str, num_threads: int = 1
) -> dict[str, int]:
    """Write the teacher's predictions of a scenario's training rows, a file for each shard.

    Returns the number of trees of each task, summed over folds. A task with too few labels
    has no predictions.
    """
    options = project.training.teacher
    facts, columns = prepared.scenarios[name], Columns(project, prepared, name)
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
            for rows in read_rows([shard_path], TEACHER_BATCH_ROWS, 0, 10**12)
        ]
        path = storage.join(folder, name, storage.name_of(shard_path))
        write_predictions(path, np.concatenate(predicted))
    return trees


def examples(
    prepared: Prepared, columns: Columns, name: str, split: str, num_rows: int
) -> Examples:
    """Returns at most `num_rows` rows of a split, the first of each shard (in random order)."""
    paths = prepared.shard_paths(name, split)
    each = -(-num_rows // max(len(paths), 1))
    parts = [
        (np.concatenate([columns.plain(r), columns.text(r)], 1), r["labels"], r["person"])
        for path in paths
        for r in read_rows([path], TEACHER_BATCH_ROWS, 0, each)
    ]
    inputs, labels, user = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Examples(inputs, labels, user)


def fold_of(user: np.ndarray, folds: int) -> np.ndarray:
    """Returns i64[N]: the fold of each row's user."""
    return (hash_ints(user.astype(np.int64), 5) % np.uint64(folds)).astype(np.int64)


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
    others = [train.of_task(task, fold != f) for f in range(options.folds)]
    return [
        fit_trees(
            kind, rows, valid_rows, num_categorical,
            seed=f, num_threads=num_threads, rounds=options.rounds,
        )
        for f, rows in enumerate(others)
    ]  # fmt: skip


def num_rarer_labels(kind: str, labels: np.ndarray) -> int:
    """Returns the number of labels; for a binary task, of its rarer label."""
    if kind == "regression":
        return len(labels)
    return int(min((labels > 0.5).sum(), (labels <= 0.5).sum()))


def predict_out_of_fold(
    columns: Columns, rows: Arrays, boosters: dict[int, list["lightgbm.Booster"]], folds: int
) -> np.ndarray:
    """Returns f32[N, T], out-of-fold predictions of labelled rows, NaN for others."""
    labels = rows["labels"]
    predicted = np.full(labels.shape, np.nan, np.float32)
    inputs = np.concatenate([columns.plain(rows), columns.text(rows)], 1)
    fold = fold_of(rows["person"], folds)
    for task, without_fold in boosters.items():
        for f, booster in enumerate(without_fold):
            chosen = (fold == f) & np.isfinite(labels[:, task])
            if chosen.any():
                scores = np.asarray(booster.predict(inputs[chosen], num_threads=1))
                predicted[chosen, task] = scores
    return predicted
