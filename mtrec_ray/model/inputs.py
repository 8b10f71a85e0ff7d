"""A scenario's own embeddings and columns.

Letters: N samples, U distinct items, F numeric columns, W width.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.catalogue import Catalogue, Ragged
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.model.history import NUM_KERNELS
from mtrec_ray.model.layers import shallow
from mtrec_ray.model.numeric import NumericInputs
from mtrec_ray.model.outcomes import OutcomeEmbedding, OutcomeVectors, similarity_by_outcome
from mtrec_ray.model.samples import Samples
from mtrec_ray.model.vectors import ReadyVectors, VectorLikeness, ready_vectors
from mtrec_ray.project.model import Model

# Ages beyond 30 days are read as 30 days: the age of an item that was there from the first row on
# only tells the date, and later rows would lie outside the range that training saw.
AGE, MAX_AGE = ".log_seconds_since_first", math.log1p(30 * 86_400)


class PooledValues(nn.Module):
    """The mean of the embeddings of each row's values; zeros for a row without one.

    Letters: n rows of a table, m of them.
    """

    codes: Tensor
    offsets: Tensor

    def __init__(self, values: Ragged, size: int, width: int) -> None:
        """`size`: number of codes, with the unused 0."""
        super().__init__()
        self.table = id_embedding(size, width)
        self.register_buffer("codes", torch.tensor(values.codes).long(), persistent=False)
        self.register_buffer("offsets", torch.tensor(values.offsets), persistent=False)

    def with_rows(self, rows: Tensor, more: Ragged) -> "PooledValues":
        """Returns the same embeddings over some rows i64[m], and the rows of `more` after them."""
        own = Ragged(self.codes.cpu().numpy(), self.offsets.cpu().numpy())
        kept = own.take(rows.cpu().numpy())
        offsets = np.concatenate([kept.offsets, kept.offsets[-1] + more.offsets[1:]])
        twin = shallow(self)
        assert isinstance(twin, PooledValues)
        twin.codes = torch.from_numpy(np.concatenate([kept.codes, more.codes])).to(self.codes)
        twin.offsets = torch.from_numpy(offsets).to(self.offsets)
        return twin

    def clear(self, row: int) -> None:
        """Leave a row without a value; in the tables of `with_rows`."""
        first, last = self.offsets[row].item(), self.offsets[row + 1].item()
        self.codes = torch.cat([self.codes[:first], self.codes[last:]])
        self.offsets = torch.cat([self.offsets[: row + 1], self.offsets[row + 1 :] - last + first])

    def forward(self, rows: Tensor) -> Tensor:
        """Returns f32[m, W] of rows i64[m]."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = lengths.cumsum(0)
        shift = (starts - (ends - lengths)).repeat_interleave(lengths)
        codes = self.codes[torch.arange(len(shift), device=rows.device) + shift]
        return F.embedding_bag(codes, self.table.weight, ends - lengths, mode="mean")


class PooledCodes(nn.Module):
    """The mean of the embeddings of codes that rows hold themselves; zeros without a code."""

    def __init__(self, size: int, width: int) -> None:
        """`size`: number of codes, with the 0 of no value."""
        super().__init__()
        self.table = id_embedding(size, width)

    def forward(self, codes: Tensor) -> Tensor:
        """Returns f32[N, W] of codes i64[N, S], of which 0 is no value."""
        return F.embedding_bag(codes, self.table.weight, mode="mean", padding_idx=0)


def pooled_values(catalogue: Catalogue, width: int) -> nn.ModuleList:
    """Returns the embeddings of a catalogue's columns with several values."""
    return nn.ModuleList(PooledValues(v, v.size, width) for v in catalogue.several)


