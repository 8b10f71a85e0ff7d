"""The shuffles of preparing: rows partitioned by user, by category and by item, in Ray tasks.

A partition holds all rows of some keys, about `ROWS_PER_PARTITION` of them, and one task holds a
partition at a time. A key is never split: the rows of the most frequent item, user, or value of a
category that has statistics must fit into a task's memory. Values of categories with too many rows
are refused (`problems.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.preparing import features, inputs, samples, shuffle
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.data.preparing.scan import LogSource, Sources, read_canonical
from mtrec_ray.project.scenario import SPLITS

# What a task holds at a time. It is a number of rows, not a share of the machine's cores: the order
# of prepared rows follows from the partitions.
ROWS_PER_PARTITION = 250_000


ROWS_PER_SHARD = 32_768


Specs = dict[str, FeatureSpec]


# What rows are partitioned by: the scenario's name and its rows to a number for each row.
PartitionKey = Callable[[str, pa.Table], np.ndarray]


# Of a partition of users: `scenario`, `duplicates`, `largest_user` and `largest_rows`, and its
# `shards` (`split`, `path`, `rows`).
Written = dict[str, Any]


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
        counts: how many partitions each scenario has.
    """

    counts: dict[str, int]

    @classmethod
    def of(cls, fragments: list[Fragment]) -> "Partitions":
        """Returns as many partitions as the rows of each scenario need."""
        rows: dict[str, int] = {}
        for fragment in fragments:
            rows[fragment.scenario] = rows.get(fragment.scenario, 0) + fragment.num_rows
        return cls({name: max(-(-n // ROWS_PER_PARTITION), 1) for name, n in rows.items()})

    def numbers(self, name: str, key: PartitionKey, table: pa.Table) -> Ints:
        """Returns i64[N]: the partition of each row."""
        hashes = key(name, table).astype(np.int64).view(np.uint64)
        return (hashes % np.uint64(self.counts[name])).astype(np.int64)


def read_fragments(
    fragments: list[Fragment], sources: "ray.ObjectRef[Sources]"
) -> Iterator[pa.Table]:
    """Yields canonical rows of row groups."""
    known = ray.get(sources)
    for fragment in fragments:
        yield read_canonical(fragment, known[fragment.scenario])[0]


def read_tasks(
    fragments: list[Fragment], sources: "ray.ObjectRef[Sources]"
) -> list[Callable[[], Iterator[pa.Table]]]:
    """Returns what each task reads: successive row groups, together as large as a partition."""
    groups: list[list[Fragment]] = []
    rows = 0
    for fragment in fragments:
        if not groups or rows + fragment.num_rows > ROWS_PER_PARTITION:
            groups.append([])
            rows = 0
        groups[-1].append(fragment)
        rows += fragment.num_rows
    return [partial(read_fragments, group, sources) for group in groups]


def rewrite_log(
    fragments: list[Fragment],
    sources: "ray.ObjectRef[Sources]",
    change: Callable[[str, LogSource, pa.Table], pa.Table],
    folder: str,
) -> list[Fragment]:
    """Write canonical rows, changed with all rows of a user at hand; returns their row groups."""
    partitions = Partitions.of(fragments)

    def write(name: str, index: int, table: pa.Table) -> str:
        path = storage.join(folder, name, f"part-{index:05}.parquet")
        storage.write_table(path, change(name, ray.get(sources)[name], table))
        return path

    written = {}
    for name, count in partitions.counts.items():
        tasks = read_tasks([f for f in fragments if f.scenario == name], sources)
        pieces = shuffle.begin(tasks, partial(partitions.numbers, name, by_user), count)
        written[name] = shuffle.end(pieces, partial(write, name))
    return [
        fragment
        for name, paths in written.items()
        for path in ray.get(paths)
        if path
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
        folder: where states and shards are written.
    """

    sources: "ray.ObjectRef[Sources]"
    specs: "ray.ObjectRef[Specs]"
    partitions: Partitions
    folder: str

    def spec(self, name: str) -> FeatureSpec:
        """Returns what the partition functions need of a scenario."""
        return ray.get(self.specs)[name]

    def run(self, fragments: list[Fragment], categories: dict[str, list[str]]) -> list[Written]:
        """Returns what was written of each partition of users.

        `categories` are the columns of each scenario whose values have statistics. All tasks are
        handed to Ray at once: none waits for those of another scenario.
        """
        written = []
        for name in self.partitions.counts:
            own = [f for f in fragments if f.scenario == name]
            written += self.scenario(name, own, categories[name])
        return [found for found in ray.get(written) if found]

    def scenario(
        self, name: str, fragments: list[Fragment], categories: list[str]
    ) -> list["ray.ObjectRef[Written]"]:
        """Pass the rows of a scenario by its categories, one after another, by item and by user."""
        count = self.partitions.counts[name]
        to = lambda key: partial(self.partitions.numbers, name, key)  # noqa: E731
        tasks = [partial(self.read, name, task) for task in read_tasks(fragments, self.sources)]
        keys = [*(self.category_key(i) for i in range(len(categories))), by_item, by_user]
        pieces = shuffle.begin(tasks, to(keys[0]), count)
        for column, following in zip(categories, keys[1:], strict=False):
            work = partial(self.category, name, column)
            pieces = shuffle.go_on(pieces, work, to(following), count)
        pieces = shuffle.go_on(pieces, partial(self.items, name), to(by_user), count)
        return shuffle.end(pieces, partial(self.users, name))

    def read(self, name: str, task: Callable[[], Iterator[pa.Table]]) -> Iterator[pa.Table]:
        """Yields a scenario's canonical rows, without columns that only others fill."""
        scenario = self.spec(name).scenario
        return (features.without_padding(table, scenario) for table in task())

    def category_key(self, number: int) -> PartitionKey:
        """Returns a key: the value of the n-th categorical column.

        Items without a value have no statistics of it: they lie where their own key says, not all
        in one partition.
        """

        def key(name: str, table: pa.Table) -> np.ndarray:
            item = table.column("item").to_numpy()
            code = list(self.spec(name).categories.values())[number][item]
            return np.where(code >= 0, code, item)

        return key

    def category(self, name: str, column: str, index: int, table: pa.Table) -> pa.Table:
        """Add the statistics of a categorical column's values."""
        table, state = features.category_features(table, self.spec(name), column)
        self.write_state(state, name, f"category.{column}", index)
        return table

    def items(self, name: str, index: int, table: pa.Table) -> pa.Table:
        """Add the statistics of items."""
        table, state = features.item_features(table, self.spec(name))
        self.write_state(state, name, "items", index)
        return table

    def users(self, name: str, index: int, table: pa.Table) -> Written:
        """Finish the rows, and write them with the users' states."""
        finished, states = features.user_features(table, self.spec(name))
        for kind, state in states.items():
            self.write_state(state, name, kind, index)
        shards = write_samples(finished, self.folder, name, index)
        facts = {"scenario": name, "duplicates": count_duplicates(table), **largest_user(table)}
        return facts | {"shards": shards}

    def write_state(self, state: pa.Table, name: str, kind: str, index: int) -> None:
        """Write the end states of a partition's keys."""
        path = storage.join(self.folder, name, "state", kind, f"part-{index:05}.parquet")
        storage.write_table(path, state)


def build_shards(
    fragments: list[Fragment], sources: "ray.ObjectRef[Sources]", specs: Specs, folder: str
) -> list[Written]:
    """Write samples and end states; returns what was written of each partition of users."""
    passes = FeaturePasses(sources, ray.put(specs), Partitions.of(fragments), folder)
    return passes.run(fragments, {name: list(spec.categories) for name, spec in specs.items()})


def count_duplicates(table: pa.Table) -> int:
    """Returns the number of rows that repeat the user, item and time of another."""
    keys = ["user", "item", "time"]
    logged = table.select(keys).filter(pa.array(~table.column("sampled").to_numpy()))
    groups = logged.group_by(keys).aggregate([])
    return logged.num_rows - groups.num_rows


def largest_user(table: pa.Table) -> dict[str, Any]:
    """Returns the user with the most logged rows of a partition, and how many they are."""
    logged = table.filter(pa.array(~table.column("sampled").to_numpy()))
    rows = logged.group_by("user_id").aggregate([([], "count_all")])
    order = [("count_all", "descending"), ("user_id", "ascending")]
    first = rows.sort_by(order).slice(0, 1).to_pylist()[0]
    return {"largest_user": first["user_id"], "largest_rows": first["count_all"]}


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
