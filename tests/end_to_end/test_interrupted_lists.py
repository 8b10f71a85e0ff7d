"""`recommend` on a Ray of several nodes, killed, gone on with, and with a node lost on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray

from benchmarks.faults import harmed_cluster
from tests.end_to_end.jobs import QUICKSTART, SMALL, TOP, options, run_process

pytestmark = [pytest.mark.end_to_end, pytest.mark.long, pytest.mark.timeout(1500)]

NAMES = ("shop", "news", "video")
FIELDS = (*SMALL, "model.encoder.trainable=none", "training.teacher.share=0")


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A storage whose lists were made without a fault, on a local Ray."""
    storage = tmp_path_factory.mktemp("whole")
    for job in ("prepare", "train", "recommend"):
        found = run_process(job, options(QUICKSTART, storage, FIELDS), timeout=900)
        assert found.returncode == 0, found.stderr
    return storage


def lists_of(storage: Path) -> dict[str, pd.DataFrame]:
    """The rows of all lists by scenario, sorted."""
    folder = storage / "quickstart" / "recommendations"
    found = {}
    for name in NAMES:
        files = sorted((folder / name).glob("*.parquet"))
        tables = [pq.read_table(file).to_pandas() for file in files]
        found[name] = pd.concat(tables).sort_values(["user", "rank"]).reset_index(drop=True)
    return found


def start(storage: Path, log: Path) -> subprocess.Popen[bytes]:
    """The job as a process of its own group, on the cluster of this process's environment."""
    command = [sys.executable, "-m", "jobs.recommend", *options(QUICKSTART, storage, FIELDS)]
    with log.open("ab") as out:
        return subprocess.Popen(
            command, cwd=TOP, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_until(true: Callable[[], bool], job: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for something to be true, or for the job to end."""
    stop = time.monotonic() + 600
    while not true() and job.poll() is None:
        assert time.monotonic() < stop, log.read_text()[-3000:]
        time.sleep(0.02)


def test_lists_are_written_exactly_once(reference, tmp_path):
    """After a kill and a lost node each user has one list, that of a run without a fault."""
    storage, log = tmp_path / "runs", tmp_path / "log.txt"
    shutil.copytree(reference, storage)
    folder = storage / "quickstart" / "recommendations"
    shutil.rmtree(folder)
    with harmed_cluster() as nodes:
        nodes.add()
        nodes.add()
        os.environ["RAY_ADDRESS"] = nodes.cluster.address
        job = start(storage, log)
        wait_until(lambda: any(folder.rglob("*.parquet")), job, log)
        os.killpg(job.pid, signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
        there = {file: file.read_bytes() for file in folder.rglob("*.parquet")}
        job = start(storage, log)
        wait_until(lambda: "recommend: the best" in log.read_text()[-2000:], job, log)
        nodes.lose(0)
        assert job.wait(timeout=900) == 0, log.read_text()[-3000:]
    ray.shutdown()
    assert there
    assert all(file.read_bytes() == data for file, data in there.items())
    found, wanted = lists_of(storage), lists_of(reference)
    for name in NAMES:
        assert not found[name].duplicated(["user", "rank"]).any()
        pd.testing.assert_frame_equal(found[name], wanted[name], rtol=1e-4, atol=1e-5)
