"""A user's log rows as canonical rows: numbers for items, splits and labels, problems counted.

Canonical columns (lists padded to `width`): row i64, user i64 (hash), user_id string, item i32,
time i64 (ms; 0 without time), split i8, sampled bool, labels f32[width] (NaN unknown),
event_numeric f32[width], event_categorical i64[width] (hashes); where rows have weights, weight
f32; of each column with several values `event_several.NUMBER` (`event_values.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec_ray.data.catalogue import ItemLookup
from mtrec_ray.data.columns import (
    as_text,
    blank,
    fixed_list,
    floats,
    hash_strings,
    is_list,
    is_one_of,
    is_plain_number,
    is_possible,
    list_parts,
    milliseconds,
    numbers,
    place_among,
    plain_type,
)
from mtrec_ray.data.preparing.event_values import column_name, hashed_values
from mtrec_ray.data.shards import WEIGHT
from mtrec_ray.project.events import Events
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.split import PLAUSIBLE_SECONDS, SPLITS, to_ms
from mtrec_ray.project.task import Label

# Of a row: sums of weights times losses stay far from the largest number of 32 bits.
LARGEST_WEIGHT = 1e9

TRAIN, VALID, TEST, UNSPLIT = 0, 1, 2, 3


@dataclass
class Findings:
    """What was found in some rows of a log; `add` merges the findings of another part."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, mask: NDArray[np.bool_], values: Any = None) -> None:
        """Count the rows of a mask under `what`, keeping one value as an example."""
        if mask.any():
            self.counts[what] += int(mask.sum())
            if values is not None and what not in self.examples:
                self.examples[what] = _value_text(values, int(mask.argmax()))

    def add(self, other: "Findings") -> None:
        """Merge the findings of another part."""
        self.counts.update(other.counts)
        for what, example in other.examples.items():
            self.examples.setdefault(what, example)


def _value_text(values: Any, place: int) -> str:
    """Returns a value of an array or a column as text; Python has no dates beyond the year 9999."""
    if isinstance(values, pa.ChunkedArray):
        return str(as_text(values.slice(place, 1))[0].as_py())
    return str(values[place])


def _splits(
    table: pa.Table, scenario: Scenario, time: NDArray[np.int64], findings: Findings
) -> NDArray[np.int8]:
    split = scenario.split
    if split.time:
        cuts = np.array([to_ms(t) for t in split.time])
        return np.searchsorted(cuts, time, side="right").astype(np.int8)
    if split.fractions:
        return np.full(table.num_rows, UNSPLIT, np.int8)
    assert split.column
    words = np.asarray(as_text(table.column(split.column)).to_pylist(), object)
    codes = np.select([words == name for name in SPLITS], [0, 1, 2], -1).astype(np.int8)
    findings.note("unknown split", codes < 0, words)
    return codes


def read_labels(table: pa.Table, scenario: Scenario, findings: Findings) -> NDArray[np.float32]:
    """Returns f32[N, T]: labels, NaN where unknown or where a task above is not positive.

    Those of a multiclass task are places in its list of classes.
    """
    columns = {t: task_labels(table, scenario, t) for t in scenario.tasks}
    positive = {t: values == 1 for t, values in columns.items()}
    for name, task in scenario.tasks.items():
        values = columns[name]
        wrong, label = is_wrong(task.kind, values), scenario.label(name)
        shown = table.column(label.column) if task.classes and label.column else values
        findings.note(f"bad label of {name}", wrong, shown)
        findings.note(f"label of {name} that is infinite", np.isinf(values))
        values = np.where(np.isinf(values), np.nan, values)
        if task.given:
            inside = np.all([positive[above] for above in scenario.chain(name)[1:]], axis=0)
            findings.note(
                f"label of {name} without a positive {task.given}", np.isfinite(values) & ~inside
            )
            values = np.where(inside, values, np.nan)
        columns[name] = values
    return np.stack(list(columns.values()), 1)


def task_labels(table: pa.Table, scenario: Scenario, task: str) -> NDArray[np.float32]:
    """Returns f32[N]: the labels of a task before its parents are looked at; -1 for no class."""
    label, classes = scenario.label(task), scenario.tasks[task].classes
    if classes is None or label.column is None:
        return label_values(table, label)
    return place_among(table.column(label.column), classes)


