"""What a user took in the other scenarios of the same people, as of any moment.

A scenario that asks for it (`history.elsewhere`) has a timeline: the rows of all other scenarios of
its people that stand in a history there, sorted by person and by the time from which each row is
known. It says nothing of the scenario's own rows, and whoever has a row or none is found in it by
the hash of his id. A row sees those known strictly before its own time; a row of a log without
time sees all, which are the training rows of the others.

The arrays lie beside the scenario's rows, `elsewhere.*.npy`; vectors of the texts of all items of
those people, by the pretrained encoder, lie once for all of its scenarios.

Letters: R rows of the timeline, N persons who ask, E items of each, n items of all catalogues, D
width of texts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Int32s, Ints, first_not_before
from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.mapped_arrays import map_array
from mtrec_ray.data.storage import join

# The age of a row where it or the one who asks has no time: the last one of `HistoryAttention`.
UNKNOWN_AGE = 63

# The arrays of a timeline, and their types.
COLUMNS = {"person": np.int64, "known": np.int64, "item": np.int32}


@dataclass(frozen=True)
class ElsewhereFacts:
    """What a scenario asks of the others.

    Attributes:
        last: E.
        timed: whether its own rows have a time.
        num_items: items of each scenario of the people, itself too, in the order of their vectors.
        delays_ms: of each other scenario, how long after its time a row is known.
    """

    last: int
    timed: bool
    num_items: dict[str, int]
    delays_ms: dict[str, int]

    @property
    def scenarios(self) -> list[str]:
        """All scenarios of the people."""
        return list(self.num_items)

    @cached_property
    def bases(self) -> Ints:
        """i64[S + 1]: the first item of each scenario, and n."""
        return np.cumsum([0, *self.num_items.values()])

    def base(self, name: str) -> int:
        """Returns the first item of a scenario."""
        return int(self.bases[self.scenarios.index(name)])

    def origins(self, item: Int32s | Ints) -> Ints:
        """Returns the number of the scenario of each item."""
        return np.searchsorted(self.bases, item, side="right") - 1


class Taken(NamedTuple):
    """Items that persons took elsewhere, newest first: i64[N, E], -1 where there is none.

    `ages` i64[N, E]: floor(log2(1 + seconds)) since then, as in a history.
    """

    items: Ints
    ages: Ints


@dataclass(frozen=True)
class Timeline:
    """The rows of other scenarios that one scenario sees.

    Attributes:
        person: i64[R], ascending; known: i64[R], in ms, ascending for each person, `NO_TIME` of
            rows that are known from the beginning; item: i32[R], among all items of the people.
        texts: f16[n, D], of length 1 (or 0).
    """

    facts: ElsewhereFacts
    person: Ints
    known: Ints
    item: Int32s
    texts: NDArray[np.float16]

    def taken(self, person: Ints, moment: Ints) -> Taken:
        """Returns the last items of persons i64[N] before the moment of each, in ms."""
        facts = self.facts
        if not facts.timed:
            moment = np.full(len(person), np.iinfo(np.int64).max)
        start = np.searchsorted(self.person, person, side="left")
        stop = np.searchsorted(self.person, person, side="right")
        end = first_not_before(self.known, start, stop, moment)
        rows = end[:, None] - 1 - np.arange(facts.last)
        exists = rows >= start[:, None]
        if not exists.any():
            return Taken(np.full(rows.shape, -1), np.zeros(rows.shape, np.int64))
        rows = np.where(exists, rows, 0)
        items = np.where(exists, self.item[rows], -1).astype(np.int64)
        return Taken(items, np.where(exists, self._ages(rows, items, moment), 0))

    def _ages(self, rows: Ints, items: Ints, moment: Ints) -> Ints:
        """Returns i64[N, E], ages of rows; what has no time has an age of its own."""
        facts = self.facts
        if not facts.timed:
            return np.full(rows.shape, UNKNOWN_AGE)
        delays = np.array([facts.delays_ms.get(name, 0) for name in facts.scenarios])
        known = self.known[rows]
        since = np.where(known == NO_TIME, 0, moment[:, None] - known)
        seconds = (since + delays[facts.origins(items)]) / 1000
        buckets = np.frexp(1 + np.maximum(seconds, 0))[1] - 1
        return np.where(known == NO_TIME, UNKNOWN_AGE, buckets)


def timeline_path(folder: str, name: str, column: str) -> str:
    """Returns the file of an array of a scenario's timeline."""
    return join(folder, name, f"elsewhere.{column}.npy")


def item_texts_path(folder: str, space: str) -> str:
    """Returns the file of the vectors of all items of some people."""
    return join(folder, f"elsewhere.{space}.texts.npy")


def load_timeline(folder: str, name: str, space: str, facts: ElsewhereFacts) -> Timeline:
    """Returns the timeline of a scenario, mapped into memory."""
    arrays = {column: map_array(timeline_path(folder, name, column)) for column in COLUMNS}
    return Timeline(facts, **arrays, texts=map_array(item_texts_path(folder, space)))
