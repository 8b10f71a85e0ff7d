"""The README is true where a test can tell: commands, jobs, files, and numbers from results."""

import re
from pathlib import Path

from benchmarks.readme import README, renewed

TOP = Path(__file__).parents[2]
TEXT = README.read_text()


def test_two_commands():
    """Two lines make an environment: the first ends in the quickstart, the second in the tests."""
    first, second = re.findall(r"^python3\.11 -m venv .*$", TEXT, flags=re.MULTILINE)
    assert first.endswith("-m jobs.pipeline --config jobs/quickstart.yaml")
    assert second.endswith("-m pytest")


def test_tables_come_from_results():
    """The tables hold exactly what the benchmarks' results say."""
    assert renewed(TEXT) == TEXT


def test_all_jobs_are_listed():
    """The table of jobs names every job there is."""
    jobs = {f.stem for f in (TOP / "jobs").glob("*.py")} - {"__init__", "common"}
    assert jobs == set(re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE))


def test_named_files_exist():
    """Every file that the README names is there."""
    named = re.findall(r"`((?:mtrec_ray|jobs|benchmarks)/[\w/]+\.(?:py|yaml))`", TEXT)
    short = re.findall(r"`((?:data|model|learning|stages)/\w+\.py)`", TEXT)
    linked = re.findall(r"\]\(([\w/.]+)\)", TEXT)
    paths = [TOP / p for p in named + linked] + [TOP / "mtrec_ray" / p for p in short]
    assert len(paths) > 5
    assert [p for p in paths if not p.exists()] == []
