"""Weights of losses that move while a model trains: multipliers of the weights c_it.

A unit is a scenario or a task. Its prior p_u is the sum of its c_it, its loss

    L_u = sum over its tasks of c_it / p_u * L_it,

so that the joint loss is sum_u p_u L_u, and a method gives a multiplier m_u: the step learns from
sum_u p_u m_u L_u. Methods (`weighting_methods.py`) read losses and gradients of the whole step,
over all ranks and micro-batches, and draw by seed and step, so that all ranks have the same
weights.

Letters: n units, K tasks of all scenarios.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtrec_ray.project.base import refuse
from mtrec_ray.project.weighting import PACKAGES, Weighting
from mtrec_ray.training.gradient_aggregators import Aggregator
from mtrec_ray.training.losses import TaskKey, at_least_something
from mtrec_ray.training.weighting_methods import METHODS, Method, Seen, Units


class MovingWeights:
    """A method over a run: what it has seen, its weights, and their means over an epoch.

    A unit without a labelled row in a step has the loss that it had last; 1 before the first.
    """

    def __init__(self, method: Method) -> None:
        self.method, self.units = method, method.units
        self.last_losses = torch.ones_like(method.ones)
        self.given = method.ones  # multipliers of the present step
        self.total, self.steps = torch.zeros_like(method.ones), 0

    def looks_at_gradients(self, step: int) -> bool:
        """Returns whether a step reads gradients."""
        return self.method.options.reads_gradients and step % self.method.every == 0

    def losses(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Returns L_u f64[n] of loss sums and label counts f64[K] of a whole step."""
        losses = self.units.losses(sums / at_least_something(counts))
        return torch.where(self.told(counts), losses, self.last_losses)

    def told(self, counts: Tensor) -> Tensor:
        """Returns bool[n]: units with a labelled row, by label counts f64[K]."""
        return self.units.matrix(counts * self.units.share).sum(1) > 0

    def seen(self, step: int, sums: Tensor, counts: Tensor, gramian: Tensor | None) -> Seen:
        """Returns what is seen of a step, by loss sums and label counts f64[K] of all of it."""
        return Seen(step, self.losses(sums, counts), gramian, self.told(counts))

    def task_weights(self, seen: Seen) -> Tensor:
        """Returns f64[K], the weights of a step."""
        self.given = self.method.multipliers(seen)
        return self.units.task_weights(self.given)

    @property
    def mean_task_weights(self) -> Tensor:
        """f64[K]: the means since `take_means`, those of the project file before the first step."""
        return self.units.task_weights(self.total / self.steps if self.steps else self.method.ones)

    def update(self, seen: Seen, after: Tensor | None) -> None:
        """Learn from a step that was taken, and from the losses f64[n] after it."""
        self.total, self.steps = self.total + self.given, self.steps + 1
        self.last_losses = seen.losses
        self.method.update(seen, after)

    def take_means(self) -> dict[str, float]:
        """Returns the mean multipliers since the last call, by unit."""
        means = self.total / max(self.steps, 1)
        self.total, self.steps = torch.zeros_like(self.total), 0
        return dict(zip(self.units.names, means.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint holds."""
        own = {name: getattr(self, name) for name in ("last_losses", "total", "steps")}
        return own | {"method": self.method.state(), "units": list(self.units.names)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; of other units (a weight has become 0) it says nothing."""
        if tuple(state["units"]) != self.units.names:
            return
        for name in ("last_losses", "total"):
            setattr(self, name, state[name].to(self.total))
        self.steps = state["steps"]
        self.method.restore(state["method"])


def units_of(keys: Sequence[TaskKey], weights: Tensor, by: str) -> Units:
    """Returns the units of tasks with weights c_it f32[K]; tasks that weigh nothing are in none."""
    weights = weights.double()
    labels = [name if by == "scenarios" else f"{name}/{task}" for name, task in keys]
    weighed = [label for label, weight in zip(labels, weights.tolist(), strict=True) if weight]
    names = tuple(dict.fromkeys(weighed))
    place = {name: i for i, name in enumerate(names)}
    of_task = torch.tensor([place.get(label, 0) for label in labels], device=weights.device)
    prior = torch.zeros(len(names), dtype=torch.float64, device=weights.device)
    prior.index_add_(0, of_task, weights)
    return Units(names, of_task, prior, weights / prior[of_task])


def weighting_problems(options: Weighting) -> list[str]:
    """Returns a line for a method whose libraries are not there."""
    missing = [p for p in PACKAGES.get(options.method, ()) if importlib.util.find_spec(p) is None]
    if not missing:
        return []
    return [
        f"training.weighting.method: found {options.method} without {', '.join(missing)}; allowed: "
        "pip install 'mtrec-ray[weighting]', or a method that needs none"
    ]


def moving_weights(
    options: Weighting, units: Units, seed: int, steps_per_epoch: int
) -> MovingWeights | None:
    """Returns weights that move by a method; None for fixed ones, and for one unit alone.

    Raises:
        ProjectError: the method needs a library that is not there.
    """
    if options.method == "fixed" or len(units.names) < 2:
        return None
    refuse(weighting_problems(options))
    method = METHODS.get(options.method, Aggregator)
    return MovingWeights(method(units, options, seed, steps_per_epoch))
