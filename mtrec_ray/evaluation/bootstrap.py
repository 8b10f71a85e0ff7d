"""Intervals by resampling users: how much of a metric, or of a difference, may be chance.

Rows of one user are not independent, so whole users are drawn, with replacement; a resample is a
weight (how often it was drawn) for every user. A metric of a resample weights rows accordingly.
Models that are compared see the same resamples (paired). Resamples are drawn and used in blocks, so
that memory grows neither with their number nor, beyond one weight a user, with the users.

Letters: N rows, U users, B resamples, C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Floats
from mtrec_ray.evaluation.metrics import ROOTS, row_losses, user_aucs

NUM_RESAMPLES = 200


# Weights that are held at a time: 32 MB, however many resamples there are.
BLOCK_CELLS = 2**22


LEVEL = 0.95


# Metrics f64[B] of resamples from user weights f64[B, U].
Resampled = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Interval:
    """A value on all rows, and the central interval of its resamples."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is significant."""
        return self.low > 0 or self.high < 0


def draw_users(num_users: int, seed: int, resamples: int = NUM_RESAMPLES) -> Iterator[Floats]:
    """Yields f64[b, U] in blocks, B rows in all: how often each user is drawn; each row sums to U.

    A block has at most `BLOCK_CELLS` weights, and at least one resample. The seed fixes the
    weights, whatever the blocks.
    """
    rng = np.random.default_rng(seed)
    share = np.full(num_users, 1 / num_users)
    step = max(BLOCK_CELLS // num_users, 1)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(num_users, share, size=size).astype(np.float64)


def evaluate_resamples(of: Resampled, num_users: int, seed: int) -> tuple[float, Floats]:
    """Returns a metric of all rows, and of each resample f64[B]."""
    whole = float(of(np.ones((1, num_users)))[0])
    return whole, np.concatenate([of(weights) for weights in draw_users(num_users, seed)])


def auc_of(labels: Floats, scores: Floats, users: NDArray[np.int64]) -> Resampled:
    """AUC with rows weighted by their users: ties count a half; users are 0..U-1."""
    order = np.argsort(scores, kind="stable")
    positive, user = labels[order] == 1, users[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))

    def resampled(weights: Floats) -> Floats:
        found = []
        for one in weights:
            own = one[user]
            p = np.add.reduceat(np.where(positive, own, 0.0), first)
            n = np.add.reduceat(np.where(positive, 0.0, own), first)
            below = np.cumsum(n) - n
            area, pairs = (p * (below + n / 2)).sum(), p.sum() * n.sum()
            found.append(area / pairs if pairs else np.nan)
        return np.array(found)

    return resampled


def gauc_of(labels: Floats, scores: Floats, users: NDArray[np.int64]) -> Resampled:
    """GAUC weighted by rows, over users that have both classes."""
    auc, rows = user_aucs(labels, scores, users)
    known = np.isfinite(auc)
    values, sizes = np.where(known, auc, 0.0), np.where(known, rows, 0.0)

    def resampled(weights: Floats) -> Floats:
        total = weights @ sizes
        return np.divide(
            weights @ (values * sizes), total, out=np.full(len(weights), np.nan), where=total > 0
        )

    return resampled


def rmse_of(labels: Floats, predictions: Floats, users: NDArray[np.int64]) -> Resampled:
    """RMSE with rows weighted by their users."""
    return error_of("regression", labels, predictions, users)


def rmsle_of(labels: Floats, predictions: Floats, users: NDArray[np.int64]) -> Resampled:
    """RMSLE with rows weighted by their users."""
    return error_of("duration", labels, predictions, users)


def deviance_of(labels: Floats, predictions: Floats, users: NDArray[np.int64]) -> Resampled:
    """Mean Poisson deviance with rows weighted by their users."""
    return error_of("count", labels, predictions, users)


def logloss_of(labels: Floats, predictions: Floats, users: NDArray[np.int64]) -> Resampled:
    """Log-loss of probabilities of classes f64[N, C] with rows weighted by their users."""
    return error_of("multiclass", labels, predictions, users)


def error_of(kind: str, labels: Floats, predictions: Floats, users: NDArray[np.int64]) -> Resampled:
    """The mean loss of a kind of number, or its root, with rows weighted by their users."""
    loss, rows = np.bincount(users, row_losses(kind, labels, predictions)), np.bincount(users)

    def resampled(weights: Floats) -> Floats:
        mean = (weights @ loss) / (weights @ rows)
        return np.sqrt(mean) if kind in ROOTS else mean

    return resampled


def loss_ratio_of(
    losses: Floats, constant: Floats, users: NDArray[np.int64], num_users: int
) -> Resampled:
    """Mean loss of rows over that of a constant prediction, rows weighted by their users (NE)."""
    loss_sums = np.bincount(users, losses, num_users)
    other = np.bincount(users, constant, num_users)

    def resampled(weights: Floats) -> Floats:
        total = weights @ other
        return np.divide(
            weights @ loss_sums, total, out=np.full(len(weights), np.nan), where=total > 0
        )

    return resampled


METRICS = {
    "auc": auc_of, "gauc": gauc_of, "rmse": rmse_of, "rmsle": rmsle_of,
    "poisson_deviance": deviance_of, "logloss": logloss_of,
}  # fmt: skip


def interval(values: Floats, whole: float) -> Interval:
    """Returns the central interval of resampled values; NaN where there are none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(whole, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(whole, float(low), float(high))


def metric_interval(
    metric: str, labels: Floats, scores: Floats, users: NDArray[np.integer], seed: int = 0
) -> Interval:
    """Returns a metric of `METRICS` with its interval."""
    _, code = np.unique(users, return_inverse=True)
    of = METRICS[metric](labels, scores, code)
    whole, values = evaluate_resamples(of, int(code.max()) + 1, seed)
    return interval(values, whole)


def paired_difference(
    metric: str,
    labels: Floats,
    first: list[Floats],
    second: list[Floats],
    users: NDArray[np.integer],
    seed: int = 0,
) -> Interval:
    """Returns the first model's metric less the second's, on the same resampled users.

    A model is given by its scores under one or more seeds: its metric is their mean.
    """
    _, code = np.unique(users, return_inverse=True)
    models = [[METRICS[metric](labels, s, code) for s in scores] for scores in (first, second)]

    def difference(weights: Floats) -> Floats:
        one, other = (np.mean([of(weights) for of in seeds], 0) for seeds in models)
        return one - other

    whole, values = evaluate_resamples(difference, int(code.max()) + 1, seed)
    return interval(values, whole)
