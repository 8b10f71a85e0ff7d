"""The joint loss as sums and counts, divided once by the global counts.

    L_it = sum over labelled rows of v_j loss_j / N_it
    L_i  = sum_t w_it L_it / sum_t w_it
    L    = sum_i lambda_i L_i / sum_i lambda_i

v_j is the weight of row j (1 where the data has none), and N_it the sum of the labelled rows'
weights, their count. With c_it = lambda_i w_it / (sum lambda * sum_t w_it) and R ranks each rank
backpropagates R * sum_it c_it * S_it_local / N_it_global. DDP averages gradients over ranks, and
1/R * sum_r R * S_it_r / N_it = S_it / N_it: exactly the gradient of L on the union batch, wherever
the rows (and missing labels) fell.

Letters: N rows, T tasks of a scenario, K tasks of all scenarios in the manifest's order.
"""

from collections.abc import Mapping
from math import fsum, nan

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.project.scenario import Scenario

TaskKey = tuple[str, str]


def task_keys(facts: Mapping[str, PreparedScenario]) -> list[TaskKey]:
    """Returns (scenario, task) in the manifest's order, which is that of every tensor [K]."""
    return [(name, task) for name, scenario in facts.items() for task in scenario.tasks]


def task_labels(facts: Mapping[str, PreparedScenario]) -> list[str]:
    """Returns `scenario/task` for each entry of a tensor [K]."""
    return ["/".join(key) for key in task_keys(facts)]


def loss_weights(scenarios: Mapping[str, Scenario]) -> dict[TaskKey, float]:
    """Returns c_it by (scenario, task); they sum to 1, whatever the order of the file."""
    total = fsum(s.weight for s in scenarios.values())
    weights: dict[TaskKey, float] = {}
    for name, scenario in scenarios.items():
        task_total = fsum(t.weight for t in scenario.tasks.values())
        for task, spec in scenario.tasks.items():
            weights[name, task] = scenario.weight / total * spec.weight / task_total
    return weights


def weight_tensor(
    facts: Mapping[str, PreparedScenario], scenarios: Mapping[str, Scenario]
) -> Tensor:
    """Returns f32[K]: c_it in the manifest's order, which may not be the project file's."""
    weights = loss_weights(scenarios)
    return torch.tensor([weights[key] for key in task_keys(facts)])


def target(facts: PreparedScenario, task: str, labels: Tensor) -> Tensor:
    """Returns f32[N]: what the task's loss compares with, NaN where the row takes no part.

    Regression labels are standardised by the training mean and deviation, durations so on their
    logarithmic scale. A task over the entire
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


def log_joint(facts: PreparedScenario, task: str, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns f32[N] each: log p and log (1 - p) of a task and all tasks above it together.

    With q of the tasks above and r of the task, 1 - q r = (1 - q) + q (1 - r): exact where both are
    near 1, so that no gradient is lost.
    """
    logit = logits[:, facts.tasks.index(task)].float()
    log_p, log_rest = F.logsigmoid(logit), F.logsigmoid(-logit)
    if task not in facts.given:
        return log_p, log_rest
    above, rest_above = log_joint(facts, facts.given[task], logits)
    return above + log_p, torch.logaddexp(rest_above, above + log_rest)


def logit_losses(facts: PreparedScenario, task: str, logits: Tensor, targets: Tensor) -> Tensor:
    """Returns f32[N]: loss of each row for targets without NaN."""
    logit = logits[:, facts.tasks.index(task)].float()
    if facts.kinds[task] in ("regression", "duration"):
        return (logit - targets) ** 2
    if facts.kinds[task] == "count":
        return poisson_deviance(logit, targets) / facts.dispersion(task)
    if task not in facts.entire:
        return F.binary_cross_entropy_with_logits(logit, targets, reduction="none")
    log_p, log_rest = log_joint(facts, task, logits)
    return -(targets * log_p + (1 - targets) * log_rest)


# f32[N] by scenario: the weights of rows; those of a scenario without an entry are 1.
RowWeights = Mapping[str, Tensor]
EQUAL: RowWeights = {}


def poisson_deviance(log_means: Tensor, counts: Tensor) -> Tensor:
    """Returns f32[N]: the deviance of each count, 2 (y log(y / m) - y + m), from log m.

    Divided by the dispersion of training labels (quasi-Poisson) it is near 1 for a model that knows
    the mean alone, as the squared error of a standardised number is.
    """
    return 2 * (log_means.exp() - counts * log_means + torch.xlogy(counts, counts) - counts)


def label_counts(
    scenarios: Mapping[str, PreparedScenario],
    labels: Mapping[str, Tensor],
    row_weights: RowWeights = EQUAL,
) -> Tensor:
    """Returns f64[K], the number of labelled rows of every scenario and task, by their weights."""
    counts = []
    for name, facts in scenarios.items():
        for task in facts.tasks:
            known = target(facts, task, labels[name]).isfinite().double()
            counts.append((known * row_weights[name] if name in row_weights else known).sum())
    return torch.stack(counts)


def loss_sums(
    scenarios: Mapping[str, PreparedScenario],
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    row_weights: RowWeights = EQUAL,
) -> Tensor:
    """Returns f32[K]: sum of the weighted row losses of every scenario and task."""
    sums = []
    for name, facts in scenarios.items():
        for task in facts.tasks:
            targets = target(facts, task, labels[name])
            known = targets.isfinite()
            losses = logit_losses(facts, task, logits[name], targets.nan_to_num(0.0))
            losses = losses.masked_fill(~known, 0.0)
            sums.append((losses * row_weights[name] if name in row_weights else losses).sum())
    return torch.stack(sums)


def joint_loss(sums: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """Returns the sum of c_it * S_it / N_it; a task without a labelled row adds 0."""
    return (weights * sums / at_least_something(counts).to(sums.dtype)).sum()


def at_least_something(counts: Tensor) -> Tensor:
    """Returns counts with 1 in place of 0, to divide by; weights may sum to less than 1."""
    return counts.masked_fill(counts == 0, 1)


def general_loss(
    scenarios: Mapping[str, PreparedScenario],
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    counts: Tensor,
    row_weights: RowWeights = EQUAL,
) -> Tensor:
    """Returns the general head's loss: the mean over scenarios of S_i / N_i of their main task.

    `logits` has its own under `general/NAME`; `counts` f64[K] are global, as for the joint loss.
    """
    total, start, num = counts.new_zeros(()), 0, 0
    for name, facts in scenarios.items():
        logit = logits.get(f"general/{name}")
        if logit is not None and facts.main:
            column = facts.tasks.index(facts.main)
            weights = row_weights.get(name, torch.ones_like(labels[name][:, column]))
            loss_sum = binary_loss_sum(logit, labels[name][:, column], weights)
            total = total + loss_sum / at_least_something(counts[start + column]).to(loss_sum)
            num += 1
        start += len(facts.tasks)
    return total / max(num, 1)


def binary_loss_sum(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Returns f32[]: weighted log loss summed over rows with a label; all [N], NaN: no label."""
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), labels.nan_to_num(0.0), reduction="none"
    )
    return (losses.masked_fill(~labels.isfinite(), 0.0) * weights).sum()
