"""One pass over the raw logs: counts, label sums, vocabularies, and what the job cannot work with.

Row groups are read in Ray tasks; what travels and is merged are counts and vocabularies.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data

from mtrec_ray.data.catalogue import ItemLookup, published_ms
from mtrec_ray.data.columns import matrix
from mtrec_ray.data.preparing import inputs
from mtrec_ray.data.preparing.events import TRAIN, Findings, canonical
from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import SPLITS, Scenario

# The last moment of no rows: before any other, those before 1970 included.
NO_ROW_MS = int(np.iinfo(np.int64).min)


@dataclass
class Scan:
    """Counts and vocabularies of a scenario's log, merged over its row groups."""

    findings: Findings = field(default_factory=Findings)
    split_rows: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    label_sums: np.ndarray = field(default_factory=lambda: np.zeros((3, 1)))
    item_rows: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    users: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    categories: list[np.ndarray] = field(default_factory=list)
    last_ms: int = NO_ROW_MS
    label_ranges: np.ndarray = field(default_factory=lambda: np.zeros((2, 1)))


@dataclass(frozen=True)
class LogSource:
    """What reading a scenario's rows takes; lies in the object store."""

    scenario: Scenario
    lookup: ItemLookup
    width: int
    num_items: int
    published: np.ndarray


def list_width(project: Project) -> int:
    """Width of the padded list columns: the most tasks or event columns of any scenario."""
    return max(
        max(len(s.tasks), len(s.events.numeric), len(s.events.categorical), 1)
        for s in project.scenarios.values()
    )


def source_of(project: Project, name: str, items: pa.Table) -> LogSource:
    """What reading a scenario's rows takes."""
    scenario = project.scenarios[name]
    lookup = ItemLookup.of(items.column(scenario.items.id))
    published = published_ms(items, scenario.items)
    return LogSource(scenario, lookup, list_width(project), items.num_rows, published)


def read_canonical(fragment: Fragment, source: LogSource) -> tuple[pa.Table, Findings]:
    """Canonical rows of a row group: of the user's log, or of an expanded one."""
    table = inputs.read_fragment(fragment)
    if "event_categorical" in table.column_names:
        return table, Findings()
    return canonical(table, source.scenario, fragment.first_row, source.lookup, source.width)


def scan_rows(table: pa.Table, findings: Findings, source: LogSource) -> Scan:
    """The scan of some canonical rows."""
    num_tasks = len(source.scenario.tasks)
    split = table.column("split").to_numpy()
    train = split == TRAIN if (split == TRAIN).any() or (split < 3).any() else split == 3
    labels = matrix(table.column("labels"))[train][:, :num_tasks].astype(np.float64)
    filled = np.where(np.isfinite(labels), labels, 0.0)
    sums = np.stack([np.isfinite(labels).sum(0), filled.sum(0), (filled**2).sum(0)])
    low = np.where(np.isfinite(labels), labels, np.inf).min(0, initial=np.inf)
    high = np.where(np.isfinite(labels), labels, -np.inf).max(0, initial=-np.inf)
    items = table.column("item").to_numpy()[train]
    categories = matrix(table.column("event_categorical"))[train]
    return Scan(
        findings=findings,
        split_rows=np.bincount(split, minlength=4)[:4],
        label_sums=sums,
        item_rows=np.bincount(items, minlength=source.num_items),
        users=np.unique(table.column("user").to_numpy()[train].view(np.uint64)),
        categories=[
            np.unique(np.ascontiguousarray(categories[:, i]).view(np.uint64))
            for i in range(len(source.scenario.events.categorical))
        ],
        last_ms=int(table.column("time").to_numpy().max(initial=NO_ROW_MS)),
        label_ranges=np.stack([low, high]),
    )


def merge_scans(first: Scan | None, second: Scan) -> Scan:
    """One scan of two parts."""
    if first is None:
        return second
    first.findings.add(second.findings)
    return Scan(
        findings=first.findings,
        split_rows=first.split_rows + second.split_rows,
        label_sums=first.label_sums + second.label_sums,
        item_rows=first.item_rows + second.item_rows,
        users=np.union1d(first.users, second.users),
        categories=[
            np.union1d(a, b) for a, b in zip(first.categories, second.categories, strict=True)
        ],
        last_ms=max(first.last_ms, second.last_ms),
        label_ranges=np.stack(
            [
                np.minimum(first.label_ranges[0], second.label_ranges[0]),
                np.maximum(first.label_ranges[1], second.label_ranges[1]),
            ]
        ),
    )


def fragment_dataset(fragments: list[Fragment]) -> ray.data.Dataset:
    """A data set of row groups to read, a few to a task."""
    rows = [f.__dict__ for f in fragments]
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), 256))


def scan(fragments: list[Fragment], sources: ray.ObjectRef) -> dict[str, Scan]:
    """The scan of each scenario's log."""

    def scan_one(row: dict[str, Any]) -> dict[str, Any]:
        fragment = Fragment(**row)
        source = cast("dict[str, LogSource]", ray.get(sources))[fragment.scenario]
        table, findings = read_canonical(fragment, source)
        found = scan_rows(table, findings, source)
        return {"scenario": fragment.scenario, "scan": pickle.dumps(found)}

    merged: dict[str, Scan] = {}
    for row in fragment_dataset(fragments).map(scan_one).iter_rows():
        merged[row["scenario"]] = merge_scans(
            merged.get(row["scenario"]), pickle.loads(row["scan"])
        )
    return merged


def scan_problems(project: Project, scans: dict[str, Scan]) -> list[str]:
    """One line for each thing in the data that the job cannot work with."""
    return [
        line
        for name in project.scenarios
        for line in _scenario_problems(name, project.scenarios[name], scans[name])
    ]


def _scenario_problems(name: str, scenario: Scenario, found: Scan) -> Iterator[str]:
    counts, examples = found.findings.counts, found.findings.examples
    where = f"scenarios.{name}"
    unknown, rows = counts["unknown item"], max(counts["rows"], 1)
    if unknown / rows > scenario.max_unknown_items:
        yield (
            f"{where}.events.item: found {unknown} of {rows} rows ({unknown / rows:.1%}) whose "
            f"item the catalogue does not have, such as {examples['unknown item']}; allowed: "
            f"max_unknown_items = {scenario.max_unknown_items:.1%}"
        )
    for what, number in counts.items():
        if what.startswith("bad label of "):
            task = what.removeprefix("bad label of ")
            yield (
                f"{where}.tasks.{task}: found {number} labels of a binary task that are neither "
                f"0, 1 nor null, such as {examples[what]}; allowed: 0, 1, null"
            )
        if what == "unknown split":
            yield (
                f"{where}.split.column: found {number} rows such as {examples[what]!r}; "
                f"allowed: {', '.join(SPLITS)}"
            )
    for split, number in zip(SPLITS, found.split_rows, strict=False):
        if not number and not found.split_rows[3]:
            yield f"{where}.split: found no rows in {split}; allowed: at least one"
    for i, task in enumerate(scenario.tasks):
        low, high = found.label_ranges[:, i]
        if low >= high:
            value = "no labels" if low > high else f"only the label {low:g}"
            yield f"{where}.tasks.{task}: found {value} in train; allowed: two values or more"
