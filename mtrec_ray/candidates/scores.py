"""What a source says of users who ask: its best items for each of them, and its score of any pair.

No table of all users and all items is made, unless the catalogue is small.

Letters: B users, n items, c some items, q items that are asked for, M pairs, D numbers of a vector,
h items of a history.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from mtrec_ray.candidates import search_index
from mtrec_ray.candidates.exact_product import best_of
from mtrec_ray.candidates.search_index import SearchIndex
from mtrec_ray.data.arrays import Bools, Float32s, Ints

LEAST_SHARE = 0.01  # of allowed items: where fewer are, an index names not enough of them
LATEST = 5  # items of a history whose neighbours are candidates
FEW = 16  # pairs of a user whose vectors are multiplied one by one


@dataclass(frozen=True)
class Hidden:
    """Items that users are not shown.

    Attributes:
        met: users and items of rows that they have.
        allowed: bool[n], items that anybody may be shown.
        published: i64[n], in ms; `times` i64[B]: when users ask, None where rows have no time.
        share: of the items that an index may find, how many are allowed.
    """

    met: tuple[Ints, Ints]
    allowed: Bools
    published: Ints
    times: Ints | None
    share: float = 1.0

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.allowed)

    @cached_property
    def shown(self) -> Ints:
        """The items that anybody may be shown, sorted."""
        return np.flatnonzero(self.allowed)

    @property
    def are_few_shown(self) -> bool:
        """Whether a rule leaves so few of an index's items that all are better scored."""
        return self.share < 1 and len(self.shown) <= search_index.EXACT_UP_TO

    @cached_property
    def keys(self) -> Ints:
        """Sorted numbers of the pairs that have met."""
        return np.unique(self.met[0] * self.num_items + self.met[1])

    @cached_property
    def most_met(self) -> int:
        """The most items that one user has met."""
        return int(np.bincount(self.keys // self.num_items).max(initial=0))

    def of(self, user: Ints, item: Ints) -> Bools:
        """Returns bool[M]: which pairs are hidden."""
        hidden = ~self.allowed[item] | is_among(self.keys, user * self.num_items + item)
        if self.times is not None:
            hidden |= self.published[item] > self.times[user]
        return hidden

    def table(self, items: Ints, num_users: int) -> Bools:
        """Returns bool[B, c]: which of sorted items i64[c] are hidden from each user."""
        hidden = np.broadcast_to(~self.allowed[items], (num_users, len(items))).copy()
        if self.times is not None:
            hidden |= self.published[items] > self.times[:, None]
        user, item = self.met
        there = is_among(items, item)
        hidden[user[there], np.searchsorted(items, item[there])] = True
        return hidden


def is_among(values: Ints, wanted: Ints) -> Bools:
    """Returns bool[M]: which of `wanted` i64[M] are among sorted values."""
    if not len(values):
        return np.zeros(len(wanted), bool)
    place = np.searchsorted(values, wanted)
    return values[np.minimum(place, len(values) - 1)] == wanted


class Scores(Protocol):
    """What a source says of B users who ask."""

    def best(self, num: int, hidden: Hidden) -> Ints:
        """Returns i64[B, q]: the best items of each user, best first; -1 where it names no more."""
        ...

    def at(self, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M]: the scores of pairs, sorted by user."""
        ...


@dataclass(frozen=True)
class TableScores:
    """Scores f32[B, c] of some sorted items i64[c]; those up to `least` say nothing, others are 0.

    A user whose scores are all the same is told nothing.
    """

    values: Float32s
    items: Ints
    least: float = -np.inf

    def best(self, num: int, hidden: Hidden) -> Ints:
        """Returns i64[B, q]."""
        values = np.where(hidden.table(self.items, len(self.values)), -np.inf, self.values)
        values[values <= self.least] = -np.inf
        if values.shape[1]:
            values[self.values.max(1) == self.values.min(1)] = -np.inf
        items, scores = best_of(np.broadcast_to(self.items, values.shape), values, num)
        return np.where(np.isfinite(scores), items, -1)

    def at(self, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M]."""
        there = is_among(self.items, item)
        found = np.zeros(len(item), np.float32)
        found[there] = self.values[user[there], np.searchsorted(self.items, item[there])]
        return found


@dataclass(frozen=True)
class SparseScores:
    """Positive scores f32[B, n] of few items; the others are 0."""

    values: csr_array

    @cached_property
    def sorted(self) -> csr_array:
        """The scores with the items of each user in their order."""
        self.values.sort_indices()
        return self.values

    @cached_property
    def user(self) -> Ints:
        """i64[N]: the user of each entry."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @property
    def starts(self) -> Ints:
        """i64[B + 1]: where each user's entries start."""
        return np.asarray(self.sorted.indptr, np.int64)

    @property
    def item(self) -> Ints:
        """i64[N]: the item of each entry."""
        return np.asarray(self.sorted.indices, np.int64)

    @property
    def data(self) -> Float32s:
        """f32[N]: the score of each entry."""
        return np.asarray(self.sorted.data, np.float32)

    def best(self, num: int, hidden: Hidden) -> Ints:
        """Returns i64[B, q]."""
        item = self.item
        values = np.where(hidden.of(self.user, item), 0, self.data)
        found = np.full((len(self.starts) - 1, num), -1)
        for user, (start, stop) in enumerate(itertools.pairwise(self.starts.tolist())):
            own = values[start:stop]
            top = np.argpartition(own, -num)[-num:] if len(own) > num else np.arange(len(own))
            top = top[np.argsort(-own[top], kind="stable")]
            top = top[own[top] > 0]
            found[user, : len(top)] = item[start + top]
        return found

    def at(self, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M]."""
        span = max(self.item.max(initial=0), item.max(initial=0)) + 1
        keys, wanted = self.user * span + self.item, user * span + item
        there = is_among(keys, wanted)
        found = np.zeros(len(item), np.float32)
        found[there] = self.data[np.searchsorted(keys, wanted[there])]
        return found


@dataclass(frozen=True)
class PairScores:
    """Scores that are made for all items, or for few pairs one by one.

    Attributes:
        whole: makes the scores of all items.
        of_pairs: the scores f32[M] of pairs.
        num_users: B. few: so many pairs of a user are better made one by one.
    """

    whole: Callable[[], Scores]
    of_pairs: Callable[[Ints, Ints], Float32s]
    num_users: int
    few: int

    @cached_property
    def made(self) -> Scores:
        """The scores of all items, made once."""
        return self.whole()

    def best(self, num: int, hidden: Hidden) -> Ints:
        """Returns i64[B, q]."""
        return self.made.best(num, hidden)

    def at(self, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M]."""
        if len(item) <= self.few * self.num_users:
            return self.of_pairs(user, item)
        return self.made.at(user, item)


@dataclass(frozen=True)
class VectorScores:
    """Inner products of users f32[B, D] with items f32[n, D], found by an index if there is one.

    A user of zeros is told nothing.
    """

    users: Float32s
    items: Float32s
    index: SearchIndex | None = None

    def best(self, num: int, hidden: Hidden) -> Ints:
        """Returns i64[B, q]."""
        if self.index is None:
            return TableScores(self.users @ self.items.T, all_of(self.items)).best(num, hidden)
        known = np.flatnonzero(self.users.any(1))
        found = np.full((len(self.users), num), -1)
        if not hidden.are_few_shown:
            items, _ = self.index.search(self.users[known], asked_of_index(num, hidden))
            found[known] = first_shown(items, known, num, hidden)
        return completed(found, known, hidden, self.of_all)

    def of_all(self, user: int, items: Ints) -> Float32s:
        """Returns f32[c]: a user's scores of items i64[c]."""
        return self.items[items] @ self.users[user]

    def at(self, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M]."""
        if len(item) <= FEW * len(self.users):
            return np.einsum("md,md->m", self.items[item], self.users[user])
        found = np.zeros(len(item), np.float32)
        for number, own in slices_by_user(user, len(self.users)):
            found[own] = self.items[item[own]] @ self.users[number]
        return found


@dataclass(frozen=True)
class NearestScores:
    """The largest inner product of each item f32[n, D] with one of a history i64[B, h]; 0 without.

    The best are those of the latest items of the history.
    """

    history: Ints
    items: Float32s
    index: SearchIndex | None = None

    def best(self, num: int, hidden: Hidden) -> Ints:
        """Returns i64[B, q]."""
        history = self.history[:, :LATEST]
        known = history >= 0
        if self.index is None:
            return TableScores(self.table(history), all_of(self.items)).best(num, hidden)
        found, every = np.full((len(history), num), -1), np.arange(len(history))
        if not hidden.are_few_shown:
            found = self.searched(self.index, history, num, hidden)
        return completed(found, every[known.any(1)], hidden, self.of_all)

    def searched(self, index: SearchIndex, history: Ints, num: int, hidden: Hidden) -> Ints:
        """Returns i64[B, q]: what an index finds near the items of a history i64[B, h]."""
        known, each = history >= 0, asked_of_index(num, hidden)
        shape = (*history.shape, each)
        items, scores = np.full(shape, -1), np.full(shape, -np.inf, np.float32)
        items[known], scores[known] = index.search(self.items[history[known]], each)
        ordered = distinct_best(items.reshape(len(history), -1), scores.reshape(len(history), -1))
        return first_shown(ordered, np.arange(len(history)), num, hidden)

    def of_all(self, user: int, items: Ints) -> Float32s:
        """Returns f32[c]: a user's scores of items i64[c], by his latest items."""
        met = self.history[user, :LATEST]
        return (self.items[items] @ self.items[met[met >= 0]].T).max(1)

    def table(self, history: Ints) -> Float32s:
        """Returns f32[B, n]: the scores of all items by a history i64[B, h]."""
        scores = np.zeros((len(history), len(self.items)), np.float32)
        for user, items in enumerate(history):
            known = items[items >= 0]
            if len(known):
                scores[user] = (self.items @ self.items[known].T).max(1)
        return scores

    def at(self, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M]."""
        found = np.zeros(len(item), np.float32)
        for number, own in slices_by_user(user, len(self.history)):
            known = self.history[number][self.history[number] >= 0]
            if len(known):
                found[own] = (self.items[item[own]] @ self.items[known].T).max(1)
        return found


def all_of(items: Float32s) -> Ints:
    """Returns i64[n]: the numbers of all items."""
    return np.arange(len(items))


def slices_by_user(user: Ints, num_users: int) -> list[tuple[int, slice]]:
    """Returns the users who have pairs, and where these are, in pairs sorted by user."""
    edges = np.searchsorted(user, np.arange(num_users + 1)).tolist()
    spans = enumerate(itertools.pairwise(edges))
    return [(user, slice(a, b)) for user, (a, b) in spans if a < b]


def asked_of_index(num: int, hidden: Hidden) -> int:
    """Returns how many items to search, so that enough are left that a user is shown."""
    more = num if hidden.times is not None else 0  # not published by then
    wanted = num + more + min(hidden.most_met, num)
    return min(math.ceil(wanted / max(hidden.share, LEAST_SHARE)), hidden.num_items)


def first_shown(items: Ints, users: Ints, num: int, hidden: Hidden) -> Ints:
    """Returns i64[b, q]: the first items of rows i64[b, c] (-1: none) that the users are shown."""
    found = np.full((len(items), num), -1)
    if not items.size:
        return found
    user = np.repeat(users, items.shape[1])
    shown = (items >= 0) & ~hidden.of(user, items.clip(0).ravel()).reshape(items.shape)
    place = np.cumsum(shown, 1) - 1
    row, column = np.nonzero(shown & (place < num))
    found[row, place[row, column]] = items[row, column]
    return found


def completed(
    found: Ints, users: Ints, hidden: Hidden, of_all: Callable[[int, Ints], Float32s]
) -> Ints:
    """Returns i64[B, q]: best items, those of some users by scoring all items where they are short.

    An index finds the nearest of all its items: under a rule on these, it may find none that
    passes. `of_all` scores items for a user.
    """
    num = found.shape[1]
    if hidden.share < 1 and len(hidden.shown) and num:
        for user in users[(found[users] < 0).any(1)].tolist():
            found[user] = best_shown(user, of_all(user, hidden.shown), num, hidden)
    return found


def best_shown(user: int, scores: Float32s, num: int, hidden: Hidden) -> Ints:
    """Returns i64[q]: the best of the items that a user is shown, by scores f32[c]; -1: none."""
    items = hidden.shown
    free = ~hidden.of(np.full(len(items), user), items)
    (found,), _ = best_of(items[free][None], scores[free][None], num)
    return found


def distinct_best(items: Ints, scores: Float32s) -> Ints:
    """Returns i64[B, c]: items by falling score, each once in its row; -1: none."""
    order = np.argsort(-scores, axis=1, kind="stable")
    items = np.take_along_axis(items, order, 1)
    again = np.argsort(items, axis=1, kind="stable")  # equal items stand in the order of scores
    sorted_items = np.take_along_axis(items, again, 1)
    repeated = np.zeros(items.shape, bool)
    repeated[:, 1:] = sorted_items[:, 1:] == sorted_items[:, :-1]
    where = np.zeros(items.shape, bool)
    np.put_along_axis(where, again, repeated, 1)
    return np.where(where, -1, items)
