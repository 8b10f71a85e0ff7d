"""Batches hold every scenario by exact quotas; a stream gives every row once a pass and resumes."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.data.order import PassOrder, RankProgress, ReadPlan
from mtrec_ray.data.prepared import Prepared, Shard
from mtrec_ray.data.stream import in_order_of_use, prefetch
from mtrec_ray.training import batches
from mtrec_ray.training.batches import BatchComposer, quotas
from tests.builders import FACTS, pick

sizes = st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 10**9), min_size=1)


SHARDS = {"shop": (10, 13, 4), "video": (9, 2)}


def shards_of(shard_rows):
    """Shards of numbered rows."""
    numbers = np.split(np.arange(sum(shard_rows)), np.cumsum(shard_rows)[:-1])
    return [{"row": n, "double": 2.0 * n} for n in numbers]


def read(wanted):
    """Rows from memory."""
    return {name: parts(name, plan) for name, plan in wanted.items()}


def parts(name, plan):
    """The rows of each slice."""
    shards = shards_of(SHARDS[name])
    return (pick(shards, one) for one in plan.slices)


PREPARED = Prepared(
    "", "", {n: replace(f, shards={"train": [Shard("", r) for r in SHARDS[n]]})
             for n, f in FACTS.items()},
)  # fmt: skip


def feed_of(rank=0, size=1, seed=0, state=None, quota=3):
    """A feed that takes `quota` rows of shop and 2 of video."""
    with patch.object(batches, "window_rows", lambda *_: 7):
        found = BatchComposer(PREPARED, {"shop": quota, "video": 2}, seed, (rank, size), state)
    found.open(read, 100)
    return found


@given(sizes, st.integers(0, 5000), st.floats(0, 1))
def test_quotas_sum_exactly(rows, more, alpha):
    """Quotas sum to the batch and give every scenario a row, whatever sizes and alpha."""
    found = quotas(rows, len(rows) + more, alpha)
    assert sum(found.values()) == len(rows) + more
    assert min(found.values()) >= 1
    assert list(found) == list(rows)


@given(sizes, st.integers(0, 5000))
def test_alpha_0_is_uniform(rows, more):
    """With alpha 0 no two quotas differ by more than one row."""
    found = quotas(rows, len(rows) + more, 0.0).values()
    assert max(found) - min(found) <= 1


@given(sizes, st.integers(0, 5000))
def test_alpha_1_is_proportional(rows, more):
    """With alpha 1 a quota is the proportional share, to a row, where every share is a row."""
    batch = len(rows) + more
    share = {name: batch * n / sum(rows.values()) for name, n in rows.items()}
    for name, quota in quotas(rows, batch, 1.0).items():
        loss = sum(1 for s in share.values() if s < 1)
        assert share[name] - loss - 1 <= quota <= max(share[name] + 1, 1)


def test_alpha_lies_between():
    """A scenario 100 times as large gets 10 times the rows with alpha 1/2."""
    assert quotas({"a": 100, "b": 10_000}, 1100, 0.5) == {"a": 100, "b": 1000}


@given(sizes, st.integers(0, 300), st.floats(0.1, 1))
def test_larger_scenarios_get_no_fewer_rows(rows, more, alpha):
    """A scenario with more rows never gets fewer rows of a batch."""
    found = quotas(rows, len(rows) + more, alpha)
    ordered = sorted(rows, key=lambda name: rows[name])
    for small, large in pairwise(ordered):
        assert found[small] <= found[large] + (rows[small] == rows[large])


def test_too_small_batch_is_refused():
    """A batch with fewer rows than scenarios is an error that names field and least size."""
    with pytest.raises(ValueError, match=r"training\.batch_size: found 2 .* at least 3") as error:
        quotas({"a": 5, "b": 5, "c": 5}, 2, 1.0)
    assert "\n" not in str(error.value)


def rows_of(feeds, steps):
    """The rows of shop that some ranks take in some steps."""
    parts = [f.next_batch()["shop"]["row"] for _ in range(steps) for f in feeds]
    return np.concatenate(parts).tolist() if parts else []


@given(st.integers(1, 3), st.integers(0, 3))
def test_every_row_once_a_pass(size, seed):
    """Each pass holds every row once over the ranks; a pass runs into the next."""
    total, passes = sum(SHARDS["shop"]), 6
    feeds = [feed_of(rank, size, seed, quota=9) for rank in range(size)]
    rows = rows_of(feeds, passes * total // (9 * size))
    assert Counter(rows) == dict.fromkeys(range(total), passes)


def test_batches_hold_every_scenario_by_its_quota():
    """A batch has so many rows of each scenario, and columns stay together."""
    stream = feed_of()
    for _ in range(20):
        batch = stream.next_batch()
        assert {n: len(a["row"]) for n, a in batch.items()} == {"shop": 3, "video": 2}
        for arrays in batch.values():
            np.testing.assert_array_equal(arrays["double"], 2 * arrays["row"])


@given(st.integers(1, 3), st.integers(0, 25), st.integers(1, 25))
def test_as_many_ranks_go_on_exactly(size, before, after):
    """Feeds opened with the state of others give the rows that those go on with."""
    feeds = [feed_of(rank, size) for rank in range(size)]
    rows_of(feeds, before)
    state = json.loads(json.dumps(feeds[0].state()))
    assert all(f.state() == feeds[0].state() for f in feeds)
    again = [feed_of(rank, size, state=state) for rank in range(size)]
    assert rows_of(again, after) == rows_of(feeds, after)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=5))
def test_other_numbers_of_ranks_skip_and_repeat_nothing(phases):
    """However the number of ranks changes, no row comes a third time before all came twice."""
    state, rows = None, []
    for size, steps in phases:
        feeds = [feed_of(rank, size, state=state) for rank in range(size)]
        rows += rows_of(feeds, steps)
        state = feeds[0].state()
    total = sum(SHARDS["shop"])
    remaining = batches.progress_from_state(state["shop"], total).remaining()
    left = {span.number: 0 for span in remaining.unfinished}
    for span in remaining.unfinished:
        left[span.number] += len(span)
    begun = remaining.next_pass
    assert len(rows) == begun * total - sum(left.values())
    whole = sum(1 for number in range(begun) if number not in left)
    counts = Counter(rows)
    assert all(whole <= counts[row] <= begun for row in range(total))


def orders(seed):
    stream = feed_of(seed=seed, quota=27)
    return [stream.next_batch()["shop"]["row"].tolist() for _ in range(2)]


def test_seed_fixes_the_order():
    """The same seed gives the same order; another seed, and another pass, a different one."""
    assert orders(1) == orders(1)
    assert orders(1)[0] != orders(2)[0]
    assert orders(1)[0] != orders(1)[1]
    assert orders(1)[0] != list(range(27))


def test_streams_are_read_in_the_order_of_need():
    """Slices of all scenarios come in the order of the batches that need them, to the last one."""
    order = PassOrder((100,), 0, 10)
    wanted = {
        "a": ReadPlan(order.slices(RankProgress(100, 1).spans(0)), 10, 30),
        "b": ReadPlan(order.slices(RankProgress(100, 1).spans(0)), 5, 15),
    }
    assert [name for name, _ in in_order_of_use(wanted)] == ["a", "b", "a", "a", "b"]


def test_the_next_item_is_made_ahead():
    """Items come in order, errors too, one of them ahead of the reader."""
    made = []

    def items():
        for i in range(4):
            made.append(i)
            yield i
        raise KeyError("no more")

    found = prefetch(items())
    assert next(found) == 0
    assert [next(found) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(KeyError):
        next(found)
    assert list(prefetch(iter([]))) == []
