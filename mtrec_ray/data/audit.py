"""The leakage audit: sampled rows recomputed from the raw log by brute force.

Shares no code with the preparation: plain pandas filters, one sampled row at a time. It proves for
each sampled row that counts, rates and history come from rows strictly before it (labels: from
rows whose delay has passed) and, without time, from training rows other than itself.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mtrec_ray.data import storage
from mtrec_ray.data.shards import Arrays, Prepared, PreparedScenario, read_rows
from mtrec_ray.schema import Project, Scenario

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Log:
    """The raw log of a scenario: columns user, item (text), time, train, and one a task."""

    rows: pd.DataFrame
    item_row: dict[str, int]


def audit(project: Project, prepared: Prepared, *, rows_per_split: int = 12) -> list[str]:
    """One line for each sampled row that does not agree with the raw log; empty when all do."""
    problems: list[str] = []
    for name, scenario in project.scenarios.items():
        log = read_log(project, prepared, name)
        for split in ("train", "valid", "test"):
            for sample in sampled_rows(prepared, name, split, rows_per_split):
                problems += [
                    f"scenarios.{name} ({split} row {int(sample['row'])}): {line}"
                    for line in check_row(log, scenario, prepared.scenarios[name], sample)
                ]
    return problems


def read_log(project: Project, prepared: Prepared, name: str) -> Log:
    """The raw log with the columns the audit needs."""
    scenario = project.scenarios[name]
    events = scenario.events
    path, fs = storage.filesystem(project.path(events.path))[::-1]
    raw = pq.read_table(path, filesystem=fs).to_pandas()
    frame = pd.DataFrame(
        {"user": raw[events.user].astype(str), "item": raw[events.item].astype(str)}
    )
    if events.time:
        stamp = raw[events.time]
        is_date = pd.api.types.is_datetime64_any_dtype(stamp)
        frame["time"] = (
            pd.to_datetime(stamp, utc=True).astype("datetime64[ms, UTC]").astype("int64")
            if is_date
            else stamp * 1000
        )
        frame.loc[stamp.isna(), "time"] = np.nan
    if scenario.split.column:
        frame["split"] = raw[scenario.split.column].astype(str)
    for task, spec in scenario.tasks.items():
        frame[task] = raw[spec.label or task].astype("float64")
    for task, spec in scenario.tasks.items():
        if spec.given:
            frame.loc[frame[spec.given] != 1, task] = np.nan
    ids_path, ids_fs = storage.filesystem(storage.join(prepared.folder, name, "catalogue.parquet"))[
        ::-1
    ]
    ids = pq.read_table(ids_path, filesystem=ids_fs, columns=["item_id"]).column(0).to_pylist()
    item_row = {item: i for i, item in enumerate(ids)}
    usable = frame["item"].isin(item_row) & raw[events.user].notna()
    if events.time:
        usable &= frame["time"].notna()
    return Log(frame[usable], item_row)


def sampled_rows(prepared: Prepared, name: str, split: str, number: int) -> list[Arrays]:
    """Some samples, spread evenly over the split."""
    total = prepared.scenarios[name].num_rows(split)
    paths = prepared.shard_paths(name, split)
    found = []
    for start in sorted({int(total * (i + 0.5) / number) for i in range(number)}):
        for batch in read_rows(paths, 1024, start, start + 1):
            found.append({column: values[0] for column, values in batch.items()})
    return found


def check_row(log: Log, scenario: Scenario, facts: PreparedScenario, sample: Arrays) -> list[str]:
    """What in a sample disagrees with the raw log."""
    number = int(sample["row"])
    if number not in log.rows.index:
        return []
    raw = log.rows.loc[number]
    columns = dict(zip(facts.numeric_names, sample["numeric"].tolist(), strict=True))
    if scenario.events.time is None:
        return check_untimed(log, scenario, facts, sample, columns)
    problems = []
    for key in ("item", "user"):
        same = log.rows[log.rows[key] == raw[key]]
        if scenario.statistics == "frozen" and "split" in same:
            same = same[same["split"] == "train"]
        problems += compare(columns, expected_statistics(same, raw["time"], scenario, facts, key))
    return problems + check_history(log, scenario, raw, sample["history"].tolist())


def expected_statistics(
    same: pd.DataFrame, time: float, scenario: Scenario, facts: PreparedScenario, key: str
) -> dict[str, float]:
    """Counts and rates of a key by the rows before a time."""
    before = same[same["time"] < time]
    expected = {f"{key}.log_count": float(np.log(1 + len(before)))}
    for days in (7, 30):
        recent = before[before["time"] >= time - days * 86_400_000]
        expected[f"{key}.log_count_{days}d"] = float(np.log(1 + len(recent)))
    for task, spec in scenario.tasks.items():
        known = same[same["time"] < time - 1000 * spec.delay][task].dropna()
        rate = (known.sum() + 10 * facts.label_means[task]) / (len(known) + 10)
        expected[f"{key}.log_known.{task}"] = float(np.log(1 + len(known)))
        expected[f"{key}.rate.{task}"] = float(rate)
    return expected


def compare(columns: dict[str, float], expected: dict[str, float]) -> list[str]:
    """A line for each column that differs from what the raw log gives."""
    return [
        f"{name}: prepared {columns[name]:.5f}, by brute force {value:.5f}"
        for name, value in expected.items()
        if abs(columns[name] - value) > TOLERANCE * max(1, abs(value))
    ]


def check_history(log: Log, scenario: Scenario, raw: pd.Series, history: list[int]) -> list[str]:
    """The history against the user's last positives strictly before the row."""
    mine = log.rows[log.rows["user"] == raw["user"]]
    delay = 0
    if scenario.history.of != "any":
        mine = mine[mine[scenario.history.of] == 1]
        delay = 1000 * scenario.tasks[scenario.history.of].delay
    mine = mine[mine["time"] < raw["time"] - delay]
    wanted = min(len(mine), scenario.history.last)
    found = [item for item in history if item >= 0]
    if len(found) != wanted:
        return [f"history: prepared {len(found)} items, by brute force {wanted}"]
    times = dict(zip(mine["item"].map(log.item_row), mine["time"], strict=True))
    if any(item not in times for item in found):
        return ["history: holds an item that is no earlier positive of the user"]
    latest = sorted(mine["time"], reverse=True)[:wanted]
    if mine["item"].is_unique and [times[i] for i in found] != latest:
        return ["history: is not the user's latest positives, newest first"]
    return []


