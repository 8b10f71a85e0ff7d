"""The raw rows that the leakage audit compares prepared rows with.

The audit reads them by code of its own, which shares only the opening of files with the
preparation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.data import storage
from mtrec_ray.data.input_files import input_files
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario

MAX_CATEGORY_ROWS = 1_000_000


PER_MS = {"ms": 1, "us": 10**3, "ns": 10**6}


MAX_LABEL = 3.4028235e38  # of 32 bits


AUDIT_FIRST_NEGATIVE = 2**48  # row numbers of sampled negatives start here


@dataclass(frozen=True)
class AuditLog:
    """Raw rows of some users, items and categories, by row number.

    Attributes:
        rows: columns user, item (text), time (ms), split, weight, `label.TASK` of each task, and
            `category.COLUMN` of each category with statistics.
        item_row: catalogue row of each item id.
        audited: columns with statistics whose values are all rare enough to be read whole.
        of_item: their values by item id, as text; sets of texts where there are several.
        seed: of the folds of data without time.
        items_with: of each audited column with several values, the items with each of them.
    """

    rows: pd.DataFrame
    item_row: dict[str, int]
    audited: list[str]
    of_item: pd.DataFrame
    seed: int
    items_with: dict[str, dict[str, list[str]]]

    def category(self, item: str, column: str) -> str | None:
        """Returns an item's value of a categorical column."""
        value: Any = self.of_item.loc[item, column]
        return value if isinstance(value, str) else None

    def values(self, item: str, column: str) -> list[str]:
        """Returns an item's values of a column with several."""
        values: Any = self.of_item.loc[item, column]
        return sorted(values)


def source_row(scenario: Scenario, number: int) -> int:
    """Returns the log's row that a sample comes from; for a negative that of its positive."""
    if scenario.negatives and number >= AUDIT_FIRST_NEGATIVE:
        return (number - AUDIT_FIRST_NEGATIVE) // scenario.negatives.per_positive
    return number


def read_audit_log(
    project: Project, prepared: Prepared, name: str, samples: list[Arrays]
) -> AuditLog:
    """Returns the raw rows of all users, items and categories that the samples name.

    The whole log is read once, column by column, and filtered before anything else is done with
    it; before that, only the users of the samples' own rows are read.
    """
    scenario = project.scenarios[name]
    path = project.path(scenario.events.path)
    catalogue = storage.join(prepared.folder, name, "catalogue.parquet")
    ids = storage.read_table(catalogue, ["item_id"]).column(0).to_pylist()
    users = users_of_raw_rows(
        path, scenario, {source_row(scenario, int(s["row"])) for s in samples}
    )
    items = {ids[int(s["item"])] for s in samples}
    of_item = read_categories(project, name)
    one, several = scenario.items.statistics_columns, scenario.items.pooled_columns
    audited = [c for c in (*one, *several) if small(of_item[c], catalogue)]
    items_with = {c: items_by_value(of_item[c]) for c in audited if c in several}
    wanted = items.copy()
    for column in audited:
        each = of_item[column].explode()
        values = each[each.index.isin(items)].dropna().unique()
        wanted |= set(each.index[each.isin(values)])
    rows = pd.concat(raw_batches(path, scenario, users, wanted))
    rows = rows.join(of_item[list(one)].add_prefix("category."), on="item")
    item_row = {item: i for i, item in enumerate(ids)}
    usable = rows["item"].isin(item_row) & rows["user"].notna() & rows["time"].notna()
    rows = rows[usable].copy()
    rows["split"] = splits(prepared, scenario, name, rows)
    return AuditLog(rows, item_row, audited, of_item, project.data_seed, items_with)


