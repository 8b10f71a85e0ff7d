"""Ranks take every row of a pass exactly once, also when their number changes on the way."""

from itertools import islice
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.data.order import (
    PassOrder,
    RankProgress,
    Remaining,
    Span,
    merge_spans,
    share_spans,
    window_rows,
)

order_of = PassOrder.shard_order


shards = st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple)
phases = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 60)), min_size=1, max_size=5)


def places(spans, number):
    """The first places of spans, as (pass, place)."""
    each = ((span.number, place) for span in spans for place in range(span.low, span.high))
    return list(islice(each, number))


def run(num_rows, some_phases):
    """What all ranks take in phases of (ranks, rows of each), and their progress after the last."""
    taken, progress = [], None
    for size, rows in some_phases:
        progress = progress.resume_with(size) if progress else RankProgress(num_rows, size)
        for rank in range(size):
            taken += places(progress.spans(rank), rows)
        progress = RankProgress(num_rows, size, progress.taken + rows, progress.start)
    return taken, progress


@given(st.integers(1, 50), phases)
def test_no_row_twice_and_none_skipped(num_rows, some_phases):
    """Taken and remaining rows make up every pass exactly once, however many ranks resume."""
    taken, progress = run(num_rows, some_phases)
    remaining = progress.remaining()
    assert len(set(taken)) == len(taken)
    rest = {(s.number, place) for s in remaining.unfinished for place in range(s.low, s.high)}
    assert not rest & set(taken)
    whole = {(number, place) for number in range(remaining.next_pass) for place in range(num_rows)}
    assert rest | set(taken) == whole


@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 60), st.integers(0, 60))
def test_as_many_ranks_go_on_as_if_nothing_had_happened(num_rows, size, before, after):
    """As many ranks that resume take, each of them, the rows that it would have taken."""
    progress = RankProgress(num_rows, size)
    again = RankProgress(num_rows, size, before).resume_with(size)
    for rank in range(size):
        whole = places(progress.spans(rank), before + after)
        assert places(again.spans(rank), after) == whole[before:]


def test_ranks_run_apart_by_a_row_at_most():
    """The longer part of an uneven pass goes round: over 2 passes, each of 2 ranks has 5 of 5."""
    progress = RankProgress(5, 2)
    firsts = [places(progress.spans(rank), 5) for rank in range(2)]
    assert [{number for number, _ in first} for first in firsts] == [{0, 1}, {0, 1}]
    assert sorted(firsts[0] + firsts[1]) == [(p, i) for p in range(2) for i in range(5)]


def test_what_remains_needs_few_spans():
    """Four ranks in mid-pass leave four spans; adjacent ones are merged."""
    assert RankProgress(100, 4, 10).remaining() == Remaining(
        (Span(0, 10, 25), Span(0, 35, 50), Span(0, 60, 75), Span(0, 85, 100)), 1
    )
    assert merge_spans([Span(0, 5, 9), Span(0, 0, 5), Span(1, 9, 10)]) == (
        Span(0, 0, 9),
        Span(1, 9, 10),
    )
    assert RankProgress(100, 4, 25).remaining() == Remaining((), 1)


@given(st.lists(st.integers(1, 9), max_size=5), st.integers(1, 6))
def test_shares_are_near_equal_and_whole(lengths, parts):
    """Parts of spans hold every place once and differ by a row at most."""
    spans = [Span(i, 3, 3 + n) for i, n in enumerate(lengths)]
    found = [list(share_spans(spans, part, parts)) for part in range(parts)]
    sizes = [sum(map(len, one)) for one in found]
    assert max(sizes) - min(sizes) <= 1
    assert merge_spans([s for one in found for s in one]) == tuple(spans)


@given(shards, st.integers(1, 30), st.integers(0, 3), st.integers(1, 3))
def test_slices_hold_every_row_of_a_pass_once(shard_rows, window, seed, size):
    """The rows of all ranks' slices of a pass are the shards' rows, each once."""
    order = PassOrder(shard_rows, seed, window)
    progress, rows = RankProgress(order.num_rows, size), []
    for rank in range(size):
        spans = (s for s in islice(progress.spans(rank), 1) if s.number == 0)
        for one in order.slices(spans):
            own = [(shard, r) for shard, low, high in one.segments for r in range(low, high)]
            rows += [own[i] for i in one.order]
    assert sorted(rows) == [(i, r) for i, n in enumerate(shard_rows) for r in range(n)]


def walked_segments(order, number, start, stop):
    """Rows start..stop of a pass's shards laid one after another, by a walk over all of them."""
    shards = np.random.default_rng([order.seed, number]).permutation(len(order.shard_rows))
    found, at = [], 0
    for shard in shards.tolist():
        low, high = max(start - at, 0), min(stop - at, order.shard_rows[shard])
        if low < high:
            found.append((shard, low, high))
        at += order.shard_rows[shard]
    return tuple(found)


with_empty = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any).map(tuple)


@given(with_empty, st.integers(0, 3), st.integers(0, 2), st.data())
def test_segments_are_those_of_a_walk_over_all_shards(shard_rows, seed, number, data):
    """Binary search finds the segments that a walk finds, shards without a row left out."""
    order = PassOrder(shard_rows, seed, 1)
    start = data.draw(st.integers(0, order.num_rows - 1))
    stop = data.draw(st.integers(start + 1, order.num_rows))
    wanted = walked_segments(order, number, start, stop)
    assert order.shard_order(number).segments(start, stop) == wanted


def test_the_shards_are_put_in_order_once_a_pass():
    """However many slices a pass has, its shards are permuted once."""
    order = PassOrder((50, 50), 0, 5)
    with patch.object(PassOrder, "shard_order", autospec=True, side_effect=order_of) as made:
        spans = iter([Span(0, 0, 40), Span(0, 60, 100), Span(1, 0, 100)])
        assert len(list(order.slices(spans))) == 8 + 8 + 20
    assert made.call_count == 2


def test_passes_and_seeds_differ_and_repeat():
    """The order of a pass follows from seed and pass alone."""

    def rows(seed, number):
        order = PassOrder((50, 50), seed, 20)
        slices = order.slices(iter([Span(number, 0, 100)]))
        return [(s.segments, s.order.tolist()) for s in slices]

    assert rows(0, 0) == rows(0, 0)
    assert rows(0, 0) != rows(0, 1)
    assert rows(0, 0) != rows(1, 0)
    assert not np.array_equal(rows(0, 0)[0][1], np.arange(20))


def test_windows_are_neither_tiny_nor_huge():
    """At least eight windows in a rank's part of a pass, within bounds."""
    assert window_rows(1_000_000, 2) == 62_500
    assert window_rows(10**9, 2) == 65_536
    assert window_rows(100, 2) == 1_024
