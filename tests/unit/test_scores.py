"""What sources say of users: the best of all items, or nearly so by an index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from mtrec_ray.candidates import search_index
from mtrec_ray.candidates.candidates import choose
from mtrec_ray.candidates.popularity import RecentPopularity, TotalPopularity
from mtrec_ray.candidates.scores import (
    LATEST,
    Hidden,
    NearestScores,
    SparseScores,
    TableScores,
    VectorScores,
    distinct_best,
    first_shown,
)
from mtrec_ray.candidates.search_index import COMPONENTS, SearchIndex
from mtrec_ray.candidates.shards import IndexOptions
from mtrec_ray.candidates.sources import Texts
from mtrec_ray.data.interactions import Interactions

B, N = 4, 30


def random_hidden(rng):
    """Items that users met, that nobody is shown, and that are not published yet."""
    met = np.nonzero(rng.random((B, N)) < 0.2)
    return Hidden(met, rng.random(N) < 0.8, rng.integers(0, 120, N), np.full(B, 100))


def unit(rng, *shape):
    """Random vectors of length 1."""
    found = rng.normal(size=shape).astype("f4")
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def each_kind(rng):
    """A source of every kind, and whether 0 says nothing."""
    items, history = unit(rng, N, 8), rng.integers(-1, N, (B, 5))
    sparse = np.where(rng.random((B, N)) < 0.3, rng.random((B, N)), 0).astype("f4")
    log = Interactions(
        rng.integers(0, B, 60), rng.integers(0, N, 60), np.sort(rng.integers(0, 100, 60)),
        np.zeros(60, np.int8), np.ones(60, bool), N,
    )  # fmt: skip
    return {
        "sparse": (SparseScores(csr_array(sparse)), True),
        "some": (
            TableScores(rng.normal(size=(B, 9)).astype("f4"), np.arange(0, 27, 3), 0),
            True,
        ),
        "vectors": (VectorScores(unit(rng, B, 8), items), False),
        "nearest": (NearestScores(history[:, :LATEST], items), False),
        "popularity": (TotalPopularity.of(log).scores(B), True),
        "recent": (RecentPopularity.of(log).scores(np.array([100, 50, 50, 7]), 7), True),
    }


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_the_best_are_those_of_all_pairs(seed, num):
    """Every kind of source names the highest of its own scores among what the user is shown."""
    rng = np.random.default_rng(seed)
    hidden = random_hidden(rng)
    user, item = np.repeat(np.arange(B), N), np.tile(np.arange(N), B)
    shown = ~hidden.of(user, item).reshape(B, N)
    assert (shown == ~hidden.table(np.arange(N), B)).all()
    for kind, (scores, zero_is_nothing) in each_kind(rng).items():
        table = scores.at(user, item).reshape(B, N)
        best = scores.best(num, hidden)
        for own, values, allowed in zip(best, table, shown, strict=True):
            named = own[own >= 0]
            assert allowed[named].all(), kind
            counts = allowed & ((values > 0) if zero_is_nothing else (np.ptp(values) > 0))
            wanted = np.sort(values[counts])[::-1][:num]
            assert values[named] == pytest.approx(wanted, abs=1e-6), kind


def large(rng, num, width):
    """Vectors in clusters, along few directions as texts are, and what an index must find."""
    centres, falling = unit(rng, 40, width), 0.95 ** np.arange(width)
    vectors = centres[rng.integers(0, 40, num)] * falling + 0.1 * unit(rng, num, width) * falling
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("f4")
    return vectors, IndexOptions(exact_up_to=100, recall=0.99)


def test_an_index_finds_what_scoring_all_finds():
    """Of a large catalogue nearly all of the best are found; none that is hidden."""
    rng = np.random.default_rng(0)
    vectors, options = large(rng, 5000, 2 * COMPONENTS)
    allowed = rng.random(5000) < 0.5
    index = SearchIndex.of(vectors, allowed, options)
    assert index is not None
    assert index.components is not None
    users, history = vectors[:50], rng.integers(0, 5000, (50, 3))
    met = (np.repeat(np.arange(50), 20), rng.integers(0, 5000, 1000))
    hidden = Hidden(met, allowed, np.zeros(5000, int), None)
    for found, exact in (
        (VectorScores(users, vectors, index), VectorScores(users, vectors)),
        (NearestScores(history, vectors, index), NearestScores(history, vectors)),
    ):
        best, wanted = found.best(20, hidden), exact.best(20, hidden)
        shares = [np.isin(w, b).mean() for w, b in zip(wanted, best, strict=True)]
        assert np.mean(shares) > 0.9
        assert not hidden.of(np.repeat(np.arange(50), 20), best.ravel().clip(0)).any()


def test_main_components_say_nearly_what_whole_texts_say(monkeypatch):
    """Of a large catalogue, and of what lies beside it, few numbers of each text are kept."""
    monkeypatch.setattr(search_index, "EXACT_UP_TO", 100)
    rng = np.random.default_rng(0)
    vectors, _ = large(rng, 5000, 2 * COMPONENTS)
    unit = {"shop": vectors, "news": vectors[:50]}
    texts = Texts.of(unit, "shop")
    assert texts.index is not None
    assert all(own.shape[1] == COMPONENTS for own in texts.vectors.values())
    for name, own in unit.items():
        cosines, found = own[:40] @ vectors.T, texts.vectors[name][:40] @ texts.vectors["shop"].T
        assert np.corrcoef(cosines.ravel(), found.ravel())[0, 1] > 0.99
    items, _ = texts.index.search(texts.vectors["shop"][:40], 1)
    assert (items[:, 0] == np.arange(40)).mean() > 0.9
    assert Texts.of({"shop": vectors[:100]}, "shop").index is None


def ruled(rng, vectors, allowed):
    """What a rule on the items of a large catalogue hides, and items that users have met."""
    num = len(vectors)
    anything, none = np.ones(num, bool), np.zeros(num, int)
    met = (np.repeat(np.arange(20), 30), rng.integers(0, num, 600))
    share = float(allowed.mean())
    assert (share < 1) == (allowed != anything).any()
    return Hidden(met, allowed, none, None, share)


@pytest.mark.parametrize(("allowed", "up_to"), [(3, 100), (60, 100), (400, 100), (4000, 1000)])
def test_a_rule_on_a_large_catalogue_leaves_the_best_that_pass(allowed, up_to, monkeypatch):
    """The items that a rule lets pass are far from the users: an index alone finds hardly one."""
    monkeypatch.setattr(search_index, "EXACT_UP_TO", up_to)
    rng = np.random.default_rng(3)
    vectors, options = large(rng, 5000, 16)
    index = SearchIndex.of(vectors, None, options)
    users, history = vectors[:20], np.tile(np.arange(20)[:, None], (1, 3))
    far = np.zeros(5000, bool)
    far[np.argsort((users @ vectors.T).max(0))[:allowed]] = True
    hidden, num = ruled(rng, vectors, far), 40
    short = index.search(users, num)[0]
    assert far[short].mean() < 0.2
    for found, exact in (
        (VectorScores(users, vectors, index), VectorScores(users, vectors)),
        (NearestScores(history, vectors, index), NearestScores(history, vectors)),
    ):
        best, wanted = found.best(num, hidden), exact.best(num, hidden)
        assert ((best >= 0).sum(1) == (wanted >= 0).sum(1)).all()
        assert not hidden.of(np.repeat(np.arange(20), num)[best.ravel() >= 0],
                             best.ravel()[best.ravel() >= 0]).any()  # fmt: skip
        if allowed <= 400:  # all that pass are scored
            np.testing.assert_array_equal(best, wanted)


def test_the_only_item_that_passes_is_named():
    """It has no other to be told apart from; of users who are told nothing it is not named."""
    rng = np.random.default_rng(4)
    vectors, options = large(rng, 2000, 16)
    index = SearchIndex.of(vectors, None, options)
    hidden = ruled(rng, vectors, np.arange(2000) == 1234)
    users = np.stack([vectors[0], np.zeros(16, "f4")])
    history = np.array([[0, 1], [-1, -1]])
    for scores in (VectorScores(users, vectors, index), NearestScores(history, vectors, index)):
        assert scores.best(2, hidden).tolist() == [[1234, -1], [-1, -1]]


def test_a_long_list_is_filled(monkeypatch):
    """Users have as many candidates as a list is long, where so many items pass."""
    monkeypatch.setattr(search_index, "EXACT_UP_TO", 100)
    rng = np.random.default_rng(5)
    vectors, options = large(rng, 2000, 16)
    index, allowed = SearchIndex.of(vectors, None, options), np.arange(2000) % 4 == 0
    hidden = ruled(rng, vectors, allowed)
    scores = {"retrieval": VectorScores(vectors[:20], vectors, index)}
    for least, wanted in ((0, 100), (180, 180), (10**6, 500)):
        found = choose(scores, hidden, 20, least=least)
        size = np.bincount(found.user, minlength=20)
        free = 500 - np.bincount(hidden.met[0][allowed[hidden.met[1]]], minlength=20)
        assert (size >= np.minimum(wanted, free)).all()
        assert allowed[found.item].all()


def test_a_small_catalogue_has_no_index():
    """Up to `exact_up_to` all items are scored."""
    assert SearchIndex.of(np.eye(50, dtype="f4"), None, IndexOptions(exact_up_to=50)) is None


def test_users_without_a_vector_are_told_nothing():
    """Neither by scoring all nor by an index."""
    rng = np.random.default_rng(1)
    vectors, options = large(rng, 2000, 16)
    none = np.zeros(0, int)
    hidden = Hidden((none, none), np.ones(2000, bool), np.zeros(2000, int), None)
    for index in (None, SearchIndex.of(vectors, None, options)):
        nothing = np.zeros((2, 16), "f4")
        assert (VectorScores(nothing, vectors, index).best(5, hidden) == -1).all()
        history = np.full((2, 4), -1)
        assert (NearestScores(history, vectors, index).best(5, hidden) == -1).all()


def test_an_item_is_named_once():
    """Of equal items the one with the highest score stays."""
    items, scores = np.array([[3, 5, 3, -1]]), np.array([[0.1, 0.2, 0.9, -np.inf]], "f4")
    assert distinct_best(items, scores).tolist() == [[3, 5, -1, -1]]


def test_the_first_that_a_user_is_shown():
    """Hidden items and gaps are skipped, the order stays."""
    met = (np.array([1]), np.array([4]))
    hidden = Hidden(met, np.arange(6) != 2, np.zeros(6, int), None)
    items = np.array([[2, 4, -1, 5], [4, -1, 3, 5]])
    found = first_shown(items, np.array([0, 1]), 2, hidden)
    assert found.tolist() == [[4, 5], [3, 5]]
