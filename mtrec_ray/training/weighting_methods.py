"""Methods that move the weights of losses, each beside the number of its paper's equation.

Letters: n units, K tasks of all scenarios (`weighting.py`).
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtrec_ray.project.weighting import Weighting

SMALLEST = 1e-8  # a loss below it would have an endless weight


@dataclass(frozen=True)
class Units:
    """What has a weight of its own.

    Attributes:
        names: of the units, `scenario` or `scenario/task`.
        of_task: i64[K], the unit of each task.
        prior: f64[n], p_u, above 0. share: f64[K], c_it / p_u.
    """

    names: tuple[str, ...]
    of_task: Tensor
    prior: Tensor
    share: Tensor

    def losses(self, task_losses: Tensor) -> Tensor:
        """Returns L_u [n] of the losses [K] of tasks."""
        return self.matrix(self.share.to(task_losses)) @ task_losses

    def matrix(self, weights: Tensor) -> Tensor:
        """Returns [n, K]: weights [K] of tasks, each in the row of its unit."""
        rows = torch.arange(len(self.names), device=weights.device)[:, None]
        return torch.where(rows == self.of_task, weights, 0)

    def task_weights(self, multipliers: Tensor) -> Tensor:
        """Returns f64[K], c_it m_u, for multipliers f64[n]."""
        return self.share * (self.prior * multipliers)[self.of_task]


@dataclass(frozen=True)
class Seen:
    """What a method sees of a step.

    Attributes:
        step: its number.
        losses: f64[n], L_u over all ranks.
        gramian: f64[n, n], inner products of the gradients of n p_u L_u at the first shared weight;
            None for methods that do not read gradients, and in steps between two looks.
        told: bool[n], units with a labelled row; None: all.
    """

    step: int
    losses: Tensor
    gramian: Tensor | None = None
    told: Tensor | None = None


class Method(ABC):
    """A method. Its state is plain values and tensors, which a checkpoint holds."""

    looks_ahead = True  # whether the weights of a step depend on the step's losses or gradients
    looks_back = False  # whether it wants the losses of the same rows after the step

    def __init__(self, units: Units, options: Weighting, seed: int, steps_per_epoch: int) -> None:
        self.units, self.options, self.seed = units, options, seed
        self.num, device = len(units.names), units.prior.device
        self.ones = torch.ones(self.num, dtype=torch.float64, device=device)
        self.every = options.every or 1

    @abstractmethod
    def multipliers(self, seen: Seen) -> Tensor:
        """Returns m_u f64[n] of a step."""

    def update(self, seen: Seen, after: Tensor | None) -> None:  # noqa: B027
        """Learn from a step that was taken, and from the losses f64[n] after it."""

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint holds."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from a state."""


