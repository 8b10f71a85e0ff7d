"""Which versions are served, and what share of the users each answers.

A user stays with a version: the hash of his id says where he falls among the shares, of which the
oldest version has the first part. A new version gets its share at the end, and a larger share keeps
the users whom it had.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from mtrec_ray.project.base import ProjectError
from mtrec_ray.stages.serving.requests import ConflictError, RequestError, UnknownNameError
from mtrec_ray.stages.serving.versions import ServedVersion

State = Literal["loading", "ready", "failed"]


@dataclass(frozen=True)
class Row:
    """A version in the table.

    Attributes:
        run: whose models they are. wanted: the share that it has once it is ready.
        problems: why it failed.
    """

    name: str
    run: str
    share: float
    state: State = "loading"
    wanted: float = 0.0
    problems: tuple[str, ...] = ()


Table = Sequence[Row]


class Control(Protocol):
    """Holds the table of versions; the replicas of a service share one."""

    def table(self) -> Table:
        """Returns all versions, the oldest first."""
        ...

    def version(self, name: str) -> ServedVersion:
        """Returns what a ready version is opened from."""
        ...

    def add(self, run: str, share: float) -> Row:
        """Begin to prepare the models of another run; once they are ready they get their share."""
        ...

    def set_share(self, name: str, share: float) -> Row:
        """Set the share of a version; the others keep their proportions in the rest."""
        ...

    def remove(self, name: str) -> None:
        """Forget a version that has no users."""
        ...


class LocalControl:
    """The table of versions in one process.

    Attributes:
        make: opens the version of a run; its mistakes are a `ProjectError`.
    """

    def __init__(self, first: ServedVersion, make: Callable[[str], ServedVersion]) -> None:
        self.make, self.lock = make, threading.Lock()
        self.versions = {first.name: first}
        self.rows: tuple[Row, ...] = (Row(first.name, first.project.run.name, 1.0, "ready"),)

    def table(self) -> Table:
        """Returns all versions, the oldest first."""
        return self.rows

    def version(self, name: str) -> ServedVersion:
        """Returns what a ready version is opened from.

        Raises:
            UnknownNameError: there is none of the name.
        """
        if name not in self.versions:
            raise self.unknown(name)
        return self.versions[name]

    def unknown(self, name: str) -> UnknownNameError:
        """Returns the error for a version that is not there."""
        allowed = ", ".join(row.name for row in self.rows)
        return UnknownNameError([f"version: found {name!r}; allowed: {allowed}"])

    def row(self, name: str) -> Row:
        """Returns the row of a version.

        Raises:
            UnknownNameError: there is none of the name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise self.unknown(name)

    def add(self, run: str, share: float) -> Row:
        """Begin to prepare the models of another run; once they are ready they get their share.

        Raises:
            ConflictError: a version of the run is being prepared.
        """
        with self.lock:
            if any(row.run == run and row.state == "loading" for row in self.rows):
                line = f"run: found {run!r}, which is being prepared; allowed: wait for it"
                raise ConflictError([line])
            row = Row(f"{run} (loading)", run, 0.0, wanted=share)
            self.rows = (*(r for r in self.rows if r.name != row.name), row)
        threading.Thread(target=self.prepare, args=(row,), daemon=True).start()
        return row

    def prepare(self, row: Row) -> None:
        """Make a version, and give it its share."""
        try:
            version = self.make(row.run)
        except ProjectError as error:
            failed = replace(row, state="failed", problems=tuple(error.problems))
            self.change({row.name: failed})
            return
        except Exception as error:
            failed = replace(row, state="failed", problems=(f"version: failed with {error!r}",))
            self.change({row.name: failed})
            raise
        with self.lock:
            self.versions[version.name] = version
            kept = [r for r in self.rows if r.name not in (row.name, version.name)]
            before = [r for r in self.rows if r.name == version.name]
            share = before[0].share if before else 0.0
            self.rows = (*kept, replace(row, name=version.name, state="ready", share=share))
        if not before:
            self.set_share(version.name, row.wanted)

    def change(self, rows: dict[str, Row]) -> None:
        """Put other rows in place of some."""
        with self.lock:
            self.rows = tuple(rows.get(row.name, row) for row in self.rows)

    def set_share(self, name: str, share: float) -> Row:
        """Set the share of a version; the others keep their proportions in the rest.

        Raises:
            UnknownNameError: there is no such version.
            ConflictError: it is not ready.
            RequestError: nobody else could take the rest.
        """
        with self.lock:
            own = self.row(name)
            if own.state != "ready":
                line = f"version: found {name!r}, which is {own.state}; allowed: a ready one"
                raise ConflictError([line])
            self.rows = shared(self.rows, name, share)
            return self.row(name)

    def remove(self, name: str) -> None:
        """Forget a version that has no users.

        Raises:
            UnknownNameError: there is no such version.
            ConflictError: it has users.
        """
        with self.lock:
            own = self.row(name)
            if own.share > 0:
                line = f"version: found {name!r} with the share {own.share:g}; allowed: one with 0"
                raise ConflictError([line])
            self.rows = tuple(row for row in self.rows if row.name != name)
            self.versions.pop(name, None)


def shared(rows: Table, name: str, share: float) -> tuple[Row, ...]:
    """Returns the table in which a version has a share, and the others proportions of the rest.

    Where no other has any, the oldest ready one takes the rest.

    Raises:
        RequestError: there is a rest, and no other version that is ready.
    """
    others = [row for row in rows if row.name != name and row.state == "ready"]
    total = sum(row.share for row in others)
    if share < 1 and not others:
        raise RequestError([f"share: found {share:g} for the only version; allowed: 1"])
    given = {name: share}
    for number, row in enumerate(others):
        part = row.share / total if total > 0 else float(number == 0)
        given[row.name] = (1 - share) * part
    return tuple(replace(row, share=given.get(row.name, 0.0)) for row in rows)


def chosen(rows: Iterable[Row], user: str) -> str | None:
    """Returns the version that answers a user; None where no version has any."""
    place = int.from_bytes(hashlib.sha256(user.encode()).digest()[:8], "big") / 2.0**64
    total, last = 0.0, None
    for row in rows:
        if row.share <= 0:
            continue
        total, last = total + row.share, row.name
        if place < total:
            break
    return last
