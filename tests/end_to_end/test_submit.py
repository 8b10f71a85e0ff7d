"""`ray job submit` to a cluster with token authentication: results, mistakes and strangers."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.jobs import QUICKSTART, SMALL, TOP, last_line, options

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1200)]

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of one node.

    Attributes:
        address: of the dashboard, which takes jobs.
        env: with the home that holds the cluster's token.
    """

    address: str
    env: dict[str, str]

    def submit(self, *entrypoint: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, as a user types it at the top of the repository."""
        command = [RAY, "job", "submit", "--address", self.address, "--working-dir", str(TOP)]
        return subprocess.run(
            [*command, "--", *entrypoint],
            env=self.env | variables,
            cwd=TOP,
            capture_output=True,
            text=True,
            timeout=1000,
            check=False,
        )


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    with_sockets = [socket.socket() for _ in range(number)]
    for held in with_sockets:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in with_sockets]
    for held in with_sockets:
        held.close()
    return ports


def user(home: Path) -> dict[str, str]:
    """The environment of a user with a home and token authentication, and none of the caller's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env | {"HOME": str(home), "PATH": path, "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """`ray start --head` with a token of its own, ended with the tests."""
    # Ray ends idle workers after a second, and starting one anew takes several.
    kept = {
        "RAY_num_workers_soft_limit": "8",
        "RAY_idle_worker_killing_time_threshold_ms": "600000",
    }
    env = user(tmp_path_factory.mktemp("home")) | kept
    subprocess.run([RAY, "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    gcs, dashboard, agent, agent_grpc, client = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # A short path: Ray's unix sockets lie below it, and their names may have 107 characters.
        command = f"""start --head --block --num-cpus=6 --port={gcs} --temp-dir={folder}
            --dashboard-host=127.0.0.1 --dashboard-port={dashboard}
            --dashboard-agent-listen-port={agent} --dashboard-agent-grpc-port={agent_grpc}
            --ray-client-server-port={client} --disable-usage-stats"""
        log = tmp_path_factory.mktemp("head") / "log.txt"
        with log.open("w") as stream:
            head = subprocess.Popen(
                [RAY, *command.split()],
                env=env, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            found = Cluster(f"http://127.0.0.1:{dashboard}", env)
            wait_for(found, head, log)
            yield found
        finally:
            end(head)


def wait_for(cluster: Cluster, head: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the cluster takes a job: its agent is there some time after its dashboard."""
    stop = time.monotonic() + 120
    command = [RAY, "job", "submit", "--address", cluster.address, "--", "true"]
    while subprocess.run(command, env=cluster.env, capture_output=True, check=False).returncode:
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < stop, log.read_text()
        time.sleep(1)


def end(head: subprocess.Popen[bytes]) -> None:
    """End the processes of this cluster, by their pids, and no others."""
    family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        head.wait(10)
    for process in [*family, psutil.Process(head.pid)] if head.poll() is None else family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=10)
    head.wait(10)


def pipeline(storage: Path, *overrides: str) -> list[str]:
    """The entrypoint of the quickstart's job."""
    return ["python", "-m", "jobs.pipeline", *options(QUICKSTART, storage, overrides)]


def test_a_job_succeeds(cluster, tmp_path):
    """The submitter gets exit status 0 and the job's JSON line."""
    overrides = (*SMALL, "run.num_workers=1")
    job = ["python", "-m", "jobs.check", *options(QUICKSTART, tmp_path, overrides)]
    found = cluster.submit(*job)
    assert found.returncode == 0, found.stdout + found.stderr
    assert submitted_result(found)["job"] == "check"


@pytest.mark.long
def test_a_pipeline_succeeds(cluster, tmp_path):
    """All stages as one job: metrics of all scenarios are in its JSON line."""
    # Without a search, which the pipeline of test_pipeline.py makes.
    overrides = ("run.num_workers=1", "search.pipeline_trials=0")
    found = cluster.submit(*pipeline(tmp_path, *SMALL, *overrides))
    assert found.returncode == 0, found.stdout + found.stderr
    line = submitted_result(found)
    assert line["job"] == "pipeline"
    assert set(line["metrics"]) == {"shop", "news", "video"}
    assert line["metrics"]["video"]["rating"]["rows"] > 0
    assert (tmp_path / "quickstart" / "evaluation" / "metrics.json").is_file()


def submitted_result(found: subprocess.CompletedProcess[str]) -> Any:
    """The last JSON line that the submitter saw."""
    return last_line([line for line in found.stdout.splitlines() if line.startswith("{")][-1])


def test_job_runs_on_the_cluster(cluster, tmp_path):
    """The job runs on that cluster, in the uploaded folder without what Git ignores."""
    script = (
        "import os, pathlib, ray; ray.init(); "
        "print('cpus', int(ray.cluster_resources()['CPU']), "
        "sorted(p.name for p in pathlib.Path().iterdir()))"
    )
    found = cluster.submit("python", "-c", script)
    assert found.returncode == 0, found.stdout + found.stderr
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("cpus ")]
    assert line.startswith("cpus 6 ")
    for name in ("jobs", "mtrec_ray", "pyproject.toml"):
        assert f"'{name}'" in line
    for name in (".venv", ".git", "runs"):
        assert f"'{name}'" not in line


def test_mistake_reaches_the_submitter(cluster, tmp_path):
    """A job with an unknown key fails at the submitter too, with the one line that says why."""
    found = cluster.submit(*pipeline(tmp_path, "training.epoch=1"))
    assert found.returncode != 0
    output = found.stdout + found.stderr
    # Ray shows the job's output, and its end once more as the reason of the failure.
    lines = {line for line in output.splitlines() if line.startswith("pipeline: ")}
    assert len(lines) == 1
    assert lines.pop().startswith("pipeline: training.epoch: found an unknown key; allowed: ")
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_submit_without_the_token_is_refused(cluster, tmp_path, mode):
    """Who has another token or none cannot submit, and nothing runs."""
    home = tmp_path / "home"
    home.mkdir()
    env = user(home) | {"RAY_AUTH_MODE": mode}
    if mode == "token":
        generate = [RAY, "get-auth-token", "--generate"]
        subprocess.run(generate, env=env, check=True, capture_output=True)
    stranger = Cluster(cluster.address, env)
    marker = tmp_path / "marker"
    found = stranger.submit("touch", str(marker))
    assert found.returncode != 0
    assert "authentic" in (found.stdout + found.stderr).lower()
    assert not marker.exists()