def is_wrong(kind: str, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns bool[N]: labels that a task of a kind cannot have."""
    known = np.isfinite(values)
    if kind == "binary":
        return known & (values != 0) & (values != 1) | np.isinf(values)
    negative = known & (values < 0) & (kind in ("count", "duration", "multiclass"))
    return negative | (known & (values != np.floor(values)) & (kind == "count"))


def label_values(table: pa.Table, label: Label) -> NDArray[np.float32]:
    """Returns f32[N]: a label, as it stands in its column or follows from it, NaN where unknown.

    A number is compared in the precision of its column: 4.1 in 32 bits is at least 4.1.
    """
    if label.column is None:
        return np.ones(table.num_rows, np.float32)
    column = table.column(label.column)
    if label.equals is not None:
        known = ~column.is_null(nan_is_null=True).to_numpy()
        return unknown_elsewhere(is_one_of(column, label.equals).to_numpy(), known)
    if label.at_least is not None:
        values = numbers(column)
        return unknown_elsewhere(values >= label.at_least, ~np.isnan(values))
    return floats(column)


def unknown_elsewhere(positive: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns f32[N]: 1 and 0 where a label is known, NaN elsewhere."""
    return np.where(known, positive, np.nan).astype(np.float32)


def canonical(
    table: pa.Table, scenario: Scenario, first_row: int, lookup: ItemLookup, width: int
) -> tuple[pa.Table, Findings]:
    """Returns canonical rows of a piece of the log, and what was found in it.

    Rows without user, item or time, with a time that no log has, and rows of unknown items are
    counted and left out.
    """
    findings = Findings()
    events = scenario.events
    num = table.num_rows
    findings.counts["rows"] = num
    table = without_missing(table, events.missing, findings)
    time, has_time = read_times(table, scenario, findings)
    item = lookup.find(table.column(events.item))
    keep = has_time & (item >= 0) & read_nulls(table, scenario, item, findings)
    categories = [hash_strings(table.column(c)).view(np.int64) for c in events.categorical]
    others: dict[str, Any] = {
        column_name(i): hashed_values(table.column(column), separator)
        for i, (column, separator) in enumerate(events.several.items())
    }
    if events.weigh:
        others[WEIGHT] = read_weights(table, events, findings)
    rows = pa.table(
        others
        | {
            "row": first_row + np.arange(num),
            "user": hash_strings(table.column(events.user)).view(np.int64),
            "user_id": as_text(table.column(events.user)),
            "item": item,
            "time": time,
            "split": _splits(table, scenario, time, findings),
            "sampled": np.zeros(num, bool),
            "labels": fixed_list(read_labels(table, scenario, findings), width),
            "event_numeric": fixed_list(read_numbers(table, scenario, findings), width),
            "event_categorical": fixed_list(_stack(categories, num, np.int64), width),
        }
    )
    return rows.filter(pa.array(keep & (rows["split"].to_numpy() >= 0))), findings


def without_missing(
    table: pa.Table, missing: Mapping[str, Sequence[str | float]], findings: Findings
) -> pa.Table:
    """Returns rows with null in place of the values that mean missing, by column; counts them."""
    for name, values in missing.items():
        column = blank(table.column(name), values)
        blanked = holds_null(column) & ~holds_null(table.column(name))
        findings.note(f"value of {name} that means missing", blanked)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def holds_null(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Returns bool[N]: whether a row is null, or a value of its list is."""
    if not is_list(plain_type(column.type)):
        return column.is_null().to_numpy()
    rows, values = list_parts(column)
    return np.bincount(rows[values.is_null().to_numpy()], minlength=len(column)) > 0


def read_nulls(
    table: pa.Table, scenario: Scenario, item: NDArray[np.int32], findings: Findings
) -> NDArray[np.bool_]:
    """Returns bool[N]: whether a row has a user and an item; NaN is no id."""
    events = scenario.events
    no_user, no_item = (
        table.column(column).is_null(nan_is_null=True).to_numpy()
        for column in (events.user, events.item)
    )
    findings.note("null user", no_user)
    findings.note("null item", no_item)
    findings.note("unknown item", (item < 0) & ~no_item, table.column(events.item))
    return ~no_user & ~no_item


def read_times(
    table: pa.Table, scenario: Scenario, findings: Findings
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns i64[N] ms (0 without times) and bool[N], whether a row has a plausible time."""
    events = scenario.events
    if events.time is None:
        return np.zeros(table.num_rows, np.int64), np.ones(table.num_rows, bool)
    column = table.column(events.time)
    ms = milliseconds(column, events.time_unit)
    time, known = pc.fill_null(ms, 0).to_numpy(), ms.is_valid().to_numpy()
    possible = is_possible(time)
    findings.note("null time", ~known)
    findings.note("impossible time", known & ~possible, column)
    years, rows = np.unique(
        time[known & possible].astype("M8[ms]").astype("M8[Y]"), return_counts=True
    )
    findings.counts.update({f"year {y}": int(n) for y, n in zip(years, rows, strict=True)})
    if events.time_unit is None and is_plain_number(column.type):
        low, high = (1000 * seconds for seconds in PLAUSIBLE_SECONDS)
        findings.counts["plain time"] += int(known.sum())
        findings.note("implausible time", known & ((time < low) | (time >= high)), column)
    return time, known & possible


def read_numbers(table: pa.Table, scenario: Scenario, findings: Findings) -> NDArray[np.float32]:
    """Returns f32[N, M]: the log's numeric columns, NaN for null and for what is not finite."""
    columns = []
    for name in scenario.events.numeric:
        values = floats(table.column(name))
        findings.note(f"number of {name} that is infinite", np.isinf(values))
        columns.append(np.where(np.isinf(values), np.float32(np.nan), values))
    return _stack(columns, table.num_rows, np.float32)


def read_weights(table: pa.Table, events: Events, findings: Findings) -> NDArray[np.float32]:
    """Returns f32[N]: the weight of each row, min(1 / p, clip) where p is its probability."""
    weights = np.ones(table.num_rows)
    if events.weight_column:
        values = numbers(table.column(events.weight_column))
        good = (values >= 0) & (values <= LARGEST_WEIGHT)
        findings.note("bad weight", ~good, values)
        weights *= np.where(good, values, 0)
    if events.propensity:
        p = numbers(table.column(events.propensity.column))
        good = (p > 0) & (p <= 1)
        findings.note("bad propensity", ~good, p)
        weights *= np.minimum(1 / np.where(good, p, 1), events.propensity.clip)
    return weights.astype(np.float32)


def _stack(columns: list[np.ndarray], num: int, dtype: type) -> np.ndarray:
    return np.stack(columns, 1).astype(dtype) if columns else np.zeros((num, 0), dtype)
