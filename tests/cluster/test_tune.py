"""The search finds what is planted, never hangs, and loses no finished trial.

`MTREC_TRIALS` is the number of short trials: 8, or as many as 32 by hand.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from mtrec_ray.project.depends_on import joint_model_depends_on
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.search.pareto import hypervolume
from mtrec_ray.search.records import Trial, load_trials
from mtrec_ray.stages.tune import run_tune, search
from mtrec_ray.stages.tuning.outcome import outcome_of
from tests.cluster.runs import changed, say_nothing, world_tree

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TOP = Path(__file__).parents[2]
NUM_SHORT = int(os.environ.get("MTREC_TRIALS", "8"))
BEST_SHARE = 0.8  # of shop, in the planted problem
EPOCHS = 4


def searching(project: Project, **fields: Any) -> Project:
    """The project with a search of the weights alone, in single processes, two at a time."""
    plain = {"fields": {}, "num_workers": 0, "concurrent": 2, "epochs": EPOCHS}
    plain |= {"grace": 1, "valid_rows": None}
    return changed(project, search=plain | fields)


def planted() -> Callable[..., dict[str, Any]]:
    """A training without a model: the scores follow from the weights, best at a share of 0.8.

    Shop's score falls with its share, video's is least where shop has 0.6: the front lies between
    0.6 and 1, the joint optimum at 0.8. (A function inside another one is sent whole to workers,
    which cannot import this file.)
    """
    best, epochs = BEST_SHARE, EPOCHS

    def train(project: Project, name: str, shared: Any, tell: Any) -> dict[str, Any]:
        weights = [s.weight for s in project.scenarios.values()]
        share = weights[0] / sum(weights)
        if shared == "fails" and share > 0.75:
            raise ValueError(f"share {share:.2f}\nis too large")
        for epoch in range(1, epochs + 1):
            late = 0.2 / epoch
            shop = 0.5 + (share - 1.0) ** 2 + late
            video = 0.5 + (share - (2 * best - 1.0)) ** 2 + late
            valid = {"shop/click/ne": shop, "video/like/ne": video}
            tell({"epoch": epoch, "step": epoch, "joint_score": (shop + video) / 2, **valid})
        return {"share": share}

    return train


def shares(trials: list[Trial]) -> dict[str, float]:
    """Shop's share by trial."""
    return {t.name: t.result["share"] for t in trials if "share" in t.result}


