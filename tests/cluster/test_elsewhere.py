"""Timelines are those that plain loops over the raw logs give, and the audit refuses others."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.elsewhere import timeline_path
from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.data.preparing.audit import audit
from mtrec_ray.data.shards import read_rows
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.project.split import SPLITS
from tests.cluster.logs import Logs, logs_project, scenario_tree, write_logs
from tests.cluster.runs import prepare_in_partitions, prepared_folder

pytestmark = pytest.mark.cluster

LAST, NUM_ITEMS = 4, 30
TWO_DAYS = 2 * 86_400_000
NAMES = ("live", "cut", "folds", "logged")


def project_of(root: Path) -> Project:
    """Four logs of the same people, who ask for what they took in the others.

    `live` lists what was clicked or bought, the latter known after two days; `cut` counts training
    rows alone and draws negatives; `folds` has no time; the zeros of `logged` were seen by nobody.
    """
    tree = logs_project(root)
    kept = {name: tree["scenarios"][name] for name in ("live", "cut", "folds")}
    kept["live"]["history"] = {"of": ["click", "bought"], "last": 5}
    kept["logged"] = scenario_tree(
        "ordered", negatives={"of": "click", "from": "log"}, history={"of": "any", "last": 5}
    )
    for scenario in kept.values():
        scenario |= {"users": "people", "history": {**scenario["history"], "elsewhere": LAST}}
    return parse_project({**tree, "scenarios": kept, "run": {"name": "elsewhere"}})


@pytest.fixture(scope="module")
def found(logs: Logs, tmp_path_factory) -> tuple[Project, Prepared]:
    """The project and its prepared data, in several partitions."""
    root, storage = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("elsewhere")
    words = logs | {"ordered": replace(logs["ordered"], events=logs["ordered"].events.assign(
        split=np.random.default_rng(5).choice(SPLITS, len(logs["ordered"].events))))}  # fmt: skip
    write_logs(root, words)
    project = project_of(root)
    prepare_in_partitions(project, storage, 200)
    return project, load_prepared(prepared_folder(project, str(storage)))


def taken(logs: Logs, prepared: Prepared) -> pd.DataFrame:
    """What was taken in each scenario: user, item, when that was known and happened, and split."""
    parts = []
    for number, name in enumerate(NAMES):
        log = logs["ordered" if name == "logged" else name]
        rows = log.rows[log.rows["click"] != 0 if name == "logged" else log.rows["click"] == 1]
        if name == "folds":  # it lists all rows
            rows = log.rows
        ids = log.items["item_id"].tolist()
        split = pd.Series({
            int(row): split for split in SPLITS for path in prepared.shard_paths(name, split)
            for row in pq.read_table(path, columns=["row"]).column(0).to_pylist()
        })  # fmt: skip
        time = pd.Series(-np.inf, rows.index)
        if name != "folds":
            unit = "s" if name == "logged" else None
            time = pd.to_datetime(rows["time"], unit=unit).astype("M8[ms]").astype(np.int64)
        parts.append(pd.DataFrame({
            "name": name, "user": rows["user_id"], "time": time.astype(float),
            "known": time + (TWO_DAYS if name == "live" else 0),
            "item": [NUM_ITEMS * number + ids.index(item) for item in rows["item_id"]],
            "split": split[rows.index],
        }))  # fmt: skip
    frame = pd.concat(parts)
    trained = frame["split"] == "train"
    return frame[trained | frame["name"].isin(["live", "logged"])]


@pytest.mark.parametrize("name", NAMES)
def test_what_rows_see_is_what_plain_loops_find(found, logs, name):
    """Of all rows of all splits: the last rows of other scenarios that were known before."""
    prepared = found[1]
    rows = taken(logs, prepared)
    others = rows[rows["name"] != name]
    users = {hash_strings(pa.array([u])).view(np.int64)[0]: u for u in set(rows["user"].dropna())}
    timeline = prepared.timeline(name)
    seen = 0
    for split in SPLITS:
        for arrays in read_rows(prepared.shard_paths(name, split), 10_000, 0, 10**9):
            items, ages = timeline.taken(arrays["person"], arrays["time"])
            for i, person in enumerate(arrays["person"]):
                mine = others[others["user"] == users.get(person)]
                if name == "folds":
                    mine = mine[mine["split"] == "train"]
                else:
                    mine = mine[mine["known"] < arrays["time"][i]]
                got = items[i][items[i] >= 0]
                assert len(got) == min(len(mine), LAST)
                assert set(got) <= set(mine["item"])
                wanted = np.sort(mine["known"])[::-1][:LAST]
                for item, known, age in zip(got, wanted, ages[i], strict=False):
                    same = mine[(mine["item"] == item) & (mine["known"] == known)]
                    assert len(same)
                    timed = name != "folds" and np.isfinite(known)
                    days = (arrays["time"][i] - same["time"].iloc[0]) / 1000 if timed else 0
                    assert age == (int(np.log2(1 + days)) if timed else 63)
                seen += len(got)
    assert seen > 300


def test_timelines_are_sorted_and_lie_beside_the_rows(found):
    """By person, then by the time from which a row is known; texts of all items have length 1."""
    prepared = found[1]
    for name in NAMES:
        timeline = prepared.timeline(name)
        keys = np.stack([timeline.person, timeline.known])
        assert (np.lexsort([keys[1], keys[0]]) == np.arange(len(timeline.person))).all()
        assert isinstance(timeline.item, np.memmap)
        assert timeline.texts.shape == (4 * NUM_ITEMS, 384)
        np.testing.assert_allclose(np.linalg.norm(timeline.texts, axis=1), 1, atol=2e-3)


def test_the_audit_passes_honest_timelines(found):
    """Not one of 30 rows of each split is refused."""
    assert audit(*found, rows_per_split=30) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_the_future_fails_the_audit(found, tmp_path, name):
    """A timeline that knows later rows from the beginning on; an item that nobody took."""
    project, prepared = found
    shutil.copytree(prepared.folder, tmp_path / "planted")
    planted = replace(prepared, folder=str(tmp_path / "planted"))
    column = "item" if name == "folds" else "known"
    path = timeline_path(planted.folder, name, column)
    values = np.load(path)
    np.save(path, (values + 1) % NUM_ITEMS if name == "folds" else np.full_like(values, -1))
    lines = audit(project, planted)
    assert lines
    assert all(line.startswith(f"scenarios.{name} ") for line in lines)
    assert all("history elsewhere: " in line for line in lines)
