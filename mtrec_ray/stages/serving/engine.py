"""Answers for all scenarios, in one process and without HTTP: one base, and what each adds to it.

A model that serves several scenarios is in memory once. Requests of several scenarios are answered
in one call.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import ray

from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.end_states import items_at_end, stored_users
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.profiles import Profiles
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.project.base import ProjectError
from mtrec_ray.serving.event_store import ConflictError as EventConflictError
from mtrec_ray.serving.event_store import Event, EventStore
from mtrec_ray.serving.fresh_crowd import FreshTimeline
from mtrec_ray.serving.fresh_state import FreshState
from mtrec_ray.serving.incoming import event_problems
from mtrec_ray.serving.new_items import NewItemReader
from mtrec_ray.serving.profile_reader import ProfileReader
from mtrec_ray.stages.finetuning.chosen_model import model_kind
from mtrec_ray.stages.list_inputs import layout_of, user_space
from mtrec_ray.stages.list_ranker import PairScorer
from mtrec_ray.stages.predictions import Beside
from mtrec_ray.stages.ranker import LoadedModel, Ranker
from mtrec_ray.stages.serving.asking import Askers
from mtrec_ray.stages.serving.explain_words import load_encoder
from mtrec_ray.stages.serving.filters import ItemFilters
from mtrec_ray.stages.serving.item_texts import ItemTexts
from mtrec_ray.stages.serving.new_items import Encoders, NewItemScorer
from mtrec_ray.stages.serving.profiles import RequestProfiles
from mtrec_ray.stages.serving.requests import (
    Answer,
    ConflictError,
    EventRequest,
    ModelFacts,
    RecommendRequest,
    RequestError,
    ScoreRequest,
    UnknownNameError,
)
from mtrec_ray.stages.serving.scenario import Kind, ScenarioEngine
from mtrec_ray.stages.serving.versions import OtherModel, ServedScenario, ServedVersion
from mtrec_ray.stages.serving.view_requests import ListKind
from mtrec_ray.stages.serving.views import ScenarioViews
from mtrec_ray.stages.trained_model import TrainedModel, load_with_vectors


@dataclass(frozen=True)
class Job:
    """A request in a scenario."""

    scenario: str
    request: RecommendRequest | ScoreRequest


class Engine:
    """A version of all scenarios' models, which answers.

    Attributes:
        scenarios: the engine of each.
    """

    def __init__(self, version: ServedVersion, store: EventStore) -> None:
        """Load all models.

        Raises:
            ProjectError: files that were changed since the version was made.
        """
        version.check()
        self.version, self.store = version, store
        self.loaded: dict[TrainedModel, LoadedModel] = {}
        self.encoders = Encoders()
        self.opened: dict[str, ScenarioViews] = {}
        self.exact: dict[TrainedModel, TextEncoder] = {}
        self.others: dict[str, Ranker] = {}
        self.states = {name: self.state(name, own) for name, own in version.scenarios.items()}
        self.scenarios = {name: self.open(name, own) for name, own in version.scenarios.items()}

    @property
    def name(self) -> str:
        """The name of the version."""
        return self.version.name

    def answer(self, jobs: Sequence[Job]) -> list[Answer | RequestError]:
        """Returns an answer to each request, or why there is none; requests of any scenarios."""
        answers: dict[int, Answer | RequestError] = {}
        groups: dict[tuple[str, type], list[int]] = {}
        for number, job in enumerate(jobs):
            if job.scenario in self.scenarios:
                groups.setdefault((job.scenario, type(job.request)), []).append(number)
            else:
                answers[number] = self.unknown(job.scenario)
        for (name, kind), numbers in groups.items():
            requests = [jobs[number].request for number in numbers]
            engine = self.scenarios[name]
            if kind is RecommendRequest:
                found = engine.recommend(cast("list[RecommendRequest]", requests))
            else:
                found = engine.score(cast("list[ScoreRequest]", requests))
            answers |= dict(zip(numbers, found, strict=True))
        return [answers[number] for number in range(len(jobs))]

    def views(self, scenario: str) -> ScenarioViews:
        """Returns looks into a scenario.

        Raises:
            UnknownNameError: it is not there.
        """
        if scenario not in self.scenarios:
            raise self.unknown(scenario)
        if scenario not in self.opened:
            served, limits = self.version.scenarios[scenario], self.version.project.serve.limits
            self.opened[scenario] = ScenarioViews(
                self.scenarios[scenario],
                lambda: self.encoder_of(served.model),
                lambda: self.other_of(scenario),
                limits.history,
                self.texts_of,
            )
        return self.opened[scenario]

    def encoder_of(self, model: TrainedModel) -> TextEncoder:
        """Returns a model's encoder in fp32, loaded at its first use."""
        if model not in self.exact:
            self.exact[model] = load_encoder(model)
        return self.exact[model]

    def texts_of(self, name: str) -> ItemTexts | None:
        """Returns the texts of a scenario's items; None of one that is not served."""
        return self.scenarios[name].texts if name in self.scenarios else None

    def other_of(self, name: str) -> tuple[ListKind, Ranker] | None:
        """Returns the model of a scenario that does not answer, loaded at its first use."""
        other = self.version.others.get(name)
        if other is None:
            return None
        if name not in self.others:
            items, vectors = items_at_end(layout_of(other.model, name)), ray.get(other.vectors)
            loaded = self.load(other)
            self.others[name] = Ranker(other.model, name, vectors, items, None, loaded)
        return cast("ListKind", model_kind(other.model)), self.others[name]

    def unknown(self, scenario: str) -> UnknownNameError:
        """Returns the error for a scenario that is not there."""
        allowed = ", ".join(self.scenarios)
        return UnknownNameError([f"scenario: found {scenario!r}; allowed: {allowed}"])

    def append(self, scenario: str, events: Sequence[EventRequest]) -> list[str]:
        """Keep events; returns their ids when they are durable.

        Raises:
            RequestError: an unknown scenario, item, task or label; nothing is kept.
            StoreError: the store cannot keep them now.
        """
        if scenario not in self.scenarios:
            raise self.unknown(scenario)
        own = [
            Event(scenario, one.user, one.item, one.id, one.time, dict(one.labels))
            for one in events
        ]
        clock = time.time_ns() // 1_000_000
        problems = [
            f"events.{number}.{line}"
            for number, event in enumerate(own)
            for line in event_problems(self.states, event, clock)
        ]
        if problems:
            raise RequestError(problems)
        try:
            self.store.append(own)
        except EventConflictError as error:
            raise ConflictError(error.problems) from None
        return [one.id for one in events]

    def facts(self) -> list[ModelFacts]:
        """Returns the model of each scenario."""
        return [
            ModelFacts(
                scenario=name, model=own.kind, fingerprint=own.fingerprint,
                tasks=dict(own.facts.kinds), lists=own.list_ranker is not None,
                items=own.facts.num_items,
            )
            for name, own in self.scenarios.items()
        ]  # fmt: skip

    # --- loading -------------------------------------------------------------------------------

    def state(self, name: str, served: ServedScenario) -> FreshState:
        """Returns the state of a scenario, with the events of the store.

        One that joined a finished model numbers its users as that model does.
        """
        version, vocabulary, layout = self.version, None, layout_of(served.model, name)
        joint = load_prepared(version.joint)
        if name not in joint.scenarios:
            vocabulary = stored_users(joint, layout.facts.user_space)
        if vocabulary is not None and not len(vocabulary):
            vocabulary = None
        seed = version.project.data_seed
        return FreshState(layout, self.store, seed=seed, vocabulary=vocabulary)

    def load(self, served: ServedScenario | OtherModel) -> LoadedModel:
        """Returns a model with its item vectors; one that serves several scenarios once."""
        if served.model not in self.loaded:
            self.loaded[served.model] = load_with_vectors(served.model, ray.get(served.vectors))
        return self.loaded[served.model]

    def open(self, name: str, served: ServedScenario) -> ScenarioEngine:
        """Returns the engine of a scenario."""
        loaded, lists = self.load(served), None
        self.see_events(name, loaded[0])
        if served.maker is not None:
            lists = served.maker.open(loaded)
        scorer = self.scorer(name, served, loaded) if lists is None else lists.scorer
        limits = self.version.project.serve.limits
        new_items, why_not = self.new_items(served, scorer.ranker)
        return ScenarioEngine(
            name=name,
            kind=cast("Kind", model_kind(served.model)),
            fingerprint=served.fingerprint.rpartition(" ")[2],
            version=self.name,
            scorer=scorer,
            list_ranker=lists,
            askers=self.askers(name, served),
            filters=ItemFilters(self.version.project, name, scorer.ranker.items.ids),
            most=min(limits.k, self.version.project.recommend.shortlist),
            texts=ItemTexts(self.version.project, name, self.states[name].catalogue),
            project=self.version.project,
            new_items=new_items,
            no_new_items=why_not,
        )

    def new_items(self, served: ServedScenario, ranker: Ranker) -> tuple[NewItemScorer | None, str]:
        """Returns what scores items that the catalogue lacks; None, and the reason, if nothing."""
        known = self.states[ranker.name].catalogue
        try:
            reader = NewItemReader(self.version.project, ranker.layout, known)
        except ProjectError as error:
            return None, error.problems[0]
        self.encoders.load(served.model)
        return NewItemScorer(reader, self.encoders, served.model, ranker, known), ""

    def see_events(self, name: str, model: Recommender) -> None:
        """Let a scenario's model see what users take elsewhere from now on."""
        if name in model.elsewhere:
            side = model.elsewhere_side(name)
            side.timeline = FreshTimeline.of(side.timeline, name, self.states)

    def scorer(self, name: str, served: ServedScenario, loaded: LoadedModel) -> PairScorer:
        """Returns what scores pairs of a scenario that has no lists."""
        opinion, layout = served.opinion, layout_of(served.model, name)
        blended = opinion is not None and opinion.blends
        beside = Beside.of(opinion, served.model, name) if opinion and blended else None
        vectors = ray.get(served.vectors)
        ranker = Ranker(served.model, name, vectors, items_at_end(layout), None, loaded)
        return PairScorer(ranker, beside)

    def askers(self, name: str, served: ServedScenario) -> Askers:
        """Returns the state of a scenario's users."""
        others, space = self.version.scenarios, user_space(served.model, name)
        people = {n: o for n, o in others.items() if user_space(o.model, n) == space}
        states = {other: self.states[other] for other in people}
        crowd = None if served.maker is None else ray.get(served.maker.inputs.crowd)
        tasks = {o: own.maker.inputs.task for o, own in people.items() if own.maker is not None}
        by_clock = self.version.project.serve.moment == "clock"
        profiles, why_not = self.profiles(name, served, space)
        return Askers(name, states, crowd, tasks, by_clock, profiles, why_not)

    def profiles(
        self, name: str, served: ServedScenario, space: str
    ) -> tuple[RequestProfiles | None, str]:
        """Returns what reads profiles of requests; None, and the reason, if nothing."""
        project, prepared = self.version.project, served.model.open_prepared()
        if space not in project.users or space not in prepared.users:
            return None, f"found one; allowed: none, as {name} has no table of users"
        try:
            reader = ProfileReader.of(project, space, prepared.users[space])
        except ProjectError as error:
            return None, error.problems[0]

        @cache
        def stored() -> Profiles:
            found = prepared.profiles(name)
            assert found is not None
            return found

        def encode(texts: Catalogue) -> Float32s:
            device = self.loaded[served.model][1].device
            found = self.encoders.read_users(served.model.project, name, texts, device)
            return found.cpu().numpy()

        return RequestProfiles(reader, stored, encode), ""
