"""What does the index of item vectors find, how fast, and what does it take?

    python -m benchmarks.index [--quick] [--out FILE]

Vectors of 64 numbers are drawn from a mixture of normal distributions whose clusters are SEPARATED
(2,000) or OVERLAPPING (300); queries are further draws. WAY is `exact` (all are scored), `lists`
(the index, with the recall that it asks for by itself) or `plain` (a script of faiss with as many
lists, which searches as many of them as the index chose). Each way runs in a process of its own,
with one thread:

    WORLD.N.WAY.build_s, build_cpu_s    seconds to build, with choosing the lists to search
    WORLD.N.WAY.searches_per_cpu_s      of the 100 best, in one batch
    WORLD.N.WAY.one_cpu_ms              a search by itself
    WORLD.N.WAY.recall                  share of the exact 100 best, of these queries
    WORLD.N.WAY.peak_mb                 resident memory at its highest, with the vectors
    WORLD.N.WAY.base_mb                 the same before the build
    WORLD.N.lists.probes, measured      lists to search, and the recall by which they were chosen
"""

import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, cast

import faiss
import numpy as np
import typer

from benchmarks.common import write_result
from mtrec_ray.candidates.inverted_lists import Searched, best_in_lists, num_lists
from mtrec_ray.candidates.vector_index import IndexOptions, Measured, VectorIndex, share_found
from mtrec_ray.data.arrays import Float32s, Ints

WIDTH, K = 64, 100
WORLDS = {"separated": (2_000, 0.4), "overlapping": (300, 1.0)}  # clusters, their spread
WAYS = ("exact", "lists", "plain")
SIZES = (10_000, 100_000, 1_000_000)
BLOCK = 2**13  # vectors that are drawn at a time
ALONE = 50  # searches of one query

Search = Callable[[Float32s], Ints]
Figures = dict[str, float]


def drawn(world: str, num: int, seed: int) -> Float32s:
    """Returns vectors f32[n, E] of a mixture."""
    clusters, spread = WORLDS[world]
    centres = np.random.default_rng(0).normal(size=(clusters, WIDTH)).astype(np.float32)
    rng = np.random.default_rng(seed)
    found = centres[rng.integers(0, clusters, num)]
    for start in range(0, num, BLOCK):
        part = found[start : start + BLOCK]
        part += np.float32(spread) * rng.standard_normal(part.shape, np.float32)
    return found


def peak_mb() -> float:
    """Resident memory of this process at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(vectors: Float32s, exact: bool) -> tuple[Search, Measured]:
    """Returns the search of our index over vectors f32[n, E]."""
    options = IndexOptions(exact_up_to=len(vectors) if exact else 0)
    index = VectorIndex.build(vectors, options=options)
    index.search(vectors[:1], K)  # fills the lists
    return lambda queries: index.search(queries, K)[0], index.measured


def plain(vectors: Float32s, probes: int) -> Search:
    """Returns the search of an index of faiss over vectors f32[n, E]."""
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(WIDTH), WIDTH, num_lists(len(vectors)), faiss.METRIC_INNER_PRODUCT
    )
    index.train(vectors)
    index.add(vectors)
    searched = cast(Searched, index)
    return lambda queries: best_in_lists(searched, queries, K, probes)[0]


def searched(search: Search, queries: Float32s) -> tuple[Ints, Figures]:
    """Returns what is found, and the times of searches in a batch and by themselves."""
    start = time.process_time()
    found = search(queries)
    middle = time.process_time()
    for query in queries[:ALONE]:
        search(query[None])
    alone = (time.process_time() - middle) / ALONE
    return found, {
        "searches_per_cpu_s": len(queries) / (middle - start), "one_cpu_ms": 1000 * alone
    }  # fmt: skip


def measure(way: str, world: str, num: int, queries: int, probes: int, folder: str) -> Figures:
    """Returns the figures of one way; the exact one leaves what it finds in the folder."""
    faiss.omp_set_num_threads(1)
    vectors, asked = drawn(world, num, 1), drawn(world, queries, 2)
    figures = {"base_mb": peak_mb()}
    start, cpu = time.monotonic(), time.process_time()
    if way == "plain":
        search, measured = plain(vectors, probes), None
    else:
        search, measured = ours(vectors, way == "exact")
    figures |= {"build_s": time.monotonic() - start, "build_cpu_s": time.process_time() - cpu}
    found, times = searched(search, asked)
    path = Path(folder) / f"{world}-{num}.npy"
    if way == "exact":
        np.save(path, found)
    figures |= times | {"recall": share_found(np.load(path), found), "peak_mb": peak_mb()}
    if way == "lists" and measured:
        figures |= {"probes": measured.probes, "measured": measured.recall or 0.0}
    return figures


def each_way(world: str, num: int, queries: int, folder: str) -> Iterator[tuple[str, Figures]]:
    """Yields the ways and their figures; each is measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    probes = 0
    for way in WAYS:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(measure, way, world, num, queries, probes, folder).result()
        probes = int(found.get("probes", probes))
        print(world, num, way, found, flush=True)
        yield f"{world}.{num}.{way}", found


def main(
    quick: Annotated[bool, typer.Option(help="Fewer vectors and queries.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Build and search each way."""
    sizes, queries = (SIZES[:2], 200) if quick else (SIZES, 1_000)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of the processes
    figures: Figures = {"queries": queries}
    with tempfile.TemporaryDirectory() as folder:
        for world, num in itertools.product(WORLDS, sizes):
            for name, found in each_way(world, num, queries, folder):
                figures |= {f"{name}.{key}": value for key, value in found.items()}
    write_result("index", figures, out)


if __name__ == "__main__":
    typer.run(main)
