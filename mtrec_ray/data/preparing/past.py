"""Where the past of a key ends at a moment: rows sorted by key and time, and searched.

Letters: N questions, B of them at a time, C rows that count.
"""

import copy
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from mtrec_ray.data.arrays import Bools, Float32s, Floats, Ints

# Questions that are answered at a time: what is computed of them stays in a processor's cache.
QUESTIONS = 8_192


class Places(Protocol):
    """Numbers that are indexed by their places: an array, or one that lies in parts."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Ints, /) -> Any: ...


class AnyPast(Protocol):
    """Rows that count, sorted by key and time, and questions: a key and a moment each."""

    @property
    def key(self) -> Ints:
        """i64[N], of the questions."""
        ...

    @property
    def time(self) -> Ints:
        """i64[N], of the questions."""
        ...

    @property
    def order(self) -> Ints:
        """i64[N], sorts the questions."""
        ...

    @property
    def times(self) -> Places:
        """i64[C], of the rows that count."""
        ...

    def starts(self, key: Ints) -> Ints:
        """Returns i64[B], the place of the first row of each key."""
        ...

    def ends(self, key: Ints, time: Ints) -> Ints:
        """Returns i64[B], the place after each key's last row before a time."""
        ...


class Past:
    """Rows that count, by key and time, and questions: a key and a moment each.

    Counting rows are sorted by (key, time) and coded into one increasing integer,
    `key * span + time`, so that one `searchsorted` says where the past of each question ends. The
    questions are the rows' own keys and times, or those of `asked`; they are answered in the same
    order, because a search for sorted values reads memory that it has just read.
    """

    def __init__(self, key: Ints, time: Ints, counts: Bools) -> None:
        self.low = int(time.min()) if len(time) else 0
        self.span = (int(time.max()) if len(time) else 0) - self.low + 2
        self.key = key
        self.time = time
        code = self.codes_of(key, time)
        self.order = np.argsort(code, kind="stable")
        self.code = code
        self._count(counts)

    def _count(self, counts: Bools) -> None:
        self.rows = self.order[np.flatnonzero(counts[self.order])]
        self.codes = self.code[self.rows]
        self.times = self.time[self.rows]

    def only(self, counts: Bools) -> "Past":
        """Returns the same questions about other rows that count; nothing is sorted again."""
        other = copy.copy(self)
        other._count(counts)
        return other

    def codes_of(self, key: Ints, time: Ints) -> Ints:
        """Returns i64[N]: the codes of keys at times, which may lie outside those of the rows."""
        if len(key) and int(key.max()) >= (2**62) // self.span:
            raise ValueError(f"{int(key.max())} keys over {self.span} ms overflow 63 bits")
        return key * self.span + np.clip(time - self.low, 0, self.span - 1)

    def asked(self, key: Ints, time: Ints) -> "Past":
        """Returns the same rows, asked for other keys and times; the rows are not sorted again."""
        other = copy.copy(self)
        other.key, other.time = key, time
        other.code = self.codes_of(key, time)
        other.order = np.argsort(other.code, kind="stable")
        return other

    def starts(self, key: Ints) -> Ints:
        """Returns i64[B], the place of the first row of each key."""
        return np.searchsorted(self.codes, key * self.span)

    def ends(self, key: Ints, time: Ints) -> Ints:
        """Returns i64[B], the place after each key's last row before a time."""
        return np.searchsorted(self.codes, self.codes_of(key, time))

    def running(self, values: Floats | Float32s) -> Floats:
        """Returns f64[C + 1]: sums of values [N] of the first 0..C rows in the sorted order."""
        return np.concatenate([[0.0], np.cumsum(values[self.rows], dtype=np.float64)])


class Questions:
    """Some questions about a past, sorted by key and time.

    Attributes:
        place: i64[B], where each stands among all.
        key, time: i64[B].
        start: i64[B], the first row of each one's key in the sorted order.
    """

    def __init__(self, past: AnyPast, place: Ints) -> None:
        self.past, self.place = past, place
        self.key, self.time = past.key[place], past.time[place]
        self.start = past.starts(self.key)
        self.ends: dict[int, Ints] = {}

    def end(self, delay_ms: int = 0) -> Ints:
        """Returns i64[B]: end (exclusive) of the rows with time < t - delay in the sorted order.

        Tasks share delays, and delays windows: each is searched for once.
        """
        if delay_ms not in self.ends:
            self.ends[delay_ms] = self.past.ends(self.key, self.time - delay_ms)
        return self.ends[delay_ms]


def questions(past: AnyPast) -> Iterator[Questions]:
    """Yields all questions by key and time, some at a time."""
    for begin in range(0, len(past.order), QUESTIONS):
        yield Questions(past, past.order[begin : begin + QUESTIONS])
