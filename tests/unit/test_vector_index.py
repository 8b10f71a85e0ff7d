"""The index finds what the exact product finds, in one piece or in shards, and says of what."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from mtrec_ray.candidates import vector_index
from mtrec_ray.candidates.vector_index import (
    IndexOptions,
    MadeFrom,
    VectorIndex,
    best_of,
    build_shard,
    slices,
    write_record,
    write_shard,
)
from mtrec_ray.project.base import ProjectError

WIDTH = 16
GRAPH = IndexOptions(exact_up_to=0, shard_items=700)
NARROW = IndexOptions(exact_up_to=0, shard_items=2000, connectivity=16)


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
    monkeypatch.setattr(vector_index, "SCORES_PER_BLOCK", block)
    items, scores = VectorIndex.build(ITEMS).search(QUERIES, 30)
    wanted, values = brute(ITEMS, QUERIES, 30)
    np.testing.assert_array_equal(items, wanted)
    np.testing.assert_allclose(scores, values, rtol=1e-5)
    assert items.dtype == np.int64
    assert scores.dtype == np.float32


def test_shards_equal_one():
    """Exact shards of slices, built apart and sent to another process, find what one finds."""
    whole = VectorIndex.build(ITEMS)
    parts = [build_shard(ITEMS[p], p.start, exact=True) for p in slices(len(ITEMS), 333)]
    assert len(parts) == 7
    cut = VectorIndex(pickle.loads(pickle.dumps(parts)), whole.made_from)
    for one, many in zip(whole.search(QUERIES, 50), cut.search(QUERIES, 50), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-5)


def test_recall_of_graphs():
    """Three graphs, of which a search looks at a hundredth or more, find 95 % of the 10 best."""
    index = VectorIndex.build(clustered(6000, 1), options=replace(NARROW, expansion_search=20))
    assert len(index.shards) == 3
    assert all(shard.graph for shard in index.shards)
    assert index.recall(QUERIES, 10) > 0.95


def test_a_wider_search_finds_more():
    """Recall grows with the items that a search looks at."""
    vectors = clustered(6000, 1)
    narrow, wide = (
        VectorIndex.build(vectors, options=replace(NARROW, connectivity=8, expansion_search=width))
        for width in (10, 80)
    )
    assert narrow.recall(QUERIES, 10) < wide.recall(QUERIES, 10)


def test_scores_of_graphs_are_exact():
    """What graphs in 16 bits find has its score in 32 bits, and no item is found twice."""
    index = VectorIndex.build(ITEMS, options=GRAPH)
    items, scores = index.search(QUERIES, 100)
    np.testing.assert_allclose(scores, np.einsum("bke,be->bk", ITEMS[items], QUERIES), rtol=1e-4)
    assert all(len(set(row)) == 100 for row in items.tolist())


def test_recall_counts_what_is_missed():
    """Where a shard's graph is of other vectors, recall is the share that is found by chance."""
    index = VectorIndex.build(ITEMS, options=replace(GRAPH, shard_items=2000))
    other = VectorIndex.build(ITEMS[::-1], options=replace(GRAPH, shard_items=2000))
    wrong = [replace(index.shards[0], graph=other.shards[0].graph)]
    assert VectorIndex(wrong, index.made_from, index.options).recall(QUERIES, 10) < 0.2
    assert VectorIndex.build(ITEMS).recall(QUERIES, 10) == 1


@pytest.mark.parametrize("options", [IndexOptions(), GRAPH])
def test_only_allowed_items_are_found(options):
    """Items that are not allowed are no results; there are only as many as are allowed."""
    allowed = np.zeros(len(ITEMS), bool)
    allowed[[3, 700, 1999]] = True
    items, scores = VectorIndex.build(ITEMS, allowed, options).search(QUERIES, 5)
    assert set(np.unique(items)) == {-1, 3, 700, 1999}
    assert (np.sort(items, 1)[:, :2] == -1).all()
    assert np.isneginf(scores[items < 0]).all()
    assert np.isfinite(scores[items >= 0]).all()


@pytest.mark.parametrize("options", [IndexOptions(), GRAPH])
@pytest.mark.parametrize("num", [0, 1, 2])
def test_few_queries(options, num):
    """None, one or two queries give what they give among others."""
    index = VectorIndex.build(ITEMS, options=options)
    items, scores = index.search(QUERIES[:num], 7)
    assert items.shape == scores.shape == (num, 7)
    np.testing.assert_array_equal(items, index.search(QUERIES, 7)[0][:num])


@pytest.mark.parametrize("options", [IndexOptions(), GRAPH])
def test_an_index_without_items(options):
    """Where nothing is allowed, nothing is found, and nothing is missed."""
    index = VectorIndex.build(ITEMS, np.zeros(len(ITEMS), bool), options)
    assert (index.search(QUERIES, 4)[0] == -1).all()
    assert index.recall(QUERIES, 4) == 1


@pytest.mark.parametrize("options", [IndexOptions(), GRAPH])
def test_a_loaded_index_finds_the_same(tmp_path, options):
    """An index that was written finds the same items with the same scores."""
    index = VectorIndex.build(ITEMS, options=options, model="a1")
    index.save(str(tmp_path / "index"))
    loaded = VectorIndex.load(str(tmp_path / "index"), MadeFrom.of("a1", *ITEMS.shape))
    assert (loaded.made_from, loaded.options) == (index.made_from, options)
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


def test_shards_that_were_written_apart(tmp_path):
    """Shards of several processes and one record are an index."""
    folder, made_from = str(tmp_path / "index"), MadeFrom.of("a1", *ITEMS.shape)
    for number, part in reversed(list(enumerate(slices(len(ITEMS), 700)))):
        write_shard(folder, number, build_shard(ITEMS[part], part.start, None, GRAPH))
    write_record(folder, 3, made_from, GRAPH)
    index = VectorIndex.load(folder, made_from)
    whole = VectorIndex.build(ITEMS, options=GRAPH)
    np.testing.assert_array_equal(index.search(QUERIES, 9)[0], whole.search(QUERIES, 9)[0])


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
