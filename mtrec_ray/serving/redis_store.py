"""Events in a server of Redis, which replicas of several nodes share.

An append is one script in the server: it is there as a whole or not at all, in its append-only
file, too. The script first compares all events with those that are there, then writes. Whoever
lost the connection sends the same events again: what is there already is not written twice.

A server is refused that may lose what it acknowledged (https://redis.io/docs/latest/operate/
oss_and_stack/management/persistence/): without an append-only file, with one that is synced once
a second (from 7.2 on `WAITAOF` waits for that), or one that evicts keys when its memory is full.
`?durable=no` in the URL takes it all the same.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from mtrec_ray.project.base import ProjectError
from mtrec_ray.serving.event_store import (
    EVENTS_AT_ONCE,
    Event,
    StoreBusyError,
    StoredEvent,
    StoreError,
    StoreFullError,
    merged,
    without_password,
)

PREFIX = "{mtrec}"  # one slot of a cluster: a script may read and write all of its keys
RETRIES = 6
LONGEST_WAIT_S = 1.0  # between two tries
TIMEOUT_S = 5.0
WAITAOF_FROM = (7, 2)

# KEYS: counter, numbers, log. ARGV: now, then scenario, id, user, the event as it is known to the
# client ("" for none) and as it shall be. Returns 0 where one has changed in between.
APPEND = """
local now = ARGV[1]
for i = 2, #ARGV, 5 do
    local known = redis.call('HGET', KEYS[3] .. ':' .. ARGV[i], ARGV[i + 1])
    if (known or '') ~= ARGV[i + 3] then return 0 end
end
for i = 2, #ARGV, 5 do
    local scenario, id, user = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local events = KEYS[3] .. ':' .. scenario
    if ARGV[i + 3] == '' then
        local number = redis.call('HINCRBY', KEYS[2], scenario, 1) - 1
        redis.call('HSET', events .. ':places', id, number .. ' ' .. now)
        redis.call('RPUSH', events .. ':of:' .. user, id)
    end
    redis.call('HSET', events, id, ARGV[i + 4])
    redis.call('ZADD', events .. ':changes', redis.call('INCR', KEYS[1]), id)
