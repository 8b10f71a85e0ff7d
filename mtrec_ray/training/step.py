"""One optimizer step: the joint loss of a global batch, exact over ranks and micro-batches."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.training.collectives import sum_over_ranks, world
from mtrec_ray.training.forward import Forward, without_synchronisation
from mtrec_ray.training.item_vectors import Autocast, Batch
from mtrec_ray.training.losses import (
    PLAIN,
    Shapes,
    general_loss,
    joint_loss,
    label_counts,
    loss_sums,
)
from mtrec_ray.training.retrieval_loss import RETRIEVAL, Candidates, retrieval_loss
from mtrec_ray.training.union_batch import (
    Ahead,
    UnionBatch,
    look_ahead,
    losses_after,
    random_states,
)
from mtrec_ray.training.weighting import MovingWeights
from mtrec_ray.training.weighting_methods import Seen


@dataclass
class StepResult:
    """A step over all ranks: loss sums and label counts of each scenario and task, f64[K].

    Both by the weights of rows.

    In the manifest's order; `loss` is the joint loss.

    Attributes:
        retrieval_sums, retrieval_counts: the same of the retrieval side's loss, by scenario.
        seen: what a method of moving weights learns from; None with fixed ones.
        look_back: computes the losses of its units on the same rows again, for a method that asks.
    """

    sums: Tensor
    counts: Tensor
    loss: float
    retrieval_sums: dict[str, float]
    retrieval_counts: dict[str, float]
    seen: Seen | None = None
    look_back: Callable[[], Tensor] | None = None


def accumulate(
    module: nn.Module,
    facts: Mapping[str, PreparedScenario],
    batches: Sequence[Batch],
    weights: Tensor,
    *,
    encode: bool,
    autocast: Autocast = nullcontext,
    drawn: Mapping[str, Candidates] | None = None,
    shapes: Shapes = PLAIN,
    moving: MovingWeights | None = None,
    step: int = 0,
) -> StepResult:
    """Add the gradient of the joint loss of the union batch to the parameters' gradients.

    The counts of the whole step (all ranks, all micro-batches) are known before the first
    backward; only the last micro-batch synchronises gradients. With candidates the retrieval side
    learns, too. With `moving` the tasks' weights are those of the step.
    """
    rows = UnionBatch(facts, batches, shapes, encode, autocast, drawn or {})
    counts, size = rows.counts(), world()[1]
    ahead, states = Ahead(), list[Tensor]()
    if moving is not None:
        states = random_states(counts.device) if moving.method.looks_back else states
        ahead = look_ahead(module, rows, counts, moving, step)
    learned = weights if ahead.weights is None else ahead.weights
    total = torch.zeros(len(counts) + len(rows.drawn), dtype=counts.dtype, device=counts.device)
    for i in range(len(batches)):
        with nullcontext() if i == len(batches) - 1 else without_synchronisation(module):
            logits, sums = ahead.outputs or rows.forward(module, i)
            beside = general_loss(facts, logits, rows.labels(i), counts, rows.weights(i), shapes)
            beside = beside + retrieval_loss(facts, logits, rows.drawn, weights)
            (size * (joint_loss(sums, counts, learned.to(sums)) + beside)).backward()
        own = [logits[RETRIEVAL + name].detach() for name in rows.drawn]
        total += torch.cat([sums.detach(), *(s.view(1) for s in own)]).double()
    result = step_result(sum_over_ranks(total), counts, weights, rows.drawn)
    if moving is not None:
        result.seen = moving.seen(step, result.sums, counts, ahead.gramian)
        if moving.method.looks_back:
            result.look_back = partial(losses_after, module, rows, counts, moving, states)
    return result


def step_result(
    total: Tensor, counts: Tensor, weights: Tensor, drawn: Mapping[str, Candidates]
) -> StepResult:
    """Returns a step's result for the sums over ranks f64[K + R]: of tasks, then of retrieval."""
    sums, retrieval = total[: len(counts)], total[len(counts) :].tolist()
    return StepResult(
        sums=sums,
        counts=counts,
        loss=joint_loss(sums, counts, weights.double()).item(),
        retrieval_sums=dict(zip(drawn, retrieval, strict=True)),
        retrieval_counts={name: float(own.num_positives) for name, own in drawn.items()},
    )


def scenario_gradients(
    module: Forward,
    facts: Mapping[str, PreparedScenario],
    batch: Batch,
    weights: Tensor,
    shapes: Shapes = PLAIN,
) -> dict[str, Tensor]:
    """Returns the flat gradient of each scenario's lambda_i L_i at the first shared weight.

    Empty where that weight does not learn.
    """
    shared = module.model.sharing.first_weight
    if not shared.requires_grad:
        return {}
    labels = {name: s.labels for name, s in batch.items()}
    rows = {name: s.weights for name, s in batch.items()}
    counts = sum_over_ranks(label_counts(facts, labels, rows, shapes))
    module.eval()
    sums = loss_sums(facts, module(batch, encode=False), labels, rows, shapes)
    module.train()
    gradients: dict[str, Tensor] = {}
    start = 0
    for name, scenario in facts.items():
        tasks = slice(start, start + len(scenario.tasks))
        start = tasks.stop
        loss = joint_loss(sums[tasks], counts[tasks], weights[tasks].to(sums))
        (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True)
        gradients[name] = sum_over_ranks(gradient.clone()).flatten()
    return gradients


def gradient_shares(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns the norm of each scenario's gradient over the sum of all norms."""
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    total = sum(norms.values()) or 1.0
    return {name: norm / total for name, norm in norms.items()}


def gradient_cosines(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns cosines of two scenarios' gradients, by `first/second`: below 0 they conflict."""
    return {
        f"{a}/{b}": torch.nn.functional.cosine_similarity(gradients[a], gradients[b], 0).item()
        for a, b in itertools.combinations(gradients, 2)
    }
