"""Items that the same people took: EASE and cosine neighbours against their definitions."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from mtrec_ray.candidates import item_item
from mtrec_ray.candidates.item_item import RIDGE, SHRINKAGE, Ease, ItemKnn


@pytest.fixture
def taken():
    """Who took what: 60 users, 9 items, of which nobody took the last."""
    found = (np.random.default_rng(0).random((60, 9)) < 0.3).astype(np.float32)
    found[:, 8] = 0
    return found


def test_ease_is_the_ridge_regression_without_the_item_itself(taken):
    """Each column of EASE's weights minimises the squared error of that item from the others."""
    ease = Ease.fit(csr_array(taken))
    assert ease.inputs.tolist() == list(range(8))
    for item in range(8):
        others = [i for i in range(8) if i != item]
        x, y = taken[:, others].astype(np.float64), taken[:, item]
        wanted = np.linalg.solve(x.T @ x + RIDGE * np.eye(7), x.T @ y)
        assert ease.weights[others, item] == pytest.approx(wanted, abs=1e-5)
        assert ease.weights[item, item] == 0


def test_only_the_most_frequent_items_are_dense(taken, monkeypatch):
    """With room for four items EASE takes the four that most users took."""
    monkeypatch.setattr(item_item, "EASE_ITEMS", 4)
    frequent = np.argsort(-taken.sum(0), kind="stable")[:4]
    assert Ease.fit(csr_array(taken)).inputs.tolist() == sorted(frequent.tolist())


def test_neighbours_are_shrunk_cosines(taken):
    """A score is the sum of shrunk cosines with the items of the user, without the item itself."""
    knn = ItemKnn.fit(csr_array(taken))
    common, count = taken.T @ taken, taken.sum(0)
    cosine = common / (np.sqrt(np.outer(count, count)) + SHRINKAGE)
    np.fill_diagonal(cosine, 0)
    assert knn.scores(csr_array(taken[:5])).toarray() == pytest.approx(taken[:5] @ cosine, abs=1e-5)


def test_few_neighbours_are_the_nearest(taken, monkeypatch):
    """Each item keeps its nearest neighbours, found in blocks of items as in one."""
    whole = ItemKnn.fit(csr_array(taken)).weights.toarray()
    monkeypatch.setattr(item_item, "NEIGHBOURS", 3)
    monkeypatch.setattr(item_item, "ITEMS_PER_BLOCK", 4)
    few = ItemKnn.fit(csr_array(taken)).weights.toarray()
    for item in range(8):
        nearest = np.sort(whole[:, item])[-3:]
        assert np.sort(few[:, item])[-3:] == pytest.approx(nearest)
        assert (few[:, item] > 0).sum() <= 3


def test_some_outputs_are_a_part_of_all(taken):
    """Scores of some items are those columns of the scores of all."""
    rows, output = csr_array(taken[:7]), slice(3, 9)
    knn, ease = ItemKnn.fit(csr_array(taken)), Ease.fit(csr_array(taken))
    wanted = knn.scores(rows).toarray()[:, output]
    assert knn.only(output).scores(rows).toarray() == pytest.approx(wanted)
    some = ease.only(output)
    assert some.scores(rows) == pytest.approx(ease.scores(rows)[:, 3:])
    assert some.outputs.tolist() == [0, 1, 2, 3, 4]
    assert some.num_items == 6


@pytest.mark.parametrize("block", [7, 16_384])
def test_pairs_are_entries_of_the_scores_of_all(taken, monkeypatch, block):
    """A pair's score is the same, made by itself or with those of all items."""
    monkeypatch.setattr(item_item, "PAIRS_PER_BLOCK", block)
    monkeypatch.setattr(item_item, "EASE_ITEMS", 6)
    users = csr_array(taken[:20] * np.float32(0.5))
    user, item = np.repeat(np.arange(20), 9), np.tile(np.arange(9), 20)
    knn, ease = ItemKnn.fit(csr_array(taken)), Ease.fit(csr_array(taken))
    assert knn.of_pairs(users, user, item) == pytest.approx(
        knn.scores(users).toarray().ravel(), abs=1e-6
    )
    whole = np.zeros((20, 9), np.float32)
    whole[:, ease.outputs] = ease.scores(users)
    assert ease.of_pairs(users, user, item) == pytest.approx(whole.ravel(), abs=1e-6)
    none = np.zeros(0, int)
    assert len(knn.of_pairs(users, none, none)) == len(ease.of_pairs(users, none, none)) == 0
