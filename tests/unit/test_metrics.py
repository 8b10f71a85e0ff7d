"""Metrics are scikit-learn's, GAUC is a mean of per-user AUCs, the joint score knows no lambda."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    log_loss,
    mean_absolute_error,
    mean_poisson_deviance,
    mean_squared_error,
    roc_auc_score,
    root_mean_squared_log_error,
)

from mtrec_ray.evaluation.metrics import (
    EPSILON,
    binary_metrics,
    grouped_auc,
    joint_score,
    mean_task_score,
    positive_metrics,
    regression_metrics,
    row_losses,
    scenario_scores,
    task_score,
)
from mtrec_ray.project.load import parse_project

# Three users, interleaved. User 7: AUC 1 of 3 rows. User 3: AUC 0 of 2 rows. User 5: its positive
# (0.5) ties with one negative, beats one and loses to one: AUC (0.5 + 1 + 0) / 3 = 0.5 of 4 rows.
USERS = np.array([7, 3, 5, 7, 5, 3, 5, 7, 5])
LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=np.float64)
SCORES = np.array([0.9, 0.2, 0.5, 0.5, 0.5, 0.8, 0.1, 0.1, 0.9])

SCENARIO = {
    "items": {"path": "i.parquet", "text": "{title}"},
    "events": {"path": "e.parquet"},
    "split": {"column": "split"},
    "tasks": {"click": {"kind": "binary"}},
}

few_scores = st.sampled_from([0.0, 1e-12, 1e-9, 0.1, 0.3, 0.3 + 1e-16, 0.5, 0.9, 1.0])
rows = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1), few_scores), min_size=1)


def looped_auc(labels, scores, users):
    """The definition: scikit-learn's AUC, one user after another."""
    counts, aucs = [], []
    for user in np.unique(users):
        own = users == user
        if len(set(labels[own])) == 2:
            counts.append(own.sum())
            aucs.append(roc_auc_score(labels[own], scores[own]))
    if not aucs:
        return math.nan, math.nan
    return np.average(aucs, weights=counts), np.mean(aucs)


def binary(labels, scores, users=None, base_rate=0.5):
    labels, scores = np.asarray(labels, float), np.asarray(scores, float)
    users = np.zeros(len(labels), int) if users is None else users
    return binary_metrics(labels, scores, users, base_rate=base_rate)


def test_gauc_by_hand():
    """GAUC weights a user's AUC by all of the user's rows; the unweighted one counts users."""
    weighted, unweighted = grouped_auc(LABELS, SCORES, USERS)
    assert weighted == pytest.approx((3 * 1 + 2 * 0 + 4 * 0.5) / 9, abs=1e-12)
    assert unweighted == pytest.approx((1 + 0 + 0.5) / 3, abs=1e-12)


def test_binary_metrics_report_both_gaucs():
    """`gauc` is weighted and `gauc_unweighted` is not; both are over users, not over all rows."""
    found = binary(LABELS, SCORES, USERS)
    assert found["gauc"] == pytest.approx(5 / 9, abs=1e-12)
    assert found["gauc_unweighted"] == pytest.approx(0.5, abs=1e-12)
    assert found["auc"] == pytest.approx(roc_auc_score(LABELS, SCORES), abs=1e-12)
    assert found["auc"] != pytest.approx(found["gauc"], abs=0.01)


