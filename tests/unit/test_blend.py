"""Two opinions of a row: weighed as they are worth, and not at all where that does not pay."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from mtrec_ray.evaluation import blend
from mtrec_ray.evaluation.blend import Blend, Judged, fit_blend, log_odds, weights_of
from mtrec_ray.evaluation.metrics import row_losses


def sigmoid(score):
    """Probabilities of log odds."""
    return 1 / (1 + np.exp(-score))


def world(noise, rows=20_000, kind="binary", seed=0):
    """Rows of 500 users, and two opinions that each see the truth with noise of their own."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, rows)
    first, second = (truth + rng.normal(0, own, rows) for own in noise)
    user = rng.integers(0, 500, rows)
    if kind == "regression":
        return judged(first, second, truth + rng.normal(0, 0.5, rows), user)
    label = (rng.random(rows) < sigmoid(truth)).astype(float)
    return judged(sigmoid(first), sigmoid(second), label, user)


def judged(first, second, label, user, **scores):
    """Rows with two opinions, and scores by name."""
    return Judged({"network": first, "trees": second, **scores}, label, user)


def test_two_views_are_better_than_one():
    """The blend of independent opinions is above each, on rows that its weights never saw."""
    found = fit_blend("binary", world((1.0, 1.0)))
    assert found is not None
    later = world((1.0, 1.0), seed=1)
    blended = found.of(later.said)
    alone = [roc_auc_score(later.label, own) for own in later.said.values()]
    assert roc_auc_score(later.label, blended) > max(alone) + 0.01
    assert log_loss(later.label, blended) < log_loss(later.label, later.said["network"])
    assert found.weights["network"] == pytest.approx(found.weights["trees"], rel=0.1)
    assert found.gain > found.error > 0


def test_weights_are_those_of_logistic_regression():
    """With many rows the ridge does not matter."""
    rows = world((0.5, 1.5))
    found = fit_blend("binary", rows)
    assert found is not None
    x = np.stack([log_odds(own) for own in rows.said.values()], 1)
    wanted = LogisticRegression(C=np.inf, tol=1e-8).fit(x, rows.label)
    weights = [*found.weights.values(), found.constant]
    np.testing.assert_allclose(weights, [*wanted.coef_[0], *wanted.intercept_], atol=0.02)


@pytest.mark.parametrize("kind", ["count", "duration"])
def test_counts_and_durations_are_blended_on_their_logarithms(kind):
    """Two noisy readings, the better one weighs more; the loss falls, and the sums agree."""
    rng = np.random.default_rng(4)
    rows = []
    for _ in range(2):
        truth = rng.normal(1, 1, 8000)
        first, second = (truth + rng.normal(0, own, 8000) for own in (0.5, 1.0))
        noise = np.expm1(np.maximum(truth + rng.normal(0, 0.5, 8000), 0))
        label = rng.poisson(np.exp(truth)) if kind == "count" else noise
        said = (
            np.exp([first, second]) if kind == "count" else np.expm1(np.maximum([first, second], 0))
        )
        rows.append(judged(*said, label.astype(float), rng.integers(0, 300, 8000)))
    found = fit_blend(kind, rows[0])
    assert found is not None
    assert found.weights["network"] > found.weights["trees"] > 0.1
    blended = found.of(rows[1].said)
    alone = [row_losses(kind, rows[1].label, own).mean() for own in rows[1].said.values()]
    assert row_losses(kind, rows[1].label, blended).mean() < min(alone)
    if kind == "count":
        assert blended.sum() == pytest.approx(rows[1].label.sum(), rel=0.1)


def test_numbers_are_blended_in_their_own_units():
    """Two noisy readings of a number: the better one weighs more, and the error falls."""
    found = fit_blend("regression", world((0.5, 1.0), kind="regression"))
    assert found is not None
    assert found.weights["network"] > found.weights["trees"] > 0.1
    later = world((0.5, 1.0), kind="regression", seed=1)
    errors = [((own - later.label) ** 2).mean() for own in later.said.values()]
    assert ((found.of(later.said) - later.label) ** 2).mean() < min(errors)


@pytest.mark.parametrize(("rows", "most"), [(150, 5), (5000, 0)])
def test_an_opinion_that_knows_nothing_has_no_say(rows, most):
    """Noise beside an honest probability: with few rows by chance alone, with many never."""
    pay = 0
    for seed in range(30):
        honest = world((0.0, 0.0), rows, seed=seed)
        noise = sigmoid(np.random.default_rng(seed + 99).normal(size=rows))
        said = judged(honest.said["network"], noise, honest.label, honest.user)
        pay += fit_blend("binary", said) is not None
    assert pay <= most


def test_no_weight_is_negative():
    """An opinion that is always wrong is not turned round."""
    rows = world((0.3, 0.3))
    wrong = judged(rows.said["network"], 1 - rows.said["trees"], rows.label, rows.user)
    assert weights_of("binary", ["network", "trees"], wrong).weights["trees"] == 0