def users_of_raw_rows(path: str, scenario: Scenario, numbers: set[int]) -> set[str]:
    """Returns the users of some rows of the log; only the row groups that hold them are read."""
    users: set[str] = set()
    first = 0
    for file in input_files(path):
        footer = storage.read_footer(file.path)
        for group in range(footer.num_row_groups):
            num_rows = footer.row_group(group).num_rows
            places = [n - first for n in numbers if first <= n < first + num_rows]
            first += num_rows
            if places:
                rows = storage.read_row_group(file, group, [scenario.events.user])
                column = raw_nulls(rows, scenario.events.missing).column(0)
                users |= {u for u in raw_text(column.take(places)).to_pylist() if u is not None}
    return users


def raw_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns ids and words as text, null for null and for NaN; bytes as a reader would.

    Written on its own, as `raw_milliseconds` is.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if "binary" in str(kind):
        fixed = pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16
        words = [v if v is None else raw_word(v, fixed) for v in column.to_pylist()]
        return pa.chunked_array([words], pa.string())
    missing = column.is_null(nan_is_null=True)
    text = pc.cast(column, pa.string())
    return pc.if_else(missing, pa.scalar(None, pa.string()), text)  # pyright: ignore[reportAttributeAccessIssue]


def raw_nulls(table: pa.Table, missing: Mapping[str, Sequence[str | float]]) -> pa.Table:
    """Returns rows with null in place of values that mean missing, compared in the column's type.

    Written on its own, as `raw_milliseconds` is.
    """
    for name, values in missing.items():
        if name not in table.column_names:
            continue
        column = table.column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        column = column.cast(kind)
        for value in values:
            same = raw_equal(column, value)
            column = pc.if_else(same, pa.scalar(None, kind), column)  # pyright: ignore[reportAttributeAccessIssue]
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def raw_equal(column: pa.ChunkedArray, value: str | float) -> pa.ChunkedArray | pa.Scalar:
    """Returns where a column has a value in its own type; nowhere where the type has no such."""
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if pa.types.is_float16(column.type) and not isinstance(value, str):
        column, value = column.cast(pa.float32()), float(np.float16(value))
    beyond = isinstance(value, int) and abs(value) >= 2**63  # Arrow reads it as text
    no_bool = pa.types.is_boolean(column.type) and isinstance(value, int | float)
    if no_bool and value != bool(value):
        return pa.scalar(False)
    try:
        wanted = pa.scalar(str(value) if beyond else value).cast(column.type)
        return pc.fill_null(pc.equal(column, wanted), False)  # pyright: ignore[reportAttributeAccessIssue]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.scalar(False)  # no value of this type


