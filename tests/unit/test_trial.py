"""A trial that Tune ends at any report and starts again ends where an undisturbed one ends.

Without Ray: Tune's report is a list.
"""

import math
import re
import shutil
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import ray.tune
import torch
from ray.train import Checkpoint
from safetensors.torch import load_file

from mtrec_ray.data import storage
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.search.records import Trial, load_trials
from mtrec_ray.search.space import space_of
from mtrec_ray.stages.in_process import BEST, train_in_process
from mtrec_ray.stages.run_folder import Stage
from mtrec_ray.stages.tune import planned
from mtrec_ray.stages.tuning.trial import TrialInputs, run_trial, train_trial
from mtrec_ray.training.checkpoint import FACTS as MODEL_FACTS
from mtrec_ray.training.checkpoint import WEIGHTS
from tests.builders import (
    FACTS,
    make_catalogues,
    make_rows,
    pick,
    small_model,
    take,
    two_scenario_project,
    write_prepared,
)

ROWS = {"shop": 60, "video": 25}
EPOCHS = 3


class Rows:
    """Training rows in memory."""

    kind = "memory"

    def __init__(self, rows):
        self.rows = rows

    def read(self, wanted):
        return {n: map(partial(pick, self.rows[n]), own.slices) for n, own in wanted.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared rows of two scenarios, and where training gets them from."""
    rng = np.random.default_rng(3)
    shards, rows = {}, {}
    for name, number in ROWS.items():
        found = make_rows(rng, FACTS[name], number)
        rows[name] = [take(found, slice(a, b)) for a, b in pairwise([0, number // 3, number])]
        shards[name] = {"train": rows[name], "valid": [found]}
    folder = tmp_path_factory.mktemp("trial") / "prepared"
    return write_prepared(folder, make_catalogues(), shards), Rows(rows)


@pytest.fixture(scope="module")
def project() -> Project:
    """A small model with dropout, in three epochs of four steps, with a checkpoint in mid-epoch."""
    model = small_model("none", encoder={"every": None}, dropout=0.2, id_dropout=0.3)
    tree = two_scenario_project().dump() | {"model": model.model_dump(mode="json")}
    tree["training"] |= {
        "epochs": EPOCHS, "rows_per_epoch": 48, "batch_size": 12, "alpha": 0.5, "lr": 0.01
    }  # fmt: skip
    tree["run"]["checkpoint_steps"] = 3
    tree["search"] = {"num_workers": 0, "fields": {}}
    return parse_project(tree)


def stage_of(folder):
    """The model's folder, as a search has it."""
    return Stage(str(folder), "tune", "small")


@pytest.fixture(scope="module")
def whole(data, project, tmp_path_factory):
    """What an undisturbed run told, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    told = []
    train_in_process(project, data[0], stage_of(folder), data[1], told.append)
    return told, folder


def stopped_at(number, told):
    """A listener that ends the trial, as Tune does, at a report."""

    def tell(metrics):
        told.append(metrics)
        if len(told) == number:
            raise SystemExit

    return tell


def numbers(reports):
    """Joint scores and steps of reports."""
    return [(m["epoch"], m["step"], m["joint_score"]) for m in reports]


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_trial_that_is_ended_goes_on(data, project, whole, tmp_path, stop):
    """Ended at any report, in mid-epoch or after one, and started again: same scores and model."""
    first, second = [], []
    with pytest.raises(SystemExit):
        train_in_process(project, data[0], stage_of(tmp_path), data[1], stopped_at(stop, first))
    train_in_process(project, data[0], stage_of(tmp_path), data[1], second.append)
    told, folder = whole
    np.testing.assert_allclose(numbers(first + second), numbers(told), rtol=1e-6)
    ours, theirs = (load_file(f / BEST / WEIGHTS) for f in (tmp_path, folder))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_only_the_latest_checkpoint_stays(whole):
    """One checkpoint and the best model, that of the lowest score."""
    told, folder = whole
    assert len(list(folder.glob("checkpoint_*"))) == 1
    record = storage.read_json(str(folder / BEST / MODEL_FACTS))["record"]
    assert record["joint_score"] == min(m["joint_score"] for m in told)


@pytest.fixture
def reports(monkeypatch):
    """What Tune was told."""
    found = []
    monkeypatch.setattr(ray.tune, "report", lambda metrics, checkpoint=None: found.append(metrics))
    return found


def start(project, folder, train, shared=None, name="t001"):
    """Run a trial as Tune does."""
    run_trial(config(name, 0.02), project, str(folder), train, shared)


def config(name, rate):
    """A trial as Tune hands it to its process."""
    return {"trial": {"name": name, "overrides": {"training.lr": rate}}}


def test_a_trial_tells_its_epochs(data, project, reports, tmp_path):
    """One report an epoch with the best scores so far, then one with what training returned."""
    shared = TrialInputs(data[0], data[1], str(tmp_path / "runs"))
    start(project, tmp_path / "trials", train_trial, shared)
    entries = [r["entry"] for r in reports if r["entry"]]
    assert [e["epoch"] for e in entries] == list(range(1, EPOCHS + 1))
    best = np.minimum.accumulate([e["joint_score"] for e in entries])
    assert [r["joint_score"] for r in reports if r["entry"]] == pytest.approx(best.tolist())
    assert set(reports[0]["score"]) == {"shop", "video"}
    assert reports[-1]["result"]["epochs"] == EPOCHS
    assert not [r for r in reports if "failed" in r]


def test_what_was_told_is_not_told_again(data, project, reports, tmp_path):
    """A trial whose process was lost after its last checkpoint tells the missing epochs."""
    shared = TrialInputs(data[0], data[1], str(tmp_path / "runs"))
    start(project, tmp_path / "trials", train_trial, shared)
    first = next(r["entry"] for r in reports if r["entry"])
    Trial("t001", {}, status="running", curve=[first]).save(str(tmp_path / "trials"))
    reports.clear()
    start(project, tmp_path / "trials", train_trial, shared)
    assert [r["entry"]["epoch"] for r in reports if r["entry"]] == [2, 3]


def test_a_failure_is_reported_and_not_raised(project, reports, tmp_path):
    """Whatever training raises is the trial's reason; values that the schema refuses, too."""

    def train(project, name, shared, tell):
        raise RuntimeError("out of luck")

    start(project, tmp_path, train)
    assert [r["failed"] for r in reports] == ["RuntimeError: out of luck"]
    run_trial(config("t002", -1), project, str(tmp_path), train, 0)
    assert re.match(r"ProjectError: training\.lr: found -1", reports[-1]["failed"])


def test_a_trial_of_a_population_goes_on_from_a_better_one(data, project, monkeypatch, tmp_path):
    """From the other's first epoch: with its values as that one went on, with others elsewhere."""
    shared = TrialInputs(data[0], data[1], str(tmp_path / "runs"))
    kept, told = [], {}

    def report(metrics, checkpoint=None):
        if metrics["entry"]:
            told.setdefault(now, {})[metrics["entry"]["epoch"]] = metrics["latest_score"]
            kept.append(tmp_path / f"kept_{len(kept)}")
            with checkpoint.as_directory() as folder:
                shutil.copytree(folder, kept[-1])

    monkeypatch.setattr(ray.tune, "report", report)
    for now, rate in (("better", 0.02), ("same", 0.02), ("other", 0.05)):
        given = Checkpoint(kept[0]) if kept else None
        monkeypatch.setattr(ray.tune, "get_checkpoint", lambda given=given: given)
        run_trial(
            config(now, rate), project, str(tmp_path / "trials"), train_trial, shared,
            in_population=True,
        )  # fmt: skip
    assert sorted(told["better"]) == list(range(1, EPOCHS + 1))
    assert told["same"] == pytest.approx(told["better"], rel=1e-6)
    assert told["other"][1] == told["better"][1]  # its first epoch was that of the better one
    assert all(abs(told["other"][e] - told["same"][e]) > 1e-4 for e in (2, 3))


def test_an_interrupted_search_plans_what_is_left(project, tmp_path):
    """Ended trials stay, those that ran come before new ones, references are there."""
    point = {"lambda.shop": 0.3, "lambda.video": 0.4}
    kept = [
        Trial("own", {}, point, "finished"),
        Trial("t001", {"scenarios.shop.weight": 2.0}, point, "stopped"),
        Trial("t002", {"scenarios.shop.weight": 3.0}, point, "running"),
    ]
    for trial in kept:
        trial.save(str(tmp_path))
    trials = planned(project, space_of(project), load_trials(str(tmp_path)))
    assert [t.name for t in trials.values() if t.ended] == ["own", "t001"]
    assert [t.name for t in trials.values() if not t.ended] == ["uniform", "t002"]
    assert trials["t002"] == kept[2]


def test_a_trial_without_a_score_is_read_as_it_was_written(tmp_path):
    """A curve whose scores are not finite comes back with NaN, and its trial has no best epoch."""
    entry = {"epoch": 1, "joint_score": math.nan, "scores": {"shop": math.nan, "video": 0.5}}
    Trial("t003", {}, {}, "finished", curve=[entry]).save(str(tmp_path))
    found = load_trials(str(tmp_path))["t003"]
    assert found.best is None
    assert math.isnan(found.curve[0]["scores"]["shop"])
    assert found.curve[0]["scores"]["video"] == 0.5
