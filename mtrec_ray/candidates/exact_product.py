"""The best vectors by inner product, of all.

Letters: m vectors, E numbers of each, B queries, k found, c columns.
"""

import numpy as np

from mtrec_ray.data.arrays import Float32s, Ints

SCORES_PER_BLOCK = 2**22  # of the exact product, at a time


def exact_best(queries: Float32s, vectors: Float32s, k: int) -> tuple[Ints, Float32s]:
    """Returns places i64[B, k] (-1: none) and scores f32[B, k] of the best of vectors f32[m, E].

    A block of queries is scored with a block of vectors at a time.
    """
    rows = 256
    found = [exact_block(queries[a : a + rows], vectors, k) for a in range(0, len(queries), rows)]
    if not found:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    places, scores = (np.concatenate(part) for part in zip(*found, strict=True))
    return places, scores


def exact_block(queries: Float32s, vectors: Float32s, k: int) -> tuple[Ints, Float32s]:
    """Returns what `exact_best` does, of few queries."""
    step = max(SCORES_PER_BLOCK // max(len(queries), 1), k)
    places = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(vectors), step):
        block = queries @ vectors[start : start + step].T
        numbers = np.arange(start, start + block.shape[1])
        own, values = best_of(np.broadcast_to(numbers, block.shape), block, k)
        places, scores = best_of(
            np.concatenate([places, own], 1), np.concatenate([scores, values], 1), k
        )
    return places, scores


def best_of(items: Ints, scores: Float32s, k: int) -> tuple[Ints, Float32s]:
    """Returns the k best of items i64[B, c] and scores f32[B, c], best first; padded with -1."""
    if scores.shape[1] > k:
        kept = np.argpartition(scores, scores.shape[1] - k, 1)[:, -k:]
        items, scores = np.take_along_axis(items, kept, 1), np.take_along_axis(scores, kept, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    items, scores = np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)
    short = ((0, 0), (0, k - scores.shape[1]))
    items = np.pad(items, short, constant_values=-1)
    return items.astype(np.int64), np.pad(scores, short, constant_values=-np.inf)
