"""Users and items at the end of the prepared data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import Ragged, load_catalogue, ragged
from mtrec_ray.data.columns import hash_strings, matrix
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.pooling import pooled
from mtrec_ray.data.preparing.samples import FIRST_NEGATIVE
from mtrec_ray.data.preparing.statistics import NO_WINDOWS, WINDOWS_MS
from mtrec_ray.data.shards import OUTCOME
from mtrec_ray.data.snapshot import (
    ItemSnapshot,
    ItemValues,
    SnapshotColumns,
    UserCategoryStatistics,
    UserSnapshot,
    no_category_statistics,
    overlay,
)
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.split import SPLITS


def read_states(
    prepared: Prepared, name: str, kind: str, part: str | None = None
) -> pa.Table | None:
    """Returns the end states of a kind, of all partitions or of one file; None without any."""
    folder = storage.join(prepared.folder, name, "state", kind)
    if not storage.exists(folder):
        return None
    tables = []
    for path in storage.parquet_files(folder):
        if part is None or storage.name_of(path) == part:
            fs, inner = storage.filesystem(path)
            tables.append(pq.read_table(inner, filesystem=fs))
    return pa.concat_tables(tables).combine_chunks() if tables else None


@dataclass(frozen=True)
class CatalogueColumns:
    """What a snapshot needs of the catalogue.

    Attributes:
        ids: as strings; `in_training`: whether training has a row of the item.
        codes: by categorical column that has statistics: i64[n] the number of its value, or -1.
        published: i64[n], in ms, NO_TIME where the catalogue does not say.
        values: by column with several values that has statistics: their numbers.
    """

    ids: NDArray[np.object_]
    in_training: NDArray[np.bool_]
    codes: dict[str, Ints]
    published: Ints
    values: dict[str, Ragged] = field(default_factory=dict)

    def snapshot(self, layout: SnapshotColumns, numeric: Float32s) -> ItemSnapshot:
        """Returns the catalogue with the items' columns f32[n, F]."""
        cold_start = layout.cold_start(NO_WINDOWS)
        default = {
            c: layout.scatter(key, NO_WINDOWS, cold_start)[0] for c, key in layout.pair_keys.items()
        }
        values = {
            c: ItemValues(own, layout.columns_of(f"user_values.{c}", NO_WINDOWS), layout.timed)
            for c, own in self.values.items()
        }
        return ItemSnapshot(self.ids, self.in_training, numeric, self.codes, default, values)


def read_catalogue(layout: SnapshotColumns) -> CatalogueColumns:
    """Returns the columns of a scenario's catalogue file.

    Raises:
        ProjectError: data prepared by a version that did not keep the items' categories.
    """
    path = storage.join(layout.prepared.folder, layout.name, "catalogue.parquet")
    fs, inner = storage.filesystem(path)
    table = pq.read_table(inner, filesystem=fs)
    items = layout.scenario.items
    columns, several = items.statistics_columns, items.pooled_columns
    missing = [c for c in [*columns, *several] if f"code.{c}" not in table.column_names]
    if missing:
        raise ProjectError(
            [
                f"prepared data: found no numbers of the items' {', '.join(missing)} in {path}, "
                "which an earlier version wrote; allowed: prepare again under another run.name"
            ]
        )
    return CatalogueColumns(
        ids=np.asarray(table.column("item_id").to_pylist(), object),
        in_training=table.column("known").to_numpy(),
        codes={c: table.column(f"code.{c}").to_numpy() for c in columns},
        published=load_catalogue(path).published,
        values={c: ragged(table.column(f"code.{c}")) for c in several},
    )


def items_at_end(layout: SnapshotColumns) -> ItemSnapshot:
    """Returns the catalogue at the end of the data."""
    catalogue = read_catalogue(layout)
    stats = np.repeat(layout.cold_start(WINDOWS_MS), len(catalogue.ids), 0)
    state = read_states(layout.prepared, layout.name, "items")
    assert state is not None
    stats[state.column("item").to_numpy()] = matrix(state.column("numeric"))[:, : stats.shape[1]]
    parts = [layout.scatter("item", WINDOWS_MS, stats)]
    parts += [category_columns(layout, c, code) for c, code in catalogue.codes.items()]
    parts += [value_columns(layout, c, own) for c, own in catalogue.values.items()]
    parts.append(layout.item_ages(catalogue.published, layout.end))
    return catalogue.snapshot(layout, overlay(*parts))


def category_columns(layout: SnapshotColumns, column: str, code: Ints) -> Float32s:
    """Returns f32[n, F]: statistics of each item's category at the end; NaN without one."""
    stats = statistics_at_end(layout, f"category.{column}", int(code.max(initial=-1)) + 2)
    stats[-1] = np.nan
    return layout.scatter(f"category.{column}", NO_WINDOWS, stats[code])


