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

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.model.heads import tower
from mtrec_ray.project.model import Model

Tasks = Mapping[str, Sequence[str]]


class Sharing(nn.Module):
    """Layers from a scenario's inputs f32[N, X] to f32[N, H] for each of its tasks.

    Attributes:
        use: by scenario, f32[T, E]: the mean weights of the gates in the last batch, where a
            layer has such gates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.use: dict[str, Tensor] = {}

    def forward(self, name: str, inputs: Tensor, prior: Tensor) -> list[Tensor]:
        """f32[N, H] for each task of the scenario; `prior` f32[N, P] says whose sample it is."""
        raise NotImplementedError

    @property
    def first_weight(self) -> nn.Parameter:
        """The first weight that all scenarios share: where their gradients are compared."""
        raise NotImplementedError


def build_sharing(options: Model, num_inputs: int, num_prior: int, tasks: Tasks) -> Sharing:
    """The layers that `model.sharing` names."""
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
        self.num_tasks = {name: len(own) for name, own in tasks.items()}
        self.tower = tower(sizes, options.dropout)

    def forward(self, name: str, inputs: Tensor, prior: Tensor) -> list[Tensor]:
        """The tower's output, for each task the same."""
        del prior
        return [self.tower(inputs)] * self.num_tasks[name]

    @property
    def first_weight(self) -> nn.Parameter:
        """Of the tower's first layer."""
        return next(self.tower.parameters())


class GatedExperts(Sharing):
    """Multi-gate mixture of experts: towers that all share, a softmax gate over them a task."""

    def __init__(self, sizes: Sequence[int], options: Model, tasks: Tasks) -> None:
        super().__init__()
        self.experts = nn.ModuleList(tower(sizes, options.dropout) for _ in range(options.experts))
        self.gates = nn.ModuleDict(
            {name: nn.Linear(sizes[0], len(own) * options.experts) for name, own in tasks.items()}
        )

    def forward(self, name: str, inputs: Tensor, prior: Tensor) -> list[Tensor]:
        """Each task's mixture of the experts' outputs."""
        del prior
        found = torch.stack([expert(inputs) for expert in self.experts], 1)
        gates = self.gates[name](inputs).view(len(inputs), -1, len(self.experts))
        weights = gates.float().softmax(2).to(found.dtype)
        self.use[name] = weights.detach().float().mean(0)
        return list(torch.einsum("nte,neh->tnh", weights, found))

    @property
    def first_weight(self) -> nn.Parameter:
        """Of the first expert's first layer."""
        return next(self.experts.parameters())


class Extraction(nn.Module):
    """A level of progressive layered extraction: shared experts, one expert and gate a task.

    Where it is not the last, a gate of each scenario mixes all of its experts into what the next
    level's shared experts read.
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
        """What each task and the shared experts hand on, and the tasks' gates f32[T, E + 1]."""
        own, gates = self.own[name], self.gates[name]
        assert isinstance(own, nn.ModuleList)
        assert isinstance(gates, nn.ModuleList)
        shared = [expert(common) for expert in self.shared]
        mine = [expert(x) for expert, x in zip(own, inputs, strict=True)]
        mixed = [
            mix(gate(x), [one, *shared]) for gate, x, one in zip(gates, inputs, mine, strict=True)
        ]
        use = torch.stack([weights for _, weights in mixed])
        if name in self.shared_gates:
            common, _ = mix(self.shared_gates[name](common), [*mine, *shared])
        return [found for found, _ in mixed], common, use


def mix(gate: Tensor, found: list[Tensor]) -> tuple[Tensor, Tensor]:
    """f32[N, H]: outputs weighted by the softmax of a gate f32[N, E]; the mean weights f32[E]."""
    weights = gate.float().softmax(1).to(found[0].dtype)
    mixed = torch.einsum("ne,neh->nh", weights, torch.stack(found, 1))
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
        self.num_tasks = {name: len(own) for name, own in tasks.items()}

    def forward(self, name: str, inputs: Tensor, prior: Tensor) -> list[Tensor]:
        """Each task's mixture at the last level, whose gates are reported (own expert first)."""
        del prior
        found, common = [inputs] * self.num_tasks[name], inputs
        for level in self.levels:
            found, common, self.use[name] = level(name, found, common)
        return found

    @property
    def first_weight(self) -> nn.Parameter:
        """Of the first shared expert's first layer."""
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

        def own(start: Tensor) -> nn.ParameterDict:
            return nn.ParameterDict({n: nn.Parameter(start.clone()) for n in names})

        self.scale, self.shift = own(torch.ones(num_out, num_in)), own(torch.zeros(num_out))
        self.norm_scale, self.norm_shift = own(torch.ones(num_out)), own(torch.zeros(num_out))

    def forward(self, name: str, inputs: Tensor) -> Tensor:
        """f32[N, out]: the layer's output by the scenario's weights."""
        found = F.linear(
            inputs, self.shared.weight * self.scale[name], self.shared.bias + self.shift[name]
        )
        scale = self.norm.weight * self.norm_scale[name]
        shift = self.norm.bias + self.norm_shift[name]
        found = F.gelu(F.layer_norm(found, [self.num_out], scale, shift))
        return F.dropout(found, self.dropout, self.training)


class Star(Sharing):
    """Star topology: a tower of `StarLayer`, which starts as the shared tower.

    Each scenario's head and its columns stand for the paper's auxiliary network.
    """

    def __init__(self, sizes: Sequence[int], options: Model, tasks: Tasks) -> None:
        super().__init__()
        self.num_tasks = {name: len(own) for name, own in tasks.items()}
        self.layers = nn.ModuleList(
            StarLayer(a, b, options.dropout, tasks) for a, b in itertools.pairwise(sizes)
        )

    def forward(self, name: str, inputs: Tensor, prior: Tensor) -> list[Tensor]:
        """The output of the scenario's tower, for each task the same."""
        del prior
        for layer in self.layers:
            inputs = layer(name, inputs)
        return [inputs] * self.num_tasks[name]

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
        """f32[N, outputs]: the factors."""
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
                n: nn.ModuleList(Gate(num_prior, sizes[0], sizes[-1]) for _ in own)
                for n, own in tasks.items()
            }
        )

    def forward(self, name: str, inputs: Tensor, prior: Tensor) -> list[Tensor]:
        """The gated output of the tower for each task."""
        scenario = self.scenario_vectors[name].expand(len(inputs), -1)
        found = inputs * self.input_gate(scenario, inputs)
        for layer, gate in zip(self.layers[:-1], self.unit_gates, strict=True):
            found = layer(found) * gate(prior, inputs)
        found = self.layers[-1](found)
        gates = self.task_gates[name]
        assert isinstance(gates, nn.ModuleList)
        return [found * gate(prior, inputs) for gate in gates]

    @property
    def first_weight(self) -> nn.Parameter:
        """Of the tower's first layer."""
        return next(self.layers.parameters())
