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

from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.data.preparing.audit_elsewhere import Asked, check_elsewhere
from mtrec_ray.data.preparing.audit_log import AuditLog, read_audit_log, source_row
from mtrec_ray.data.preparing.audit_profiles import AuditProfiles, read_audit_profiles
from mtrec_ray.data.preparing.taken_rows import Beside
from mtrec_ray.data.shards import Arrays, read_rows
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario

TOLERANCE = 1e-3


AUDIT_DAY_MS = 86_400_000


WINDOWS_DAYS = (1, 7, 30)


AUDIT_NUM_FOLDS = 5


def audit(
    project: Project,
    prepared: Prepared,
    *,
    rows_per_split: int = 12,
    beside: Beside | None = None,
) -> list[str]:
    """Returns a line for each sampled row that disagrees with the raw log.

    `beside`: scenarios of the same people that were prepared before.
    """
    problems: list[str] = []
    asked: list[Asked] = []
    for name, scenario in project.scenarios.items():
        samples = {
            split: list(sampled_rows(prepared, name, split, rows_per_split))
            for split in ("train", "valid", "test")
        }
        log = read_audit_log(
            project, prepared, name, [s for rows in samples.values() for s in rows]
        )
        users = sorted(set(log.rows["user"]))
        profiles = read_audit_profiles(project, prepared, name, users)
        for split, rows in samples.items():
            for sample in rows:
                lines = check_row(log, scenario, prepared.scenarios[name], split, sample)
                lines += check_profile(log, scenario, profiles, sample)
                where = f"scenarios.{name} ({split} row {int(sample['row'])})"
                problems += [f"{where}: {line}" for line in lines]
                asked += asked_by(log, scenario, sample, name, where)
    return problems + check_elsewhere(project, prepared, asked, beside)


def asked_by(
    log: AuditLog, scenario: Scenario, sample: Arrays, name: str, where: str
) -> Iterator[Asked]:
    """Yields what a sample asks of other scenarios, if the log has its row."""
    source = source_row(scenario, int(sample["row"]))
    if source in log.rows.index:
        raw: Any = log.rows.loc[source]
        yield Asked(name, where, raw["user"], int(sample["person"]), float(raw["time"]))


def sampled_rows(prepared: Prepared, name: str, split: str, number: int) -> Iterator[Arrays]:
    """Yields some samples, spread evenly over the split."""
    total = prepared.scenarios[name].num_rows(split)
    paths = prepared.shard_paths(name, split)
    for start in sorted({int(total * (i + 0.5) / number) for i in range(number)}):
        for batch in read_rows(paths, 1024, start, start + 1):
            yield {column: values[0] for column, values in batch.items()}


def check_row(
    log: AuditLog, scenario: Scenario, facts: PreparedScenario, split: str, sample: Arrays
) -> list[str]:
    """Returns what in a sample disagrees with the raw log."""
    number = int(sample["row"])
    source = source_row(scenario, number)
    if source not in log.rows.index:
        return [f"the log has no usable row {source}"]
    raw: Any = log.rows.loc[source]
    item = list(log.item_row)[int(sample["item"])]
    if number == source and raw["item"] != item:
        return [f"item: prepared {item}, in the log {raw['item']}"]
    wrong = check_labels(scenario, raw, sample) if number == source else []
    seen = rows_to_see(log, scenario, split, source)
    columns = dict(zip(facts.numeric_names, sample["numeric"].tolist(), strict=True))
    scale = 1.0
    if scenario.events.time is None and split == "train":
        scale = AUDIT_NUM_FOLDS / (AUDIT_NUM_FOLDS - 1)  # counts stand for the whole training set
    past = AuditPast(scenario, facts.label_means, raw["time"], scale)
    of_user = seen[seen["user"] == raw["user"]]
    problems = wrong + disagreements(columns, past.statistics("user", of_user))
    problems += disagreements(columns, past.statistics("item", seen[seen["item"] == item]))
    for column in log.audited:
        expect = of_several if column in log.items_with else of_category
        for prefix, rows in (("", seen), ("user_", of_user)):
            problems += disagreements(columns, expect(log, past, rows, item, column, prefix))
    problems += check_history(log, scenario, of_user, raw["time"], sample["history"].tolist())
    if scenario.history.outcomes and not problems:
        problems += check_outcomes(log, scenario, facts, of_user, raw["time"], sample)
    return problems


