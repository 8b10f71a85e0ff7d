"""How often each item was taken: over all rows, and in the days before a moment.

Letters: n items, B users who ask.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.columns import DAY_MS
from mtrec_ray.data.interactions import Interactions

WINDOW_DAYS = (1, 7, 30)
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class RecentPopularity:
    """Rows of taken items in the order of time: counts of any days before any moment.

    Attributes:
        time, item: i64[N].
        num_items: n.
    """

    time: Ints
    item: Ints
    num_items: int

    @classmethod
    def of(cls, positives: Interactions) -> "RecentPopularity":
        """Returns the counts of positives, of all splits: what happened is known at once."""
        order = np.argsort(positives.time, kind="stable")
        return cls(positives.time[order], positives.item[order], positives.num_items)

    def at(self, moments: Ints, days: int) -> Float32s:
        """Returns f32[B, n]: log(1 + rows) in the days before each moment."""
        distinct, place = np.unique(moments, return_inverse=True)
        low = np.searchsorted(self.time, distinct - days * DAY_MS)
        high = np.searchsorted(self.time, distinct)
        counts = [
            np.bincount(self.item[a:b], minlength=self.num_items)
            for a, b in zip(low, high, strict=True)
        ]
        return np.log1p(np.stack(counts)).astype(np.float32)[place]


def total_popularity(positives: Interactions) -> Float32s:
    """Returns f32[n]: log(1 + rows)."""
    return np.log1p(np.bincount(positives.item, minlength=positives.num_items)).astype(np.float32)


def newness(published: Ints, moments: Ints) -> Float32s:
    """Returns f32[B, n]: the latest published first, as -log(1 + hours); -inf before publishing.

    `published` i64[n] in ms, NO_TIME where that is not known: such items are the oldest.
    """
    hours = (moments[:, None] - np.where(published == NO_TIME, 0, published)[None]) / HOUR_MS
    scores = np.where(hours < 0, -np.inf, -np.log1p(hours.clip(min=0)))
    return scores.astype(np.float32)
