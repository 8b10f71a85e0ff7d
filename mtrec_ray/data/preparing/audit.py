"""The leakage audit: sampled rows recomputed from the raw log by brute force.

Shares no code with the preparation but the reading of files: plain filters over the raw rows of the
sampled rows' users and items, one sampled row at a time. It proves for each that counts, rates and
history come from rows strictly before it (labels: from rows whose delay has passed) and, without
time, from training rows of other folds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.data.shards import Arrays, read_rows
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario

TOLERANCE = 1e-3


DAY_MS = 86_400_000


WINDOWS_DAYS = (1, 7, 30)


NUM_FOLDS = 5


MAX_CATEGORY_ROWS = 1_000_000


FIRST_NEGATIVE = 2**48  # row numbers of sampled negatives start here


@dataclass(frozen=True)
class Log:
    """Raw rows of some users, items and categories, by row number.

    Attributes:
        rows: columns user, item (text), time (ms), split, one a task, one a counted category.
        item_row: catalogue row of each item id.
        audited: counted categories whose values are all rare enough to be read whole.
        seed: of the folds of data without time.
    """

    rows: pd.DataFrame
    item_row: dict[str, int]
    audited: list[str]
    of_item: pd.DataFrame
    seed: int

    def category(self, item: str, column: str) -> str | None:
        """An item's value of a categorical column."""
        value: Any = self.of_item.loc[item, column]
        return value if isinstance(value, str) else None


def audit(project: Project, prepared: Prepared, *, rows_per_split: int = 12) -> list[str]:
    """One line for each sampled row that does not agree with the raw log; empty when all do."""
    problems: list[str] = []
    for name, scenario in project.scenarios.items():
        samples = {
            split: list(sampled_rows(prepared, name, split, rows_per_split))
            for split in ("train", "valid", "test")
        }
        log = read_log(project, prepared, name, [s for found in samples.values() for s in found])
        for split, found in samples.items():
            for sample in found:
                lines = check_row(log, scenario, prepared.scenarios[name], split, sample)
                where = f"scenarios.{name} ({split} row {int(sample['row'])})"
                problems += [f"{where}: {line}" for line in lines]
    return problems


def sampled_rows(prepared: Prepared, name: str, split: str, number: int) -> Iterator[Arrays]:
    """Some samples, spread evenly over the split."""
    total = prepared.scenarios[name].num_rows(split)
    paths = prepared.shard_paths(name, split)
    for start in sorted({int(total * (i + 0.5) / number) for i in range(number)}):
        for batch in read_rows(paths, 1024, start, start + 1):
            yield {column: values[0] for column, values in batch.items()}


def source_row(scenario: Scenario, number: int) -> int:
    """Row of the log that a sample comes from: its own, or that of a negative's positive."""
    if scenario.negatives and number >= FIRST_NEGATIVE:
        return (number - FIRST_NEGATIVE) // scenario.negatives.per_positive
    return number


def read_log(project: Project, prepared: Prepared, name: str, samples: list[Arrays]) -> Log:
    """The raw rows of all users and items that the samples name."""
    scenario = project.scenarios[name]
    path = project.path(scenario.events.path)
    catalogue = storage.join(prepared.folder, name, "catalogue.parquet")
    fs, inner = storage.filesystem(catalogue)
    ids = pq.read_table(inner, filesystem=fs, columns=["item_id"]).column(0).to_pylist()
    numbers = {source_row(scenario, int(s["row"])) for s in samples}
    users = {
        user
        for batch in raw_batches(path, scenario)
        for user in batch.loc[batch.index.isin(numbers), "user"]
    }
    items = {ids[int(s["item"])] for s in samples}
    of_item = read_categories(project, name)
    audited = [c for c in scenario.items.counted if small(of_item[c], catalogue)]
    values = {c: of_item[c][of_item.index.isin(items)].dropna().unique() for c in audited}
    parts = []
    for batch in raw_batches(path, scenario):
        joined = batch.join(of_item.add_prefix("category."), on="item")
        keep = joined["user"].isin(users) | joined["item"].isin(items)
        for column in audited:
            keep |= joined[f"category.{column}"].isin(values[column])
        parts.append(joined[keep])
    rows = pd.concat(parts)
    item_row = {item: i for i, item in enumerate(ids)}
    rows = rows[rows["item"].isin(item_row) & rows["user"].notna() & rows["time"].notna()]
    rows["split"] = splits(prepared, scenario, name, rows)
    return Log(rows, item_row, audited, of_item, project.data_seed)


