"""Files of a run: a local folder or a remote URI, read and written through pyarrow filesystems."""

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.project.base import ProjectError


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or URI and the path inside it."""
    if "://" in path:
        return pafs.FileSystem.from_uri(path)
    return pafs.LocalFileSystem(), str(Path(path).absolute())


def join(*parts: str) -> str:
    """A path below a folder or URI."""
    return "/".join([parts[0].rstrip("/"), *(p.strip("/") for p in parts[1:])])


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, inner = filesystem(path)
    return fs.get_file_info(inner).type != pafs.FileType.NotFound


def is_file(path: str) -> bool:
    """Whether a file is there."""
    fs, inner = filesystem(path)
    return fs.get_file_info(inner).type == pafs.FileType.File


def num_bytes(path: str) -> int:
    """Size of a file."""
    fs, inner = filesystem(path)
    return int(fs.get_file_info(inner).size)


def parquet_files(path: str) -> list[str]:
    """Sorted Parquet files of a path, which is a file or a folder of files.

    Raises:
        FileNotFoundError: nothing is there.
    """
    fs, inner = filesystem(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(path)
    if info.type == pafs.FileType.File:
        return [path]
    found = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    names = sorted(f.path[len(inner) :] for f in found if f.path.endswith(".parquet"))
    if not names:
        raise FileNotFoundError(f"{path}: a folder without .parquet files")
    return [join(path, name) for name in names]


def files(path: str) -> list[str]:
    """Sorted files directly in a folder; none where it is not there."""
    fs, inner = filesystem(path)
    found = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    names = [f.base_name for f in found if f.type == pafs.FileType.File]
    return [join(path, name) for name in sorted(names)]


def write_bytes(path: str, data: bytes) -> None:
    """Write a file so that it is there whole or not at all (write beside it, then move)."""
    fs, inner = filesystem(path)
    fs.create_dir(inner.rsplit("/", 1)[0], recursive=True)
    beside = f"{inner}.{uuid.uuid4().hex[:8]}.part"
    with fs.open_output_stream(beside) as stream:
        stream.write(data)
    fs.move(beside, inner)


def write_table(path: str, table: pa.Table) -> None:
    """Write a Parquet file so that it is there whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=65536)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_bytes(path: str) -> bytes:
    """The content of a file."""
    fs, inner = filesystem(path)
    with fs.open_input_stream(inner) as stream:
        return stream.read()


def write_json(path: str, value: Any) -> None:
    """Write plain values as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


def read_json(path: str) -> Any:
    """Plain values of a JSON file."""
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
        raise ProjectError(
            [
                f"--storage: found {path}, which cannot be written ({reason}); "
                "allowed: a folder or URI that every node can write"
            ]
        ) from None
