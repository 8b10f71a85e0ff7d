"""Who took what, and when: what lists are made from and measured by.

A row of the log says that a user met an item. Where its label of the asked task is 1, the user
*took* the item. A sampled negative, whether `prepare` drew it or the log holds it (`negatives.from:
log`), says nothing about the user: nobody saw it, so that it is no row here.

Letters: N rows, B users, n items.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mtrec_ray.data.arrays import Bools, Ints, first_not_before
from mtrec_ray.data.preparing.samples import FIRST_NEGATIVE
from mtrec_ray.data.shards import read_columns
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.split import SPLITS

END = len(SPLITS)  # after all splits


@dataclass(frozen=True)
class Moments:
    """When each of B users asks, and which rows may be known then.

    Attributes:
        persons: i64[B].
        times: i64[B], in ms; None where rows have no time.
        split: rows of the splits before this one are known, where rows have no time.
    """

    persons: Ints
    times: Ints | None
    split: int

    def __len__(self) -> int:
        return len(self.persons)

    def take(self, rows: Ints | slice) -> "Moments":
        """Returns some of the users."""
        times = None if self.times is None else self.times[rows]
        return Moments(self.persons[rows], times, self.split)


@dataclass(frozen=True)
class Interactions:
    """The rows of a log that somebody met, sorted by person, then by time.

    Attributes:
        person, item, time: i64[N]. split: i8[N]. taken: bool[N].
        num_items: n.
        delay_ms: how long after its row it is known that the item was taken.
    """

    person: Ints
    item: Ints
    time: Ints
    split: NDArray[np.int8]
    taken: NDArray[np.bool_]
    num_items: int
    delay_ms: int = 0

    def __len__(self) -> int:
        return len(self.person)

    def of(self, rows: Bools | Ints) -> "Interactions":
        """Returns some of the rows."""
        return Interactions(
            self.person[rows], self.item[rows], self.time[rows], self.split[rows],
            self.taken[rows], self.num_items, self.delay_ms,
        )  # fmt: skip

    @property
    def positives(self) -> "Interactions":
        """The rows of taken items, each at the moment when that is known."""
        rows = self.of(self.taken)
        return replace(rows, time=rows.time + self.delay_ms, delay_ms=0)

    def before(self, split: int) -> "Interactions":
        """Returns the rows of the splits before this one."""
        return self.of(self.split < split)

    @cached_property
    def timed(self) -> bool:
        """Whether rows have a time."""
        return bool(self.time.any())

    def known_to(self, asking: Moments, last: int | None = None) -> tuple[Ints, Ints]:
        """Returns places among the asking users, and rows, that these users had before they asked.

        Each user's rows in the order of time; of those with a time only the `last` ones. Rows
        without a time are known by their split, whoever asks.
        """
        start = np.searchsorted(self.person, asking.persons, side="left")
        stop = np.searchsorted(self.person, asking.persons, side="right")
        by_time = asking.times is not None and self.timed
        if by_time and asking.times is not None:
            stop = first_not_before(self.time, start, stop, asking.times)
            start = start if last is None else np.maximum(start, stop - last)
        size = stop - start
        user = np.repeat(np.arange(len(asking)), size)
        row = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size - start, size)
        if by_time:
            return user, row
        known = self.split[row] < asking.split
        return user[known], row[known]


def read_interactions(layout: SnapshotColumns, task: str) -> Interactions:
    """Returns the rows of a scenario's log, read from its prepared shards."""
    column = layout.facts.tasks.index(task)
    parts = list(met_rows(layout, column))
    rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    order = np.lexsort([rows["row"], rows["time"], rows["person"]])
    rows = {k: v[order] for k, v in rows.items()}
    return Interactions(
        rows["person"], rows["item"].astype(np.int64), rows["time"], rows["split"], rows["taken"],
        layout.facts.num_items, layout.delays_ms[column],
    )  # fmt: skip


def met_rows(layout: SnapshotColumns, column: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields columns of the rows that somebody met; `taken`: the task of a column of the labels."""
    for code, split in enumerate(SPLITS):
        paths = layout.prepared.shard_paths(layout.name, split)
        for arrays in read_columns(paths, ("row", "person", "item", "time", "labels")):
            real = is_met(layout.scenario, layout.facts.tasks, arrays)
            kept = {k: arrays[k][real] for k in ("row", "person", "item", "time")}
            taken = arrays["labels"][real, column] == 1
            yield {**kept, "taken": taken, "split": np.full(len(taken), code, np.int8)}


def is_met(
    scenario: Scenario, tasks: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> NDArray[np.bool_]:
    """Returns bool[N]: rows that are no sampled negatives, of `prepare` or of the log."""
    met = arrays["row"] < FIRST_NEGATIVE
    negatives = scenario.negatives
    if negatives is not None and negatives.source == "log":
        met &= arrays["labels"][:, tasks.index(negatives.of)] != 0
    return met


def times_sampled(layout: SnapshotColumns) -> NDArray[np.float64]:
    """Returns f64[n], how often training has each item as a sampled negative."""
    counts = np.zeros(layout.facts.num_items)
    for arrays in read_columns(
        layout.prepared.shard_paths(layout.name, "train"), ("row", "item", "labels")
    ):
        drawn = ~is_met(layout.scenario, layout.facts.tasks, arrays)
        counts += np.bincount(arrays["item"][drawn], minlength=len(counts))
    return counts


def matrix_of(
    user: Ints, item: Ints, shape: tuple[int, int], weights: NDArray[np.float32] | None = None
) -> csr_array:
    """Returns f32[users, items]: 1 (or a weight, the largest one) for each pair that is listed."""
    key = user * shape[1] + item
    if weights is None:
        key = np.unique(key)
        values = np.ones(len(key), np.float32)
    else:
        order = np.lexsort([-weights, key])
        key, first = np.unique(key[order], return_index=True)
        values = weights[order][first]
    return csr_array((values, np.divmod(key, shape[1])), shape=shape)
