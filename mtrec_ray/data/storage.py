"""Files of a run: a local folder or a remote URI, read and written through pyarrow filesystems."""

import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import fsspec.core
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.project.base import ProjectError, split_options, split_query

PARQUET_ENDINGS = (".parquet", ".pq", ".parq")


NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # what Hive writes for null


# What marks the tables of formats whose files may hold rows that were deleted since.
TABLES = {"/_delta_log/": "Delta", "/.hoodie/": "Hudi", ".metadata.json": "Iceberg"}


@dataclass(frozen=True)
class FileVersion:
    """A version of a file: another one has another size or time (ns).

    Attributes:
        schema: of the table that it is a file of; None for a file by itself.
        keys: values of that table's columns that are the same in all of the file's rows.
    """

    path: str
    size: int
    mtime_ns: int
    schema: pa.Schema | None = None
    keys: tuple[tuple[str, pa.Scalar], ...] = ()

    @property
    def constants(self) -> dict[str, pa.Scalar]:
        """Values of columns that the file may lack: of its table, or the keys of its path."""
        if self.schema is None:
            return partition_keys(self.path)
        return {f.name: pa.scalar(None, f.type) for f in self.schema} | dict(self.keys)


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """Returns the filesystem of a path or URI and the path inside it.

    A URI whose protocol pyarrow does not know is one of fsspec.

    Raises:
        OSError: no such file system, or a package that is missing.
        ProjectError: the environment lacks a variable that options name.
        ArrowInvalid: pyarrow knows the protocol, and not the rest.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), str(Path(path).absolute())
    uri, options = split_options(path)
    options = expanded(options)
    plain = urlencode({k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items()})
    try:
        return pafs.FileSystem.from_uri(uri + ("&" if "?" in uri else "?") * bool(plain) + plain)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
    try:
        fs, inner = fsspec.core.url_to_fs(uri, **options)
    except Exception as error:  # of the protocol's package, or that there is none
        raise OSError(f"{type(error).__name__}: {error}") from error
    if not uri.startswith(("http://", "https://")):  # whose paths are addresses
        inner = unquote(inner)
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), inner


def expanded(value: Any) -> Any:
    """Returns options in whose texts variables of the environment stand for `${NAME}`.

    Raises:
        ProjectError: there is no such variable.
    """
    if isinstance(value, dict):
        return {key: expanded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [expanded(inner) for inner in value]
    return re.sub(r"\$\{(\w+)\}", _variable, value) if isinstance(value, str) else value


def _variable(found: re.Match[str]) -> str:
    if found[1] not in os.environ:
        allowed = "allowed: a variable of the environment on every node"
        raise ProjectError([f"storage_options: found {found[0]}, which is not set; {allowed}"])
    return os.environ[found[1]]


def join(*parts: str) -> str:
    """Returns a path below a folder or URI; the query of a URI (endpoint, region) stays last."""
    folder, query = split_query(parts[0])
    return "/".join([folder.rstrip("/"), *(p.strip("/") for p in parts[1:])]) + query


def name_of(path: str) -> str:
    """Returns the last part of a path or URI, without the query."""
    return split_query(path)[0].rstrip("/").rsplit("/", 1)[-1]


def exists(path: str) -> bool:
    """Returns whether a file or folder is there."""
    fs, inner = filesystem(path)
    return _info(fs, inner).type != pafs.FileType.NotFound


def is_file(path: str) -> bool:
    """Returns whether a file is there.

    Raises:
        OSError: the file system cannot be reached.
    """
    fs, inner = filesystem(path)
    return _info(fs, inner).type == pafs.FileType.File


def num_bytes(path: str) -> int:
    """Returns the size of a file."""
    fs, inner = filesystem(path)
    return int(fs.get_file_info(inner).size)


def parquet_versions(path: str) -> list[FileVersion]:
    """Returns a path's Parquet files, sorted by name: itself, or those anywhere in the folder.

    Where no name has an ending of Parquet, files without any ending are taken, as Hive writes them.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: the file system cannot be reached.
    """
    if is_file(path):
        return shown_versions(path)
    shown = {version.path: version for version in shown_versions(path)}
    names = [n for n in shown if name_of(n).lower().endswith(PARQUET_ENDINGS)]
    names = names or [n for n in shown if "." not in name_of(n)]
    if not names:
        raise FileNotFoundError(f"{path}: {len(shown)} files, none of them named *.parquet")
    return [shown[name] for name in names]


def shown_versions(path: str) -> list[FileVersion]:
    """Returns the files of a path, sorted by name: itself, or those anywhere in the folder.

    Files and folders whose name begins with `_` or `.` are passed over: they hold what a job left
    unfinished, checksums, and logs of table formats.

    Raises:
        FileNotFoundError: nothing is there, or a table whose files hold rows that were deleted.
        OSError: the file system cannot be reached.
    """
    fs, inner = filesystem(path)
    info = _info(fs, inner)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(path)
    if info.type == pafs.FileType.File:
        return [_version(path, info)]
    listed = _info(fs, pafs.FileSelector(inner, recursive=True))
    below = {f.path[len(inner) :].strip("/"): f for f in listed if f.type == pafs.FileType.File}
    for mark, table in TABLES.items():
        if any(mark in f"/{name}" for name in below):
            raise FileNotFoundError(f"{path}: tables of {table}, where deleted rows lie, too")
    shown = [n for n in sorted(below) if not any(p[0] in "_." for p in n.split("/"))]
    return [_version(join(path, _escaped(path, n)), below[n]) for n in shown]


def parquet_files(path: str) -> list[str]:
    """Returns the paths of `parquet_versions`.

    Raises:
        FileNotFoundError: nothing is there.
    """
    return [version.path for version in parquet_versions(path)]


def _info(fs: pafs.FileSystem, what: str | pafs.FileSelector) -> Any:
    try:
        return fs.get_file_info(what)
    except Exception as error:  # another library's, such as the hub's, is no OSError
        raise OSError(f"{type(error).__name__}: {error}") from error


def partition_keys(path: str) -> dict[str, pa.Scalar]:
    """Returns the `key=value` folders of a file's path, as Hive writes them: dates, text, null."""
    plain = unquote(split_query(path)[0]) if "://" in path else path
    parts = [part.partition("=") for part in plain.split("/")[:-1]]
    return {unquote(key): _partition_value(unquote(value)) for key, mark, value in parts if mark}


