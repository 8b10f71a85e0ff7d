"""Metrics of record: scikit-learn's definitions, and GAUC, which it lacks.

Letters: N rows, T tasks, P predictions, C classes.

GAUC is the AUC inside each user's own rows, over users that have both classes: the mean weighted
by the user's rows (`gauc`), and the plain mean over users (`gauc_unweighted`).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mtrec_ray.data.arrays import Floats
from mtrec_ray.data.kinds import LEAST_COUNT
from mtrec_ray.data.prepared import Classes, PreparedScenario

Metrics = dict[str, float]


EPSILON = 1e-7


# The metric by which models of a kind of label are compared; higher is better for AUC alone.
MAIN_METRIC = {
    "binary": "auc", "regression": "rmse", "count": "poisson_deviance", "duration": "rmsle",
    "multiclass": "logloss",
}  # fmt: skip


# Kinds whose metric is the root of the mean loss.
ROOTS = ("regression", "duration")


# What early stopping and model choice see of a task: 1 for what the labels of training tell.
SCORES = ("ne", "relative_rmse", "relative_deviance", "relative_rmsle")


def row_losses(kind: str, labels: Floats, scores: Floats) -> Floats:
    """Returns f64[N]: the loss of each row that its kind of label has.

    Log-loss (binary, multiclass), squared error (regression) or that of logarithms (duration), and
    Poisson deviance (count). Scores of classes are f[N, C].
    """
    if kind == "multiclass":
        p = scores[np.arange(len(labels)), labels.astype(np.int64)].astype(np.float64)
        return -np.log(np.clip(p, EPSILON, 1))
    if kind == "regression":
        return (labels - scores) ** 2
    if kind == "duration":
        return (np.log1p(labels) - np.log1p(np.maximum(scores, 0))) ** 2
    if kind == "count":
        mean = np.maximum(scores.astype(np.float64), LEAST_COUNT)
        relative = np.where(labels > 0, labels, mean) / mean
        return 2 * (labels * np.log(relative) - labels + mean)
    p = np.clip(scores.astype(np.float64), EPSILON, 1 - EPSILON)
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))


def constant_losses(kind: str, labels: Floats, constant: float | Floats) -> Floats:
    """Returns f64[N], the row losses of a model that knows only the labels of training."""
    shape = (len(labels), *np.shape(constant))
    return row_losses(kind, labels, np.broadcast_to(np.asarray(constant, np.float64), shape))


def constant_of(facts: PreparedScenario, task: str) -> float | Floats:
    """Returns what a model says that knows only the labels of training; of classes f64[C]."""
    if task in facts.classes:
        return np.array(facts.classes[task].rates)
    return facts.base_prediction(task)


def said_of(facts: PreparedScenario, task: str, predicted: np.ndarray) -> Floats:
    """Returns what losses read of predictions f32[N, P]: f64[N], or of classes f64[N, C]."""
    if task in facts.classes:
        return predicted[:, facts.probabilities_of(task)].astype(np.float64)
    return predicted[:, facts.tasks.index(task)].astype(np.float64)


def error(kind: str, labels: Floats, predictions: Floats) -> float:
    """Returns the metric of `MAIN_METRIC`: RMSE, RMSLE, mean deviance; log-loss of classes."""
    mean = row_losses(kind, labels, predictions).mean()
    return float(np.sqrt(mean) if kind in ROOTS else mean)


def binary_metrics(
    labels: Floats, scores: Floats, users: NDArray[np.integer], *, base_rate: float
) -> Metrics:
    """Returns metrics of probabilities f64[N] against labels 0/1 f64[N] of users i[N].

    `ne` is the log-loss over that of the constant training `base_rate` on the same rows (1 for a
    model that knows only that rate); `calibration` is predicted over actual positives.
    """
    both = 0 < labels.sum() < len(labels)
    gauc, unweighted = grouped_auc(labels, scores, users)
    loss = float(row_losses("binary", labels, scores).mean())
    return {
        "auc": roc_auc(labels, scores) if both else float("nan"),
        "gauc": gauc,
        "gauc_unweighted": unweighted,
        "logloss": loss,
        "ne": loss / float(constant_losses("binary", labels, base_rate).mean()),
        "calibration": float(scores.mean() / labels.mean()) if labels.any() else float("nan"),
        "rows": float(len(labels)),
    }


def grouped_auc(labels: Floats, scores: Floats, users: NDArray[np.integer]) -> tuple[float, float]:
    """Returns GAUC weighted by rows, and unweighted; NaN where no user has both classes."""
    auc, rows = user_aucs(labels, scores, users)
    both = np.isfinite(auc)
    if not both.any():
        return float("nan"), float("nan")
    return float(np.average(auc[both], weights=rows[both])), float(auc[both].mean())


def reliability(labels: Floats, scores: Floats, bins: int = 10) -> list[Metrics]:
    """Returns the mean prediction and share of positives in bins of equal size."""
    from sklearn.calibration import calibration_curve

    actual, predicted = calibration_curve(labels, scores, n_bins=bins, strategy="quantile")
    return [
        {"predicted": float(p), "actual": float(a)} for p, a in zip(predicted, actual, strict=True)
    ]


def user_aucs(
    labels: Floats, scores: Floats, users: NDArray[np.integer]
) -> tuple[Floats, NDArray[np.int64]]:
    """Returns by user AUC f64[U] inside the user's rows, NaN without both classes, and rows i64[U].

    AUC by ranks (Mann-Whitney): (sum of the positives' ranks - p (p + 1) / 2) / (p n), ties at
    their mean rank. Ranks inside a user are overall ranks by (user, score) less the rows before.
    """
    _, code = np.unique(users, return_inverse=True)
    order = np.lexsort([scores, code])
    code, scores, labels = code[order], scores[order], labels[order]
    new = np.concatenate([[True], (np.diff(code) != 0) | (np.diff(scores) != 0)])
    from scipy.stats import rankdata

    rank = rankdata(np.cumsum(new))
    rows = np.bincount(code)
    before = np.concatenate([[0], np.cumsum(rows)[:-1]])
    positives = np.bincount(code, labels)
    pairs = positives * (rows - positives)
    rank_sum = np.bincount(code, labels * (rank - before[code]))
    area = rank_sum - positives * (positives + 1) / 2
    return np.divide(area, pairs, out=np.full(len(rows), np.nan), where=pairs > 0), rows


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Returns the area under the ROC curve of labels [N], which are not all alike."""
    from sklearn.metrics import roc_auc_score  # takes a second, which not every worker needs

    return float(roc_auc_score(labels, scores))


def rmse(labels: Floats, predictions: Floats) -> float:
    """Returns the root of the mean squared error over [N]."""
    return error("regression", labels, predictions)


def regression_metrics(labels: Floats, predictions: Floats, *, train_mean: float) -> Metrics:
    """Returns RMSE and MAE, and RMSE over that of the constant training mean on the same rows."""
    error = rmse(labels, predictions)
    constant = float(np.sqrt(constant_losses("regression", labels, train_mean).mean()))
    return {
        "rmse": error,
        "mae": float(np.abs(labels - predictions).mean()),
        "mean_rmse": constant,
        "relative_rmse": error / constant if constant else float("nan"),
        "rows": float(len(labels)),
    }


def positive_metrics(kind: str, labels: Floats, predictions: Floats, *, constant: float) -> Metrics:
    """Returns metrics of counts or durations f64[N], whose `constant` training alone predicts.

    The mean Poisson deviance of counts and the RMSLE of durations, over those of the constant on
    the same rows (`relative_...`), RMSE and MAE in units of the label, and the sum of predictions
    over that of labels (`calibration`).
    """
    main = MAIN_METRIC[kind]
    own = error(kind, labels, predictions)
    other = error(kind, labels, np.full(len(labels), constant))
    total = labels.sum()
    return {
        main: own,
        f"relative_{main.removeprefix('poisson_')}": own / other if other else float("nan"),
        "rmse": rmse(labels, predictions),
        "mae": float(np.abs(labels - predictions).mean()),
        "calibration": float(predictions.sum() / total) if total else float("nan"),
        "rows": float(len(labels)),
    }


def multiclass_metrics(labels: Floats, probabilities: Floats, classes: Classes) -> Metrics:
    """Returns metrics of probabilities f64[N, C] against numbers of classes f64[N].

    `ne` is the log-loss over that of the training rates on the same rows, `macro_auc` the mean AUC
    of each class against the others, of those that have both kinds of rows; `majority` is the
    accuracy of the class that training has most; `calibration` is the sum of expected gains over
    that of actual ones.
    """
    code, gains, rates = labels.astype(np.int64), np.array(classes.gains), np.array(classes.rates)
    loss = float(row_losses("multiclass", labels, probabilities).mean())
    actual = gains[code].sum()
    return {
        "logloss": loss,
        "ne": loss / float(constant_losses("multiclass", labels, rates).mean()),
        "accuracy": float((probabilities.argmax(1) == code).mean()),
        "majority": float((code == rates.argmax()).mean()),
        "macro_auc": macro_auc(code, probabilities),
        "calibration": float((probabilities @ gains).sum() / actual) if actual else float("nan"),
        "rows": float(len(labels)),
    }


def macro_auc(code: NDArray[np.int64], probabilities: Floats) -> float:
    """Returns the mean over classes of the AUC of each against the others; NaN where all is one."""
    found = [
        roc_auc(code == number, own)
        for number, own in enumerate(probabilities.T)
        if 0 < (code == number).sum() < len(code)
    ]
    return float(np.mean(found)) if found else float("nan")


def task_score(metrics: Mapping[str, float]) -> float:
    """Returns the metric of `SCORES`: below 1 if better than what training labels alone tell."""
    return next(metrics[name] for name in SCORES if name in metrics)


def mean_task_score(scores: ArrayLike) -> Floats:
    """Returns f64[..]: mean of task scores f64[.., T], over the tasks that have one.

    A task without labelled rows has the score NaN and takes no part; where no task has a score the
    mean is NaN. A score that is infinite makes the mean infinite: a model that diverged on one task
    is no better for it.
    """
    values = np.asarray(scores, np.float64)
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(-1)
    count = known.sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def joint_score(
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
    weights: Mapping[str, float] | None = None,
) -> float:
    """Returns the mean of the task scores of each scenario, then over scenarios by fixed weights.

    Scenarios without a score take no part; NaN where no scenario with a weight is left. The weights
    are the project's `evaluation.weights`, never the loss weights: else a search would win by
    moving weight to an easy scenario.
    """
    means, shares = [], []
    for name, tasks in metrics.items():
        mean = float(mean_task_score([task_score(own) for own in tasks.values()]))
        if not np.isnan(mean):
            means.append(mean)
            shares.append((weights or {}).get(name, 0.0 if weights else 1.0))
    return float(np.average(means, weights=shares)) if sum(shares) > 0 else float("nan")


def scenario_scores(valid: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean task score of each scenario, from metrics by `scenario/task/metric`."""
    scores: dict[str, list[float]] = {key.split("/")[0]: [] for key in valid}
    for key, score in task_scores(valid).items():
        scores[key.split("/")[0]].append(score)
    return {name: float(mean_task_score(own)) for name, own in scores.items()}


def task_scores(valid: Mapping[str, float]) -> dict[str, float]:
    """Returns the metric of `SCORES` by `scenario/task`, from metrics by `scenario/task/metric`."""
    return {k.rpartition("/")[0]: v for k, v in valid.items() if k.rpartition("/")[2] in SCORES}


TaskMetrics = dict[str, dict[str, float]]


def task_metrics(
    facts: PreparedScenario, users: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> TaskMetrics:
    """Returns metrics of each task over its labelled rows; arrays are [N], [N, T], [N, P]."""
    metrics: TaskMetrics = {}
    for i, (task, kind) in enumerate(facts.kinds.items()):
        known = np.isfinite(labels[:, i])
        known_rows = (labels[known, i].astype(np.float64), scores[known, i].astype(np.float64))
        if not known.any():
            continue
        if kind == "binary":
            metrics[task] = binary_metrics(
                *known_rows, users[known], base_rate=facts.label_means[task]
            )
        elif kind == "multiclass":
            probabilities = said_of(facts, task, scores)[known]
            metrics[task] = multiclass_metrics(known_rows[0], probabilities, facts.classes[task])
        elif kind == "regression":
            metrics[task] = regression_metrics(*known_rows, train_mean=facts.label_means[task])
        else:
            constant = facts.base_prediction(task)
            metrics[task] = positive_metrics(kind, *known_rows, constant=constant)
    return metrics


def flat(metrics: Mapping[str, TaskMetrics]) -> dict[str, float]:
    """Returns metrics by `scenario/task/metric`."""
    return {
        f"{name}/{task}/{metric}": value
        for name, tasks in metrics.items()
        for task, values in tasks.items()
        for metric, value in values.items()
    }
