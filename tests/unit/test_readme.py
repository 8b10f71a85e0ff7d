"""The pages are true where a test can tell: commands, jobs, files, tables, numbers in sentences."""

import re
from pathlib import Path

import pytest
import yaml

from benchmarks.common import RESULTS
from benchmarks.sentences import numbers_of, passages, problems, read_result
from benchmarks.tables import BLOCKS, PAGES, renewed
from mtrec_ray.project.load import load_project

TOP = Path(__file__).parents[2]
README = TOP / "README.md"
CODE = TOP / "mtrec_ray" / "README.md"
RESULTS_PAGE = TOP / "benchmarks" / "README.md"
EVERY_PAGE = pytest.mark.parametrize("page", [*PAGES, CODE], ids=lambda p: p.parent.name)
TEXT = README.read_text()
MOST_LINES = 200


def section(title: str) -> str:
    """A section of the README."""
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in found}


def test_two_commands():
    """Two lines make an environment: the first ends in the quickstart, the second in the tests."""
    first, second = re.findall(r"^python3\.11 -m venv .*$", TEXT, flags=re.MULTILINE)
    assert first.endswith("-m jobs.pipeline --config jobs/quickstart.yaml")
    assert second.endswith("-m pytest")


def test_the_front_page_is_short():
    """The README is read in minutes: 200 lines at most."""
    assert len(TEXT.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name)
def test_tables_come_from_results(page):
    """The tables hold exactly what the benchmarks' results and the schema say."""
    assert renewed(page.read_text()) == page.read_text()


def test_every_table_is_shown():
    """Every table that can be made stands on a page."""
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in (*BLOCKS, "fields") if f"<!-- {name} -->" not in text] == []


def test_every_result_is_shown():
    """Every file of results has a table."""
    shown = {file for file, _ in BLOCKS.values()}
    assert shown == {path.stem for path in RESULTS.glob("*.json")}


def test_sentences_agree_with_results():
    """Every number in a sentence of benchmarks/README.md is bound to a result, and agrees."""
    assert problems(RESULTS_PAGE.read_text(), read_result(RESULTS)) == []


@pytest.mark.parametrize("title", ["Results", "What it costs"])
def test_sentences_of_the_front_page_agree(title):
    """Every number of the README's results and costs is bound to a result, and agrees."""
    assert numbers_of(section(title))
    assert problems(section(title), read_result(RESULTS)) == []


def test_settings_are_few():
    """Numbers that are declared to be settings are a small part of those that are bound."""
    items = [item for p in passages(RESULTS_PAGE.read_text()) for _, item in p.items]
    settings = [item for item in items if item.startswith("given ")]
    assert 5 * len(settings) < len(items)


def test_all_jobs_are_listed():
    """The README's table names every job there is, and jobs/README.md has a section on each."""
    jobs = {f.stem for f in (TOP / "jobs").glob("*.py")} - {"__init__", "common", "cli", "terminal"}
    assert jobs == set(re.findall(r"^\| `(\w+)` \|", section("Jobs"), flags=re.MULTILINE))
    sections = re.findall(r"^## `(\w+)`$", (TOP / "jobs/README.md").read_text(), re.MULTILINE)
    assert jobs == set(sections)


def test_the_example_is_a_project(tmp_path):
    """The README's project file passes validation."""
    (example,) = re.findall(r"^```yaml\n(.*?)^```", section("Your own data"), re.DOTALL | re.M)
    assert len(yaml.safe_load(example)["scenarios"]) == 1
    file = tmp_path / "mine.yaml"
    file.write_text(example)
    assert list(load_project(file).scenarios) == ["shop"]


def named_files(page: Path) -> list[Path]:
    """The files of the repository that a page names."""
    named = r"`((?:mtrec_ray|jobs|benchmarks|tests)/[\w/]+\.(?:py|yaml))`"
    return [TOP / name for name in re.findall(named, page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name)
def test_named_files_exist(page):
    """Every file that a page names is there."""
    assert [str(path) for path in named_files(page) if not path.exists()] == []


def test_the_map_of_the_code_is_true():
    """Every file and folder that mtrec_ray/README.md names is there, the tests too."""
    folders = re.findall(r"^\| `([\w/]+/)` \|", CODE.read_text(), flags=re.MULTILINE)
    paths = [*named_files(CODE), *(CODE.parent / folder for folder in folders)]
    assert len(paths) > 40
    assert sorted({str(path) for path in paths if not path.exists()}) == []


@EVERY_PAGE
def test_links_lead_somewhere(page):
    """Every link into the repository leads to a file, and to a heading where it names one."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    targets = [((page.parent / path).resolve() if path else page, anchor) for path, anchor in links]
    assert targets
    assert [str(path) for path, _ in targets if not path.exists()] == []
    assert [anchor for path, anchor in targets if anchor and anchor not in headings(path)] == []
