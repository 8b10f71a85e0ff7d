"""The shuffles of preparing: rows partitioned by user, by category and by item, in Ray tasks.

One task holds a partition at a time, and partitions have a largest size (`partitions.py`). The rows
of an item or value with more rows than that lie in several: tasks first add up each part, then
others answer from the sums of all parts (`hot_keys.py`), of which they have 16 at hand, in shared
memory, at a few dozen bytes a row.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.catalogue import Ragged
from mtrec_ray.data.preparing import features, inputs, partitions, samples, shuffle, values
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.hot_keys import HotKey, PartRows, PartTotals
from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.data.preparing.partitions import KeyPartitions, UserPartitions
from mtrec_ray.data.preparing.scan import LogSource, Scan, Sources, read_canonical
from mtrec_ray.project.split import SPLITS

ROWS_PER_SHARD = 32_768


Specs = dict[str, FeatureSpec]


# Of a partition of users: `scenario`, `duplicates`, `largest_user` and `largest_rows`, and its
# `shards` (`split`, `path`, `rows`).
Written = dict[str, Any]


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
        if not groups or rows + fragment.num_rows > partitions.ROWS_PER_PARTITION:
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
    by_user = UserPartitions.of(fragments)

    def write(name: str, index: int, table: pa.Table) -> str:
        path = storage.join(folder, name, f"part-{index:05}.parquet")
        storage.write_table(path, change(name, ray.get(sources)[name], table))
        return path

    written = {}
    for name, count in by_user.counts.items():
        tasks = read_tasks([f for f in fragments if f.scenario == name], sources)
        pieces = shuffle.begin(tasks, partial(by_user.numbers, name), count)
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
class ReadParts:
    """Reads rows of a hot key's parts from shared memory, without a copy."""

    handles: list["ray.ObjectRef[PartRows]"]

    def __call__(self, part: int) -> PartRows:
        """Returns the rows of a part by its number."""
        return ray.get(self.handles[part])


def hot_key(handles: list["ray.ObjectRef[PartRows]"], *totals: PartTotals) -> HotKey:
    """Returns a hot key from the handles and the totals of all of its parts."""
    return HotKey.of(totals, ReadParts(handles))


