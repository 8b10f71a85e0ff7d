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
        total: f64[n], of the whole of the rows.
        past: the rows of the positives by item; None without time.
        delay_ms: how long after its row a label is known.
    """

    total: NDArray[np.float64]
    past: Past | None = None
    delay_ms: int = 0

    def at(self, moments: Ints) -> NDArray[np.float64]:
        """f64[B, n]: positives before each moment; without time the same for all."""
        shape = (len(moments), len(self.total))
        if self.past is None:
            return np.broadcast_to(self.total, shape)
        item = np.tile(np.arange(shape[1]), shape[0])
        asked = self.past.asked(item, np.repeat(moments, shape[1]))
        return (asked.position(self.delay_ms) - asked.start).astype(np.float64).reshape(shape)


def training_popularity(layout: SnapshotColumns, task: str) -> Popularity:
    """Positives in training of a task; where rows have a time, those before the asking moment.

    Under cuts in time that is all of training. Under fractions of each user's rows training goes
    on after a user's first test row, and what comes later is left out.
    """
    return count_positives(layout, task, ("train",), 0)


def live_popularity(layout: SnapshotColumns, task: str) -> Popularity:
    """Positives of a task that are known at the asking moment, of the rows that statistics count.

    Of all splits with `statistics: live`, of training with `frozen` and without time.
    """
    delay = layout.delays_ms[layout.facts.tasks.index(task)]
    return count_positives(layout, task, counting_splits(layout), delay)


def count_positives(
    layout: SnapshotColumns, task: str, splits: tuple[str, ...], delay_ms: int
) -> Popularity:
    """Positives of a task in some splits: a count an item, and where rows have a time, these."""
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