def raw_word(value: bytes, is_uuid: bool) -> str:
    """Returns bytes as UTF-8 or as hexadecimal digits, those of a UUID with its dashes."""
    digits = value.hex()
    if is_uuid:
        return "-".join(digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
    word = value.decode(errors="replace")
    return word if word.encode() == value else digits


def read_categories(project: Project, name: str) -> pd.DataFrame:
    """Returns the columns of a catalogue whose values have statistics, as text by item id.

    Several values are a set of texts.
    """
    items = project.scenarios[name].items
    columns = [items.id, *items.statistics_columns, *items.pooled_columns]
    files = input_files(project.path(items.path))
    table = pa.concat_tables(
        [storage.read_table(file, columns) for file in files], promote_options="permissive"
    )
    in_lists = {c: items.missing.get(c, ()) for c in items.lists}
    table = raw_nulls(table, {c: v for c, v in items.missing.items() if c not in in_lists})
    ids = raw_text(table.column(items.id)).to_pylist()
    text: dict[str, list[Any]] = {
        c: raw_text(table.column(c)).to_pylist() for c in items.statistics_columns
    }
    for column, separator in items.pooled_columns.items():
        text[column] = raw_sets(table.column(column), separator, in_lists.get(column, ()))
    frame = pd.DataFrame(text, index=pd.Index(ids), dtype=object)
    return frame[~frame.index.duplicated()]  # copies of an item are one


def raw_sets(
    column: pa.ChunkedArray, separator: str | None, missing: Sequence[str | float]
) -> list[frozenset[str]]:
    """Returns the different values of each item, of texts that a separator parts or of lists.

    Written on its own, as `raw_milliseconds` is.
    """
    if separator is None:
        flat = pa.table({"value": pc.list_flatten(column)})  # pyright: ignore[reportAttributeAccessIssue]
        words = iter(raw_text(raw_nulls(flat, {"value": missing}).column(0)).to_pylist())
        parts = [list(islice(words, len(own or ()))) for own in column.to_pylist()]
    else:
        parts = [(text or "").split(separator) for text in raw_text(column).to_pylist()]
    return [frozenset(w.strip() for w in words if w and w.strip()) for words in parts]


def items_by_value(values: pd.Series) -> dict[str, list[str]]:
    """Returns the items with each value, from the sets of values by item."""
    found: dict[str, list[str]] = {}
    for item, own in values.items():
        for value in own:
            found.setdefault(value, []).append(str(item))
    return found


def small(values: pd.Series, catalogue: str) -> bool:
    """Returns whether no value of a column has more training rows than the audit reads."""
    rows = storage.read_table(catalogue, ["train_rows"]).column(0).to_numpy()
    each = values.reset_index(drop=True).explode()
    of_value = pd.Series(rows[each.index]).groupby(each.to_numpy()).sum()
    return of_value.max() <= MAX_CATEGORY_ROWS


def raw_batches(
    path: str, scenario: Scenario, users: set[str], items: set[str]
) -> Iterator[pd.DataFrame]:
    """Yields the rows of some users and some items, by row number, a row group at a time."""
    events = scenario.events
    of_labels = [scenario.label(task).column for task in scenario.tasks]
    columns = {events.user, events.item, *events.weigh.values()}
    columns |= {c for c in (events.time, scenario.split.column, *of_labels) if c}
    wanted_users, wanted_items = (pa.array(sorted(x), pa.string()) for x in (users, items))
    first = 0
    for file in input_files(path):
        for group in range(storage.read_footer(file.path).num_row_groups):
            table = storage.read_row_group(file, group, sorted(columns))
            table = raw_nulls(table, events.missing)
            user, item = (raw_text(table.column(c)) for c in (events.user, events.item))
            of_user = pc.is_in(user, wanted_users)  # pyright: ignore[reportAttributeAccessIssue]
            of_item = pc.is_in(item, wanted_items)  # pyright: ignore[reportAttributeAccessIssue]
            keep = pc.or_(of_user, of_item)  # pyright: ignore[reportAttributeAccessIssue]
            numbers = first + np.flatnonzero(keep.to_numpy())
            first += table.num_rows
            frame = raw_frame(table.filter(keep), scenario)
            yield frame.set_index(numbers).assign(
                user=user.filter(keep).to_numpy(), item=item.filter(keep).to_numpy()
            )


def raw_frame(table: pa.Table, scenario: Scenario) -> pd.DataFrame:
    """Returns times (ms), weights, labels and splits of raw rows.

    Labels are NaN without a parent of 1.
    """
    events = scenario.events
    frame = pd.DataFrame(index=range(table.num_rows))
    frame["time"] = 0.0
    if events.time:
        frame["time"] = raw_milliseconds(table.column(events.time), events.time_unit)
    frame["weight"] = raw_weights(table, scenario)
    for task in scenario.tasks:
        frame[f"label.{task}"] = raw_label(table, scenario, task)
    if scenario.split.column:
        frame["split"] = raw_text(table.column(scenario.split.column)).to_numpy()
    for _ in scenario.tasks:  # a pass reaches the children of what the one before left out
        for task, spec in scenario.tasks.items():
            if spec.given:
                frame.loc[frame[f"label.{spec.given}"] != 1, f"label.{task}"] = np.nan
    return frame


def raw_weights(table: pa.Table, scenario: Scenario) -> np.ndarray:
    """Returns f64[N]: a row's weight, times 1 / p, where that is less than the clip of it."""
    events, weights = scenario.events, np.ones(table.num_rows)
    if events.weight_column:
        weights = raw_numbers(table.column(events.weight_column))
    if events.propensity:
        inverse = 1 / raw_numbers(table.column(events.propensity.column))
        clip = events.propensity.clip
        weights = weights * np.where(inverse > clip, clip, inverse)
    return weights


def raw_label(table: pa.Table, scenario: Scenario, task: str) -> np.ndarray:
    """Returns f64[N]: a task's labels, NaN where unknown; those that follow from a column, too.

    Written on its own, as `raw_milliseconds` is.
    """
    label = scenario.tasks[task].label
    if label.always:
        return np.ones(table.num_rows)
    name = label.column or task
    column = table.column(name)
    if scenario.tasks[task].classes:
        return raw_class(column, scenario.tasks[task].classes or ())
    if label.equals is not None:
        rest = raw_nulls(table.select([name]), {name: label.equals}).column(0)
        hits = rest.is_null().to_numpy() & ~column.is_null().to_numpy()
        return np.where(column.is_null(nan_is_null=True).to_numpy(), np.nan, hits)
    if label.at_least is not None:
        return raw_at_least(column, label.at_least)
    return raw_numbers(column)


def raw_class(column: pa.ChunkedArray, classes: Sequence[str | float]) -> np.ndarray:
    """Returns f64[N]: the place of each value among the classes, NaN for null."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    places = np.full(len(column), np.nan)
    for place, value in reversed(list(enumerate(classes))):
        same = raw_equal(column.cast(kind), value)
        hits = same.to_numpy() if isinstance(same, pa.ChunkedArray) else same.as_py()
        places = np.where(hits, place, places)
    return places


def raw_at_least(column: pa.ChunkedArray, least: float) -> np.ndarray:
    """Returns f64[N]: 1 from a number on, else 0, NaN for null; in the precision of the column."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    values = pc.cast(column.cast(kind), pa.float64(), safe=False).to_numpy()
    if pa.types.is_floating(kind):  # the bound is rounded as the values are
        least = pa.scalar(least).cast(kind, safe=False).cast(pa.float64()).as_py()
    return np.where(np.isnan(values), np.nan, values >= least)


def raw_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Returns f64[N]: numbers, NaN for null and for what is not finite in 32 bits."""
    values = pc.cast(column, pa.float64(), safe=False).to_numpy()
    return np.where(np.abs(values) <= MAX_LABEL, values, np.nan)


def raw_milliseconds(column: pa.ChunkedArray, unit: str | None) -> np.ndarray:
    """Returns f64[N]: whole milliseconds since 1970, NaN for null and outside of 1900 to 2099.

    Plain numbers are seconds where no unit is given. Written on its own: the preparation has
    another way to read times, and both must agree.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    column = pc.cast(column, kind)
    if pa.types.is_temporal(kind):
        whole = pc.cast(pc.cast(column, pa.timestamp("ms"), safe=False), pa.int64())
        ms = pc.cast(whole, pa.float64(), safe=False).to_numpy()
    elif pa.types.is_integer(kind) and unit in ("us", "ns"):  # exact, as a float is not
        whole = [np.nan if v is None else v // PER_MS[unit] for v in column.to_pylist()]
        ms = np.array(whole, float)
    else:
        numbers = pc.cast(column, pa.float64(), safe=False).to_numpy()
        ms = np.floor(numbers * 1e3 if unit in (None, "s") else numbers / PER_MS[unit])
    low, high = (pd.Timestamp(str(year)).value // 10**6 for year in (1900, 2100))
    return np.where((ms >= low) & (ms < high), ms, np.nan)


def splits(
    prepared: Prepared, scenario: Scenario, name: str, rows: pd.DataFrame
) -> pd.Series | np.ndarray:
    """Returns the split of raw rows: by its column, or by the prepared split that holds the row."""
    if scenario.split.column:
        return rows["split"]
    split_of_row = pd.Series("", index=rows.index)
    for split in ("train", "valid", "test"):
        for path in prepared.shard_paths(name, split):
            numbers = storage.read_table(path, ["row"]).column(0).to_numpy()
            split_of_row[rows.index.isin(numbers)] = split
    return split_of_row
