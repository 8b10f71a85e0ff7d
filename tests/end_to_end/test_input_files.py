"""CSV, JSON lines, tables of Delta and Iceberg through the real job: read right, or refused."""

import gzip
import json
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from tests.end_to_end.small_project import (
    ITEM,
    NUM_ROWS,
    OF_ITEM,
    Case,
    Make,
    SmallProject,
    both,
    catalogue,
    check_prepared,
    check_refused,
    fields,
    job_here,
    log,
    params,
    small_project,
    users,
)

pytestmark = pytest.mark.end_to_end

SHOP = r"scenarios\.shop\."


def as_csv(table: pa.Table) -> bytes:
    """Rows as CSV."""
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(table, sink)
    return sink.getvalue().to_pybytes()


def as_json_lines(table: pa.Table) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()).encode()


def text(kind: str, name: str, form=as_csv, num_files: int = 1) -> Make:
    """A catalogue or a log as text, packed where its name says so; with `*` a folder of files."""

    def make(project: SmallProject) -> None:
        table = getattr(project, kind)
        project.shop[kind]["path"] = name.split("/")[0]
        size = -(-table.num_rows // num_files)
        for number in range(num_files):
            data = form(table.slice(number * size, size))
            path = project.folder / name.replace("*", str(number))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return make


def people(name: str, write: Callable[[pa.Table, Path], object], **fields: Any) -> Make:
    """A table of users with lists, written in another way than as Parquet; `fields` change it."""

    def make(project: SmallProject) -> None:
        users(country=["c"] * 10, age=[*range(9), -1], interests=[["p", "q"]] * 10)(project)
        project.tree["users"]["people"] |= {"path": name, **fields}
        write(project.files.pop("people.parquet"), project.folder / name)

    return make


def with_separators(table: pa.Table, path: Path) -> None:
    """Users as CSV, which has no lists."""
    texts = pc.binary_join(table["interests"], "|")
    path.write_bytes(as_csv(table.drop_columns("interests").append_column("interests", texts)))


def write_people_twice(table: pa.Table, path: Path) -> None:
    """Users as a Delta table whose first version had all of them twice."""
    write_deltalake(path, pa.concat_tables([table] * 2))
    write_deltalake(path, table, mode="overwrite")


def ten_people(project: SmallProject) -> None:
    """Ten users have two interests each; nobody knows the age of one."""
    table = pq.read_table(project.prepared / "profiles.people.parquet")
    assert sorted(table["user_id"].to_pylist()) == [f"u{u}" for u in range(10)]
    assert table["several.interests"].to_pylist() == [[1, 2]] * 10
    assert table["categorical.country"].to_pylist() == [1] * 10
    ages = table["numeric.age"].to_pandas()
    assert sorted(ages.dropna()) == [*range(9)]


def left_over(project: SmallProject) -> pa.Table:
    """Rows of an older version, whose users are nobody's now."""
    names = pc.binary_join_element_wise(project.events["user_id"], "old", "-")
    return project.events.set_column(0, "user_id", names)


def delta(partition_by=(), **later) -> Make:
    """A log as a Delta table whose first version was overwritten; `later` changes its log."""

    def make(project: SmallProject) -> None:
        project.shop["events"]["path"] = "ev"
        folder = project.folder / "ev"
        write_deltalake(folder, left_over(project), partition_by=list(partition_by))
        write_deltalake(folder, project.events, mode="overwrite")
        if later:
            entry = folder / "_delta_log" / f"{2:020}.json"
            entry.write_text("".join(json.dumps({k: v}) + "\n" for k, v in later.items()))

    return make


def added_column(project: SmallProject) -> None:
    """A Delta table whose first half was written before it had a column."""
    half = NUM_ROWS // 2
    project.shop["events"]["path"] = "ev"
    fields(tasks={"stars": {"kind": "regression"}})(project)
    write_deltalake(project.folder / "ev", project.events.slice(half).drop_columns("stars"))
    first = project.events.slice(0, half)
    write_deltalake(project.folder / "ev", first, mode="append", schema_mode="merge")


def iceberg(*, renamed: bool = False, hint: bool = True) -> Make:
    """A log as an Iceberg table whose first version was overwritten."""

    def make(project: SmallProject) -> None:
        folder = project.folder
        stores = SqlCatalog(
            "test", uri=f"sqlite:///{folder}/names.db", warehouse=f"file://{folder}"
        )
        stores.create_namespace("shop")
        table = stores.create_table("shop.ev", schema=project.events.schema)
        table.append(left_over(project))
        table.overwrite(project.events)
        if renamed:
            with table.update_schema() as update:
                update.rename_column("stars", "rating")
        project.shop["events"]["path"] = "shop/ev"
        if hint:
            name = Path(table.metadata_location).name
            (folder / "shop/ev/metadata/version-hint.text").write_text(name)

    return make


def no_old_users(project: SmallProject) -> None:
    """Nobody of a version that was overwritten is known."""
    found = project.read("state/users").column("user_id").to_pylist()
    assert len(found) == 20
    assert not [user for user in found if user.startswith("old")]


def zeros_kept(project: SmallProject) -> None:
    """Ids keep the zeros before them."""
    ids = pq.read_table(project.prepared / "shop" / "catalogue.parquet")["item_id"].to_pylist()
    assert sorted(ids) == [f"{i:05}" for i in ITEM]


PADDED = both(
    catalogue(item_id=[f"{i:05}" for i in ITEM]), log(item_id=[f"{i:05}" for i in OF_ITEM])
)
ALL_ROWS = {"rows_in_log": NUM_ROWS}
KNOWN = ["deletionVectors", "timestampNtz"]
FEATURES = {
    "protocol": {
        "minReaderVersion": 3, "minWriterVersion": 7,
        "readerFeatures": KNOWN, "writerFeatures": KNOWN,
    },
}  # fmt: skip

PREPARED = {
    "CSV": Case(
        both(PADDED, text("items", "items.csv"), text("events", "events.csv.gz")),
        report=ALL_ROWS, check=zeros_kept, told=(r"events\.path: CSV to Parquet",),
    ),
    "folder of JSON lines": Case(
        both(
            text("items", "items.json", as_json_lines),
            text("events", "ev/*.jsonl.gz", as_json_lines, 3),
        ),
        report=ALL_ROWS,
    ),
    "Delta": Case(delta(), report=ALL_ROWS, check=no_old_users),
    "Delta with partitions": Case(delta(["split"]), report=ALL_ROWS, check=no_old_users),
    "Delta with a column that was added": Case(
        added_column, report=ALL_ROWS | {"labels.train.stars": 150}
    ),
    "users as CSV": Case(
        people("people.csv", with_separators, lists=[], separators={"interests": "|"}),
        check=ten_people, told=(r"users\.people\.path: CSV to Parquet",),
    ),
    "users as JSON lines": Case(
        people("people.jsonl", lambda table, path: path.write_bytes(as_json_lines(table))),
        check=ten_people, told=(r"users\.people\.path: JSON lines to Parquet",),
    ),
    "users as Delta": Case(
        people("people", write_people_twice), check=ten_people
    ),
    "Iceberg": Case(iceberg(), report=ALL_ROWS, check=no_old_users),
    "Iceberg without a hint": Case(
        iceberg(hint=False), report=ALL_ROWS, check=no_old_users, long=True
    ),
}  # fmt: skip

REFUSED = {
    "CSV without a column": Case(
        both(
            lambda p: setattr(p, "events", p.events.drop_columns("click")),
            text("events", "e.csv"),
        ),
        (rf"{SHOP}tasks\.click: found no column 'click' in .*/e\.csv; allowed: user_id, .*",),
    ),
    "CSV without rows": Case(
        both(lambda p: setattr(p, "events", p.events.slice(0, 0)), text("events", "e.csv")),
        (rf"{SHOP}events\.path: found no rows in .*/e\.csv; allowed: at least one",),
    ),
    "users as CSV without a column": Case(
        people("people.csv", with_separators, categorical=["land"], text="{age}"),
        (
            r"users\.people\.categorical: found no column 'land' in .*; allowed: user_id",
            r"users\.people\.lists: found column 'interests' of .* type string; allowed: a list",
        ),
    ),
    "no JSON": Case(
        text("events", "e.jsonl", as_csv),
        (rf"{SHOP}events\.path: .*/e\.jsonl: .*; allowed: Parquet, CSV or JSON lines",),
    ),
    "CSV and JSON lines in one folder": Case(
        both(text("events", "ev/a.csv"), text("events", "ev/b.jsonl", as_json_lines)),
        (rf"{SHOP}events\.path: found CSV \(a\.csv\) and JSON lines \(b\.jsonl\) in .*; all",),
    ),
    "Delta with deletion vectors": Case(
        both(delta(**FEATURES), lambda p: delete_a_row(p.folder / "ev")),
        (rf"{SHOP}events\.path: found a table of Delta at .*/ev with deletion vectors; allowed: ",),
    ),
    "Delta without a whole log": Case(
        both(delta(), lambda p: (p.folder / "ev/_delta_log" / f"{1:020}.json").write_text("{")),
        (rf"{SHOP}events\.path: found a table of Delta at .*/ev that cannot be read .*; allowed",),
    ),
    "Delta with a feature that is not known": Case(
        delta(protocol=FEATURES["protocol"] | {"readerFeatures": ["x"], "writerFeatures": ["x"]}),
        (rf"{SHOP}events\.path: found a table of Delta at .*/ev .*; allowed: ",),
    ),
    "Iceberg with a column that was renamed": Case(
        iceberg(renamed=True),
        (rf"{SHOP}events\.path: found a table of Iceberg at .* renamed \(rating, stars\); allow",),
    ),
}  # fmt: skip


def delete_a_row(folder: Path) -> None:
    """Add a deletion vector to a Delta table."""
    entries = [
        json.loads(x) for x in (folder / f"_delta_log/{1:020}.json").read_text().splitlines()
    ]
    add = next(entry["add"] for entry in entries if "add" in entry)
    vector = {
        "storageType": "i", "pathOrInlineDv": "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "sizeInBytes": 40, "cardinality": 6,
    }  # fmt: skip
    lines = [{"remove": {"path": add["path"], "dataChange": True, "deletionTimestamp": 0}}]
    lines += [{"add": add | {"deletionVector": vector}}]
    entry = folder / f"_delta_log/{3:020}.json"
    entry.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.usefixtures("session_ray")
@pytest.mark.parametrize("case", params(PREPARED))
def test_files_that_prepare(tmp_path, capsys, case):
    """The rows are those of the current version, as those of Parquet would be."""
    project = small_project(tmp_path)
    case.make(project)
    code, _, stderr = job_here(project, "check", capsys)
    assert code == 0, stderr
    assert not (tmp_path / "runs").exists()
    check_prepared(project, case, job_here(project, "prepare", capsys))


@pytest.mark.parametrize("job", ["check", "prepare"])
@pytest.mark.parametrize("case", params(REFUSED))
def test_files_that_are_refused(tmp_path, capsys, case, job):
    """One line, before anything is written."""
    project = small_project(tmp_path)
    case.make(project)
    check_refused(project, case, job, job_here(project, job, capsys))
    assert not list(tmp_path.glob("runs/tables-*"))


@pytest.mark.parametrize(
    ("make", "package"), [(delta(), "deltalake"), (iceberg(), "pyiceberg.table")]
)
def test_a_table_without_its_package(tmp_path, capsys, monkeypatch, make, package):
    """The line says how to install it."""
    project = small_project(tmp_path)
    make(project)
    monkeypatch.setitem(sys.modules, package, None)
    line = (
        rf"{SHOP}events\.path: found a table of .*; allowed: pip install 'mtrec_ray\[tables\]', .*"
    )
    check_refused(project, Case(make, (line,)), "check", job_here(project, "check", capsys))


@pytest.mark.usefixtures("session_ray")
def test_a_changed_file_is_converted_anew(tmp_path, capsys):
    """The same run is done; another one reads the new rows, and finds what did not change."""
    project = small_project(tmp_path)
    both(text("items", "items.csv"), text("events", "events.csv"))(project)
    assert job_here(project, "prepare", capsys)[0] == 0
    converted = set(tmp_path.glob("runs/tables-*"))
    assert "already done" in job_here(project, "prepare", capsys)[1]
    project.events = project.events.slice(0, NUM_ROWS - 5)
    text("events", "events.csv")(project)
    code, _, stderr = job_here(project, "prepare", capsys)
    assert code == 2
    assert "made from other input files" in stderr
    project.tree["run"]["name"] = "y"
    code, stdout, _ = job_here(project, "prepare", capsys)
    assert code == 0
    assert json.loads(stdout.splitlines()[-1])["report"]["shop"]["rows_in_log"] == NUM_ROWS - 5
    assert len(set(tmp_path.glob("runs/tables-*")) - converted) == 1


class Files(SimpleHTTPRequestHandler):
    """Files of a folder, whole or in part, to those who know the password."""

    allowed = "Basic " + b64encode(b"me:open sesame").decode()

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = Path(self.translate_path(self.path))
        known = self.headers.get("Authorization") == self.allowed
        if not known or not path.is_file():
            self.send_error(404 if known else 401)
            return
        data, asked = (
            path.read_bytes(),
            re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""),
        )
        first, last = (
            (int(asked[1]), int(asked[2] or len(data) - 1)) if asked else (0, len(data) - 1)
        )
        part = data[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        if with_body:
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    """Where a server of this machine shows the test's folder."""
    server = ThreadingHTTPServer(("localhost", 0), partial(Files, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def served(project: SmallProject, address: str, password: str) -> None:
    """Files at an address, behind a password."""
    project.tree["root"] = address
    project.tree["storage_options"] = {"http": {"headers": {"Authorization": password}}}


@pytest.mark.usefixtures("session_ray")
@pytest.mark.parametrize("log_as", ["Parquet", "CSV"])
def test_files_of_a_server(tmp_path, capsys, address, log_as):
    """Files at an http address are read with its options, Parquet as it is and CSV converted."""
    project = small_project(tmp_path)
    served(project, address, Files.allowed)
    users(country=["c"] * 10, age=[*range(9), -1], interests=[["p", "q"]] * 10)(project)
    if log_as == "CSV":
        text("events", "events.csv.gz")(project)
        people("people.csv", with_separators, lists=[], separators={"interests": "|"})(project)
    case = Case(lambda _: None, report=ALL_ROWS, check=ten_people)
    check_prepared(project, case, job_here(project, "prepare", capsys))


def test_a_password_of_the_environment(tmp_path, capsys, monkeypatch, address):
    """Options name a variable of the environment, which stands nowhere else."""
    monkeypatch.setenv("MTREC_TEST_HEADER", Files.allowed)
    project = small_project(tmp_path)
    served(project, address, "${MTREC_TEST_HEADER}")
    code, _, stderr = job_here(project, "check", capsys)
    assert code == 0, stderr


def test_a_server_that_refuses(tmp_path, capsys, address):
    """One line a path, without the options."""
    project = small_project(tmp_path)
    served(project, address, "Basic nobody")
    lines = [
        rf"{SHOP}{kind}\.path: found (nothing at )?{address}/{kind}\.parquet[;,] .*allowed: Parquet"
        for kind in ("items", "events")
    ]
    case = Case(lambda _: None, tuple(lines))
    check_refused(project, case, "check", job_here(project, "check", capsys))
