"""Ranks take every row of a pass exactly once, also when their number changes on the way."""

from itertools import islice

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

shards = st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple)
phases = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 60)), min_size=1, max_size=5)


def places(spans, number):
    """The first places of spans, as (pass, place)."""
    each = ((span.number, place) for span in spans for place in range(span.low, span.high))
    return list(islice(each, number))


def run(num_rows, course_phases):
    """What all ranks take in phases of (ranks, rows of each), and the last course."""
    taken, course = [], None
    for size, rows in course_phases:
        course = course.taken_up(size) if course else RankProgress(num_rows, size)
        for rank in range(size):
            taken += places(course.spans(rank), rows)
        course = RankProgress(num_rows, size, course.taken + rows, course.left)
    return taken, course


@given(st.integers(1, 50), phases)
def test_no_row_twice_and_none_skipped(num_rows, course_phases):
    """Taken and left make every pass exactly once, for any numbers of ranks one after another."""
    taken, course = run(num_rows, course_phases)
    left = course.now_left()
    assert len(set(taken)) == len(taken)
    rest = {(s.number, place) for s in left.rests for place in range(s.low, s.high)}
    assert not rest & set(taken)
    whole = {(number, place) for number in range(left.next_pass) for place in range(num_rows)}
    assert rest | set(taken) == whole


@given(st.integers(1, 50), st.integers(1, 5), st.integers(0, 60), st.integers(0, 60))
def test_as_many_ranks_go_on_as_if_nothing_had_happened(num_rows, size, before, after):
    """A course taken up by as many ranks gives each of them the rows it would have taken."""
    course = RankProgress(num_rows, size)
    again = RankProgress(num_rows, size, before).taken_up(size)
    for rank in range(size):
        whole = places(course.spans(rank), before + after)
        assert places(again.spans(rank), after) == whole[before:]


def test_ranks_run_apart_by_a_row_at_most():
    """The longer part of an uneven pass goes round: over 2 passes, each of 2 ranks has 5 of 5."""
    course = RankProgress(5, 2)
    firsts = [places(course.spans(rank), 5) for rank in range(2)]
    assert [{number for number, _ in first} for first in firsts] == [{0, 1}, {0, 1}]
    assert sorted(firsts[0] + firsts[1]) == [(p, i) for p in range(2) for i in range(5)]


def test_what_is_left_needs_few_spans():
    """Four ranks in mid-pass leave four spans, that touch become one."""
    assert RankProgress(100, 4, 10).now_left() == Remaining(
        (Span(0, 10, 25), Span(0, 35, 50), Span(0, 60, 75), Span(0, 85, 100)), 1
    )
    assert merge_spans([Span(0, 5, 9), Span(0, 0, 5), Span(1, 9, 10)]) == (
        Span(0, 0, 9),
        Span(1, 9, 10),
    )
    assert RankProgress(100, 4, 25).now_left() == Remaining((), 1)


@given(st.lists(st.integers(1, 9), max_size=5), st.integers(1, 6))
def test_shares_are_near_equal_and_whole(lengths, parts):
    """Parts of spans hold every place once and differ by a row at most."""
    spans = [Span(i, 3, 3 + n) for i, n in enumerate(lengths)]
    found = [list(share_spans(spans, part, parts)) for part in range(parts)]
    sizes = [sum(map(len, one)) for one in found]
    assert max(sizes) - min(sizes) <= 1
    assert merge_spans([s for one in found for s in one]) == tuple(spans)


@given(shards, st.integers(1, 30), st.integers(0, 3), st.integers(1, 3))
def test_pieces_hold_every_row_of_a_pass_once(shard_rows, window, seed, size):
    """The rows of all ranks' pieces of a pass are the shards' rows, each once."""
    order = PassOrder(shard_rows, seed, window)
    course, rows = RankProgress(order.num_rows, size), []
    for rank in range(size):
        spans = (s for s in islice(course.spans(rank), 1) if s.number == 0)
        for piece in order.pieces(spans):
            own = [(shard, r) for shard, low, high in piece.segments for r in range(low, high)]
            rows += [own[i] for i in piece.order]
    assert sorted(rows) == [(i, r) for i, n in enumerate(shard_rows) for r in range(n)]


def test_passes_and_seeds_differ_and_repeat():
    """The order of a pass follows from seed and pass alone."""

    def rows(seed, number):
        order = PassOrder((50, 50), seed, 20)
        pieces = order.pieces(iter([Span(number, 0, 100)]))
        return [(p.segments, p.order.tolist()) for p in pieces]

    assert rows(0, 0) == rows(0, 0)
    assert rows(0, 0) != rows(0, 1)
    assert rows(0, 0) != rows(1, 0)
    assert not np.array_equal(rows(0, 0)[0][1], np.arange(20))


def test_windows_are_neither_tiny_nor_huge():
    """At least eight windows in a rank's part of a pass, within bounds."""
    assert window_rows(1_000_000, 2) == 62_500
    assert window_rows(10**9, 2) == 65_536
    assert window_rows(100, 2) == 1_024
