"""What scenarios and tasks share between the inputs of a sample and the heads.

    bottom    one tower for all
    mmoe      experts for all, mixed by a gate of each task (Ma et al., KDD 2018)
    ple       shared experts and experts of each task, level by level (Tang et al., RecSys 2020)
    star      weights of all scenarios times weights of each scenario (2101.11427)
    pepnet    one tower, its inputs gated by scenario, its units by user and item (2302.01115)

Letters: N samples, X inputs, P prior inputs of gates, E experts, H outputs, T tasks of a scenario.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.model.heads import tower
from mtrec_ray.project.model import Model

Tasks = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class SharingInputs:
    """What shared layers read of N samples.

    Attributes:
        features: f32[N, X], all that is known of a sample.
        identity: f32[N, W], the user's embedding. candidate: f32[N, W], the item.
    """

    features: Tensor
    identity: Tensor
    candidate: Tensor

    @property
    def prior(self) -> Tensor:
        """f32[N, P]: user and item, the prior of PEPNet's gates."""
        return torch.cat([self.identity, self.candidate], 1)


class Sharing(nn.Module):
    """Layers from a scenario's inputs to f32[N, H] for each of its tasks.

    Attributes:
        use: by scenario, f32[T, E]: the mean weights of the gates in the last batch, where a
            layer has such gates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.use: dict[str, Tensor] = {}

    def forward(self, name: str, inputs: SharingInputs) -> list[Tensor]:
        """Returns f32[N, H] for each task of the scenario."""
        raise NotImplementedError

    @property
    def first_weight(self) -> nn.Parameter:
        """The first weight that all scenarios share: where their gradients are compared."""
        raise NotImplementedError


def build_sharing(options: Model, num_inputs: int, num_prior: int, tasks: Tasks) -> Sharing:
    """Returns the layers that `model.sharing` names."""
    sizes = [num_inputs, *options.hidden]
    match options.sharing:
        case "mmoe":
            return GatedExperts(sizes, options, tasks)
        case "ple":
            return ProgressiveExperts(sizes, options, tasks)
        case "star":
            return Star(sizes, options, tasks)
        case "pepnet":
            return PersonalGates(sizes, num_prior, options, tasks)
        case _:
            return SharedBottom(sizes, options, tasks)


class SharedBottom(Sharing):
    """One tower for all scenarios and tasks."""

    def __init__(self, sizes: Sequence[int], options: Model, tasks: Tasks) -> None:
        super().__init__()
        self.num_tasks = {name: len(names) for name, names in tasks.items()}
        self.tower = tower(sizes, options.dropout)

    def forward(self, name: str, inputs: SharingInputs) -> list[Tensor]:
        """Returns the tower's output, the same for each task."""
        return [self.tower(inputs.features)] * self.num_tasks[name]

    @property
    def first_weight(self) -> nn.Parameter:
        """The weight of the tower's first layer."""
        return next(self.tower.parameters())


class GatedExperts(Sharing):
    """Multi-gate mixture of experts: towers that all share, a softmax gate over them a task."""

    def __init__(self, sizes: Sequence[int], options: Model, tasks: Tasks) -> None:
        super().__init__()
        self.experts = nn.ModuleList(tower(sizes, options.dropout) for _ in range(options.experts))
        self.gates = nn.ModuleDict(
            {
                name: nn.Linear(sizes[0], len(names) * options.experts)
                for name, names in tasks.items()
            }
        )

    def forward(self, name: str, inputs: SharingInputs) -> list[Tensor]:
        """Returns each task's mixture of the experts' outputs."""
        features = inputs.features
        outputs = torch.stack([expert(features) for expert in self.experts], 1)
        gates = self.gates[name](features).view(len(features), -1, len(self.experts))
        weights = gates.float().softmax(2).to(outputs.dtype)
        self.use[name] = weights.detach().float().mean(0)
        return list(torch.einsum("nte,neh->tnh", weights, outputs))

    @property
    def first_weight(self) -> nn.Parameter:
        """The weight of the first expert's first layer."""
        return next(self.experts.parameters())


