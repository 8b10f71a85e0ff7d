"""Scores of all rows of a split, each row once over the ranks, and their metrics."""

from collections.abc import Iterator

import numpy as np
import torch

from mtrec_ray.data.order import rank_range
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays, read_rows
from mtrec_ray.evaluation.metrics import TaskMetrics, task_metrics
from mtrec_ray.model.recommender import Recommender, predictions
from mtrec_ray.model.samples import Samples
from mtrec_ray.training.collectives import gather_objects, world
from mtrec_ray.training.item_vectors import ItemVectors

VALIDATION_BATCH_ROWS = 8192


# Rows of a batch in a task that only scores.
SCORING_BATCH_ROWS = 16_384


@torch.no_grad()
def score_rows(
    model: Recommender, vectors: ItemVectors, name: str, batches: Iterator[Arrays]
) -> Iterator[tuple[Arrays, np.ndarray]]:
    """Yields each batch with its predictions f32[N, P], from the cached item vectors."""
    was_training = model.training
    model.eval()
    for arrays in batches:
        samples = Samples.of(arrays, vectors.device)
        texts = vectors.of_batch({name: samples}, encode=False)[name]
        logits = model.score(name, samples, texts)
        yield arrays, predictions(model.facts[name], logits).cpu().numpy()
    model.train(was_training)


def score_split(
    model: Recommender,
    vectors: ItemVectors,
    prepared: Prepared,
    name: str,
    split: str,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns user hashes [N], labels [N, T] and predictions [N, P] of a split, on every rank.

    Of all its rows, or of the first `most`. Every rank scores its range of rows; labels and scores
    (not features) are gathered from all.
    """
    rank, size = world()
    num_rows = prepared.scenarios[name].num_rows(split)
    start, stop = rank_range(num_rows if most is None else min(num_rows, most), rank, size)
    batches = read_rows(prepared.shard_paths(name, split), VALIDATION_BATCH_ROWS, start, stop)
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
    """Returns metrics of each task over a split or its first rows, the same on every rank."""
    return {
        name: task_metrics(facts, *score_split(model, vectors, prepared, name, split, most))
        for name, facts in prepared.scenarios.items()
    }
