"""The retrieval side: vectors of users and items whose cosines find the candidates to rank.

An item's vector is made of its text, its id, its categories, its numbers and its ready vectors, a
user's of the history and, where there is a table of users, the profile. All parameters are its own:
where the encoder is frozen, the ranking heads learn the same with and without it.

Letters: n items of a catalogue, m of them, B users, H history items, D width of text vectors, E
width of retrieval vectors, A queries of a scenario.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.profiles import Profiles
from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.model.history import NUM_AGES, masked_softmax
from mtrec_ray.model.inputs import (
    category_codes,
    id_embedding,
    known_ids,
    pooled_values,
    standard_numbers,
)
from mtrec_ray.model.outcomes import OutcomeEmbedding
from mtrec_ray.model.profiles import Asking, profile_inputs
from mtrec_ray.model.samples import Samples
from mtrec_ray.model.vectors import ready_vectors
from mtrec_ray.project.model import Model

NUM_QUERIES = 4
MAX_ROWS = 65_536  # items whose vectors are made at a time


class ItemExtras(nn.Module):
    """What a scenario's items have beside their text: ids, categories, numbers and vectors."""

    ids: Tensor
    codes: Tensor
    numbers: Tensor

    def __init__(self, facts: PreparedScenario, catalogue: Catalogue, options: Model) -> None:
        super().__init__()
        width, numbers = options.retrieval.width, standard_numbers(facts, catalogue)
        self.register_buffer("ids", known_ids(catalogue), persistent=False)
        self.register_buffer("codes", category_codes(catalogue), persistent=False)
        self.register_buffer("numbers", numbers, persistent=False)
        has_ids = options.retrieval.item_ids
        self.item_ids = id_embedding(facts.num_items + 1, width) if has_ids else None
        self.categories = nn.ModuleList(id_embedding(n, width) for n in facts.item_category_sizes)
        self.several = pooled_values(catalogue, width)
        self.vectors = ready_vectors(catalogue.vectors, width)
        num_numbers = numbers.shape[1]
        self.numeric = nn.Linear(num_numbers, width, bias=False) if num_numbers else None

    def add_to(self, text: Tensor, items: Tensor, dropped: Tensor | None) -> Tensor:
        """Returns f32[m, E]: what the items have beside their text, added to it.

        The ids of the items that `dropped` bool[n] marks are not seen.
        """
        total = text
        if self.item_ids is not None:
            ids = self.ids[items]
            ids = ids if dropped is None else ids.masked_fill(dropped[items], 0)
            total = total + self.item_ids(ids)
        for i, table in enumerate(self.categories):
            total = total + table(self.codes[items, i])
        for values in [*self.several, *self.vectors]:
            total = total + values(items)
        return total if self.numeric is None else total + self.numeric(self.numbers[items])


