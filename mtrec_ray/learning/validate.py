"""Scores of all rows of a split, each row once over the ranks, and their metrics."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from mtrec_ray.data.shards import Arrays, Prepared, PreparedScenario, rank_range, read_rows
from mtrec_ray.learning.metrics import binary_metrics, regression_metrics
from mtrec_ray.learning.ranks import gather_objects, world
from mtrec_ray.learning.vectors import ItemVectors
from mtrec_ray.model.recommender import Recommender, Samples, predictions

BATCH_ROWS = 8192

TaskMetrics = dict[str, dict[str, float]]


@torch.no_grad()
def score_rows(
    model: Recommender, vectors: ItemVectors, name: str, batches: Iterator[Arrays]
) -> Iterator[tuple[Arrays, np.ndarray]]:
    """Batches with their predictions f32[N, T]; uses the cached item vectors."""
    was_training = model.training
    model.eval()
    for arrays in batches:
        samples = Samples.of(arrays, vectors.device)
        found = model.score(name, samples, vectors.of_batch({name: samples}, encode=False)[name])
        yield arrays, predictions(model.facts[name], found).cpu().numpy()
    model.train(was_training)


def score_split(
    model: Recommender,
    vectors: ItemVectors,
    prepared: Prepared,
    name: str,
    split: str,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Persons [N], labels and predictions [N, T] of a split, the same on every rank.

    Of all its rows, or of the first `most`. Every rank scores its range of rows; labels and scores
    (not features) are gathered.
    """
    rank, size = world()
    num_rows = prepared.scenarios[name].num_rows(split)
    start, stop = rank_range(num_rows if most is None else min(num_rows, most), rank, size)
    batches = read_rows(prepared.shard_paths(name, split), BATCH_ROWS, start, stop)
    parts = [
        (arrays["person"], arrays["labels"], scores)
        for arrays, scores in score_rows(model, vectors, name, batches)
    ]
    rows = gather_objects([p for p in parts if len(p[0])])
    persons, labels, scores = zip(*(p for part in rows for p in part), strict=True)
    return np.concatenate(persons), np.concatenate(labels), np.concatenate(scores)


def validate(
    model: Recommender,
    vectors: ItemVectors,
    prepared: Prepared,
    split: str,
    most: int | None = None,
) -> dict[str, TaskMetrics]:
    """Metrics of each scenario and task over a split, or its first rows, same on every rank."""
    return {
        name: task_metrics(facts, *score_split(model, vectors, prepared, name, split, most))
        for name, facts in prepared.scenarios.items()
    }


def task_metrics(
    facts: PreparedScenario, users: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> TaskMetrics:
    """Metrics of each task over its labelled rows; arrays are [N], [N, T], [N, T]."""
    found: TaskMetrics = {}
    for i, (task, kind) in enumerate(facts.kinds.items()):
        known = np.isfinite(labels[:, i])
        own = (labels[known, i].astype(np.float64), scores[known, i].astype(np.float64))
        if not known.any():
            continue
        if kind == "binary":
            found[task] = binary_metrics(*own, users[known], base_rate=facts.label_means[task])
        else:
            found[task] = regression_metrics(*own, train_mean=facts.label_means[task])
    return found


def flat(metrics: Mapping[str, TaskMetrics]) -> dict[str, float]:
    """Metrics by `scenario/task/metric`."""
    return {
        f"{name}/{task}/{metric}": value
        for name, tasks in metrics.items()
        for task, values in tasks.items()
        for metric, value in values.items()
    }
