"""Ranks the items of a scenario for users: candidates, shortlist, network, list model, final list.

The batch job and the service both end here, the one with what the project file says, the other
with what a request wants.

Letters: B users who ask, n items, M candidates of theirs, N items of their lists, P predictions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from mtrec_ray.candidates.assortment import Cap, ListRules, Lists, choose_lists
from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.candidates.crowd import Crowd
from mtrec_ray.candidates.list_model import ListModel, shortlist
from mtrec_ray.candidates.sources import Sources
from mtrec_ray.data.arrays import Bools, Float32s, Floats, Ints
from mtrec_ray.data.interactions import END, Moments
from mtrec_ray.data.snapshot import UserSnapshot, rows_of_pairs
from mtrec_ray.model.catalogue_scorer import blend
from mtrec_ray.stages.list_inputs import ask
from mtrec_ray.stages.predictions import Beside, probability_columns
from mtrec_ray.stages.ranker import Ranker


@dataclass(frozen=True)
class ItemRules:
    """Which items may be listed, bool[n], and the caps on lists."""

    allowed: NDArray[np.bool_]
    caps: list[Cap]


@dataclass(frozen=True)
class Wish:
    """How lists are made, and what is known when users ask.

    Attributes:
        k: items of a list.
        exclude_seen: leaves out what the users have met.
        by: weights of tasks, whose predictions then order the shortlist; None: the list model does.
        allowed: bool[n], items that may be listed among those that the project's rules allow.
        crowd: what users did; None: what the prepared data says.
        beside: tells what stands beside the network the same.
        end: when users ask, in ms.
        columns: the columns f32[m, F] of items i64[m] at that moment; None: at the end of the data.
    """

    k: int
    exclude_seen: bool
    by: Mapping[str, float] | None = None
    allowed: Bools | None = None
    crowd: Crowd | None = None
    beside: Callable[[Beside], Beside] | None = None
    end: int = 0
    columns: Callable[[Ints], Float32s] | None = None


@dataclass(frozen=True)
class Ranked:
    """Candidates i64[M] of users with the network's predictions f32[M, P], and the lists."""

    candidates: Candidates
    predicted: Float32s
    lists: Lists


@dataclass(frozen=True)
class Listed:
    """The N items of lists, user by user, best first.

    Attributes:
        user, rank, item: i64[N]; users are numbered from 0, ranks from 1.
        score, propensity: f32[N].
        told: f32[N, P], predictions, blended as those of an evaluation.
    """

    user: Ints
    rank: Ints
    item: Ints
    score: Float32s
    propensity: Float32s
    told: Float32s


@dataclass(frozen=True)
class PairScorer:
    """Predictions of given pairs of users and items of a scenario.

    Attributes:
        beside: what stands beside the network; None: nothing.
    """

    ranker: Ranker
    beside: Beside | None = None

    def predictions(self, users: UserSnapshot, candidates: Candidates, wish: Wish) -> Float32s:
        """Returns f32[M, P]: what the network says of candidates."""
        numeric = None if wish.columns is None else wish.columns(candidates.item)
        return self.ranker.predictions(users, candidates, numeric)

    def told(
        self, users: UserSnapshot, user: Ints, item: Ints, network: Float32s, wish: Wish
    ) -> Float32s:
        """Returns f32[m, P]: predictions of pairs, blended as those of an evaluation."""
        if self.beside is None or not len(item):
            return network
        layout, items = self.ranker.layout, self.ranker.items
        numeric = None if wish.columns is None else wish.columns(item)
        rows = rows_of_pairs(layout, users, items, user, item, numeric)
        if layout.timed:
            rows["time"] = np.full(len(item), wish.end)
        beside = self.beside if wish.beside is None else wish.beside(self.beside)
        return beside.values(rows, network, END)["score"]