def read_categories(project: Project, name: str) -> pd.DataFrame:
    """The counted categorical columns of a catalogue, as text by item id."""
    items = project.scenarios[name].items
    tables = []
    for file in storage.parquet_files(project.path(items.path)):
        fs, inner = storage.filesystem(file)
        columns = [items.id, *items.counted]
        tables.append(pq.read_table(inner, filesystem=fs, columns=columns))
    table = pa.concat_tables(tables, promote_options="permissive")
    ids = pc.cast(table.column(items.id), pa.string()).to_pylist()
    text = {c: pc.cast(table.column(c), pa.string()).to_pylist() for c in items.counted}
    return pd.DataFrame(text, index=pd.Index(ids), dtype=object)


def small(values: pd.Series, catalogue: str) -> bool:
    """Whether no value of a category has more training rows than the audit reads."""
    fs, inner = storage.filesystem(catalogue)
    rows = pq.read_table(inner, filesystem=fs, columns=["train_rows"]).column(0).to_numpy()
    return pd.Series(rows).groupby(values.to_numpy()).sum().max() <= MAX_CATEGORY_ROWS


def raw_batches(path: str, scenario: Scenario) -> Iterator[pd.DataFrame]:
    """The log in pieces, indexed by row number."""
    events = scenario.events
    labels = {t: spec.label or t for t, spec in scenario.tasks.items()}
    columns = {events.user, events.item, *labels.values()}
    columns |= {c for c in (events.time, scenario.split.column) if c}
    first = 0
    for file in storage.parquet_files(path):
        fs, inner = storage.filesystem(file)
        with fs.open_input_file(inner) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(columns=sorted(columns)):
                frame = pd.DataFrame(index=range(first, first + batch.num_rows))
                first += batch.num_rows
                for key, column in (("user", events.user), ("item", events.item)):
                    text = pc.cast(batch.column(column), pa.string())
                    frame[key] = text.to_numpy(zero_copy_only=False)
                frame["time"] = raw_milliseconds(batch.column(events.time)) if events.time else 0.0
                for task, column in labels.items():
                    values = pc.cast(batch.column(column), pa.float64(), safe=False)
                    frame[task] = values.to_numpy(zero_copy_only=False)
                if scenario.split.column:
                    words = pc.cast(batch.column(scenario.split.column), pa.string())
                    frame["split"] = words.to_numpy(zero_copy_only=False)
                for task, spec in scenario.tasks.items():
                    if spec.given:
                        frame.loc[frame[spec.given] != 1, task] = np.nan
                yield frame


def raw_milliseconds(column: pa.Array) -> np.ndarray:
    """f64[N]: milliseconds since 1970, NaN for null; plain numbers are seconds."""
    if pa.types.is_temporal(column.type):
        stamp = pc.cast(pc.cast(column, pa.timestamp("ms"), safe=False), pa.int64())
        return pc.cast(stamp, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False) * 1000


def splits(
    prepared: Prepared, scenario: Scenario, name: str, rows: pd.DataFrame
) -> pd.Series | np.ndarray:
    """The split of raw rows: by its column, or by the prepared split that holds the row."""
    if scenario.split.column:
        return rows["split"]
    found = pd.Series("", index=rows.index)
    for split in ("train", "valid", "test"):
        for path in prepared.shard_paths(name, split):
            fs, inner = storage.filesystem(path)
            numbers = pq.read_table(inner, filesystem=fs, columns=["row"]).column(0).to_numpy()
            found[rows.index.isin(numbers)] = split
    return found


def check_row(
    log: Log, scenario: Scenario, facts: PreparedScenario, split: str, sample: Arrays
) -> list[str]:
    """What in a sample disagrees with the raw log."""
    number = int(sample["row"])
    source = source_row(scenario, number)
    if source not in log.rows.index:
        return [f"the log has no usable row {source}"]
    raw: Any = log.rows.loc[source]
    keys = {"user": raw["user"], "item": list(log.item_row)[int(sample["item"])]}
    if number == source and raw["item"] != keys["item"]:
        return [f"item: prepared {keys['item']}, in the log {raw['item']}"]
    seen = rows_to_see(log, scenario, split, source)
    columns = dict(zip(facts.numeric_names, sample["numeric"].tolist(), strict=True))
    scale = 1.0
    if scenario.events.time is None and split == "train":
        scale = NUM_FOLDS / (NUM_FOLDS - 1)  # counts stand for the whole training set
    problems: list[str] = []
    known = facts.label_means
    for key, value in keys.items():
        same = seen[seen[key] == value]
        expected = expected_statistics(same, raw["time"], scenario, known, key, scale)
        problems += disagreements(columns, expected)
    mine = seen[seen["user"] == raw["user"]]
    for column in log.audited:
        value = log.category(keys["item"], column)
        for key, rows in ((f"category.{column}", seen), (f"user_category.{column}", mine)):
            same = rows[rows[f"category.{column}"] == value]
            expected = expected_statistics(same, raw["time"], scenario, known, key, scale, ())
            if value is None:
                expected = dict.fromkeys(expected, np.nan)
            problems += disagreements(columns, expected)
    return problems + check_history(log, scenario, mine, raw["time"], sample["history"].tolist())


