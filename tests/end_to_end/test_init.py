"""What `mtrec init` writes is prepared without a change, by the real jobs."""

from pathlib import Path

import pytest

from jobs.init import main as init
from jobs.prepare import main as prepare
from tests.end_to_end.jobs import last_line
from tests.unit.test_init import ROWS, TOOLS, data_folder

RAW = Path(__file__).parents[3] / "shared" / "data"
PUBLIC = ("movielens", "book_crossing", "online_retail", "deskdrop", "mind")

pytestmark = [pytest.mark.end_to_end, pytest.mark.usefixtures("session_ray")]


def prepared(data: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    """The data report of a project file that `init` wrote of some data."""
    config = str(folder / "mine.yaml")
    init([str(data)], config)
    prepare(config=config, storage=str(folder / "runs"))
    report = last_line(capsys.readouterr().out)["report"]
    assert report.pop("audit")["passed"]
    return report


@pytest.mark.parametrize("write", TOOLS, ids=lambda f: f.__name__)
def test_files_of_any_tool(tmp_path, capsys, write):
    """Every row of the log becomes a sample, and none is unknown."""
    write(data_folder(tmp_path))
    [(_, report)] = prepared(tmp_path / "data", tmp_path, capsys).items()
    assert sum(report["samples"].values()) == ROWS
    assert not any(report["dropped"].values())


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not RAW.exists(), reason="the raw data does not lie beside the project")
@pytest.mark.parametrize("name", PUBLIC)
def test_public_data_sets(tmp_path, capsys, name):
    """The owners' own files are prepared; no row is dropped, and each split has rows."""
    report = prepared(RAW / name, tmp_path, capsys)
    for own in report.values():
        assert min(own["samples"].values()) > 0
        assert not any(own["dropped"].values())