def value_columns(layout: SnapshotColumns, column: str, values: Ragged) -> Float32s:
    """Returns f32[n, F]: pooled statistics of each item's values at the end; NaN without one."""
    stats = statistics_at_end(layout, f"values.{column}", values.size)
    of_items = pooled(stats[values.codes], values.offsets, layout.timed)
    return layout.scatter(f"values.{column}", NO_WINDOWS, of_items)


def statistics_at_end(layout: SnapshotColumns, key: str, num: int) -> Float32s:
    """Returns f32[num, f]: statistics of a column's values by their numbers, at the end."""
    stats = np.repeat(layout.cold_start(NO_WINDOWS), num, 0)
    state = read_states(layout.prepared, layout.name, key)
    if state is not None:
        values = matrix(state.column("numeric"))[:, : stats.shape[1]]
        stats[state.column("category").to_numpy()] = values
    return stats


def stored_users(prepared: Prepared, space: str) -> NDArray[np.uint64]:
    """Returns u64[U]: sorted hashes of an id space's training users; the i-th has number i + 1."""
    return numbered_users(prepared, space)[0]


def numbered_users(prepared: Prepared, space: str) -> tuple[NDArray[np.uint64], Ints]:
    """Returns u64[U], sorted hashes of the users with rows whom training knows, and their numbers.

    Those of a scenario that joined a model are some of the model's, with the model's numbers.
    """
    hashes, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for name, facts in prepared.scenarios.items():
        if facts.user_space == space:
            state = read_states(prepared, name, "users")
            assert state is not None
            number = state.column("user").to_numpy()
            hashes.append(hash_strings(state.column("user_id"))[number > 0])
            numbers.append(number[number > 0].astype(np.int64))
    found, first = np.unique(np.concatenate(hashes), return_index=True)
    return found, np.concatenate(numbers)[first]


def user_parts(prepared: Prepared, name: str) -> list[str]:
    """Returns the file names of the partitions of users."""
    folder = storage.join(prepared.folder, name, "state", "users")
    return [storage.name_of(path) for path in storage.parquet_files(folder)]


def users_at_end(layout: SnapshotColumns, part: str) -> UserSnapshot:
    """Returns the users of a partition at the end of the data."""
    kinds = ["users", *layout.pair_keys.values()]
    states = {kind: read_states(layout.prepared, layout.name, kind, part) for kind in kinds}
    return users_of_states(layout, states, layout.end)


def users_of_states(
    layout: SnapshotColumns, states: Mapping[str, pa.Table | None], moment: int
) -> UserSnapshot:
    """Returns users from their states by kind, as prepare makes them, of a moment in ms."""
    state = states["users"]
    assert state is not None
    ids = np.asarray(state.column("user_id").to_pylist(), object)
    end = np.full(len(ids), moment)
    numeric = layout.scatter("user", WINDOWS_MS, matrix(state.column("numeric")))
    person = hash_strings(state.column("user_id")).view(np.int64)
    outcomes = None
    if layout.facts.history_outcomes:
        outcomes = matrix(state.column(OUTCOME)).astype(np.int64)
    places = dict(zip(ids.tolist(), range(len(ids)), strict=True))
    return UserSnapshot(
        ids=ids,
        person=person,
        moment=end,
        user=state.column("user").to_numpy().astype(np.int64),
        history=matrix(state.column("history")).astype(np.int64),
        ages=matrix(state.column("history_age")).astype(np.int64),
        numeric=overlay(numeric, layout.calendar(end)),
        categories={
            c: category_statistics_of(layout, key, states[key], places)
            for c, key in layout.pair_keys.items()
        },
        outcomes=outcomes,
    )


def category_statistics_of(
    layout: SnapshotColumns, key: str, state: pa.Table | None, places: Mapping[str, int]
) -> UserCategoryStatistics:
    """Returns users' statistics by a column's values, from their state; `places` by user id."""
    if state is None:
        return no_category_statistics(layout)
    return UserCategoryStatistics(
        np.array([places[user] for user in state.column("user_id").to_pylist()], np.int64),
        state.column("category").to_numpy().astype(np.int64),
        layout.scatter(key, NO_WINDOWS, matrix(state.column("numeric"))),
    )


def seen_pairs(prepared: Prepared, name: str, part: str | None = None) -> tuple[Ints, Ints]:
    """Returns persons and items of the log's rows, without negatives, of all or one partition."""
    wanted = part and "/" + part.removesuffix(".parquet")
    persons, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for path in (p for s in SPLITS for p in prepared.shard_paths(name, s)):
        if wanted and wanted not in path:
            continue
        fs, inner = storage.filesystem(path)
        table = pq.read_table(inner, filesystem=fs, columns=["row", "person", "item"])
        table = table.filter(pc.less(table.column("row"), FIRST_NEGATIVE))  # pyright: ignore[reportAttributeAccessIssue]
        persons.append(table.column("person").to_numpy())
        items.append(table.column("item").to_numpy().astype(np.int64))
    return np.concatenate(persons), np.concatenate(items)
