"""Output of frozen layers for every token of every item: computed once a node, for all runs.

A file in the node's cache folder, named by a hash of the frozen weights and the tokens; processes
map it into memory, so that workers, trials and fine-tuning runs of a node share one copy.
"""

import hashlib
import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mtrec_ray.learning.ranks import gather_objects, world
from mtrec_ray.model.text import Texts

# Of all files of a node; above, those that were not used for the longest time go.
MAX_CACHE_BYTES = 64 * 2**30


def states_key(frozen: nn.Module, texts: Texts, precision: str) -> str:
    """A hash of the frozen weights, of the tokens, and of the precision of the computation."""
    found = hashlib.sha256(precision.encode())
    for name, value in frozen.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    found.update(texts.tokens.numpy().tobytes())
    found.update(texts.offsets.tobytes())
    return found.hexdigest()[:32]


def open_states(
    path: Path, shape: tuple[int, int], fill: Callable[[Tensor, int, int], None]
) -> Tensor:
    """f32[shape], mapped from a file.

    Where a node does not have the file its ranks make it together: `fill(states, share, shares)`
    writes a share of the rows. Every rank must call this.
    """
    host = socket.gethostname()
    found = gather_objects((host, path.is_file(), uuid.uuid4().hex))
    rank = world()[0]
    mine = [i for i, (other, _, _) in enumerate(found) if other == host]
    missing = not all(found[i][1] for i in mine)
    part = path.with_suffix(f".{found[mine[0]][2]}.part")
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
    os.utime(path)
    return _mapped(path, shape, shared=False)


def _mapped(path: Path, shape: tuple[int, int], *, shared: bool) -> Tensor:
    return torch.from_file(str(path), shared=shared, size=shape[0] * shape[1]).view(shape)


def make_room(folder: Path, num_bytes: int) -> None:
    """Make the folder, and delete its files that were not used for the longest time, if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.f32"), key=lambda f: f.stat().st_mtime, reverse=True)
    kept = num_bytes
    for file in files:
        kept += file.stat().st_size
        if kept > MAX_CACHE_BYTES:
            file.unlink(missing_ok=True)
