"""Paths keep their endpoint, JSON is JSON, and left-over files are no data."""

import json
import math
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.data import storage
from mtrec_ray.data.end_states import user_parts
from mtrec_ray.data.prepared import Prepared, Shard, TeacherLabels
from mtrec_ray.data.preparing.inputs import users_table
from mtrec_ray.project.base import ProjectError, split_options, without_options
from mtrec_ray.project.load import parse_project
from tests.builders import SHOP, project_tree, scenario_tree

TABLE = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})


def test_the_query_of_a_uri_stays_last():
    """A path below `s3://bucket/runs?endpoint_override=...` ends with that query, once."""
    root = "s3://bucket/runs/?endpoint_override=minio:9000"
    path = storage.join(storage.join(root, "a", "/b/"), "c.json")
    assert path == "s3://bucket/runs/a/b/c.json?endpoint_override=minio:9000"
    assert storage.name_of(path) == "c.json"
    _, inner = storage.filesystem(path)
    assert inner == "bucket/runs/a/b/c.json"


def test_options_travel_with_a_uri(monkeypatch):
    """Texts take variables of the environment where a path is opened; a path shows their names."""
    monkeypatch.setenv("ENDPOINT", "minio:9000")
    options = {
        "s3": {"endpoint_override": "${ENDPOINT}", "region": "eu", "allow_bucket_creation": True}
    }
    tree = project_tree(
        {"shop": scenario_tree({"buy": {"kind": "binary"}})},
        root="s3://b/runs?scheme=http", storage_options=options,
    )  # fmt: skip
    path = storage.join(parse_project(tree).path("shop"), "log.parquet")
    assert "minio" not in path
    fs, inner = storage.filesystem(path)
    assert inner == "b/runs/shop/log.parquet"
    plain = "s3://b/?region=eu&scheme=http&endpoint_override=minio:9000&allow_bucket_creation=true"
    assert fs == storage.filesystem(plain)[0]
    assert without_options(f"nothing at {path}; allowed: {path}").count("storage_options") == 0
    monkeypatch.delenv("ENDPOINT")
    with pytest.raises(ProjectError, match=r"found \$\{ENDPOINT\}, which is not set"):
        storage.filesystem(path)


def test_options_of_a_table_of_users():
    """A table of users is opened with the options of its protocol, which no other path may have."""
    scenario = scenario_tree({"buy": {"kind": "binary"}}, users="people")
    table = {"path": "sftp://host/people.csv", "categorical": ["country"]}
    options = {"sftp": {"username": "me"}}
    tree = project_tree({"shop": scenario}, storage_options=options)
    [line] = parse_project(tree).unused_options()
    assert line.startswith("storage_options: found 'sftp'; allowed: protocols of paths")
    project = parse_project(tree | {"users": {"people": table}})
    assert not list(project.unused_options())
    assert split_options(users_table(project, "people").path) == (table["path"], options["sftp"])


def test_a_file_that_was_not_finished_is_gone(tmp_path):
    """A stream that ends with an error leaves neither the file nor a part of it."""
    with pytest.raises(TypeError), storage.new_file(str(tmp_path / "a" / "b")) as stream:
        stream.writelines([b"half", 1])
    assert not any((tmp_path / "a").iterdir())


def test_protocols_of_fsspec():
    """What pyarrow does not know is one of fsspec's file systems, for reading and for writing."""
    folder = f"memory://{uuid.uuid4()}"
    storage.write_table(storage.join(folder, "day=1", "a%20b.parquet"), TABLE)
    [path] = storage.parquet_files(folder)
    assert storage.read_table(path, ["a", "day"]).to_pydict() == {"a": [1, 2, 3], "day": ["1"] * 3}
    assert storage.exists(path)
    assert not storage.exists(storage.join(folder, "b"))


def test_parts_of_prepared_data_have_no_query(monkeypatch):
    """Names of files below an endpoint with slashes are found again below other folders."""
    query = "?endpoint_override=http://minio:9000"
    shards = {"train": [Shard("shop/train/part-00000-0000.parquet", 3)]}
    prepared = Prepared(
        f"s3://b/p{query}", "", {"shop": replace(SHOP, shards=shards)},
        TeacherLabels(f"s3://b/t{query}", 0.5),
    )  # fmt: skip
    [shard] = prepared.train_shards("shop")
    assert shard.path == f"s3://b/p/shop/train/part-00000-0000.parquet{query}"
    assert shard.teacher_path == f"s3://b/t/shop/part-00000-0000.parquet{query}"
    listed = [f"s3://b/p/shop/state/users/part-00000.parquet{query}"]
    monkeypatch.setattr(storage, "parquet_files", lambda folder: listed)
    assert user_parts(prepared, "shop") == ["part-00000.parquet"]


