"""The index finds what the exact product finds, in one piece or in shards, and says of what."""

import pickle
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from mtrec_ray.candidates import exact_product
from mtrec_ray.candidates.exact_product import best_of
from mtrec_ray.candidates.shards import (
    IndexOptions,
    build_shard,
    shared_centres,
    slices,
    write_shard,
)
from mtrec_ray.candidates.vector_index import MadeFrom, Measured, VectorIndex, write_record
from mtrec_ray.data.storage import read_json
from mtrec_ray.project.base import ProjectError

WIDTH = 16
LISTS = IndexOptions(exact_up_to=0, shard_items=700)


def clustered(num: int, seed: int) -> np.ndarray:
    """f32[num, E]: a mixture of 40 normal distributions, of vectors of different lengths."""
    centres = np.random.default_rng(0).normal(size=(40, WIDTH))
    rng = np.random.default_rng(seed)
    near = centres[rng.integers(0, 40, num)] + 0.6 * rng.normal(size=(num, WIDTH))
    return (near * np.exp(0.25 * rng.normal(size=(num, 1)))).astype(np.float32)


ITEMS, QUERIES = clustered(2000, 1), clustered(300, 2)


def brute(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ vectors.T
    order = np.argsort(-scores, 1)[:, :k]
    return order, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("block", [512, 2**22])
def test_exact_equals_brute_force(monkeypatch, block):
    """Whatever the blocks, the items and scores are those of the whole product."""
    monkeypatch.setattr(exact_product, "SCORES_PER_BLOCK", block)
    items, scores = VectorIndex.build(ITEMS).search(QUERIES, 30)
    wanted, values = brute(ITEMS, QUERIES, 30)
    np.testing.assert_array_equal(items, wanted)
    np.testing.assert_allclose(scores, values, rtol=1e-5)
    assert items.dtype == np.int64
    assert scores.dtype == np.float32


def test_equal_vectors_stand_for_one_another():
    """A catalogue of variants with one text each is searched in few lists, and none is worse."""
    distinct = clustered(400, 0)
    vectors = np.repeat(distinct, 20, 0)
    index = VectorIndex.build(vectors, None, IndexOptions(exact_up_to=100, recall=0.95))
    assert index.measured.recall is not None
    assert index.measured.recall >= 0.95
    assert index.measured.probes <= len(index.shards[0].centres) // 4
    queries = distinct[:50]
    scores, best = index.search(queries, 10)[1], brute(vectors, queries, 10)[1]
    assert (scores >= best - 1e-5).mean() > 0.95
    assert index.recall(queries, 10) > 0.95


def test_shards_equal_one():
    """Exact shards of slices, built apart and sent to another process, find what one finds."""
    whole = VectorIndex.build(ITEMS)
    parts = [build_shard(ITEMS[p], p.start, exact=True) for p in slices(len(ITEMS), 333)]
    assert len(parts) == 7
    cut = VectorIndex(pickle.loads(pickle.dumps(parts)), whole.made_from)
    for one, many in zip(whole.search(QUERIES, 50), cut.search(QUERIES, 50), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-5)


def test_the_recall_that_was_asked_for_is_found():
    """Three shards with the same centres; other queries find about what was measured."""
    options = replace(LISTS, shard_items=2000, recall=0.9)
    index = VectorIndex.build(clustered(6000, 1), options=options, queries=clustered(300, 3))
    assert len({shard.centres.tobytes() for shard in index.shards}) == 1 < len(index.shards)
    assert index.measured.probes < len(index.shards[0].centres) / 2
    assert 0.9 <= index.measured.recall < 1
    assert abs(index.recall(QUERIES, 100) - index.measured.recall) < 0.03


def test_more_recall_takes_more_lists():
    """The lists that are searched are the fewest of 8, 16, ... that find the share; or all."""
    few, many, every = (
        VectorIndex.build(ITEMS, options=replace(LISTS, recall=r), queries=QUERIES)
        for r in (0.3, 0.97, 1.01)
    )
    assert few.measured.probes == 8 < many.measured.probes
    fewer = replace(many, measured=Measured(many.measured.probes // 2))
    assert fewer.recall(QUERIES, 100) < 0.97 <= many.recall(QUERIES, 100)
    assert every.measured.probes == len(every.shards[0].centres)
    assert every.recall(QUERIES, 100) > 0.9999


def test_queries_are_made_from_items():
    """Without queries, recall is measured on items with noise; all that an index has is found."""
    index = VectorIndex.build(ITEMS, options=LISTS)
    assert index.measured.recall >= LISTS.recall
    assert VectorIndex.build(ITEMS).measured == Measured(0, 1.0)


def test_scores_of_lists_are_exact():
    """What lists find has its inner product as score, best first, and no item is found twice."""
    items, scores = VectorIndex.build(ITEMS, options=LISTS).search(QUERIES, 100)
    np.testing.assert_allclose(scores, np.einsum("bke,be->bk", ITEMS[items], QUERIES), rtol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 100 for row in items.tolist())


def test_recall_counts_what_is_missed():
    """Where vectors lie in other vectors' lists, few are found, until all lists are searched."""
    index = VectorIndex.build(ITEMS, options=replace(LISTS, shard_items=2000))
    (shard,) = index.shards
    wrong = replace(index, shards=[replace(shard, lists=shard.lists[::-1])], measured=Measured())
    assert wrong.recall(QUERIES, 10) < 0.3
    assert wrong.measure(QUERIES).measured.probes > len(shard.centres) // 2
    assert VectorIndex.build(ITEMS).recall(QUERIES, 10) == 1


def test_threads_are_set_back():
    """A search leaves faiss, and so torch, with the threads it had; both work in one process."""
    work = (
        "import numpy as np; from mtrec_ray.candidates.vector_index import *\n"
        "x = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)\n"
        "torch.set_num_threads(2); a = torch.ones(300, 300)\n"
        "index = VectorIndex.build(x, options=IndexOptions(exact_up_to=0, threads=1))\n"
        "assert index.search(x[:30], 3)[0].shape == (30, 3)\n"
        "assert float((a @ a).sum()) == 300**3 and torch.get_num_threads() == 2\n"
    )
    for first in ("import torch, faiss", "import faiss, torch"):
        subprocess.run([sys.executable, "-c", f"{first}\n{work}"], check=True, timeout=120)


@pytest.mark.parametrize("options", [IndexOptions(), LISTS])
def test_only_allowed_items_are_found(options):
    """Items that are not allowed are no results; there are only as many as are allowed."""
    allowed = np.zeros(len(ITEMS), bool)
    allowed[[3, 700, 1999]] = True
    items, scores = VectorIndex.build(ITEMS, allowed, options).search(QUERIES, 5)
    assert set(np.unique(items)) == {-1, 3, 700, 1999}
    assert (np.sort(items, 1)[:, :2] == -1).all()
    assert np.isneginf(scores[items < 0]).all()
    assert np.isfinite(scores[items >= 0]).all()


@pytest.mark.parametrize("options", [IndexOptions(), LISTS])
@pytest.mark.parametrize("num", [0, 1, 2])
def test_few_queries(options, num):
    """None, one or two queries give what they give among others."""
    index = VectorIndex.build(ITEMS, options=options)
    items, scores = index.search(QUERIES[:num], 7)
    assert items.shape == scores.shape == (num, 7)
    np.testing.assert_array_equal(items, index.search(QUERIES, 7)[0][:num])


@pytest.mark.parametrize("options", [IndexOptions(), LISTS])
def test_an_index_without_items(options):
    """Where nothing is allowed, nothing is found, and nothing is missed."""
    index = VectorIndex.build(ITEMS, np.zeros(len(ITEMS), bool), options)
    assert (index.search(QUERIES, 4)[0] == -1).all()
    assert index.recall(QUERIES, 4) == 1


@pytest.mark.parametrize("options", [IndexOptions(), LISTS])
def test_a_loaded_index_finds_the_same(tmp_path, options):
    """An index that was written finds the same items with the same scores."""
    index = VectorIndex.build(ITEMS, options=options, model="a1")
    index.save(str(tmp_path / "index"))
    loaded = VectorIndex.load(str(tmp_path / "index"), MadeFrom.of("a1", *ITEMS.shape))
    assert (loaded.made_from, loaded.options) == (index.made_from, options)
    assert loaded.measured == index.measured
    for before, after in zip(index.search(QUERIES, 9), loaded.search(QUERIES, 9), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (MadeFrom.of("b2", *ITEMS.shape), "found one of model 'a1' in F; allowed: of model 'b2'"),
        (MadeFrom.of("a1", 5, WIDTH), "found one of num_items 2000 in F; allowed: of num_items 5"),
        (MadeFrom.of("a1", 2000, 3), "found one of width 16 in F; allowed: of width 3"),
        (MadeFrom.of("a1", *ITEMS.shape, np.arange(2000) > 9), "found one of allowed"),
    ],
)
def test_an_index_of_another_model_is_refused(tmp_path, wanted, words):
    """One line says what the index was built from and what is asked for."""
    folder = str(tmp_path / "index")
    VectorIndex.build(ITEMS, model="a1").save(folder)
    with pytest.raises(ProjectError) as error:
        VectorIndex.load(folder, wanted)
    (line,) = error.value.problems
    assert line.replace(folder, "F").startswith(f"index of items: {words}")
    assert line.endswith("build it again")


@pytest.mark.parametrize("shared", [True, False])
def test_shards_that_were_written_apart(tmp_path, shared):
    """Shards of several processes, with the same or own centres, and one record are an index."""
    folder, made_from = str(tmp_path / "index"), MadeFrom.of("a1", *ITEMS.shape)
    centres = shared_centres(ITEMS, 700, LISTS) if shared else None
    for number, part in reversed(list(enumerate(slices(len(ITEMS), 700)))):
        shard = build_shard(ITEMS[part], part.start, None, LISTS, centres=centres)
        write_shard(folder, number, shard)
    measured = write_record(folder, 3, made_from, LISTS, queries=QUERIES).measured
    assert read_json(f"{folder}/index.json")["measured"] == asdict(measured)
    assert measured.recall >= LISTS.recall
    index = VectorIndex.load(folder, made_from)
    assert index.recall(QUERIES, 100) > LISTS.recall - 0.01


def test_an_interrupted_index_is_none(tmp_path):
    """A folder without its record is refused as one without an index."""
    folder = tmp_path / "index"
    VectorIndex.build(ITEMS).save(str(folder))
    (folder / "index.json").unlink()
    with pytest.raises(ProjectError, match="found none"):
        VectorIndex.load(str(folder), MadeFrom.of("", *ITEMS.shape))


def test_slices_cover_the_catalogue():
    """Slices are as few as the size allows, of about equal length, without a gap."""
    assert [(s.start, s.stop) for s in slices(10, 4)] == [(0, 3), (3, 6), (6, 10)]
    assert [(s.start, s.stop) for s in slices(0, 4)] == [(0, 0)]


def test_best_of_pads():
    """Fewer than k columns are padded with -1 and minus infinity."""
    items, scores = best_of(np.array([[4, 2]]), np.array([[0.5, 1.5]], np.float32), 3)
    assert items.tolist() == [[2, 4, -1]]
    assert scores.tolist() == [[1.5, 0.5, -np.inf]]
