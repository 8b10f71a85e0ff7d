"""A run that loses a worker, then its job, goes on where it was: no finished epoch is repeated."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import yaml
from safetensors.numpy import load_file

from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.train import run_train
from tests.cluster.runs import BATCH, EPOCHS, ROWS_PER_EPOCH, Trained, changed, numbers, say_nothing

# The run starts three worker groups.
pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]

TOP = Path(__file__).parents[2]
PATIENCE_SECONDS = 200.0


@dataclass(frozen=True)
class Resumed:
    """What a run left that was interrupted twice.

    Attributes:
        project: the project.
        storage: of the run.
        first, second: what the two jobs printed.
        checkpoints: folders of checkpoints that there were when the first job was killed.
        record: of the finished stage.
    """

    project: Project
    storage: Path
    first: str
    second: str
    checkpoints: set[str]
    record: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run's folder of the joint model."""
        return self.storage / self.project.run.name / "joint"


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory) -> Trained:
    """A run whose encoder's top layer learns from gathered gradients, without interruption."""
    tree = trained.project.dump()
    tree["model"]["encoder"] |= {"trainable": "top_k", "top_k": 1}
    project, folder = parse_project(tree), tmp_path_factory.mktemp("undisturbed")
    assert project.model.gathers
    copy_prepared(trained, folder)
    return Trained(project, folder, run_train(project, str(folder), say_nothing))


@pytest.fixture(scope="module")
def resumed(undisturbed, tmp_path_factory) -> Resumed:
    """A run whose worker is killed in epoch 2 and whose job is killed in epoch 3, then started."""
    trained, project = undisturbed, undisturbed.project
    folder = tmp_path_factory.mktemp("resumed")
    copy_prepared(trained, folder)
    config = folder / "project.yaml"
    config.write_text(yaml.safe_dump(project.dump()))
    joint = folder / project.run.name / "joint"
    job = start_job(config, folder, folder / "first.txt")
    try:
        wait_until(lambda: finished_epochs(joint) == 1, job, folder / "first.txt")
        kill_worker(folder)
        wait_until(lambda: finished_epochs(joint) == 2, job, folder / "first.txt")
    finally:
        job.kill()
        job.wait()
    checkpoints = {path.name for path in joint.glob("checkpoint_*")}
    job = start_job(config, folder, folder / "second.txt")
    try:
        assert job.wait(PATIENCE_SECONDS) == 0, (folder / "second.txt").read_text()
    finally:
        job.kill()
    first, second = ((folder / f"{n}.txt").read_text() for n in ("first", "second"))
    record = json.loads((joint / "finished.json").read_text())
    return Resumed(project, folder, first, second, checkpoints, record)


def copy_prepared(trained: Trained, storage: Path) -> None:
    """The prepared data of a run, in another storage."""
    shutil.copytree(trained.folder / "prepared", storage / trained.project.run.name / "prepared")


