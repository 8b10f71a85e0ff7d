"""The rows of a step, and what is known of it before its first backward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.training.collectives import sum_over_ranks
from mtrec_ray.training.forward import unwrapped
from mtrec_ray.training.item_vectors import Autocast, Batch
from mtrec_ray.training.losses import Shapes, at_least_something, label_counts, loss_sums
from mtrec_ray.training.retrieval_loss import Candidates
from mtrec_ray.training.weighting import MovingWeights


@dataclass(frozen=True)
class UnionBatch:
    """This rank's micro-batches of a step, and how they are read."""

    facts: Mapping[str, PreparedScenario]
    batches: Sequence[Batch]
    shapes: Shapes
    encode: bool
    autocast: Autocast
    drawn: Mapping[str, Candidates]

    def labels(self, i: int) -> dict[str, Tensor]:
        """Returns the labels of a micro-batch, by scenario."""
        return {name: s.labels for name, s in self.batches[i].items()}

    def weights(self, i: int) -> dict[str, Tensor]:
        """Returns the weights of its rows."""
        return {name: s.weights for name, s in self.batches[i].items()}

    def counts(self) -> Tensor:
        """Returns f64[K], the labels of the whole step; every rank must call this."""
        every = [
            label_counts(self.facts, self.labels(i), self.weights(i), self.shapes)
            for i in range(len(self.batches))
        ]
        return sum_over_ranks(torch.stack(every).sum(0))

    def forward(self, module: nn.Module, i: int) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the logits of a micro-batch, and its loss sums f32[K]."""
        with self.autocast():
            logits = module(self.batches[i], self.encode, self.drawn)
        labels, weights = self.labels(i), self.weights(i)
        return logits, loss_sums(self.facts, logits, labels, weights, self.shapes)


@dataclass
class Ahead:
    """What is known of a step before its first backward pass.

    Attributes:
        weights: f64[K], of the tasks' losses; None for those of the project file.
        gramian: inner products of gradients (`Seen`).
        outputs: logits and loss sums of the one micro-batch, which are not computed again.
    """

    weights: Tensor | None = None
    gramian: Tensor | None = None
    outputs: tuple[dict[str, Tensor], Tensor] | None = None


def look_ahead(
    module: nn.Module, rows: UnionBatch, counts: Tensor, moving: MovingWeights, step: int
) -> Ahead:
    """Returns the weights of a step by its losses or gradients; every rank must call this.

    A step of several micro-batches is computed twice, with the same random numbers.
    """
    nothing = torch.zeros_like(counts)
    if not moving.method.looks_ahead:
        return Ahead(moving.task_weights(moving.seen(step, nothing, nothing, None)))
    wants_gradients = moving.looks_at_gradients(step)
    if len(rows.batches) == 1:
        outputs = rows.forward(module, 0)
        found = [(outputs[1], unit_gradients(module, outputs[1], counts, moving, wants_gradients))]
    else:
        outputs, found = None, []
        plain = unwrapped(module)
        with torch.random.fork_rng(), torch.set_grad_enabled(wants_gradients):
            for i in range(len(rows.batches)):
                sums = rows.forward(plain, i)[1]
                gradients = unit_gradients(module, sums, counts, moving, wants_gradients)
                found.append((sums.detach(), gradients))
    sums = sum_over_ranks(torch.stack([own.detach().double() for own, _ in found]).sum(0))
    gramian = None
    if wants_gradients:
        gradients = sum_over_ranks(torch.stack([own for _, own in found]).sum(0)).double()
        gramian = gradients @ gradients.T
    seen = moving.seen(step, sums, counts, gramian)
    return Ahead(moving.task_weights(seen), gramian, outputs)


def unit_gradients(
    module: nn.Module, sums: Tensor, counts: Tensor, moving: MovingWeights, wanted: bool
) -> Tensor:
    """Returns f32[n, P], this rank's gradients of n p_u L_u at the first shared weight.

    Empty where they are not wanted.
    """
    shared = unwrapped(module).model.sharing.first_weight
    if not wanted:
        return shared.new_zeros(0)
    num, units = len(moving.units.names), moving.units
    losses = units.matrix((num * units.task_weights(moving.method.ones)).to(sums)) @ (
        sums / at_least_something(counts).to(sums)
    )
    gradients = [
        torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)[0]
        for loss in losses
    ]
    return torch.stack([gradient.flatten() for gradient in gradients])


def random_states(device: torch.device) -> list[Tensor]:
    """Returns the states of the random numbers of the CPU, and of the device if it is another."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


@torch.no_grad()
def losses_after(
    module: nn.Module,
    rows: UnionBatch,
    counts: Tensor,
    moving: MovingWeights,
    states: Sequence[Tensor],
) -> Tensor:
    """Returns L_u f64[n] of a step's rows once it was taken; every rank must call this.

    With the random numbers of the step, whose `states` were kept: what has changed are the weights.
    """
    plain = unwrapped(module)
    with torch.random.fork_rng():
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, counts.device)
        every = [rows.forward(plain, i)[1].double() for i in range(len(rows.batches))]
    return moving.losses(sum_over_ranks(torch.stack(every).sum(0)), counts)
