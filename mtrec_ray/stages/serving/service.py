"""A replica: engines of all versions, requests in batches, limits, events. No HTTP here."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from mtrec_ray.project.serve import Serve
from mtrec_ray.serving.event_store import EventStore, StoreError
from mtrec_ray.stages.serving.batching import Batcher
from mtrec_ray.stages.serving.control import Control, Row, chosen
from mtrec_ray.stages.serving.engine import Engine, Job
from mtrec_ray.stages.serving.limits import Limiter
from mtrec_ray.stages.serving.metrics import Metrics
from mtrec_ray.stages.serving.requests import (
    Answer,
    Asker,
    EventsRequest,
    RecommendRequest,
    RequestError,
    ScoreRequest,
    VersionFacts,
)
from mtrec_ray.stages.serving.views import ScenarioViews

Viewed = TypeVar("Viewed")
Ask = tuple[Engine, Job]
FOLLOW_S = 0.5  # between looks at the table of versions
LOGGER = logging.getLogger(__name__)


class NotReadyError(Exception):
    """No model is loaded yet."""


class Service:
    """Answers requests by the version that a user falls to.

    Attributes:
        engines: by version, those that are loaded.
        rows: the table of versions, as it was last seen.
    """

    def __init__(
        self, control: Control, store: EventStore, options: Serve, replica: str = "0"
    ) -> None:
        self.control, self.store, self.options = control, store, options
        self.metrics = Metrics(replica)
        self.limiter = Limiter(options.limits, replicas=options.replicas)
        self.engines: dict[str, Engine] = {}
        self.failed: dict[str, list[str]] = {}
        self.rows: Sequence[Row] = ()
        self.stopped, self.updating = threading.Event(), threading.Lock()
        self.batcher: Batcher[Ask, Answer | RequestError] = Batcher(
            answered,
            size=options.batch_size,
            wait_s=options.batch_wait_ms / 1000,
            queue=options.limits.queue,
            told=self.metrics.batched,
            common=(StoreError,),
        )
        self.viewer: Batcher[Callable[[], Any], Any] = Batcher(
            lambda looks: [looked(look) for look in looks],
            size=1, wait_s=0, queue=options.limits.queue,
        )  # fmt: skip

    # --- requests ------------------------------------------------------------------------------

    async def ask(self, scenario: str, request: RecommendRequest | ScoreRequest) -> Answer:
        """Returns the answer to a request.

        Raises:
            RequestError: a request that cannot be answered.
            NotReadyError, TooManyError, TimeoutError: one that could be, at another time.
        """
        began, engine = time.monotonic(), self.engine_of(request)
        waiting = self.batcher.ask((engine, Job(scenario, request)))
        answer = await asyncio.wait_for(waiting, self.options.limits.seconds)
        if isinstance(answer, RequestError):
            raise answer
        return answer.model_copy(update={"seconds": round(time.monotonic() - began, 6)})

    def engine_of(self, request: Asker) -> Engine:
        """Returns the engine of the version that a user falls to.

        Raises:
            NotReadyError: none is loaded.
        """
        user = request.user or ""
        if request.user is None and request.history:
            user = "\0".join(met.item for met in request.history)
        elif request.user is None and request.profile:
            user = repr(sorted(request.profile.items()))
        name = chosen([row for row in self.rows if row.name in self.engines], user)
        if name is None:
            raise NotReadyError
        return self.engines[name]

    async def view(
        self, scenario: str, asker: Asker, look: Callable[[ScenarioViews], Viewed]
    ) -> Viewed:
        """Returns a look into a scenario, of the version that a user falls to.

        Looks take longer than answers: they run one by one, beside these.

        Raises:
            RequestError: a look that cannot be had.
            NotReadyError, TooManyError, TimeoutError: one that could be, at another time.
        """
        began, views = time.monotonic(), self.engine_of(asker).views(scenario)
        waiting = self.viewer.ask(lambda: look(views))
        found = await asyncio.wait_for(waiting, self.options.limits.seconds)
        if isinstance(found, RequestError):
            raise found
        if isinstance(found, Answer):
            told = found.model_copy(update={"seconds": round(time.monotonic() - began, 6)})
            return cast("Viewed", told)
        return found

    async def store_events(self, scenario: str, request: EventsRequest) -> list[str]:
        """Keep events; returns their ids when they are durable.

        Raises:
            RequestError: an event that cannot be kept; none is.
            StoreError, NotReadyError, TimeoutError: the store or the models are not there now.
        """
        engine = self.engine_of(Asker())
        storing = asyncio.to_thread(engine.append, scenario, request.events)
        stored = await asyncio.wait_for(storing, self.options.limits.seconds)
        self.metrics.events.labels(self.metrics.replica).inc(len(stored))
        return stored

    # --- versions ------------------------------------------------------------------------------

    def update(self) -> None:
        """Load the versions of the table, and forget those that are no longer in it."""
        with self.updating:
            rows = self.control.table()
            for row in rows:
                if row.state == "ready" and row.name not in {*self.engines, *self.failed}:
                    self.load(row.name)
            self.rows = rows
            names = {row.name for row in rows}
            for name in set(self.engines) - names:
                del self.engines[name]
            for name in set(self.failed) - names:  # it may come back, mended
                del self.failed[name]

    def load(self, name: str) -> None:
        """Load a version; why it cannot be loaded is kept."""
        try:
            self.engines[name] = Engine(self.control.version(name), self.store)
        except ValueError as error:
            LOGGER.error("version %s cannot be loaded: %s", name, error)
            self.failed[name] = str(error).splitlines()

    def follow(self) -> None:
        """Follow the table in a thread until `close`."""

        def run() -> None:
            while not self.stopped.wait(FOLLOW_S):
                try:
                    self.update()
                except Exception:
                    LOGGER.exception("the table of versions cannot be followed")

        threading.Thread(target=run, daemon=True, name="versions").start()

    def versions(self) -> list[VersionFacts]:
        """Returns what is known of all versions."""
        return [self.version_facts(row) for row in self.rows]

    def version_facts(self, row: Row) -> VersionFacts:
        """Returns what is known of a version."""
        engine, state = self.engines.get(row.name), row.state
        if engine is None and state == "ready":
            state = "failed" if row.name in self.failed else "loading"
        return VersionFacts(
            version=row.name, run=row.run, share=row.share, state=state,
            problems=[*row.problems, *self.failed.get(row.name, ())],
            scenarios=engine.facts() if engine else [],
        )  # fmt: skip

    def count_versions(self) -> None:
        """Set the gauges of what waits, and of the shares of versions."""
        self.metrics.waiting.labels(self.metrics.replica).set(self.batcher.waiting.qsize())
        for row in self.rows:
            self.metrics.share.labels(self.metrics.replica, row.name).set(row.share)

    # --- health --------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and the store answers."""
        return bool(self.engines) and self.store.healthy()

    def close(self) -> None:
        """Stop answering and following."""
        self.stopped.set()
        self.batcher.close()
        self.viewer.close()


def looked(look: Callable[[], Any]) -> Any:
    """Returns what a look tells, or why it tells nothing."""
    try:
        return look()
    except RequestError as error:
        return error


def answered(asks: Sequence[Ask]) -> list[Answer | RequestError]:
    """Returns the answers to requests of any versions and scenarios."""
    answers: dict[int, Answer | RequestError] = {}
    engines = {id(engine): engine for engine, _ in asks}
    for key, engine in engines.items():
        numbers = [number for number, (own, _) in enumerate(asks) if id(own) == key]
        found = engine.answer([asks[number][1] for number in numbers])
        answers |= dict(zip(numbers, found, strict=True))
    return [answers[number] for number in range(len(asks))]
