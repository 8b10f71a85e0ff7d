"""Inverted lists of vectors, by faiss: a vector lies in the list of the centre it is nearest to.

A search scores all vectors of the few lists whose centres are nearest to the query (Douze et al.,
2401.08281). Nearest is by inner product, and centres have length 1.

Letters: m vectors, E numbers of each, L lists, B queries, k places found.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import faiss
import numpy as np

from mtrec_ray.data.arrays import Float32s, Ints

POINTS_PER_LIST = 64  # by which a centre is trained, at most
ROUNDS = 10  # of k-means


class Searched(Protocol):
    """What is used of an index of faiss."""

    def search(
        self, x: Float32s, k: int, *, params: faiss.SearchParametersIVF
    ) -> tuple[Float32s, Ints]:
        """Returns scores f32[B, k] and places i64[B, k] (-1: none)."""
        ...


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let faiss work with so many threads (0: one a core), and set back what was.

    faiss can share OpenMP with torch: its number of threads would become torch's.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number or os.cpu_count() or 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def num_lists(num_vectors: int) -> int:
    """Returns L for so many vectors: four times the root, and some vectors for each."""
    return max(min(int(4 * num_vectors**0.5), num_vectors // 8), 1)


def train_centres(vectors: Float32s, lists: int, seed: int = 0) -> Float32s:
    """Returns centres f32[L, E] of a sample of vectors f32[m, E], by k-means."""
    width = vectors.shape[1]
    chosen = np.random.default_rng(seed).permutation(len(vectors))[: POINTS_PER_LIST * lists]
    means = faiss.Kmeans(
        width,
        lists,
        niter=ROUNDS,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_PER_LIST,
        seed=seed,
    )
    means.train(np.ascontiguousarray(vectors[np.sort(chosen)], np.float32))
    return np.asarray(means.centroids, np.float32).reshape(lists, width)


def flat(centres: Float32s) -> faiss.IndexFlatIP:
    """Returns an exact index of centres f32[L, E]."""
    index = faiss.IndexFlatIP(centres.shape[1])
    index.add(centres)
    return index


def lists_of(vectors: Float32s, centres: Float32s) -> Ints:
    """Returns i64[m]: the list of each of vectors f32[m, E]."""
    return np.asarray(flat(centres).search(vectors, 1)[1], np.int64)[:, 0]


def filled(vectors: Float32s, centres: Float32s, lists: Ints) -> Searched:
    """Returns an index of vectors f32[m, E] that lie in the lists i64[m] of centres f32[L, E]."""
    quantiser = flat(centres)
    index = faiss.IndexIVFFlat(
        quantiser, centres.shape[1], len(centres), faiss.METRIC_INNER_PRODUCT
    )
    places, own = np.arange(len(vectors)), np.ascontiguousarray(lists, np.int64)
    pointers = [faiss.swig_ptr(part) for part in (vectors, places, own)]
    index.add_core(len(vectors), *pointers)
    return cast(Searched, index)


def best_in_lists(index: Searched, queries: Float32s, k: int, probes: int) -> tuple[Ints, Float32s]:
    """Returns places i64[B, k] (-1: none) and scores f32[B, k] of the best in so many lists."""
    params = faiss.SearchParametersIVF()
    params.nprobe = probes
    scores, places = index.search(queries, k, params=params)
    return places, np.where(places < 0, np.float32(-np.inf), scores)
