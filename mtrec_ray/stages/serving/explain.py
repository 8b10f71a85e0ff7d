"""Why a model scores an item as it does for a user: exact differences of the served score.

Letters: K variants of a user, H history items, F numeric columns, P predictions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.elsewhere import Taken
from mtrec_ray.data.preparing.statistics import (
    CALENDAR_NAMES,
    NO_WINDOWS,
    WINDOWS_MS,
    Windows,
)
from mtrec_ray.data.snapshot import (
    PUBLISHED,
    SnapshotColumns,
    UserSnapshot,
    no_category_statistics,
)
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.profiles import Asking
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.serving.explain_columns import (
    ColumnEffect,
    column_effects,
    profile_variants,
    strongest,
)
from mtrec_ray.stages.serving.explain_users import joined, without_each, without_taken
from mtrec_ray.stages.serving.explain_words import WordEffects, word_effects
from mtrec_ray.stages.serving.profiles import RequestProfiles


@dataclass(frozen=True)
class HistoryEffect:
    """What one item of a history does to the score.

    Attributes:
        place: in the history, 0 is the latest.
        item: its row in the catalogue; `item_id`: its id.
        effect: the score less that of the same user without it.
    """

    place: int
    item: int
    item_id: str
    effect: float


@dataclass(frozen=True)
class ElsewhereEffect:
    """What an item that the user took in another scenario does to the score.

    Attributes:
        place: among these items, 0 is the latest.
        scenario: where he took it; `item`: its row in the catalogue there.
        effect: the score less that of the same user without it.
    """

    place: int
    scenario: str
    item: int
    effect: float


@dataclass(frozen=True)
class StatisticEffect:
    """What a group of numeric columns does to the score.

    Attributes:
        group: `item`, `user`, `category.COLUMN` and `values.COLUMN` (of the item's values),
            `user_category.COLUMN` and `user_values.COLUMN` (of the user with these), `published`
            (the age of the item) or `calendar`.
        columns: how many it has.
        effect: the score less that with the group as of a key without a past; ages and calendar as
            unknown.
    """

    group: str
    columns: int
    effect: float


@dataclass(frozen=True)
class Explanation:
    """Why an item has its score for a user.

    Attributes:
        item, item_id: the item's row in the catalogue, and its id.
        score: the blend of the predictions by which the scenario ranks.
        predictions: by task; with them any other blend is computed.
        blend: the weights of the tasks.
        history, elsewhere, profile, columns, statistics: effects, the strongest first; `elsewhere`
            of items that the user took in other scenarios, `columns` of those of the catalogue,
            `profile` of those of the table of users.
        words: None without an encoder.
    """

    item: int
    item_id: str
    score: float
    predictions: dict[str, float]
    blend: dict[str, float]
    history: list[HistoryEffect]
    elsewhere: list[ElsewhereEffect]
    profile: list[ColumnEffect]
    columns: list[ColumnEffect]
    statistics: list[StatisticEffect]
    words: WordEffects | None


class Explainer:
    """Explains the scores of a scenario's model."""

    def __init__(
        self,
        ranker: Ranker,
        encoder: TextEncoder | None = None,
        profiles: RequestProfiles | None = None,
    ) -> None:
        """`encoder`: of the ranker's model, in fp32; without it no words are explained.

        `profiles` reads those of users; without it these are not explained.
        """
        self.ranker, self.encoder, self.profiles = ranker, encoder, profiles
        self.ids = ranker.items.ids

    def explain(
        self,
        user: UserSnapshot,
        item: int,
        text: str | None = None,
        numeric: Float32s | None = None,
    ) -> Explanation:
        """Returns why a row of the catalogue has its score for a user alone in a snapshot.

        `text` is the item's; without it words are those of its tokens. `numeric` f32[F] are its
        columns at the moment when the user asks; without it those of the catalogue's snapshot.
        """
        own = None if numeric is None else numeric[None]
        predicted = self._predictions(user, np.array([item]), own)
        tasks = self.ranker.facts.tasks
        return Explanation(
            item=item,
            item_id=str(self.ids[item]),
            score=float(self.ranker.blended(predicted)[0]),
            predictions=dict(zip(tasks, predicted[0].tolist(), strict=False)),
            blend=dict(self.ranker.by),
            history=self.history(user, item, numeric),
            elsewhere=self.elsewhere(user, item, numeric),
            profile=self.profile(user, item, numeric),
            columns=column_effects(self.ranker, user, item, numeric),
            statistics=self.statistics(user, item, numeric),
            words=None if self.encoder is None else self.words(user, item, text, numeric),
        )

    def history(
        self, user: UserSnapshot, item: int, numeric: Float32s | None = None
    ) -> list[HistoryEffect]:
        """Returns what each item of the history does to the score, the strongest first.

        The user's statistics stay as they are.
        """
        places = np.flatnonzero(user.history[0] >= 0)
        users = without_each(user, places)
        scores = self._scores(*self._variants(users, item, numeric))
        found = [
            HistoryEffect(int(p), int(met), str(self.ids[met]), float(scores[0] - score))
            for p, met, score in zip(places, user.history[0, places], scores[1:], strict=True)
        ]
        return strongest(found)

    def elsewhere(
        self, user: UserSnapshot, item: int, numeric: Float32s | None = None
    ) -> list[ElsewhereEffect]:
        """Returns what each item taken in another scenario does to the score."""
        name, model = self.ranker.name, self.ranker.model
        if name not in model.elsewhere or model.use_general_head:
            return []
        side = model.elsewhere_side(name)
        asking = Asking.of(user, self.ranker.text.device)
        taken = Taken(*(values.cpu().numpy() for values in side.taken(asking)))
        places = np.flatnonzero(taken.items[0] >= 0)
        scores = self._scores(*self._variants(without_taken(user, taken, places), item, numeric))
        facts, met = side.timeline.facts, taken.items[0, places]
        origins = facts.origins(met)
        found = [
            ElsewhereEffect(
                int(place), facts.scenarios[origin], int(one - facts.bases[origin]),
                float(scores[0] - score),
            )
            for place, one, origin, score in zip(places, met, origins, scores[1:], strict=True)
        ]  # fmt: skip
        return strongest(found)

    def profile(
        self, user: UserSnapshot, item: int, numeric: Float32s | None = None
    ) -> list[ColumnEffect]:
        """Returns what the profile and each of its columns do to the score; none without one."""
        model = self.ranker.model
        if self.ranker.facts.user_space not in model.profiles or model.use_general_head:
            return []
        columns, given = profile_variants(user, self.profiles)
        if given is None:
            return []
        users = replace(joined([user] * len(given.place)), given=given)
        scores = self._scores(*self._variants(users, item, numeric))
        found = zip(columns, scores[1:], strict=True)
        return strongest([ColumnEffect(c, float(scores[0] - score)) for c, score in found])

    def statistics(
        self, user: UserSnapshot, item: int, numeric: Float32s | None = None
    ) -> list[StatisticEffect]:
        """Returns what each group of numeric columns does to the score, the strongest first."""
        layout = self.ranker.layout
        own = self.ranker.items.numeric[item] if numeric is None else numeric
        variants = list(cold_variants(layout, user, own))
        users = joined([user, *(variant.user for variant in variants)])
        columns = np.stack([own, *(variant.numeric for variant in variants)])
        scores = self._scores(users, item, columns)
        found = [
            StatisticEffect(variant.group, variant.columns, float(scores[0] - score))
            for variant, score in zip(variants, scores[1:], strict=True)
        ]
        return strongest(found)

    def words(
        self,
        user: UserSnapshot,
        item: int,
        text: str | None = None,
        numeric: Float32s | None = None,
    ) -> WordEffects:
        """Returns what each word of the item's text does to the score."""
        assert self.encoder is not None
        return word_effects(self.ranker, self.encoder, user, item, text, numeric)

    def _variants(
        self, users: UserSnapshot, item: int, numeric: Float32s | None
    ) -> tuple[UserSnapshot, int, Float32s]:
        """Returns users, an item and its columns f32[K, F], the same for all of them."""
        own = self.ranker.items.numeric[item] if numeric is None else numeric
        return users, item, np.repeat(own[None], len(users), 0)

    def _scores(self, users: UserSnapshot, item: int, numeric: Float32s) -> Float32s:
        predicted = self._predictions(users, np.full(len(users), item), numeric)
        return self.ranker.blended(predicted)

    @torch.no_grad()
    def _predictions(
        self, users: UserSnapshot, items: Ints, numeric: Float32s | None = None
    ) -> Float32s:
        """Returns f32[K, P] of pairs, the i-th user with the i-th of items i64[K]."""
        pairs = Candidates(np.arange(len(users)), items, {}, len(users))
        return self.ranker.predictions(users, pairs, numeric)


@dataclass(frozen=True)
class ColdVariant:
    """A user and an item, as if a group of statistics had no past.

    Attributes:
        numeric: f32[F], the item's columns.
    """

    group: str
    columns: int
    user: UserSnapshot
    numeric: Float32s


def cold_variants(
    layout: SnapshotColumns, user: UserSnapshot, numeric: Float32s
) -> Iterator[ColdVariant]:
    """Yields the user and the item's columns f32[F] with one group at its cold start each."""
    items = layout.scenario.items
    keys = [f"category.{c}" for c in items.statistics_columns]
    keys += [f"values.{c}" for c in items.pooled_columns]
    for key, windows in [("item", WINDOWS_MS), *((key, NO_WINDOWS) for key in keys)]:
        columns = layout.columns_of(key, windows)
        yield ColdVariant(key, width_of(columns), user, cold_columns(layout, key, windows, numeric))
    columns = layout.columns_of("user", WINDOWS_MS)
    cold = cold_columns(layout, "user", WINDOWS_MS, user.numeric)
    yield ColdVariant("user", width_of(columns), replace(user, numeric=cold), numeric)
    for column, key in layout.pair_keys.items():
        pairs = user.categories | {column: no_category_statistics(layout)}
        columns = layout.columns_of(key, NO_WINDOWS)
        without = replace(user, categories=pairs)
        yield ColdVariant(key, width_of(columns), without, numeric)
    if PUBLISHED in layout.names:
        unknown = np.where(layout.group((PUBLISHED,)), np.nan, numeric).astype(np.float32)
        yield ColdVariant("published", 1, user, unknown)
    if layout.timed:
        hidden = layout.group(tuple(CALENDAR_NAMES))
        without = replace(user, numeric=np.where(hidden, np.nan, user.numeric).astype(np.float32))
        yield ColdVariant("calendar", int(hidden.sum()), without, numeric)


def width_of(columns: slice) -> int:
    """Returns how many columns a group has."""
    return columns.stop - columns.start


def cold_columns(
    layout: SnapshotColumns, key: str, windows: Windows, numeric: Float32s
) -> Float32s:
    """Returns columns f32[.., F] with those of a key as of one without a past.

    An item without a value of a column has none of its statistics, and stays as it is.
    """
    columns, found = layout.columns_of(key, windows), numeric.copy()
    if not np.isnan(numeric[..., columns]).all():
        found[..., columns] = layout.scatter(key, windows, layout.cold_start(windows))[0, columns]
    return found
