"""The state of items and users at one moment, as numeric columns of rows that do not exist yet.

A row of a user and an item has columns that follow from the item, from the user, and from the user
and a category of the item (`partition.numeric_names`). Each is laid out here over all F columns,
NaN where it does not speak, so that a row is the three laid over one another.

Letters: n items, B users, F numeric columns of a row, H history items, m entries.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtrec_ray.data import storage
from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing import statistics
from mtrec_ray.data.preparing.features import numeric_names
from mtrec_ray.data.preparing.statistics import WINDOWS_MS, KeyedRows, Windows
from mtrec_ray.project.scenario import SPLITS, Scenario

Floats = NDArray[np.float32]


Ints = NDArray[np.int64]


PUBLISHED = "item.log_seconds_since_published"


@dataclass(frozen=True)
class UserCategoryStatistics:
    """What users have of categories: columns f32[m, F] for pairs `user` [m], `category` [m]."""

    user: Ints
    category: Ints
    numeric: Floats

    def of(self, start: int, stop: int) -> "UserCategoryStatistics":
        """The entries of the users start..stop, who are counted from 0 then."""
        mine = (self.user >= start) & (self.user < stop)
        return UserCategoryStatistics(
            self.user[mine] - start, self.category[mine], self.numeric[mine]
        )


@dataclass(frozen=True)
class UserSnapshot:
    """Users at a moment.

    Attributes:
        ids: their ids, as strings; `person`: hashes of these.
        user: i64[B], vocabulary numbers, 0 where training never saw them.
        history, ages: i64[B, H], as in a sample.
        numeric: f32[B, F], the user's own columns.
        entries: by categorical column that has statistics.
    """

    ids: NDArray[np.object_]
    person: Ints
    user: Ints
    history: Ints
    ages: Ints
    numeric: Floats
    entries: dict[str, UserCategoryStatistics] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of users."""
        return len(self.user)

    def of(self, start: int, stop: int) -> "UserSnapshot":
        """The users start..stop."""
        cut = slice(start, stop)
        return UserSnapshot(
            self.ids[cut], self.person[cut], self.user[cut], self.history[cut], self.ages[cut],
            self.numeric[cut], {c: e.of(start, stop) for c, e in self.entries.items()},
        )  # fmt: skip

    def take(self, rows: Ints) -> "UserSnapshot":
        """Some of the users, in the order of `rows`."""
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))
        entries = {}
        for column, own in self.entries.items():
            kept = place[own.user] >= 0
            entries[column] = UserCategoryStatistics(
                place[own.user[kept]], own.category[kept], own.numeric[kept]
            )
        return UserSnapshot(
            self.ids[rows], self.person[rows], self.user[rows], self.history[rows],
            self.ages[rows], self.numeric[rows], entries,
        )  # fmt: skip


@dataclass(frozen=True)
class ItemSnapshot:
    """The catalogue at a moment.

    Attributes:
        ids: as strings; `known`: whether training has a row of the item.
        numeric: f32[n, F], the item's own columns.
        codes: by categorical column that has statistics: i64[n] the number of its value, or -1.
        empty: by such a column: f32[F], the columns of a user without a row of the value.
    """

    ids: NDArray[np.object_]
    known: NDArray[np.bool_]
    numeric: Floats
    codes: dict[str, Ints]
    empty: dict[str, Floats]