def rows_to_see(log: Log, scenario: Scenario, split: str, source: int) -> pd.DataFrame:
    """The raw rows that a row's features may rest on, time apart."""
    if scenario.events.time is not None and scenario.statistics == "live":
        return log.rows
    train = log.rows[log.rows["split"] == "train"]
    if scenario.events.time is not None or split != "train":
        return train
    folds = np.array([fold(int(n), log.seed) for n in train.index])
    return train[folds != fold(source, log.seed)]


def fold(number: int, seed: int) -> int:
    """Fold of a training row without time: splitmix64 (Steele et al. 2014) of its number."""
    mask = 2**64 - 1
    mixed = (number + 0x9E3779B97F4A7C15 * (seed + 2)) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return (mixed ^ (mixed >> 31)) % NUM_FOLDS


def expected_statistics(
    same: pd.DataFrame,
    time: float,
    scenario: Scenario,
    priors: dict[str, float],
    key: str,
    scale: float,
    windows: tuple[int, ...] = WINDOWS_DAYS,
) -> dict[str, float]:
    """Counts and rates of a key's rows by the rows before a time (without time: by all)."""
    timed = scenario.events.time is not None
    before = same[same["time"] < time] if timed else same
    expected = {f"{key}.log_count": float(np.log(1 + scale * len(before)))}
    if timed:
        expected |= expected_times(before, time, key, windows)
    for task, spec in scenario.tasks.items():
        prior, until = priors[task], time - 1000 * spec.delay
        known = (same[same["time"] < until] if timed else same)[["time", task]].dropna()
        expected[f"{key}.log_known.{task}"] = float(np.log(1 + scale * len(known)))
        expected[f"{key}.rate.{task}"] = smoothed(known[task], prior)
        for days in windows if timed else ():
            recent = known[known["time"] >= until - days * DAY_MS]
            expected[f"{key}.rate_{days}d.{task}"] = smoothed(recent[task], prior)
    return expected


def expected_times(
    before: pd.DataFrame, time: float, key: str, windows: tuple[int, ...]
) -> dict[str, float]:
    """Counts by window, and the time since the first and the last of the rows before a time."""
    expected = {}
    for days in windows:
        recent = before[before["time"] >= time - days * DAY_MS]
        expected[f"{key}.log_count_{days}d"] = float(np.log(1 + len(recent)))
    first, last = (before["time"].min(), before["time"].max()) if len(before) else (np.nan, np.nan)
    expected[f"{key}.log_seconds_since_first"] = float(np.log(1 + (time - first) / 1000))
    expected[f"{key}.log_seconds_since_last"] = float(np.log(1 + (time - last) / 1000))
    return expected


def smoothed(labels: pd.Series, prior: float) -> float:
    """The mean of labels with ten rows of the prior added."""
    return float((labels.sum() + 10 * prior) / (len(labels) + 10))


def disagreements(columns: dict[str, float], expected: dict[str, float]) -> list[str]:
    """A line for each column that differs from what the raw log gives."""
    return [
        f"{name}: prepared {columns[name]:.5f}, by brute force {value:.5f}"
        for name, value in expected.items()
        if not np.isclose(columns[name], value, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    ]


def check_history(
    log: Log, scenario: Scenario, mine: pd.DataFrame, time: float, history: list[int]
) -> list[str]:
    """The history against the user's last positives strictly before a time (without time: any)."""
    delay = 0
    if scenario.history.of != "any":
        mine = mine[mine[scenario.history.of] == 1]
        delay = 1000 * scenario.tasks[scenario.history.of].delay
    if scenario.events.time is not None:
        mine = mine[mine["time"] < time - delay]
    wanted = min(len(mine), scenario.history.last)
    found = [item for item in history if item >= 0]
    if len(found) != wanted:
        return [f"history: prepared {len(found)} items, by brute force {wanted}"]
    rows = mine["item"].map(log.item_row)
    if not set(found) <= set(rows):
        return ["history: holds an item that is no earlier positive of the user"]
    latest = sorted(mine["time"], reverse=True)[:wanted]
    times = dict(zip(rows, mine["time"], strict=True))
    if rows.is_unique and [times[item] for item in found] != latest:
        return ["history: is not the user's latest positives, newest first"]
    return []