def check_labels(scenario: Scenario, raw: Any, sample: Arrays) -> list[str]:
    """Returns a line for each label of a sample, and its weight, that differs from its row's."""
    prepared = dict(zip(scenario.tasks, sample["labels"].tolist(), strict=True))
    wanted = {task: float(raw[f"label.{task}"]) for task in scenario.tasks}
    wrong = [f"label of {line}" for line in disagreements(prepared, wanted)]
    weight = {"weight": float(sample.get("weight", 1.0))}
    return wrong + disagreements(weight, {"weight": float(raw["weight"])})


def check_profile(
    log: AuditLog, scenario: Scenario, profiles: AuditProfiles | None, sample: Arrays
) -> list[str]:
    """Returns what in the profile of a sample's user disagrees with the table of users."""
    source = source_row(scenario, int(sample["row"]))
    if profiles is None or source not in log.rows.index:
        return []
    raw: Any = log.rows.loc[source]
    asking = (int(sample["person"]), float(raw["time"]), int(sample["time"]))
    return profiles.check(raw["user"], *asking)


def rows_to_see(log: AuditLog, scenario: Scenario, split: str, source: int) -> pd.DataFrame:
    """Returns the raw rows that a row's features may rest on, time apart."""
    if scenario.events.time is not None and scenario.statistics == "live":
        return log.rows
    train = log.rows[log.rows["split"] == "train"]
    if scenario.events.time is not None or split != "train":
        return train
    folds = np.array([fold(int(n), log.seed) for n in train.index])
    return train[folds != fold(source, log.seed)]


def fold(number: int, seed: int) -> int:
    """Returns the fold of a row without time: splitmix64 (Steele et al. 2014) of its number."""
    mask = 2**64 - 1
    mixed = (number + 0x9E3779B97F4A7C15 * (seed + 2)) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return (mixed ^ (mixed >> 31)) % AUDIT_NUM_FOLDS


@dataclass(frozen=True)
class AuditPast:
    """What may be known at a time; `scale` multiplies counts, `priors` are label means by task."""

    scenario: Scenario
    priors: dict[str, float]
    time: float
    scale: float

    def statistics(
        self, key: str, same: pd.DataFrame, windows: tuple[int, ...] = WINDOWS_DAYS
    ) -> dict[str, float]:
        """Returns counts and rates of a key from rows before the time (without time: from all)."""
        timed = self.scenario.events.time is not None
        before = same[same["time"] < self.time] if timed else same
        expected = {f"{key}.log_count": float(np.log(1 + self.scale * len(before)))}
        if timed:
            expected |= expected_times(before, self.time, key, windows)
        for task in self.scenario.tasks:
            prior, until = self.priors[task], self.time - 1000 * known_after(self.scenario, task)
            known = (same[same["time"] < until] if timed else same)[["time", f"label.{task}"]]
            known = known.dropna()
            if gains := self.scenario.tasks[task].class_gains:
                known[f"label.{task}"] = [gains[int(n)] for n in known[f"label.{task}"]]
            expected[f"{key}.log_known.{task}"] = float(np.log(1 + self.scale * len(known)))
            expected[f"{key}.rate.{task}"] = smoothed(known[f"label.{task}"], prior)
            for days in windows if timed else ():
                recent = known[known["time"] >= until - days * AUDIT_DAY_MS]
                expected[f"{key}.rate_{days}d.{task}"] = smoothed(recent[f"label.{task}"], prior)
        return expected


def expected_times(
    before: pd.DataFrame, time: float, key: str, windows: tuple[int, ...]
) -> dict[str, float]:
    """Returns counts by window, and the time since the first and the last row before a time."""
    expected = {}
    for days in windows:
        recent = before[before["time"] >= time - days * AUDIT_DAY_MS]
        expected[f"{key}.log_count_{days}d"] = float(np.log(1 + len(recent)))
    first, last = (before["time"].min(), before["time"].max()) if len(before) else (np.nan, np.nan)
    expected[f"{key}.log_seconds_since_first"] = float(np.log(1 + (time - first) / 1000))
    expected[f"{key}.log_seconds_since_last"] = float(np.log(1 + (time - last) / 1000))
    return expected


def known_after(scenario: Scenario, task: str) -> int:
    """Returns the seconds until a label is known: at least those of the labels it rests on."""
    seconds, current = 0, scenario.tasks.get(task)
    while current is not None:
        seconds = max(seconds, current.delay)
        current = scenario.tasks.get(current.given or "")
    return seconds


def smoothed(labels: pd.Series, prior: float) -> float:
    """Returns the mean of labels with ten rows of the prior added."""
    return float((labels.sum() + 10 * prior) / (len(labels) + 10))


