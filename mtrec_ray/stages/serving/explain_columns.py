"""What columns do to a score: those of the item in the catalogue, and of the user's profile.

An effect is the score less that of the same pair with the column null, as `prepare` reads a null.

Letters: K columns, F numeric columns of a row, h items of the user's history.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import Catalogue, Ragged
from mtrec_ray.data.given_profiles import NONE, GivenProfiles, stacked
from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot
from mtrec_ray.model.catalogue_scorer import CatalogueScorer
from mtrec_ray.model.inputs import ScenarioInputs
from mtrec_ray.model.recommender import predictions
from mtrec_ray.project.items import Items
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.serving.profiles import RequestProfiles

TEXT = "text"  # all columns of a profile's text


@dataclass(frozen=True)
class ColumnEffect:
    """What a column does to the score.

    Attributes:
        column: its name, `text` of the columns of a profile's text; None: all of them together.
        effect: the score less that with null there; of a whole profile: of a user without one.
    """

    column: str | None
    effect: float


class HasEffect(Protocol):
    """Something with an effect."""

    @property
    def effect(self) -> float:
        """The change of the score."""
        ...


Effect = TypeVar("Effect", bound=HasEffect)


def strongest(effects: Sequence[Effect]) -> list[Effect]:
    """Returns effects, the strongest first."""
    return sorted(effects, key=lambda one: -abs(one.effect))


# --- columns of the item -------------------------------------------------------------------------


def columns_of(items: Items) -> Iterator[tuple[str, str, int]]:
    """Yields the columns of a catalogue that the network reads: name, kind, and number in it."""
    kinds = {
        "categorical": items.categorical, "numeric": items.numeric,
        "several": tuple(items.several), "vectors": items.vectors,
    }  # fmt: skip
    for kind, names in kinds.items():
        for number, name in enumerate(names):
            yield name, kind, number


@torch.no_grad()
def column_effects(
    ranker: Ranker, user: UserSnapshot, item: int, numeric: Float32s | None = None
) -> list[ColumnEffect]:
    """Returns what the item's columns do to its score, each and all together.

    Its id, its texts, its statistics and those of its values stay, and so do the history's items.
    `numeric` f32[F]: as in `Explainer.explain`.
    """
    columns = list(columns_of(ranker.layout.scenario.items))
    if not columns or ranker.model.use_general_head:
        return []
    met = np.unique(user.history[user.history >= 0])
    copies = np.full(len(columns) + 2, item)  # as it is, without all, without each
    inputs = ranker.model.scenario_inputs(ranker.name).of_items(
        torch.from_numpy(np.concatenate([met, copies])).to(ranker.text.device)
    )
    for row, (_, kind, number) in enumerate(columns, len(met) + 2):
        inputs.blank(row, kind, number)
        inputs.blank(len(met) + 1, kind, number)
    own = ranker.items.numeric[item] if numeric is None else numeric
    scores = scores_of_copies(ranker, user, met, copies, inputs, own)
    names = [None, *(name for name, _, _ in columns)]
    found = [ColumnEffect(n, float(scores[0] - s)) for n, s in zip(names, scores[1:], strict=True)]
    return strongest(found)


def scores_of_copies(
    ranker: Ranker,
    user: UserSnapshot,
    met: Ints,
    copies: Ints,
    inputs: ScenarioInputs,
    numeric: Float32s,
) -> Float32s:
    """Returns f32[K]: scores of copies i64[K] of an item, with tables `inputs` of their own.

    These hold the items i64[h] of the user's history, and then the copies.
    """
    both = np.concatenate([met, copies])
    rows = torch.from_numpy(both).to(ranker.text.device)
    scorer = CatalogueScorer(
        ranker.model, ranker.name, ranker.text[rows], items_at(ranker.items, both), inputs,
        texts_of(ranker, rows),
    )  # fmt: skip
    place = np.where(user.history >= 0, np.searchsorted(met, user.history), -1)
    items = torch.arange(len(met), len(both), device=rows.device)
    columns = torch.from_numpy(np.repeat(numeric[None, None], len(copies), 1)).to(rows.device)
    logits = scorer.logits(replace(user, history=place), items[None], columns)
    return ranker.blended(predictions(ranker.facts, logits.flatten(0, 1)).cpu().numpy())


def texts_of(ranker: Ranker, rows: Tensor) -> Tensor | None:
    """Returns f32[m, D]: items as the pretrained encoder reads them; None if nothing needs that."""
    if ranker.name not in ranker.model.elsewhere:
        return None
    side = ranker.model.elsewhere_side(ranker.name)
    return side.texts_of(rows + side.base)


def items_at(items: ItemSnapshot, rows: Ints) -> ItemSnapshot:
    """Returns rows i64[m] of a catalogue; one may come several times."""
    return replace(
        items,
        ids=items.ids[rows],
        in_training=items.in_training[rows],
        numeric=items.numeric[rows],
        codes={c: code[rows] for c, code in items.codes.items()},
        values={
            c: replace(own, of_items=own.of_items.take(rows)) for c, own in items.values.items()
        },
    )


# --- columns of the profile ----------------------------------------------------------------------


def profile_variants(
    user: UserSnapshot, profiles: RequestProfiles | None
) -> tuple[list[str | None], GivenProfiles | None]:
    """Returns what is left out of a user's profile, and the profiles: his own, and without each.

    None for the profile of a user who has none, and without `profiles`, which read it.
    """
    row, text = (None, None) if profiles is None else profiles.of_user(user)
    if profiles is None or row is None:
        return [], None
    columns = list(profile_columns(profiles))
    rows = [row, *(without(row, kind, number) for _, kind, number in columns)]
    texts = None
    if text is not None:
        empty = profiles.empty_text
        texts = np.concatenate([text, *(empty if kind == TEXT else text for _, kind, _ in columns)])
    place = np.array([0, NONE, *range(1, len(rows))])
    return [None, *(name for name, _, _ in columns)], GivenProfiles(place, stacked(rows), texts)


def profile_columns(profiles: RequestProfiles) -> Iterator[tuple[str, str, int]]:
    """Yields the columns of a table of users: name, kind, and number in it."""
    users, facts = profiles.reader.users, profiles.reader.facts
    kinds = {
        "categorical": list(facts.vocabularies), "numeric": users.numeric,
        "several": list(facts.several), "vectors": users.vectors,
        TEXT: [TEXT] if facts.has_text else [],
    }  # fmt: skip
    for kind, names in kinds.items():
        for number, name in enumerate(names):
            yield name, kind, number


def without(row: Catalogue, kind: str, number: int) -> Catalogue:
    """Returns a table's only row with null in a column."""
    if kind in ("categorical", "numeric"):
        values = getattr(row, kind).copy()
        values[:, number] = 0 if kind == "categorical" else np.nan
        return replace(row, **{kind: values})
    if kind == TEXT:
        return row
    empty = Ragged(np.zeros(0, np.int32), np.zeros(2, np.int64))
    columns = list(getattr(row, kind))
    columns[number] = empty if kind == "several" else np.full_like(columns[number], np.nan)
    return replace(row, **{kind: tuple(columns)})
