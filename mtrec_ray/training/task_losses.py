"""The loss of each row, by the kind of its task and the shape that the project file gives it.

Letters: N rows, T tasks of a scenario, L their logits, C classes of a task.
"""

from collections.abc import Mapping
from math import nan

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.project.task import Task


def target(facts: PreparedScenario, task: str, labels: Tensor) -> Tensor:
    """Returns f32[N]: what the task's loss compares with, NaN where the row takes no part.

    Regression labels are standardised by the training mean and deviation, durations so on their
    logarithmic scale; those of a multiclass task are numbers of classes. A task over the entire
    space (ESMM, 1804.07931) has label 0 where a task above it is 0, and null where the first of
    them that is not 1 is null.
    """
    label = labels[:, facts.tasks.index(task)]
    if facts.kinds[task] == "regression":
        return (label - facts.label_means[task]) / facts.label_stds[task]
    if facts.kinds[task] == "duration":
        return (label.log1p() - facts.label_log_means[task]) / facts.label_log_stds[task]
    return joint_label(facts, task, labels) if task in facts.entire else label


def joint_label(facts: PreparedScenario, task: str, labels: Tensor) -> Tensor:
    """Returns f32[N]: whether a task and all tasks above it are positive, NaN where unknown."""
    label = labels[:, facts.tasks.index(task)]
    if task not in facts.given:
        return label
    parent = joint_label(facts, facts.given[task], labels)
    known = label.masked_fill(parent.isnan(), nan)
    return torch.where(parent == 0, torch.zeros_like(label), known)


def logit_losses(
    facts: PreparedScenario, task: str, logits: Tensor, targets: Tensor, shape: Task | None = None
) -> Tensor:
    """Returns f32[N]: loss of each row of logits f32[N, L], for targets without NaN.

    `shape`: the task of the project file, where it has a loss of another shape than its kind.
    """
    own = logits[:, facts.logits_of(task)].float()
    if task in facts.classes:
        smoothing = 0.0 if shape is None else shape.label_smoothing
        return F.cross_entropy(own, targets.long(), reduction="none", label_smoothing=smoothing)
    logit = own[:, 0]
    if facts.kinds[task] in ("regression", "duration"):
        if shape is not None and shape.huber is not None:
            return huber(logit - targets, shape.huber / facts.label_stds[task])
        return (logit - targets) ** 2
    if facts.kinds[task] == "count":
        return poisson_deviance(logit, targets) / facts.dispersion(task)
    if task not in facts.entire and shape is None:
        return F.binary_cross_entropy_with_logits(logit, targets, reduction="none")
    above = facts.given if task in facts.entire else {}
    log_p, log_rest = log_joint(facts.logit_tasks, above, task, logits)
    if shape is not None:
        return shaped_losses(shape, log_p, log_rest, targets)
    return -(targets * log_p + (1 - targets) * log_rest)


def shaped_losses(shape: Task, log_p: Tensor, log_rest: Tensor, targets: Tensor) -> Tensor:
    """Returns f32[N]: log losses with smoothed labels (1512.00567) and focal weights (1708.02002).

    For log p and log (1 - p), f32[N] each.
    """
    positive, negative = -log_p, -log_rest
    if shape.focal:
        positive = positive * (shape.focal * log_rest).exp()
        negative = negative * (shape.focal * log_p).exp()
    smooth = (1 - shape.label_smoothing) * targets + shape.label_smoothing / 2
    return smooth * positive + (1 - smooth) * negative


def huber(errors: Tensor, delta: float) -> Tensor:
    """Returns f32[N]: squares of errors up to delta, from there on lines with the same slope."""
    size = errors.abs()
    return torch.where(size <= delta, errors**2, 2 * delta * size - delta**2)


def class_weights(shape: Task | None, targets: Tensor) -> Tensor:
    """Returns f32[N]: `positive_weight` where the target is 1, 1 where it is 0 or NaN.

    In between for a target that a teacher has mixed. Of a multiclass task the weight of the
    target's class.
    """
    if shape is not None and shape.kind == "multiclass":
        weights = targets.new_tensor(shape.weights_of_classes)
        return weights[targets.nan_to_num(0.0).long()]
    weight = 1.0 if shape is None else shape.positive_weight
    return 1 + (weight - 1) * targets.nan_to_num(0.0)


def log_joint(
    tasks: list[str], given: Mapping[str, str], task: str, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns f32[N] each: log p and log (1 - p) of a task and all tasks above it together.

    `tasks`: those of the logits [N, L].

    With q of the tasks above and r of the task, 1 - q r = (1 - q) + q (1 - r): exact where both are
    near 1, so that no gradient is lost.
    """
    logit = logits[:, tasks.index(task)].float()
    log_p, log_rest = F.logsigmoid(logit), F.logsigmoid(-logit)
    if task not in given:
        return log_p, log_rest
    above, rest_above = log_joint(tasks, given, given[task], logits)
    return above + log_p, torch.logaddexp(rest_above, above + log_rest)


def poisson_deviance(log_means: Tensor, counts: Tensor) -> Tensor:
    """Returns f32[N]: the deviance of each count, 2 (y log(y / m) - y + m), from log m.

    Divided by the dispersion of training labels (quasi-Poisson) it is near 1 for a model that knows
    the mean alone, as the squared error of a standardised number is.
    """
    return 2 * (log_means.exp() - counts * log_means + torch.xlogy(counts, counts) - counts)
