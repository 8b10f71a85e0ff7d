"""What frozen layers make of the items: computed once a node, for all runs.

A file in the node's cache folder, named by a hash of the frozen weights and the tokens; processes
map it into memory, so that workers, trials and fine-tuning runs of a node share one copy.
"""

import hashlib
import os
import socket
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from mtrec_ray.model.chunks import Texts
from mtrec_ray.training.collectives import gather_objects, world

# Of all files of a node; above, those that were not used for the longest time go.
MAX_CACHE_BYTES = 64 * 2**30


def weights_hash(frozen: nn.Module) -> str:
    """A hash of the names and values of all weights."""
    found = hashlib.sha256()
    for name, value in frozen.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def texts_hash(texts: Texts, *words: str) -> str:
    """A hash of the tokens and of words that say what is computed of them."""
    found = hashlib.sha256("/".join(words).encode())
    found.update(texts.tokens.numpy().tobytes())
    found.update(texts.offsets.tobytes())
    return found.hexdigest()[:32]


def open_rows(
    path: Path, shape: tuple[int, int], fill: Callable[[Tensor, int, int], None]
) -> Tensor:
    """f32[shape], mapped from a file.

    Where a node does not have the file its ranks make it together: `fill(rows, share, shares)`
    writes a share of the rows. Other runs of the node wait for it. Every rank must call this.
    """
    host = socket.gethostname()
    hosts = gather_objects(host)
    mine = [i for i, other in enumerate(hosts) if other == host]
    leads = world()[0] == mine[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Runs over several nodes do not wait: two of them could wait for each other.
    waits = leads and len(mine) == len(hosts)
    with FileLock(path.with_suffix(".lock")) if waits else nullcontext():
        _make(path, shape, fill, mine)
    os.utime(path)
    return _mapped(path, shape, shared=False)


def _make(
    path: Path,
    shape: tuple[int, int],
    fill: Callable[[Tensor, int, int], None],
    mine: list[int],
) -> None:
    """Make the file where it is missing; `mine` are the ranks of this node."""
    rank = world()[0]
    found = gather_objects((path.is_file(), uuid.uuid4().hex))
    missing = not all(found[i][0] for i in mine)
    part = path.with_suffix(f".{found[mine[0]][1]}.part")
    leads = rank == mine[0]
    if missing and leads:
        make_room(path.parent, shape[0] * shape[1] * 4)
        with part.open("wb") as file:
            file.truncate(shape[0] * shape[1] * 4)
    gather_objects(None)  # the file is there
    if missing:
        fill(_mapped(part, shape, shared=True), mine.index(rank), len(mine))
    gather_objects(None)  # all shares are in it
    if missing and leads:
        part.replace(path)
    gather_objects(None)  # it has its name


def _mapped(path: Path, shape: tuple[int, int], *, shared: bool) -> Tensor:
    return torch.from_file(str(path), shared=shared, size=shape[0] * shape[1]).view(shape)


def make_room(folder: Path, num_bytes: int) -> None:
    """Delete the folder's files that were not used for the longest time, if need be."""
    files = sorted(folder.glob("*.f32"), key=lambda f: f.stat().st_mtime, reverse=True)
    kept = num_bytes
    for file in files:
        kept += file.stat().st_size
        if kept > MAX_CACHE_BYTES:
            file.unlink(missing_ok=True)
