"""How often each item was taken: over all rows, and in the days before a moment.

Letters: n items, N rows, B users who ask, M pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mtrec_ray.candidates.scores import Hidden, first_shown
from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.columns import DAY_MS
from mtrec_ray.data.interactions import Interactions

WINDOW_DAYS = (1, 7, 30)
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class OrderScores:
    """Scores that are the same for all who ask at a moment.

    Attributes:
        order_of: the items of a moment, best first. moment: i64[B], the number of the user's.
        of_pairs: the scores of pairs of a user and an item.
    """

    order_of: Callable[[int], Ints]
    moment: Ints
    of_pairs: Callable[[Ints, Ints], Float32s]

    def best(self, num: int, hidden: Hidden) -> Ints:
        """Returns i64[B, q]."""
        found = np.full((len(self.moment), num), -1)
        for number in np.unique(self.moment).tolist():
            users, order = np.flatnonzero(self.moment == number), self.order_of(number)
            found[users] = first_of_order(order[hidden.allowed[order]], users, num, hidden)
        return found

    def at(self, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M]."""
        return self.of_pairs(user, item)


@dataclass(frozen=True)
class TotalPopularity:
    """log(1 + rows) f32[n]."""

    values: Float32s

    @classmethod
    def of(cls, positives: Interactions) -> "TotalPopularity":
        """Returns the popularity of all rows."""
        counts = np.bincount(positives.item, minlength=positives.num_items)
        return cls(np.log1p(counts).astype(np.float32))

    @cached_property
    def order(self) -> Ints:
        """Items that were taken, the most frequent first."""
        return by_falling(np.arange(len(self.values)), self.values)

    def scores(self, num_users: int) -> OrderScores:
        """Returns what users are told."""
        moment = np.zeros(num_users, np.int64)
        return OrderScores(lambda _: self.order, moment, lambda user, item: self.values[item])


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

    @cached_property
    def orders(self) -> dict[tuple[int, int], Ints]:
        """The orders that were asked for last, by their rows."""
        return {}

    @cached_property
    def counted(self) -> dict[tuple[int, int], Float32s]:
        """The values that were asked for last, by their rows."""
        return {}

    @cached_property
    def by_item(self) -> Ints:
        """i64[N]: which rows they are, by item, then by time."""
        return np.argsort(self.item, kind="stable")

    @cached_property
    def keys(self) -> Ints:
        """i64[N]: sorted numbers of item and place in time."""
        return self.item[self.by_item] * (len(self.item) + 1) + self.by_item

    def scores(self, moments: Ints, days: int) -> OrderScores:
        """Returns what users who ask at moments i64[B] are told: log(1 + rows) of the last days."""
        distinct, place = np.unique(moments, return_inverse=True)
        low = np.searchsorted(self.time, distinct - days * DAY_MS)
        high = np.searchsorted(self.time, distinct)

        def order_of(moment: int) -> Ints:
            return self.order(int(low[moment]), int(high[moment]))

        if len(distinct) == 1:  # as in a job: the rows of all items are counted once
            values = self.values(int(low[0]), int(high[0]))
            return OrderScores(order_of, place, lambda _, item: values[item])

        def of_pairs(user: Ints, item: Ints) -> Float32s:
            start = item * (len(self.item) + 1)
            first = np.searchsorted(self.keys, start + low[place[user]])
            last = np.searchsorted(self.keys, start + high[place[user]])
            return np.log1p(last - first).astype(np.float32)

        return OrderScores(order_of, place, of_pairs)

    def order(self, low: int, high: int) -> Ints:
        """Returns the items of some rows, the most frequent first."""
        if (low, high) not in self.orders:
            if len(self.orders) == len(WINDOW_DAYS):  # all users of a job ask at one moment
                self.orders.clear()
            found = np.unique(self.item[low:high], return_counts=True)
            self.orders[low, high] = by_falling(*found)
        return self.orders[low, high]

    def values(self, low: int, high: int) -> Float32s:
        """Returns f32[n], log(1 + rows) of each item among some rows; the last ones are kept."""
        if (low, high) not in self.counted:
            if len(self.counted) == len(WINDOW_DAYS):
                self.counted.clear()
            counts = np.bincount(self.item[low:high], minlength=self.num_items)
            self.counted[low, high] = np.log1p(counts).astype(np.float32)
        return self.counted[low, high]


def by_falling(items: Ints, values: np.ndarray) -> Ints:
    """Returns the items of positive values, the largest first."""
    order = np.argsort(-values, kind="stable")
    return items[order][values[order] > 0]


@dataclass(frozen=True)
class Newness:
    """When items were published: i64[n], in ms, NO_TIME where that is not known."""

    published: Ints

    @cached_property
    def order(self) -> Ints:
        """Items whose time is known, the latest first."""
        order = np.argsort(self.published, kind="stable")[::-1]
        return order[self.published[order] != NO_TIME]

    def scores(self, moments: Ints) -> OrderScores:
        """Returns what users who ask at moments i64[B] are told: -log(1 + hours) since then.

        An item without a time is the oldest.
        """
        distinct, place = np.unique(moments, return_inverse=True)
        starts = np.searchsorted(-self.published[self.order], -distinct)

        def of_pairs(user: Ints, item: Ints) -> Float32s:
            then = np.where(self.published[item] == NO_TIME, 0, self.published[item])
            hours = (moments[user] - then) / HOUR_MS
            return np.where(hours < 0, -np.inf, -np.log1p(hours.clip(min=0))).astype(np.float32)

        return OrderScores(lambda moment: self.order[int(starts[moment]) :], place, of_pairs)


def first_of_order(order: Ints, users: Ints, num: int, hidden: Hidden) -> Ints:
    """Returns i64[b, q]: the first items of one order that each of some users is shown."""
    size = num + hidden.most_met
    while True:
        found = first_shown(np.tile(order[:size], (len(users), 1)), users, num, hidden)
        if size >= len(order) or (found >= 0).all():
            return found
        size *= 2  # some are not published yet
