"""Which of two models is better for a scenario, and whether significantly: paired bootstrap.

The score of a scenario is the mean over its tasks of NE (classes) or the relative error of numbers,
as in early stopping: lower is better, 1 for a model that knows only the training mean.

Letters: N rows, T tasks, P predictions, B resamples, U users.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Floats
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.evaluation.bootstrap import (
    Interval,
    Resampled,
    evaluate_resamples,
    interval,
    loss_ratio_of,
    paired_difference,
)
from mtrec_ray.evaluation.metrics import (
    MAIN_METRIC,
    ROOTS,
    constant_losses,
    constant_of,
    mean_task_score,
    row_losses,
    said_of,
)


@dataclass(frozen=True)
class ScoredRows:
    """Rows of a split: persons i64[N], labels f32[N, T], and predictions f32[N, P] by model."""

    users: NDArray[np.int64]
    labels: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]]


def rare_labels(facts: PreparedScenario, labels: NDArray[np.float32]) -> dict[str, int]:
    """Returns the number of labels of each task; for a binary task, of its rarer label.

    For a multiclass task, of all classes but the most frequent one.
    """
    counts = {}
    for i, (task, kind) in enumerate(facts.kinds.items()):
        known = labels[np.isfinite(labels[:, i]), i]
        counts[task] = len(known)
        if kind in ("binary", "multiclass"):
            _, rows = np.unique(known, return_counts=True)
            counts[task] -= int(rows.max(initial=0))
    return counts


def resampled_task_score(
    facts: PreparedScenario, task: str, scored: ScoredRows, model: str
) -> Resampled:
    """NE or relative error f64[B] of a task, from user weights f64[B, U]."""
    i, kind = facts.tasks.index(task), facts.kinds[task]
    known = np.isfinite(scored.labels[:, i])
    labels = scored.labels[known, i].astype(np.float64)
    people, codes = np.unique(scored.users, return_inverse=True)
    losses = row_losses(kind, labels, said_of(facts, task, scored.scores[model])[known])
    constant = constant_losses(kind, labels, constant_of(facts, task))
    ratio = loss_ratio_of(losses, constant, codes[known], len(people))
    return (lambda weights: np.sqrt(ratio(weights))) if kind in ROOTS else ratio


def score_difference(
    facts: PreparedScenario, scored: ScoredRows, tasks: list[str], models: tuple[str, str]
) -> Interval:
    """Returns the first model's mean task score less the second's: below 0 it is better."""
    scores = [[resampled_task_score(facts, t, scored, m) for t in tasks] for m in models]

    def difference(weights: Floats) -> Floats:
        first, second = (mean_task_score(np.stack([of(weights) for of in s], 1)) for s in scores)
        return first - second

    whole, values = evaluate_resamples(difference, len(np.unique(scored.users)), seed=0)
    return interval(values, whole)


def choose_model(
    facts: PreparedScenario, scored: ScoredRows, least_labels: int, keep: str
) -> dict[str, Any]:
    """Returns whether the model `finetuned` is kept in place of `joint`, and why."""
    counts = rare_labels(facts, scored.labels)
    tasks = [t for t, n in counts.items() if n >= least_labels]
    record: dict[str, Any] = {"labels": counts, "tasks": tasks}
    if not tasks:
        return {**record, "chosen": "joint", "reason": too_few(counts, least_labels)}
    gap = score_difference(facts, scored, tasks, ("finetuned", "joint"))
    better = gap.high < 0 if keep == "certain" else gap.value < 0
    words = f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
    worse = "not better" if gap.value >= 0 else "not significantly better"
    verdict = "better" if better else worse
    return {
        **record,
        "chosen": "finetuned" if better else "joint",
        "reason": f"fine-tuned is {verdict}: score {words}, lower is better",
        "difference": asdict(gap),
        "metrics": task_differences(facts, scored, tasks, ("finetuned", "joint")),
    }


def too_few(counts: dict[str, int], least: int) -> str:
    """Returns why a scenario with too few validation labels keeps the joint model."""
    most = max(counts, key=lambda task: counts[task])
    return (
        f"too few validation labels: at most {counts[most]} of the rarer kind ({most}), "
        f"least_labels is {least}"
    )


def task_differences(
    facts: PreparedScenario, scored: ScoredRows, tasks: list[str], models: tuple[str, str]
) -> dict[str, dict[str, float]]:
    """Returns by task the first model's main metric less the second's, with an interval."""
    differences = {}
    for task in tasks:
        i = facts.tasks.index(task)
        known = np.isfinite(scored.labels[:, i])
        metric = MAIN_METRIC[facts.kinds[task]]
        first, second = ([said_of(facts, task, scored.scores[m])[known]] for m in models)
        labels = scored.labels[known, i].astype(np.float64)
        gap = paired_difference(metric, labels, first, second, scored.users[known])
        differences[task] = {"metric": metric, **asdict(gap)}
    return differences