def _partition_value(value: str) -> pa.Scalar:
    if value == NO_PARTITION:
        return pa.scalar(None)
    try:
        return pa.scalar(date.fromisoformat(value)) if "-" in value else pa.scalar(value)
    except ValueError:
        return pa.scalar(value)


def files(path: str) -> list[str]:
    """Returns sorted files directly in a folder; none where it is not there."""
    fs, inner = filesystem(path)
    listed = _info(fs, pafs.FileSelector(inner, allow_not_found=True))
    names = [f.base_name for f in listed if f.type == pafs.FileType.File]
    return [join(path, _escaped(path, name)) for name in sorted(names)]


def _version(path: str, info: pafs.FileInfo) -> FileVersion:
    return FileVersion(path, int(info.size), int(info.mtime_ns or 0))


def _escaped(folder: str, name: str) -> str:
    """Returns a listed name as part of its folder's address: opening a URI unescapes it."""
    return quote(name, safe="/=:") if "://" in folder else name


@contextmanager
def new_file(path: str) -> Iterator[pa.NativeFile]:
    """A stream into a file that is there whole or not at all (written beside it, then moved)."""
    fs, inner = filesystem(path)
    fs.create_dir(inner.rsplit("/", 1)[0], recursive=True)
    beside = f"{inner}.{uuid.uuid4().hex[:8]}.part"
    try:
        with fs.open_output_stream(beside) as stream:
            yield stream
    except BaseException:
        fs.delete_file(beside)
        raise
    fs.move(beside, inner)


