"""Batches hold every scenario by exact quotas; a stream gives every row once a pass and resumes."""

from functools import partial
from itertools import islice, pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.learning import feed
from mtrec_ray.learning.feed import Position, Stream, concatenate, quotas

sizes = st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 10**9), min_size=1)
takes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def open_pass_of(batch_sizes):
    """Passes over numbered rows in batches of given sizes, the same at every pass."""
    numbers = np.split(np.arange(sum(batch_sizes)), np.cumsum(batch_sizes)[:-1])
    return lambda _: iter([{"row": n, "double": 2.0 * n} for n in numbers])


def small_windows(size=7):
    """Windows of at least `size` rows, so that a pass of some rows has several."""
    return patch.object(feed, "windows", partial(feed.windows, size=size))


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


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), takes, st.integers(0, 3))
def test_every_row_once_a_pass(batch_sizes, sizes_taken, seed):
    """Each pass holds every row once, whatever sizes are taken, across windows and passes."""
    total = sum(batch_sizes)
    with small_windows():
        stream = Stream(open_pass_of(batch_sizes), seed)
        parts = [stream.take(n) for n in sizes_taken]
        parts.append(stream.take(-(-sum(sizes_taken) // total) * total - sum(sizes_taken) + total))
    assert [len(p["row"]) for p in parts[:-1]] == sizes_taken
    rows = np.concatenate([p["row"] for p in parts])
    for number in range(len(rows) // total):
        assert sorted(rows[number * total : (number + 1) * total]) == list(range(total))
    assert stream.rows_of_pass in (None, total)


def test_columns_stay_together():
    """Shuffling and cutting keep the columns of a row together."""
    with small_windows():
        stream = Stream(open_pass_of([10, 13, 4]), 0)
        for size in (3, 20, 9, 30):
            found = stream.take(size)
            np.testing.assert_array_equal(found["double"], 2 * found["row"])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), takes, takes, st.integers(0, 3))
def test_a_restored_stream_goes_on(batch_sizes, before, after, seed):
    """A stream opened at another's position gives the rows that the other goes on with."""
    with small_windows():
        stream = Stream(open_pass_of(batch_sizes), seed)
        for n in before:
            stream.take(n)
        stands = Position(stream.position.passes, stream.position.rows)
        again = Stream(open_pass_of(batch_sizes), seed, stands)
        assert again.position == stands
        for n in after:
            np.testing.assert_array_equal(stream.take(n)["row"], again.take(n)["row"])
            assert again.position == stream.position


def test_position_counts_passes_and_rows():
    """After 25 rows of passes of 10, two passes are finished and 5 rows of the third are taken."""
    stream = Stream(open_pass_of([4, 6]), 0)
    stream.take(25)
    assert stream.position == Position(2, 5)


def orders(seed, num_passes=2):
    stream = Stream(open_pass_of([50]), seed)
    return [stream.take(50)["row"].tolist() for _ in range(num_passes)]


def test_seed_fixes_the_order():
    """The same seed gives the same order; another seed, and another pass, a different one."""
    assert orders(1) == orders(1)
    assert orders(1)[0] != orders(2)[0]
    assert orders(1)[0] != orders(1)[1]
    assert orders(1)[0] != list(range(50))


def test_a_stream_without_rows_is_an_error():
    """A rank without a row of a scenario gets an error, not an endless search for one."""
    with pytest.raises(RuntimeError, match="no rows"):
        Stream(lambda _: iter([]), 0).take(1)


@given(st.lists(st.integers(0, 20), max_size=8), st.integers(1, 15))
def test_windows_keep_rows_and_order(batch_sizes, size):
    """Windows hold all rows in order, and only the last may have fewer than `size`."""
    found = list(feed.windows(open_pass_of([*batch_sizes, 0])(0), size))
    rows = concatenate([*found, {"row": np.zeros(0, int), "double": np.zeros(0)}])["row"]
    assert rows.tolist() == list(range(sum(batch_sizes)))
    assert all(len(w["row"]) >= size for w in islice(found, max(len(found) - 1, 0)))