@dataclass(frozen=True)
class ListRanker:
    """What ranks the items of a scenario.

    Attributes:
        texts: f32[n, D], unit vectors of the items' texts.
    """

    scorer: PairScorer
    sources: Sources
    rules: ItemRules
    list_model: ListModel
    texts: Float32s

    @property
    def ranker(self) -> Ranker:
        """The network over the whole catalogue."""
        return self.scorer.ranker

    @property
    def usual(self) -> Wish:
        """What the project file says, at the end of the prepared data."""
        options = self.ranker.options
        return Wish(options.k, options.exclude_seen, end=self.sources.crowd.end)

    def best(self, users: UserSnapshot) -> pa.Table:
        """Returns the k best items of each user, with the model's predictions of them."""
        ranked = self.rank(users, self.usual)
        return self.table(users, ranked.candidates, ranked.predicted, ranked.lists)

    def rank(self, users: UserSnapshot, wish: Wish) -> Ranked:
        """Returns the lists of users, and what they were chosen from."""
        named = self.candidates(users, wish)
        first = self.list_model.first.scores(self.ranker.name, named)
        candidates = shortlist(named, first, self.ranker.options.shortlist)
        predicted = self.scorer.predictions(users, candidates, wish)
        score = self.order(users, candidates, predicted, wish)
        return Ranked(candidates, predicted, self.lists(users, candidates, score, wish.k))

    def candidates(self, users: UserSnapshot, wish: Wish) -> Candidates:
        """Returns the candidates of users who ask."""
        sources = self.sources_of(wish)
        times = np.full(len(users), wish.end) if self.ranker.layout.timed else None
        moments = Moments(users.person, times, END)
        answer = ask(sources, moments, self.ranker, users, exclude_met=wish.exclude_seen)
        return answer.at_least(wish.k)

    def sources_of(self, wish: Wish) -> Sources:
        """Returns the sources as they are asked for what is known now, about allowed items."""
        sources = self.sources if wish.crowd is None else replace(self.sources, crowd=wish.crowd)
        return sources if wish.allowed is None else sources.only(wish.allowed)

    def order(
        self, users: UserSnapshot, candidates: Candidates, predicted: Float32s, wish: Wish
    ) -> Floats:
        """Returns f64[M]: the score by which candidates are listed."""
        if wish.by is None:
            scores = self.ranker.scores(predicted, candidates.item)
            return self.list_model.scores(self.ranker.name, candidates.with_scores(scores))
        facts = self.ranker.facts
        told = self.scorer.told(users, candidates.user, candidates.item, predicted, wish)
        return blend(torch.from_numpy(told), facts.tasks, facts.given, wish.by).double().numpy()

    def lists(
        self, users: UserSnapshot, candidates: Candidates, score: Floats, k: int | None = None
    ) -> Lists:
        """Returns the final lists: the best by score, within caps, diverse, with chance."""
        options = self.ranker.options
        most = int(np.diff(candidates.starts).max(initial=1))
        items, pairs = candidates.best(score, max(most, 1))
        scores = np.where(pairs >= 0, score[pairs] if len(score) else 0, -np.inf)
        rules = ListRules(k or options.k, options.diversity, options.explore, self.rules.caps)
        return choose_lists(items, scores.astype(np.float32), users.person, rules, self.texts)

    def listed(self, users: UserSnapshot, ranked: Ranked, wish: Wish) -> Listed:
        """Returns the items of lists, with the predictions of each."""
        lists, candidates = ranked.lists, ranked.candidates
        user, rank = np.nonzero(lists.items >= 0)
        item = lists.items[user, rank]
        pair = pairs_of(candidates, user, item, len(self.ranker.items.ids))
        told = self.scorer.told(users, user, item, ranked.predicted[pair], wish)
        score, chance = lists.scores[user, rank], lists.propensities[user, rank]
        return Listed(user, rank + 1, item, score, chance, told)

    def table(
        self, users: UserSnapshot, candidates: Candidates, predicted: Float32s, lists: Lists
    ) -> pa.Table:
        """Returns lists as rows: user, rank, item, score, predictions (the network's f32[M, P])."""
        ranker, listed = self.ranker, Ranked(candidates, predicted, lists)
        found = self.listed(users, listed, self.usual)
        columns: dict[str, Any] = {
            "user": pa.array(users.ids[found.user], pa.string()),
            "rank": found.rank.astype(np.int32),
            "item": pa.array(ranker.items.ids[found.item], pa.string()),
            "score": found.score,
        }
        for i, (task, kind) in enumerate(ranker.facts.kinds.items()):
            word = "probability" if kind == "binary" else "prediction"
            columns[f"{word}.{task}"] = found.told[:, i]
        columns |= probability_columns(ranker.facts, found.told)
        columns["new_user"] = users.user[found.user] == 0  # no training row
        columns["new_item"] = ~ranker.items.in_training[found.item]
        if ranker.options.explore.way != "none":
            columns["propensity"] = found.propensity
        return pa.table(columns)


def pairs_of(candidates: Candidates, user: Ints, item: Ints, num_items: int) -> Ints:
    """Returns i64[N]: which pairs of the candidates, sorted by user and item, these are."""
    return np.searchsorted(candidates.user * num_items + candidates.item, user * num_items + item)
