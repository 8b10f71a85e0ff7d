"""Which files are one table: parts, months, hive partitions, and files of train, valid and test."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtrec_ray.data.tables import kind_of, stem_of
from mtrec_ray.project.base import ProjectError

SPLIT_WORDS = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid",
    "dev": "valid", "test": "test", "testing": "test",
}  # fmt: skip
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
PART_NAMES = {
    "",
    "part",
    "parts",
    "data",
    "chunk",
    "file",
    "snappy",
    "part snappy",
    "part c snappy",
    "part c",
}
NO_DATA = ("readme", "license", "licence", "provenance", "changelog", "citation")


@dataclass(frozen=True)
class FileGroup:
    """Files that are one table.

    Attributes:
        name: of the table, for a person.
        files: in order.
        whole: the folder of which they are all files, or the only file; None for neither.
    """

    name: str
    files: tuple[Path, ...]
    whole: Path | None


def groups_of(paths: Sequence[str]) -> tuple[list[FileGroup], list[Path]]:
    """Returns the tables of files and folders, and files of no known kind.

    Raises:
        ProjectError: a path that is not there, or nothing to read.
    """
    lacking = [path for path in paths if not Path(path).exists()]
    if lacking:
        raise ProjectError(
            [f"PATH: found nothing at {path}; allowed: files, folders" for path in lacking]
        )
    listed = [file for path in paths for file in files_of(Path(path))]
    known = [file for file in listed if kind_of(file) and not says_no_data(file)]
    if not known:
        found = ", ".join(file.name for file in listed[:5]) or "no files"
        raise ProjectError(
            [f"PATH: found {found} in {', '.join(paths)}; allowed: Parquet, CSV, JSON lines"]
        )
    grouped: dict[tuple[Path, str, str], list[Path]] = {}
    for file in known:
        grouped.setdefault((root_of(file), kind_of(file), skeleton(stem_of(file))), []).append(file)
    groups = [group_of(key[0], key[2], files, known) for key, files in grouped.items()]
    return groups, [file for file in listed if file not in known]


def files_of(path: Path) -> list[Path]:
    """Returns a file itself, or those anywhere below a folder whose path has no hidden part."""
    if path.is_file():
        return [path]
    below = sorted(file for file in path.rglob("*") if file.is_file())
    return [f for f in below if not any(p[0] in "_." for p in f.relative_to(path).parts)]


def says_no_data(file: Path) -> bool:
    """Returns whether a file's name says that it is for people."""
    return stem_of(file).lower().startswith(NO_DATA)


def root_of(file: Path) -> Path:
    """Returns the folder of a file, above its hive partitions (`date=2025-01-01`)."""
    folder = file.parent
    while "=" in folder.name:
        folder = folder.parent
    return folder


def skeleton(stem: str) -> str:
    """Returns what files of one table have in common in their names.

    Numbers, months, hexadecimal ids and the words of a split are left out.
    """
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", " ", stem.lower())
    words = [w for w in re.split(r"[^a-z]+", text) if w]
    kept = [w for w in words if w not in SPLIT_WORDS and w[:3] not in MONTHS]
    return " ".join(kept)


def group_of(root: Path, common: str, files: Sequence[Path], known: Iterable[Path]) -> FileGroup:
    """Returns the table of some files of a folder."""
    alone = all(file in files for file in known if root in file.parents)
    whole = files[0] if len(files) == 1 else root if alone else None
    is_part = common in PART_NAMES
    name = root.name if is_part else stem_of(files[0]) if len(files) == 1 else common
    return FileGroup(re.sub(r"\.parquet$", "", name) or "data", tuple(files), whole)


def splits_of(files: Sequence[Path]) -> dict[Path, str]:
    """Returns the split that each file's name says, where the files are of all three; else none."""
    found: dict[Path, str] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.name.lower())
        split = next((SPLIT_WORDS[w] for w in words if w in SPLIT_WORDS), None)
        if split:
            found[file] = split
    complete = len(found) == len(files) and set(found.values()) == {"train", "valid", "test"}
    return found if complete else {}
