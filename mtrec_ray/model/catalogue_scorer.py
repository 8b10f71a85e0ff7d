"""Every item of a catalogue for some users: the network's scores as products of matrices.

The network's score does not factorise into a user's vector and an item's: the candidate attends
over the history, and the layers above read both. So all items are scored in full. What depends on
the item or the user alone is computed once, histories are projected once a user and not once a
pair, and cosines and attention are products of a block of users with all items.

Letters: n items, m of a block of them, B users, H history items, F numeric columns, W width,
D width of texts, T tasks.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.snapshot import ItemSnapshot, UserCategoryStatistics, UserSnapshot
from mtrec_ray.model.history import similarity_kernels
from mtrec_ray.model.inputs import ScenarioInputs
from mtrec_ray.model.recommender import Recommender

MAX_ROWS = 65_536  # of numeric columns that are taken apart into bins at a time


class CatalogueScorer:
    """A scenario's whole catalogue, ready to be scored for users."""

    def __init__(self, model: Recommender, name: str, vectors: Tensor, items: ItemSnapshot) -> None:
        """`vectors` f32[n, D] are the text vectors of the scenario's items."""
        own = model.inputs[name]
        assert isinstance(own, ScenarioInputs)
        self.model, self.name, self.own = model, name, own
        device = vectors.device
        everything = torch.arange(len(vectors), device=device)
        self.vectors = vectors if model.options.text else torch.zeros_like(vectors)
        self.items = model.item_norm(model.project(self.vectors) + own.item_extras(everything))
        self.unit = F.normalize(self.vectors.float(), dim=-1)
        self.numbers, self.item_columns = self._item_columns(items.numeric)
        self.nothing = self._columns(torch.full_like(self.numbers[:1], torch.nan))
        self.codes = {c: torch.tensor(v).to(device) for c, v in items.codes.items()}
        self.default = {c: self._own_columns(v[None])[0] for c, v in items.default.items()}

    def as_of(self, numeric: np.ndarray) -> "CatalogueScorer":
        """The same catalogue with numeric columns f32[B, n, F] of its items for each of B users."""
        other = copy.copy(self)
        other.numbers, other.item_columns = self._item_columns(numeric)
        return other

    def _item_columns(self, numeric: np.ndarray) -> tuple[Tensor, Tensor]:
        """Numeric columns f32[.., n, F] of the items, and what they add, f32[.., n, W]."""
        numbers = torch.tensor(numeric).to(self.vectors.device)
        raw = self.own.catalogue_raw.expand(*numbers.shape[:-1], -1)
        columns = self._columns(torch.cat([numbers, raw], -1).flatten(0, -2))
        return numbers, columns.view(*numbers.shape[:-1], -1)

    def _columns(self, values: Tensor) -> Tensor:
        """f32[m, W] of numeric columns [m, F] or, with the catalogue's, [m, F + M]."""
        own = self.own
        missing = len(own.kept) - values.shape[1]
        values = F.pad(values, (0, missing), value=torch.nan).masked_fill(~own.kept, torch.nan)
        parts = values.split(MAX_ROWS)
        return torch.cat([own.columns(torch.minimum(part, own.limits)) for part in parts])

    def _own_columns(self, values: np.ndarray) -> Tensor:
        """f32[m, W]: what numeric columns [m, F] add to others; the bias is in the items'."""
        return self._columns(torch.tensor(values).to(self.unit.device)) - self.nothing

    def _pair_columns(
        self, column: str, entries: UserCategoryStatistics, num_users: int, items: slice
    ) -> Tensor:
        """f32[B, m, W]: what users' rows with the category of each of some items add."""
        code, nothing = self.codes[column], self.default[column]
        size = int(code.max()) + 1 if len(code) else 0
        table = nothing.expand(num_users, size + 1, -1).clone()
        if len(entries.user):
            table[torch.tensor(entries.user), torch.tensor(entries.category)] = self._own_columns(
                entries.numeric
            )
        table[:, size] = 0  # of an item without a value
        code = code[items]
        return table[:, torch.where(code >= 0, code, size)]

    def _similarity(self, places: Tensor, mask: Tensor, items: slice) -> Tensor:
        """f32[B m, 4 K]: kernels of the cosines of each of some items with each history."""
        unit = self.unit[items]
        (b, h), n = places.shape, len(unit)
        cosine = torch.einsum("nd,bhd->bnh", unit, self.unit[places])
        return similarity_kernels(
            cosine.reshape(b * n, h), mask.unsqueeze(1).expand(b, n, h).reshape(b * n, h)
        )

    def _user_columns(self, users: UserSnapshot, items: slice) -> Tensor:
        """f32[B, m, W]: the numeric columns of all pairs."""
        found = self.item_columns[..., items, :] + self._own_columns(users.numeric).unsqueeze(1)
        for column, entries in users.categories.items():
            found = found + self._pair_columns(column, entries, len(users), items)
        return found

    def _general(self, users: UserSnapshot, similarity: Tensor, items: slice) -> Tensor:
        """f32[B m, T]: the general head's logits, from the columns of the item and of the user."""
        own = torch.tensor(users.numeric).to(self.unit.device).unsqueeze(1)
        numbers = self.numbers[..., items, :]
        numeric = torch.where(numbers.isnan(), own, numbers).flatten(0, 1)
        return self.model.general_logits(self.name, similarity, numeric)

    def logits(self, users: UserSnapshot, items: slice = slice(None)) -> Tensor:
        """f32[B, m, T]: as `Recommender.score` of every user with every item, or with some."""
        model, device = self.model, self.unit.device
        longest = max(int((users.history >= 0).sum(1).max(initial=0)), 1)
        history = torch.tensor(users.history[:, :longest]).to(device)
        ages = torch.tensor(users.ages[:, :longest]).to(device)
        mask = history >= 0
        if not model.options.history:
            mask = torch.zeros_like(mask)
        places = history.clamp(min=0)
        candidates = self.items[items]
        (b, _), (n, width) = places.shape, candidates.shape
        candidate = candidates.expand(b, n, width)
        similarity = self._similarity(places, mask, items)
        if model.use_general_head:
            return self._general(users, similarity, items).view(b, n, -1)
        user = model.interest.cross(candidates, self.items, places, ages, mask)
        columns = self._user_columns(users, items).view(b * n, width) + model.similarity(similarity)
        number = torch.tensor(users.user).to(device)
        identity = model.user_vector(self.name, number, self.items[:1].expand(b, width))
        identity = identity.unsqueeze(1).expand(b, n, width)
        scenario = model.scenario_vectors[self.name].expand(b, n, width)
        flat = [user, candidate, user * candidate]
        flat = [x.reshape(b * n, width) for x in flat]
        rest = [x.reshape(b * n, width) for x in (scenario, identity)]
        inputs = torch.cat([*flat, columns, *rest, similarity], 1)
        found = model.sharing(self.name, inputs, torch.cat([rest[1], flat[1]], 1))
        heads = model.heads[self.name]
        assert isinstance(heads, nn.ModuleDict)
        logits = [
            head(torch.cat([x, columns], 1)) for head, x in zip(heads.values(), found, strict=True)
        ]
        return torch.stack(logits, 1).view(b, n, -1)


def blend(
    predicted: Tensor, tasks: list[str], given: Mapping[str, str], by: Mapping[str, float]
) -> Tensor:
    """f32[..]: the weighted sum of tasks' predictions f32[.., T]; a given task times its parent."""
    total = torch.zeros_like(predicted[..., 0])
    for task, weight in by.items():
        value = predicted[..., tasks.index(task)]
        if task in given:
            value = value * predicted[..., tasks.index(given[task])]
        total = total + weight * value
    return total


def best_items(score: Tensor, left_out: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores f32[B, k] and their items i64[B, k]; -inf where fewer are left.

    `left_out` bool[B, n] are not taken.
    """
    return score.masked_fill(left_out, -torch.inf).topk(min(k, score.shape[1]), dim=1)
