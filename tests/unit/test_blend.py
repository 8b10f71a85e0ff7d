"""Two opinions of a row: weighed as they are worth, and not at all where that does not pay."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from mtrec_ray.evaluation import blend
from mtrec_ray.evaluation.blend import Judged, fit_blend, log_odds


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
        return Judged(first, second, truth + rng.normal(0, 0.5, rows), user)
    label = (rng.random(rows) < sigmoid(truth)).astype(float)
    return Judged(sigmoid(first), sigmoid(second), label, user)


def test_two_views_are_better_than_one():
    """The blend of independent opinions is above each, on rows that its weights never saw."""
    found = fit_blend("binary", world((1.0, 1.0)))
    assert found is not None
    assert found.pays
    later = world((1.0, 1.0), seed=1)
    blended = found.of(later.first, later.second)
    alone = [roc_auc_score(later.label, own) for own in (later.first, later.second)]
    assert roc_auc_score(later.label, blended) > max(alone) + 0.01
    assert log_loss(later.label, blended) < log_loss(later.label, later.first)
    assert found.first == pytest.approx(found.second, rel=0.1)


def test_weights_are_those_of_logistic_regression():
    """With many rows the ridge does not matter."""
    rows = world((0.5, 1.5))
    found = fit_blend("binary", rows)
    assert found is not None
    x = np.stack([log_odds(rows.first), log_odds(rows.second)], 1)
    wanted = LogisticRegression(C=np.inf, tol=1e-8).fit(x, rows.label)
    weights = [found.first, found.second, found.constant]
    np.testing.assert_allclose(weights, [*wanted.coef_[0], *wanted.intercept_], atol=0.02)


def test_numbers_are_blended_in_their_own_units():
    """Two noisy readings of a number: the better one weighs more, and the error falls."""
    found = fit_blend("regression", world((0.5, 1.0), kind="regression"))
    assert found is not None
    assert found.pays
    assert found.first > found.second > 0.1
    later = world((0.5, 1.0), kind="regression", seed=1)
    errors = [((own - later.label) ** 2).mean() for own in (later.first, later.second)]
    assert ((found.of(later.first, later.second) - later.label) ** 2).mean() < min(errors)


@pytest.mark.parametrize(("rows", "most"), [(150, 5), (5000, 0)])
def test_an_opinion_that_knows_nothing_has_no_say(rows, most):
    """Noise beside an honest probability: with few rows by chance alone, with many never."""
    pay = 0
    for seed in range(30):
        judged = world((0.0, 0.0), rows, seed=seed)
        noise = sigmoid(np.random.default_rng(seed + 99).normal(size=rows))
        found = fit_blend("binary", Judged(judged.first, noise, judged.label, judged.user))
        assert found is not None
        pay += found.pays
    assert pay <= most


def test_no_weight_is_negative():
    """An opinion that is always wrong is not turned round."""
    rows = world((0.3, 0.3))
    found = fit_blend("binary", Judged(rows.first, 1 - rows.second, rows.label, rows.user))
    assert found is not None
    assert found.second == 0


def test_users_are_drawn_and_not_rows():
    """A user's rows that are repeated a hundred times prove no more than he does."""
    rows = world((1.0, 1.0), 300)
    again = Judged(
        *(np.repeat(getattr(rows, n), 100) for n in ("first", "second", "label", "user"))
    )
    one, many = fit_blend("binary", rows), fit_blend("binary", again)
    assert one is not None
    assert many is not None
    assert many.error == pytest.approx(one.error, rel=0.5)


def test_labels_that_are_all_equal_tell_nothing():
    """No weights without both labels."""
    rows = world((1.0, 1.0), 300)
    assert fit_blend("binary", Judged(rows.first, rows.second, 0 * rows.label, rows.user)) is None


def test_certain_opinions_stay_finite():
    """Probabilities of 0 and 1 have log odds, too."""
    assert np.isfinite(blend.log_odds(np.array([0.0, 1.0]))).all()
