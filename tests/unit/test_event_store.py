"""What a store acknowledged is there, whole and once, whoever dies; in SQLite and in Redis."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mtrec_ray.project.base import ProjectError
from mtrec_ray.serving import redis_store, sqlite_store
from mtrec_ray.serving.event_store import (
    ConflictError,
    Event,
    StoreBusyError,
    StoreError,
    StoreFullError,
    open_store,
)

TOP = Path(__file__).parents[2]
SERVER = shutil.which("redis-server")
BATCH = 7


class RedisServer:
    """A server of Redis on a port of its own, whose append-only file lies in a folder."""

    def __init__(self, folder, **settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        own = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self.settings = {k.replace("_", "-"): v for k, v in (own | settings).items()}
        self.folder = folder
        self.start()

    def start(self):
        """Start it, and wait until it answers."""
        words = [w for name, value in self.settings.items() for w in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [SERVER, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder, *words],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("no server")

    def kill(self):
        """End it at once."""
        self.process.kill()
        self.process.wait()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"


@pytest.fixture
def redis_server(tmp_path):
    """Starts servers that end with the test."""
    if SERVER is None:
        pytest.skip("no redis-server on this machine")
    servers = []

    def start(**settings):
        folder = tmp_path / f"redis {len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(folder, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
    """The URL of an empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/events.sqlite"
    return request.getfixturevalue("redis_server")().url


@pytest.fixture
def store(url):
    opened = open_store(url)
    yield opened
    opened.close()


def event(name, user="ann", labels=None, **others):
    return Event("shop", user, "lamp", name, 5, labels or {}, **others)


def told(store, scenario="shop"):
    return [stored.event for stored in store.after(0, scenario)]


def test_an_event_is_kept_once(store):
    """The same event again changes nothing; a label that was not known is added to it."""
    store.append([event("a", labels={"click": 1.0}), event("b", user="bob")])
    store.append([event("a", labels={"click": 1.0})])
    store.append([event("c"), event("c")])
    assert [s.sequence for s in store.after(0, "shop")] == [1, 2, 3]
    store.append([event("a", labels={"click": 1.0, "buy": True})])
    assert [s.number for s in store.after(2, "shop")] == [2, 0]
    assert told(store)[-1] == event("a", labels={"click": 1.0, "buy": True})
    store.append([replace(event("a", labels={"stars": 3.5}), time=None)])  # the time is known
    assert told(store)[-1].labels == {"click": 1.0, "buy": True, "stars": 3.5}
    assert told(store)[-1].time == 5


def test_a_batch_is_whole_or_not_at_all(store):
    """An event that contradicts one that is kept is refused with all others of its batch."""
    store.append([event("a", labels={"click": 0.0})])
    for wrong, line in [
        (event("a", labels={"click": 1.0}), "labels.click: found 1.0 in event 'a'; allowed: 0.0"),
        (event("a", user="bob"), "user: found 'bob' in event 'a'; allowed: 'ann'"),
        (replace(event("a"), time=6), "time: found 6 in event 'a'; allowed: 5"),
    ]:
        with pytest.raises(ConflictError) as error:
            store.append([event("new"), wrong])
        assert error.value.problems == [f"{line}, as it was told"]
        assert told(store) == [event("a", labels={"click": 0.0})]
    with pytest.raises(ConflictError):
        store.append([event("new", labels={"buy": 1.0}), event("new", labels={"buy": 0.0})])
    assert len(told(store)) == 1


def test_events_are_found_by_user_and_by_change(store):
    """Those of some users in the order of arrival; those of a scenario by their last change."""
    store.append([event(f"{i}", user=f"user {i % 3}") for i in range(9)])
    store.append([replace(event("x", user="user 1"), scenario="news", time=None)])
    found = store.of_users("shop", ["user 2", "nobody", "user 1", "user 1"])
    assert [s.event.id for s in found] == ["1", "2", "4", "5", "7", "8"]
    assert [s.number for s in found] == [1, 2, 4, 5, 7, 8]
    assert [s.event.id for s in store.after(0, "shop", limit=2)] == ["0", "1"]
    assert [s.event.id for s in store.after(7, "shop")] == ["7", "8"]
    assert [s.number for s in store.after(0, "news")] == [0]
    assert all(s.arrived > 1e12 for s in found)
    assert store.of_users("shop", []) == store.after(99, "shop") == []
    assert store.healthy()


def test_ids_may_hold_any_text(store):
    """Quotes, colons, braces, zeros and other alphabets are told back as they came."""
    names = ["a'b\"", "x:y", "{mtrec}", "ж 日本", "%s\n", "\\", " "]
    store.append([event(name, user=name) for name in names])
    assert [e.id for e in told(store)] == names
    assert [s.event.user for s in store.of_users("shop", names)] == names


APPENDING = """
import sys
from mtrec_ray.serving.event_store import Event, open_store
store, name = open_store(sys.argv[1]), sys.argv[2]
for batch in range(int(sys.argv[3])):
    ids = [f"{name} {batch} {i}" for i in range(7)] + [f"shared {batch}"]
    store.append([Event("shop", f"user {i % 4}", "lamp", i, 5) if i.startswith("never")
                  else Event("shop", "ann", "lamp", i, 5) for i in ids])
    print(batch, flush=True)
"""


