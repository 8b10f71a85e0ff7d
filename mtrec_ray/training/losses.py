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
from math import fsum

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.task import Task
from mtrec_ray.training.task_losses import class_weights, logit_losses, target

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


# f32[N] by scenario: the weights of rows; those of a scenario without an entry are 1.
RowWeights = Mapping[str, Tensor]
EQUAL: RowWeights = {}


# Tasks whose loss has a shape of its own; that of a task without an entry is its kind's.
Shapes = Mapping[TaskKey, Task]
PLAIN: Shapes = {}


def task_shapes(scenarios: Mapping[str, Scenario]) -> dict[TaskKey, Task]:
    """Returns the tasks of a project whose loss has a shape of its own."""
    return {
        (name, task): spec
        for name, scenario in scenarios.items()
        for task, spec in scenario.tasks.items()
        if spec.shape
    }


def weigh(losses: Tensor, targets: Tensor, rows: Tensor | None, shape: Task | None) -> Tensor:
    """Returns values [N] of rows by the weights of rows and of classes."""
    weighed = losses if rows is None else losses * rows
    return weighed if shape is None else weighed * class_weights(shape, targets)


def label_counts(
    scenarios: Mapping[str, PreparedScenario],
    labels: Mapping[str, Tensor],
    row_weights: RowWeights = EQUAL,
    shapes: Shapes = PLAIN,
) -> Tensor:
    """Returns f64[K], the number of labelled rows of every scenario and task, by their weights."""
    counts = []
    for name, facts in scenarios.items():
        for task in facts.tasks:
            targets = target(facts, task, labels[name])
            known, shape = targets.isfinite().double(), shapes.get((name, task))
            counts.append(weigh(known, targets, row_weights.get(name), shape).sum())
    return torch.stack(counts)


def loss_sums(
    scenarios: Mapping[str, PreparedScenario],
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    row_weights: RowWeights = EQUAL,
    shapes: Shapes = PLAIN,
) -> Tensor:
    """Returns f32[K]: sum of the weighted row losses of every scenario and task."""
    sums = []
    for name, facts in scenarios.items():
        for task in facts.tasks:
            targets = target(facts, task, labels[name])
            known, shape = targets.isfinite(), shapes.get((name, task))
            losses = logit_losses(facts, task, logits[name], targets.nan_to_num(0.0), shape)
            losses = losses.masked_fill(~known, 0.0)
            sums.append(weigh(losses, targets, row_weights.get(name), shape).sum())
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
    shapes: Shapes = PLAIN,
) -> Tensor:
    """Returns the general head's loss: the mean over scenarios of S_i / N_i of their main task.

    `logits` has its own under `general/NAME`; `counts` f64[K] are global, as for the joint loss.
    """
    total, start, num = counts.new_zeros(()), 0, 0
    for name, facts in scenarios.items():
        logit = logits.get(f"general/{name}")
        if logit is not None and facts.main:
            column = facts.tasks.index(facts.main)
            label, shape = labels[name][:, column], shapes.get((name, facts.main))
            weights = weigh(torch.ones_like(label), label, row_weights.get(name), shape)
            loss_sum = binary_loss_sum(logit, label, weights)
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
