"""Files of users: ids as they stand, or one line that says what is wrong."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.project.base import ProjectError
from mtrec_ray.stages.recommend import read_users


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.dictionary(pa.int32(), pa.string())])
def test_ids_of_a_table(tmp_path, kind):
    """The first column as text; nulls are left out."""
    path = tmp_path / "users.parquet"
    values = pa.array(["7", None, "12"]).cast(pa.int64() if kind == pa.int64() else pa.string())
    column = values.dictionary_encode() if pa.types.is_dictionary(kind) else values
    pq.write_table(pa.table({"id": column, "other": [1, 2, 3]}), path)
    assert read_users(str(path)) == ["7", "12"]


def test_ids_of_a_text(tmp_path):
    """One id a line; empty lines are left out."""
    (tmp_path / "users.txt").write_text("u1\n\n u2 \n")
    assert read_users(str(tmp_path / "users.txt")) == ["u1", "u2"]


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda p: p.write_bytes(b"no parquet"), "which is no Parquet file"),
        (lambda p: pq.write_table(pa.table({"id": [1.0, 2.0]}), p), "column 'id' of type double"),
        (lambda p: pq.write_table(pa.table({"id": [["a"]]}), p), "of type list"),
        (lambda p: pq.write_table(pa.table({}), p), "found no column"),
        (lambda p: pq.write_table(pa.table({"id": pa.array([], pa.string())}), p), "found no user"),
    ],
    ids=["bytes", "floats", "lists", "no column", "no row"],
)
def test_a_table_without_ids_is_one_line(tmp_path, write, found):
    """Each wrong table is told in one line that names the file and what is allowed."""
    path = tmp_path / "users.parquet"
    write(path)
    with pytest.raises(ProjectError, match=found) as error:
        read_users(str(path))
    assert "allowed: " in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_bytes_are_no_text(tmp_path):
    """A Parquet file with another ending is told, not read."""
    path = tmp_path / "users.bin"
    pq.write_table(pa.table({"id": ["ä"]}), path)
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    with pytest.raises(ProjectError, match="found no text"):
        read_users(str(path))
