"""Opinions and scores of a row, blended by weights that are fitted on valid.

The network is the first opinion, boosted trees are a second one. Beside them stand scores that are
no opinions of the label, but may tell of it: what labels of other items say, and the sources of
candidates.

The blend of probabilities is a logistic regression on their log odds, that of numbers a linear
regression, of counts a Poisson regression on their logarithms, and of durations a linear one on
log(1 + y). A ridge draws the weights of opinions to equal shares, those of scores to 0; no opinion
has a negative weight. There are four steps: the opinions; these and what labels say; these and all
scores; the mean of that and of boosted trees on the same columns, which see where one score matters
more beside another. Each step is kept where it is better than what was kept before, on users that
it was not fitted on, by more than chance gives in nine of ten cases.

Letters: N rows, P opinions and scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mtrec_ray.data.arrays import Bools, Floats, Ints
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.kinds import LARGEST_LOG, LEAST_COUNT, OBJECTIVES, fitted_scale, own_units
from mtrec_ray.evaluation.metrics import row_losses

if TYPE_CHECKING:
    import lightgbm

OPINIONS = ("network", "trees")  # of the label itself; other names are those of scores
LABELS = "labels."  # before the name of what labels of other items say
FOLDS = 5
LEAST_PROBABILITY = 1e-6
RIDGE = 10.0  # rows' worth of pull of an opinion's weight
SCORE_RIDGE = 3.0  # of a score's
BEYOND_CHANCE = 1.28  # standard errors: the normal distribution's ninth tenth
LEAST_JUDGES = 20  # users; a standard error over fewer says little

BOOSTED = {
    "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 30, "lambda_l2": 1.0,
    "feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1, "verbosity": -1,
    "num_threads": 1, "seed": 0,
}  # fmt: skip
ROUNDS = 100

Said = dict[str, Floats]


@dataclass(frozen=True)
class Blend:
    """Weights of opinions and scores by their names, and a constant.

    Attributes:
        boosted: LightGBM's text of trees on the same columns; empty without them.
        gain: mean loss of the network less that of the blend, on users left out of the fit;
            `error`: its standard error over users.
    """

    kind: str
    weights: Mapping[str, float]
    constant: float
    boosted: str = ""
    gain: float = 0.0
    error: float = 0.0

    @cached_property
    def booster(self) -> "lightgbm.Booster":
        """The trees, read once."""
        import lightgbm

        return lightgbm.Booster(model_str=self.boosted)

    def of(self, said: Said) -> Floats:
        """Returns f64[N]: the blended opinion."""
        x = columns_of(self.kind, list(self.weights), said)
        score = x @ np.array(list(self.weights.values())) + self.constant
        if self.boosted:
            of_trees = self.booster.predict(x, raw_score=True, num_threads=1)
            score = (score + np.asarray(of_trees, np.float64)) / 2
        return answer(self.kind, score)


@dataclass(frozen=True)
class Judged:
    """Rows with what is said of a label: f64[N] by name and the label, and i64[N] their users."""

    said: Said
    label: Floats
    user: Ints

    def take(self, rows: Bools | Ints) -> "Judged":
        """Returns some of the rows."""
        said = {name: values[rows] for name, values in self.said.items()}
        return Judged(said, self.label[rows], self.user[rows])


def fit_blend(kind: str, rows: Judged, judges: Bools | None = None) -> Blend | None:
    """Returns the blend that pays.

    None where none does, where labels are all equal, and where fewer than 20 users judge. `judges`
    bool[N]: the rows on which steps are compared, where not on all.
    """
    judges = np.ones(len(rows.label), bool) if judges is None else judges
    label, user = rows.label[judges], rows.user[judges]
    if len(np.unique(user)) < LEAST_JUDGES:
        return None
    first = best = losses(kind, label, rows.said["network"][judges])
    chosen = None
    for step in steps(kind, rows.said):
        blended = left_out(step, rows)
        if blended is None:
            return None
        loss = losses(kind, label, blended[judges])
        gain, error = mean_by_user(best - loss, user)
        if gain > BEYOND_CHANCE * error:
            gain, error = mean_by_user(first - loss, user)
            chosen, best = replace(step.fit(rows), gain=gain, error=error), loss
    return chosen


@dataclass(frozen=True)
class Step:
    """What is blended, with boosted trees or without."""

    kind: str
    names: Sequence[str]
    boosted: bool = False

    def fit(self, rows: Judged) -> Blend:
        """Returns the blend that some rows say is best."""
        linear = weights_of(self.kind, self.names, rows)
        return replace(linear, boosted=boosted_on(linear, rows)) if self.boosted else linear


def steps(kind: str, said: Said) -> Iterator[Step]:
    """Yields what is blended, step by step."""
    opinions = [name for name in OPINIONS if name in said]
    scores = [name for name in said if name not in OPINIONS]
    of_labels = [name for name in scores if name.startswith(LABELS)]
    if len(opinions) > 1:
        yield Step(kind, opinions)
    if of_labels and len(of_labels) < len(scores):
        yield Step(kind, opinions + of_labels)
    if scores:
        yield Step(kind, opinions + scores)
        yield Step(kind, opinions + scores, boosted=True)


def left_out(step: Step, rows: Judged) -> Floats | None:
    """Returns f64[N]: the blend of each fold of users, fitted on the others."""
    fold = (hash_ints(rows.user, 11) % np.uint64(FOLDS)).astype(np.int64)
    blended = np.full(len(rows.label), np.nan)
    for number in range(FOLDS):
        others, own = rows.take(fold != number), fold == number
        if not len(others.label) or others.label.min() == others.label.max():
            return None
        if own.any():
            blended[own] = step.fit(others).of(rows.take(own).said)
    return blended


def boosted_on(linear: Blend, rows: Judged) -> str:
    """Returns LightGBM's text of trees on the columns of a linear blend."""
    import lightgbm

    objective = {"objective": OBJECTIVES.get(linear.kind, "regression")}
    x = columns_of(linear.kind, list(linear.weights), rows.said)
    label = fitted_scale(linear.kind, rows.label)
    trees = lightgbm.train(BOOSTED | objective, lightgbm.Dataset(x, label), ROUNDS)
    return trees.model_to_string()


