"""The shuffles of preparing: rows partitioned by user, by category and by item, with Ray Data.

A partition holds all rows of some keys, about `ROWS_PER_PARTITION` of them, and one task holds a
partition at a time. A key is never split: the rows of the most frequent item, user, or value of a
category that has statistics must fit into a task's memory. Values of categories with too many rows
are refused (`problems.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data

from mtrec_ray.data import storage
from mtrec_ray.data.preparing import features, inputs, samples
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.data.preparing.scan import LogSource, Sources, read_canonical
from mtrec_ray.project.scenario import SPLITS

ROWS_PER_PARTITION = 500_000


ROWS_PER_SHARD = 32_768


SCENARIO_STRIDE = 2**20


READ_TASKS = 256


Specs = dict[str, FeatureSpec]


# What rows are partitioned by: the scenario's name and its rows to a number for each row.
PartitionKey = Callable[[str, pa.Table], np.ndarray]


# What is done with all rows of a partition: scenario's name, its number, its rows.
PartitionWork = Callable[[str, int, pa.Table], pa.Table]


def by_user(_: str, table: pa.Table) -> np.ndarray:
    """Returns the user as key."""
    return table.column("user").to_numpy()


def by_item(_: str, table: pa.Table) -> np.ndarray:
    """Returns the item as key."""
    return table.column("item").to_numpy()


@dataclass(frozen=True)
class Partitions:
    """How rows are assigned to partitions: a hash of their key, by scenario.

    Attributes:
        counts: how many partitions each scenario has; the order of the scenarios is part of it.
    """

    counts: dict[str, int]

    @classmethod
    def of(cls, fragments: list[Fragment]) -> "Partitions":
        """Returns as many partitions as the rows of each scenario need."""
        rows: dict[str, int] = {}
        for fragment in fragments:
            rows[fragment.scenario] = rows.get(fragment.scenario, 0) + fragment.num_rows
        return cls({name: max(-(-n // ROWS_PER_PARTITION), 1) for name, n in rows.items()})

    def assign(self, name: str, table: pa.Table, key: PartitionKey) -> pa.Table:
        """Returns the rows with their partition by a key in the column `part`."""
        hashes = key(name, table).astype(np.int64).view(np.uint64)
        number = (hashes % np.uint64(self.counts[name])).astype(np.int64)
        part = pa.array(list(self.counts).index(name) * SCENARIO_STRIDE + number)
        if "part" in table.column_names:
            return table.set_column(table.column_names.index("part"), "part", part)
        return table.append_column("part", part)

    def place(self, table: pa.Table) -> tuple[str, int]:
        """Returns the scenario's name and the number of the partition that some rows are of."""
        code, number = divmod(int(table.column("part")[0].as_py()), SCENARIO_STRIDE)
        return list(self.counts)[code], number

    def each(self, data: ray.data.Dataset, work: PartitionWork) -> ray.data.Dataset:
        """Shuffle the rows to their partitions and do the work on each."""

        def do(table: pa.Table) -> pa.Table:
            return work(*self.place(table), table)

        groups = data.groupby("part", num_partitions=sum(self.counts.values()))
        return groups.map_groups(do, batch_format="pyarrow")


def read_partitioned(
    fragments: list[Fragment],
    sources: "ray.ObjectRef[Sources]",
    partitions: Partitions,
    key: PartitionKey,
    width: int = 1,
) -> ray.data.Dataset:
    """Returns canonical rows with the partition of their key and room for `width` statistics."""

    def read(block: pa.Table) -> Iterator[pa.Table]:
        known = ray.get(sources)
        for row in block.to_pylist():
            fragment = Fragment(**row)
            table, _ = read_canonical(fragment, known[fragment.scenario])
            table = features.without_statistics(table, width)
            yield partitions.assign(fragment.scenario, table, key)

    rows = [f.__dict__ for f in fragments]
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), READ_TASKS))
    return data.map_batches(read, batch_size=1, batch_format="pyarrow")


