"""The console command."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import EXAMPLES, app

TOP = Path(__file__).parents[2]
NAMES = [module.__name__.rsplit(".", 1)[-1] for module in EXAMPLES]


def plain(text: str) -> str:
    """Without colours and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def test_every_job_is_a_command():
    """Each file of jobs that is a job is a command."""
    files = {f.stem for f in (TOP / "jobs").glob("*.py")}
    assert set(NAMES) == files - {"__init__", "common", "cli", "terminal"}


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_examples_and_options(name):
    """The help of each command shows its options and at least two examples of itself."""
    found = CliRunner().invoke(app, [name, "--help"])
    assert found.exit_code == 0
    text = plain(found.output)
    assert len(re.findall(rf"mtrec {name} \S", text)) >= 2
    for option in ("--out",) if name == "init" else ("--config", "--storage", "--set"):
        assert option in text


def test_version():
    """`mtrec --version` prints name and version."""
    found = CliRunner().invoke(app, ["--version"])
    assert found.exit_code == 0
    assert re.fullmatch(r"mtrec \S.*", found.output.strip())


@pytest.mark.parametrize("name", ["cli", *NAMES])
def test_no_heavy_import(name):
    """Importing a job loads neither Ray nor torch: its help is there at once."""
    script = f"import sys, jobs.{name}; print([m for m in ('ray', 'torch') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=TOP, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_import_sets_no_environment():
    """Importing jobs sets no environment variable."""
    script = "import os; b = dict(os.environ); import jobs.cli; print(dict(os.environ) == b)"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=TOP, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "True"


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_the_job_itself(name):
    """A command runs the function that `python -m jobs.NAME` runs."""
    commands = {c.name: c.callback for c in app.registered_commands}
    assert commands[name] is importlib.import_module(f"jobs.{name}").main