def test_all_scores_tied():
    """Constant scores have GAUC 1/2 whatever the order of the rows."""
    for order in (slice(None), slice(None, None, -1)):
        found = grouped_auc(LABELS[order], np.full(9, 0.3), USERS[order])
        assert found == pytest.approx((0.5, 0.5), abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_user_with_one_class_is_left_out(label):
    """Rows of a user with one class change neither GAUC, though they change the AUC."""
    labels = np.append(LABELS, [label] * 5)
    scores = np.append(SCORES, [0.01, 0.3, 0.6, 0.7, 0.99])
    users = np.append(USERS, [4] * 5)
    assert grouped_auc(labels, scores, users) == grouped_auc(LABELS, SCORES, USERS)
    assert roc_auc_score(labels, scores) != roc_auc_score(LABELS, SCORES)


def test_gauc_without_a_user_with_both_classes():
    """Both GAUCs are NaN, and the AUC is a number, where every user has one class."""
    found = binary([1, 1, 0], [0.9, 0.1, 0.5], np.array([1, 1, 2]))
    assert math.isnan(found["gauc"])
    assert math.isnan(found["gauc_unweighted"])
    assert found["auc"] == pytest.approx(0.5)


@given(rows)
@settings(deadline=None)
def test_gauc_equals_the_loop(table):
    """GAUC equals scikit-learn's AUC of each user to 1e-12, with ties, any user ids, any order."""
    users, labels, scores = (np.array(c) for c in zip(*table, strict=True))
    found = grouped_auc(labels.astype(float), scores, users)
    np.testing.assert_allclose(found, looped_auc(labels, scores, users), rtol=0, atol=1e-12)


@given(rows, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_rows_does_not_matter(table, random):
    """Every binary metric of shuffled rows equals that of the rows."""
    shuffled = random.sample(table, len(table))
    first, second = (
        binary(labels, scores, np.array(users))
        for users, labels, scores in (zip(*t, strict=True) for t in (table, shuffled))
    )
    assert first == pytest.approx(second, rel=1e-9, nan_ok=True)


def test_gauc_of_many_rows_equals_the_loop():
    """GAUC equals the loop to 1e-12 for 200 000 rows of 500 users with tied scores."""
    rng = np.random.default_rng(0)
    users = rng.zipf(1.3, 200_000) % 500
    scores = rng.random(200_000).round(2)
    labels = (rng.random(200_000) < 0.05 + 0.1 * scores).astype(float)
    found = grouped_auc(labels, scores, users)
    np.testing.assert_allclose(found, looped_auc(labels, scores, users), rtol=0, atol=1e-12)


@pytest.mark.parametrize("base_rate", [0.001, 0.2, 0.5, 0.97])
def test_ne_of_the_base_rate_is_one(base_rate):
    """A model that predicts the training base rate has NE 1, whatever rate the rows have."""
    assert binary(LABELS, np.full(9, base_rate), base_rate=base_rate)["ne"] == pytest.approx(1)


def test_log_loss_ne_and_calibration_by_hand():
    """Log-loss, NE and calibration are those computed by hand; NE takes the training rate."""
    found = binary([1, 0, 0, 0], [0.5, 0.25, 0.25, 0.5], base_rate=0.1)
    loss = -(2 * math.log(0.5) + 2 * math.log(0.75)) / 4
    assert found["logloss"] == pytest.approx(loss, abs=1e-12)
    assert found["ne"] == pytest.approx(loss / (-(math.log(0.1) + 3 * math.log(0.9)) / 4))
    assert found["calibration"] == pytest.approx(1.5)
    assert found["rows"] == 4


@pytest.mark.parametrize(("label", "calibrated"), [(0.0, math.nan), (1.0, 0.3)])
def test_one_class(label, calibrated):
    """Rows of one class have AUC NaN and a log-loss; calibration is NaN only without positives."""
    found = binary([label] * 4, [0.3] * 4)
    assert math.isnan(found["auc"])
    assert found["logloss"] == pytest.approx(log_loss([label] * 4, [0.3] * 4, labels=[0, 1]))
    assert found["calibration"] == pytest.approx(calibrated, nan_ok=True)


def test_auc_orders_saturated_scores():
    """Scores closer to 0 or 1 than the log-loss tells apart still count for AUC as for GAUC."""
    found = binary([0, 1, 0, 1], [1e-12, 1e-9, 1 - 1e-9, 1 - 1e-12])
    assert found["auc"] == 0.75
    assert found["auc"] == pytest.approx(found["gauc"], abs=1e-12)


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("base_rate", [0.0, 1.0])
def test_certain_mistakes_are_finite(score, base_rate):
    """A certain mistake and a training rate of 0 or 1 give a finite log-loss and NE."""
    found = binary([1, 0], [score] * 2, base_rate=base_rate)
    assert math.isfinite(found["logloss"])
    assert math.isfinite(found["ne"])


def test_metrics_of_parts_are_not_averaged():
    """Two parts with AUC 1 and different levels have AUC 8/9 together; RMSE of 0 and 2 is not 1."""
    low, high = ([1, 0, 0], [0.3, 0.2, 0.1]), ([1, 1, 0], [0.9, 0.8, 0.7])
    assert binary(*low)["auc"] == binary(*high)["auc"] == 1
    assert binary(low[0] + high[0], low[1] + high[1])["auc"] == pytest.approx(8 / 9)
    parts = [np.zeros(3), np.full(3, 2.0)]
    rmses = [regression_metrics(np.zeros(3), p, train_mean=1.0)["rmse"] for p in parts]
    whole = regression_metrics(np.zeros(6), np.concatenate(parts), train_mean=1.0)["rmse"]
    assert np.mean(rmses) == 1
    assert whole == pytest.approx(math.sqrt(2))


def test_regression_by_hand():
    """RMSE, MAE and the RMSE of the training mean on the same rows are those computed by hand."""
    found = regression_metrics(np.array([1.0, 2.0, 6.0]), np.array([1.0, 4.0, 5.0]), train_mean=3.0)
    assert found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert found["mae"] == pytest.approx(1.0)
    assert found["mean_rmse"] == pytest.approx(math.sqrt(14 / 3))
    assert found["relative_rmse"] == pytest.approx(math.sqrt(5 / 14))
    assert found["rows"] == 3


def test_relative_rmse_of_the_training_mean():
    """The training mean has relative RMSE 1, and NaN where every label is that mean."""
    labels, mean = np.array([1.0, 2.0, 6.0]), np.full(3, 2.5)
    assert regression_metrics(labels, mean, train_mean=2.5)["relative_rmse"] == pytest.approx(1)
    assert math.isnan(regression_metrics(mean, labels, train_mean=2.5)["relative_rmse"])


METRICS = {
    "a": {"click": {"ne": 0.8, "rows": 10.0}, "rating": {"relative_rmse": 0.6, "rows": 1.0}},
    "b": {"click": {"ne": 0.9, "rows": 1000.0}},
}


def test_task_score():
    """A binary task is scored by NE, a regression by relative RMSE."""
    assert task_score(binary(LABELS, SCORES)) == binary(LABELS, SCORES)["ne"]
    found = regression_metrics(np.array([0.0, 1.0]), np.array([0.0, 0.5]), train_mean=0.5)
    assert task_score(found) == found["relative_rmse"]


@pytest.mark.parametrize("weights", [None, {}, {"a": 3.0, "b": 3.0}])
def test_joint_score_default(weights):
    """The joint score is the mean over a scenario's tasks, then over scenarios, not over rows."""
    assert joint_score(METRICS, weights) == pytest.approx((0.7 + 0.9) / 2)


@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_joint_score_with_weights(scale):
    """Scenario weights are normalised: their scale changes nothing, their ratio does."""
    found = joint_score(METRICS, {"a": 3 * scale, "b": scale})
    assert found == pytest.approx((3 * 0.7 + 0.9) / 4)


def test_joint_score_skips_tasks_without_rows():
    """A NaN task and a scenario of NaN tasks take no part; an infinite one is not forgiven."""
    nan, inf = {"ne": math.nan}, {"ne": math.inf}
    assert joint_score({"a": {"x": nan, "y": {"ne": 0.5}}, "b": {"z": nan}}) == 0.5
    assert joint_score({"a": {"x": inf, "y": {"ne": 0.5}}}) == math.inf
    assert math.isnan(joint_score({"a": {"x": nan}}))
    assert math.isnan(joint_score(METRICS, {"c": 1.0}))


@given(st.lists(st.one_of(st.floats(0, 9), st.just(math.nan), st.just(math.inf)), max_size=6))
def test_every_mean_over_tasks_is_the_same(scores):
    """Joint score, scenario scores and the choice of a model agree on what NaN and infinity do."""
    wanted = float(mean_task_score(scores))
    known = [s for s in scores if not math.isnan(s)]
    assert wanted == pytest.approx(np.mean(known) if known else math.nan, nan_ok=True)
    tasks = {f"t{i}": {"ne": s} for i, s in enumerate(scores)}
    assert joint_score({"a": tasks}) == pytest.approx(wanted, nan_ok=True)
    found = scenario_scores({f"a/{task}/ne": m["ne"] for task, m in tasks.items()})
    assert found.get("a", math.nan) == pytest.approx(wanted, nan_ok=True)
    twice = mean_task_score(np.array([scores, scores]))
    np.testing.assert_array_equal(twice, [wanted, wanted])


OF_NUMBERS = {
    "count": (mean_poisson_deviance, "poisson_deviance", "relative_deviance"),
    "duration": (root_mean_squared_log_error, "rmsle", "relative_rmsle"),
}


@pytest.mark.parametrize("kind", OF_NUMBERS)
def test_metrics_of_counts_and_durations_are_scikit_learns(kind):
    """Deviance or RMSLE, and RMSE and MAE in the label's own units; calibration is of sums."""
    rng = np.random.default_rng(3)
    labels, scores = rng.poisson(2, 300).astype(float), rng.lognormal(0.5, 1, 300)
    of, main, relative = OF_NUMBERS[kind]
    found = positive_metrics(kind, labels, scores, constant=1.7)
    assert found[main] == pytest.approx(of(labels, scores), rel=1e-9)
    assert found[relative] == pytest.approx(of(labels, scores) / of(labels, np.full(300, 1.7)))
    assert found["rmse"] == pytest.approx(math.sqrt(mean_squared_error(labels, scores)))
    assert found["mae"] == pytest.approx(mean_absolute_error(labels, scores))
    assert found["calibration"] == pytest.approx(scores.sum() / labels.sum())
    assert task_score(found) == found[relative]
    assert scenario_scores({f"a/t/{k}": v for k, v in found.items()}) == {"a": found[relative]}


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_row_losses_are_scikit_learns(kind):
    """The mean of the row losses is scikit-learn's log-loss, or its squared error."""
    rng = np.random.default_rng(2)
    labels, scores = rng.integers(0, 2, 300).astype(float), rng.random(300)
    scores[:2] = [0.0, 1.0]
    found = row_losses(kind, labels, scores).mean()
    clipped = np.clip(scores, EPSILON, 1 - EPSILON)
    of = {"binary": log_loss, "regression": mean_squared_error}[kind]
    assert found == pytest.approx(of(labels, clipped), rel=1e-6)


@pytest.mark.parametrize("fixed", [{}, {"a": 1.0, "b": 4.0}])
def test_joint_score_knows_no_lambda(fixed):
    """The score of the same metrics is the same in projects that differ in lambda only."""

    def score(lambdas: dict[str, float]) -> float:
        scenarios = {name: {**SCENARIO, "weight": lambdas[name]} for name in lambdas}
        project = parse_project(
            {"scenarios": scenarios, "evaluation": {"weights": fixed}, "run": {"name": "r"}}
        )
        return joint_score(METRICS, project.evaluation.weights or None)

    scores = [score(w) for w in ({"a": 1, "b": 1}, {"a": 9, "b": 1}, {"a": 0, "b": 1})]
    assert len(set(scores)) == 1
    wanted = np.average([0.7, 0.9], weights=list(fixed.values()) or None)
    assert scores[0] == pytest.approx(wanted)