def rewrite_log(
    fragments: list[Fragment],
    sources: "ray.ObjectRef[Sources]",
    change: Callable[[str, LogSource, pa.Table], pa.Table],
    folder: str,
) -> list[Fragment]:
    """Write canonical rows, changed with all rows of a user at hand; returns their row groups."""
    partitions = Partitions.of(fragments)

    def write(name: str, index: int, table: pa.Table) -> pa.Table:
        rows = table.drop_columns(["part", "statistics"])
        path = storage.join(folder, name, f"part-{index:05}.parquet")
        storage.write_table(path, change(name, ray.get(sources)[name], rows))
        return pa.table({"scenario": [name], "path": [path]})

    rows = read_partitioned(fragments, sources, partitions, by_user)
    written = partitions.each(rows, write).take_all()
    return [
        fragment
        for name in partitions.counts
        for path in sorted(row["path"] for row in written if row["scenario"] == name)
        for fragment in inputs.fragments(name, path, canonical=True)
    ]


def add_fractions(
    fragments: list[Fragment], sources: "ray.ObjectRef[Sources]", folder: str, seed: int
) -> list[Fragment]:
    """Returns the row groups of the log with its split by fractions of each user's rows."""

    def change(_: str, source: LogSource, table: pa.Table) -> pa.Table:
        return samples.split_by_fractions(table, source.scenario, seed)

    return rewrite_log(fragments, sources, change, folder)


def rewrite_with_negatives(
    fragments: list[Fragment],
    sources: "ray.ObjectRef[Sources]",
    train_rows: dict[str, np.ndarray],
    folder: str,
    seed: int,
) -> list[Fragment]:
    """Returns row groups of the log with its sampled negatives; `train_rows` i64[n] by scenario."""
    shared = ray.put(train_rows)

    def change(name: str, source: LogSource, table: pa.Table) -> pa.Table:
        rows = cast("dict[str, np.ndarray]", ray.get(shared))[name]
        weights = samples.negative_weights(source.scenario, rows)
        return samples.add_negatives(table, source.scenario, weights, source.published, seed)

    return rewrite_log(fragments, sources, change, folder)


