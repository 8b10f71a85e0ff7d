"""Tables of Delta and Iceberg: the Parquet files of their current version, as their logs tell.

What lies in their folders beside those are rows of older versions, which nobody may read.
"""

import importlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from mtrec_ray.data import storage
from mtrec_ray.data.storage import FileVersion
from mtrec_ray.project.base import ProjectError, split_query

DELTA_LOG = "_delta_log"
ICEBERG_METADATA = "metadata"

# What a reader of a Delta table has to know; of these, nothing in what is read here, or it is seen.
DELTA_FEATURES = {
    "columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "v2Checkpoint",
    "vacuumProtocolCheck",
}  # fmt: skip


def table_files(path: str) -> list[FileVersion] | None:
    """Returns the Parquet files of a table of Delta or Iceberg; None where a path is neither.

    Raises:
        ProjectError: the table is broken, needs what is not read here, or a package is missing.
        OSError: the file system cannot be reached.
    """
    if storage.exists(storage.join(path, DELTA_LOG)):
        return delta_files(path)
    return iceberg_files(path) if iceberg_metadata(path) else None


def package_of(name: str, table: str, path: str) -> ModuleType:
    """Returns a package that an installation may lack.

    Raises:
        ProjectError: it does.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        allowed = "allowed: pip install 'mtrec_ray[tables]', which reads them, or Parquet files"
        raise ProjectError([f"found a table of {table} at {path}; {allowed}"]) from None


def refused(table: str, path: str, what: str, allowed: str) -> ProjectError:
    """Returns the error of a table that cannot be read."""
    reason = " ".join(what.split())[:200]
    return ProjectError([f"found a table of {table} at {path} {reason}; allowed: {allowed}"])


# --- Delta ---------------------------------------------------------------------------------------


def delta_files(path: str) -> list[FileVersion]:
    """Returns the files of the current version of a Delta table, with their partitions' values.

    Raises:
        ProjectError: as `table_files`.
    """
    deltalake = package_of("deltalake", "Delta", path)
    try:
        with local_log(path) as folder:
            table = deltalake.DeltaTable(folder)
            check_delta(table, path)
            files = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    except deltalake.exceptions.DeltaError as error:
        raise refused("Delta", path, f"that cannot be read ({error})", "a whole one") from None
    schema = pa.schema(table.schema().to_arrow())
    partitions = [schema.field(name) for name in table.metadata().partition_columns]
    return [
        FileVersion(
            delta_path(path, file["path"]),
            file["size_bytes"],
            file["modification_time"] * 10**6,
            schema,
            tuple((p.name, pa.scalar(file[f"partition.{p.name}"], p.type)) for p in partitions),
        )
        for file in sorted(files, key=lambda file: file["path"])
    ]


@contextmanager
def local_log(path: str) -> Iterator[str]:
    """A local folder with a Delta table's log: the table's, or of a remote one a copy."""
    fs, inner = storage.filesystem(path)
    if isinstance(fs, pafs.LocalFileSystem):
        yield inner
        return
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{inner.rstrip('/')}/{DELTA_LOG}", f"{folder}/{DELTA_LOG}"
        Path(target).mkdir()
        pafs.copy_files(source, target, fs, pafs.LocalFileSystem())
        yield folder


def delta_path(path: str, name: str) -> str:
    """Returns the address of a file that a Delta log names: below the table, or elsewhere."""
    if re.match(r"[a-z0-9]+:/", name):
        return name
    inner = unquote(name)
    return storage.join(path, quote(inner, safe="/=:") if "://" in path else inner)


def check_delta(table: Any, path: str) -> None:
    """Refuse a Delta table whose Parquet files say not by themselves what its rows are.

    Raises:
        ProjectError: rows deleted by vectors, columns under other names, unknown features.
    """
    features = set(table.protocol().reader_features or ())
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise refused("Delta", path, "with column mapping", "one without")
    if "deletionVectors" in features and has_deletion_vectors(table):
        allowed = "one without (REORG TABLE ... APPLY (PURGE) rewrites its files)"
        raise refused("Delta", path, "with deletion vectors", allowed)
    if unknown := sorted(features - DELTA_FEATURES):
        known = ", ".join(sorted(DELTA_FEATURES))
        raise refused("Delta", path, f"with {', '.join(unknown)}", f"features among {known}")


def has_deletion_vectors(table: Any) -> bool:
    """Returns whether a row of a Delta table is deleted in a file that still holds it."""
    deltalake = importlib.import_module("deltalake")
    try:
        return any(pa.record_batch(batch).num_rows for batch in table.deletion_vectors())
    except (deltalake.exceptions.DeltaError, OSError):  # one is there, and cannot be read
        return True


# --- Iceberg -------------------------------------------------------------------------------------


def iceberg_metadata(path: str) -> str | None:
    """Returns the metadata file of an Iceberg table's current version; None where there is none.

    It is the one of `version-hint.text`, else that with the highest number in its name.
    """
    folder = storage.join(path, ICEBERG_METADATA)
    listed = {storage.name_of(file): file for file in storage.files(folder)}
    named = {name: file for name, file in listed.items() if name.endswith(".metadata.json")}
    if not named:
        return None
    if "version-hint.text" in listed:
        hint = storage.read_bytes(listed["version-hint.text"]).decode().strip()
        for name in (hint, f"v{hint}.metadata.json", f"{hint}.metadata.json"):
            if name in named:
                return named[name]
    number = lambda name: int((re.match(r"v?(\d+)", name) or [0, 0])[1])  # noqa: E731
    return named[max(named, key=number)]


def iceberg_files(path: str) -> list[FileVersion]:
    """Returns the files of the current version of an Iceberg table.

    Raises:
        ProjectError: as `table_files`.
    """
    pyiceberg_table = package_of("pyiceberg.table", "Iceberg", path)
    metadata = split_query(iceberg_metadata(path) or "")[0]
    try:
        table = pyiceberg_table.StaticTable.from_metadata(iceberg_path(metadata))
        tasks = list(table.scan().plan_files())
    except (OSError, ValueError, ImportError) as error:
        raise refused("Iceberg", path, f"that cannot be read ({error})", "a whole one") from None
    check_iceberg(table, tasks, path)
    schema = pa.schema([pa.field(f.name, f.type) for f in may_be_lacking(table)])
    query = split_query(path)[1]
    sizes = {task.file.file_path: task.file.file_size_in_bytes for task in tasks}
    return [
        FileVersion(iceberg_path(name) + query, size, 0, schema)
        for name, size in sorted(sizes.items())
    ]


def iceberg_path(name: str) -> str:
    """Returns the address of a file that Iceberg names, which does not escape letters."""
    if name.startswith("file:"):
        return re.sub("^file:/*", "/", name)
    return quote(name, safe="/=:") if "://" in name else name


def check_iceberg(table: Any, tasks: list[Any], path: str) -> None:
    """Refuse an Iceberg table whose data files say not by themselves what its rows are.

    Raises:
        ProjectError: rows deleted by files, files that are not Parquet, columns under other names.
    """
    if any(task.delete_files for task in tasks):
        raise refused(
            "Iceberg", path, "with files of deleted rows", "one whose files are rewritten"
        )
    kinds = {task.file.file_format.value for task in tasks} - {"PARQUET"}
    if kinds:
        raise refused("Iceberg", path, f"of {', '.join(sorted(kinds))}", "Parquet files")
    pairs = {(f.field_id, f.name) for schema in table.metadata.schemas for f in schema.fields}
    for place, what in ((0, "renamed"), (1, "added under an earlier name")):
        counts = Counter(pair[place] for pair in pairs)
        found = sorted(name for number, name in pairs if counts[(number, name)[place]] > 1)
        if found:
            names = ", ".join(dict.fromkeys(found))
            raise refused("Iceberg", path, f"with columns that were {what} ({names})", "no such")


def may_be_lacking(table: Any) -> list[pa.Field]:
    """Returns the columns that are null where an older data file lacks them.

    Others have a default, or a value of their partition.
    """
    filled = {f.field_id for f in table.schema().fields if getattr(f, "initial_default", None)}
    filled |= {f.source_id for spec in table.specs().values() for f in spec.fields}
    kept = {f.name for f in table.schema().fields if f.field_id not in filled}
    return [field for field in table.schema().as_arrow() if field.name in kept]
