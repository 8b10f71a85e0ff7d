"""Which rows each rank takes, in which order, pass after pass: integer arithmetic, no data.

A pass holds all n rows of a scenario in an order. Seed and pass give the order of the shards, which
are laid one after another and cut into windows; seed, pass and window give the order of a window's
rows. A place is an index into that order. Each rank takes a contiguous part of the places, then its
part of the next pass: no row is dropped, and none comes twice in a pass.

What remains is a few spans of places, whatever the number of ranks. The ranks that resume, in any
number, take exactly these.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_WINDOW, MIN_WINDOW = 65_536, 1_024


@dataclass(frozen=True)
class Span:
    """Places `low` to `high` (exclusive) of pass `number`."""

    number: int
    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low


@dataclass(frozen=True)
class Remaining:
    """What no rank has taken: spans of the passes begun, and every pass from `next_pass` on."""

    unfinished: tuple[Span, ...] = ()
    next_pass: int = 0


@dataclass(frozen=True)
class RankProgress:
    """How far `size` ranks have come with the passes over `num_rows` rows.

    Attributes:
        taken: rows that each of them has taken since they started.
        start: what remained when they started.
    """

    num_rows: int
    size: int
    taken: int = 0
    start: Remaining = field(default_factory=Remaining)

    def spans(self, rank: int) -> Iterator[Span]:
        """Returns the spans that a rank takes from now on, without end."""
        return skip_rows(self._spans(rank), self.taken)

    def _spans(self, rank: int) -> Iterator[Span]:
        yield from share_spans(self.start.unfinished, rank, self.size)
        for number in itertools.count(self.start.next_pass):
            whole = Span(number, 0, self.num_rows)
            yield from share_spans([whole], (rank + number) % self.size, self.size)

    def remaining(self) -> Remaining:
        """Returns what remains now: spans of the passes begun, and the first pass not begun."""
        begun = [self._begun(rank) for rank in range(self.size)]
        next_pass = max(self.start.next_pass, *(number + 1 for number in begun))
        unfinished = [
            span
            for rank in range(self.size)
            for span in itertools.takewhile(lambda s: s.number < next_pass, self.spans(rank))
        ]
        return Remaining(merge_spans(unfinished), next_pass)

    def _begun(self, rank: int) -> int:
        """Returns the last pass of which a rank has taken a row, -1 if none."""
        number, before = -1, 0
        for span in self._spans(rank):
            if before >= self.taken:
                return number
            number, before = span.number, before + len(span)
        raise AssertionError("spans have no end")

    def resume_with(self, size: int) -> "RankProgress":
        """Returns the progress of `size` ranks that go on from here; itself for the same number."""
        return self if size == self.size else RankProgress(self.num_rows, size, 0, self.remaining())


def share_spans(spans: Sequence[Span], part: int, parts: int) -> Iterator[Span]:
    """Yields part `part` of `parts` near-equal, contiguous parts of the concatenated spans."""
    total = sum(map(len, spans))
    low, high = total * part // parts, total * (part + 1) // parts
    at = 0
    for span in spans:
        first, last = max(low - at, 0), min(high - at, len(span))
        at += len(span)
        if first < last:
            yield Span(span.number, span.low + first, span.low + last)


def skip_rows(spans: Iterator[Span], num_rows: int) -> Iterator[Span]:
    """Yields the spans without their first `num_rows` rows."""
    for span in spans:
        if num_rows < len(span):
            yield Span(span.number, span.low + num_rows, span.high)
        num_rows = max(num_rows - len(span), 0)


def merge_spans(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Returns the spans in order; adjacent ones are merged."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.number, s.low)):
        if merged and merged[-1].number == span.number and merged[-1].high == span.low:
            merged[-1] = Span(span.number, merged[-1].low, span.high)
        else:
            merged.append(span)
    return tuple(merged)


# Rows of a shard: (shard, start, stop).
Segment = tuple[int, int, int]


@dataclass(frozen=True)
class Slice:
    """Some rows of a window, in the window's order.

    Attributes:
        segments: the rows of the window, before they are permuted.
        key: seed, pass and window; the permutation follows from it.
        low, high: which places of the permutation the slice holds.
    """

    segments: tuple[Segment, ...]
    key: tuple[int, int, int]
    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low

    @property
    def order(self) -> np.ndarray:
        """i64[high - low]: the slice's rows as indices into the rows of the segments."""
        num_rows = sum(stop - start for _, start, stop in self.segments)
        return np.random.default_rng(self.key).permutation(num_rows)[self.low : self.high]

    def spec(self) -> dict[str, Any]:
        """Returns plain values that `of` reads."""
        return asdict(self)

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "Slice":
        """Returns the slice of `spec`, which may hold further keys."""
        segments = tuple((shard, start, stop) for shard, start, stop in spec["segments"])
        return cls(segments, tuple(spec["key"]), spec["low"], spec["high"])


@dataclass(frozen=True)
class ShardOrder:
    """The order of the shards in one pass: shards i64[S], and where each ends, i64[S]."""

    shards: NDArray[np.int64]
    ends: NDArray[np.int64]

    def segments(self, start: int, stop: int) -> tuple[Segment, ...]:
        """Returns rows start..stop of the shards laid one after another."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, stop, side="left"))
        begins = np.concatenate([[0], self.ends])[first : last + 1].tolist()
        ends = self.ends[first : last + 1].tolist()
        return tuple(
            (shard, max(start - begin, 0), min(stop, end) - begin)
            for shard, begin, end in zip(
                self.shards[first : last + 1].tolist(), begins, ends, strict=True
            )
            if begin < end
        )


@dataclass(frozen=True)
class PassOrder:
    """The orders of a scenario's passes over shards of `shard_rows` rows."""

    shard_rows: tuple[int, ...]
    seed: int
    window: int

    @property
    def num_rows(self) -> int:
        """Rows of a pass."""
        return sum(self.shard_rows)

    def slices(self, spans: Iterator[Span]) -> Iterator[Slice]:
        """Yields the rows of spans, window by window. The shards are put in order once a pass."""
        for number, group in itertools.groupby(spans, key=lambda span: span.number):
            shards = self.shard_order(number)
            for span in group:
                yield from self._slices(span, shards)

    def _slices(self, span: Span, shards: ShardOrder) -> Iterator[Slice]:
        place, num_rows = span.low, int(shards.ends[-1])
        while place < span.high:
            window = place // self.window
            start = window * self.window
            stop = min(start + self.window, num_rows)
            last = min(stop, span.high)
            key = (self.seed, span.number, window)
            yield Slice(shards.segments(start, stop), key, place - start, last - start)
            place = last

    def shard_order(self, number: int) -> ShardOrder:
        """Returns the order of the shards in pass `number`."""
        shards = np.random.default_rng([self.seed, number]).permutation(len(self.shard_rows))
        return ShardOrder(shards, np.cumsum(np.array(self.shard_rows, np.int64)[shards]))


def window_rows(num_rows: int, size: int) -> int:
    """Returns the rows of a window: a rank's part of a pass has, within bounds, at least eight."""
    return min(max(num_rows // (8 * size), MIN_WINDOW), MAX_WINDOW)


@dataclass(frozen=True)
class ReadPlan:
    """The rows of a scenario that a rank will take.

    Attributes:
        slices: in the order in which it takes them, without end.
        rows_per_batch, num_rows: how many rows it takes at a time, and in all.
    """

    slices: Iterator[Slice]
    rows_per_batch: int
    num_rows: int


def rank_range(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Returns the rows start..stop of a rank; the ranks' ranges hold every row exactly once."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size
