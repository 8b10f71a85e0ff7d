"""One optimizer step: the joint loss of a global batch, exact over ranks and micro-batches."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.training.collectives import sum_over_ranks, world
from mtrec_ray.training.item_vectors import Autocast, Batch, ItemVectors
from mtrec_ray.training.losses import (
    PLAIN,
    Shapes,
    general_loss,
    joint_loss,
    label_counts,
    loss_sums,
)
from mtrec_ray.training.retrieval_loss import (
    RETRIEVAL,
    Candidates,
    positives,
    retrieval_loss,
    retrieval_loss_sum,
)


class Forward(nn.Module):
    """Texts to logits, as one module, so that DDP sees every parameter of a step."""

    vectors: ItemVectors

    def __init__(self, model: Recommender, vectors: ItemVectors) -> None:
        super().__init__()
        self.model = model
        object.__setattr__(self, "vectors", vectors)

    def forward(
        self, batch: Batch, encode: bool, drawn: Mapping[str, Candidates] | None = None
    ) -> dict[str, Tensor]:
        """Returns logits f32[N, T] by scenario; with `encode` the encoder learns from it.

        With candidates the retrieval side's loss sums f32[] are `retrieval/NAME`.
        """
        vectors = self.vectors.of_batch(batch, encode=encode)
        sums: dict[str, Tensor] = {}
        for name, own in (drawn or {}).items():
            rows = positives(self.model.facts[name], batch[name])
            texts = vectors[name], self.vectors.of_items(name, own.items)
            sums[RETRIEVAL + name] = retrieval_loss_sum(self.model, name, rows, texts, own)
        return self.model(batch, vectors) | sums


def wrap(forward: Forward, *, some_unused: bool) -> nn.Module:
    """Returns the module, wrapped by DDP where there are several ranks."""
    if world()[1] == 1:
        return forward
    device = next(forward.parameters()).device
    if forward.vectors.gathered is not None:  # it sums the encoder's gradient itself
        names = {f"model.encoder.{n}" for n, _ in forward.model.encoder.named_parameters()}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(forward, names)
    return DistributedDataParallel(
        forward,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=some_unused,
        forward_sync_buffers=False,  # they are constants of the data, the same on every rank
        gradient_as_bucket_view=True,
    )


@dataclass
class StepResult:
    """A step over all ranks: loss sums and label counts of each scenario and task, f64[K].

    Both by the weights of rows.

    In the manifest's order; `loss` is the joint loss.

    Attributes:
        retrieval_sums, retrieval_counts: the same of the retrieval side's loss, by scenario.
    """

    sums: Tensor
    counts: Tensor
    loss: float
    retrieval_sums: dict[str, float]
    retrieval_counts: dict[str, float]


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
) -> StepResult:
    """Add the gradient of the joint loss of the union batch to the parameters' gradients.

    The counts of the whole step (all ranks, all micro-batches) are known before the first
    backward; only the last micro-batch synchronises gradients. With candidates the retrieval side
    learns, too.
    """
    labels = [{name: s.labels for name, s in batch.items()} for batch in batches]
    rows = [{name: s.weights for name, s in batch.items()} for batch in batches]
    every = [label_counts(facts, x, v, shapes) for x, v in zip(labels, rows, strict=True)]
    counts = sum_over_ranks(torch.stack(every).sum(0))
    drawn = drawn or {}
    size = world()[1]
    total = torch.zeros(len(counts) + len(drawn), dtype=counts.dtype, device=counts.device)
    for i, batch in enumerate(batches):
        with nullcontext() if i == len(batches) - 1 else without_synchronisation(module):
            with autocast():
                logits = module(batch, encode, drawn)
            sums = loss_sums(facts, logits, labels[i], rows[i], shapes)
            beside = general_loss(facts, logits, labels[i], counts, rows[i], shapes)
            beside = beside + retrieval_loss(facts, logits, drawn, weights)
            (size * (joint_loss(sums, counts, weights.to(sums)) + beside)).backward()
        own = [logits[RETRIEVAL + name].detach() for name in drawn]
        total += torch.cat([sums.detach(), *(s.view(1) for s in own)]).double()
    return step_result(sum_over_ranks(total), counts, weights, drawn)


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


def without_synchronisation(module: nn.Module) -> AbstractContextManager[object]:
    """Returns a context in which DDP leaves gradients on their rank."""
    if isinstance(module, DistributedDataParallel):
        return cast("DistributedDataParallel", module).no_sync()
    return nullcontext()


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