def test_users_are_drawn_and_not_rows():
    """A user's rows that are repeated a hundred times prove no more than he does."""
    rows = world((1.0, 1.0), 300)
    again = rows.take(np.repeat(np.arange(300), 100))
    one, many = fit_blend("binary", rows), fit_blend("binary", again)
    assert one is not None
    assert many is not None
    assert many.error == pytest.approx(one.error, rel=0.5)


def test_labels_that_are_all_equal_tell_nothing():
    """No weights without both labels."""
    rows = world((1.0, 1.0), 300)
    assert fit_blend("binary", replace(rows, label=0 * rows.label)) is None


def test_a_score_that_tells_of_the_label_is_weighed_in_its_own_units():
    """A score of any scale and origin is added to the opinions, and brings as much."""
    for kind in ("binary", "regression"):
        told = []
        for scale, origin in ((1.0, 0.0), (1e-3, 50.0)):
            rows = world((1.0, 1.0), kind=kind)
            hint = np.random.default_rng(5).normal(size=len(rows.label)) + 2 * rows.label
            said = rows.said | {"ease": hint * scale + origin}
            found = fit_blend(kind, replace(rows, said=said))
            assert found is not None
            assert set(found.weights) == {"network", "trees", "ease"}
            told.append(found.of(said))
            alone = fit_blend(kind, rows)
            assert alone is not None
            assert found.gain > alone.gain
        np.testing.assert_allclose(told[0], told[1], rtol=1e-3)


@pytest.mark.parametrize(("rows", "most"), [(150, 4), (3000, 4)])
def test_scores_that_know_nothing_are_left_out(rows, most):
    """Twelve columns of noise beside a network that is right have no say, but by chance."""
    pay = 0
    for seed in range(12):
        honest = world((0.0, 0.0), rows, seed=seed)
        noise = np.random.default_rng(seed + 99).normal(size=(12, rows))
        said = {"network": honest.said["network"]} | {f"s{i}": v for i, v in enumerate(noise)}
        pay += fit_blend("binary", replace(honest, said=said)) is not None
    assert pay <= most


def test_trees_see_what_weights_cannot():
    """A score that matters only beside another one: trees on both find it, and are written."""
    rows = world((1.0, 1.0))
    rng = np.random.default_rng(5)
    sign, size = rng.choice([-1.0, 1.0], len(rows.label)), rng.normal(size=len(rows.label))
    label = (rng.random(len(size)) < sigmoid(3 * sign * size)).astype(float)
    said = {"network": np.full(len(size), 0.5), "ease": sign, "item_knn": size}
    found = fit_blend("binary", Judged(said, label, rows.user))
    assert found is not None
    assert found.boosted
    again = Blend(**json.loads(json.dumps(asdict(found))))
    np.testing.assert_array_equal(found.of(said), again.of(said))
    assert roc_auc_score(label, found.of(said)) > 0.8


def test_some_users_judge_and_all_teach():
    """Rows of users who do not judge have a say in the weights, and none in what they gain."""
    rows = world((1.0, 1.0), 2000)
    judges = rows.user % 2 == 0
    whole = fit_blend("binary", rows, judges)
    assert whole is not None
    assert whole.weights == weights_of("binary", ["network", "trees"], rows).weights
    wrong = {k: np.where(judges, v, 1 - v) for k, v in rows.said.items()}
    assert fit_blend("binary", replace(rows, said=wrong), judges) is None
    assert fit_blend("binary", rows, np.zeros(2000, bool)) is None
    assert fit_blend("binary", rows, rows.user < 15) is None  # too few users


def test_a_score_that_is_missing_says_nothing():
    """What is not finite counts as 0, in the fit and after it."""
    rows = world((1.0, 1.0))
    hint = np.random.default_rng(5).normal(size=len(rows.label)) + 2 * rows.label
    gone, zero = hint.copy(), hint.copy()
    gone[:500], zero[:500] = -np.inf, 0
    said = [rows.said | {"newest": own} for own in (gone, zero)]
    first, second = (fit_blend("binary", replace(rows, said=own)) for own in said)
    assert asdict(first) == asdict(second)
    assert first is not None
    np.testing.assert_array_equal(first.of(said[0]), first.of(said[1]))


def test_certain_opinions_stay_finite():
    """Probabilities of 0 and 1 have log odds, too."""
    assert np.isfinite(blend.log_odds(np.array([0.0, 1.0]))).all()


def test_labels_are_weighed_without_sources_that_know_nothing():
    """What labels say is taken by itself where twelve sources beside it are noise."""
    taken = 0
    for seed in range(8):
        rows = world((1.0, 1.0), 600, seed=seed)
        rng = np.random.default_rng(seed + 50)
        hint = rng.normal(size=600) + rows.label
        noise = {f"source {i}": rng.normal(size=600) for i in range(12)}
        found = fit_blend("binary", replace(rows, said=rows.said | noise | {"labels.mean": hint}))
        taken += found is not None and set(found.weights) == {"network", "trees", "labels.mean"}
    assert taken >= 5
