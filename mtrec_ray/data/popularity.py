"""Positives of each item: the simplest list that a model must beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.as_of import counting_splits, log_rows
from mtrec_ray.data.preparing.statistics import Past
from mtrec_ray.data.snapshot import SnapshotColumns


@dataclass(frozen=True)
class Popularity:
    """Positives of each item, as of any moment where rows have a time.

    Attributes:
        total: f64[n], over all rows.
        past: the rows of the positives by item; None without time.
        delay_ms: how long after its row a label is known.
    """

    total: NDArray[np.float64]
    past: Past | None = None
    delay_ms: int = 0

    def at(self, moments: Ints) -> NDArray[np.float64]:
        """Returns f64[B, n]: positives before each moment; without time the same for all."""
        shape = (len(moments), len(self.total))
        if self.past is None:
            return np.broadcast_to(self.total, shape)
        item = np.tile(np.arange(shape[1]), shape[0])
        asked = self.past.asked(item, np.repeat(moments, shape[1]))
        return (asked.position(self.delay_ms) - asked.start).astype(np.float64).reshape(shape)


def training_popularity(layout: SnapshotColumns, task: str) -> Popularity:
    """Returns a task's positives in training; where rows have a time, before the asking moment.

    With cuts in time these are all of training. With fractions of each user's rows some training
    rows are later than another user's first test row; these are left out.
    """
    return count_positives(layout, task, ("train",), 0)


def live_popularity(layout: SnapshotColumns, task: str) -> Popularity:
    """Returns a task's positives, known at the asking moment, among the rows that statistics count.

    Of all splits with `statistics: live`, of training with `frozen` and without time.
    """
    delay = layout.delays_ms[layout.facts.tasks.index(task)]
    return count_positives(layout, task, counting_splits(layout), delay)


def count_positives(
    layout: SnapshotColumns, task: str, splits: tuple[str, ...], delay_ms: int
) -> Popularity:
    """Returns a task's positives in some splits: a count by item and, with time, their rows."""
    place, num_items = layout.facts.tasks.index(task), layout.facts.num_items
    total, items, times = np.zeros(num_items), [], []
    for arrays in log_rows(layout, splits, ("item", "time", "labels")):
        hit = arrays["labels"][:, place] == 1
        total += np.bincount(arrays["item"][hit], minlength=num_items)
        if layout.timed:
            items.append(arrays["item"][hit].astype(np.int64))
            times.append(arrays["time"][hit])
    if not layout.timed:
        return Popularity(total)
    item = np.concatenate(items)
    past = Past(item, np.concatenate(times), np.ones(len(item), bool))
    return Popularity(total, past, delay_ms)
