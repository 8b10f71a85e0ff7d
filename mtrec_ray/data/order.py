"""Which rows each rank takes, in which order, pass after pass: integer arithmetic, no data.

A pass is an order of all n rows of a scenario. Its shards come in an order of seed and pass, laid
one after another and cut into windows; the rows of a window come in an order of seed, pass and
window. A place is an index into that order. Each rank takes a contiguous part of the places, and
when it is through, its part of the next pass: no row is dropped, and none comes twice in a pass.

What is left is a few spans of places, whatever the number of ranks: ranks that take it up again,
as many or not, take exactly that.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

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
    """What is still to be taken: the rests of begun passes, and every pass from `next_pass` on."""

    rests: tuple[Span, ...] = ()
    next_pass: int = 0


@dataclass(frozen=True)
class RankProgress:
    """Where `size` ranks stand that began with `left` and took `taken` rows each of `num_rows`."""

    num_rows: int
    size: int
    taken: int = 0
    left: Remaining = field(default_factory=Remaining)

    def spans(self, rank: int) -> Iterator[Span]:
        """What a rank takes from where it stands, without end."""
        return skip_rows(self._spans(rank), self.taken)

    def _spans(self, rank: int) -> Iterator[Span]:
        yield from share_spans(self.left.rests, rank, self.size)
        for number in itertools.count(self.left.next_pass):
            whole = Span(number, 0, self.num_rows)
            yield from share_spans([whole], (rank + number) % self.size, self.size)

    def now_left(self) -> Remaining:
        """What is left of the begun passes, and the first pass that no rank has begun."""
        begun = [self._begun(rank) for rank in range(self.size)]
        next_pass = max(self.left.next_pass, *(number + 1 for number in begun))
        rests = [
            span
            for rank in range(self.size)
            for span in itertools.takewhile(lambda s: s.number < next_pass, self.spans(rank))
        ]
        return Remaining(merge_spans(rests), next_pass)

    def _begun(self, rank: int) -> int:
        """The last pass of which a rank has taken a row, -1 if none."""
        number, before = -1, 0
        for span in self._spans(rank):
            if before >= self.taken:
                return number
            number, before = span.number, before + len(span)
        raise AssertionError("spans have no end")

    def taken_up(self, size: int) -> "RankProgress":
        """The course of another number of ranks that goes on from here."""
        return self if size == self.size else RankProgress(self.num_rows, size, 0, self.now_left())


def share_spans(spans: Sequence[Span], part: int, parts: int) -> Iterator[Span]:
    """One of some near-equal contiguous parts of spans laid one after another."""
    total = sum(map(len, spans))
    low, high = total * part // parts, total * (part + 1) // parts
    at = 0
    for span in spans:
        first, last = max(low - at, 0), min(high - at, len(span))
        at += len(span)
        if first < last:
            yield Span(span.number, span.low + first, span.low + last)


def skip_rows(spans: Iterator[Span], num_rows: int) -> Iterator[Span]:
    """Spans without their first rows."""
    for span in spans:
        if num_rows < len(span):
            yield Span(span.number, span.low + num_rows, span.high)
        num_rows = max(num_rows - len(span), 0)


def merge_spans(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans in order, those that touch made one."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.number, s.low)):
        if found and found[-1].number == span.number and found[-1].high == span.low:
            found[-1] = Span(span.number, found[-1].low, span.high)
        else:
            found.append(span)
    return tuple(found)


@dataclass(frozen=True)
class Slice:
    """Rows of a window, which holds the rows of `segments` (shard, start, stop).

    Those at places `low` to `high` of the window's order, which follows from the three numbers of
    its key: seed, pass, window.
    """

    segments: tuple[tuple[int, int, int], ...]
    key: tuple[int, int, int]
    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low

    @property
    def order(self) -> np.ndarray:
        """i64[high - low]: places of the rows among those of the segments."""
        num_rows = sum(stop - start for _, start, stop in self.segments)
        return np.random.default_rng(self.key).permutation(num_rows)[self.low : self.high]

    def spec(self) -> dict[str, Any]:
        """Plain values that `of` reads."""
        return asdict(self)

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "Slice":
        """The piece of `spec`, which may hold more."""
        segments = tuple((shard, start, stop) for shard, start, stop in spec["segments"])
        return cls(segments, tuple(spec["key"]), spec["low"], spec["high"])


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

    def pieces(self, spans: Iterator[Span]) -> Iterator[Slice]:
        """The rows of spans, window by window."""
        for span in spans:
            place = span.low
            while place < span.high:
                window = place // self.window
                start = window * self.window
                stop = min(start + self.window, self.num_rows)
                last = min(stop, span.high)
                segments = self.segments(span.number, start, stop)
                key = (self.seed, span.number, window)
                yield Slice(segments, key, place - start, last - start)
                place = last

    def segments(self, number: int, start: int, stop: int) -> tuple[tuple[int, int, int], ...]:
        """Rows start..stop of a pass's shards laid one after another, as (shard, start, stop)."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.shard_rows))
        found, at = [], 0
        for shard in order.tolist():
            low, high = max(start - at, 0), min(stop - at, self.shard_rows[shard])
            if low < high:
                found.append((shard, low, high))
            at += self.shard_rows[shard]
        return tuple(found)


def window_rows(num_rows: int, size: int) -> int:
    """Rows of a window: at least eight in a rank's part of a pass, within bounds."""
    return min(max(num_rows // (8 * size), MIN_WINDOW), MAX_WINDOW)


@dataclass(frozen=True)
class ReadPlan:
    """Rows of a scenario that a rank will take.

    Attributes:
        pieces: pieces of them, without end.
        rows_per_batch, num_rows: how many it takes at a time, and in all.
    """

    pieces: Iterator[Slice]
    rows_per_batch: int
    num_rows: int


def rank_range(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The rows start..stop of a rank: all rows exactly once over the ranks."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size