def appending(url, name, batches):
    """A process that appends batches, and says of each that it was acknowledged."""
    environment = os.environ | {"PYTHONPATH": str(TOP)}
    return subprocess.Popen(
        [sys.executable, "-c", APPENDING, url, name, str(batches)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def assert_whole(store, acknowledged):
    """Acknowledged batches are there, all batches are whole, and numbers have no gap."""
    found = store.after(0, "shop")
    batches = {}
    for stored in found:
        if not stored.event.id.startswith("shared"):
            batches.setdefault(stored.event.id.rsplit(" ", 1)[0], []).append(stored)
    assert set(acknowledged) <= set(batches)
    assert {len(batch) for batch in batches.values()} == {BATCH}
    assert sorted(s.number for s in found) == list(range(len(found)))
    assert len({s.sequence for s in found}) == len({s.event.id for s in found}) == len(found)


def test_two_processes_append_at_once(store, url):
    """Each event is there once, also those that both tell."""
    both = [appending(url, name, 40) for name in ("one", "two")]
    for process in both:
        process.communicate(timeout=100)
        assert process.returncode == 0
    assert_whole(store, [f"{name} {batch}" for name in ("one", "two") for batch in range(40)])
    assert len(store.after(0, "shop")) == 2 * 40 * BATCH + 40


def test_a_killed_process_loses_nothing_acknowledged(store, url):
    """What was acknowledged before SIGKILL is there, and nothing is there by halves."""
    process = appending(url, "one", 100_000)
    assert process.stdout
    seen = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    seen += process.communicate(timeout=100)[0].splitlines()
    assert len(seen) < 100_000
    assert_whole(store, [f"one {int(batch)}" for batch in seen if batch.strip()])
    store.append([event("after")])
    assert told(store)[-1].id == "after"


def test_threads_share_a_store(store):
    """Threads that append at once lose nothing."""
    threads = [
        threading.Thread(target=lambda n=n: [store.append([event(f"{n} {i}")]) for i in range(20)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.after(0, "shop")
    assert sorted(s.number for s in found) == list(range(80))


def test_a_full_disk_refuses_a_whole_batch(tmp_path):
    """Without room nothing of a batch is kept, what is there can be read; with room it goes on."""
    store = open_store(f"sqlite:///{tmp_path}/events.sqlite")
    store.append([event("first")])
    connection = store.connection()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    many = [event(f"{i}", user="x" * 100) for i in range(500)]
    with pytest.raises(StoreFullError, match="full"):
        store.append(many)
    assert [e.id for e in told(store)] == ["first"]
    connection.execute("PRAGMA max_page_count = 100000")
    store.append(many)
    assert len(told(store)) == 501


def test_a_locked_file_is_an_error_of_its_own(tmp_path, monkeypatch):
    """A process that holds the file for too long is told as that; then nothing is kept."""
    monkeypatch.setattr(sqlite_store, "WAIT_MS", 50)
    path = tmp_path / "events.sqlite"
    store = open_store(f"sqlite:///{path}")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError, match="locked"):
        store.append([event("a")])
    assert told(store) == []
    holder.execute("ROLLBACK")
    store.append([event("a")])
    assert len(told(store)) == 1


def test_what_is_no_store_is_refused(tmp_path):
    """A file of another kind, a folder that is none, and URLs of other kinds."""
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"sqlite:///{tmp_path}/text")
    with pytest.raises(StoreError):
        open_store(f"sqlite:///{tmp_path}/text/below.sqlite")
    for wrong in ("events.sqlite", "sqlite://", "mysql://me:secret@host/x", "redis://"):
        with pytest.raises(ProjectError, match=r"^serve.store: found .*; allowed: ") as error:
            open_store(wrong)
        assert "secret" not in str(error.value)


def test_a_redis_that_is_killed_and_started_again(redis_server, monkeypatch):
    """An append waits for the server to come back; what was acknowledged is there."""
    server = redis_server()
    store = open_store(server.url)
    for i in range(20):
        store.append([event(f"{i} {j}") for j in range(3)])
        if i == 9:
            server.kill()
            assert not store.healthy()
            threading.Timer(0.2, server.start).start()
    assert len(told(store)) == 60
    server.kill()
    server.start()
    assert len(told(store)) == 60
    assert store.healthy()
    monkeypatch.setattr(redis_store, "RETRIES", 1)
    hasty = open_store(server.url)
    server.kill()
    for use in (lambda: hasty.append([event("lost")]), lambda: open_store(server.url)):
        with pytest.raises(StoreError, match="event store redis://127"):
            use()


def test_a_full_redis_refuses_a_whole_batch(redis_server):
    """Without memory nothing of a batch is kept; with memory it goes on."""
    store = open_store(redis_server().url)
    store.append([event("first")])
    store.client.config_set("maxmemory", "1")
    with pytest.raises(StoreFullError, match="memory"):
        store.append([event("a"), event("b")])
    assert [e.id for e in told(store)] == ["first"]
    store.client.config_set("maxmemory", "0")
    store.append([event("a"), event("b")])
    assert len(told(store)) == 3


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"appendonly": "no"}, "found a server with appendonly no; allowed: appendonly yes"),
        ({"appendfsync": "no"}, "found a server with appendfsync no; allowed: appendfsync always"),
        (
            {"maxmemory": "50mb", "maxmemory_policy": "allkeys-lru"},
            "found a server with maxmemory-policy allkeys-lru; allowed: noeviction",
        ),
    ],
)
def test_a_redis_that_may_lose_events_is_refused(redis_server, settings, line):
    """Unless the URL says that they need not be durable."""
    server = redis_server(**settings)
    with pytest.raises(ProjectError) as error:
        open_store(server.url)
    assert str(error.value).startswith(f"serve.store: {line}")
    store = open_store(f"{server.url}?durable=no")
    store.append([event("a")])
    assert len(told(store)) == 1
