"""The shuffles of preparing: rows partitioned by user, by category and by item, with Ray Data."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data

from mtrec_ray.data import storage
from mtrec_ray.data.preparing import features, inputs, samples
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.data.preparing.scan import LogSource, fragment_dataset, read_canonical
from mtrec_ray.project.scenario import SPLITS

ROWS_PER_PARTITION = 500_000


ROWS_PER_SHARD = 32_768


SCENARIO_STRIDE = 2**20


# What rows are partitioned by: the scenario's name and its rows to a number for each row.
PartitionKey = Callable[[str, pa.Table], np.ndarray]


def partitioned(
    fragments: list[Fragment],
    sources: ray.ObjectRef,
    key: PartitionKey,
    parts: dict[str, int],
    width: int = 1,
) -> ray.data.Dataset:
    """Canonical rows with a column `part` by a hash of their key, to carry `width` statistics."""

    def read(block: pa.Table) -> Iterator[pa.Table]:
        known = cast("dict[str, LogSource]", ray.get(sources))
        for row in block.to_pylist():
            fragment = Fragment(**row)
            table, _ = read_canonical(fragment, known[fragment.scenario])
            code = list(known).index(fragment.scenario)
            values = key(fragment.scenario, table)
            table = features.carry_nothing(table, width)
            yield _with_part(table, values, code, parts[fragment.scenario])

    return fragment_dataset(fragments).map_batches(read, batch_size=1, batch_format="pyarrow")


def by_column(column: str) -> PartitionKey:
    """The user or the item as key."""
    return lambda _, table: table.column(column).to_numpy()


def _with_part(table: pa.Table, values: np.ndarray, code: int, parts: int) -> pa.Table:
    value = values.astype(np.int64).view(np.uint64) % np.uint64(parts)
    column = pa.array(code * SCENARIO_STRIDE + value.astype(np.int64))
    if "part" in table.column_names:
        return table.set_column(table.column_names.index("part"), "part", column)
    return table.append_column("part", column)


def num_parts(rows: dict[str, int]) -> dict[str, int]:
    """Partitions of each scenario."""
    return {name: -(-n // ROWS_PER_PARTITION) for name, n in rows.items()}


def _grouped(
    data: ray.data.Dataset, work: Callable[[pa.Table], pa.Table], parts: dict[str, int]
) -> ray.data.Dataset:
    total = sum(parts.values())
    return data.groupby("part", num_partitions=min(total, 1024)).map_groups(
        work, batch_format="pyarrow"
    )


def _place(table: pa.Table, layouts: dict[str, Any]) -> tuple[str, int]:
    code, index = divmod(int(table.column("part")[0].as_py()), SCENARIO_STRIDE)
    return list(layouts)[code], index


def expand(
    fragments: list[Fragment],
    sources: ray.ObjectRef,
    weights: dict[str, np.ndarray],
    folder: str,
    seed: int,
) -> list[Fragment]:
    """Row groups of the expanded log (split by fractions, sampled negatives) in a work folder."""
    rows = {name: sum(f.num_rows for f in fragments if f.scenario == name) for name in weights}
    parts = {name: num_parts(rows).get(name, 1) for name in cast("dict", ray.get(sources))}

    def work(table: pa.Table) -> pa.Table:
        known = cast("dict[str, LogSource]", ray.get(sources))
        name, index = _place(table, known)
        table = table.drop_columns(["part", "carried"])
        source = known[name]
        table = samples.expand_users(table, source.scenario, weights[name], source.published, seed)
        path = storage.join(folder, name, f"part-{index:05}.parquet")
        storage.write_table(path, table)
        return pa.table({"scenario": [name], "path": [path]})

    found = _grouped(
        partitioned(fragments, sources, by_column("user"), parts), work, parts
    ).take_all()
    return [
        piece
        for name in weights
        for path in sorted(row["path"] for row in found if row["scenario"] == name)
        for piece in inputs.fragments(name, path)
    ]


def build_shards(
    fragments: list[Fragment], sources: ray.ObjectRef, layouts: dict[str, FeatureSpec], folder: str
) -> list[dict[str, Any]]:
    """Write samples and end states; one row for each file that was written."""
    rows = {name: sum(f.num_rows for f in fragments if f.scenario == name) for name in layouts}
    parts = num_parts(rows)
    width = max(len(features.carried_names(x.scenario)) for x in layouts.values())
    shared = ray.put(layouts)

    def by_item(table: pa.Table) -> pa.Table:
        known = cast("dict[str, FeatureSpec]", ray.get(shared))
        name, index = _place(table, known)
        out, state = features.item_features(table, known[name])
        write_state(state, folder, name, "items", index)
        values = out.column("user").to_numpy()
        return _with_part(out, values, list(known).index(name), parts[name])

    def by_user(table: pa.Table) -> pa.Table:
        known = cast("dict[str, FeatureSpec]", ray.get(shared))
        name, index = _place(table, known)
        finished, states = features.user_features(table, known[name])
        for kind, state in states.items():
            write_state(state, folder, name, kind, index)
        return write_samples(finished, folder, name, index, count_duplicates(table))

    plain = [f for f in fragments if not layouts[f.scenario].categories]
    counted = [f for f in fragments if layouts[f.scenario].categories]
    data = [partitioned(plain, sources, by_column("item"), parts, width)] if plain else []
    if counted:
        data.append(category_passes(counted, sources, shared, parts, width, folder))
    joined = data[0].union(*data[1:]) if data[1:] else data[0]
    return _grouped(_grouped(joined, by_item, parts), by_user, parts).take_all()


def category_passes(
    fragments: list[Fragment],
    sources: ray.ObjectRef,
    shared: ray.ObjectRef,
    parts: dict[str, int],
    width: int,
    folder: str,
) -> ray.data.Dataset:
    """Rows with the statistics of their item's categories, partitioned by item for the next pass.

    One shuffle for each categorical column that is counted; scenarios with fewer columns than
    others pass through the last ones.
    """
    layouts = cast("dict[str, FeatureSpec]", ray.get(shared))
    names = {f.scenario for f in fragments}
    passes = max(len(layouts[n].categories) for n in names)

    def key(number: int) -> PartitionKey:
        def values(name: str, table: pa.Table) -> np.ndarray:
            known = cast("dict[str, FeatureSpec]", ray.get(shared))[name].categories
            item = table.column("item").to_numpy()
            return list(known.values())[number][item] + 1 if number < len(known) else item

        return values

    def work(number: int) -> Callable[[pa.Table], pa.Table]:
        def by_category(table: pa.Table) -> pa.Table:
            known = cast("dict[str, FeatureSpec]", ray.get(shared))
            name, index = _place(table, known)
            layout = known[name]
            if number < len(layout.categories):
                column = list(layout.categories)[number]
                table, state = features.category_features(table, layout, column)
                write_state(state, folder, name, f"category.{column}", index)
            values = key(number + 1)(name, table)
            return _with_part(table, values, list(known).index(name), parts[name])

        return by_category

    mine = {n: p for n, p in parts.items() if n in names}
    data = partitioned(fragments, sources, key(0), parts, width)
    for number in range(passes):
        data = _grouped(data, work(number), mine)
    return data


def write_state(state: pa.Table, folder: str, name: str, kind: str, index: int) -> None:
    """Write the end state of a partition's keys."""
    path = storage.join(folder, name, "state", kind, f"part-{index:05}.parquet")
    storage.write_table(path, state)


def count_duplicates(table: pa.Table) -> int:
    """Rows that repeat the user, item and time of another."""
    real = table.filter(pa.array(~table.column("sampled").to_numpy()))
    groups = real.group_by(["user", "item", "time"]).aggregate([])
    return real.num_rows - groups.num_rows


def write_samples(
    finished: pa.Table, folder: str, name: str, index: int, duplicates: int
) -> pa.Table:
    """Write a partition's samples as shards; one row a file."""
    written: dict[str, list[Any]] = {
        k: [] for k in ("scenario", "split", "path", "rows", "duplicates")
    }
    split = finished.column("split").to_numpy()
    for code, word in enumerate(SPLITS):
        rows = finished.filter(pa.array(split == code)).drop_columns("split")
        for number, start in enumerate(range(0, rows.num_rows, ROWS_PER_SHARD)):
            shard = rows.slice(start, ROWS_PER_SHARD)
            path = storage.join(name, word, f"part-{index:05}-{number:04}.parquet")
            storage.write_table(storage.join(folder, path), shard)
            values = (name, word, path, shard.num_rows, duplicates if not written["path"] else 0)
            for key, value in zip(written, values, strict=True):
                written[key].append(value)
    return pa.table(written)
