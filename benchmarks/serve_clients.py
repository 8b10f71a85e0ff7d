"""Clients of a service that fails: what they are told, and what of it is wrong; `serve_faults.py`.

A client asks for the list of a user of one scenario of whom nothing is told, posts an event of a
user of his own in the other scenario, and asks for the list of that user: it may hold no item whose
event was acknowledged. An event that was not acknowledged is sent again.
"""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from mtrec_ray.serving.event_store import open_store
from mtrec_ray.stages.serving.engine import Engine, Job
from mtrec_ray.stages.serving.requests import RecommendAnswer, RecommendRequest, RequestError

ASKED, TOLD = "video", "shop"  # of other people: what is told in one changes nothing in the other
K = 10
PATIENCE_S = 30.0  # of a client
PAUSE_S = 0.02  # after each request: the machine has few cores
EVENTS_OF_A_USER = 10
TOLERANCE = 1e-4

Listed = dict[str, float]


@dataclass
class Heard:
    """What clients heard.

    Attributes:
        kinds: how often: answered, refused (with the time of the next try), broken (no answer),
            other.
        other: what was neither an answer nor a refusal.
        lists: user, version and scores by item, of those of whom nothing is told.
        stale: lists that held an item whose event was acknowledged before.
        events: by id, the user and the item of those that were acknowledged.
        longest_s: of a request. answered_at: when.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    other: list[str] = field(default_factory=list)
    lists: list[tuple[str, str, Listed]] = field(default_factory=list)
    stale: int = 0
    events: dict[str, tuple[str, str]] = field(default_factory=dict)
    longest_s: float = 0.0
    answered_at: list[float] = field(default_factory=list)

    def add(self, one: "Heard") -> None:
        """Add what another client heard."""
        self.kinds += one.kinds
        self.other += one.other
        self.lists += one.lists
        self.stale += one.stale
        self.events |= one.events
        self.longest_s = max(self.longest_s, one.longest_s)
        self.answered_at = sorted(self.answered_at + one.answered_at)


class Client:
    """One who asks and tells, one request after another."""

    def __init__(self, name: str, port: int, users: Sequence[str], items: Sequence[str]) -> None:
        """`users`: of whom nothing is told. `items`: of the scenario in which he tells."""
        self.name, self.users, self.items = name, users, items
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        self.heard = Heard()

    def run(self, stop: threading.Event) -> None:
        """Ask and tell until the stop."""
        event = 0
        for number in count():
            user, item = f"{self.name}-{event // EVENTS_OF_A_USER}", self.items[event % 13]
            self.ask_list(self.users[number % len(self.users)])
            event += self.tell(f"{self.name}-{event}", user, item)
            self.ask_own(user)
            if stop.is_set():
                break

    def ask_list(self, user: str) -> None:
        """Ask for the list of a user of whom nothing is told."""
        answer = self.ask(f"/v1/{ASKED}/recommend", {"user": user, "k": K})
        if answer is not None:
            self.heard.lists.append((user, answer["version"], scores_of(answer)))

    def tell(self, event: str, user: str, item: str) -> bool:
        """Post an event; returns whether it was acknowledged."""
        told = {"id": event, "user": user, "item": item}
        answer = self.ask(f"/v1/{TOLD}/events", {"events": [told]})
        if answer is None:
            return False
        assert answer["stored"] == [event]
        self.heard.events[event] = (user, item)
        return True

    def ask_own(self, user: str) -> None:
        """Ask for the list of a user, after what he did."""
        answer = self.ask(f"/v1/{TOLD}/recommend", {"user": user, "k": K})
        if answer is not None:
            done = {item for own, item in self.heard.events.values() if own == user}
            self.heard.stale += bool(done & set(scores_of(answer)))

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Returns what is told; None where nothing is, which is counted."""
        began = time.monotonic()
        try:
            kind, found = self.sent(path, body)
        except (http.client.HTTPException, OSError) as error:
            self.connection.close()
            kind, found = "broken", repr(error)
        self.heard.longest_s = max(self.heard.longest_s, time.monotonic() - began)
        self.heard.kinds[kind] += 1
        if kind == "answered":
            self.heard.answered_at.append(time.monotonic())
        elif kind != "refused":
            self.heard.other.append(f"{path}: {found}")
        time.sleep(PAUSE_S)
        return found if kind == "answered" else None

    def sent(self, path: str, body: dict[str, Any]) -> tuple[str, Any]:
        """Returns the kind of an answer, and what it tells."""
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", path, json.dumps(body), headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        if answer.status in (200, 202):
            return "answered", json.loads(text)
        refused = answer.status in (429, 503) and answer.headers["Retry-After"] is not None
        return ("refused" if refused else "other"), f"{answer.status} {text[:200]}"


def scores_of(answer: Any) -> Listed:
    """Returns the scores of a list by item."""
    return {one["item"]: one["score"] for one in answer["items"]}


def under_load(clients: Sequence[Client], cause: Callable[[], None], around_s: float) -> Heard:
    """Returns what clients heard while something happened, and some seconds before and after."""
    stop = threading.Event()
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        time.sleep(around_s)
        cause()
        time.sleep(around_s)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    heard = Heard()
    for client in clients:
        heard.add(client.heard)
    return heard


# --- what is right -------------------------------------------------------------------------------


def wrong_lists(heard: Heard, engines: dict[str, Engine]) -> int:
    """Returns how many lists differ from what the engine of their version says in this process."""
    rightly: dict[tuple[str, str], Listed] = {}
    for user, version, _ in heard.lists:
        if (user, version) not in rightly and version in engines:
            rightly[user, version] = listed_by(engines[version], ASKED, user)
    return sum(
        not alike(found, rightly.get((user, version), {})) for user, version, found in heard.lists
    )


def listed_by(engine: Engine, scenario: str, user: str) -> Listed:
    """Returns the list of a user by an engine in this process."""
    (answer,) = engine.answer([Job(scenario, RecommendRequest(user=user, k=K))])
    assert isinstance(answer, RecommendAnswer), answer
    return {one.item: one.score for one in answer.items}


def alike(first: Listed, second: Listed) -> bool:
    """Returns whether two lists say the same, but for the order of equal scores."""
    pairs = zip(sorted(first.values()), sorted(second.values()), strict=False)
    return (
        len(first) == len(second) > 0
        and all(abs(a - b) < TOLERANCE for a, b in pairs)
        and all(abs(first[item] - second[item]) < TOLERANCE for item in first.keys() & second)
    )


def lost_events(heard: Heard, store_url: str) -> int:
    """Returns how many acknowledged events the store does not have, or has otherwise."""
    store, found, last = open_store(store_url), dict[str, tuple[str, str]](), 0
    while some := store.after(last, TOLD):
        found |= {one.event.id: (one.event.user, one.event.item) for one in some}
        last = some[-1].sequence
    store.close()
    return sum(found.get(event) != told for event, told in heard.events.items())


def wrong_at_the_end(heard: Heard, port: int, engine: Engine) -> int:
    """Returns how many users who did something have other lists than the engine says by then.

    All users are asked, until each has an answer.

    Raises:
        RequestError: there is none.
    """
    client, wrong = Client("", port, (), ()), 0
    for user in sorted({user for user, _ in heard.events.values()}):
        for _ in range(100):
            answer = client.ask(f"/v1/{TOLD}/recommend", {"user": user, "k": K})
            if answer is not None:
                break
        else:
            raise RequestError(client.heard.other or ["no answer"])
        wrong += not alike(scores_of(answer), listed_by(engine, TOLD, user))
    return wrong
