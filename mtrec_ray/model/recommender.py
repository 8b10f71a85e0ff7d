"""The joint model: item texts, histories, ids and statistics to one logit a scenario and task.

Letters: N samples of a scenario, U its distinct items in the batch, H history items, D width of
text vectors, W width of item representations, T tasks.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.general_head import GeneralHead, common_columns
from mtrec_ray.model.heads import Head
from mtrec_ray.model.history import NUM_KERNELS, HistoryAttention, cosines, similarity_kernels
from mtrec_ray.model.inputs import ScenarioInputs, _ids, drop_ids
from mtrec_ray.model.samples import Samples
from mtrec_ray.model.sharing import build_sharing
from mtrec_ray.project.model import Model

GENERAL = "general/"  # before a scenario's name, which cannot hold a slash


NUM_SIMILARITIES = 4 * NUM_KERNELS


class Recommender(nn.Module):
    """The layers above the encoder, and the encoder."""

    def __init__(
        self,
        options: Model,
        scenarios: Mapping[str, PreparedScenario],
        catalogues: Mapping[str, Catalogue],
        encoder: TextEncoder,
    ) -> None:
        super().__init__()
        self.options = options
        self.facts = dict(scenarios)
        self.encoder = encoder
        width = options.width
        self.project = nn.Linear(encoder.width, width)
        self.item_norm = nn.LayerNorm(width)
        self.interest = HistoryAttention(width, options.attention_heads)
        self.scenario_vectors = nn.ParameterDict(
            {n: nn.Parameter(torch.zeros(width)) for n in scenarios}
        )
        self.inputs = nn.ModuleDict(
            {n: ScenarioInputs(f, catalogues[n], options) for n, f in scenarios.items()}
        )
        spaces = {f.user_space: f.num_users for f in scenarios.values()}
        self.users = nn.ModuleDict(
            {n: _ids(number, width) for n, number in spaces.items()} if options.user_ids else {}
        )
        num_inputs = 6 * width + NUM_SIMILARITIES
        self.similarity = nn.Linear(NUM_SIMILARITIES, width, bias=False)
        tasks = {n: f.tasks for n, f in scenarios.items()}
        self.sharing = build_sharing(options, num_inputs, 2 * width, tasks)
        self.heads = nn.ModuleDict(
            {n: self._heads(f, options.hidden[-1] + width) for n, f in scenarios.items()}
        )
        has_main = any(f.main for f in scenarios.values())
        self.general = GeneralHead() if options.general and has_main else None
        self.use_general_head = False

    def _heads(self, facts: PreparedScenario, num_inputs: int) -> nn.ModuleDict:
        """Heads that start at the training base rate (binary) or mean (regression)."""
        options = self.options
        return nn.ModuleDict(
            {
                task: Head(
                    num_inputs, options.head_hidden, base_rate_logit(facts, task), options.dropout
                )
                for task in facts.tasks
            }
        )

    def forward(
        self, samples: Mapping[str, Samples], vectors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """f32[N, T] logits by scenario, from text vectors.

        f32[U, D] of each one's distinct items, or (layout `pair`) f32[N, D] of its samples.

        Regression outputs are in units of the training labels' standard deviation, around
        their mean. While the general head learns, its f32[N] by `general/NAME` as well.
        """
        found = {name: self.score(name, samples[name], vectors[name]) for name in samples}
        if self.training and self.general_head_learns:
            for name, facts in self.facts.items():
                if name in samples and facts.main:
                    own = self.general_score(name, samples[name], vectors[name])
                    found[GENERAL + name] = own
        return found

    @property
    def general_head_learns(self) -> bool:
        """Whether the general head learns."""
        return self.general is not None and next(self.general.parameters()).requires_grad

    def general_score(self, name: str, samples: Samples, vectors: Tensor) -> Tensor:
        """f32[N]: the general head's logits of a scenario's main task."""
        mask = samples.history >= 0
        similarity = self._similarity(samples, vectors, samples.history.clamp(min=0), mask)
        return self._general(name, similarity, samples.numeric)

    def _general(self, name: str, similarity: Tensor, numeric: Tensor) -> Tensor:
        own, facts = self.inputs[name], self.facts[name]
        assert isinstance(own, ScenarioInputs)
        assert self.general is not None
        assert facts.main
        found = self.general(similarity, own.columns, numeric, common_columns(facts))
        return found + base_rate_logit(facts, facts.main)

    def general_logits(self, name: str, similarity: Tensor, numeric: Tensor) -> Tensor:
        """f32[N, T]: logits without a model of the scenario, from closeness and numeric columns.

        The general head's for its main task; of other tasks the base rate or the mean.
        """
        facts = self.facts[name]
        size = (len(numeric),)
        found = [
            self._general(name, similarity, numeric)
            if task == facts.main
            else torch.full(size, base_rate_logit(facts, task), device=numeric.device)
            for task in facts.tasks
        ]
        return torch.stack(found, 1)

    def score(self, name: str, samples: Samples, vectors: Tensor) -> Tensor:
        """f32[N, T]: logits of one scenario."""
        if self.use_general_head:
            mask, places = samples.history >= 0, samples.history.clamp(min=0)
            similarity = self._similarity(samples, vectors, places, mask)
            return self.general_logits(name, similarity, samples.numeric)
        own = self.inputs[name]
        assert isinstance(own, ScenarioInputs)
        extras = own.item_extras(samples.items)
        mask = samples.history >= 0
        if not self.options.history:
            mask = torch.zeros_like(mask)
        if not self.options.text:
            vectors = torch.zeros_like(vectors)
        places = samples.history.clamp(min=0)
        if self.options.layout == "pair":
            items = self.item_norm(extras)
            candidate = self.item_norm(self.project(vectors) + extras[samples.candidate])
        else:
            items = self.item_norm(self.project(vectors) + extras)
            candidate = items[samples.candidate]
        user = self.interest(candidate, items, places, samples.ages, mask)
        similarity = self._similarity(samples, vectors, places, mask)
        columns = own.row_columns(samples) + self.similarity(similarity)
        scenario = self.scenario_vectors[name].expand_as(candidate)
        identity = self.user_vector(name, samples.user, candidate)
        parts = [user, candidate, user * candidate, columns, scenario, identity, similarity]
        found = self.sharing(name, torch.cat(parts, 1), torch.cat([identity, candidate], 1))
        heads = self.heads[name]
        assert isinstance(heads, nn.ModuleDict)
        logits = [
            head(torch.cat([x, columns], 1)) for head, x in zip(heads.values(), found, strict=True)
        ]
        return torch.stack(logits, 1)

    def _similarity(
        self, samples: Samples, vectors: Tensor, places: Tensor, mask: Tensor
    ) -> Tensor:
        """f32[N, 4 K]: likeness of candidate and history; 0 where one text holds both."""
        if self.options.layout == "pair":
            return vectors.new_zeros(len(vectors), NUM_SIMILARITIES)
        return similarity_kernels(cosines(vectors.detach(), samples.candidate, places), mask)

    def user_vector(self, name: str, user: Tensor, like: Tensor) -> Tensor:
        """f32[N, W]: of users i64[N] in a scenario; zeros as `like` without a table of them."""
        space = self.facts[name].user_space
        if space not in self.users:
            return torch.zeros_like(like)
        return self.users[space](drop_ids(user, self.options.id_dropout, self.training))


def scenario_parameters(model: Recommender, name: str) -> list[str]:
    """Full names of the modules and parameters that a scenario has for itself.

    Whatever a module or parameter holds by the names of scenarios; a table of users that no other
    scenario shares is its own, too.
    """
    return [
        f"{full}.{name}" if full else name
        for full, module in model.named_modules()
        if isinstance(module, nn.ModuleDict | nn.ParameterDict) and name in module
    ]


def is_below(full: str, parts: Sequence[str]) -> bool:
    """Whether a full name is one of some parts or lies in it."""
    return any(full == part or full.startswith(part + ".") for part in parts)


def base_rate_logit(facts: PreparedScenario, task: str) -> float:
    """The logit of the training base rate; 0 for a regression, which predicts around the mean."""
    if facts.kinds[task] == "regression":
        return 0.0
    rate = min(max(facts.label_means[task], 1e-4), 1 - 1e-4)
    return math.log(rate / (1 - rate))


def predictions(facts: PreparedScenario, logits: Tensor) -> Tensor:
    """f32[N, T]: probabilities, and regression values in the label's own units."""
    columns = []
    for i, (task, kind) in enumerate(facts.kinds.items()):
        value = logits[:, i].float()
        if kind == "binary":
            columns.append(value.sigmoid())
        else:
            columns.append(value * facts.label_stds[task] + facts.label_means[task])
    return torch.stack(columns, 1)