def write_bytes(path: str, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with new_file(path) as stream:
        stream.write(data)


def write_table(path: str, table: pa.Table) -> None:
    """Write a Parquet file so that it is there whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=65536)
    write_bytes(path, sink.getvalue().to_pybytes())


# Types whose values Arrow and pandas can neither look up nor take, and a type that holds the same.
COMMON_TYPES = {
    pa.float16(): pa.float32(),
    pa.string_view(): pa.large_string(),
    pa.binary_view(): pa.large_binary(),
}


def read_table(path: str | FileVersion, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the rows of one Parquet file; all columns, or those named.

    A named column that the file lacks may stand in its path, as `key=value`, or be one of its
    table's.
    """
    found = path if isinstance(path, FileVersion) else FileVersion(path, 0, 0)
    fs, inner = filesystem(found.path)
    with fs.open_input_file(inner) as handle:
        file = pq.ParquetFile(handle)
        return _with_constants(file.read(_inside(file, columns)), found, columns)


def read_row_group(
    path: str | FileVersion, number: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Returns the rows of one row group of a Parquet file, with the columns of `read_table`."""
    found = path if isinstance(path, FileVersion) else FileVersion(path, 0, 0)
    fs, inner = filesystem(found.path)
    with fs.open_input_file(inner) as handle:
        file = pq.ParquetFile(handle)
        table = file.read_row_group(number, columns=_inside(file, columns))
        return _with_constants(table, found, columns)


def _inside(file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    """Returns the named columns that stand in the file; None is all."""
    return None if columns is None else [c for c in columns if c in file.schema_arrow.names]


def _with_constants(table: pa.Table, file: FileVersion, columns: Sequence[str] | None) -> pa.Table:
    """Returns the rows with named columns that the file lacks, in types that all functions know."""
    for i, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):
            chunks = [chunk.storage for chunk in table.column(i).chunks]
            stored = pa.chunked_array(chunks, field.type.storage_type)
            table = table.set_column(i, field.name, stored)
        elif field.type in COMMON_TYPES:
            common = table.column(i).cast(COMMON_TYPES[field.type])
            table = table.set_column(i, field.name, common)
    constants = file.constants
    for name in set(columns or ()) & set(constants) - set(table.column_names):
        table = table.append_column(name, pa.repeat(constants[name], table.num_rows))
    return table


def read_footer(path: str) -> pq.FileMetaData:
    """Returns the footer of a Parquet file: its schema, its row groups and their statistics."""
    fs, inner = filesystem(path)
    with fs.open_input_file(inner) as handle:
        return pq.read_metadata(handle)


def read_bytes(path: str) -> bytes:
    """Returns the content of a file."""
    fs, inner = filesystem(path)
    with fs.open_input_stream(inner) as stream:
        return stream.read()


def write_json(path: str, value: Any) -> None:
    """Write plain values as indented JSON that every reader of JSON takes.

    Numbers of numpy become numbers. A number that is not finite becomes null, because JSON has no
    word for it: a reader that needs NaN puts it there for null.

    Raises:
        TypeError: anything else that JSON does not have, such as an array, a path or a date.
    """
    text = json.dumps(strict(value), indent=1, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def strict(value: Any) -> Any:
    """Plain values as `write_json` writes them: numbers of Python, null for those not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {strict(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str) -> Any:
    """Returns plain values of a JSON file."""
    return json.loads(read_bytes(path))


def remove_folder(path: str) -> None:
    """Delete a folder with all its content, if it is there."""
    fs, inner = filesystem(path)
    if exists(path):
        fs.delete_dir(inner)


def check_writable(path: str) -> None:
    """Refuse a storage folder that cannot be written.

    Raises:
        ProjectError: names the folder and the reason.
    """
    probe = join(path, f".write-probe-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"")
        fs, inner = filesystem(probe)
        fs.delete_file(inner)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        found = f"--storage: found {path}, which cannot be written ({reason})"
        allowed = "a folder or URI that every node can write"
        raise ProjectError([f"{found}; allowed: {allowed}"]) from None
