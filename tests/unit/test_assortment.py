"""Final lists: caps hold, diversity is MMR, logged probabilities are those of the choice."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.candidates import assortment
from mtrec_ray.candidates.assortment import (
    Cap,
    ListRules,
    choice_probabilities,
    choose_lists,
    relevance_of,
    unit_vectors,
)
from mtrec_ray.project.assortment import Explore

NUM, USERS, C, WIDTH = 60, 7, 20, 5
WAYS = [
    Explore(),
    Explore(way="epsilon", epsilon=0.3),
    Explore(way="softmax", temperature=0.3),
]
NAMES = [explore.way for explore in WAYS]


def candidates(seed: int = 0, users: int = USERS):
    """Items i64[B, C] and scores f32[B, C], best first; each user but the first has fewer."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(NUM)[:C] for _ in range(users)])
    scores = -np.sort(-rng.normal(size=(users, C)), 1).astype(np.float32)
    gone = np.arange(C) >= C - np.minimum(np.arange(users), C)[:, None]
    return np.where(gone, -1, items), np.where(gone, np.float32(-np.inf), scores)


VECTORS = np.random.default_rng(3).normal(size=(NUM, WIDTH)).astype(np.float32)
CODES = np.random.default_rng(4).integers(-1, 6, NUM)
PEOPLE = np.random.default_rng(5).integers(-(2**62), 2**62, USERS)


def naive_mmr(items, scores, weight: float, k: int) -> list[int]:
    """The items of one user, as the formula of MMR says, with scores from 0 to 1."""
    pool = [(int(i), float(s)) for i, s in zip(items, scores, strict=True) if i >= 0]
    low, high = min(s for _, s in pool), max(s for _, s in pool)
    chosen: list[int] = []
    while pool and len(chosen) < k:

        def value(pair):
            own = VECTORS[pair[0]] / np.linalg.norm(VECTORS[pair[0]])
            alike = [own @ VECTORS[j] / np.linalg.norm(VECTORS[j]) for j in chosen]
            score = (pair[1] - low) / (high - low)
            return (1 - weight) * score - weight * max(alike) if alike else score

        best = max(pool, key=value)
        pool.remove(best)
        chosen.append(best[0])
    return chosen + [-1] * (k - len(chosen))


def test_without_rules_lists_are_the_first_candidates():
    """The first k candidates, with their scores, each with probability 1."""
    items, scores = candidates()
    lists = choose_lists(items, scores, PEOPLE, ListRules(16))
    np.testing.assert_array_equal(lists.items, items[:, :16])
    np.testing.assert_array_equal(lists.scores, scores[:, :16])
    np.testing.assert_array_equal(lists.propensities, items[:, :16] >= 0)


@pytest.mark.parametrize("weight", [0.2, 0.7, 1.0])
def test_diversity_is_mmr(weight):
    """Lists of all users at once are those of the formula, user by user."""
    items, scores = candidates()
    lists = choose_lists(items, scores, PEOPLE, ListRules(18, diversity=weight), VECTORS)
    wanted = [naive_mmr(i, s, weight, 18) for i, s in zip(items, scores, strict=True)]
    np.testing.assert_array_equal(lists.items, wanted)


def test_more_diversity_is_less_alike():
    """The mean cosine of two items of a list falls with the weight."""
    items, scores = candidates()
    unit = unit_vectors(VECTORS)

    def alike(weight: float) -> float:
        chosen = choose_lists(items, scores, PEOPLE, ListRules(6, weight), VECTORS).items
        return float(np.mean([(unit[row] @ unit[row].T).mean() for row in chosen]))

    assert alike(0.0) > alike(0.5) > alike(0.9)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from(WAYS),
    st.sampled_from([0.0, 0.4]),
)
def test_caps_hold_for_all_users(seed, most, k, explore, weight):
    """No list has more of a value than its cap, nor an item twice, nor an empty place too many."""
    items, scores = candidates(seed)
    rules = ListRules(k, weight, explore, [Cap(CODES, most), Cap(np.arange(NUM) % 9, 2)])
    chosen = choose_lists(items, scores, PEOPLE + seed, rules, VECTORS).items
    for row, pool in zip(chosen, items, strict=True):
        there = row[row >= 0]
        assert set(there) <= set(pool)
        assert len(set(there)) == len(there)
        assert (row[len(there) :] == -1).all()
        counts = [np.bincount(CODES[there][CODES[there] >= 0], minlength=6), np.bincount(there % 9)]
        assert counts[0].max(initial=0) <= most
        assert counts[1].max(initial=0) <= 2
        if len(there) < k:  # whatever is left is capped
            rest = np.setdiff1d(pool[pool >= 0], there)
            full = [np.isin(CODES[rest], np.flatnonzero(counts[0] >= most))]
            full.append(np.isin(rest % 9, np.flatnonzero(counts[1] >= 2)))
            assert np.logical_or(*full).all()


