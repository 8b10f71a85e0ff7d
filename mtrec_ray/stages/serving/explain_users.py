"""A user as he would be without an item that he met, or took in another scenario.

Letters: K items that are left out, width: items of a history.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.elsewhere import Taken
from mtrec_ray.data.snapshot import UserCategoryStatistics, UserSnapshot


def without_each(user: UserSnapshot, places: Ints) -> UserSnapshot:
    """Returns the user, and then the user without the history item at each of the places i64[K].

    The items after it move up, as if it had never been there.
    """
    order = orders_without(user.history.shape[1], places)

    def moved(values: Ints, empty: int) -> Ints:
        return np.concatenate([values[0], [empty]])[order]

    outcomes = None if user.outcomes is None else moved(user.outcomes, 0)
    return replace(
        joined([user] * len(order)),
        history=moved(user.history, -1),
        ages=moved(user.ages, 0),
        outcomes=outcomes,
    )


def orders_without(width: int, places: Ints) -> Ints:
    """Returns i64[K + 1, width]: all places, and then all without each of the K; `width`: none."""
    order = np.tile(np.arange(width + 1), (len(places) + 1, 1))
    for row, place in enumerate(places, 1):
        order[row] = np.concatenate([np.delete(np.arange(width), place), [width, width]])
    return order[:, :width]


def without_taken(user: UserSnapshot, taken: Taken, places: Ints) -> UserSnapshot:
    """Returns the user, and then the user without what he took elsewhere at each of the places.

    As in a timeline, what is older moves up.
    """
    order = orders_without(taken.items.shape[1], places)
    items = np.concatenate([taken.items[0], [-1]])[order]
    ages = np.concatenate([taken.ages[0], [0]])[order]
    return replace(joined([user] * len(order)), elsewhere=Taken(items, ages))


def joined(users: Sequence[UserSnapshot]) -> UserSnapshot:
    """Returns the users of several snapshots, one after another; they bring the same profiles."""

    def all_of(field: str) -> np.ndarray:
        return np.concatenate([getattr(own, field) for own in users])

    first = users[0]
    starts = np.cumsum([0, *(len(own) for own in users)])
    places = [own.given.place for own in users if own.given]
    taken = [own.elsewhere for own in users if own.elsewhere]
    fields = ("ids", "person", "moment", "user", "history", "ages", "numeric")
    return UserSnapshot(
        **{name: all_of(name) for name in fields},
        categories={
            column: joined_pairs([own.categories[column] for own in users], starts)
            for column in first.categories
        },
        outcomes=None if first.outcomes is None else all_of("outcomes"),
        given=first.given and replace(first.given, place=np.concatenate(places)),
        elsewhere=Taken(*map(np.concatenate, zip(*taken, strict=True))) if taken else None,
    )


def joined_pairs(parts: Sequence[UserCategoryStatistics], starts: Ints) -> UserCategoryStatistics:
    """Returns the pairs of several snapshots, whose users start at `starts`."""
    users = [part.user + start for part, start in zip(parts, starts, strict=False)]
    return UserCategoryStatistics(
        np.concatenate(users),
        np.concatenate([part.category for part in parts]),
        np.concatenate([part.numeric for part in parts]),
    )
