"""Two opinions of a row, blended by weights that are fitted on rows neither was fitted on.

The blend of two probabilities is a logistic regression on their log odds, that of two numbers a
linear regression. A ridge draws both weights to a half, and neither is negative. It is used where
it is better than the first opinion alone on users that its weights were not fitted on, by more than
chance gives in nine of ten cases.

Letters: N rows.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.arrays import Bools, Floats, Ints
from mtrec_ray.data.columns import hash_ints

FOLDS = 5
LEAST_PROBABILITY = 1e-6
RIDGE = 10.0  # rows' worth of pull of each weight to a half
BEYOND_CHANCE = 1.28  # standard errors: the normal distribution's ninth tenth


@dataclass(frozen=True)
class Blend:
    """Weights of two opinions, and a constant.

    Attributes:
        gain: mean loss of the first opinion less that of the blend, on users left out of the fit;
            `error`: its standard error over users.
    """

    kind: str
    first: float
    second: float
    constant: float
    gain: float = 0.0
    error: float = 0.0

    def of(self, first: Floats, second: Floats) -> Floats:
        """Returns f64[N]: the blended opinion."""
        if self.kind == "regression":
            return self.first * first + self.second * second + self.constant
        score = self.first * log_odds(first) + self.second * log_odds(second) + self.constant
        return 1 / (1 + np.exp(-score))

    @property
    def pays(self) -> bool:
        """Whether the blend is better than the first opinion alone."""
        return self.gain > BEYOND_CHANCE * self.error


@dataclass(frozen=True)
class Judged:
    """Rows with two opinions of a label: f64[N] each, and i64[N] the rows' users."""

    first: Floats
    second: Floats
    label: Floats
    user: Ints

    def take(self, rows: Bools) -> "Judged":
        """Returns some of the rows."""
        return Judged(self.first[rows], self.second[rows], self.label[rows], self.user[rows])


def fit_blend(kind: str, rows: Judged) -> Blend | None:
    """Returns the blend of two opinions; None where the rows cannot tell (labels all equal)."""
    fold = (hash_ints(rows.user, 11) % np.uint64(FOLDS)).astype(np.int64)
    blended = np.full(len(rows.label), np.nan)
    for number in range(FOLDS):
        others, own = rows.take(fold != number), fold == number
        if not len(others.label) or others.label.min() == others.label.max():
            return None
        found = weights_of(kind, others)
        blended[own] = found.of(rows.first[own], rows.second[own])
    gains = losses(kind, rows.label, rows.first) - losses(kind, rows.label, blended)
    whole = weights_of(kind, rows)
    gain, error = mean_by_user(gains, rows.user)
    return Blend(kind, whole.first, whole.second, whole.constant, gain, error)


def weights_of(kind: str, rows: Judged) -> Blend:
    """Returns the weights with the lowest loss plus ridge."""
    from scipy.optimize import minimize

    read = log_odds if kind == "binary" else np.asarray
    x = np.stack([read(rows.first), read(rows.second), np.ones(len(rows.label))], 1)
    spread = float(rows.label.var()) if kind == "regression" else 1.0
    y, half = rows.label, np.array([0.5, 0.5])

    def loss(weights: Floats) -> tuple[float, Floats]:
        score = x @ weights
        if kind == "binary":
            value = float(np.logaddexp(0, score).sum() - y @ score)
            slope = x.T @ (1 / (1 + np.exp(-score)) - y)
        else:
            value = float(((score - y) ** 2).sum() / (2 * spread))
            slope = x.T @ (score - y) / spread
        pull = weights[:2] - half
        return value + RIDGE * float(pull @ pull), slope + 2 * RIDGE * np.append(pull, 0)

    bounds = [(0, None), (0, None), (None, None)]
    found = minimize(loss, np.array([0.5, 0.5, 0]), jac=True, method="L-BFGS-B", bounds=bounds)
    first, second, constant = (float(value) for value in found.x)
    return Blend(kind, first, second, constant)


def log_odds(probability: Floats) -> Floats:
    """Returns f64[N]: log odds, of probabilities not too near to 0 and 1."""
    p = np.clip(np.asarray(probability, np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return np.log(p) - np.log1p(-p)


def losses(kind: str, label: Floats, predicted: Floats) -> Floats:
    """Returns f64[N]: the log-loss of each row, or its squared error."""
    if kind == "regression":
        return (label - predicted) ** 2
    score = log_odds(predicted)
    return np.logaddexp(0, score) - label * score


def mean_by_user(values: Floats, user: Ints) -> tuple[float, float]:
    """Returns the mean of values f64[N], and its standard error where users are drawn, not rows."""
    mean = float(values.mean())
    _, code = np.unique(user, return_inverse=True)
    of_user = np.bincount(code, values - mean)
    return mean, float(np.sqrt((of_user**2).sum())) / len(values)
