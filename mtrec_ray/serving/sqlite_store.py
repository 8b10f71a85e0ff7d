"""Events in a file of SQLite, which the processes of one node share.

An append is one transaction, written through to the disk (`synchronous=FULL`) before it returns.
Readers do not wait for it (write-ahead log).
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mtrec_ray.serving.event_store import (
    EVENTS_AT_ONCE,
    Event,
    StoreBusyError,
    StoredEvent,
    StoreError,
    StoreFullError,
    merged,
)

WAIT_MS = 5_000  # for another process that writes
USERS_AT_ONCE = 500  # SQLite takes so many values of a statement, and more

TABLES = """
CREATE TABLE IF NOT EXISTS events (
    scenario TEXT NOT NULL, id TEXT NOT NULL, user TEXT NOT NULL, item TEXT NOT NULL,
    time INTEGER, labels TEXT NOT NULL, number INTEGER NOT NULL, sequence INTEGER NOT NULL,
    arrived INTEGER NOT NULL, PRIMARY KEY (scenario, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_user ON events (scenario, user);
CREATE UNIQUE INDEX IF NOT EXISTS by_number ON events (scenario, number);
CREATE UNIQUE INDEX IF NOT EXISTS by_sequence ON events (scenario, sequence);
CREATE TABLE IF NOT EXISTS counter (sequence INTEGER NOT NULL);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter);
"""

COLUMNS = "scenario, user, item, id, time, labels, number, sequence, arrived"


class SqliteStore:
    """The store of a file, with a connection for each thread (`event_store.EventStore`)."""

    def __init__(self, path: str) -> None:
        """Open the file, which is made where there is none.

        Raises:
            StoreError: it cannot be opened, or is no file of SQLite.
        """
        self.path = path
        self.local = threading.local()
        self.connections: list[sqlite3.Connection] = []
        with told_errors(path):
            Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
            connection = self.connection()
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(f"BEGIN IMMEDIATE;{TABLES}COMMIT;")

    def connection(self) -> sqlite3.Connection:
        """Returns the connection of this thread."""
        if not hasattr(self.local, "connection"):
            connection = sqlite3.connect(
                self.path, WAIT_MS / 1000, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA synchronous=FULL")
            self.local.connection = connection
            self.connections.append(connection)
        return self.local.connection

    def append(self, events: Sequence[Event]) -> None:
        """Keep all events, or none."""
        with told_errors(self.path), writing(self.connection()) as connection:
            for event in events:
                put(connection, event)

    def of_users(self, scenario: str, users: Sequence[str]) -> list[StoredEvent]:
        """Returns the events of some users in a scenario, in the order of arrival."""
        found: list[StoredEvent] = []
        for start in range(0, len(users), USERS_AT_ONCE):
            some = users[start : start + USERS_AT_ONCE]
            marks = ", ".join("?" * len(some))
            found += self._read(f"scenario = ? AND user IN ({marks})", (scenario, *some))
        return sorted(found, key=lambda stored: stored.number)

    def after(self, sequence: int, scenario: str, limit: int = EVENTS_AT_ONCE) -> list[StoredEvent]:
        """Returns the first events of a scenario that changed after a sequence, in its order."""
        where = "scenario = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        return self._read(where, (scenario, sequence, limit))

    def _read(self, where: str, values: tuple[object, ...]) -> list[StoredEvent]:
        with told_errors(self.path):
            rows = self.connection().execute(f"SELECT {COLUMNS} FROM events WHERE {where}", values)
            return [stored_event(row) for row in rows]

    def healthy(self) -> bool:
        """Returns whether the file can be read."""
        try:
            with told_errors(self.path):
                self.connection().execute("SELECT sequence FROM counter").fetchone()
        except StoreError:
            return False
        return True

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self.connections:
            connection.close()
        self.connections.clear()
        self.local = threading.local()


def put(connection: sqlite3.Connection, event: Event) -> None:
    """Write an event, or what it adds to the one of the same id."""
    key = (event.scenario, event.id)
    where = "scenario = ? AND id = ?"
    row = connection.execute(f"SELECT {COLUMNS} FROM events WHERE {where}", key).fetchone()
    known = stored_event(row).event if row else None
    kept = merged(known, event) if known else event
    if kept == known:
        return
    (sequence,) = connection.execute(
        "UPDATE counter SET sequence = sequence + 1 RETURNING sequence"
    ).fetchone()
    labels = json.dumps(dict(kept.labels))
    if known:
        values = (labels, sequence, *key)
        connection.execute(f"UPDATE events SET labels = ?, sequence = ? WHERE {where}", values)
        return
    number = "SELECT coalesce(max(number) + 1, 0) FROM events WHERE scenario = ?"
    (number,) = connection.execute(number, (event.scenario,)).fetchone()
    values = (event.scenario, event.user, event.item, event.id, event.time, labels, number)
    connection.execute(
        f"INSERT INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, sequence, time.time_ns() // 1_000_000),
    )


def stored_event(row: tuple[str, str, str, str, int | None, str, int, int, int]) -> StoredEvent:
    """Returns an event from its columns."""
    scenario, user, item, name, moment, labels, number, sequence, arrived = row
    event = Event(scenario, user, item, name, moment, json.loads(labels))
    return StoredEvent(event, number, sequence, arrived)


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A transaction that is committed as a whole, or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it
            connection.execute("ROLLBACK")
        raise


@contextmanager
def told_errors(path: str) -> Iterator[None]:
    """Errors of SQLite as those of a store."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        known = {
            sqlite3.SQLITE_FULL: StoreFullError,
            sqlite3.SQLITE_BUSY: StoreBusyError,
            sqlite3.SQLITE_LOCKED: StoreBusyError,
        }
        raise known.get(code, StoreError)(f"event store {path}: {error}") from error
    except OSError as error:
        raise StoreError(f"event store {path}: {error}") from error
