"""The candidates of users who ask, with the scores of all sources as features.

Letters: B users who ask, n items, M pairs of a user and a candidate, S sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
    scores: Mapping[str, Float32s], left_out: NDArray[np.bool_], each: int = EACH
) -> Candidates:
    """Returns the best items of each source for each user, with the scores of all sources.

    `scores` f32[B, n]; items that `left_out` bool[B, n] marks are no candidates. A source that
    tells no two items apart for a user names none; users with few candidates get some at random.
    """
    chosen = np.zeros(left_out.shape, bool)
    for values in scores.values():
        chosen |= best_of_source(np.where(left_out, -np.inf, values), each)
    chosen &= ~left_out
    few = np.flatnonzero(chosen.sum(1) < each)
    chosen[few] |= some_others(left_out[few] | chosen[few], each - chosen[few].sum(1))
    user, item = np.nonzero(chosen)
    found = {source: np.asarray(values[user, item]) for source, values in scores.items()}
    return Candidates(user, item, found, len(left_out))


def some_others(not_these: NDArray[np.bool_], wanted: Ints) -> NDArray[np.bool_]:
    """Returns bool[B, n]: `wanted` i64[B] items of each row, in a fixed pseudo-random order."""
    order = np.argsort(hash_ints(np.arange(not_these.shape[1]), 0), kind="stable")
    free = ~not_these[:, order]
    chosen = np.zeros(not_these.shape, bool)
    chosen[:, order] = free & (np.cumsum(free, 1) <= wanted[:, None])
    return chosen


def best_of_source(values: NDArray[np.floating], each: int) -> NDArray[np.bool_]:
    """Returns bool[B, n]: the highest `each` of every row, above the row's lowest finite value."""
    known = np.isfinite(values)
    lowest = np.where(known, values, np.inf).min(1, keepdims=True)
    informative = known & (values > lowest)
    if each >= values.shape[1]:
        return informative
    top = np.argpartition(-values, each - 1, axis=1)[:, :each]
    chosen = np.zeros(values.shape, bool)
    np.put_along_axis(chosen, top, values=True, axis=1)
    return chosen & informative


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
