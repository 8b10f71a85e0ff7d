"""What a person sees of a job's progress."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.common import problems_of
from jobs.terminal import Terminal, wrapped
from mtrec_ray.progress import Progress, begin_stage, clock, tell_progress, warn
from mtrec_ray.project.base import ProjectError
from mtrec_ray.stages import channel

TOP = Path(__file__).parents[2]


class Clock:
    """A time that tests set."""

    now = 0.0

    def __call__(self):
        return self.now


def terminal():
    """A terminal that writes into a text, and its clock."""
    clock, file = Clock(), io.StringIO()
    return Terminal(file, now=clock), clock, file


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (185, "3:05"), (7385, "2:03:05")]
)
def test_clock(seconds, text):
    """Seconds are shown as seconds, minutes or hours."""
    assert clock(seconds) == text


def test_a_plain_function_is_told_lines():
    """A log that is a plain function gets headings, progress and warnings as lines."""
    lines = []
    begin_stage(lines.append, "train: two workers")
    tell_progress(lines.append, "training", 1, 4, "5 rows/s")
    tell_progress(lines.append, "training", 2, 4, quiet=True)
    warn(lines.append, "2 rows dropped")
    assert lines == ["train: two workers", "training 25%  5 rows/s", "warning: 2 rows dropped"]


def test_lines_in_a_file_come_every_few_seconds():
    """In a file the same progress is a line once in five seconds, however often it is told."""
    shown, clock, file = terminal()
    for second in range(20):
        clock.now = float(second)
        shown.progress(Progress("training", second, 100, "7 rows/s"))
    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["5", "s", "training", "5%", "7", "rows/s,", "1:35", "left"]


def test_progress_ends_with_a_line():
    """What is done is one last line with its time, and nothing after it."""
    shown, clock, file = terminal()
    shown.progress(Progress("training", 0, 4))
    clock.now = 3.0
    shown.progress(Progress("training", 4, 4, "best 0.5"))
    shown.progress(Progress("training", 4, 4, "best 0.5"))
    assert file.getvalue().splitlines()[1:] == ["    3 s  training: best 0.5 in 3 s"]


def test_no_line_is_wider_than_80():
    """In a file no line has more than 80 characters, unless a word has."""
    shown, _, file = terminal()
    shown.stage("tune: " + "lambda.shop, " * 20)
    shown("word " * 60)
    assert max(map(len, file.getvalue().splitlines())) <= 80


def test_a_wrapped_text_keeps_its_words():
    """Wrapping loses no word."""
    text = " ".join(f"word{i}" for i in range(50))
    assert " ".join(wrapped(text, 30)) == text


def test_a_silent_job_says_that_it_goes_on():
    """After half a minute without a line, a line says what goes on."""
    shown, clock, file = terminal()
    shown("scanning 90,000 rows")
    clock.now = 30.0
    shown._still_there()
    assert file.getvalue().splitlines()[1].strip() == "30 s  ... scanning 90,000 rows"


def test_a_lost_queue_does_not_stop_a_worker(capsys):
    """A worker whose queue is lost goes on, and its own output has the line."""

    class Lost:
        @property
        def actor(self):
            raise RuntimeError("the actor died")

    sender = channel.Sender(Lost()).named("shop")
    sender("a line")
    sender.progress(Progress("training", 1, 2, "3 rows/s"))
    assert capsys.readouterr().out.splitlines() == ["shop: a line", "shop 50%  3 rows/s"]


def test_a_lost_queue_ends_the_thread_that_reads_it():
    """The thread of the driver ends where the queue's actor is lost."""

    class Lost:
        def get(self, timeout):
            raise RuntimeError("the actor died")

    channel.drain(Lost(), lambda _: None, threading.Event())


def test_a_mistake_in_a_task_is_a_users_mistake():
    """A ProjectError that a Ray task raised is its lines; NumPy's ValueError there is none."""
    from ray.exceptions import RayTaskError

    def raised(cause):
        return RayTaskError("f", "Traceback", cause, "p", 1, "ip").as_instanceof_cause()

    assert problems_of(raised(ProjectError(["a: found 1", "b: found 2"]))) == [
        "a: found 1",
        "b: found 2",
    ]
    error = raised(ValueError("operands could not be broadcast together"))
    assert isinstance(error, ValueError)
    assert problems_of(error) is None


PROGRAM = """
import os, sys, warnings
from jobs import common
from jobs.common import Config, Override, Storage, open_job, program

common.show_header = lambda *_: None

def main(config: Config, storage: Storage = "runs", override: Override = None) -> None:
    with open_job("train", config, storage, override) as job:
        os.write(1, b"chatter of a library\\n")
        os.write(2, b"E core_worker\\n")
        job.log("a line of progress")
        BODY
        job.result(found=FOUND)

program(main)
"""


def run_program(tmp_path, body, found="1"):
    """A small job as a process, on a project file that is not read any further."""
    (tmp_path / "p.py").write_text(PROGRAM.replace("BODY", body).replace("FOUND", found))
    command = [sys.executable, str(tmp_path / "p.py"), "--config", "jobs/quickstart.yaml"]
    env = os.environ | {"PYTHONPATH": str(TOP)}
    return subprocess.run(
        [*command, "--storage", str(tmp_path / "runs")],
        cwd=TOP, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_chatter_goes_to_the_log(tmp_path):
    """What others print is in the log alone; the JSON line comes last, and is kept beside it."""
    found = run_program(tmp_path, "pass")
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert "chatter of a library" not in found.stdout
    assert "a line of progress" in found.stdout
    (log,) = (tmp_path / "runs/quickstart/logs").glob("*.log")
    assert log.read_text() == "chatter of a library\nE core_worker\n"
    last = found.stdout.splitlines()[-1]
    assert last == '{"job": "train", "run": "quickstart", "found": 1}'
    assert log.with_suffix(".json").read_text().strip() == last


def test_the_result_is_json(tmp_path):
    """Numbers of numpy are numbers in the last line, and what is not finite is null."""
    found = run_program(tmp_path, "import numpy as np", "[np.float32(0.5), float('nan')]")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].endswith('"found": [0.5, null]}')


def test_a_fault_keeps_its_traceback_and_names_the_log(tmp_path):
    """A fault of ours, even a ValueError, is a traceback, exit code 1 and the log's path."""
    found = run_program(tmp_path, 'raise ValueError("operands could not be broadcast")')
    assert found.returncode == 1
    assert "Traceback" in found.stderr
    (log,) = (tmp_path / "runs/quickstart/logs").glob("*.log")
    assert found.stderr.splitlines()[-1] == f"train: failed; the log is {log}"
    assert "{" not in found.stdout


def test_a_mistake_leaves_no_log(tmp_path):
    """A user's mistake is its line, exit code 2, and no file or folder of the job stays."""
    body = 'from mtrec_ray.project.base import refuse; refuse(["a: found 1; allowed: 2"])'
    found = run_program(tmp_path, body)
    assert found.returncode == 2
    assert found.stderr == "train: a: found 1; allowed: 2\n"
    assert not (tmp_path / "runs").exists()
