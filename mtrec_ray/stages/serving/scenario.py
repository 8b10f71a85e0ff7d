"""The engine of a scenario: lists and predictions for those who ask, without HTTP.

Letters: B users, M pairs of a user and an item, n items, P predictions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.project.base import shorten
from mtrec_ray.project.project import Project
from mtrec_ray.stages.list_ranker import Listed, ListRanker, PairScorer, Wish, pairs_of
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.serving.asking import Askers, Known
from mtrec_ray.stages.serving.filters import ItemFilters
from mtrec_ray.stages.serving.item_texts import ItemTexts
from mtrec_ray.stages.serving.new_items import NewItemScorer
from mtrec_ray.stages.serving.requests import (
    NewItem,
    Ranked,
    RecommendAnswer,
    RecommendRequest,
    RequestError,
    ScoreAnswer,
    Scored,
    ScoreRequest,
)

Kind = Literal["joint", "finetuned", "zero-shot"]


@dataclass
class ScenarioEngine:
    """What answers in a scenario.

    Attributes:
        kind: which model it is; fingerprint: of its weights and data.
        version: of all models.
        scorer: of given pairs; `list_ranker`: None without a binary task.
        most: items of a list, at most.
        texts: of the catalogue's items. project: names files that can be read.
        new_items: scores items that the catalogue lacks; None: `no_new_items` says why not.
    """

    name: str
    kind: Kind
    fingerprint: str
    version: str
    scorer: PairScorer
    list_ranker: ListRanker | None
    askers: Askers
    filters: ItemFilters
    most: int
    texts: ItemTexts
    project: Project
    new_items: NewItemScorer | None = None
    no_new_items: str = ""

    @property
    def ranker(self) -> Ranker:
        """The network over the whole catalogue."""
        return self.scorer.ranker

    @property
    def facts(self) -> PreparedScenario:
        """What is known of the scenario's data."""
        return self.ranker.facts

    # --- lists ---------------------------------------------------------------------------------

    def recommend(self, asks: Sequence[RecommendRequest]) -> list[RecommendAnswer | RequestError]:
        """Returns the list of each who asks, or why there is none."""
        answers: dict[int, RecommendAnswer | RequestError] = {}
        wishes: dict[str, list[int]] = {}
        for number, ask in enumerate(asks):
            problems = self.list_problems(ask)
            if problems:
                answers[number] = RequestError(problems)
            else:
                wishes.setdefault(alike(ask), []).append(number)
        for numbers in wishes.values():
            own = [asks[number] for number in numbers]
            answers |= dict(zip(numbers, self.lists(own), strict=True))
        return [answers[number] for number in range(len(asks))]

    def list_problems(self, ask: RecommendRequest) -> list[str]:
        """Returns a line for each mistake of a request."""
        if self.list_ranker is None:
            line = f"scenario: found {self.name}, which has no binary task; allowed: score"
            return [line]
        lines = self.askers.problems(ask)
        if ask.k is not None and ask.k > self.most:
            lines.append(f"k: found {ask.k}; allowed: at most {self.most}")
        if ask.task is not None and ask.by is not None:
            lines.append("by: found both task and by; allowed: one of the two")
        weights = weights_of(ask)
        if weights is not None:
            lines += self.weight_problems("task" if ask.task else "by", weights)
        return lines

    def weight_problems(self, field: str, weights: Mapping[str, float]) -> list[str]:
        """Returns a line for each task that lists cannot be ordered by."""
        facts = self.facts
        main = [facts.main] if facts.main else []
        allowed = main if self.kind == "zero-shot" else facts.tasks
        lines = [
            f"{field}: found {task!r}; allowed: {', '.join(allowed)}"
            for task in weights
            if task not in allowed
        ]
        if sum(weights.values()) <= 0:
            lines.append(f"{field}: found no weight above 0; allowed: at least one")
        return lines

    def lists(self, asks: Sequence[RecommendRequest]) -> Sequence[RecommendAnswer | RequestError]:
        """Returns the lists of those who ask alike."""
        first = asks[0]
        try:
            allowed = self.filters.allowed(first.filters) if first.filters else None
        except RequestError as error:
            return [error] * len(asks)
        known = self.askers.known(asks)
        wish = self.wish(asks, known, allowed)
        assert self.list_ranker is not None
        ranked = self.list_ranker.rank(known.users, wish)
        listed = self.list_ranker.listed(known.users, ranked, wish)
        return [
            self.answer(ask, known, place, listed)
            for ask, place in zip(asks, known.place.tolist(), strict=True)
        ]

    def wish(self, asks: Sequence[RecommendRequest], known: Known, allowed: Bools | None) -> Wish:
        """Returns how the lists of those who ask alike are made: as long as the longest."""
        options, first = self.ranker.options, asks[0]
        seen = options.exclude_seen if first.exclude_seen is None else first.exclude_seen
        wish = wish_of(known, max(self.length(ask) for ask in asks), seen=seen)
        return replace(wish, by=weights_of(first), allowed=allowed)

    def length(self, ask: RecommendRequest) -> int:
        """Returns how many items a list has."""
        return ask.k or min(self.ranker.options.k, self.most)

    def answer(
        self, ask: RecommendRequest, known: Known, place: int, listed: Listed
    ) -> RecommendAnswer:
        """Returns the list of a user."""
        rows = np.flatnonzero(listed.user == place)[: self.length(ask)]
        chance = self.ranker.options.explore.way != "none"
        return RecommendAnswer(
            model=self.kind,
            version=self.version,
            **new_to_training(known, place),
            ordered_by="list model" if weights_of(ask) is None else "predictions",
            items=[
                Ranked(
                    rank=int(listed.rank[row]),
                    score=float(listed.score[row]),
                    propensity=float(listed.propensity[row]) if chance else None,
                    **({"text": self.texts[int(listed.item[row])]} if ask.texts else {}),
                    **self.told(int(listed.item[row]), listed.told[row]),
                )
                for row in rows.tolist()
            ],
        )

    def told(self, item: int, values: Float32s) -> dict[str, Any]:
        """Returns what is told of an item, with its predictions f32[P]."""
        ids, known = self.ranker.items.ids, self.ranker.items.in_training
        return {"item": str(ids[item]), "new": not known[item], **predictions(self.facts, values)}

    # --- given pairs ---------------------------------------------------------------------------

    def score(self, asks: Sequence[ScoreRequest]) -> list[ScoreAnswer | RequestError]:
        """Returns the predictions of each request, or why there are none."""
        problems = [self.score_problems(ask) for ask in asks]
        good = [ask for ask, lines in zip(asks, problems, strict=True) if not lines]
        found = iter(self.scores(good) if good else ())
        return [RequestError(lines) if lines else next(found) for lines in problems]

    def score_problems(self, ask: ScoreRequest) -> list[str]:
        """Returns a line for each mistake of a request."""
        lines = self.askers.problems(ask)
        for number, one in enumerate(ask.items):
            if one.item not in self.askers.state.fresh.item_of:
                lines += self.new_item_problems(f"items.{number}", one)
        return lines

    def new_item_problems(self, where: str, new: NewItem) -> list[str]:
        """Returns a line for each mistake in an item that the catalogue lacks."""
        if not new.columns:
            found = f"{where}.item: found {shorten(new.item)}, which the catalogue lacks"
            return [f"{found}; allowed: an item of the catalogue, or one with columns"]
        if self.new_items is None:
            return [f"{where}.columns: {self.no_new_items}"]
        lines = self.new_items.reader.problems(new.columns)
        return [f"{where}.columns.{line}" for line in lines]

    def scores(self, asks: Sequence[ScoreRequest]) -> list[ScoreAnswer]:
        """Returns the predictions of requests without a mistake."""
        known, item_of = self.askers.known(asks), self.askers.state.fresh.item_of
        items = [
            np.array([item_of[one.item] for one in ask.items if one.item in item_of], np.int64)
            for ask in asks
        ]
        user = np.repeat(known.place, [len(own) for own in items])
        told = self.predict(known, user, np.concatenate(items))
        parts = np.split(told, np.cumsum([len(own) for own in items])[:-1])
        return [
            self.score_answer(ask, known, place, values)
            for ask, place, values in zip(asks, known.place.tolist(), parts, strict=True)
        ]

    def predict_new(self, known: Known, place: int, new: Sequence[NewItem]) -> Float32s:
        """Returns f32[m, P]: predictions of items that the catalogue lacks, for a user."""
        assert self.new_items is not None
        users = known.users.of(place, place + 1)
        own = [(one.item, one.columns) for one in new]
        return self.new_items.predict(users, own, int(users.moment[0]), known.columns)[0]

    def score_answer(
        self, ask: ScoreRequest, known: Known, place: int, told: Float32s
    ) -> ScoreAnswer:
        """Returns the predictions of a user's items; `told`: of those that the catalogue has."""
        item_of, found = self.askers.state.fresh.item_of, iter(told)
        new = [one for one in ask.items if one.item not in item_of]
        of_new = iter(self.predict_new(known, place, new) if new else ())
        return ScoreAnswer(
            model=self.kind,
            version=self.version,
            **new_to_training(known, place),
            items=[
                Scored.model_validate(self.told(item_of[one.item], next(found)))
                if one.item in item_of
                else Scored.model_validate(
                    {"item": one.item, "new": True, **predictions(self.facts, next(of_new))}
                )
                for one in ask.items
            ],
        )

    def predict(self, known: Known, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M, P]: predictions of pairs, in any order, as those of an evaluation."""
        num_items, num_users = len(self.ranker.items.ids), len(known.users)
        keys = np.unique(user * num_items + item)
        pairs = Candidates(*np.divmod(keys, num_items), {}, num_users)
        wish = Wish(
            0,
            exclude_seen=False,
            crowd=known.crowd,
            beside=known.beside,
            end=known.end,
            columns=known.columns,
        )
        network = self.scorer.predictions(known.users, pairs, wish)
        told = self.scorer.told(known.users, pairs.user, pairs.item, network, wish)
        return told[pairs_of(pairs, user, item, num_items)]


def wish_of(known: Known, k: int, *, seen: bool) -> Wish:
    """Returns what lists of k items are made from; `seen`: without what was seen."""
    return Wish(
        k=k,
        exclude_seen=seen,
        crowd=known.crowd,
        beside=known.beside,
        end=known.end,
        columns=known.columns,
    )


def new_to_training(known: Known, place: int) -> dict[str, Any]:
    """Returns what an answer says of a user that training does not know."""
    told: dict[str, Any] = {"new_user": bool(known.users.user[place] == 0)}
    values = known.new_values[place] if known.new_values else {}
    return told | ({"new_values": dict(values)} if values else {})


def alike(ask: RecommendRequest) -> str:
    """Returns what requests have in common that can be answered at once."""
    return ask.model_dump_json(include={"task", "by", "filters", "exclude_seen"})


def weights_of(ask: RecommendRequest) -> dict[str, float] | None:
    """Returns the weights of tasks that a request orders by; None: the list model orders."""
    return {ask.task: 1.0} if ask.task is not None else ask.by


def predictions(facts: PreparedScenario, values: Float32s) -> dict[str, Any]:
    """Returns predictions f32[P] by task, and the probabilities of classes."""
    classes = {
        task: dict(
            zip(
                (str(one) for one in facts.classes[task].values),
                values[facts.probabilities_of(task)].tolist(),
                strict=True,
            )
        )
        for task in facts.tasks
        if task in facts.classes
    }
    told = dict(zip(facts.tasks, values[: len(facts.tasks)].tolist(), strict=True))
    return {"predictions": told, "probabilities": classes}
