"""Statistics of a hot key: one item or category value with more rows than a partition holds.

Its rows lie in several parts, by time. Every statistic is a difference of running sums at two
moments, such as "now less the delay" and "a window before that". So two levels are enough: each
part sorts its own rows and adds up its labels; then the sums of all earlier parts are carried into
each, and a question looks its moments up in the parts that they fall into, which lie in shared
memory. No part's rows are copied into another. Equal times may lie in two parts. Without time the
sums of the folds are added up over the parts.

Numbers are those that a single partition gives, to the last bit wherever 64-bit sums of labels are
exact (labels 0 and 1, or ratings in halves); else they differ as the order of additions does.

Letters: P parts, C rows of a part or key that count, B questions, T tasks.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.arrays import Floats, Ints
from mtrec_ray.data.preparing.past import Places
from mtrec_ray.data.preparing.statistics import (
    FoldSums,
    KeyedRows,
    RunningLabels,
    Windows,
    fold_statistics,
    fold_sums,
    past_statistics,
    running_labels,
)

# Parts that a task keeps at hand: a moment, its windows and delays lie in about as many.
PARTS_AT_HAND = 16


@dataclass(frozen=True)
class PartRows:
    """What other parts look up in a part: its rows that count, by time (`8 + 16 T` bytes a row).

    Attributes:
        times: i64[C], in their order.
        labels: running sums of each task.
    """

    times: Ints
    labels: RunningLabels


@dataclass(frozen=True)
class PartTotals:
    """What a part adds to the sums of a key.

    Attributes:
        num: how many rows count.
        first_ms: the earliest of their times (0 without rows).
        labels: f64[T, 2], the known labels of each task and their sum.
        folds: sums of the folds; None where rows have a time.
    """

    num: int
    first_ms: int
    labels: Floats
    folds: FoldSums | None


def part_of(rows: KeyedRows) -> tuple[PartTotals, PartRows]:
    """Returns what a part adds to its key, and what other parts look up in it.

    All `rows` have the key 0. Without time nothing is looked up: there are no rows.
    """
    past = rows.past
    if rows.fold is not None:
        nothing = np.zeros((rows.labels.shape[1], 2))
        totals = PartTotals(len(past.rows), 0, nothing, fold_sums(rows, rows.fold))
        return totals, PartRows(past.times[:0], [])
    labels = running_labels(past, rows.labels)
    sums = np.array([[known[-1], value[-1]] for known, value in labels])
    first = int(past.times[0]) if len(past.times) else 0
    return PartTotals(len(past.times), first, sums, None), PartRows(past.times, labels)


@dataclass(frozen=True)
class HotKey:
    """All rows of a key that count, in parts that are ordered by time.

    Attributes:
        numbers: i64[P], the parts that have such rows (at least one part).
        lows: i64[P], the earliest time of each.
        starts: i64[P], how many rows come before each; `num` is how many there are.
        carried: f64[P, T, 2], known labels of each task and their sum in the parts before each.
        folds: sums of the folds over all parts; None where rows have a time.
        read: returns the rows of a part by its number.
    """

    numbers: Ints
    lows: Ints
    starts: Ints
    num: int
    carried: Floats
    folds: FoldSums | None
    read: Callable[[int], PartRows]

    @classmethod
    def of(cls, totals: Sequence[PartTotals], read: Callable[[int], PartRows]) -> "HotKey":
        """Returns a key from the totals of all of its parts, in their order."""
        numbers = [i for i, part in enumerate(totals) if part.num] or [0]
        parts = [totals[i] for i in numbers]
        num = np.array([part.num for part in parts])
        labels = np.stack([part.labels for part in parts])
        folds = [part.folds for part in parts if part.folds]
        return cls(
            numbers=np.array(numbers),
            lows=np.array([part.first_ms for part in parts]),
            starts=np.cumsum(num) - num,
            num=int(num.sum()),
            carried=np.cumsum(labels, 0) - labels,
            folds=(np.sum([w for w, _ in folds], 0), np.sum([o for _, o in folds], 0))
            if folds
            else None,
            read=read,
        )

    def statistics(
        self,
        rows: KeyedRows,
        delays_ms: Sequence[int],
        priors: Sequence[float],
        windows: Windows,
        dtype: type,
    ) -> np.ndarray:
        """Returns [N, F] of some rows of the key, as `statistics.statistics` of all its rows."""
        if rows.fold is not None:
            assert self.folds
            return fold_statistics(rows, rows.fold, priors, self.folds, dtype)
        past = SplitPast(self, rows.time)
        return past_statistics(past, past.labels(), delays_ms, priors, windows, dtype)


@dataclass(frozen=True)
class SplitNumbers:
    """Numbers that lie in parts, indexed by their places in the whole.

    Attributes:
        starts: i64[P], the place of each part's first.
        carried: [P], what is added to the numbers of each part.
        read: returns the numbers of a part.
    """

    num: int
    starts: Ints
    carried: np.ndarray
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, places: Ints) -> np.ndarray:
        part = np.searchsorted(self.starts, places, side="right") - 1
        found = np.empty(len(places), self.carried.dtype)
        for number in np.unique(part):
            mine = part == number
            local = self.read(number)[places[mine] - self.starts[number]]
            found[mine] = local + self.carried[number]
        return found


class SplitPast:
    """The rows of a hot key, asked for some moments (`past.AnyPast`)."""

    def __init__(self, hot: HotKey, time: Ints) -> None:
        self.hot, self.time = hot, time
        self.key = np.zeros(len(time), np.int64)
        self.order = np.argsort(time, kind="stable")
        read = functools.lru_cache(PARTS_AT_HAND)(lambda part: hot.read(int(hot.numbers[part])))
        nothing = np.zeros(len(hot.starts), np.int64)
        self.read: Callable[[int], PartRows] = read
        self.times = SplitNumbers(hot.num, hot.starts, nothing, lambda part: read(part).times)

    def starts(self, key: Ints) -> Ints:
        """Returns i64[B], zeros: all rows are of one key."""
        return np.zeros(len(key), np.int64)

    def ends(self, key: Ints, time: Ints) -> Ints:
        """Returns i64[B], how many rows come before each time."""
        del key
        part = np.searchsorted(self.hot.lows, time) - 1  # the last that has an earlier row
        end = np.zeros(len(time), np.int64)
        for number in np.unique(part[part >= 0]):
            mine = part == number
            local = np.searchsorted(self.read(number).times, time[mine])
            end[mine] = self.hot.starts[number] + local
        return end

    def labels(self) -> list[tuple[Places, Places]]:
        """Returns running sums of each task's known labels and of their values."""
        return [(self._sums(t, 0), self._sums(t, 1)) for t in range(self.hot.carried.shape[1])]

    def _sums(self, task: int, which: int) -> SplitNumbers:
        hot = self.hot
        carried = hot.carried[:, task, which]
        return SplitNumbers(
            hot.num + 1, hot.starts, carried, lambda part: self.read(part).labels[task][which]
        )