@dataclass(frozen=True)
class FeaturePasses:
    """The passes that add statistics and histories, and write states and shards.

    Attributes:
        sources, specs: handles of what reading and partition functions need, by scenario.
        by_key: handles of the partitions of each scenario by each category, then by item, and then
            by each column with several values.
        folder: where states and shards are written.
    """

    sources: "ray.ObjectRef[Sources]"
    specs: "ray.ObjectRef[Specs]"
    by_key: dict[str, list["ray.ObjectRef[KeyPartitions]"]]
    by_user: UserPartitions
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
        for name in self.by_user.counts:
            own = [f for f in fragments if f.scenario == name]
            written += self.scenario(name, own, categories[name])
        return [found for found in ray.get(written) if found]

    def scenario(
        self, name: str, fragments: list[Fragment], categories: list[str]
    ) -> list["ray.ObjectRef[Written]"]:
        """Pass the rows of a scenario by its categories, one after another, by item and by user."""
        reads = read_tasks(fragments, self.sources)
        of_values = self.values(name, reads, len(categories) + 1)
        tasks = [partial(self.read, name, task) for task in reads]
        layouts = [self.layout(name, number) for number in range(len(categories) + 1)]
        to = [partial(self.key_numbers, name, number) for number in range(len(layouts))]
        to.append(partial(self.by_user.numbers, name))
        counts = [*(layout.count for layout in layouts), self.by_user.counts[name]]
        pieces = shuffle.begin(tasks, to[0], counts[0])
        for i, (column, layout) in enumerate(zip([*categories, None], layouts, strict=True)):
            known = self.hot_keys(name, pieces, layout)
            work = partial(self.key_statistics, name, i, column)
            pieces = shuffle.go_on(pieces, work, to[i + 1], counts[i + 1], known)
        return shuffle.end(pieces, partial(self.users, name), *of_values)

    def values(
        self, name: str, reads: list[Callable[[], Iterator[pa.Table]]], first: int
    ) -> list[shuffle.Pieces]:
        """Pass narrow rows by each column with several values; returns those for users.

        `first` is the number of the first column's partitions.
        """
        found: list[shuffle.Pieces] = []
        for number, column in enumerate(self.spec(name).values, first):
            layout = self.layout(name, number)
            tasks = [partial(self.read_values, name, column, task) for task in reads]
            to = partial(self.key_numbers, name, number)
            pieces = shuffle.begin(tasks, to, layout.count)
            known = self.hot_keys(name, pieces, layout)
            work = partial(self.value_statistics, name, number, column)
            to, count = partial(self.by_user.numbers, name), self.by_user.counts[name]
            found.append(shuffle.go_on(pieces, work, to, count, known))
        return found

    def layout(self, name: str, number: int) -> KeyPartitions:
        """Returns the partitions by the n-th category, after them by item, and then by values."""
        return ray.get(self.by_key[name][number])

    def key_numbers(self, name: str, number: int, table: pa.Table) -> Ints:
        """Returns i64[N], the partition of each row, as `layout` counts them."""
        return self.layout(name, number).numbers(table)

    def read(self, name: str, task: Callable[[], Iterator[pa.Table]]) -> Iterator[pa.Table]:
        """Yields a scenario's canonical rows, without columns that only others fill."""
        scenario = self.spec(name).scenario
        return (features.without_padding(table, scenario) for table in task())

    def read_values(
        self, name: str, column: str, task: Callable[[], Iterator[pa.Table]]
    ) -> Iterator[pa.Table]:
        """Yields a narrow row for each value of a scenario's canonical rows."""
        of_items = self.spec(name).values[column]
        return (values.exploded(table, of_items) for table in self.read(name, task))

    def hot_keys(
        self, name: str, pieces: shuffle.Pieces, layout: KeyPartitions
    ) -> dict[int, "ray.ObjectRef[HotKey]"]:
        """Returns a handle of the key of each partition that holds a part of a hot one."""
        known: dict[int, ray.ObjectRef[HotKey]] = {}
        for parts in layout.hot_keys():
            totals, rows = shuffle.look_at(pieces, partial(self.part, name), parts)
            known |= dict.fromkeys(parts, ray.remote(hot_key).remote(rows, *totals))
        return known

    def part(self, name: str, table: pa.Table) -> tuple[PartTotals, PartRows]:
        """Returns what other parts of a hot key need of one."""
        return features.hot_key_part(table, self.spec(name))

    def key_statistics(
        self,
        name: str,
        number: int,
        column: str | None,
        index: int,
        table: pa.Table,
        hot: HotKey | None,
    ) -> pa.Table:
        """Add the statistics of a categorical column's values, or of items (no column)."""
        spec = self.spec(name)
        if column is None:
            kind, (table, state) = "items", features.item_features(table, spec, hot)
        else:
            kind = f"category.{column}"
            table, state = features.category_features(table, spec, column, hot)
        if self.layout(name, number).is_first(index):  # its other parts have the same state
            self.write_state(state, name, kind, index)
        return table

    def value_statistics(
        self,
        name: str,
        number: int,
        column: str,
        index: int,
        table: pa.Table,
        hot: HotKey | None,
    ) -> pa.Table:
        """Returns the statistics of narrow rows' values, and writes the values' states."""
        out, state = values.value_features(table, self.spec(name), hot)
        if self.layout(name, number).is_first(index):
            self.write_state(state, name, f"values.{column}", index)
        return out

    def users(self, name: str, index: int, table: pa.Table, *of_values: pa.Table) -> Written:
        """Finish the rows, and write them with the users' states."""
        spec = self.spec(name)
        for column, own in zip(spec.values, of_values, strict=True):
            table = values.add_pooled(table, own, spec, column)
        finished, states = features.user_features(table, spec)
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
    fragments: list[Fragment],
    sources: "ray.ObjectRef[Sources]",
    scans: Mapping[str, Scan],
    specs: Specs,
    folder: str,
) -> list[Written]:
    """Write samples and end states; returns what was written of each partition of users."""
    by_key = {
        name: [ray.put(layout) for layout in key_partitions(spec, scans[name])]
        for name, spec in specs.items()
    }
    num_values = {name: most_values(spec, scans[name]) for name, spec in specs.items()}
    by_user = UserPartitions.of(fragments, num_values)
    passes = FeaturePasses(sources, ray.put(specs), by_key, by_user, folder)
    return passes.run(fragments, {name: list(spec.categories) for name, spec in specs.items()})


def key_partitions(spec: FeatureSpec, scan: Scan) -> list[KeyPartitions]:
    """Returns the partitions by each category, then by item, then by columns of several values.

    Items without a value have no statistics of it: each is a key of its own there.
    """
    item = np.arange(len(spec.published))
    keys = [
        np.where(code >= 0, code, code.max(initial=0) + 1 + item)
        for code in spec.categories.values()
    ]
    by_item = [KeyPartitions.of(key, scan.all_item_rows, scan.sample) for key in [*keys, item]]
    return by_item + [value_partitions(own, scan) for own in spec.values.values()]


def value_partitions(of_items: Ragged, scan: Scan) -> KeyPartitions:
    """Returns the partitions of narrow rows by their value."""
    rows = np.bincount(of_items.codes, scan.all_item_rows[of_items.rows], of_items.size)
    own = of_items.take(scan.sample.column("item").to_numpy())
    sample = scan.sample.take(pa.array(own.rows)).append_column(values.VALUE, pa.array(own.codes))
    return KeyPartitions.of(np.arange(of_items.size), rows, sample, values.VALUE)


def most_values(spec: FeatureSpec, scan: Scan) -> int:
    """Returns how many values all rows have, of the column with the most; 0 without any."""
    lengths = [np.diff(own.offsets) for own in spec.values.values()]
    return max((int(scan.all_item_rows @ own) for own in lengths), default=0)


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