class ScenarioInputs(nn.Module):
    """A scenario's own embeddings and columns."""

    catalogue_raw: Tensor
    catalogue_numeric: Tensor
    catalogue_ids: Tensor
    catalogue_categories: Tensor
    kept: Tensor
    limits: Tensor

    def __init__(self, facts: PreparedScenario, catalogue: Catalogue, options: Model) -> None:
        super().__init__()
        width = options.width
        num_numeric = len(facts.item_numeric_mean)
        self.columns = NumericInputs(
            [*facts.numeric_mean, *facts.item_numeric_mean],
            [*facts.numeric_std, *facts.item_numeric_std],
            [*facts.numeric_quantiles, *facts.item_numeric_quantiles],
            width,
            options.bins,
        )
        kept = [options.statistics or n.startswith("event.") for n in facts.numeric_names]
        kept += [True] * num_numeric
        limits = [MAX_AGE if n.endswith(AGE) else math.inf for n in facts.numeric_names]
        limits += [math.inf] * num_numeric
        self.register_buffer("limits", torch.tensor(limits), persistent=False)
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.bool), persistent=False)
        self.item_ids = id_embedding(facts.num_items + 1, width) if options.item_ids else None
        self.item_categories = nn.ModuleList(
            id_embedding(n, width) for n in facts.item_category_sizes
        )
        self.categories = nn.ModuleList(id_embedding(n, width) for n in facts.category_sizes)
        self.several = nn.ModuleList(PooledCodes(n, width) for n in facts.several_sizes)
        self.several_widths = facts.several_widths
        self.item_several = pooled_values(catalogue, width)
        self.item_vectors = ready_vectors(catalogue.vectors, width)
        self.likeness = VectorLikeness(len(catalogue.vectors), width)
        self.item_numeric = nn.Linear(2 * num_numeric, width, bias=False) if num_numeric else None
        self.outcomes = self.by_outcome = None
        if facts.history_outcomes:
            self.outcomes = OutcomeEmbedding(len(facts.tasks), width, std=0.01)
            self.by_outcome = nn.Linear(8 * NUM_KERNELS, width, bias=False)
            nn.init.zeros_(self.by_outcome.weight)
        self.options = options
        raw = torch.from_numpy(catalogue.numeric)
        numbers, codes = standard_numbers(facts, catalogue), category_codes(catalogue)
        self.register_buffer("catalogue_raw", raw, persistent=False)
        self.register_buffer("catalogue_numeric", numbers, persistent=False)
        self.register_buffer("catalogue_ids", known_ids(catalogue), persistent=False)
        self.register_buffer("catalogue_categories", codes, persistent=False)

    def with_items(
        self, facts: PreparedScenario, rows: Tensor, more: Catalogue
    ) -> "ScenarioInputs":
        """Returns the same embeddings over other items: rows i64[m] of these, and then `more`."""
        twin = shallow(self)
        assert isinstance(twin, ScenarioInputs)
        both = {
            "catalogue_raw": torch.from_numpy(more.numeric),
            "catalogue_numeric": standard_numbers(facts, more),
            "catalogue_ids": known_ids(more),
            "catalogue_categories": category_codes(more),
        }
        for name, values in both.items():
            own = getattr(self, name)
            setattr(twin, name, torch.cat([own[rows], values.to(own)]))
        several = zip(self.item_several, more.several, strict=True)
        vectors = zip(self.item_vectors, more.vectors, strict=True)
        twin.item_several = nn.ModuleList(
            own.with_rows(rows, values) for own, values in several if isinstance(own, PooledValues)
        )
        twin.item_vectors = nn.ModuleList(
            own.with_rows(rows, values) for own, values in vectors if isinstance(own, ReadyVectors)
        )
        return twin

    def of_items(self, rows: Tensor) -> "ScenarioInputs":
        """Returns the same embeddings over rows i64[m] of the items, in tables of its own."""
        twin = shallow(self)
        assert isinstance(twin, ScenarioInputs)
        for name in ("raw", "numeric", "ids", "categories"):
            own = getattr(self, f"catalogue_{name}")
            setattr(twin, f"catalogue_{name}", own[rows])
        none = Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64))
        twin.item_several = nn.ModuleList(
            own.with_rows(rows, none) for own in self.item_several if isinstance(own, PooledValues)
        )
        twin.item_vectors = nn.ModuleList(
            own.with_rows(rows, np.zeros((0, own.values.shape[1]), np.float16))
            for own in self.item_vectors
            if isinstance(own, ReadyVectors)
        )
        return twin

    @torch.no_grad()
    def blank(self, row: int, kind: str, number: int) -> None:
        """Make a column null in a row of the tables of `of_items`.

        `kind`: categorical, numeric, several or vectors; `number`: of its column among these.
        """
        if kind == "categorical":
            self.catalogue_categories[row, number] = 0
        elif kind == "numeric":
            num = self.catalogue_raw.shape[1]
            self.catalogue_raw[row, number] = math.nan
            self.catalogue_numeric[row, [number, num + number]] = torch.tensor(
                [0.0, 1.0], device=self.catalogue_numeric.device
            )
        elif kind == "several":
            values = self.item_several[number]
            assert isinstance(values, PooledValues)
            values.clear(row)
        else:
            vectors = self.item_vectors[number]
            assert isinstance(vectors, ReadyVectors)
            vectors.values[row] = math.nan

    def item_extras(self, items: Tensor) -> Tensor:
        """Returns f32[U, W], what is added to the text of items: all else that they have."""
        extra = torch.zeros(len(items), self.options.width, device=items.device)
        if self.item_numeric is not None:
            extra = extra + self.item_numeric(self.catalogue_numeric[items])
        if self.item_ids is not None:
            ids = drop_ids(self.catalogue_ids[items], self.options.id_dropout, self.training)
            extra = extra + self.item_ids(ids)
        for i, table in enumerate(self.item_categories):
            extra = extra + table(self.catalogue_categories[items, i])
        for values in [*self.item_several, *self.item_vectors]:
            extra = extra + values(items)
        return extra

    def outcome_vectors(self, outcomes: Tensor) -> OutcomeVectors | None:
        """Returns the vectors of what came of histories i64[N, H]; None where no data tells."""
        return None if self.outcomes is None else self.outcomes(outcomes)

    def outcome_columns(self, cosine: Tensor, mask: Tensor, outcomes: Tensor) -> Tensor | float:
        """Returns f32[N, W] of how close candidates are to what was taken and what passed over.

        From cosines [N, H] with histories and what came of them; 0 where no data tells.
        """
        if self.by_outcome is None:
            return 0.0
        return self.by_outcome(similarity_by_outcome(cosine, mask, outcomes))

    def visible_columns(self, values: Tensor) -> Tensor:
        """Returns numeric columns f32[N, G], the first G of all, as the model sees them.

        Columns that the options hide are NaN, and ages end at 30 days.
        """
        num_columns = values.shape[1]
        values = values.masked_fill(~self.kept[:num_columns], math.nan)
        return torch.minimum(values, self.limits[:num_columns])

    def row_columns(self, samples: Samples, seen: Tensor) -> Tensor:
        """Returns f32[N, W] of the samples' statistics and categories, and candidates' numbers.

        Of items' vectors their likeness, too; `seen` bool[N, H] are history items that the model
        sees.
        """
        numbers = self.catalogue_raw[samples.items[samples.candidate]]
        columns = self.columns(self.visible_columns(torch.cat([samples.numeric, numbers], 1)))
        for i, table in enumerate(self.categories):
            columns = columns + table(samples.categorical[:, i])
        start = 0
        for pool, num in zip(self.several, self.several_widths, strict=True):
            columns = columns + pool(samples.several[:, start : start + num])
            start += num
        for like in self.likeness.of_samples(self.item_vectors, samples, seen):
            columns = columns + like
        return columns


