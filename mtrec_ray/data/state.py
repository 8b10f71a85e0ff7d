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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtrec_ray.data import features, storage
from mtrec_ray.data.catalogue import NO_TIME, hash_strings, load_catalogue
from mtrec_ray.data.events import matrix
from mtrec_ray.data.features import NO_WINDOWS, WINDOWS_MS, Rows, Windows
from mtrec_ray.data.partition import FIRST_NEGATIVE, numeric_names
from mtrec_ray.data.shards import Prepared
from mtrec_ray.schema import SPLITS, Scenario

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
PUBLISHED = "item.log_seconds_since_published"


@dataclass(frozen=True)
class Entries:
    """What users have of categories: columns f32[m, F] for pairs `user` [m], `category` [m]."""

    user: Ints
    category: Ints
    numeric: Floats

    def of(self, start: int, stop: int) -> "Entries":
        """The entries of the users start..stop, who are counted from 0 then."""
        mine = (self.user >= start) & (self.user < stop)
        return Entries(self.user[mine] - start, self.category[mine], self.numeric[mine])


@dataclass(frozen=True)
class Users:
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
    entries: dict[str, Entries] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of users."""
        return len(self.user)

    def of(self, start: int, stop: int) -> "Users":
        """The users start..stop."""
        cut = slice(start, stop)
        return Users(
            self.ids[cut], self.person[cut], self.user[cut], self.history[cut], self.ages[cut],
            self.numeric[cut], {c: e.of(start, stop) for c, e in self.entries.items()},
        )  # fmt: skip

    def take(self, rows: Ints) -> "Users":
        """Some of the users, in the order of `rows`."""
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))
        entries = {}
        for column, own in self.entries.items():
            kept = place[own.user] >= 0
            entries[column] = Entries(place[own.user[kept]], own.category[kept], own.numeric[kept])
        return Users(
            self.ids[rows], self.person[rows], self.user[rows], self.history[rows],
            self.ages[rows], self.numeric[rows], entries,
        )  # fmt: skip


@dataclass(frozen=True)
class Items:
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


class Layout:
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
        names = features.feature_names(key, tuple(self.scenario.tasks), self.timed, windows)
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
        rows = Rows(
            key=np.zeros(1, np.int64),
            time=np.zeros(1, np.int64),
            labels=np.full((1, len(facts.tasks)), np.nan),
            counts=np.zeros(1, bool),
            fold=None if self.timed else np.full(1, -1),
        )
        delays = [1000 * t.delay for t in self.scenario.tasks.values()]
        priors = [facts.label_means[t] for t in facts.tasks]
        return features.statistics(rows, delays, priors, windows).astype(np.float32)

    def calendar(self, time: Ints) -> Floats:
        """f32[B, F]: what the hour and the day say, where rows have a time."""
        found = np.full((len(time), self.width), np.nan, np.float32)
        if self.timed:
            start = self.names.index(features.CALENDAR_NAMES[0])
            found[:, start : start + len(features.CALENDAR_NAMES)] = features.calendar(time)
        return found

    def group(self, prefixes: tuple[str, ...]) -> NDArray[np.bool_]:
        """bool[F]: columns whose names start with one of the prefixes."""
        return np.array([n.startswith(prefixes) for n in self.names])


def lay_over(*parts: Floats) -> Floats:
    """The columns of several parts, each NaN where it does not speak."""
    found = parts[0].copy()
    for part in parts[1:]:
        np.copyto(found, part, where=~np.isnan(part))
    return found


def read_states(
    prepared: Prepared, name: str, kind: str, part: str | None = None
) -> pa.Table | None:
    """The end states of a kind, of all partitions or of one file; None where there are none."""
    folder = storage.join(prepared.folder, name, "state", kind)
    if not storage.exists(folder):
        return None
    tables = []
    for path in storage.parquet_files(folder):
        if part is None or path.endswith("/" + part):
            fs, inner = storage.filesystem(path)
            tables.append(pq.read_table(inner, filesystem=fs))
    return pa.concat_tables(tables).combine_chunks() if tables else None


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


def items_at_end(layout: Layout) -> Items:
    """The catalogue at the end of the data.

    Raises:
        ValueError: data prepared by a version that did not keep the items' categories.
    """
    prepared, name = layout.prepared, layout.name
    ids, known, codes, published = read_catalogue(layout)
    stats = np.repeat(layout.nothing(WINDOWS_MS), len(ids), 0)
    state = read_states(prepared, name, "items")
    assert state is not None
    stats[state.column("item").to_numpy()] = matrix(state.column("numeric"))[:, : stats.shape[1]]
    parts = [layout.spread("item", WINDOWS_MS, stats)]
    for column, code in codes.items():
        parts.append(category_columns(layout, column, code))
    if PUBLISHED in layout.names:
        seconds = np.maximum(layout.end - published, 0) / 1000
        age = np.full((len(ids), layout.width), np.nan, np.float32)
        values = np.where(published == NO_TIME, np.nan, np.log1p(seconds))
        age[:, layout.names.index(PUBLISHED)] = values
        parts.append(age)
    empty = {
        c: layout.spread(f"user_category.{c}", NO_WINDOWS, layout.nothing(NO_WINDOWS))[0]
        for c in codes
    }
    return Items(ids, known, lay_over(*parts), codes, empty)


def read_catalogue(
    layout: Layout,
) -> tuple[NDArray[np.object_], NDArray[np.bool_], dict[str, Ints], Ints]:
    """Ids, whether training knows them, numbers of categories, and when they were published."""
    path = storage.join(layout.prepared.folder, layout.name, "catalogue.parquet")
    fs, inner = storage.filesystem(path)
    table = pq.read_table(inner, filesystem=fs)
    columns = layout.scenario.items.counted
    missing = [c for c in columns if f"code.{c}" not in table.column_names]
    if missing:
        raise ValueError(
            f"prepared data: found no numbers of the items' {', '.join(missing)} in {path}, which "
            "an earlier version wrote; allowed: prepare again under another run.name"
        )
    codes = {c: table.column(f"code.{c}").to_numpy() for c in columns}
    ids = np.asarray(table.column("item_id").to_pylist(), object)
    return ids, table.column("known").to_numpy(), codes, load_catalogue(path).published


def category_columns(layout: Layout, column: str, code: Ints) -> Floats:
    """f32[n, F]: statistics of each item's category at the end; NaN for an item without one."""
    nothing = layout.nothing(NO_WINDOWS)
    stats = np.repeat(nothing, int(code.max(initial=-1)) + 2, 0)
    state = read_states(layout.prepared, layout.name, f"category.{column}")
    if state is not None:
        values = matrix(state.column("numeric"))[:, : stats.shape[1]]
        stats[state.column("category").to_numpy()] = values
    stats[-1] = np.nan
    return layout.spread(f"category.{column}", NO_WINDOWS, stats[code])


