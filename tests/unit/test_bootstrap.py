"""Intervals by resampled users: weighted metrics, pairing, coverage."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, root_mean_squared_error

from mtrec_ray.evaluation import bootstrap
from mtrec_ray.evaluation.bootstrap import (
    METRICS,
    NUM_RESAMPLES,
    draw_users,
    interval,
    metric_interval,
    paired_difference,
)
from mtrec_ray.evaluation.metrics import grouped_auc

METRIC_NAMES = ["auc", "gauc", "rmse"]


def some_rows(num_users=30, num_rows=400, seed=0):
    """Labels, scores with ties, and users that differ in their rate."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, num_users, num_rows)
    rate = 1 / (1 + np.exp(-rng.normal(size=num_users)))
    labels = (rng.random(num_rows) < rate[users]).astype(float)
    scores = np.round(rng.normal(size=num_rows) + labels, 1)
    return labels, scores, users


def repeated(labels, scores, users, weights):
    """The rows of a resample, written out: each user as often as drawn, each time another user."""
    parts = [
        (labels[users == u], scores[users == u], np.full((users == u).sum(), 1000 * u + k))
        for u, times in enumerate(weights.astype(int))
        for k in range(times)
    ]
    return [np.concatenate(p) for p in zip(*parts, strict=True)]


def plain_metric(metric, labels, scores, users):
    """A metric by scikit-learn, or of the rows as they are."""
    if metric == "auc":
        return roc_auc_score(labels, scores)
    if metric == "gauc":
        return grouped_auc(labels, scores, users)[0]
    return root_mean_squared_error(labels, scores)


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_resampled_metric_is_that_of_the_repeated_rows(metric):
    """A metric under weights equals that of rows which repeat each user as often as drawn."""
    rows = some_rows()
    weights = np.concatenate(list(draw_users(30, seed=1, resamples=5)))
    found = METRICS[metric](*rows)(weights)
    wanted = [plain_metric(metric, *repeated(*rows, w)) for w in weights]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_draws_are_of_as_many_users():
    """Each resample has as many users as there are, some more than once and some never."""
    weights = np.concatenate(list(draw_users(50, seed=0)))
    assert weights.shape == (NUM_RESAMPLES, 50)
    assert (weights.sum(1) == 50).all()
    assert (weights == 0).any()
    assert (weights > 1).any()


@pytest.mark.parametrize("cells", [1, 120, 10_000])
def test_blocks_do_not_change_the_draws(monkeypatch, cells):
    """Whatever the size of the blocks, the seed fixes the weights; no block is larger."""
    whole = np.random.default_rng(4).multinomial(50, np.full(50, 1 / 50), size=NUM_RESAMPLES)
    monkeypatch.setattr(bootstrap, "BLOCK_CELLS", cells)
    blocks = list(draw_users(50, seed=4))
    assert all(block.size <= max(cells, 50) for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_intervals_do_not_depend_on_blocks(monkeypatch, metric):
    """An interval of resamples one by one is that of all of them together."""
    rows = some_rows()
    whole = metric_interval(metric, *rows)
    monkeypatch.setattr(bootstrap, "BLOCK_CELLS", 1)
    one_by_one = metric_interval(metric, *rows)
    assert (one_by_one.low, one_by_one.high) == pytest.approx((whole.low, whole.high))


def test_memory_does_not_grow_with_the_resamples():
    """Of 200,000 users an interval takes some weights a user, not one for each resample."""
    users = np.arange(200_000)
    labels, scores = (users % 2).astype(float), (users % 7).astype(float)
    tracemalloc.start()
    metric_interval("rmse", labels, scores, users)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6  # 200 resamples of 8 bytes are 320e6, and as much in integers


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_interval_holds_the_value(metric):
    """The value is that of all rows, and the interval lies around it."""
    labels, scores, users = some_rows()
    found = metric_interval(metric, labels, scores, users + 7)
    assert found.value == pytest.approx(plain_metric(metric, labels, scores, users))
    assert found.low < found.value < found.high


def test_interval_covers_the_truth():
    """Of 60 samples of one population, the 95 % interval holds its AUC in 50 at least."""
    truth = metric_interval("auc", *some_rows(20_000, 200_000, seed=99)).value
    found = [metric_interval("auc", *some_rows(150, 1500, seed)) for seed in range(60)]
    assert sum(f.low <= truth <= f.high for f in found) >= 50


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_a_model_does_not_differ_from_itself(metric):
    """The paired difference of equal scores is zero, with an interval of no width."""
    labels, scores, users = some_rows()
    found = paired_difference(metric, labels, [scores], [scores, scores], users)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert not found.excludes_zero


def test_pairing_tells_a_small_difference():
    """A little noise on the scores is told from none by pairs, where single intervals overlap."""
    labels, _, users = some_rows(300, 6000)
    rng = np.random.default_rng(3)
    good = labels + rng.normal(size=len(labels))
    worse = good + 0.5 * rng.normal(size=len(labels))
    alone = [metric_interval("auc", labels, s, users) for s in (good, worse)]
    assert alone[0].low < alone[1].high
    found = paired_difference("auc", labels, [good], [worse], users)
    assert found.excludes_zero
    assert found.value == pytest.approx(alone[0].value - alone[1].value)


def test_a_seed_more_is_averaged():
    """A model with two seeds has the mean of their metrics."""
    labels, scores, users = some_rows()
    other = scores + 1.5 * labels
    single = [paired_difference("auc", labels, [s], [scores], users).value for s in (scores, other)]
    both = paired_difference("auc", labels, [scores, other], [scores], users).value
    assert both == pytest.approx(np.mean(single))


def test_no_interval_without_both_classes():
    """A metric that no resample has is NaN with a NaN interval."""
    found = metric_interval("auc", np.ones(9), np.arange(9.0), np.arange(9))
    assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(interval(np.array([np.nan]), 0.5).low)