class Retrieval(nn.Module):
    """Vectors of the items and users of each scenario that has a main task.

    A user is what a scenario's queries find in the history: each query weighs the items by their
    vectors and ages. The mean of what they find starts the user's vector near the items of the
    history. A user without a history has the scenario's vector. A profile is added to either.
    """

    def __init__(
        self,
        options: Model,
        scenarios: Mapping[str, PreparedScenario],
        catalogues: Mapping[str, Catalogue],
        text_width: int,
        profiles: Mapping[str, Profiles],
    ) -> None:
        super().__init__()
        self.options = options
        width = options.retrieval.width
        self.project = nn.Linear(text_width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.ages = nn.Embedding(NUM_AGES, NUM_QUERIES)
        self.mix = nn.Linear(NUM_QUERIES * width, width, bias=False)
        nn.init.zeros_(self.ages.weight)
        nn.init.zeros_(self.mix.weight)
        facts = {n: f for n, f in scenarios.items() if f.main}
        self.extras = nn.ModuleDict(
            {n: ItemExtras(f, catalogues[n], options) for n, f in facts.items()}
        )
        self.queries = nn.ParameterDict(
            {n: nn.Parameter(0.1 * torch.randn(NUM_QUERIES, width)) for n in facts}
        )
        self.no_history = nn.ParameterDict(
            {n: nn.Parameter(torch.randn(width) / width**0.5) for n in facts}
        )

        self.outcomes = nn.ModuleDict(
            {
                n: OutcomeEmbedding(len(f.tasks), NUM_QUERIES, std=0.0)
                for n, f in facts.items()
                if f.history_outcomes
            }
        )
        self.spaces = {n: f.user_space for n, f in facts.items()}
        shared = {n: p for n, p in profiles.items() if n in self.spaces.values()}
        self.profiles = profile_inputs(shared, width, options.bins, std=0.0)

    @property
    def learns(self) -> bool:
        """Whether any of its parameters learns."""
        return any(p.requires_grad for p in self.parameters())

    def states(
        self, name: str, items: Tensor, text: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        """Returns vectors f32[m, E] of items i64[m] with texts f32[m, D], of any length.

        The ids of the items that `dropped` bool[n] marks are not seen.
        """
        text = text if self.options.text else torch.zeros_like(text)
        extras = self.extras[name]
        assert isinstance(extras, ItemExtras)
        return self.out(self.norm(extras.add_to(self.project(text), items, dropped)))

    def users(
        self,
        name: str,
        states: Tensor,
        history: Tensor,
        ages: Tensor,
        outcomes: Tensor,
        asking: Asking,
    ) -> Tensor:
        """Returns unit vectors f32[B, E] of users with histories, ages and outcomes, each [B, H].

        Histories are rows of the items' vectors f32[m, E], -1 where there is none; profiles are
        those of the B users `asking`.
        """
        known = (history >= 0) & self.options.history
        if not len(states):
            states = states.new_zeros(1, self.options.retrieval.width)
        place = history.clamp(min=0)
        interest = states @ self.queries[name].T / states.shape[1] ** 0.5
        scores = F.embedding(place, interest) + self.ages(ages.clamp(max=NUM_AGES - 1))
        if name in self.outcomes:
            vectors, which = self.outcomes[name](outcomes)
            scores = scores + F.embedding(which, vectors)
        weights = masked_softmax(scores, known.unsqueeze(-1), 1).to(states.dtype)
        found = torch.einsum("bha,bhe->bae", weights, F.embedding(place, states))
        user = found.mean(1) + self.mix(found.flatten(1))
        user = torch.where(known.any(1, keepdim=True), user.float(), self.no_history[name])
        if self.spaces[name] in self.profiles:
            user = user + self.profiles[self.spaces[name]](asking)
        return F.normalize(user, dim=-1)

    def sample_users(
        self, name: str, samples: Samples, text: Tensor, dropped: Tensor | None = None
    ) -> Tensor:
        """Returns unit vectors f32[N, E] of samples' users; texts f32[U, D] of distinct items."""
        known = samples.history >= 0
        met = torch.zeros(len(samples.items), dtype=torch.bool, device=text.device)
        met[samples.history[known]] = True
        items, number = met.nonzero().squeeze(1), met.cumsum(0) - 1
        history = torch.where(known, number[samples.history.clamp(min=0)], -1)
        states = self.states(name, samples.items[items], text[items], dropped)
        asking = Asking(samples.person, samples.moment)
        return self.users(name, states, history, samples.ages, samples.outcomes, asking)

    @torch.no_grad()
    def item_vectors(self, name: str, text: Tensor) -> Tensor:
        """Returns unit vectors f32[n, E] of all items of a catalogue by their texts f32[n, D]."""
        rows = torch.arange(len(text), device=text.device)
        parts = zip(rows.split(MAX_ROWS), text.split(MAX_ROWS), strict=True)
        return torch.cat([unit(self.states(name, items, part)) for items, part in parts])

    @torch.no_grad()
    def user_vectors(self, name: str, users: UserSnapshot, text: Tensor) -> Tensor:
        """Returns unit vectors f32[B, E] of users, by the texts f32[n, D] of all items."""
        items, history = np.unique(users.history, return_inverse=True)
        shift = int(len(items) > 0 and items[0] < 0)  # -1, no item, comes first
        rows = torch.tensor(items[shift:], dtype=torch.int64, device=text.device)
        history = torch.tensor(history.reshape(users.history.shape) - shift).to(text.device)
        ages = torch.tensor(users.ages, dtype=torch.int64, device=text.device)
        outcomes = torch.zeros_like(ages)
        if users.outcomes is not None:
            outcomes = torch.tensor(users.outcomes, device=text.device)
        asking, states = Asking.of(users, text.device), self.states(name, rows, text[rows])
        return self.users(name, states, history, ages, outcomes, asking)


def unit(vectors: Tensor) -> Tensor:
    """Returns vectors f32[m, E] of length 1."""
    return F.normalize(vectors.float(), dim=-1)