class Random(Method):
    """Random loss weighting (2111.10603, section 3): n softmax of normal numbers."""

    looks_ahead = False

    def multipliers(self, seen: Seen) -> Tensor:
        """Returns the weights that seed and step draw."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + seen.step)
        drawn = torch.randn(self.num, generator=generator, dtype=torch.float64)
        return self.num * drawn.softmax(0).to(self.ones)


class Learned(Method):
    """A method with numbers of its own, which Adam moves."""

    decay = 0.0

    def __init__(self, units: Units, options: Weighting, seed: int, steps_per_epoch: int) -> None:
        super().__init__(units, options, seed, steps_per_epoch)
        self.own = torch.nn.Parameter(self.start())
        self.optimizer = torch.optim.Adam([self.own], lr=options.lr, weight_decay=self.decay)

    @abstractmethod
    def start(self) -> Tensor:
        """Returns f64[n], the numbers at the start."""

    def move(self, gradient: Tensor) -> None:
        """Take a step with a gradient f64[n]."""
        self.own.grad = gradient
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Returns the numbers, and the state of their optimizer."""
        optimizer = copy.deepcopy(self.optimizer.state_dict())  # its tensors move on
        return {"own": self.own.detach().clone(), "optimizer": optimizer}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        with torch.no_grad():
            self.own.copy_(state["own"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


class Uncertainty(Learned):
    """Homoscedastic uncertainty (1705.07115, equation 10): sum of exp(-s_u) L_u + s_u / 2.

    The paper halves the loss of a regression (equation 7), which moves its s_u by log 2 and leaves
    its weight where s_u is best, 1 / (2 L_u), as it is.
    """

    looks_ahead = False

    def start(self) -> Tensor:
        """Returns s_u = 0: all multipliers are 1."""
        return torch.zeros_like(self.ones)

    def multipliers(self, seen: Seen) -> Tensor:
        """Returns exp(-s_u)."""
        return (-self.own.detach()).exp()

    def update(self, seen: Seen, after: Tensor | None) -> None:
        """Move s_u along the gradient of the loss."""
        self.move(self.units.prior * (0.5 - self.multipliers(seen) * seen.losses))


class DynamicAverage(Method):
    """Dynamic weight average (1803.10704, equation 7): n softmax(r_u / T).

    r_u is the mean loss of the last steps over that of the steps before them; until both are known
    all multipliers are 1.
    """

    looks_ahead = False

    def __init__(self, units: Units, options: Weighting, seed: int, steps_per_epoch: int) -> None:
        super().__init__(units, options, seed, steps_per_epoch)
        self.every = options.every or max(steps_per_epoch // 10, 1)
        self.total, self.steps, self.means = torch.zeros_like(self.ones), 0, list[Tensor]()

    def multipliers(self, seen: Seen) -> Tensor:
        """Returns the weights by the last two means."""
        if len(self.means) < 2:
            return self.ones
        before, last = self.means
        ratio = last / before.clamp(min=SMALLEST)
        return self.num * (ratio / self.options.own_temperature).softmax(0)

    def update(self, seen: Seen, after: Tensor | None) -> None:
        """Add a step's losses; after `every` steps their mean is the last."""
        self.total, self.steps = self.total + seen.losses, self.steps + 1
        if self.steps == self.every:
            self.means = [*self.means[-1:], self.total / self.steps]
            self.total, self.steps = torch.zeros_like(self.ones), 0

    def state(self) -> dict[str, Any]:
        """Returns the last means, and the sum since."""
        return {"total": self.total, "steps": self.steps, "means": self.means}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.total, self.steps = state["total"].to(self.ones), state["steps"]
        self.means = [mean.to(self.ones) for mean in state["means"]]


class Geometric(Method):
    """The geometric mean of losses (1904.08492, equation 2), prod_u L_u^p_u: m_u is it over L_u."""

    def multipliers(self, seen: Seen) -> Tensor:
        """Returns the derivatives by L_u, over p_u."""
        losses = seen.losses.clamp(min=SMALLEST)
        return (self.units.prior * losses.log()).sum().exp() / losses


class Famo(Learned):
    """Fast adaptive multitask optimization (2306.03792, algorithm 1), with z = softmax(own).

    The step learns from c sum_u z_u log L_u with c = 1 / sum_u z_u / L_u, so that m_u is
    c z_u / (p_u L_u); z starts at the prior. After it the numbers follow how much each logarithm
    fell on the same rows.
    """

    looks_back = True
    decay = 1e-3

    def start(self) -> Tensor:
        """Returns the logarithms of the prior."""
        return self.units.prior.log()

    def multipliers(self, seen: Seen) -> Tensor:
        """Returns c z_u / (p_u L_u)."""
        rates = self.own.detach().softmax(0) / seen.losses.clamp(min=SMALLEST)
        return rates / rates.sum() / self.units.prior

    def update(self, seen: Seen, after: Tensor | None) -> None:
        """Take weight from what fell much: the gradient of sum_u z_u (log L_u - log L_u after)."""
        assert after is not None
        fall = seen.losses.clamp(min=SMALLEST).log() - after.clamp(min=SMALLEST).log()
        z = self.own.detach().softmax(0)
        self.move(z * (fall - (z * fall).sum()))


class OfFirstLosses(Method):
    """A method that reads losses over those of the first step, where heads are at base rates."""

    def __init__(self, units: Units, options: Weighting, seed: int, steps_per_epoch: int) -> None:
        super().__init__(units, options, seed, steps_per_epoch)
        self.first = torch.full_like(self.ones, torch.nan)

    def relative(self, losses: Tensor) -> Tensor:
        """Returns f64[n], losses over the first ones; 1 before a unit's first."""
        return torch.where(self.first.isnan(), self.ones, losses / self.first)

    def update(self, seen: Seen, after: Tensor | None) -> None:
        """Keep the first losses, of steps that were taken and of units that they have rows of."""
        new = self.first.isnan() if seen.told is None else self.first.isnan() & seen.told
        self.first = torch.where(new, seen.losses.clamp(min=SMALLEST), self.first)

    def state(self) -> dict[str, Any]:
        """Returns the first losses."""
        return super().state() | {"first": self.first}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().restore(state)
        self.first = state["first"].to(self.ones)


class Tchebycheff(OfFirstLosses):
    """Smooth Tchebycheff (2402.19078, equation 6): mu log sum_u exp(l_u / mu).

    l_u = n p_u L_u / (its first value), with the ideal point 0.
    """

    def multipliers(self, seen: Seen) -> Tensor:
        """Returns n times the softmax of l_u / mu: the derivatives by l_u, of mean 1."""
        scaled = self.num * self.units.prior * self.relative(seen.losses)
        return self.num * (scaled / self.options.own_temperature).softmax(0)


class GradNorm(OfFirstLosses, Learned):
    """GradNorm (1711.02257, equations 1 and 2): norms of gradients near one that rates set.

    With G_u = w_u |gradient of n p_u L_u| its target is mean(G) r_u^alpha, where r_u is the loss
    over its first value, over the mean of these. w_u moves along the gradient of |G_u - target|,
    and is then scaled to a mean of 1.
    """

    def start(self) -> Tensor:
        """Returns 1 for all."""
        return self.ones.clone()

    def multipliers(self, seen: Seen) -> Tensor:
        """Returns w_u."""
        return self.own.detach().clone()

    def update(self, seen: Seen, after: Tensor | None) -> None:
        """Move w_u, unless no gradient was looked at; a unit without one stays."""
        super().update(seen, after)
        if seen.gramian is None or not bool((seen.gramian.diagonal() > 0).any()):
            return
        norms = seen.gramian.diagonal().clamp(min=0).sqrt()
        weighed, relative = self.own.detach() * norms, self.relative(seen.losses)
        target = weighed[norms > 0].mean() * (relative / relative.mean()) ** self.options.alpha
        self.move((weighed - target).sign() * norms)
        with torch.no_grad():
            self.own.clamp_(min=SMALLEST)
            self.own.mul_(self.num / self.own.sum())


METHODS: dict[str, type[Method]] = {
    "random": Random,
    "uncertainty": Uncertainty,
    "dwa": DynamicAverage,
    "geometric": Geometric,
    "famo": Famo,
    "tchebycheff": Tchebycheff,
    "gradnorm": GradNorm,
}
