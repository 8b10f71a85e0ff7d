"""The final list of each user, chosen place by place from scored candidates.

A place takes the best candidate that is left: by score, or by score and unlikeness to the places
above (MMR, Carbonell and Goldstein 1998), within caps on items that share a value. With chance,
each candidate that is left has a probability, and that of the chosen one is kept: a later model
can weigh what the user did by it.

Letters: n items, B users, C candidates of a user, k places of a list, E numbers of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mtrec_ray.data.arrays import Bools, Float32s, Floats, Ints
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.project.assortment import Explore

NUMBERS_PER_BLOCK = 2**24  # of candidates' vectors, at a time


@dataclass(frozen=True)
class Cap:
    """At most `most` items of a list share a value; `codes` i64[n], -1 shares with none."""

    codes: Ints
    most: int


@dataclass(frozen=True)
class ListRules:
    """How a list is chosen: k places, the weight of diversity, chance, caps."""

    k: int
    diversity: float = 0.0
    explore: Explore = field(default_factory=Explore)
    caps: Sequence[Cap] = ()


@dataclass(frozen=True)
class Lists:
    """Final lists.

    Attributes:
        items: i64[B, k], -1 where no candidate is left.
        scores: f32[B, k], as they were given; minus infinity for none.
        propensities: f32[B, k], the probability of each item at its place given the places above;
            0 for none, 1 without chance.
    """

    items: Ints
    scores: Float32s
    propensities: Float32s


def choose_lists(
    items: Ints, scores: Float32s, users: Ints, rules: ListRules, vectors: Float32s | None = None
) -> Lists:
    """Returns the lists of users from candidates i64[B, C] (-1: none) and scores f32[B, C].

    `users` i64[B]: numbers that stand for their ids, such as hashes; with the seed they decide the
    choices. `vectors` f32[n, E] are needed for diversity only.
    """
    width = vectors.shape[1] if vectors is not None and rules.diversity else 1
    step = max(NUMBERS_PER_BLOCK // max(items.shape[1] * width, 1), 1)
    blocks = [slice(a, a + step) for a in range(0, max(len(items), 1), step)]
    parts = [_Block(items[b], scores[b], users[b], rules, vectors).fill() for b in blocks]
    columns = zip(*((p.items, p.scores, p.propensities) for p in parts), strict=True)
    return Lists(*(np.concatenate(column) for column in columns))


class _Block:
    """Lists of some users while their places are filled.

    Attributes:
        relevance: f64[B, C], scores from 0, the user's last candidate, to 1, the first.
        left: bool[B, C], candidates that may be taken.
        nearest: f64[B, C], the largest cosine with a place above; 0 with none above.
        counts: for each cap i64[B, C], places above with the candidate's value.
    """

    def __init__(
        self, items: Ints, scores: Float32s, users: Ints, rules: ListRules, vectors: Float32s | None
    ) -> None:
        self.items, self.scores, self.users, self.rules = items, scores, users, rules
        self.left = (items >= 0) & np.isfinite(scores)
        self.relevance = relevance_of(scores, self.left)
        self.codes = [np.where(self.left, cap.codes[items], -1) for cap in rules.caps]
        self.counts = [np.zeros(items.shape, np.int64) for _ in rules.caps]
        self.nearest = np.zeros(items.shape)
        self.unit: Float32s | None = None
        if rules.diversity:
            assert vectors is not None, "diversity needs vectors"
            self.unit = unit_vectors(vectors[np.maximum(items, 0)])

    def fill(self) -> Lists:
        """Returns the lists, filled from the first place on."""
        num = len(self.items)
        chosen = Lists(
            np.full((num, self.rules.k), -1),
            np.full((num, self.rules.k), -np.inf, np.float32),
            np.zeros((num, self.rules.k), np.float32),
        )
        rows = np.arange(num)
        for place in range(self.rules.k if self.items.shape[1] else 0):
            probabilities = choice_probabilities(self.values(place), self.left, self.rules.explore)
            taken = draw(probabilities, self.users, place, self.rules.explore.seed)
            some = self.left.any(1)
            chosen.items[some, place] = self.items[rows, taken][some]
            chosen.scores[some, place] = self.scores[rows, taken][some]
            chosen.propensities[:, place] = probabilities[rows, taken]
            self.take(taken, first=place == 0)
        return chosen

    def values(self, place: int) -> Floats:
        """Returns f64[B, C]: what a place goes by; the first place goes by score alone."""
        weight = self.rules.diversity if place else 0.0
        return (1 - weight) * self.relevance - weight * self.nearest

    def take(self, taken: Ints, *, first: bool) -> None:
        """Note that each user's candidate i64[B] was taken."""
        rows = np.arange(len(taken))
        self.left[rows, taken] = False
        for cap, codes, counts in zip(self.rules.caps, self.codes, self.counts, strict=True):
            counts += (codes == codes[rows, taken][:, None]) & (codes >= 0)
            self.left &= counts < cap.most
        if self.unit is not None:
            cosines = (self.unit @ self.unit[rows, taken][:, :, None])[..., 0]
            self.nearest = cosines if first else np.maximum(self.nearest, cosines)


def relevance_of(scores: Float32s, there: Bools) -> Floats:
    """Returns f64[B, C]: scores from 0, the lowest of the row's candidates, to 1, the highest.

    All are 0 where they do not differ.
    """
    low = np.where(there, scores, np.inf).min(1, keepdims=True, initial=np.inf).astype(np.float64)
    high = np.where(there, scores, -np.inf).max(1, keepdims=True, initial=-np.inf)
    span = np.where(there.any(1, keepdims=True), high - low, 0)
    raised = np.where(there, scores - np.where(np.isfinite(low), low, 0), 0)
    return raised / np.where(span > 0, span, 1)


def unit_vectors(vectors: Float32s) -> Float32s:
    """Returns f32[.., E] of length 1; a vector of zeros stays."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def choice_probabilities(values: Floats, left: Bools, explore: Explore) -> Floats:
    """Returns f64[B, C]: with which probability a place takes each candidate that is left.

    Without chance the best has 1. Rows sum to 1, or to 0 where nothing is left.
    """
    if explore.way == "softmax":
        best = np.where(left, values, -np.inf).max(1, keepdims=True)
        powers = np.where(left, values - np.where(np.isfinite(best), best, 0), -np.inf)
        weights = np.exp(powers / explore.temperature)
        return weights / np.maximum(weights.sum(1, keepdims=True), 1)  # the best weighs 1
    epsilon = explore.epsilon if explore.way == "epsilon" else 0.0
    best = np.where(left, values, -np.inf).argmax(1)
    chosen = (np.arange(values.shape[1]) == best[:, None]) & left
    return epsilon * left / np.maximum(left.sum(1, keepdims=True), 1) + (1 - epsilon) * chosen


def draw(probabilities: Floats, users: Ints, place: int, seed: int) -> Ints:
    """Returns i64[B]: a candidate of each row f64[B, C], by its probability.

    The draw depends on the user, the place and the seed alone. Drawing places one after another
    without putting back is Plackett-Luce, as with Gumbel noise on the scores.
    """
    whole = np.cumsum(probabilities, 1)
    mark = uniform(users, place, seed)[:, None] * whole[:, -1:]
    return np.minimum((whole <= mark).sum(1), probabilities.shape[1] - 1)


def uniform(users: Ints, place: int, seed: int) -> Floats:
    """Returns f64[B] in [0, 1): a number for each user, place and seed."""
    mixed = hash_ints(hash_ints(users, seed).view(np.int64), place)
    return (mixed >> np.uint64(12)).astype(np.float64) * 2.0**-52