@dataclass(frozen=True)
class FeaturePasses:
    """The passes that add statistics and histories, and write states and shards.

    Attributes:
        sources, specs: handles of what reading and partition functions need, by scenario.
        width: statistics that a row carries from pass to pass.
        folder: where states and shards are written.
    """

    sources: "ray.ObjectRef[Sources]"
    specs: "ray.ObjectRef[Specs]"
    partitions: Partitions
    width: int
    folder: str

    def spec(self, name: str) -> FeatureSpec:
        """Returns what the partition functions need of a scenario."""
        return ray.get(self.specs)[name]

    def run(self, fragments: list[Fragment], num_categories: dict[str, int]) -> ray.data.Dataset:
        """Returns a row for each partition of users: the shards that `write_samples` wrote."""
        plain = [f for f in fragments if not num_categories[f.scenario]]
        others = [f for f in fragments if num_categories[f.scenario]]
        data = [self.read(plain, by_item)] if plain else []
        if others:
            data.append(self.by_categories(others, num_categories))
        joined = data[0].union(*data[1:]) if data[1:] else data[0]
        with_items = self.partitions.each(joined, self.items)
        return self.partitions.each(with_items, self.users)

    def read(self, fragments: list[Fragment], key: PartitionKey) -> ray.data.Dataset:
        """Returns the rows of some row groups by their first key."""
        return read_partitioned(fragments, self.sources, self.partitions, key, self.width)

    def by_categories(
        self, fragments: list[Fragment], num_categories: dict[str, int]
    ) -> ray.data.Dataset:
        """Returns the rows with the statistics of their item's categories, partitioned by item.

        One shuffle for each column; scenarios with fewer columns than others pass through the last
        ones.
        """
        data = self.read(fragments, self.category_key(0))
        for number in range(max(num_categories[f.scenario] for f in fragments)):
            data = self.partitions.each(data, self.category_work(number))
        return data

    def category_key(self, number: int) -> PartitionKey:
        """Returns a key: the value of the n-th categorical column, or the item after the last.

        Items without a value have no statistics of it: they lie where their own key says, not all
        in one partition.
        """

        def key(name: str, table: pa.Table) -> np.ndarray:
            codes = list(self.spec(name).categories.values())
            item = table.column("item").to_numpy()
            if number >= len(codes):
                return item
            code = codes[number][item]
            return np.where(code >= 0, code, item)

        return key

    def category_work(self, number: int) -> PartitionWork:
        """Add the statistics of a scenario's n-th categorical column, if it has so many."""

        def work(name: str, index: int, table: pa.Table) -> pa.Table:
            spec = self.spec(name)
            if number < len(spec.categories):
                column = list(spec.categories)[number]
                table, state = features.category_features(table, spec, column)
                self.write_state(state, name, f"category.{column}", index)
            return self.partitions.assign(name, table, self.category_key(number + 1))

        return work

    def items(self, name: str, index: int, table: pa.Table) -> pa.Table:
        """Add the statistics of items."""
        table, state = features.item_features(table, self.spec(name))
        self.write_state(state, name, "items", index)
        return self.partitions.assign(name, table, by_user)

    def users(self, name: str, index: int, table: pa.Table) -> pa.Table:
        """Finish the rows, and write them with the users' states."""
        finished, states = features.user_features(table, self.spec(name))
        for kind, state in states.items():
            self.write_state(state, name, kind, index)
        shards = write_samples(finished, self.folder, name, index)
        duplicates = count_duplicates(table)
        return pa.table({"scenario": [name], "duplicates": [duplicates], "shards": [shards]})

    def write_state(self, state: pa.Table, name: str, kind: str, index: int) -> None:
        """Write the end states of a partition's keys."""
        path = storage.join(self.folder, name, "state", kind, f"part-{index:05}.parquet")
        storage.write_table(path, state)


def build_shards(
    fragments: list[Fragment], sources: "ray.ObjectRef[Sources]", specs: Specs, folder: str
) -> list[dict[str, Any]]:
    """Write samples and end states.

    Returns:
        For each partition of users: `scenario`, `duplicates`, and its `shards` (`split`, `path`,
        `rows`).
    """
    width = max(spec.columns.num_of_items for spec in specs.values())
    partitions = Partitions.of(fragments)
    passes = FeaturePasses(sources, ray.put(specs), partitions, width, folder)
    return passes.run(fragments, {n: len(s.categories) for n, s in specs.items()}).take_all()


def count_duplicates(table: pa.Table) -> int:
    """Returns the number of rows that repeat the user, item and time of another."""
    keys = ["user", "item", "time"]
    logged = table.select(keys).filter(pa.array(~table.column("sampled").to_numpy()))
    groups = logged.group_by(keys).aggregate([])
    return logged.num_rows - groups.num_rows


def write_samples(finished: pa.Table, folder: str, name: str, index: int) -> list[dict[str, Any]]:
    """Write a partition's samples as shards; returns split, path and rows of each."""
    split = finished.column("split").to_numpy()
    written = []
    for code, word in enumerate(SPLITS):
        rows = finished.filter(pa.array(split == code)).drop_columns("split")
        for number, start in enumerate(range(0, rows.num_rows, ROWS_PER_SHARD)):
            shard = rows.slice(start, ROWS_PER_SHARD)
            path = storage.join(name, word, f"part-{index:05}-{number:04}.parquet")
            storage.write_table(storage.join(folder, path), shard)
            written.append({"split": word, "path": path, "rows": shard.num_rows})
    return written
