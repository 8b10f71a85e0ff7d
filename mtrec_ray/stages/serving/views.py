"""What the page shows of a scenario: users, what they did, why an item, lists side by side.

Letters: H rows of a user.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.end_states import user_parts, users_at_end
from mtrec_ray.data.preparing.inputs import read_users
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.project.base import ProjectError, shorten
from mtrec_ray.project.task import Task
from mtrec_ray.serving.fresh_rows import persons_of
from mtrec_ray.stages.list_ranker import ListRanker, PairScorer
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.serving.asking import SECOND_MS, Known
from mtrec_ray.stages.serving.explain import ElsewhereEffect, Explainer, Explanation
from mtrec_ray.stages.serving.explain_words import explain_problems
from mtrec_ray.stages.serving.item_texts import ItemTexts
from mtrec_ray.stages.serving.requests import Asker, Ranked, RecommendRequest, RequestError
from mtrec_ray.stages.serving.scenario import ScenarioEngine, new_to_training, wish_of
from mtrec_ray.stages.serving.view_requests import (
    ColumnPart,
    CompareAnswer,
    CompareRequest,
    ElsewherePart,
    ExplainAnswer,
    ExplainRequest,
    HistoryPart,
    ListKind,
    ListOf,
    MetItem,
    NotInstalledError,
    StatisticPart,
    UserAnswer,
    UsersAnswer,
    WordPart,
)

EXAMPLES = 20  # users that are named
POPULARITY = "popularity"  # the source


@dataclass
class ScenarioViews:
    """Looks into a scenario, beside the requests that are answered.

    Attributes:
        encoder: returns the encoder of the scenario's model in fp32.
        other: returns the ranker of the other model by its kind; None where there is none.
        most_history: rows of a user that are told, at most.
        texts_of: returns the texts of a scenario's items; None of one that is not served.
    """

    engine: ScenarioEngine
    encoder: Callable[[], TextEncoder]
    other: Callable[[], tuple[ListKind, Ranker] | None]
    most_history: int
    texts_of: Callable[[str], ItemTexts | None] = lambda _: None

    # --- users ---------------------------------------------------------------------------------

    def users(self) -> UsersAnswer:
        """Returns some users of the scenario."""
        return UsersAnswer(users=self.examples)

    @cached_property
    def examples(self) -> list[str]:
        """Users of one file of the prepared data, those with long histories first."""
        layout = self.engine.ranker.layout
        parts = user_parts(layout.prepared, self.engine.name)
        if not parts:
            return []
        users = users_at_end(layout, parts[0])
        order = np.argsort(-(users.history >= 0).sum(1), kind="stable")[:EXAMPLES]
        return [str(one) for one in users.ids[order]]

    def user(self, name: str) -> UserAnswer:
        """Returns what is known of a user."""
        askers = self.engine.askers
        known = askers.known([Asker(user=name)])
        rows = askers.state.rows_of(persons_of([name]))
        order = np.lexsort([rows["row"], rows["time"]])
        told = order[~np.isnan(rows["labels"][order]).all(1)][-self.most_history :]
        moment = int(known.users.moment[0]) - askers.delay_ms
        return UserAnswer(
            user=name,
            new_user=bool(known.users.user[0] == 0),
            profile=self.profile(name),
            rows=len(order),
            history=[
                self.met(
                    int(rows["item"][row]), rows["labels"][row], int(rows["time"][row]), moment
                )
                for row in told.tolist()
            ],
        )

    def met(self, item: int, labels: Float32s, time: int, moment: int) -> MetItem:
        """Returns a row of a user, as it was before a moment in ms."""
        tasks = self.engine.askers.layout.scenario.tasks
        timed = self.engine.askers.layout.timed
        return MetItem(
            item=str(self.engine.ranker.items.ids[item]),
            text=self.engine.texts[item],
            seconds_ago=max(moment - time, 0) / SECOND_MS if timed else None,
            labels={
                name: label_told(tasks[name], value)
                for name, value in zip(self.engine.facts.tasks, labels.tolist(), strict=True)
                if not np.isnan(value)
            },
        )

    def profile(self, name: str) -> dict[str, Any]:
        """Returns the last row of a user in the table of users; empty without one."""
        if self.profiles is None:
            return {}
        users = self.engine.project.users[self.engine.facts.user_space]
        texts = pc.cast(self.profiles.column(users.id), pa.string())
        same = pc.equal(texts, name)  # pyright: ignore[reportAttributeAccessIssue]
        rows = self.profiles.filter(same).to_pylist()[-1:]
        return {
            column: plain(value)
            for row in rows
            for column, value in row.items()
            if value is not None and column not in (users.id, users.time)
        }

    @cached_property
    def profiles(self) -> pa.Table | None:
        """The table of users; None where there is none, or it cannot be read."""
        space = self.engine.facts.user_space
        if space not in self.engine.project.users:
            return None
        try:
            return read_users(self.engine.project, space)
        except (ProjectError, FileNotFoundError):
            return None

    # --- why -----------------------------------------------------------------------------------

    def explain(self, ask: ExplainRequest) -> ExplainAnswer:
        """Returns why an item has its score.

        Raises:
            RequestError: an unknown user, item or task.
            NotInstalledError: what explains words is not there.
        """
        item_of = self.engine.askers.state.fresh.item_of
        lines = self.engine.askers.problems(ask)
        if ask.item not in item_of:
            found = f"item: found {shorten(ask.item)}"
            lines.append(f"{found}; allowed: an item of the catalogue of {self.engine.name}")
        self.refuse(ask.by, lines)
        if ask.words and explain_problems():
            raise NotInstalledError(explain_problems())
        known = self.engine.askers.known([ask])
        return self.explanation(ask, known, item_of[ask.item])

    def refuse(self, by: Mapping[str, float] | None, lines: list[str]) -> None:
        """Raise a RequestError of lines, and of those of wrong weights."""
        lines = lines + (self.engine.weight_problems("by", by) if by is not None else [])
        if lines:
            raise RequestError(lines)

    def explanation(self, ask: ExplainRequest, known: Known, item: int) -> ExplainAnswer:
        """Returns why a row of the catalogue has its score for the only one who asks."""
        ranker = ranking_by(self.engine.ranker, ask.by)
        encoder = self.encoder() if ask.words else None
        numeric = None if known.columns is None else known.columns(np.array([item]))[0]
        text = self.engine.texts[item]
        explainer = Explainer(ranker, encoder, self.engine.askers.profiles)
        found = explainer.explain(known.users, item, text, numeric)
        return ExplainAnswer(
            model=self.engine.kind,
            version=self.engine.version,
            **new_to_training(known, 0),
            item=found.item_id,
            text=text,
            score=found.score,
            blend=found.blend,
            predictions=found.predictions,
            history=[
                HistoryPart(place=h.place, item=h.item_id, text=self.engine.texts[h.item],
                            effect=h.effect)
                for h in found.history
            ],
            elsewhere=[self.taken_elsewhere(one) for one in found.elsewhere],
            profile=[ColumnPart(column=c.column, effect=c.effect) for c in found.profile],
            columns=[ColumnPart(column=c.column, effect=c.effect) for c in found.columns],
            statistics=[
                StatisticPart(group=s.group, columns=s.columns, effect=s.effect)
                for s in found.statistics
            ],
            words=words_of(found),
        )  # fmt: skip

    def taken_elsewhere(self, effect: ElsewhereEffect) -> ElsewherePart:
        """Returns an item that the user took in another scenario, with its id and text there."""
        texts = self.texts_of(effect.scenario)
        return ElsewherePart(
            place=effect.place,
            scenario=effect.scenario,
            item=None if texts is None else str(texts.known.ids[effect.item]),
            text=None if texts is None else texts[effect.item],
            effect=effect.effect,
        )

    # --- lists side by side --------------------------------------------------------------------

    def compare(self, ask: CompareRequest) -> CompareAnswer:
        """Returns the lists of all models, each by its network alone, and the popular items.

        Raises:
            RequestError: an unknown user, item or task.
        """
        engine, lists = self.engine, self.engine.list_ranker
        request = RecommendRequest(
            user=ask.user,
            history=ask.history,
            profile=ask.profile,
            k=ask.k,
            by=ask.by or dict(engine.ranker.by),
        )
        self.refuse(None, engine.list_problems(request))
        assert lists is not None
        known = engine.askers.known([request])
        alone = replace(lists, scorer=PairScorer(engine.ranker))  # of the other, nothing is beside
        found = [self.list_of(engine.kind, alone, request, known)]
        other = self.other()
        if other is not None:
            own = replace(lists, scorer=PairScorer(other[1]))
            found.append(self.list_of(other[0], own, request, known))
        order = {kind: number for number, kind in enumerate(("joint", "zero-shot", "finetuned"))}
        found.sort(key=lambda one: order[one.kind])
        return CompareAnswer(
            model=engine.kind,
            version=engine.version,
            **new_to_training(known, 0),
            lists=[*found, self.popular(lists, request, known)],
        )

    def list_of(
        self, kind: ListKind, lists: ListRanker, ask: RecommendRequest, known: Known
    ) -> ListOf:
        """Returns the list of a model by its predictions."""
        wish = self.engine.wish([ask], known, None)
        listed = lists.listed(known.users, lists.rank(known.users, wish), wish)
        answer = self.engine.answer(ask.model_copy(update={"texts": True}), known, 0, listed)
        return ListOf(kind=kind, served=kind == self.engine.kind, items=answer.items)

    def popular(self, lists: ListRanker, ask: RecommendRequest, known: Known) -> ListOf:
        """Returns what most users took, of what the user may be shown."""
        seen = self.engine.ranker.options.exclude_seen
        candidates = lists.candidates(known.users, wish_of(known, 0, seen=seen))
        score = candidates.scores[POPULARITY]
        items, pairs = candidates.best(score, self.engine.length(ask))
        kept = pairs[0][pairs[0] >= 0]
        told = self.engine.predict(known, np.zeros(len(kept), np.int64), items[0][pairs[0] >= 0])
        return ListOf(
            kind="popular",
            served=False,
            items=[
                Ranked(
                    rank=number + 1,
                    score=float(score[pair]),
                    text=self.engine.texts[int(candidates.item[pair])],
                    **self.engine.told(int(candidates.item[pair]), told[number]),
                )
                for number, pair in enumerate(kept.tolist())
            ],
        )


def ranking_by(ranker: Ranker, by: Mapping[str, float] | None) -> Ranker:
    """Returns a ranker whose scores are another blend; it shares all else."""
    if by is None:
        return ranker
    found = copy.copy(ranker)
    found.by = dict(by)
    return found


def plain(value: Any) -> Any:
    """Returns a value of a column as JSON has it; dates and decimals as text."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in cast("list[Any]", value)]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def words_of(found: Explanation) -> list[WordPart] | None:
    """Returns the words of an explanation, in the order of the text."""
    if found.words is None:
        return None
    return [WordPart(word=one.word, effect=one.effect) for one in found.words.words]


def label_told(task: Task, value: float) -> object:
    """Returns a label as an event tells it: of a class its name."""
    if task.classes is not None:
        return cast("object", task.classes[int(value)])
    return int(value) if value == int(value) else value