@pytest.mark.parametrize("explore", WAYS, ids=NAMES)
def test_probabilities_of_a_place_sum_to_one(explore):
    """Over the candidates that are left; where none is, to 0."""
    items, scores = candidates(users=C + 1)
    left = (items >= 0) & (np.arange(C) != 1)
    sums = choice_probabilities(relevance_of(scores, items >= 0), left, explore).sum(1)
    np.testing.assert_allclose(sums, left.any(1), atol=1e-12)
    assert sums[-1] == 0


@pytest.mark.parametrize("explore", WAYS[1:], ids=NAMES[1:])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_probabilities_are_the_frequencies(explore, weight):
    """Over 20,000 users with the same candidates, an item stands at a place as often as logged.

    Each of the first two places is compared given the places above; tolerance: 5 standard errors.
    """
    many = 20_000
    items, scores = (np.repeat(part[:1, :6], many, 0) for part in candidates())
    rules = ListRules(2, weight, explore, [Cap(CODES, 1)])
    lists = choose_lists(items, scores, np.arange(many), rules, VECTORS)
    compared = 0
    for above in [(), *((i,) for i in items[0])]:
        same = (lists.items[:, : len(above)] == above).all(1)
        own, logged = lists.items[same, len(above)], lists.propensities[same, len(above)]
        for item in np.unique(own[own >= 0]):
            (p,) = np.unique(logged[own == item])
            error = 5 * np.sqrt(p * (1 - p) / same.sum())
            assert abs((own == item).mean() - p) <= error + 1e-6
            compared += 1
    assert compared > 15


def test_softmax_is_plackett_luce():
    """The probability of a place is exp(score / temperature) over the sum of those left."""
    items, scores = candidates()
    lists = choose_lists(items, scores, PEOPLE, ListRules(5, explore=WAYS[2]))
    weight = np.exp(relevance_of(scores, items >= 0) / 0.3) * (items >= 0)
    for user in range(USERS):
        left = weight[user].copy()
        for place in range(5):
            at = np.flatnonzero(items[user] == lists.items[user, place])[0]
            assert lists.propensities[user, place] == pytest.approx(left[at] / left.sum(), rel=1e-5)
            left[at] = 0


@pytest.mark.parametrize("explore", WAYS[1:], ids=NAMES[1:])
def test_choices_are_the_users_own(monkeypatch, explore):
    """The same user and seed give the same list, whoever else is in the block and how large."""
    items, scores = candidates()
    rules = ListRules(8, 0.3, explore, [Cap(CODES, 2)])
    whole = choose_lists(items, scores, PEOPLE, rules, VECTORS)
    monkeypatch.setattr(assortment, "NUMBERS_PER_BLOCK", 1)
    turned = choose_lists(items[::-1], scores[::-1], PEOPLE[::-1], rules, VECTORS)
    for one, other in zip(astuple(whole), astuple(turned), strict=True):
        np.testing.assert_allclose(one, other[::-1], rtol=1e-6)
    other_seed = ListRules(8, 0.3, explore.model_copy(update={"seed": 1}), rules.caps)
    assert (choose_lists(items, scores, PEOPLE, other_seed, VECTORS).items != whole.items).any()


@pytest.mark.parametrize("explore", WAYS, ids=NAMES)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nobody_and_nothing(explore, shape):
    """No user, or users without a candidate, have empty lists."""
    none = np.full(shape, -1)
    rules = ListRules(2, explore=explore)
    lists = choose_lists(none, none.astype("f4"), np.arange(shape[0]), rules)
    assert lists.items.shape == (shape[0], 2)
    assert (lists.items == -1).all()
    assert not lists.propensities.any()
