"""One pass over the logs: counts, label sums, vocabularies and a sample of rows.

Row groups are read in Ray tasks; only these travel and are merged.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import MIN_ROWS, NO_TIME, ItemLookup, published_ms
from mtrec_ray.data.columns import LARGEST_MS, hash_ints, matrix
from mtrec_ray.data.preparing import inputs
from mtrec_ray.data.preparing.classes import ClassSums, add_sums, class_sums, with_gains
from mtrec_ray.data.preparing.event_values import (
    EventValues,
    column_name,
    counted_values,
    most_values,
)
from mtrec_ray.data.preparing.events import TEST, TRAIN, UNSPLIT, Findings, canonical
from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.data.shards import WEIGHT
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.split import SPLITS

MAX_TASKS = 256


# Values of a column that are counted at once: of more, those with the fewest rows are given up.
MAX_VALUES = 2_000_000


# Rows of a log that are sampled, about; of a shorter log all of them.
SAMPLED_ROWS = 2**19


SAMPLE_SEED = 2


SAMPLE_SCHEMA = pa.schema(
    {"row": pa.int64(), "item": pa.int32(), "time": pa.int64(), "user_id": pa.string()}
)


@dataclass(frozen=True)
class Values:
    """Values of a categorical column: sorted hashes u64[V], and the rows i64[V] of each."""

    hashes: np.ndarray
    rows: np.ndarray

    def add(self, other: "Values") -> "Values":
        """Returns the values of two parts; at most `MAX_VALUES` of them, the most frequent."""
        hashes, place = np.unique(np.concatenate([self.hashes, other.hashes]), return_inverse=True)
        counts = np.concatenate([self.rows, other.rows])
        rows = np.bincount(place, counts, len(hashes)).astype(np.int64)
        if len(hashes) <= MAX_VALUES:
            return Values(hashes, rows)
        kept = np.sort(np.argsort(-rows, kind="stable")[:MAX_VALUES])
        return Values(hashes[kept], rows[kept])


@dataclass
class Scan:
    """Counts and vocabularies of a scenario's log, merged over its row groups.

    Those of users, categories, labels and `item_rows` are of training rows; of all rows where the
    log has not been split yet. n items, T tasks.

    Attributes:
        findings: what was found, by name.
        split_rows: i64[4], rows of train, valid, test, and without a split yet.
        label_sums: f64[6, T], of the known labels: their number, the sum of their rows' weights,
            weighted sums of labels and of their squares, and the same two of log(1 + label).
        label_ranges: f64[2, T], the least and the greatest label.
        class_sums: of multiclass tasks, whose labels above are gains of classes.
        num_labels: i64[3, T], the known labels of train, valid and test.
        item_rows: i64[n].
        all_item_rows: i64[n], of all splits.
        users: sorted hashes.
        categories: of each categorical column of the log, its values' hashes and their rows.
        several: the same of each column with several values; `most_values`: the most of a row.
        last_ms: the latest time; NO_TIME without rows.
        train_ms: the latest time of train; NO_TIME without rows.
        test_ms: the earliest time of test; LARGEST_MS without rows.
        sample: `row`, `item`, `time` and `user_id` of one in `one_in` rows of all splits.
    """

    findings: Findings = field(default_factory=Findings)
    split_rows: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    label_sums: np.ndarray = field(default_factory=lambda: np.zeros((6, 1)))
    label_ranges: np.ndarray = field(default_factory=lambda: np.zeros((2, 1)))
    class_sums: ClassSums = field(default_factory=dict)
    num_labels: np.ndarray = field(default_factory=lambda: np.zeros((3, 1), np.int64))
    item_rows: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    all_item_rows: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    users: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    categories: list[Values] = field(default_factory=list)
    several: list[Values] = field(default_factory=list)
    most_values: list[int] = field(default_factory=list)
    last_ms: int = NO_TIME
    train_ms: int = NO_TIME
    test_ms: int = LARGEST_MS
    sample: pa.Table = field(default_factory=SAMPLE_SCHEMA.empty_table)
    one_in: int = 1

    @property
    def priors(self) -> np.ndarray:
        """f64[T]: mean of each task's known training labels, by the weights of their rows."""
        return self.label_moments(2)[0]

    def label_moments(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns means and standard deviations f64[T] of labels, whose sums begin at a row."""
        weight = np.where(self.label_sums[1] > 0, self.label_sums[1], 1)
        total, square = self.label_sums[first : first + 2]
        mean = total / weight
        return mean, np.sqrt(np.maximum(square / weight - mean**2, 1e-12))

    @property
    def vocabularies(self) -> list[np.ndarray]:
        """Sorted u64 hashes of the values of each categorical column that have enough rows."""
        return [values.hashes[values.rows >= MIN_ROWS] for values in self.categories]

    @property
    def several_vocabularies(self) -> tuple[EventValues, ...]:
        """The values of each column with several values that have enough rows."""
        found: list[EventValues] = []
        for values, width in zip(self.several, self.most_values, strict=True):
            enough = np.flatnonzero(values.rows >= MIN_ROWS)
            order = enough[np.lexsort([values.hashes[enough], -values.rows[enough]])]
            found.append(EventValues(values.hashes[order], width))
        return tuple(found)


@dataclass(frozen=True)
class LogSource:
    """What is needed to read a scenario's rows; lies in the object store."""

    scenario: Scenario
    lookup: ItemLookup
    width: int
    num_items: int
    published: np.ndarray


Sources = dict[str, LogSource]


def list_width(project: Project) -> int:
    """Returns the width of the list columns: the most tasks or event columns of any scenario."""
    return max(
        max(len(s.tasks), len(s.events.numeric), len(s.events.categorical), 1)
        for s in project.scenarios.values()
    )


def source_of(project: Project, name: str, items: pa.Table) -> LogSource:
    """Returns what is needed to read a scenario's rows."""
    scenario = project.scenarios[name]
    lookup = ItemLookup.of(items.column(scenario.items.id))
    published = published_ms(items, scenario.items, scenario.events.time_unit)
    return LogSource(scenario, lookup, list_width(project), items.num_rows, published)


def read_canonical(fragment: Fragment, source: LogSource) -> tuple[pa.Table, Findings]:
    """Returns canonical rows of a row group: of the user's log, or of an expanded one."""
    if fragment.canonical:
        return storage.read_row_group(fragment.file, fragment.row_group), Findings()
    table = inputs.read_log(fragment, source.scenario)
    return canonical(table, source.scenario, fragment.first_row, source.lookup, source.width)


def scan_rows(table: pa.Table, findings: Findings, source: LogSource, one_in: int = 1) -> Scan:
    """Returns the scan of some canonical rows, of which one in `one_in` is sampled."""
    split = table.column("split").to_numpy()
    train = split == (TRAIN if (split < UNSPLIT).any() else UNSPLIT)
    labels = matrix(table.column("labels"))[:, : len(source.scenario.tasks)]
    weighted = WEIGHT in table.column_names
    weights = table.column(WEIGHT).to_numpy() if weighted else np.ones(len(split), np.float32)
    numbers = with_gains(labels[train], source.scenario)
    sums, ranges = label_facts(numbers, weights[train])
    known = np.isfinite(labels)
    items, time = table.column("item").to_numpy(), table.column("time").to_numpy()
    several = [table.column(column_name(i)) for i in range(len(source.scenario.events.several))]
    hashes = matrix(table.column("event_categorical"))[train].view(np.uint64)
    return Scan(
        findings=findings,
        split_rows=np.bincount(split, minlength=4)[:4],
        label_sums=sums,
        label_ranges=ranges,
        class_sums=class_sums(labels[train], weights[train], source.scenario),
        num_labels=np.stack([known[split == code].sum(0) for code in range(len(SPLITS))]),
        item_rows=np.bincount(items[train], minlength=source.num_items),
        all_item_rows=np.bincount(items, minlength=source.num_items),
        users=np.unique(table.column("user").to_numpy()[train].view(np.uint64)),
        categories=[
            Values(*np.unique(hashes[:, i], return_counts=True))
            for i in range(len(source.scenario.events.categorical))
        ],
        several=[Values(*counted_values(column, train)) for column in several],
        most_values=[most_values(column) for column in several],
        last_ms=int(time.max(initial=NO_TIME)),
        train_ms=int(time[train].max(initial=NO_TIME)),
        test_ms=int(time[split == TEST].min(initial=LARGEST_MS)),
        sample=sampled(table, one_in),
        one_in=one_in,
    )


def sampled(table: pa.Table, one_in: int) -> pa.Table:
    """Returns one in `one_in` canonical rows, the same ones wherever they are read."""
    chosen = hash_ints(table.column("row").to_numpy(), SAMPLE_SEED) % np.uint64(one_in) == 0
    return table.select(SAMPLE_SCHEMA.names).filter(pa.array(chosen))


def label_facts(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns sums f64[6, T] and ranges f64[2, T] of labels f32[N, T], as a `Scan` has them."""
    labels, weights = labels.astype(np.float64), weights.astype(np.float64)[:, None]
    known = np.isfinite(labels)
    filled = np.where(known, labels, 0.0)
    low = np.where(known, labels, np.inf).min(0, initial=np.inf)
    high = np.where(known, labels, -np.inf).max(0, initial=-np.inf)
    log = np.log1p(np.maximum(filled, 0))
    summed = (known, filled, filled**2, log, log**2)
    sums = [known.sum(0), *((weights * x).sum(0) for x in summed)]
    return np.stack(sums), np.stack([low, high])


def merge_scans(first: Scan | None, second: Scan) -> Scan:
    """Returns one scan of two parts."""
    if first is None:
        return second
    first.findings.add(second.findings)
    (low, high), (other_low, other_high) = first.label_ranges, second.label_ranges
    return Scan(
        findings=first.findings,
        split_rows=first.split_rows + second.split_rows,
        label_sums=first.label_sums + second.label_sums,
        label_ranges=np.stack([np.minimum(low, other_low), np.maximum(high, other_high)]),
        class_sums=add_sums(first.class_sums, second.class_sums),
        num_labels=first.num_labels + second.num_labels,
        item_rows=first.item_rows + second.item_rows,
        all_item_rows=first.all_item_rows + second.all_item_rows,
        users=np.union1d(first.users, second.users),
        categories=[a.add(b) for a, b in zip(first.categories, second.categories, strict=True)],
        several=[a.add(b) for a, b in zip(first.several, second.several, strict=True)],
        most_values=[max(a, b) for a, b in zip(first.most_values, second.most_values, strict=True)],
        last_ms=max(first.last_ms, second.last_ms),
        train_ms=max(first.train_ms, second.train_ms),
        test_ms=min(first.test_ms, second.test_ms),
        sample=pa.concat_tables([first.sample, second.sample]),
        one_in=first.one_in,
    )


def scan_fragments(
    fragments: Iterable[Fragment], sources: Sources, one_in: Mapping[str, int]
) -> dict[str, Scan]:
    """Returns the scan of each scenario that some row groups belong to."""
    merged: dict[str, Scan] = {}
    for fragment in fragments:
        source = sources[fragment.scenario]
        table, findings = read_canonical(fragment, source)
        found = scan_rows(table, findings, source, one_in[fragment.scenario])
        merged[fragment.scenario] = merge_scans(merged.get(fragment.scenario), found)
    return merged


def scan(fragments: list[Fragment], sources: "ray.ObjectRef[Sources]") -> dict[str, Scan]:
    """Returns the scan of each scenario's log, merged in the order of the row groups."""
    task = ray.remote(scan_fragments)
    rows: Counter[str] = Counter()
    for fragment in fragments:
        rows[fragment.scenario] += fragment.num_rows
    one_in = {name: -(-num // SAMPLED_ROWS) for name, num in rows.items()}
    bounds = np.linspace(0, len(fragments), min(len(fragments), MAX_TASKS) + 1).astype(int)
    parts = [task.remote(fragments[a:b], sources, one_in) for a, b in pairwise(bounds)]
    merged: dict[str, Scan] = {}
    for part in parts:
        for name, part_scan in ray.get(part).items():
            merged[name] = merge_scans(merged.get(name), part_scan)
    return merged
