"""Scores items of a catalogue for users who ask: all of them, or each user's candidates.

The network's score does not factorise into a user's vector and an item's: the candidate attends
over the history, and the layers above read both. So every pair goes through the network's one
forward pass (`Recommender.assemble`). What it reads is prepared here: what depends on the item or
the user alone is computed once, and histories are projected once a user and not once a pair.

Letters: n items, C candidates of a user, B users, H history items, F numeric columns, M of the
catalogue, W width, D width of texts, K similarity kernels, T tasks, L their logits, P predictions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.prepared import chain_of
from mtrec_ray.data.snapshot import (
    ItemSnapshot,
    UserCategoryStatistics,
    UserSnapshot,
    overlay,
    value_statistics,
)
from mtrec_ray.model.history import similarity_kernels
from mtrec_ray.model.inputs import ScenarioInputs
from mtrec_ray.model.profiles import Asking
from mtrec_ray.model.recommender import PairInputs, Recommender

MAX_ROWS = 65_536  # whose numeric columns are mapped at a time: bins take K + 1 numbers a column


@dataclass(frozen=True)
class Histories:
    """Histories of B users, as rows of the catalogue.

    Attributes:
        items: i64[B, H], 0 where there is none. ages, outcomes: i64[B, H].
        mask: bool[B, H], whether the model sees an item there.
    """

    items: Tensor
    ages: Tensor
    outcomes: Tensor
    mask: Tensor


class CatalogueScorer:
    """A scenario's whole catalogue, ready to be scored for users.

    A row's numeric columns are the item's, the user's, and those of the user with the item's
    category, each NaN in the columns of the others. NaN adds nothing to the network's linear map
    of the columns: the map of a row is the sum of three maps. What a user did with several values
    of an item is pooled before it is mapped, because the map has bins: a pair at a time.

    Attributes:
        unit: f32[n, D], text vectors of length 1 (or 0).
        items: f32[n, W], items as candidates and in histories.
        item_numbers: f32[n, F], the items' columns; item_columns: f32[n, W], their map, with
            its bias.
        bias: f32[1, W], the map of columns that are all NaN.
        category: by categorical column, i64[n]: the number of an item's value, -1 without one.
        cold_start: by categorical column, f32[W]: the map of a user without a row of a value.
        snapshot: the items, with their columns of several values.
    """

    def __init__(
        self,
        model: Recommender,
        name: str,
        vectors: Tensor,
        items: ItemSnapshot,
        inputs: ScenarioInputs | None = None,
        texts: Tensor | None = None,
    ) -> None:
        """`vectors` f32[n, D] are the text vectors of the scenario's items.

        `inputs` are the scenario's over other items than those of its catalogue, and `texts`
        f32[n, D] their vectors by the pretrained encoder, of length 1.
        """
        self.model, self.name, self.texts = model, name, texts
        self.inputs = inputs or model.scenario_inputs(name)
        device = vectors.device
        text, rows = model.visible_text(vectors), torch.arange(len(vectors), device=device)
        extras = torch.cat([self.inputs.item_extras(part) for part in rows.split(MAX_ROWS)])
        self.items = model.item_norm(model.project(text) + extras)
        self.unit = F.normalize(text.float(), dim=-1)
        self.item_numbers = torch.tensor(items.numeric).to(device)
        self.item_columns = self._item_columns(self.item_numbers, rows)
        self.bias = self._map(torch.full_like(self.item_numbers[:1], torch.nan))
        self.category = {c: torch.tensor(v).to(device) for c, v in items.codes.items()}
        self.cold_start = {
            c: self._map_without_bias(items.default[c][None])[0] for c in self.category
        }
        self.snapshot = items

    def _item_columns(self, numbers: Tensor, items: Tensor) -> Tensor:
        """Returns f32[.., W], the map of columns f32[.., F] of items i64[..]."""
        raw = self.inputs.catalogue_raw[items]
        columns = self._map(torch.cat([numbers, raw], -1).flatten(0, -2))
        return columns.view(*items.shape, -1)

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

    def logits(
        self, users: UserSnapshot, items: Tensor | None = None, numeric: Tensor | None = None
    ) -> Tensor:
        """Returns logits f32[B, C, L] of every user with candidates i64[B, C], or all items.

        `numeric` f32[B, C, F]: the candidates' columns at the moment when each user asks; without
        them those of the catalogue. The logits equal those of `Recommender.score` for the pairs as
        samples.
        """
        if items is None:
            every = torch.arange(len(self.unit), device=self.unit.device)
            items = every.expand(len(users), -1)
        numbers = self.item_numbers[items] if numeric is None else numeric
        histories = self._histories(users)
        cosine = self._cosines(histories, items)
        mask = repeated(histories.mask, items.shape[1])
        similarity = similarity_kernels(cosine, mask)
        common = numbers
        if self.model.use_general_head or self.model.starts_from_general:
            common = self._common_numbers(users, numbers)
        if self.model.use_general_head:
            logits = self.model.general_logits(self.name, similarity, common)
        else:
            columns = (
                self.item_columns[items] if numeric is None else self._item_columns(numbers, items)
            )
            columns = columns + self._outcome_columns(histories, cosine, mask)
            pairs = self._pair_inputs(users, items, columns, histories, similarity)
            logits = self.model.assemble(self.name, pairs)
            logits = self.model.from_general(self.name, logits, similarity, common)
        return logits.view(*items.shape, -1)

    def _histories(self, users: UserSnapshot) -> Histories:
        """Returns the users' histories, cut at the longest one."""
        device = self.unit.device
        longest = max(int((users.history >= 0).sum(1).max(initial=0)), 1)
        history = torch.tensor(users.history[:, :longest]).to(device)
        ages = torch.tensor(users.ages[:, :longest]).to(device)
        outcomes = torch.zeros_like(history)
        if users.outcomes is not None:
            outcomes = torch.tensor(users.outcomes[:, :longest]).to(device)
        mask = self.model.visible_history(history)
        return Histories(history.clamp(min=0), ages, outcomes, mask)

    def _cosines(self, histories: Histories, items: Tensor) -> Tensor:
        """Returns the cosines f32[B C, H] of candidates with each history."""
        candidates, met = self.unit[items], self.unit[histories.items]
        return torch.einsum("bcd,bhd->bch", candidates, met).flatten(0, 1)

    def _outcome_columns(
        self, histories: Histories, cosine: Tensor, mask: Tensor
    ) -> Tensor | float:
        """Returns f32[B, C, W], what is added by closeness to what was taken and passed over."""
        num_users = len(histories.items)
        outcomes = repeated(histories.outcomes, len(cosine) // max(num_users, 1))
        columns = self.inputs.outcome_columns(cosine, mask, outcomes)
        if not isinstance(columns, Tensor):
            return columns
        return columns.unflatten(0, (num_users, -1))

    def _pair_inputs(
        self,
        users: UserSnapshot,
        items: Tensor,
        columns: Tensor,
        histories: Histories,
        similarity: Tensor,
    ) -> PairInputs:
        """Returns the model's inputs of all B C pairs, user by user."""
        model, candidates = self.model, self.items[items]
        met, place = histories.items.unique(return_inverse=True)  # these are projected, not all
        user = model.interest.cross(
            candidates,
            self.items[met],
            place,
            histories.ages,
            histories.mask,
            self.inputs.outcome_vectors(histories.outcomes),
        )
        number = torch.tensor(users.user).to(self.unit.device)
        identity = model.user_vectors(self.name, number).unsqueeze(1)
        asking = Asking.of(users, self.unit.device)
        user, identity = model.with_profiles(self.name, asking, user, identity)
        columns = columns + self._user_columns(users, items, histories)
        if self.name in model.elsewhere:
            elsewhere = model.elsewhere_side(self.name)(asking, candidates, items, self.texts)
            user, columns = user + elsewhere.user, columns + elsewhere.columns

        def rows(values: Tensor) -> Tensor:
            return values.expand_as(user).reshape(-1, user.shape[2])

        return PairInputs(
            user=rows(user),
            candidate=rows(candidates),
            columns=rows(columns),
            identity=rows(identity),
            similarity=similarity,
        )

    def _user_columns(self, users: UserSnapshot, items: Tensor, histories: Histories) -> Tensor:
        """Returns f32[B, C, W], what users' columns and histories add to candidates' columns."""
        columns = self._map_without_bias(users.numeric).unsqueeze(1)
        for column, statistics in users.categories.items():
            if column in self.category:
                columns = columns + self._category_columns(column, statistics, items)
        if self.snapshot.values and len(users):
            columns = columns + self._value_columns(users, items)
        past, inputs = (histories.items, histories.mask), self.inputs
        for like in inputs.likeness.of_pairs(inputs.item_vectors, items, *past):
            columns = columns + like
        return columns

    def _category_columns(
        self, column: str, statistics: UserCategoryStatistics, items: Tensor
    ) -> Tensor:
        """Returns f32[B, C, W], what users' rows with the category of each candidate add."""
        category = self.category[column]
        num_categories = int(category.max()) + 1 if len(category) else 0
        table = self.cold_start[column].expand(len(items), num_categories + 1, -1).clone()
        if len(statistics.user):
            pairs = torch.tensor(statistics.user), torch.tensor(statistics.category)
            table[pairs] = self._map_without_bias(statistics.numeric)
        table[:, num_categories] = 0  # of an item without a value
        category = category[items]
        place = torch.where(category >= 0, category, num_categories)
        return table[torch.arange(len(items), device=table.device).unsqueeze(1), place]

    def _value_columns(self, users: UserSnapshot, items: Tensor) -> Tensor:
        """Returns f32[B, C, W], what users' rows with the several values of candidates add."""
        item = items.cpu().numpy()
        user = np.repeat(np.arange(len(item)), item.shape[1])
        parts = [
            value_statistics(self.snapshot, column, users.categories[column], user, item.ravel())
            for column in self.snapshot.values
        ]
        return self._map_without_bias(overlay(*parts)).view(*items.shape, -1)

    def _common_numbers(self, users: UserSnapshot, numbers: Tensor) -> Tensor:
        """Returns numeric columns f32[B C, F] of items and users, without those of categories."""
        user_numbers = torch.tensor(users.numeric).to(self.unit.device).unsqueeze(1)
        return torch.where(numbers.isnan(), user_numbers, numbers).flatten(0, 1)


def repeated(values: Tensor, number: int) -> Tensor:
    """Returns [B C, ..], each row of values [B, ..] as often as a user has candidates."""
    return values.repeat_interleave(number, 0)


def blend(
    predicted: Tensor, tasks: list[str], given: Mapping[str, str], by: Mapping[str, float]
) -> Tensor:
    """Returns the weighted sum f32[..] of tasks' predictions f32[.., P].

    A conditional task counts with the product of its prediction and those of all tasks above it.
    """
    total = torch.zeros_like(predicted[..., 0])
    for task, weight in by.items():
        value = predicted[..., tasks.index(task)]
        for above in chain_of(given, task)[1:]:
            value = value * predicted[..., tasks.index(above)]
        total = total + weight * value
    return total