def known_ids(catalogue: Catalogue) -> Tensor:
    """Returns i64[n], the ids of a catalogue's items: from 1 on, 0 for those new to training."""
    ids = np.arange(1, catalogue.num_items + 1)
    return torch.from_numpy(np.where(catalogue.known, ids, 0))


def category_codes(catalogue: Catalogue) -> Tensor:
    """Returns i64[n, C], the codes of a catalogue's categorical columns, 0 for unknown."""
    return torch.from_numpy(catalogue.categorical.astype(np.int64))


def standard_numbers(facts: PreparedScenario, catalogue: Catalogue) -> Tensor:
    """Returns f32[n, 2 M]: a catalogue's numeric columns, standardised, and where they are null."""
    numbers = torch.from_numpy(catalogue.numeric)
    if numbers.shape[1]:
        mean = torch.tensor(facts.item_numeric_mean)
        std = torch.tensor(facts.item_numeric_std)
        numbers = ((numbers - mean) / std).clamp(-4, 4)
    return torch.cat([numbers.nan_to_num(0.0), numbers.isnan().float()], 1)


def id_embedding(number: int, width: int) -> nn.Embedding:
    """Returns small random vectors of `number` ids, of which 0, the unknown one, has zeros."""
    table = nn.Embedding(number, width, padding_idx=0)
    nn.init.normal_(table.weight, std=0.01)
    with torch.no_grad():
        table.weight[0] = 0
    return table


def drop_ids(ids: Tensor, share: float, training: bool) -> Tensor:
    """Returns ids, a share of them made unknown (0) so that the model learns to do without."""
    if not training or share == 0:
        return ids
    return ids.masked_fill(torch.rand(ids.shape, device=ids.device) < share, 0)
