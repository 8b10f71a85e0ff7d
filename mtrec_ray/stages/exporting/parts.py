"""Parts of an export: each a folder of files, there whole or not at all, with a record of itself.

A part is written to a local folder first. Its record is the last file that is stored, and names the
SHA-256 of all others: a folder without one is left over from an export that was interrupted.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.project.depends_on import Fields

RECORD = "part.json"
UNFINISHED = ".part"  # after the name of a folder that is being stored
BLOCK = 2**20  # bytes that are copied at a time

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of an export.

    Attributes:
        place: its folder, below that of the export.
        made_from: what its files depend on.
        write: writes them to a local folder; returns what the record tells beside their hashes.
    """

    place: str
    made_from: Fields
    write: Callable[[Path], Mapping[str, Any]]

    def read(self, export: str) -> Record | None:
        """Returns the part's record; None where it is not whole, or made from something else."""
        record = read_record(storage.join(export, self.place))
        return record if record and record["made_from"] == dict(self.made_from) else None

    def store(self, export: str) -> Record:
        """Writes the part in place of what was there before; returns its record."""
        with tempfile.TemporaryDirectory() as local:
            told = self.write(Path(local))
            files = described_files(Path(local))
            record = {"made_from": dict(self.made_from), "files": files, **told}
            storage.write_json(str(Path(local) / RECORD), record)
            store_folder(Path(local), storage.join(export, self.place))
        return storage.read_json(storage.join(export, self.place, RECORD))


def read_record(folder: str) -> Record | None:
    """Returns the record of the part in a folder; None where there is no whole one."""
    path = storage.join(folder, RECORD)
    return storage.read_json(path) if storage.exists(path) else None


def described_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the size and SHA-256 of each file anywhere in a local folder, by its path there."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)}
        for p in paths
    }


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store_folder(local: Path, folder: str) -> None:
    """Stores a local folder in place of another.

    On a local disk it is copied beside it and then renamed. In a remote storage, which cannot
    rename folders, the record is written last.
    """
    is_local = "://" not in folder
    target = folder + UNFINISHED if is_local else folder
    for old in (target, folder):
        storage.remove_folder(old)
    found = (p for p in local.rglob("*") if p.is_file())
    paths = sorted(found, key=lambda p: (p.name == RECORD, p))
    for path in paths:
        name = path.relative_to(local).as_posix()
        with storage.new_file(storage.join(target, name)) as stream, path.open("rb") as file:
            while block := file.read(BLOCK):
                stream.write(block)
    if is_local:
        Path(target).rename(folder)
