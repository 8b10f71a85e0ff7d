"""The leakage audit of what users took in other scenarios: counted in the raw logs once more.

By code of its own, as the rest of the audit: users are compared by their ids as text, rows of all
logs of the same people are filtered one sampled row at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtrec_ray.data import storage
from mtrec_ray.data.elsewhere import Timeline
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.audit_log import raw_batches, splits
from mtrec_ray.data.preparing.taken_rows import Beside
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario


@dataclass(frozen=True)
class Asked:
    """A sampled row: its scenario, words that name it, its user, the hash of his id, its time."""

    name: str
    where: str
    user: str
    person: int
    time: float


def check_elsewhere(
    project: Project, prepared: Prepared, asked: list[Asked], beside: Beside | None
) -> list[str]:
    """Returns a line for each row that sees other items elsewhere than the raw logs tell."""
    problems: list[str] = []
    asking = [n for n, facts in prepared.scenarios.items() if facts.elsewhere]
    users = {row.user for row in asked if row.name in asking}
    taken: dict[str, pd.DataFrame] = {}
    for name in asking:
        timeline = prepared.timeline(name)
        assert timeline is not None
        number = 0  # of the first item of each scenario
        logs: list[pd.DataFrame] = []
        for other, num_items in timeline.facts.num_items.items():
            if other != name and other not in taken:
                own = holder(other, project, prepared, beside)
                taken[other] = raw_taken(*own, other, users)
            if other != name:
                logs.append(taken[other].assign(item=taken[other]["item"] + number))
            number += num_items
        rows = pd.concat(logs)
        timed = project.scenarios[name].events.time is not None
        rows = rows if timed else rows[rows["train"]].assign(known=-np.inf)
        for row in asked:
            if row.name == name:
                problems += [f"{row.where}: {line}" for line in differences(timeline, rows, row)]
    return problems


def holder(
    name: str, project: Project, prepared: Prepared, beside: Beside | None
) -> tuple[Project, Prepared]:
    """Returns the project and the prepared data that have a scenario."""
    if name in prepared.scenarios or beside is None:
        return project, prepared
    return beside.project, beside.prepared


def raw_taken(project: Project, prepared: Prepared, name: str, users: set[str]) -> pd.DataFrame:
    """Returns what some users took in a scenario, from its raw log.

    Columns: user, item (its row in the catalogue), known (ms, -inf without time), train.
    """
    scenario = project.scenarios[name]
    catalogue = storage.join(prepared.folder, name, "catalogue.parquet")
    ids = storage.read_table(catalogue, ["item_id"]).column(0).to_pylist()
    place = {item: i for i, item in enumerate(ids)}
    path = project.path(scenario.events.path)
    rows = pd.concat(raw_batches(path, scenario, users, set()))
    rows = rows[rows["item"].isin(place) & rows["user"].isin(users) & rows["time"].notna()].copy()
    rows["split"] = splits(prepared, scenario, name, rows)
    rows = rows[rows["split"].isin(["train", "valid", "test"])]
    if scenario.negatives and scenario.negatives.source == "log":
        rows = rows[rows[f"label.{scenario.negatives.of}"] != 0]
    if tasks := scenario.history.tasks:
        rows = rows[(rows[[f"label.{task}" for task in tasks]] == 1).any(axis=1)]
    timed = scenario.events.time is not None
    if not timed or scenario.statistics == "frozen":
        rows = rows[rows["split"] == "train"]
    known = rows["time"] + wait(scenario) if timed else -np.inf
    return pd.DataFrame(
        {
            "user": rows["user"],
            "item": rows["item"].map(place),
            "known": known,
            "train": rows["split"] == "train",
        }
    )


def wait(scenario: Scenario) -> int:
    """Returns the ms until all labels that a history rests on, and those above them, are known."""
    seconds = 0
    for task in scenario.history.tasks:
        current = scenario.tasks.get(task)
        while current is not None:
            seconds = max(seconds, current.delay)
            current = scenario.tasks.get(current.given or "")
    return 1000 * seconds


def differences(timeline: Timeline, rows: pd.DataFrame, asked: Asked) -> list[str]:
    """Returns how what a row sees differs from the user's latest items before it."""
    mine = rows[(rows["user"] == asked.user) & (rows["known"] < asked.time)]
    person, moment = np.array([asked.person]), np.array([asked.time]).astype(np.int64)
    found = [int(item) for item in timeline.taken(person, moment).items[0] if item >= 0]
    wanted = min(len(mine), timeline.facts.last)
    if len(found) != wanted:
        return [f"history elsewhere: prepared {len(found)} items, by brute force {wanted}"]
    if not set(found) <= set(mine["item"]):
        return ["history elsewhere: holds an item that the user had not taken by then"]
    latest = sorted(mine["known"], reverse=True)[:wanted]
    known: Mapping[int, float] = dict(zip(mine["item"], mine["known"], strict=True))
    if mine["item"].is_unique and [known[item] for item in found] != latest:
        return ["history elsewhere: is not what the user took latest, newest first"]
    return []