# --- a planted problem -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Project:
    """The project of the sample world; nothing of it is prepared."""
    return parse_project(world_tree(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def found(world, tmp_path_factory) -> tuple[Project, list[Trial]]:
    """A search of the planted problem by TPE with ASHA."""
    project = searching(world, trials=24, objectives="joint")
    folder = str(tmp_path_factory.mktemp("planted"))
    return project, search(project, folder, planted(), None, say_nothing)


def test_the_planted_weights_are_found(found):
    """The chosen share is near 0.8, and better than the own and uniform weights."""
    project, trials = found
    outcome = outcome_of(project, trials)
    weights = outcome.chosen.overrides
    share = weights["scenarios.shop.weight"] / sum(weights.values())
    assert share == pytest.approx(BEST_SHARE, abs=0.06)
    for name in ("own", "uniform"):
        trial = outcome.trial(name)
        assert outcome.chosen_score < trial.best["joint_score"]


def test_references_come_first_and_are_spared(found):
    """Own weights, then uniform ones, both with all their epochs; all 24 trials ended."""
    _, trials = found
    assert [t.name for t in trials[:2]] == ["own", "uniform"]
    assert [t.status for t in trials[:2]] == ["finished", "finished"]
    assert [len(t.curve) for t in trials[:2]] == [EPOCHS, EPOCHS]
    assert shares(trials[:2]) == pytest.approx({"own": 2 / 3, "uniform": 0.5})
    assert len(trials) == 24
    assert all(t.ended for t in trials)


def test_bad_trials_end_early(found):
    """ASHA ended some trials, none of them among the best quarter."""
    _, trials = found
    ranked = sorted(trials, key=lambda t: t.best["joint_score"])
    stopped = [t for t in trials if t.status == "stopped"]
    assert stopped
    assert all(len(t.curve) < EPOCHS for t in stopped)
    assert not [t for t in ranked[:6] if t.status == "stopped"]


def test_the_front_is_the_trade_off(found):
    """On the front of finished trials shop's share is between the best ones of both scenarios."""
    project, trials = found
    whole = [t for t in trials if t.status == "finished"]
    outcome = outcome_of(project, whole)
    share = shares(whole)
    front = [t.name for t, on in zip(outcome.scored, outcome.on_front, strict=True) if on]
    assert front
    assert all(2 * BEST_SHARE - 1 - 0.05 <= share[n] <= 1.0 for n in front)
    assert outcome.volume == pytest.approx(hypervolume(outcome.points, np.ones(2)))


@pytest.mark.long
def test_more_trials_go_on(found, tmp_path):
    """A finished search with more trials keeps those that are there, and adds the others."""
    project, trials = found
    folder = tmp_path / "trials"
    for trial in trials:
        trial.save(str(folder))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    more = changed(project, search={"trials": 26})
    after = search(more, str(tmp_path), planted(), None, say_nothing)
    assert len(after) == 26
    assert {n: (folder / n).read_bytes() for n in before} == before


@pytest.mark.long
def test_a_failed_trial_ends_no_search(world, tmp_path):
    """Trials that raise have their reason in the table in one line; the others end as ever."""
    project = searching(world, trials=8, algorithm="random", scheduler="none", seed=3)
    trials = search(project, str(tmp_path), planted(), "fails", say_nothing)
    failed = [t for t in trials if t.status == "failed"]
    assert len(trials) == 8
    assert failed
    assert all(t.reason.startswith("ValueError: share 0.") for t in failed)
    assert all("\n" not in t.reason for t in failed)
    assert {t.status for t in trials if t not in failed} == {"finished"}
    assert load_trials(str(tmp_path / "trials"))[failed[0].name] == failed[0]


@pytest.mark.long
def test_the_rule_of_the_worst_case(world, tmp_path):
    """With worst_case the models of one scenario are trained, whatever their joint score."""
    project = searching(world, trials=10, choose="worst_case")
    trials = search(project, str(tmp_path), planted(), None, say_nothing)
    alone = {t.name: t for t in trials if t.name.startswith("only_")}
    assert {n: t.status for n, t in alone.items()} == {
        "only_shop": "finished", "only_video": "finished"
    }  # fmt: skip
    assert shares(list(alone.values())) == {"only_shop": 1.0, "only_video": 0.0}
    outcome = outcome_of(project, trials)
    gains = {
        t.name: min(
            1 - t.best["scores"][n] / alone[f"only_{n}"].best["scores"][n] for n in t.best["scores"]
        )
        for t in outcome.scored
    }
    assert gains[outcome.chosen.name] == max(gains.values())


def test_short_trials_never_hang(world, tmp_path):
    """Many trials of no length, four at a time, each of which the scheduler may end: all end."""
    project = searching(world, trials=NUM_SHORT, concurrent=4)
    trials = search(project, str(tmp_path), planted(), None, say_nothing)
    assert len(trials) == NUM_SHORT
    assert all(t.ended and math.isfinite(t.best["joint_score"]) for t in trials)


# --- real trials -----------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(900)
def test_trials_of_ray_train_workers_never_hang(trained, untrained):
    """Trials with a worker group each, two at a time, some of them ended early: all end.

    Their networks differ in size; the confirmation scores each as it is. Nothing is left.
    """
    fields = {"training.lr": {"loguniform": [1e-6, 1e-2]}, "model.width": [16, 32]}
    asked = {"trials": NUM_SHORT, "num_workers": 1, "epochs": None, "confirm_seeds": 1}
    project = changed(
        searching(trained.project, fields=fields, **asked),
        training={"epochs": 3, "rows_per_epoch": 2048},
    )
    record = run_tune(project, str(untrained), say_nothing)
    assert sum(record["by_status"].values()) == record["trials"] == NUM_SHORT
    assert set(record["by_status"]) == {"finished", "stopped"}
    variants = record["confirmed"]["variants"]
    assert all(v["seeds"] == 1 and not v["failed"] for v in variants.values())
    assert not (untrained / project.run.name / "tune" / "runs").exists()


@pytest.mark.long
def test_a_population_goes_on_from_its_best(trained, untrained):
    """All trials have all epochs; worse ones took other values from better ones; own ones stay."""
    training = {"rows_per_epoch": 2048}
    project = changed(
        searching(trained.project, trials=5, epochs=4, scheduler="pbt", num_workers=0),
        training=training,
    )
    record = run_tune(project, str(untrained), say_nothing)
    trials = load_trials(str(untrained / project.run.name / "tune" / "trials"))
    assert record["by_status"] == {"finished": 5}
    assert all([e["epoch"] for e in t.curve][-1] == 4 for t in trials.values())
    moves = [(t.name, move) for t in trials.values() for move in t.moves]
    assert moves
    assert not {name for name, _ in moves} & {"own", "uniform"}
    for name, move in moves:
        assert move["from"] != name
        assert move["before"] != trials[name].overrides


@pytest.fixture(scope="module")
def interrupted(trained, tmp_path_factory) -> tuple[Path, dict[str, bytes], set[str], list[str]]:
    """A tune job that is interrupted (Ctrl-C) at its first epoch; started again and killed when a
    trial has ended and another told an epoch; started again.

    The storage, the records of trials that had ended at its death, the names of those that ran, and
    the lines of the last job.
    """
    storage = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(trained.folder / "prepared", storage / trained.project.run.name / "prepared")
    project = searching(trained.project, trials=4, epochs=3, confirm_seeds=1, scheduler="none")
    config = storage / "project.yaml"
    config.write_text(yaml.safe_dump(project.dump()))
    records = storage / project.run.name / "tune" / "trials"
    job = start_job(config, storage, storage / "first.txt")
    try:
        wait_until(lambda: has_begun(records), job, storage / "first.txt")
        job.send_signal(signal.SIGINT)
        assert job.wait(60) != 0
        assert not (records.parent / "finished.json").exists()
    finally:
        job.kill()
    job = start_job(config, storage, storage / "second.txt")
    try:
        wait_until(lambda: in_the_middle(records), job, storage / "second.txt")
    finally:
        job.kill()
        job.wait()
    trials = load_trials(str(records))
    kept = {t.name: (records / f"{t.name}.json").read_bytes() for t in trials.values() if t.ended}
    ran = {t.name for t in trials.values() if t.status == "running" and t.curve}
    job = start_job(config, storage, storage / "last.txt")
    try:
        assert job.wait(200) == 0, (storage / "last.txt").read_text()
    finally:
        job.kill()
    return storage, kept, ran, (storage / "last.txt").read_text().splitlines()


def start_job(config: Path, storage: Path, output: Path) -> subprocess.Popen[bytes]:
    """The tune job as a process on the session's Ray, its output in a file."""
    command = [sys.executable, "-m", "jobs.tune", "--config", str(config)]
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with output.open("wb") as stream:
        return subprocess.Popen(
            [*command, "--storage", str(storage)],
            cwd=TOP, env=env, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip


def has_begun(records: Path) -> bool:
    """Whether a trial has told an epoch."""
    return records.exists() and any(t.curve for t in load_trials(str(records)).values())


def in_the_middle(records: Path) -> bool:
    """Whether a trial has ended and another one has told an epoch."""
    trials = load_trials(str(records)).values() if records.exists() else []
    ended = [t for t in trials if t.ended]
    return bool(ended) and any(t.curve and not t.ended for t in trials)


def wait_until(reached: Callable[[], bool], job: subprocess.Popen[bytes], output: Path) -> None:
    """Wait for something that a running job does."""
    end = time.monotonic() + 200
    while not reached():
        assert job.poll() is None, output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.05)


@pytest.mark.long
def test_ended_trials_are_kept(trained, interrupted):
    """After the driver's death no ended trial ran again, and four trials are there."""
    storage, kept, ran, lines = interrupted
    records = storage / trained.project.run.name / "tune" / "trials"
    assert kept
    assert ran
    for name, record in kept.items():
        assert (records / f"{name}.json").read_bytes() == record
        assert not [line for line in lines if f"] {name} " in line]
    assert json.loads(lines[-1])["trials"] == 4


@pytest.mark.long
def test_running_trials_go_on(trained, interrupted):
    """Trials that ran have each epoch once, and all of them, without a first one told again."""
    storage, _, ran, _ = interrupted
    trials = load_trials(str(storage / trained.project.run.name / "tune" / "trials"))
    for name in ran:
        assert [e["epoch"] for e in trials[name].curve] == [1, 2, 3]
        assert trials[name].status == "finished"


@pytest.mark.long
def test_trials_are_the_train_stage(trained, interrupted):
    """The own trial, in one process, scores after an epoch as the train stage by two workers.

    Near it: rows fall into batches in another order. (Later epochs of the tiny world overfit, each
    run in its own way; that ranks give the same gradient is `tests/distributed`'s claim.)
    """
    storage, *_ = interrupted
    own = load_trials(str(storage / trained.project.run.name / "tune" / "trials"))["own"]
    record = trained.summary["curve"][0]
    assert len(own.curve) == len(trained.summary["curve"])
    assert own.curve[0]["joint_score"] == pytest.approx(record["joint_score"], abs=0.05)


@pytest.mark.long
def test_what_a_search_leaves(trained, interrupted):
    """Table, front, page, plots, and a project file that only changes what was searched."""
    storage, _, _, lines = interrupted
    folder = storage / trained.project.run.name / "tune"
    record = json.loads(lines[-1])
    table = pq.read_table(folder / "trials.parquet").to_pylist()
    assert {row["status"] for row in table} == {"finished"}
    assert sum(row["chosen"] for row in table) == 1
    best = min(table, key=lambda row: row["joint_score"])
    assert best["chosen"]
    assert best["trial"] == record["chosen"]["trial"]
    front = json.loads((folder / "front.json").read_text())
    assert {p["trial"] for p in front["front"]} == {r["trial"] for r in table if r["on_front"]}
    assert front["reference_point"] == {"shop": 1.0, "video": 1.0}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list((folder / "plots").glob("*.png")))
    assert {p.stem for p in (folder / "plots").glob("*.png")} >= {
        "front_shop_video", "parallel", "curves"
    }  # fmt: skip
    chosen = load_project(folder / "chosen.yaml")
    before = joint_model_depends_on(trained.project, trained.prepared.fingerprint)
    after = joint_model_depends_on(chosen, trained.prepared.fingerprint)
    assert {k for k in before if before[k] != after[k]} <= {"scenarios"}
    assert chosen.run == trained.project.run
    assert not (folder / "runs").exists()


@pytest.mark.long
def test_confirmation_has_all_variants(interrupted):
    """Whole runs of chosen, uniform and own weights have scores on test by scenario."""
    _, _, _, lines = interrupted
    found = json.loads(lines[-1])["confirmed"]["variants"]
    assert set(found) - {"own_weights"} == {"chosen", "uniform", "own"}
    for variant in found.values():
        assert variant["seeds"] == 1
        assert set(variant["test"]) == set(variant["valid"]) == {"joint", "shop", "video"}
        assert all(0 < v["mean"] < 2 for v in variant["test"].values())


@pytest.mark.long
def test_a_finished_search_is_found(trained, interrupted):
    """The same search once more trains nothing and says the same."""
    storage, _, _, lines = interrupted
    project = load_project(storage / "project.yaml")
    said: list[str] = []
    record = run_tune(project, str(storage), said.append)
    assert said[-1] == "tune: already done"
    assert record["chosen"] == json.loads(lines[-1])["chosen"]
