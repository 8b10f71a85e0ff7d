"""Rows that came later beside those of a log, sorted together without sorting the log again.

Letters: N rows of the log, F later ones, B questions.
"""

import copy
from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.arrays import Floats, Ints
from mtrec_ray.data.preparing.past import Past, Places


@dataclass(frozen=True)
class MergedNumbers:
    """Numbers of rows, or sums of all rows before each, indexed by places among all rows.

    Attributes:
        at: i64[F], ascending: the places of the later rows.
        first, later: numbers [N] and [F]; or running sums [N + 1] and [F + 1].
    """

    at: Ints
    first: Places
    later: np.ndarray

    def __len__(self) -> int:
        return len(self.first) + len(self.at)

    def __getitem__(self, places: Ints) -> np.ndarray:
        before = np.searchsorted(self.at, places)
        if len(self.later) > len(self.at):  # sums
            return self.first[places - before] + self.later[before]
        found = np.empty(places.shape, self.later.dtype)
        is_later = np.append(self.at, -1)[before] == places
        found[is_later] = self.later[before[is_later]]
        found[~is_later] = self.first[(places - before)[~is_later]]
        return found


class MergedPast:
    """The rows of two pasts as those of one (`past.AnyPast`); of equal times the log's come first.

    Attributes:
        at: i64[F], the places of the later rows among all.
    """

    def __init__(self, first: Past, later: Past) -> None:
        self.first, self.later = first, later
        self.key, self.time, self.order = first.key, first.time, first.order
        codes = first.codes_of(later.key[later.rows], later.times)
        self.at = np.searchsorted(first.codes, codes, side="right") + np.arange(len(codes))
        self.times: Places = MergedNumbers(self.at, first.times, later.times)

    def asked(self, key: Ints, time: Ints) -> "MergedPast":
        """Returns the same rows, asked for other keys and times."""
        other = copy.copy(self)
        other.key, other.time, other.order = key, time, np.lexsort([time, key])
        return other

    def starts(self, key: Ints) -> Ints:
        """Returns i64[B], the place of the first row of each key."""
        return self.first.starts(key) + self.later.starts(key)

    def ends(self, key: Ints, time: Ints) -> Ints:
        """Returns i64[B], the place after each key's last row before a time."""
        return self.first.ends(key, time) + self.later.ends(key, time)

    def sums(self, first: Places, later: Floats) -> MergedNumbers:
        """Returns running sums of both from those of each, f64[N + 1] and f64[F + 1]."""
        return MergedNumbers(self.at, first, later)
