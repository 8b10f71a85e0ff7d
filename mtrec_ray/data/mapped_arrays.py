"""Arrays of NumPy that the processes of a node map into memory, so that they share one copy.

An array of a remote storage is copied to this node once, into a folder of files of which the least
recently used are deleted. What a process has mapped stays readable when its file is deleted.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
from filelock import FileLock

from mtrec_ray.data import storage
from mtrec_ray.project.base import without_options

# Most bytes of the folder's files; above, the least recently used files are deleted.
MAX_BYTES = 64 * 2**30


def write_array(
    path: str, dtype: type, shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    """Write an array as a file `.npy`, a part of its rows after another."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with storage.new_file(path) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part, dtype).tobytes())


def map_array(path: str) -> np.ndarray:
    """Returns the array of a file `.npy`, mapped into memory and not written back."""
    fs, inner = storage.filesystem(path)
    if isinstance(fs, pafs.LocalFileSystem):
        return mapped(Path(inner))
    info = fs.get_file_info(inner)
    words = f"{without_options(path)} {info.size} {info.mtime_ns}"
    folder = arrays_folder()
    folder.mkdir(parents=True, exist_ok=True)
    local = folder / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.npy"
    with FileLock(folder / "copying.lock"):
        if not local.exists():
            make_room(folder, int(info.size))
            part = local.with_suffix(".part")
            pafs.copy_files(inner, str(part), fs, pafs.LocalFileSystem())
            part.replace(local)
        os.utime(local)
        return mapped(local)


def arrays_folder() -> Path:
    """Returns this node's folder of copies, one for each user."""
    return Path(tempfile.gettempdir()) / f"mtrec_ray-{os.getuid()}" / "arrays"


def mapped(path: Path) -> np.ndarray:
    """Returns the array of a local file.

    Its pages are those of all processes of the node: copy on write is for torch, which has no
    arrays that may not be written, and nothing writes it.
    """
    return np.load(path, mmap_mode="c")


def make_room(folder: Path, num_bytes: int) -> None:
    """Delete the least recently used files where these many bytes more would be too many."""
    files = sorted(folder.glob("*.npy"), key=lambda f: f.stat().st_mtime, reverse=True)
    kept = num_bytes
    for file in files:
        kept += file.stat().st_size
        if kept > MAX_BYTES:
            file.unlink()