class SnapshotColumns:
    """Where the columns of a scenario's rows stand."""

    def __init__(self, prepared: Prepared, name: str, scenario: Scenario) -> None:
        self.prepared, self.name, self.scenario = prepared, name, scenario
        self.names = numeric_names(scenario)
        self.timed = scenario.events.time is not None

    @property
    def width(self) -> int:
        """F."""
        return len(self.names)

    @functools.cached_property
    def end(self) -> int:
        """The moment, in ms, of the states at the end."""
        return end_of_data(self.prepared, self.name)

    def place(self, key: str, windows: Windows) -> slice:
        """Columns of the statistics of a key: item, user, category.COLUMN, user_category.COLUMN."""
        names = statistics.feature_names(key, tuple(self.scenario.tasks), self.timed, windows)
        start = self.names.index(names[0])
        return slice(start, start + len(names))

    def spread(self, key: str, windows: Windows, stats: Floats) -> Floats:
        """f32[m, F] of a key's statistics."""
        found = np.full((len(stats), self.width), np.nan, np.float32)
        place = self.place(key, windows)
        found[:, place] = stats[:, : place.stop - place.start]
        return found

    def nothing(self, windows: Windows) -> Floats:
        """f32[1, f]: the statistics of what has no past."""
        facts = self.prepared.scenarios[self.name]
        rows = KeyedRows(
            key=np.zeros(1, np.int64),
            time=np.zeros(1, np.int64),
            labels=np.full((1, len(facts.tasks)), np.nan),
            counts=np.zeros(1, bool),
            fold=None if self.timed else np.full(1, -1),
        )
        delays = [1000 * t.delay for t in self.scenario.tasks.values()]
        priors = [facts.label_means[t] for t in facts.tasks]
        return statistics.statistics(rows, delays, priors, windows).astype(np.float32)

    def calendar(self, time: Ints) -> Floats:
        """f32[B, F]: what the hour and the day say, where rows have a time."""
        found = np.full((len(time), self.width), np.nan, np.float32)
        if self.timed:
            start = self.names.index(statistics.CALENDAR_NAMES[0])
            found[:, start : start + len(statistics.CALENDAR_NAMES)] = statistics.calendar(time)
        return found

    def group(self, prefixes: tuple[str, ...]) -> NDArray[np.bool_]:
        """bool[F]: columns whose names start with one of the prefixes."""
        return np.array([n.startswith(prefixes) for n in self.names])


def overlay(*parts: Floats) -> Floats:
    """The columns of several parts, each NaN where it does not speak."""
    found = parts[0].copy()
    for part in parts[1:]:
        np.copyto(found, part, where=~np.isnan(part))
    return found


def end_of_data(prepared: Prepared, name: str) -> int:
    """The moment, in ms, of the states at the end: just after the last row."""
    last = 0
    for split in SPLITS:
        for path in prepared.shard_paths(name, split):
            fs, inner = storage.filesystem(path)
            meta = pq.read_metadata(inner, filesystem=fs)
            column = meta.schema.names.index("time")
            for group in range(meta.num_row_groups):
                stats = meta.row_group(group).column(column).statistics
                last = max(last, stats.max)
    return last + 1


def no_category_statistics(layout: SnapshotColumns) -> UserCategoryStatistics:
    """Nothing of any category."""
    nobody = np.zeros(0, np.int64)
    return UserCategoryStatistics(nobody, nobody, np.zeros((0, layout.width), np.float32))


def new_users(layout: SnapshotColumns, ids: list[str]) -> UserSnapshot:
    """Users of whom the data has no row."""
    num = len(ids)
    own = layout.spread("user", WINDOWS_MS, np.repeat(layout.nothing(WINDOWS_MS), num, 0))
    end = np.full(num, layout.end)
    none = np.full((num, layout.prepared.scenarios[layout.name].history_last), -1)
    return UserSnapshot(
        ids=np.array(ids, object),
        person=hash_strings(pa.array(ids, pa.string())).view(np.int64),
        user=np.zeros(num, np.int64),
        history=none,
        ages=np.zeros_like(none),
        numeric=overlay(own, layout.calendar(end)),
        entries={
            c: no_category_statistics(layout) for c in layout.scenario.items.statistics_columns
        },
    )


def blocks(users: UserSnapshot, size: int) -> Iterator[UserSnapshot]:
    """The users in blocks of so many."""
    for start in range(0, len(users), size):
        yield users.of(start, min(start + size, len(users)))
