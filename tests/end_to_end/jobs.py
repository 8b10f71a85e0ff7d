"""Running a job as a process, and reading what it printed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
QUICKSTART = "jobs/quickstart.yaml"

# The quickstart, cut down: a world that is written, trained on and evaluated in a minute.
SMALL = (
    "sample_world.events=4000",
    "sample_world.users=300",
    "sample_world.items=64",
    "training.epochs=1",
    "training.batch_size=512",
    "search.pipeline_trials=2",
)


def options(config: str | Path, storage: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The options that every job takes."""
    sets = [word for override in overrides for word in ("--set", override)]
    return ["--config", str(config), "--storage", str(storage), *sets]


def run_process(
    job: str, arguments: Sequence[str], *, timeout: float = 280, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python -m jobs.JOB` at the top of the repository."""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | variables
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *arguments],
        cwd=TOP,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def strict_json(line: str) -> Any:
    """A line as JSON; NaN and Infinity, which are none, are refused."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def last_line(stdout: str) -> Any:
    """The result of a job: the last line that it printed."""
    return strict_json(stdout.rstrip("\n").splitlines()[-1])