def of_category(
    log: AuditLog, past: AuditPast, rows: pd.DataFrame, item: str, column: str, prefix: str
) -> dict[str, float]:
    """Returns the statistics of some rows with an item's category."""
    value = log.category(item, column)
    same = rows[rows[f"category.{column}"] == value]
    expected = past.statistics(f"{prefix}category.{column}", same, ())
    return dict.fromkeys(expected, np.nan) if value is None else expected


def of_several(
    log: AuditLog, past: AuditPast, rows: pd.DataFrame, item: str, column: str, prefix: str
) -> dict[str, float]:
    """Returns the statistics of some rows with an item's values: of each, then taken together."""
    key = f"{prefix}values.{column}"
    each: list[dict[str, float]] = []
    for value in log.values(item, column):
        same = rows[rows["item"].isin(log.items_with[column][value])]
        each.append(past.statistics(key, same, ()))
    names = past.statistics(key, rows[:0], ())
    return {n: together(n.removeprefix(key), [own[n] for own in each]) for n in names}


def together(what: str, values: list[float]) -> float:
    """Returns the mean of rates, the shortest time since the last row, the most of all else."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return np.nan
    if what.startswith(".rate."):
        return sum(known) / len(known)
    return min(known) if what == ".log_seconds_since_last" else max(known)


def disagreements(columns: dict[str, float], expected: dict[str, float]) -> list[str]:
    """Returns a line for each column that differs from what the raw log gives."""
    return [
        f"{name}: prepared {columns[name]:.5f}, by brute force {value:.5f}"
        for name, value in expected.items()
        if not np.isclose(columns[name], value, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    ]


def check_history(
    log: AuditLog, scenario: Scenario, of_user: pd.DataFrame, time: float, history: list[int]
) -> list[str]:
    """Returns how a history differs from the last positives before a time (without time: any)."""
    delay = 0
    if tasks := scenario.history.tasks:
        of_user = of_user[(of_user[[f"label.{task}" for task in tasks]] == 1).any(axis=1)]
        delay = 1000 * max(known_after(scenario, task) for task in tasks)
    if scenario.events.time is not None:
        of_user = of_user[of_user["time"] < time - delay]
    wanted = min(len(of_user), scenario.history.last)
    listed = [item for item in history if item >= 0]
    if len(listed) != wanted:
        return [f"history: prepared {len(listed)} items, by brute force {wanted}"]
    rows = of_user["item"].map(log.item_row)
    if not set(listed) <= set(rows):
        return ["history: holds an item that is no earlier positive of the user"]
    latest = sorted(of_user["time"], reverse=True)[:wanted]
    times = dict(zip(rows, of_user["time"], strict=True))
    if rows.is_unique and [times[item] for item in listed] != latest:
        return ["history: is not the user's latest positives, newest first"]
    return []


def check_outcomes(
    log: AuditLog,
    scenario: Scenario,
    facts: PreparedScenario,
    of_user: pd.DataFrame,
    time: float,
    sample: Arrays,
) -> list[str]:
    """Returns how a history's outcomes differ from what its rows' labels told before a time.

    An item that the user has several rows with is left out: its row in the history is not known.
    """
    rows = of_user["item"].map(log.item_row)
    problems = []
    for item, outcome in zip(sample["history"], sample["history_outcome"], strict=True):
        same = of_user[rows == item]
        if item < 0 or len(same) > 1:
            continue
        for place, task in enumerate(facts.tasks):
            known = scenario.events.time is None or (
                same["time"].iloc[0] < time - 1000 * known_after(scenario, task)
            )
            label = float(same[f"label.{task}"].iloc[0]) if known else np.nan
            if (gains := scenario.tasks[task].class_gains) and not np.isnan(label):
                label = gains[int(label)]
            found, wanted = int(outcome) // 4**place % 4, level(facts, task, label)
            if found != wanted:
                problems.append(f"outcome of {task}: prepared {found}, by brute force {wanted}")
    return problems


def level(facts: PreparedScenario, task: str, label: float) -> int:
    """Returns 1 for a low label, 2 for one in the middle, 3 for a high one, 0 for none."""
    if np.isnan(label):
        return 0
    if facts.kinds[task] == "binary":
        return 3 if label == 1 else 1
    mean, std = facts.label_means[task], facts.label_stds[task]
    if facts.kinds[task] == "duration":
        mean, std = facts.label_log_means[task], facts.label_log_stds[task]
        label = float(np.log(1 + label))
    return 1 if label < mean - std / 2 else 3 if label > mean + std / 2 else 2
