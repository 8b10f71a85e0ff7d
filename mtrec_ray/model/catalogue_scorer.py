"""Scores every item of a catalogue for some users.

The network's score does not factorise into a user's vector and an item's: the candidate attends
over the history, and the layers above read both. So every pair goes through the network's one
forward pass (`Recommender.assemble`). What it reads is prepared here: what depends on the item or
the user alone is computed once, histories are projected once a user and not once a pair, and
cosines and attention are products of a block of users with all items.

Letters: n items, m of a block of them, B users, H history items, F numeric columns, M of the
catalogue, W width, D width of texts, K similarity kernels, T tasks.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.snapshot import ItemSnapshot, UserCategoryStatistics, UserSnapshot
from mtrec_ray.model.history import similarity_kernels
from mtrec_ray.model.recommender import PairInputs, Recommender

MAX_ROWS = 65_536  # whose numeric columns are mapped at a time: bins take K + 1 numbers a column


@dataclass(frozen=True)
class Histories:
    """Histories of B users, as rows of the catalogue.

    Attributes:
        items: i64[B, H], 0 where there is none. ages: i64[B, H].
        mask: bool[B, H], whether the model sees an item there.
    """

    items: Tensor
    ages: Tensor
    mask: Tensor


class CatalogueScorer:
    """A scenario's whole catalogue, ready to be scored for users.

    A row's numeric columns are the item's, the user's, and those of the user with the item's
    category, each NaN in the columns of the others. NaN adds nothing to the network's linear map
    of the columns: the map of a row is the sum of three maps.

    Attributes:
        unit: f32[n, D], text vectors of length 1 (or 0).
        items: f32[n, W], items as candidates and in histories.
        item_numbers: f32[n, F], and item_columns: f32[n, W], their map, with its bias; of
            `as_of` one for each user, f32[B, n, F] and f32[B, n, W].
        bias: f32[1, W], the map of columns that are all NaN.
        category: by categorical column, i64[n]: the number of an item's value, -1 without one.
        cold_start: by categorical column, f32[W]: the map of a user without a row of a value.
    """

    def __init__(self, model: Recommender, name: str, vectors: Tensor, items: ItemSnapshot) -> None:
        """`vectors` f32[n, D] are the text vectors of the scenario's items."""
        self.model, self.name, self.inputs = model, name, model.scenario_inputs(name)
        device = vectors.device
        text, rows = model.visible_text(vectors), torch.arange(len(vectors), device=device)
        self.items = model.item_norm(model.project(text) + self.inputs.item_extras(rows))
        self.unit = F.normalize(text.float(), dim=-1)
        self.item_numbers, self.item_columns = self._item_columns(items.numeric)
        self.bias = self._map(torch.full_like(self.item_numbers[:1], torch.nan))
        self.category = {c: torch.tensor(v).to(device) for c, v in items.codes.items()}
        self.cold_start = {c: self._map_without_bias(v[None])[0] for c, v in items.default.items()}

    def as_of(self, numeric: np.ndarray) -> "CatalogueScorer":
        """Returns the catalogue with numeric columns f32[B, n, F] of its items for each user."""
        other = copy.copy(self)
        other.item_numbers, other.item_columns = self._item_columns(numeric)
        return other

    def _item_columns(self, numeric: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns columns f32[.., n, F] of the items as a tensor, and their map f32[.., n, W]."""
        numbers = torch.tensor(numeric).to(self.unit.device)
        raw = self.inputs.catalogue_raw.expand(*numbers.shape[:-1], -1)
        columns = self._map(torch.cat([numbers, raw], -1).flatten(0, -2))
        return numbers, columns.view(*numbers.shape[:-1], -1)

    def _map(self, values: Tensor) -> Tensor:
        """Returns f32[m, W] for numeric columns [m, F] or, with the catalogue's, [m, F + M]."""
        inputs = self.inputs
        num_missing = len(inputs.kept) - values.shape[1]
        values = F.pad(values, (0, num_missing), value=torch.nan)
        parts = values.split(MAX_ROWS)
        return torch.cat([inputs.columns(inputs.visible_columns(part)) for part in parts])

    def _map_without_bias(self, values: np.ndarray) -> Tensor:
        """Returns f32[m, W], what numeric columns f32[m, F] add to the items' columns."""
        return self._map(torch.tensor(values).to(self.unit.device)) - self.bias

    def logits(self, users: UserSnapshot, items: slice = slice(None)) -> Tensor:
        """Returns logits f32[B, m, T] of every user with every item, or with some.

        They equal those of `Recommender.score` for the pairs as samples.
        """
        model, histories = self.model, self._histories(users)
        similarity = self._similarity(histories, items)
        if model.use_general_head:
            numeric = self._common_numbers(users, items)
            logits = model.general_logits(self.name, similarity, numeric)
        else:
            pairs = self._pair_inputs(users, items, histories, similarity)
            logits = model.assemble(self.name, pairs)
        return logits.view(len(users), -1, logits.shape[1])

    def _histories(self, users: UserSnapshot) -> Histories:
        """Returns the users' histories, cut at the longest one."""
        device = self.unit.device
        longest = max(int((users.history >= 0).sum(1).max(initial=0)), 1)
        history = torch.tensor(users.history[:, :longest]).to(device)
        ages = torch.tensor(users.ages[:, :longest]).to(device)
        return Histories(history.clamp(min=0), ages, self.model.visible_history(history))

    def _similarity(self, histories: Histories, items: slice) -> Tensor:
        """Returns kernels f32[B m, 4 K] of the cosines of some items with each history."""
        unit = self.unit[items]
        (b, h), m = histories.items.shape, len(unit)
        cosine = torch.einsum("md,bhd->bmh", unit, self.unit[histories.items])
        mask = histories.mask.unsqueeze(1).expand(b, m, h)
        return similarity_kernels(cosine.reshape(b * m, h), mask.reshape(b * m, h))

    def _pair_inputs(
        self, users: UserSnapshot, items: slice, histories: Histories, similarity: Tensor
    ) -> PairInputs:
        """Returns the model's inputs of all B m pairs, user by user."""
        model, candidates = self.model, self.items[items]
        user = model.interest.cross(
            candidates, self.items, histories.items, histories.ages, histories.mask
        )
        number = torch.tensor(users.user).to(self.unit.device)
        identity = model.user_vectors(self.name, number).unsqueeze(1)

        def rows(values: Tensor) -> Tensor:
            return values.expand_as(user).reshape(-1, user.shape[2])

        return PairInputs(
            user=rows(user),
            candidate=rows(candidates),
            columns=rows(self._columns(users, items)),
            identity=rows(identity),
            similarity=similarity,
        )

    def _columns(self, users: UserSnapshot, items: slice) -> Tensor:
        """Returns f32[B, m, W], the map of the numeric columns of all pairs."""
        user_columns = self._map_without_bias(users.numeric).unsqueeze(1)
        columns = self.item_columns[..., items, :] + user_columns
        for column, statistics in users.categories.items():
            columns = columns + self._category_columns(column, statistics, len(users), items)
        return columns

    def _category_columns(
        self, column: str, statistics: UserCategoryStatistics, num_users: int, items: slice
    ) -> Tensor:
        """Returns f32[B, m, W], what users' rows with the category of each of some items add."""
        category = self.category[column]
        num_categories = int(category.max()) + 1 if len(category) else 0
        table = self.cold_start[column].expand(num_users, num_categories + 1, -1).clone()
        if len(statistics.user):
            pairs = torch.tensor(statistics.user), torch.tensor(statistics.category)
            table[pairs] = self._map_without_bias(statistics.numeric)
        table[:, num_categories] = 0  # of an item without a value
        category = category[items]
        return table[:, torch.where(category >= 0, category, num_categories)]

    def _common_numbers(self, users: UserSnapshot, items: slice) -> Tensor:
        """Returns numeric columns f32[B m, F] of items and users, without those of categories."""
        user_numbers = torch.tensor(users.numeric).to(self.unit.device).unsqueeze(1)
        item_numbers = self.item_numbers[..., items, :]
        return torch.where(item_numbers.isnan(), user_numbers, item_numbers).flatten(0, 1)


def blend(
    predicted: Tensor, tasks: list[str], given: Mapping[str, str], by: Mapping[str, float]
) -> Tensor:
    """Returns the weighted sum f32[..] of tasks' predictions f32[.., T].

    A conditional task counts with the product of its and its parent's predictions.
    """
    total = torch.zeros_like(predicted[..., 0])
    for task, weight in by.items():
        value = predicted[..., tasks.index(task)]
        if task in given:
            value = value * predicted[..., tasks.index(given[task])]
        total = total + weight * value
    return total


def best_items(score: Tensor, left_out: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k highest scores f32[B, k] and their items i64[B, k].

    Items that `left_out` bool[B, n] marks are not taken; -inf where fewer than k are left.
    """
    return score.masked_fill(left_out, -torch.inf).topk(min(k, score.shape[1]), dim=1)