def start_job(
    config: Path, storage: Path, output: Path, *, job: str = "train", more: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """A job as a process on the session's Ray, its output in a file."""
    command = [sys.executable, "-m", f"jobs.{job}", *more, "--config", str(config), "--storage"]
    address = ray.get_runtime_context().gcs_address
    with output.open("wb") as stream:
        return subprocess.Popen(
            [*command, str(storage)],
            cwd=TOP,
            env=os.environ | {"RAY_ADDRESS": address},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def finished_epochs(joint: Path) -> int:
    """Epochs of the latest checkpoint that Ray Train has registered."""
    try:
        snapshot = json.loads((joint / "checkpoint_manager_snapshot.json").read_text())
        return max(r["metrics"]["epoch"] for r in snapshot["checkpoint_results"])
    except (OSError, ValueError, KeyError):
        return 0


def wait_until(reached: Callable[[], bool], job: subprocess.Popen[bytes], output: Path) -> None:
    """Wait for something that a running job does."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert job.poll() is None, output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.05)


def kill_worker(storage: Path) -> None:
    """Kill a training worker of the storage's latest job, in whose log the workers' pids stand."""
    log = max(storage.glob("*/logs/*.log"), key=lambda path: path.stat().st_mtime)
    pids = [int(p) for p in re.findall(r"\(RayTrainWorker pid=(\d+)\)", log.read_text())]
    assert pids
    process = psutil.Process(pids[-1])
    assert "RayTrainWorker" in " ".join(process.cmdline())
    process.send_signal(signal.SIGKILL)


def test_interruptions_came_in_time(resumed):
    """The worker died after epoch 1 and the job after epoch 2, before the last one ended."""
    assert "epoch 1: joint validation score" in resumed.first
    assert f"epoch {EPOCHS}: joint validation score" not in resumed.first
    assert not [line for line in resumed.first.splitlines() if line.startswith("{")]
    assert resumed.checkpoints


def test_worker_failure_goes_on(resumed):
    """After a worker's death the same job goes on at epoch 2: epoch 1 is said once."""
    assert resumed.first.count("epoch 1: joint validation score") == 1
    assert resumed.first.count("80 item texts encoded") == 2


def test_restarted_job_goes_on(resumed):
    """The job that is started again does epoch 3 only, and ends with its JSON line."""
    for epoch in range(1, EPOCHS):
        assert f"epoch {epoch}: joint validation score" not in resumed.second
    assert resumed.second.count(f"epoch {EPOCHS}: joint validation score") == 1
    lines = [line for line in resumed.second.splitlines() if line.startswith("{")]
    assert json.loads(lines[-1])["epochs"] == EPOCHS


def test_curve_has_each_epoch_once(resumed):
    """The curve has every epoch once, at the steps of a run without interruption."""
    assert [record["epoch"] for record in resumed.record["curve"]] == [1, 2, 3]
    each = ROWS_PER_EPOCH // BATCH
    assert [record["step"] for record in resumed.record["curve"]] == [each, 2 * each, 3 * each]
    assert resumed.record["steps"] == EPOCHS * each


def test_same_curve_as_undisturbed(undisturbed, resumed):
    """Every epoch has the losses, scores and gradient shares of the run without interruption."""
    first, second = (list(numbers(r["curve"])) for r in (undisturbed.summary, resumed.record))
    np.testing.assert_array_equal(first, second)


def test_same_weights_as_undisturbed(undisturbed, resumed):
    """The best model is that of the run without interruption, to the bit, its encoder too."""
    first, second = (
        load_file(folder / "best" / "model.safetensors")
        for folder in (undisturbed.folder / "joint", resumed.folder)
    )
    assert any(name.startswith("encoder.") for name in first)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_curve_keeps_the_first_epochs(resumed):
    """The scores of the epochs before the interruptions are those that were said then."""
    for record in resumed.record["curve"][:2]:
        said = f"epoch {record['epoch']}: joint validation score {record['joint_score']:.4f}"
        assert said in resumed.first


def test_best_epoch_is_kept(resumed):
    """The best model is that of the lowest score of all epochs, before or after."""
    record = json.loads((resumed.folder / "best" / "model.json").read_text())["record"]
    assert record == min(resumed.record["curve"], key=lambda r: r["joint_score"])


def test_rows_seen_account_for_all_steps(resumed):
    """The rows seen count the steps before the interruptions too."""
    assert sum(resumed.record["rows_seen"].values()) == resumed.record["steps"] * BATCH


def test_interrupted_before_its_record(resumed):
    """A run that trained to the end, but was killed before it said so, repeats no epoch."""
    (resumed.folder / "finished.json").unlink()
    project = changed(resumed.project, run={"num_workers": 1})  # one is quicker started than two
    record = run_train(project, str(resumed.storage), say_nothing)
    assert record["curve"] == resumed.record["curve"]
    assert (resumed.folder / "best" / "model.safetensors").is_file()
    assert json.loads((resumed.folder / "finished.json").read_text()) == record