end
return 1
"""

# KEYS: log. ARGV: scenario, then ids. Returns of each the event, its place and its sequence.
READ = """
local events, found = KEYS[1] .. ':' .. ARGV[1], {}
for i = 2, #ARGV do
    found[#found + 1] = redis.call('HGET', events, ARGV[i])
    found[#found + 1] = redis.call('HGET', events .. ':places', ARGV[i])
    found[#found + 1] = redis.call('ZSCORE', events .. ':changes', ARGV[i])
end
return found
"""

# KEYS: log. ARGV: scenario, sequence, limit. Returns ids in the order of their changes.
CHANGED = """
return redis.call('ZRANGE', KEYS[1] .. ':' .. ARGV[1] .. ':changes', '(' .. ARGV[2], '+inf',
                  'BYSCORE', 'LIMIT', 0, ARGV[3])
"""


class RedisStore:
    """The store of a server (`event_store.EventStore`); threads may share it."""

    def __init__(self, url: str) -> None:
        """Connect to the server.

        Raises:
            ProjectError: a server that may lose what it acknowledged, or a URL that is none.
            StoreError: no server answers.
        """
        self.url, durable = split_durable(url)
        backoff = ExponentialBackoff(cap=LONGEST_WAIT_S, base=0.05)
        self.client = client_of(self.url, Retry(backoff, RETRIES))
        self.reader = client_of(self.url, Retry(NoBackoff(), 1))  # who reads waits for an answer
        self.probe = client_of(self.url, Retry(NoBackoff(), 0))
        self.waits = False
        with told_errors(self.url):
            if durable:
                self.waits = check_durable(self.client, self.url)
            self.append_script = self.client.register_script(APPEND)
            self.read_script = self.reader.register_script(READ)
            self.changed_script = self.reader.register_script(CHANGED)

    def append(self, events: Sequence[Event]) -> None:
        """Keep all events, or none."""
        if not events:
            return
        with told_errors(self.url):
            while not self._append(events):
                pass  # another process changed one of the events in between
            if self.waits:
                self._wait_for_file()

    def _append(self, events: Sequence[Event]) -> bool:
        """Try to keep all events; returns False where one changed since it was read."""
        known = self._known(events)
        kept: dict[tuple[str, str], Event] = {}
        for event in events:
            key = (event.scenario, event.id)
            before = kept.get(key) or (as_event(*key, known[key]) if known[key] else None)
            kept[key] = merged(before, event) if before else event
        arguments: list[str | int] = [time.time_ns() // 1_000_000]
        for key, event in kept.items():
            text = as_text(event)
            if text != known[key]:
                arguments += [*key, event.user, known[key], text]
        keys = [f"{PREFIX}:sequence", f"{PREFIX}:numbers", f"{PREFIX}:events"]
        return len(arguments) == 1 or bool(self.append_script(keys, arguments))

    def _known(self, events: Sequence[Event]) -> Mapping[tuple[str, str], str]:
        """Returns what is kept of the ids of events, "" of those that are not there."""
        keys = list(dict.fromkeys((event.scenario, event.id) for event in events))
        pipe = self.client.pipeline(transaction=False)
        for scenario, name in keys:
            pipe.hget(f"{PREFIX}:events:{scenario}", name)
        return {key: text or "" for key, text in zip(keys, pipe.execute(), strict=True)}

    def _wait_for_file(self) -> None:
        """Wait until the append-only file is on the disk."""
        local, _ = cast("Any", self.client.execute_command)(
            "WAITAOF", 1, 0, int(1000 * TIMEOUT_S) - 500
        )
        if not local:
            raise StoreBusyError(f"event store {without_password(self.url)}: the file is behind")

    def of_users(self, scenario: str, users: Sequence[str]) -> list[StoredEvent]:
        """Returns the events of some users in a scenario, in the order of arrival."""
        with told_errors(self.url):
            pipe = self.reader.pipeline(transaction=False)
            for user in dict.fromkeys(users):
                pipe.lrange(f"{PREFIX}:events:{scenario}:of:{user}", 0, -1)
            ids = [name for names in pipe.execute() for name in names]
            return sorted(self._read(scenario, ids), key=lambda stored: stored.number)

    def after(self, sequence: int, scenario: str, limit: int = EVENTS_AT_ONCE) -> list[StoredEvent]:
        """Returns the first events of a scenario that changed after a sequence, in its order."""
        with told_errors(self.url):
            keys, wanted = [f"{PREFIX}:events"], [scenario, sequence, limit]
            ids = cast("list[str]", self.changed_script(keys, wanted))
            return sorted(self._read(scenario, ids), key=lambda stored: stored.sequence)

    def _read(self, scenario: str, ids: Sequence[str]) -> list[StoredEvent]:
        found: list[StoredEvent] = []
        for start in range(0, len(ids), 1000):  # the stack of Lua is small
            some = ids[start : start + 1000]
            values = cast("list[str]", self.read_script([f"{PREFIX}:events"], [scenario, *some]))
            for place, name in enumerate(some):
                text, number, sequence = values[3 * place : 3 * place + 3]
                first, arrived = map(int, number.split())
                event = as_event(scenario, name, text)
                found.append(StoredEvent(event, first, int(float(sequence)), arrived))
        return found

    def healthy(self) -> bool:
        """Returns whether the server answers."""
        try:
            return bool(self.probe.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self.reader.close()
        self.probe.close()


def client_of(url: str, retry: Retry) -> redis.Redis:
    """Returns a client of a server, which connects when it is used."""
    try:
        return redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=retry,
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        )
    except ValueError as error:
        found = f"serve.store: found {without_password(url)!r}"
        raise ProjectError([f"{found} ({error}); allowed: redis://host:port/0"]) from None


def as_text(event: Event) -> str:
    """Returns what is kept of an event, without its scenario and id."""
    return json.dumps([event.user, event.item, event.time, dict(sorted(event.labels.items()))])


def as_event(scenario: str, name: str, text: str) -> Event:
    """Returns an event from what is kept of it."""
    user, item, moment, labels = json.loads(text)
    return Event(scenario, user, item, name, moment, labels)


def split_durable(url: str) -> tuple[str, bool]:
    """Returns a URL without our option `durable`, and whether events must survive a restart."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    durable = options.pop("durable", "yes")
    if durable not in ("yes", "no"):
        raise ProjectError([f"serve.store: found durable={durable}; allowed: yes or no"])
    return urlunsplit(parts._replace(query=urlencode(options))), durable == "yes"


def check_durable(client: redis.Redis, url: str) -> bool:
    """Returns whether an append has to wait for the file; refuses a server that may lose events."""
    try:
        settings = {
            name: cast("dict[str, str]", client.config_get(name)).get(name, "")
            for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
        }
    except redis.ResponseError as error:
        found = f"serve.store: found no settings of {without_password(url)} ({error})"
        raise ProjectError(
            [f"{found}; allowed: a server that tells them, or ?durable=no"]
        ) from None
    version = str(cast("dict[str, Any]", client.info("server"))["redis_version"])
    waits = tuple(map(int, version.split(".")[:2])) >= WAITAOF_FROM
    lines = list(loss_problems(settings, waits))
    if lines:
        raise ProjectError([f"serve.store: {line}, or ?durable=no" for line in lines])
    return waits and settings["appendfsync"] != "always"


def loss_problems(settings: Mapping[str, str], waits: bool) -> Iterator[str]:
    """Yields a line for each setting by which a server loses events that it acknowledged."""
    if settings["appendonly"] != "yes":
        yield f"found a server with appendonly {settings['appendonly']}; allowed: appendonly yes"
    elif settings["appendfsync"] == "no" or (settings["appendfsync"] != "always" and not waits):
        found = f"found a server with appendfsync {settings['appendfsync']}"
        yield f"{found}; allowed: appendfsync always (from Redis 7.2 on everysec, too)"
    policy = settings["maxmemory-policy"]
    if settings["maxmemory"] not in ("", "0") and policy != "noeviction":
        yield f"found a server with maxmemory-policy {policy}; allowed: noeviction"


@contextmanager
def told_errors(url: str) -> Iterator[None]:
    """Errors of Redis as those of a store."""
    try:
        yield
    except redis.RedisError as error:
        text = f"event store {without_password(url)}: {error}"
        if isinstance(error, redis.OutOfMemoryError) or "MISCONF" in str(error):
            raise StoreFullError(text) from error
        if isinstance(error, redis.BusyLoadingError | redis.TimeoutError):
            raise StoreBusyError(text) from error
        raise StoreError(text) from error