class Extraction(nn.Module):
    """A level of progressive layered extraction: shared experts, and one expert and gate a task.

    In all levels but the last a gate of each scenario mixes the shared experts and those of its
    tasks into what the next level's shared experts read.
    """

    def __init__(
        self, sizes: Sequence[int], options: Model, tasks: Tasks, *, is_last: bool
    ) -> None:
        super().__init__()
        number = options.experts
        self.shared = nn.ModuleList(tower(sizes, options.dropout) for _ in range(number))
        self.own = nn.ModuleDict(
            {n: nn.ModuleList(tower(sizes, options.dropout) for _ in t) for n, t in tasks.items()}
        )
        self.gates = nn.ModuleDict(
            {n: nn.ModuleList(nn.Linear(sizes[0], number + 1) for _ in t) for n, t in tasks.items()}
        )
        self.shared_gates = nn.ModuleDict(
            {} if is_last else {n: nn.Linear(sizes[0], number + len(t)) for n, t in tasks.items()}
        )

    def forward(
        self, name: str, inputs: list[Tensor], common: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Returns the next inputs of each task and of the shared experts, and f32[T, E + 1].

        The last are the mean weights of the tasks' gates.
        """
        task_experts, gates = self.own[name], self.gates[name]
        assert isinstance(task_experts, nn.ModuleList)
        assert isinstance(gates, nn.ModuleList)
        shared = [expert(common) for expert in self.shared]
        tasks = [expert(x) for expert, x in zip(task_experts, inputs, strict=True)]
        mixed = [
            mix(gate(x), [task, *shared])
            for gate, x, task in zip(gates, inputs, tasks, strict=True)
        ]
        use = torch.stack([weights for _, weights in mixed])
        if name in self.shared_gates:
            common, _ = mix(self.shared_gates[name](common), [*tasks, *shared])
        return [mixture for mixture, _ in mixed], common, use


def mix(gate: Tensor, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns outputs f32[N, H] mixed by the softmax of a gate f32[N, E], and its mean f32[E]."""
    weights = gate.float().softmax(1).to(outputs[0].dtype)
    mixed = torch.einsum("ne,neh->nh", weights, torch.stack(outputs, 1))
    return mixed, weights.detach().float().mean(0)


class ProgressiveExperts(Sharing):
    """Progressive layered extraction: one level for each hidden size."""

    def __init__(self, sizes: Sequence[int], options: Model, tasks: Tasks) -> None:
        super().__init__()
        steps = list(itertools.pairwise(sizes))
        self.levels = nn.ModuleList(
            Extraction(step, options, tasks, is_last=i == len(steps) - 1)
            for i, step in enumerate(steps)
        )
        self.num_tasks = {name: len(names) for name, names in tasks.items()}

    def forward(self, name: str, inputs: SharingInputs) -> list[Tensor]:
        """Returns each task's mixture at the last level; `use` has its gates, own expert first."""
        common = inputs.features
        tasks = [common] * self.num_tasks[name]
        for level in self.levels:
            tasks, common, self.use[name] = level(name, tasks, common)
        return tasks

    @property
    def first_weight(self) -> nn.Parameter:
        """The weight of the first shared expert's first layer."""
        level = self.levels[0]
        assert isinstance(level, Extraction)
        return next(level.shared.parameters())


class StarLayer(nn.Module):
    """A layer whose weights are a shared matrix times a scenario's own, element by element.

    Biases are added; the norm's scale and shift are composed in the same way (the paper's
    partitioned normalisation). A scenario's own part starts at one and zero.
    """

    def __init__(self, num_in: int, num_out: int, dropout: float, names: Iterable[str]) -> None:
        super().__init__()
        names = list(names)
        self.num_out, self.dropout = num_out, dropout
        self.shared = nn.Linear(num_in, num_out)
        self.norm = nn.LayerNorm(num_out)

        def by_scenario(start: Tensor) -> nn.ParameterDict:
            return nn.ParameterDict({n: nn.Parameter(start.clone()) for n in names})

        self.scale = by_scenario(torch.ones(num_out, num_in))
        self.shift = by_scenario(torch.zeros(num_out))
        self.norm_scale = by_scenario(torch.ones(num_out))
        self.norm_shift = by_scenario(torch.zeros(num_out))

    def forward(self, name: str, inputs: Tensor) -> Tensor:
        """Returns the layer's output f32[N, out] with the scenario's weights."""
        hidden = F.linear(
            inputs, self.shared.weight * self.scale[name], self.shared.bias + self.shift[name]
        )
        scale = self.norm.weight * self.norm_scale[name]
        shift = self.norm.bias + self.norm_shift[name]
        hidden = F.gelu(F.layer_norm(hidden, [self.num_out], scale, shift))
        return F.dropout(hidden, self.dropout, self.training)


class Star(Sharing):
    """Star topology: a tower of `StarLayer`, which starts as the shared tower.

    Each scenario's head and its columns stand for the paper's auxiliary network.
    """

    def __init__(self, sizes: Sequence[int], options: Model, tasks: Tasks) -> None:
        super().__init__()
        self.num_tasks = {name: len(names) for name, names in tasks.items()}
        self.layers = nn.ModuleList(
            StarLayer(a, b, options.dropout, tasks) for a, b in itertools.pairwise(sizes)
        )

    def forward(self, name: str, inputs: SharingInputs) -> list[Tensor]:
        """Returns the output of the scenario's tower, the same for each task."""
        hidden = inputs.features
        for layer in self.layers:
            hidden = layer(name, hidden)
        return [hidden] * self.num_tasks[name]

    @property
    def first_weight(self) -> nn.Parameter:
        """The first shared matrix."""
        layer = self.layers[0]
        assert isinstance(layer, StarLayer)
        return next(layer.shared.parameters())


class Gate(nn.Module):
    """Factors in (0, 2) from a prior and from what is gated (without gradient); 1 at the start."""

    def __init__(self, num_prior: int, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(num_prior + num_inputs, num_outputs)
        self.out = nn.Linear(num_outputs, num_outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, prior: Tensor, inputs: Tensor) -> Tensor:
        """Returns the factors f32[N, outputs]."""
        hidden = F.relu(self.inner(torch.cat([prior, inputs.detach()], 1)))
        return 2 * self.out(hidden).sigmoid()


class PersonalGates(Sharing):
    """One tower: a gate by scenario on its inputs, gates by user and item on its hidden units.

    The gates of the last layer are each task's own, those below are shared by its tasks.
    """

    def __init__(self, sizes: Sequence[int], num_prior: int, options: Model, tasks: Tasks) -> None:
        super().__init__()
        steps = list(itertools.pairwise(sizes))
        self.layers = nn.ModuleList(tower(step, options.dropout) for step in steps)
        self.scenario_vectors = nn.ParameterDict(
            {n: nn.Parameter(0.1 * torch.randn(options.width)) for n in tasks}
        )
        self.input_gate = Gate(options.width, sizes[0], sizes[0])
        self.unit_gates = nn.ModuleList(Gate(num_prior, sizes[0], b) for _, b in steps[:-1])
        self.task_gates = nn.ModuleDict(
            {
                n: nn.ModuleList(Gate(num_prior, sizes[0], sizes[-1]) for _ in t)
                for n, t in tasks.items()
            }
        )

    def forward(self, name: str, inputs: SharingInputs) -> list[Tensor]:
        """Returns the gated output of the tower for each task."""
        features, prior = inputs.features, inputs.prior
        scenario = self.scenario_vectors[name].expand(len(features), -1)
        hidden = features * self.input_gate(scenario, features)
        for layer, gate in zip(self.layers[:-1], self.unit_gates, strict=True):
            hidden = layer(hidden) * gate(prior, features)
        hidden = self.layers[-1](hidden)
        gates = self.task_gates[name]
        assert isinstance(gates, nn.ModuleList)
        return [hidden * gate(prior, features) for gate in gates]

    @property
    def first_weight(self) -> nn.Parameter:
        """The weight of the tower's first layer."""
        return next(self.layers.parameters())
