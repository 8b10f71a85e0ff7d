"""The files behind a path of a project file: Parquet, tables of Delta or Iceberg, CSV, JSON lines.

Parquet files are read as they are. CSV and JSON lines are looked at, and converted once.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.data import storage
from mtrec_ray.data.lake_tables import table_files
from mtrec_ray.data.storage import PARQUET_ENDINGS, FileVersion
from mtrec_ray.data.tables import COMPRESSED, Tables
from mtrec_ray.project.base import ProjectError

KINDS = {
    ".csv": "CSV", ".tsv": "CSV",
    ".json": "JSON lines", ".jsonl": "JSON lines", ".ndjson": "JSON lines",
}  # fmt: skip
ROWS_PER_GROUP = 250_000  # of Parquet that CSV and JSON lines become


def input_files(path: str) -> list[FileVersion]:
    """Returns the files that hold a path's rows: all of them Parquet, or all of them text.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: the file system cannot be reached.
        ProjectError: a table that cannot be read, or files of two kinds.
    """
    if storage.is_file(path) or not storage.exists(path):
        return storage.shown_versions(path)
    files = table_files(path)
    if files is None:
        files = text_files(path) or storage.parquet_versions(path)
    return files


def text_files(path: str) -> list[FileVersion]:
    """Returns the files of CSV or JSON lines in a folder; none beside Parquet files.

    Raises:
        FileNotFoundError, OSError: as `input_files`.
        ProjectError: files of both kinds.
    """
    shown = storage.shown_versions(path)
    if any(storage.name_of(v.path).lower().endswith(PARQUET_ENDINGS) for v in shown):
        return []
    found = [version for version in shown if text_kind(version.path)]
    kinds = {text_kind(version.path): version.path for version in reversed(found)}
    if len(kinds) > 1:
        both = " and ".join(f"{kind} ({storage.name_of(kinds[kind])})" for kind in sorted(kinds))
        raise ProjectError([f"found {both} in {path}; allowed: files of one kind"])
    return found


def text_kind(path: str) -> str:
    """Returns `CSV` or `JSON lines` by a file's name, or an empty text for any other."""
    name = storage.name_of(path).lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return KINDS.get(Path(name).suffix, "")


def holds_text(files: Sequence[FileVersion]) -> bool:
    """Returns whether files are of CSV or JSON lines."""
    return bool(files) and text_kind(files[0].path) != ""


def look_at(files: Sequence[FileVersion]) -> tuple[pa.Schema, int]:
    """Returns the columns and the number of rows of CSV or JSON lines, which are not copied.

    Without rows, types are not known: they are null.

    Raises:
        ProjectError: they cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder, Tables() as tables:
        table = tables.open("rows", local_files(files, folder))
        schema = tables.batches(f"FROM {table.sql} LIMIT 0").schema
    if not table.rows:
        schema = pa.schema([pa.field(name, pa.null()) for name in schema.names])
    return schema, table.rows


def convert(files: Sequence[FileVersion], target: str) -> int:
    """Write the rows of CSV or JSON lines as one Parquet file, a part at a time; returns how many.

    The types of columns are those that `init` finds: ids with zeros before them stay text.

    Raises:
        ProjectError: they cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder, Tables(Path(folder)) as tables:
        table = tables.open("rows", local_files(files, folder))
        batches = tables.batches(f"FROM {table.sql}", ROWS_PER_GROUP)
        with (
            storage.new_file(target) as stream,
            pq.ParquetWriter(stream, batches.schema, compression="zstd") as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
        return table.rows


def local_files(files: Sequence[FileVersion], folder: str) -> list[Path]:
    """Returns where files lie on this machine; of remote ones, copies in a folder."""
    local = []
    for number, version in enumerate(files):
        fs, inner = storage.filesystem(version.path)
        if not isinstance(fs, pafs.LocalFileSystem):
            copy = Path(folder, f"{number:06}", storage.name_of(version.path))
            copy.parent.mkdir(parents=True)
            pafs.copy_files(inner, str(copy), fs, pafs.LocalFileSystem())
            inner = str(copy)
        local.append(Path(inner))
    return local