def columns_of(kind: str, names: Sequence[str], said: Said) -> Floats:
    """Returns f64[N, P]."""
    return np.stack([read(kind, name, said[name]) for name in names], 1)


def weights_of(kind: str, names: Sequence[str], rows: Judged) -> Blend:
    """Returns the weights with the lowest loss plus ridge; scores weigh by their spread."""
    from scipy.optimize import minimize

    x = columns_of(kind, names, rows.said)
    of_opinions = np.array([name in OPINIONS for name in names])
    middle = np.where(of_opinions, 0, x.mean(0))
    scale = np.where(of_opinions, 1, np.maximum(x.std(0), 1e-9))
    x = np.column_stack([(x - middle) / scale, np.ones(len(x))])
    y, wanted = fitted_scale(kind, rows.label), of_opinions / of_opinions.sum()
    spread = spread_of(kind, y)
    ridge = np.where(of_opinions, RIDGE, SCORE_RIDGE)

    def loss(weights: Floats) -> tuple[float, Floats]:
        score = x @ weights
        if kind == "binary":
            value = float(np.logaddexp(0, score).sum() - y @ score)
            slope = x.T @ (probability(score) - y)
        elif kind == "count":
            mean = answer(kind, score)
            value = float(mean.sum() - y @ score) / spread
            slope = x.T @ (mean - y) / spread
        else:
            value = float(((score - y) ** 2).sum() / (2 * spread))
            slope = x.T @ (score - y) / spread
        pull = weights[:-1] - wanted
        return value + float(ridge @ pull**2), slope + 2 * np.append(ridge * pull, 0)

    bounds = [(0 if opinion else None, None) for opinion in of_opinions] + [(None, None)]
    start = np.append(wanted, 0)
    found = np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)
    weights = found[:-1] / scale
    constant = float(found[-1] - weights @ middle)
    return Blend(kind, dict(zip(names, weights.tolist(), strict=True)), constant)


def spread_of(kind: str, label: Floats) -> float:
    """Returns what losses of labels f64[N] are divided by: their variance, a count's dispersion."""
    if kind == "binary":
        return 1.0
    variance = float(label.var())
    return variance / max(float(label.mean()), LEAST_COUNT) if kind == "count" else variance


def answer(kind: str, score: Floats) -> Floats:
    """Returns f64[N]: what a score says, in the units of the label."""
    if kind == "binary":
        return probability(score)
    return np.exp(np.minimum(score, LARGEST_LOG)) if kind == "count" else own_units(kind, score)


def read(kind: str, name: str, values: Floats) -> Floats:
    """Returns f64[N]: what is weighed of an opinion or a score.

    A score that is not finite counts as 0: `newest` is minus infinity for an item whose time of
    publication is later than its row, so that it is read as published at that moment.
    """
    if name in OPINIONS and kind == "binary":
        return log_odds(values)
    if name in OPINIONS and kind == "count":
        return np.log(np.maximum(values, LEAST_COUNT))
    if name in OPINIONS:
        values = fitted_scale(kind, values)
    return np.where(np.isfinite(values), values, 0.0)


def log_odds(probabilities: Floats) -> Floats:
    """Returns f64[N]: log odds, of probabilities not too near to 0 and 1."""
    p = np.clip(np.asarray(probabilities, np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return np.log(p) - np.log1p(-p)


def probability(score: Floats) -> Floats:
    """Returns f64[N]: the probabilities of log odds."""
    from scipy.special import expit

    return expit(score)


def losses(kind: str, label: Floats, predicted: Floats) -> Floats:
    """Returns f64[N]: the log-loss of each row, or the loss of its number."""
    if kind != "binary":
        return row_losses(kind, label, predicted)
    score = log_odds(predicted)
    return np.logaddexp(0, score) - label * score


def mean_by_user(values: Floats, user: Ints) -> tuple[float, float]:
    """Returns the mean of values f64[N], and its standard error where users are drawn, not rows."""
    mean = float(values.mean())
    _, code = np.unique(user, return_inverse=True)
    of_user = np.bincount(code, values - mean)
    return mean, float(np.sqrt((of_user**2).sum())) / len(values)
