"""Recall and NDCG over the catalogue, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.evaluation.catalogue_ranking import neighbours, ranking_metrics, top
from mtrec_ray.stages.ranker import seen_mask


def test_recall_and_ndcg_by_hand():
    """Two of three positives at ranks 1 and 3; none of one."""
    best = np.array([[7, 1, 5], [2, 3, 4]])
    found = ranking_metrics(best, [np.array([5, 7, 9]), np.array([8])])
    assert found["recall"] == pytest.approx((2 / 3 + 0) / 2)
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert found["ndcg"] == pytest.approx((1 + 1 / 2) / ideal / 2)


def test_ndcg_is_scikit_learns():
    """NDCG at 10 of random rankings is scikit-learn's of the same scores."""
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=(30, 50)), rng.random((30, 50)) < 0.1
    relevant[:, 0] = True
    found = ranking_metrics(top(scores, 10), [np.flatnonzero(row) for row in relevant])
    assert found["ndcg"] == pytest.approx(ndcg_score(relevant, scores, k=10))


def test_left_out_items_are_no_hits():
    """An item with the score minus infinity is not ranked, however few are left."""
    scores = np.array([[0.1, -np.inf, 0.3, -np.inf]])
    assert top(scores, 3).tolist() == [[2, 0, -1]]


def test_neighbours_are_like_the_mean():
    """The score is the cosine-weighted likeness to the mean of the history; 0 without one."""
    vectors = np.eye(4, dtype=np.float32)
    found = neighbours(vectors, np.array([[1, 2, -1], [-1, -1, -1]]))
    assert found.tolist() == [[0, 0.5, 0.5, 0], [0, 0, 0, 0]]


def test_marks_of_seen_items():
    """What each user has seen is marked in their row; others' rows are not."""
    person = np.array([30, 10, 20])
    none = np.full((3, 1), -1)
    users = UserSnapshot(
        np.array(["c", "a", "b"], object), person, np.ones(3, int), none, none,
        np.zeros((3, 2), np.float32),
    )  # fmt: skip
    found = seen_mask(users, (np.array([10, 30, 99, 10]), np.array([0, 2, 1, 3])), 4)
    assert found.tolist() == [
        [False, False, True, False], [True, False, False, True], [False] * 4
    ]  # fmt: skip
