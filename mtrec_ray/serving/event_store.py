"""What users do after the data was prepared, kept where it survives a restart.

An event is a row of a log that comes later. It has an id, so that whoever is not sure whether it
was kept sends it again. A label that becomes known later comes as an event of the same id: what is
known of the two is one row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mtrec_ray.project.base import ProjectError

# Events that a follower reads at a time.
EVENTS_AT_ONCE = 10_000

LabelValue = float | str | bool


@dataclass(frozen=True)
class Event:
    """A user met an item.

    Attributes:
        time: in ms since 1970; None where the log has no time, or for the moment of arrival.
        labels: by task, as far as they are known: 0 or 1 of a binary task, the number, or the class
            as the project file has it.
        id: names the event in its scenario.
    """

    scenario: str
    user: str
    item: str
    id: str
    time: int | None = None
    labels: Mapping[str, LabelValue] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredEvent:
    """An event as the store has it.

    Attributes:
        event: with all labels that are known, and the time at which it was first told.
        number: its place among the events of its scenario, from 0, in the order of arrival.
        sequence: grows with each change of any event: a label that is told later has a new one.
        arrived: when it was first appended, in ms.
    """

    event: Event
    number: int
    sequence: int
    arrived: int


class StoreError(RuntimeError):
    """The store cannot take or give events now; what was not acknowledged may be sent again."""


class StoreFullError(StoreError):
    """There is no room left."""


class StoreBusyError(StoreError):
    """Another process holds the store for too long."""


class ConflictError(ProjectError):
    """An event has the id of another one, or says something else of a label; one line each."""


class EventStore(Protocol):
    """Keeps events; several processes may use it at once.

    All methods raise `StoreError` where the store cannot be reached.
    """

    def append(self, events: Sequence[Event]) -> None:
        """Keep all events, or none; returns only when they survive a restart.

        What is there already with the same id gets the labels that were not known.

        Raises:
            ConflictError: an event of that id has another user, item, time or label.
        """
        ...

    def of_users(self, scenario: str, users: Sequence[str]) -> list[StoredEvent]:
        """Returns the events of some users in a scenario, in the order of arrival."""
        ...

    def after(self, sequence: int, scenario: str, limit: int = EVENTS_AT_ONCE) -> list[StoredEvent]:
        """Returns the first events of a scenario that changed after a sequence, in its order."""
        ...

    def healthy(self) -> bool:
        """Returns whether the store answers."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def merged(known: Event, told: Event) -> Event:
    """Returns an event with what two of the same id say.

    Raises:
        ConflictError: they contradict one another.
    """
    lines = [
        conflict(known, name, getattr(told, name), getattr(known, name))
        for name in ("user", "item", "time")
        if getattr(told, name) not in (getattr(known, name), None)
    ]
    lines += [
        conflict(known, f"labels.{task}", value, known.labels[task])
        for task, value in told.labels.items()
        if task in known.labels and known.labels[task] != value
    ]
    if lines:
        raise ConflictError(lines)
    labels = {**known.labels, **told.labels}
    return Event(known.scenario, known.user, known.item, known.id, known.time, labels)


def conflict(known: Event, field_name: str, found: object, was: object) -> str:
    """Returns the line for an event that contradicts one that is kept."""
    return f"{field_name}: found {found!r} in event {known.id!r}; allowed: {was!r}, as it was told"


def open_store(url: str) -> EventStore:
    """Returns the store of a URL.

    `sqlite:///path`, or `sqlite:////path` from the root: a file that the processes of one node
    share. `redis://host:port/0`, `rediss://` with TLS or `unix://path`: a server of Redis that
    keeps what it acknowledged (`redis_store.py`).

    Raises:
        ProjectError: another URL, no client for it, or a server that may lose events.
        StoreError: the store cannot be reached.
    """
    kind, _, place = url.partition("://")
    if kind == "sqlite" and place.startswith("/") and place != "/":
        from mtrec_ray.serving.sqlite_store import SqliteStore

        return SqliteStore(place[1:])
    if kind in ("redis", "rediss", "unix") and place:
        return open_redis(url)
    raise ProjectError(
        [f"serve.store: found {without_password(url)!r}; allowed: sqlite:///path or redis://host"]
    )


def open_redis(url: str) -> EventStore:
    """Returns the store of a server of Redis."""
    try:
        from mtrec_ray.serving.redis_store import RedisStore
    except ModuleNotFoundError:
        found = f"serve.store: found {without_password(url)!r} without the client of Redis"
        raise ProjectError([f'{found}; allowed: pip install ".[redis]" first']) from None
    return RedisStore(url)


def without_password(url: str) -> str:
    """Returns a URL for a line, without what stands before its host."""
    return re.sub(r"//[^/@]*@", "//", url)
