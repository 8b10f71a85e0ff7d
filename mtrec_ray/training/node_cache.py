"""Output of frozen layers, computed once a node for all of its runs.

Each array is a file in the node's cache folder, named by a hash of the frozen weights and the
tokens. Processes map it into memory, so that workers, trials and fine-tuning runs of a node share
one copy. While a file is being filled it is `KEY.UUID.part`, locked by the process that made it.
The kernel releases the lock of a process that is killed, and the next run deletes its part.
"""

import fcntl
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from mtrec_ray.model.chunks import Texts
from mtrec_ray.training.collectives import gather_objects, world

# Most bytes of a folder's files; above, the least recently used files are deleted.
MAX_CACHE_BYTES = 64 * 2**30

# A part without a lock is abandoned, except in the moment between its creation and its locking.
PART_GRACE_SECONDS = 60.0

# How often a file may be deleted by another run before it is mapped.
MAX_EVICTIONS = 5

Fill = Callable[[Tensor, int, int], None]


def weights_hash(frozen: nn.Module) -> str:
    """Returns a hash of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in frozen.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def texts_hash(texts: Texts, *words: str) -> str:
    """Returns a hash of the tokens and of words that say what is computed of them."""
    digest = hashlib.sha256("/".join(words).encode())
    digest.update(texts.tokens.numpy().tobytes())
    digest.update(texts.offsets.tobytes())
    return digest.hexdigest()[:32]


def open_rows(path: Path, shape: tuple[int, int], fill: Fill) -> Tensor:
    """Returns f32[shape], mapped from a file.

    Where a node lacks the file its ranks make it together: `fill(rows, share, shares)` writes a
    share of the rows. Other runs of the node wait for it. Every rank must call this.

    Raises:
        RuntimeError: other runs keep deleting the file, because the cache is too small.
    """
    host = socket.gethostname()
    hosts = gather_objects(host)
    node_ranks = [i for i, other in enumerate(hosts) if other == host]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Runs over several nodes do not wait: two of them could wait for each other.
    waits = world()[0] == node_ranks[0] and len(node_ranks) == len(hosts)
    for _ in range(MAX_EVICTIONS):
        with FileLock(path.with_suffix(".lock")) if waits else nullcontext():
            make_file(path, shape, fill, node_ranks)
        rows = map_if_there(path, shape)
        if all(gather_objects(rows is not None)):
            assert rows is not None
            return rows
    raise RuntimeError(f"{path}: deleted {MAX_EVICTIONS} times by other runs before it was read")


def map_if_there(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Returns f32[shape], mapped from a file and noted as used; None if another run deleted it."""
    try:
        os.utime(path)
        return mapped(path, shape, shared=False)
    except (FileNotFoundError, RuntimeError):  # the latter from torch, between the two lines
        if path.exists():
            raise
        return None


def make_file(path: Path, shape: tuple[int, int], fill: Fill, node_ranks: list[int]) -> None:
    """Make the file where this node lacks it; `node_ranks` are the ranks of this node."""
    rank = world()[0]
    answers = gather_objects((path.is_file(), uuid.uuid4().hex))
    missing = not all(answers[i][0] for i in node_ranks)
    part = path.with_suffix(f".{answers[node_ranks[0]][1]}.part")
    leads = missing and rank == node_ranks[0]
    with locked_part(part, shape) if leads else nullcontext():
        gather_objects(None)  # the file is there
        if missing:
            share = node_ranks.index(rank)
            fill(mapped(part, shape, shared=True), share, len(node_ranks))
        gather_objects(None)  # all shares are in it
        if leads:
            part.replace(path)
    gather_objects(None)  # it has its name


@contextmanager
def locked_part(part: Path, shape: tuple[int, int]) -> Iterator[None]:
    """Make an empty file of the shape, and hold its lock."""
    num_bytes = shape[0] * shape[1] * 4
    make_room(part.parent, num_bytes)
    with part.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(num_bytes)
        yield


def mapped(path: Path, shape: tuple[int, int], *, shared: bool) -> Tensor:
    """Returns f32[shape] of a file; with `shared` what is written to it goes to the file."""
    return torch.from_file(str(path), shared=shared, size=shape[0] * shape[1]).view(shape)


def make_room(folder: Path, num_bytes: int) -> None:
    """Delete abandoned parts, then the least recently used files, if need be.

    Parts that other runs are filling count as used space.
    """
    delete_abandoned_parts(folder)
    num_kept = num_bytes + sum(size for _, size, _ in files_of(folder, "*.part"))
    for _, size, file in sorted(files_of(folder, "*.f32"), reverse=True):
        num_kept += size
        if num_kept > MAX_CACHE_BYTES:
            file.unlink(missing_ok=True)


def files_of(folder: Path, pattern: str) -> list[tuple[float, int, Path]]:
    """Returns time of last use, bytes and path of each file; without those deleted meanwhile."""
    files = []
    for path in folder.glob(pattern):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        files.append((status.st_mtime, status.st_size, path))
    return files


def delete_abandoned_parts(folder: Path) -> None:
    """Delete parts whose process was killed before they were whole."""
    for modified, _, part in files_of(folder, "*.part"):
        if time.time() - modified > PART_GRACE_SECONDS and is_unlocked(part):
            part.unlink(missing_ok=True)


def is_unlocked(path: Path) -> bool:
    """Returns whether no process holds the file's lock; false where the file is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
