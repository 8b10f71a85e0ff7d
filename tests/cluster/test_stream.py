"""Rows out of the object store and streamed rows are the same, in the same order, with real Ray."""

import itertools

import numpy as np
import pytest

from mtrec_ray.data import stream
from mtrec_ray.data.order import PassOrder, RankProgress, ReadPlan
from mtrec_ray.data.shards import to_arrays
from mtrec_ray.data.stream import StoredRows, StreamedRows, training_source
from mtrec_ray.stages.train import run_train
from mtrec_ray.training.batches import BatchComposer
from tests.builders import pick
from tests.cluster.runs import changed, numbers, say_nothing

pytestmark = pytest.mark.cluster
QUOTAS, WINDOW, BATCHES = {"shop": 40, "video": 25}, 64, 90


def batches(prepared, source):
    """All batches of several passes, as rank 1 of 2 takes them from the middle of a pass."""
    feed = BatchComposer(prepared, QUOTAS, 3, (1, 2))
    for name, order in feed.orders.items():
        feed.orders[name] = PassOrder(order.shard_rows, order.seed, WINDOW)
        feed.progress[name] = RankProgress(order.num_rows, 2, 77)
    feed.open(source.read, BATCHES)
    return [feed.next_batch() for _ in range(BATCHES)]


@pytest.fixture(scope="module")
def wanted_rows(trained):
    """The same rows, cut out of whole shards in memory."""
    prepared = trained.prepared

    class InMemory:
        @staticmethod
        def read(wanted):
            def parts(name, slices):
                shards = [to_arrays(s.read().combine_chunks()) for s in prepared.train_shards(name)]
                for one in slices:
                    yield pick(shards, one)

            return {n: parts(n, own.slices) for n, own in wanted.items()}

    return batches(prepared, InMemory)


@pytest.mark.parametrize(
    ("cache", "kind", "per_stream"),
    [("object_store", StoredRows, 1), ("stream", StreamedRows, 2048), ("stream", StreamedRows, 50)],
)
def test_same_rows_in_the_same_order(trained, wanted_rows, monkeypatch, cache, kind, per_stream):
    """Every column of every batch over more than two passes is that of the shards.

    Also where one Ray Data stream does not hold all slices of the run.
    """
    prepared = trained.prepared
    monkeypatch.setattr(stream, "SLICES_PER_STREAM", per_stream)
    source = training_source(prepared, cache, 2)
    assert isinstance(source, kind)
    assert source.kind == cache
    for name, quota in QUOTAS.items():
        assert quota * BATCHES > prepared.scenarios[name].num_rows("train")
    for found, expected in zip(batches(prepared, source), wanted_rows, strict=True):
        for name, rows in expected.items():
            assert set(found[name]) == set(rows)
            for column, values in rows.items():
                np.testing.assert_array_equal(found[name][column], values)


def test_what_does_not_fit_is_streamed(trained, monkeypatch):
    """`auto` keeps rows in the object store below its share, and streams them above."""
    prepared = trained.prepared
    assert training_source(prepared, "auto", 1).kind == "object_store"
    monkeypatch.setattr(stream, "OBJECT_STORE_SHARE", 1e-9)
    assert training_source(prepared, "auto", 1).kind == "stream"


def test_a_stream_ends_where_nobody_wants_more(trained):
    """Only the slices up to the last batch are read, and asking for more ends the iteration."""
    prepared = trained.prepared
    source = training_source(prepared, "stream", 1)
    name = "shop"
    rows = tuple(s.rows for s in prepared.scenarios[name].shards["train"])
    order = PassOrder(rows, 0, WINDOW)
    slices = order.slices(RankProgress(sum(rows), 1).spans(0))
    found = list(itertools.islice(source.read({name: ReadPlan(slices, 10, 100)})[name], 2))
    assert [len(part["row"]) for part in found] == [WINDOW, WINDOW]


@pytest.mark.timeout(900)
@pytest.mark.long
def test_both_train_the_same_model(trained, untrained):
    """Two workers that stream end with the curve of two that take rows from the object store."""
    project = changed(trained.project, run={"cache": "stream", "checkpoint_steps": 60})
    record = run_train(project, str(untrained), say_nothing)
    first, second = (list(numbers(r["curve"])) for r in (trained.summary, record))
    np.testing.assert_allclose(first, second, rtol=1e-5)
    for name, rows in record["rows"].items():
        assert rows == trained.summary["rows"][name]
