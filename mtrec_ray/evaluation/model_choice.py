"""Which of two models is better for a scenario, and how surely: paired bootstrap over users.

The score of a scenario is the mean over its tasks of NE (binary) or relative RMSE (regression), as
in early stopping: lower is better, 1 for a model that knows only the training mean.

Letters: N rows, T tasks, B resamples, U users.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.evaluation.bootstrap import (
    Interval,
    draw_users,
    interval,
    loss_ratio_of,
    paired_difference,
)
from mtrec_ray.evaluation.metrics import EPSILON, Floats


@dataclass(frozen=True)
class ScoredRows:
    """Rows of a split: persons i64[N], labels f32[N, T], and predictions f32[N, T] by model."""

    users: NDArray[np.int64]
    labels: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]]


def rare_labels(facts: PreparedScenario, labels: NDArray[np.float32]) -> dict[str, int]:
    """By task: labels of its rarer kind; of a regression all."""
    counts = {}
    for i, (task, kind) in enumerate(facts.kinds.items()):
        own = labels[:, i]
        known = int(np.isfinite(own).sum())
        positive = int(np.nansum(own == 1))
        counts[task] = known if kind == "regression" else min(positive, known - positive)
    return counts


def prediction_losses(kind: str, labels: Floats, scores: Floats) -> Floats:
    """f64[N]: log-loss or squared error of each row."""
    if kind == "regression":
        return (labels - scores) ** 2
    p = np.clip(scores, EPSILON, 1 - EPSILON)
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))


def resampled_task_scores(
    facts: PreparedScenario, task: str, scored: ScoredRows, model: str, weights: Floats
) -> Floats:
    """f64[B]: NE or relative RMSE of a task in each resample, from user weights f64[B, U]."""
    i = facts.tasks.index(task)
    known = np.isfinite(scored.labels[:, i])
    labels = scored.labels[known, i].astype(np.float64)
    _, codes = np.unique(scored.users, return_inverse=True)
    mean = np.full(len(labels), facts.label_means[task])
    kind = facts.kinds[task]
    losses = prediction_losses(kind, labels, scored.scores[model][known, i].astype(np.float64))
    constant = prediction_losses(kind, labels, mean)
    found = loss_ratio_of(losses, constant, codes[known], weights.shape[1])(weights)
    return np.sqrt(found) if kind == "regression" else found


def score_difference(
    facts: PreparedScenario, scored: ScoredRows, tasks: list[str], models: tuple[str, str]
) -> Interval:
    """Score of the first model less that of the second over some tasks: below 0 it is better."""
    num_users = len(np.unique(scored.users))
    weights = np.concatenate([np.ones((1, num_users)), draw_users(num_users, seed=0)])
    first, second = (
        np.nanmean([resampled_task_scores(facts, t, scored, m, weights) for t in tasks], 0)
        for m in models
    )
    difference = first - second
    return interval(difference[1:], float(difference[0]))


def choose_model(
    facts: PreparedScenario, scored: ScoredRows, least_labels: int, keep: str
) -> dict[str, Any]:
    """Whether the model `finetuned` is kept in place of `joint`, and why."""
    counts = rare_labels(facts, scored.labels)
    tasks = [t for t, n in counts.items() if n >= least_labels]
    found: dict[str, Any] = {"labels": counts, "tasks": tasks}
    if not tasks:
        return {**found, "chosen": "joint", "reason": too_few(counts, least_labels)}
    gap = score_difference(facts, scored, tasks, ("finetuned", "joint"))
    better = gap.high < 0 if keep == "certain" else gap.value < 0
    words = f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
    verdict = "better" if better else ("not better" if gap.value >= 0 else "not surely better")
    return {
        **found,
        "chosen": "finetuned" if better else "joint",
        "reason": f"fine-tuned is {verdict}: score {words}, lower is better",
        "difference": asdict(gap),
        "metrics": task_differences(facts, scored, tasks, ("finetuned", "joint")),
    }


def too_few(counts: dict[str, int], least: int) -> str:
    """Why a scenario stays joint whose validation rows have too few labels."""
    most = max(counts, key=lambda task: counts[task])
    return (
        f"too few validation labels: at most {counts[most]} of the rarer kind ({most}), "
        f"least_labels is {least}"
    )


def task_differences(
    facts: PreparedScenario, scored: ScoredRows, tasks: list[str], models: tuple[str, str]
) -> dict[str, dict[str, float]]:
    """By task: the first model's AUC (RMSE) less the second's, with its interval."""
    found = {}
    for task in tasks:
        i = facts.tasks.index(task)
        known = np.isfinite(scored.labels[:, i])
        metric = "auc" if facts.kinds[task] == "binary" else "rmse"
        first, second = ([scored.scores[m][known, i].astype(np.float64)] for m in models)
        labels = scored.labels[known, i].astype(np.float64)
        gap = paired_difference(metric, labels, first, second, scored.users[known])
        found[task] = {"metric": metric, **asdict(gap)}
    return found
