"""Predictions of items that the catalogue lacks, by the network alone.

Their texts are read by the encoder of the scenario's model; encoders of several models share what
none of them changed. A small catalogue of the users' histories and of the new items is scored as
the whole one is.

Letters: B users, m new items, P predictions, h items of the users' histories.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import Catalogue, Ragged
from mtrec_ray.data.end_states import CatalogueColumns, statistics_at_end
from mtrec_ray.data.preparing.pooling import pooled
from mtrec_ray.data.preparing.statistics import NO_WINDOWS, WINDOWS_MS
from mtrec_ray.data.snapshot import ItemSnapshot, SnapshotColumns, UserSnapshot, overlay
from mtrec_ray.model.catalogue_scorer import CatalogueScorer
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.recommender import predictions
from mtrec_ray.project.project import Project
from mtrec_ray.serving.new_items import Columns, NewItemReader, NewItems
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.trained_model import TrainedModel, load_model_for_use
from mtrec_ray.training.build import autocast_for
from mtrec_ray.training.item_vectors import Autocast, ItemVectors
from mtrec_ray.training.node_cache import weights_hash

ColumnsOfItems = Callable[[Ints], Float32s]


class Encoders:
    """The encoders of all models of a service, whose frozen layers are in memory once."""

    def __init__(self) -> None:
        self.loaded: dict[TrainedModel, tuple[TextEncoder, Autocast]] = {}
        self.bases: dict[str, nn.Module] = {}
        self.pretrained: tuple[TextEncoder, Autocast] | None = None

    def load(self, model: TrainedModel) -> None:
        """Load the encoder of a model."""
        if model in self.loaded:
            return
        whole, vectors = load_model_for_use(model)
        encoder = whole.encoder.eval()
        if encoder.lower is not None and model.project.evaluation.precision != "int8":
            base = self.bases.setdefault(weights_hash(encoder.lower), encoder.lower)
            object.__setattr__(encoder, "lower", base)
        self.loaded[model] = (encoder, vectors.autocast)

    @torch.no_grad()
    def read(
        self, model: TrainedModel, name: str, texts: Catalogue, device: torch.device
    ) -> Tensor:
        """Returns f32[m, D]: vectors of texts, as the model reads those of its catalogue."""
        return read_by(*self.loaded[model], name, texts, device)

    @torch.no_grad()
    def read_pretrained(
        self, project: Project, name: str, texts: Catalogue, device: torch.device
    ) -> Tensor:
        """Returns f32[m, D]: vectors of length 1 by the pretrained encoder, as f16 keeps them."""
        found = self.read_users(project, name, texts, device)
        return torch.nn.functional.normalize(found, dim=1).half().float()

    @torch.no_grad()
    def read_users(
        self, project: Project, name: str, texts: Catalogue, device: torch.device
    ) -> Tensor:
        """Returns f32[m, D]: vectors of texts by the pretrained encoder."""
        if self.pretrained is None:
            options = project.model.encoder.model_copy(update={"trainable": "none"})
            encoder = TextEncoder(options).to(device).eval()
            self.pretrained = (encoder, autocast_for(device, project.training.precision))
        return read_by(*self.pretrained, name, texts, device)


def read_by(
    encoder: TextEncoder, autocast: Autocast, name: str, texts: Catalogue, device: torch.device
) -> Tensor:
    """Returns f32[m, D]: vectors of texts by an encoder."""
    vectors = ItemVectors(encoder, {name: texts}, device, autocast)
    found = torch.zeros(texts.num_items, encoder.width, device=device)
    for places, values in vectors.encode_share(0, 1):
        found[places] = values
    return found


@dataclass(frozen=True)
class NewItemScorer:
    """Scores new items of a scenario."""

    reader: NewItemReader
    encoders: Encoders
    model: TrainedModel
    ranker: Ranker
    known: CatalogueColumns

    @property
    def layout(self) -> SnapshotColumns:
        """Where the columns of the scenario's rows stand."""
        return self.ranker.layout

    @torch.no_grad()
    def predict(
        self,
        users: UserSnapshot,
        new: Sequence[tuple[str, Columns]],
        moment: int,
        columns: ColumnsOfItems | None,
    ) -> Float32s:
        """Returns f32[B, m, P]: predictions of new items, by ids and columns, for users.

        `columns`: those of items of the catalogue as of now; None: at the end of the data.
        """
        read, ranker = self.reader.read(new), self.ranker
        met = np.unique(users.history[users.history >= 0])
        rows, device = torch.from_numpy(met), ranker.text.device
        text = self.encoders.read(self.model, ranker.name, read.catalogue, device)
        inputs = ranker.model.scenario_inputs(ranker.name)
        scorer = CatalogueScorer(
            ranker.model,
            ranker.name,
            torch.cat([ranker.text[rows.to(device)], text]),
            self.snapshot_of(met, read, moment, columns),
            inputs.with_items(ranker.facts, rows.to(device), read.catalogue),
            self.texts_of(met, read.catalogue, device),
        )
        place = np.where(users.history >= 0, np.searchsorted(met, users.history), -1)
        items = torch.arange(len(met), len(met) + len(new), device=device)
        moved = replace(users, history=place)
        logits = scorer.logits(moved, items.expand(len(users), -1))
        values = predictions(ranker.facts, logits.flatten(0, 1)).cpu().numpy()
        return values.reshape(len(users), len(new), -1)

    def texts_of(self, met: Ints, new: Catalogue, device: torch.device) -> Tensor | None:
        """Returns f32[h + m, D]: texts as the pretrained encoder reads them, of length 1.

        None where the network reads nothing of other scenarios, which it compares with these.
        """
        name, model = self.ranker.name, self.ranker.model
        if name not in model.elsewhere:
            return None
        side = model.elsewhere_side(name)
        known = side.texts_of(torch.from_numpy(met + side.base).to(device))
        read = self.encoders.read_pretrained(self.model.project, name, new, device)
        return torch.cat([known, read])

    def snapshot_of(
        self, met: Ints, read: NewItems, moment: int, columns: ColumnsOfItems | None
    ) -> ItemSnapshot:
        """Returns the items i64[h] of histories, and then the new ones, as of a moment."""
        known, own = self.known, read.columns
        numeric = np.concatenate(
            [self.ranker.items.numeric[met], self.numeric(own, moment, columns)]
        )
        both = CatalogueColumns(
            ids=np.concatenate([known.ids[met], own.ids]),
            in_training=np.concatenate([known.in_training[met], own.in_training]),
            codes={c: np.concatenate([code[met], own.codes[c]]) for c, code in known.codes.items()},
            published=np.concatenate([known.published[met], own.published]),
            values={c: followed(v.take(met), own.values[c]) for c, v in known.values.items()},
        )
        return both.snapshot(self.layout, numeric)

    def numeric(
        self, new: CatalogueColumns, moment: int, columns: ColumnsOfItems | None
    ) -> Float32s:
        """Returns f32[m, F]: the columns of items without a row, whose values others may have."""
        layout, num = self.layout, len(new.ids)
        cold = np.repeat(layout.cold_start(WINDOWS_MS), num, 0)
        parts = [layout.scatter("item", WINDOWS_MS, cold)]
        parts += [self.of_category(c, code, columns) for c, code in new.codes.items()]
        parts += [self.of_values(c, values) for c, values in new.values.items()]
        parts.append(layout.item_ages(new.published, moment))
        return overlay(*parts)

    def of_category(self, column: str, code: Ints, columns: ColumnsOfItems | None) -> Float32s:
        """Returns f32[m, F]: statistics of values, which other items have; NaN without one."""
        layout, known = self.layout, self.known.codes[column]
        key = f"category.{column}"
        cold = np.repeat(layout.cold_start(NO_WINDOWS), len(code), 0)
        found = layout.scatter(key, NO_WINDOWS, cold)
        place = layout.columns_of(key, NO_WINDOWS)
        order = np.argsort(known, kind="stable")
        at = np.minimum(np.searchsorted(known[order], code), len(known) - 1)
        other = order[at]
        there = known[other] == code
        numbers = self.ranker.items.numeric[other] if columns is None else columns(other)
        found[there, place] = numbers[there, place]
        found[code < 0] = np.nan
        return found

    def of_values(self, column: str, values: Ragged) -> Float32s:
        """Returns f32[m, F]: pooled statistics of several values at the end of the data."""
        layout, key = self.layout, f"values.{column}"
        stats = statistics_at_end(layout, key, max(self.known.values[column].size, values.size))
        return layout.scatter(
            key, NO_WINDOWS, pooled(stats[values.codes], values.offsets, layout.timed)
        )


def followed(first: Ragged, second: Ragged) -> Ragged:
    """Returns the rows of one after those of another."""
    offsets = np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]])
    return Ragged(np.concatenate([first.codes, second.codes]), offsets)
