"""Users and items at the end of the prepared data."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import NO_TIME, load_catalogue
from mtrec_ray.data.columns import hash_strings, matrix
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.samples import FIRST_NEGATIVE
from mtrec_ray.data.preparing.statistics import NO_WINDOWS, WINDOWS_MS
from mtrec_ray.data.snapshot import (
    PUBLISHED,
    Floats,
    Ints,
    ItemSnapshot,
    SnapshotColumns,
    UserCategoryStatistics,
    UserSnapshot,
    no_category_statistics,
    overlay,
)
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.scenario import SPLITS


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


def items_at_end(layout: SnapshotColumns) -> ItemSnapshot:
    """The catalogue at the end of the data.

    Raises:
        ProjectError: data prepared by a version that did not keep the items' categories.
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
    return ItemSnapshot(ids, known, overlay(*parts), codes, empty)


def read_catalogue(
    layout: SnapshotColumns,
) -> tuple[NDArray[np.object_], NDArray[np.bool_], dict[str, Ints], Ints]:
    """Ids, whether training knows them, numbers of categories, and when they were published."""
    path = storage.join(layout.prepared.folder, layout.name, "catalogue.parquet")
    fs, inner = storage.filesystem(path)
    table = pq.read_table(inner, filesystem=fs)
    columns = layout.scenario.items.counted
    missing = [c for c in columns if f"code.{c}" not in table.column_names]
    if missing:
        raise ProjectError(
            [
                f"prepared data: found no numbers of the items' {', '.join(missing)} in {path}, "
                "which an earlier version wrote; allowed: prepare again under another run.name"
            ]
        )
    codes = {c: table.column(f"code.{c}").to_numpy() for c in columns}
    ids = np.asarray(table.column("item_id").to_pylist(), object)
    return ids, table.column("known").to_numpy(), codes, load_catalogue(path).published


def category_columns(layout: SnapshotColumns, column: str, code: Ints) -> Floats:
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


def users_at_end(layout: SnapshotColumns, part: str) -> UserSnapshot:
    """The users of a partition at the end of the data."""
    prepared, name = layout.prepared, layout.name
    state = read_states(prepared, name, "users", part)
    assert state is not None
    ids = np.asarray(state.column("user_id").to_pylist(), object)
    end = np.full(len(ids), layout.end)
    own = layout.spread("user", WINDOWS_MS, matrix(state.column("numeric")))
    person = hash_strings(state.column("user_id")).view(np.int64)
    places = dict(zip(person.tolist(), range(len(person)), strict=True))
    return UserSnapshot(
        ids=ids,
        person=person,
        user=state.column("user").to_numpy().astype(np.int64),
        history=matrix(state.column("history")).astype(np.int64),
        ages=matrix(state.column("history_age")).astype(np.int64),
        numeric=overlay(own, layout.calendar(end)),
        entries={
            c: category_statistics_at_end(layout, c, part, places)
            for c in layout.scenario.items.counted
        },
    )


def category_statistics_at_end(
    layout: SnapshotColumns, column: str, part: str, places: dict[int, int]
) -> UserCategoryStatistics:
    """What the users of a partition have of a column's categories at the end of the data."""
    key = f"user_category.{column}"
    state = read_states(layout.prepared, layout.name, key, part)
    if state is None:
        return no_category_statistics(layout)
    person = hash_strings(state.column("user_id")).view(np.int64)
    return UserCategoryStatistics(
        np.array([places[p] for p in person.tolist()], np.int64),
        state.column("category").to_numpy().astype(np.int64),
        layout.spread(key, NO_WINDOWS, matrix(state.column("numeric"))),
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
