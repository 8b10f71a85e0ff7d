"""Recall and NDCG over the catalogue, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.evaluation.catalogue_ranking import (
    cold_recall,
    list_statistics,
    ranking_metrics,
)
from mtrec_ray.stages.lists import slices_of


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
    found = ranking_metrics(
        np.argsort(-scores, 1)[:, :10], [np.flatnonzero(row) for row in relevant]
    )
    assert found["ndcg"] == pytest.approx(ndcg_score(relevant, scores, k=10))


def test_first_hit_is_the_reciprocal_rank():
    """MRR is 1 / rank of the first hit, 0 without one."""
    best = np.array([[7, 1, 5], [2, 3, 4]])
    assert ranking_metrics(best, [np.array([5]), np.array([8])])["mrr"] == pytest.approx(1 / 6)


def test_statistics_of_lists_by_hand():
    """Coverage, Gini, novelty and the shares of new and popular items of two lists of two."""
    best, popularity = np.array([[0, 1], [0, -1]]), np.array([7.0, 0, 0, 0])
    known, vectors = popularity > 0, np.eye(4, dtype=np.float32)
    found = list_statistics(best, popularity, known, vectors)
    assert found["coverage"] == 0.5
    assert found["gini"] == pytest.approx((1 * -3 * 0 - 1 * 0 + 1 * 1 + 3 * 2) / (4 * 3))
    assert found["novelty"] == pytest.approx(-np.log2([8 / 11, 8 / 11, 1 / 11]).mean())
    assert found["diversity"] == pytest.approx(1)
    assert found["new_items"] == pytest.approx(1 / 3)
    assert found["popular_items"] == pytest.approx(2 / 3)


def test_cold_recall_is_of_items_that_training_lacks():
    """Only positives without a training row count, over the users who have some."""
    known = np.array([True, False, False])
    positives = [np.array([0, 1]), np.array([0]), np.array([1, 2])]
    assert cold_recall(np.array([[0, 1], [0, 1], [0, 1]]), positives, known) == 0.75


def test_users_without_a_past_stand_apart():
    """Slices hold the means of their users, of the lists and of the best source."""
    none = np.zeros((3, 1), np.float32)
    history = np.array([[4, -1], [-1, -1], [-1, -1]])
    asking = UserSnapshot(
        np.array(["a", "b", "c"], object), np.arange(3), np.zeros(3, int), np.array([1, 2, 0]),
        history, history, none,
    )  # fmt: skip
    users = {
        "model": {"recall": np.array([0.0, 1, 0])},
        "ease": {"recall": np.array([1.0, 0, 0.5])},
    }
    found = slices_of(asking, users, {"recall": {"rival": "ease"}})
    assert found["no_history"] == {"users": 2, "recall": 0.5, "rival_recall": 0.25}
    assert found["new_users"] == {"users": 1, "recall": 0, "rival_recall": 0.5}
    assert (
        slices_of(asking.of(0, 1), {k: {"recall": v["recall"][:1]} for k, v in users.items()}, {})
        == {}
    )
