"""Tables of Delta and Iceberg: the files of their current version, wherever they lie."""

import uuid
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from mtrec_ray.data import storage
from mtrec_ray.data.input_files import input_files
from mtrec_ray.data.lake_tables import check_iceberg
from mtrec_ray.project.base import ProjectError

ROWS = pa.table({"user": [1, 2, 3], "day": ["a b", "c/d", None], "size": [1, 2, 3]})


def test_a_delta_table_elsewhere(tmp_path):
    """Of a remote table the log is copied; values of partitions come from it, with their types."""
    write_deltalake(tmp_path / "t", ROWS.slice(1), partition_by=["day", "size"])
    write_deltalake(tmp_path / "t", ROWS, mode="overwrite")
    remote = f"memory://{uuid.uuid4()}"
    fsspec.filesystem("memory").put(str(tmp_path / "t"), remote, recursive=True)
    for path in (str(tmp_path / "t"), (tmp_path / "t").as_uri(), remote):
        tables = [storage.read_table(file, ROWS.column_names) for file in input_files(path)]
        found = pa.concat_tables(tables).select(ROWS.column_names).sort_by("user")
        assert found.to_pydict() == ROWS.to_pydict(), path
        assert found.schema.field("size").type == pa.int64()


@pytest.mark.parametrize(
    ("kind", "deletes", "line"),
    [("PARQUET", {"a"}, "with files of deleted rows"), ("ORC", set(), "of ORC")],
)
def test_files_that_do_not_say_what_the_rows_are(kind, deletes, line):
    """They are refused. The plan is a fake: pyiceberg writes neither of them."""
    file = SimpleNamespace(file_format=SimpleNamespace(value=kind))
    table = SimpleNamespace(metadata=SimpleNamespace(schemas=[]))
    with pytest.raises(ProjectError, match=f"found a table of Iceberg at t {line}; allowed"):
        check_iceberg(table, [SimpleNamespace(file=file, delete_files=deletes)], "t")