def check_untimed(
    log: Log, scenario: Scenario, facts: PreparedScenario, sample: Arrays, columns: dict[str, float]
) -> list[str]:
    """Without time: history and counts hold training rows only, and never the row itself."""
    raw = log.rows.loc[int(sample["row"])]
    train = log.rows
    if "split" in train:
        train = train[train["split"] == "train"]
    mine = train[train["user"] == raw["user"]]
    if scenario.history.of != "any":
        mine = mine[mine[scenario.history.of] == 1]
    allowed = set(mine["item"].map(log.item_row)) - {int(sample["item"])}
    if any(item not in allowed for item in sample["history"].tolist() if item >= 0):
        return ["history: holds an item that is no other training positive of the user"]
    problems = []
    for key in ("item", "user"):
        others = train[train[key] == raw[key]]
        own = len(others) and int(sample["row"]) in others.index
        limit = (len(others) - bool(own)) * (1.25 if own else 1.0)
        count = float(np.expm1(columns[f"{key}.log_count"]))
        if count > limit * (1 + TOLERANCE) + TOLERANCE and limit * (1 + TOLERANCE) < count:
            problems.append(f"{key}.log_count: prepared {count:.1f}, at most {limit:.1f} allowed")
        if not own:
            problems += compare(columns, untimed_rates(others, scenario, facts, key))
    return problems


def untimed_rates(
    others: pd.DataFrame, scenario: Scenario, facts: PreparedScenario, key: str
) -> dict[str, float]:
    """Counts and rates of a key over all training rows."""
    expected = {f"{key}.log_count": float(np.log(1 + len(others)))}
    for task in scenario.tasks:
        known = others[task].dropna()
        rate = (known.sum() + 10 * facts.label_means[task]) / (len(known) + 10)
        expected[f"{key}.rate.{task}"] = float(rate)
    return expected