def test_a_question_mark_of_a_local_path_is_a_letter():
    """A local folder may have a question mark in its name."""
    assert storage.join("/runs/why?", "a") == "/runs/why?/a"
    assert storage.name_of("/runs/why?") == "why?"


@pytest.mark.parametrize("name", ["ts=2024-01-01%2000%3A00", "a b", "plain", "50%", "a?b"])
def test_listed_files_can_be_read(tmp_path, name):
    """What is listed below a URI or a folder is read from there, whatever letters it has."""
    for root in (str(tmp_path), tmp_path.as_uri()):
        (tmp_path / name).mkdir(exist_ok=True)
        storage.write_table(str(tmp_path / name / "part 0.parquet"), TABLE)
        [path] = storage.parquet_files(root)
        assert storage.read_table(path).equals(TABLE)
    below = tmp_path.as_uri() + "/" + name.replace("%", "%25").replace("?", "%3F")
    [path] = storage.files(below.replace(" ", "%20"))
    assert storage.read_table(path).equals(TABLE)


def test_hidden_and_left_over_files_are_no_data(tmp_path):
    """Files below a folder that begins with _ or . are not listed."""
    places = ["b/part.parquet", "_temporary/0/part.parquet", ".ipynb_checkpoints/x.parquet"]
    for place in [*places, "_part.parquet", "notes.txt"]:
        storage.write_table(str(tmp_path / place), TABLE)
    assert storage.parquet_files(str(tmp_path)) == [str(tmp_path / "b/part.parquet")]


def test_a_folder_without_parquet_says_what_it_has(tmp_path):
    """Files of other names are counted in the error."""
    (tmp_path / "log.csv").write_text("")
    with pytest.raises(FileNotFoundError, match=r"1 files, none of them named \*\.parquet"):
        storage.parquet_files(str(tmp_path))


@pytest.mark.parametrize("names", [["000000_0", "000001_0"], ["a.parquet", "b.pq", "c.parq"]])
def test_files_are_known_by_their_endings(tmp_path, names):
    """All endings of Parquet are listed, and files without any where there is none of these."""
    for name in [*names, "notes.txt"]:
        storage.write_table(str(tmp_path / name), TABLE)
    assert storage.parquet_files(str(tmp_path)) == [str(tmp_path / name) for name in names]


def test_keys_of_the_path_are_columns(tmp_path):
    """A named column that a file lacks is the value in its path; one of the file is the file's."""
    path = str(tmp_path / "a=9" / "day=1%2F2" / "of=__HIVE_DEFAULT_PARTITION__" / "p.parquet")
    storage.write_table(path, TABLE)
    for found in (
        storage.read_table(path, ["a", "day", "of"]),
        storage.read_row_group(path, 0, ["a", "day", "of"]),
    ):
        assert found.to_pydict() == {"a": [1, 2, 3], "day": ["1/2"] * 3, "of": [None] * 3}
    assert storage.read_table(path).equals(TABLE)


def test_only_named_columns_are_read(tmp_path):
    """`read_table` and `read_row_group` hold the columns asked for, in the file's order."""
    path = str(tmp_path / "t.parquet")
    storage.write_table(path, TABLE)
    assert storage.read_table(path, ["b"]).column_names == ["b"]
    assert storage.read_row_group(path, 0, ["a"]).equals(TABLE.select(["a"]))
    assert storage.read_footer(path).num_rows == 3


def read_strictly(path: Path) -> object:
    """A JSON file, read by a reader that refuses NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_json_is_json(tmp_path):
    """Numpy's numbers are written as numbers, and what is not finite as null."""
    path = tmp_path / "a.json"
    value = {
        "single": np.float32(0.5), "count": np.int64(3), "yes": np.bool_(True), "nan": math.nan,
        "inner": [{"x": (np.float64("inf"), -math.inf, 1.5)}, None, "text"],
    }  # fmt: skip
    storage.write_json(str(path), value)
    assert read_strictly(path) == {
        "single": 0.5, "count": 3, "yes": True, "nan": None,
        "inner": [{"x": [None, None, 1.5]}, None, "text"],
    }  # fmt: skip


@pytest.mark.parametrize("value", [Path("/tmp"), np.zeros(2), {1, 2}, np.datetime64("2024-01-01")])
def test_what_json_does_not_have_is_refused(tmp_path, value):
    """Anything without a place in JSON is a TypeError and leaves no file."""
    with pytest.raises(TypeError):
        storage.write_json(str(tmp_path / "a.json"), {"value": [value]})
    assert not list(tmp_path.iterdir())
