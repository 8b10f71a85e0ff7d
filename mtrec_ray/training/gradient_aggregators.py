"""Weights of losses from the inner products of their gradients: torchjd's, and Nash bargaining."""

from typing import Any

import torch
from torch import Tensor

from mtrec_ray.project.weighting import Weighting
from mtrec_ray.training.weighting_methods import SMALLEST, Method, Seen, Units


class Aggregator(Method):
    """Weights from the inner products of gradients, most of them by torchjd.

    Between two looks the last weights stay. So they do where fewer than two units have a gradient
    (at the start, while heads are zero, none has), and a unit without one has the weight 1.
    """

    def __init__(self, units: Units, options: Weighting, seed: int, steps_per_epoch: int) -> None:
        super().__init__(units, options, seed, steps_per_epoch)
        self.last = self.ones

    def multipliers(self, seen: Seen) -> Tensor:
        """Returns the weights, scaled so that gradients that do not conflict have 1 each."""
        if seen.gramian is not None and bool(seen.gramian.isfinite().all()):
            self._look(seen.gramian.cpu(), seen.step)
        return self.last

    def _look(self, gramian: Tensor, step: int) -> None:
        """Compute the weights anew, from inner products with a mean square of 1."""
        squares = gramian.diagonal()
        told = squares > SMALLEST * squares.sum()
        if told.sum() < 2:
            return
        among = gramian[told][:, told]
        with torch.random.fork_rng([]):  # pcgrad draws an order
            torch.default_generator.manual_seed(self.seed * 1_000_003 + step)
            found = aggregation_weights(self.options, among / among.diagonal().mean())
        if bool(found.isfinite().all()) and bool((found > 0).any()):
            weights = torch.ones(self.num, dtype=torch.float64)
            weights[told] = found.double()
            self.last = weights.to(self.ones)

    def state(self) -> dict[str, Any]:
        """Returns the last weights."""
        return {"last": self.last}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.last = state["last"].to(self.ones)


def aggregation_weights(options: Weighting, gramian: Tensor) -> Tensor:
    """Returns f64[n], the multipliers of gradients with inner products f64[n, n].

    Those of torchjd are of a mean, and are taken n times, but for pcgrad.
    """
    if options.method == "nash":
        return bargaining_weights(gramian)
    from torchjd import aggregation

    num = len(gramian)
    match options.method:
        case "upgrad":
            return num * aggregation.UPGradWeighting()(gramian)
        case "mgda":
            return num * aggregation.MGDAWeighting()(gramian)
        case "cagrad":
            return num * aggregation.CAGradWeighting(options.c)(gramian)
        case "aligned":
            return num * aggregation.AlignedMTLWeighting()(gramian)
        case _:
            return aggregation.PCGradWeighting()(gramian)


def bargaining_weights(gramian: Tensor, iterations: int = 60) -> Tensor:
    """Returns w f64[n] with G w = 1 / w, the bargaining solution (2202.01017, claim 3.1).

    It is where w' G w / 2 - sum log w is least: a convex function, whose damped Newton steps stay
    above 0 (Nesterov and Nemirovskii, 1994).
    """
    diagonal = gramian.diagonal().clamp(min=SMALLEST)
    matrix = gramian + torch.diag(1e-6 * diagonal)
    weights = diagonal.rsqrt()
    for _ in range(iterations):
        gradient = matrix @ weights - 1 / weights
        step = torch.linalg.solve(matrix + torch.diag(weights**-2), gradient)
        decrement = (gradient @ step).clamp(min=0).sqrt()
        weights = weights - step / (1 + decrement)
    return weights