def stored_users(prepared: Prepared, space: str) -> NDArray[np.uint64]:
    """Sorted hashes of the users of an id space whom training knows: user i + 1 is the i-th."""
    found = [np.zeros(0, np.uint64)]
    for name, facts in prepared.scenarios.items():
        if facts.user_space == space:
            state = read_states(prepared, name, "users")
            assert state is not None
            known = state.column("user").to_numpy() > 0
            found.append(hash_strings(state.column("user_id"))[known])
    return np.unique(np.concatenate(found))


def user_parts(prepared: Prepared, name: str) -> list[str]:
    """File names of the partitions of users."""
    folder = storage.join(prepared.folder, name, "state", "users")
    return [path.rsplit("/", 1)[1] for path in storage.parquet_files(folder)]


def users_at_end(layout: Layout, part: str) -> Users:
    """The users of a partition at the end of the data."""
    prepared, name = layout.prepared, layout.name
    state = read_states(prepared, name, "users", part)
    assert state is not None
    ids = np.asarray(state.column("user_id").to_pylist(), object)
    end = np.full(len(ids), layout.end)
    own = layout.spread("user", WINDOWS_MS, matrix(state.column("numeric")))
    person = hash_strings(state.column("user_id")).view(np.int64)
    places = dict(zip(person.tolist(), range(len(person)), strict=True))
    return Users(
        ids=ids,
        person=person,
        user=state.column("user").to_numpy().astype(np.int64),
        history=matrix(state.column("history")).astype(np.int64),
        ages=matrix(state.column("history_age")).astype(np.int64),
        numeric=lay_over(own, layout.calendar(end)),
        entries={c: end_entries(layout, c, part, places) for c in layout.scenario.items.counted},
    )


def end_entries(layout: Layout, column: str, part: str, places: dict[int, int]) -> Entries:
    """What the users of a partition have of a column's categories at the end of the data."""
    key = f"user_category.{column}"
    state = read_states(layout.prepared, layout.name, key, part)
    if state is None:
        return no_entries(layout)
    person = hash_strings(state.column("user_id")).view(np.int64)
    return Entries(
        np.array([places[p] for p in person.tolist()], np.int64),
        state.column("category").to_numpy().astype(np.int64),
        layout.spread(key, NO_WINDOWS, matrix(state.column("numeric"))),
    )


def no_entries(layout: Layout) -> Entries:
    """Nothing of any category."""
    nobody = np.zeros(0, np.int64)
    return Entries(nobody, nobody, np.zeros((0, layout.width), np.float32))


def new_users(layout: Layout, ids: list[str]) -> Users:
    """Users of whom the data has no row."""
    num = len(ids)
    own = layout.spread("user", WINDOWS_MS, np.repeat(layout.nothing(WINDOWS_MS), num, 0))
    end = np.full(num, layout.end)
    none = np.full((num, layout.prepared.scenarios[layout.name].history_last), -1)
    return Users(
        ids=np.array(ids, object),
        person=hash_strings(pa.array(ids, pa.string())).view(np.int64),
        user=np.zeros(num, np.int64),
        history=none,
        ages=np.zeros_like(none),
        numeric=lay_over(own, layout.calendar(end)),
        entries={c: no_entries(layout) for c in layout.scenario.items.counted},
    )


def seen_pairs(
    prepared: Prepared, name: str, splits: tuple[str, ...] = SPLITS, part: str | None = None
) -> tuple[Ints, Ints]:
    """Persons and items of the log's rows (sampled negatives are none), of all or one partition."""
    wanted = part and "/" + part.removesuffix(".parquet")
    persons, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for path in (p for s in splits for p in prepared.shard_paths(name, s)):
        if wanted and wanted not in path:
            continue
        fs, inner = storage.filesystem(path)
        table = pq.read_table(inner, filesystem=fs, columns=["row", "person", "item"])
        table = table.filter(pc.less(table.column("row"), FIRST_NEGATIVE))  # pyright: ignore[reportAttributeAccessIssue]
        persons.append(table.column("person").to_numpy())
        items.append(table.column("item").to_numpy().astype(np.int64))
    return np.concatenate(persons), np.concatenate(items)


def blocks(users: Users, size: int) -> Iterator[Users]:
    """The users in blocks of so many."""
    for start in range(0, len(users), size):
        yield users.of(start, min(start + size, len(users)))
