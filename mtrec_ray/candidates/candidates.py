"""The candidates of users who ask, with the scores of all sources as features.

Letters: B users who ask, n items, M pairs of a user and a candidate, S sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.candidates.scores import Hidden, Scores, is_among
from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.columns import hash_ints

EACH = 100  # candidates that each source names for a user


@dataclass(frozen=True)
class Candidates:
    """Pairs of a user and a candidate, sorted by user.

    Attributes:
        user, item: i64[M]; users are places among the B who ask.
        scores: f32[M] by source.
        num_users: B.
    """

    user: Ints
    item: Ints
    scores: Mapping[str, Float32s]
    num_users: int

    def __len__(self) -> int:
        return len(self.user)

    def with_scores(self, more: Mapping[str, Float32s]) -> "Candidates":
        """Returns the candidates with the scores f32[M] of further sources."""
        return replace(self, scores={**self.scores, **more})

    def take(self, pairs: NDArray[np.bool_] | Ints) -> "Candidates":
        """Returns some of the pairs, in their order."""
        scores = {source: values[pairs] for source, values in self.scores.items()}
        return Candidates(self.user[pairs], self.item[pairs], scores, self.num_users)

    def of_users(self, start: int, num: int) -> "Candidates":
        """Returns the candidates of some users in a row, numbered from 0."""
        a, b = self.starts[[start, start + num]].tolist()
        scores = {source: values[a:b] for source, values in self.scores.items()}
        return Candidates(self.user[a:b] - start, self.item[a:b], scores, num)

    @property
    def starts(self) -> Ints:
        """i64[B + 1]: where each user's candidates start."""
        return np.searchsorted(self.user, np.arange(self.num_users + 1))

    def best(self, score: NDArray[np.floating], k: int) -> tuple[Ints, Ints]:
        """Returns items i64[B, k] by falling score [M], and their pairs i64[B, k]; -1: none."""
        order = np.lexsort([-score, self.user])
        place = np.arange(len(order)) - self.starts[self.user]
        kept = place < k
        items = np.full((self.num_users, k), -1)
        pairs = np.full((self.num_users, k), -1)
        where = self.user[kept], place[kept]  # users are sorted, before and after
        items[where], pairs[where] = self.item[order[kept]], order[kept]
        return items, pairs


def choose(
    scores: Mapping[str, Scores], hidden: Hidden, users: int, each: int = EACH, least: int = 0
) -> Candidates:
    """Returns the best items of each source for each of some users, with the scores of all sources.

    Items that are hidden from a user are no candidates. A source that tells no two items apart for
    a user names none; users with fewer candidates than `each`, or `least`, get some at random.
    """
    named = [keys_of(source.best(each, hidden), hidden.num_items) for source in scores.values()]
    keys = distinct(np.concatenate(named))
    keys = distinct(np.concatenate([keys, some_others(keys, hidden, users, max(each, least))]))
    user, item = np.divmod(keys, hidden.num_items)
    found = {name: source.at(user, item) for name, source in scores.items()}
    return Candidates(user, item, found, users)


def distinct(keys: Ints) -> Ints:
    """Returns each key once, sorted: in a fifth of the time of `np.unique`, which hashes them."""
    keys = np.sort(keys)
    return keys[np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]])]


def keys_of(items: Ints, num_items: int) -> Ints:
    """Returns the numbers of the pairs of users and their items i64[B, q] (-1: none)."""
    user, place = np.nonzero(items >= 0)
    return user * num_items + items[user, place]


def some_others(keys: Ints, hidden: Hidden, users: int, wanted: int) -> Ints:
    """Returns numbers of pairs that bring users to `wanted` candidates, by pseudo-random order."""
    size = np.bincount(keys // hidden.num_items, minlength=users)
    few = np.flatnonzero(size < wanted)
    found = [np.zeros(0, np.int64)]
    for user, missing in zip(few.tolist(), (wanted - size[few]).tolist(), strict=True):
        found.append(user * hidden.num_items + others_of(user, missing, keys, hidden))
    return np.concatenate(found)


def others_of(user: int, missing: int, keys: Ints, hidden: Hidden) -> Ints:
    """Returns items that a user is shown and that are no candidates yet: at most `missing`."""
    n, found = hidden.num_items, np.zeros(0, np.int64)
    order, start = random_order(n), 0
    while len(found) < missing and start < n:
        some = order[start : start + looked_at(missing, start)]
        start += len(some)
        free = ~hidden.of(np.full(len(some), user), some) & ~is_among(keys, user * n + some)
        found = np.concatenate([found, some[free]])
    return found[:missing]


def looked_at(missing: int, start: int) -> int:
    """Returns how many more items to look at: twice as many each time."""
    return max(4 * missing, start)


@lru_cache(maxsize=4)
def random_order(num_items: int) -> Ints:
    """Returns i64[n]: the items in a fixed pseudo-random order."""
    return np.argsort(hash_ints(np.arange(num_items), 0), kind="stable")


def standardised(candidates: Candidates, sources: Sequence[str]) -> Float32s:
    """Returns f32[M, S]: scores less their mean over the user's candidates, by their deviation.

    0 of a source that the candidates do not have, or that is the same for all of a user's.
    """
    columns = np.zeros((len(candidates), len(sources)), np.float32)
    user, size = candidates.user, np.maximum(np.diff(candidates.starts), 1)
    for i, source in enumerate(sources):
        if source in candidates.scores:
            values = np.nan_to_num(candidates.scores[source].astype(np.float64))
            mean = np.bincount(user, values, candidates.num_users) / size
            centred = values - mean[user]
            deviation = np.sqrt(np.bincount(user, centred**2, candidates.num_users) / size)
            columns[:, i] = centred / np.maximum(deviation, 1e-6)[user]
    return columns


def raw(candidates: Candidates, sources: Sequence[str]) -> Float32s:
    """Returns f32[M, S]: scores as they are, NaN of a source that the candidates do not have."""
    columns = np.full((len(candidates), len(sources)), np.nan, np.float32)
    for i, source in enumerate(sources):
        if source in candidates.scores:
            columns[:, i] = candidates.scores[source]
    return columns
