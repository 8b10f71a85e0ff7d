"""Public data sets, recognised by their files' names and columns."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtrec_ray.data.tables import COMPRESSED, Tables, compression_of
from mtrec_ray.sources.draft import Draft

# By part of the data set: its files.
Files = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class PublicSet:
    """A public data set.

    Attributes:
        name: as its owner calls it.
        parts: by part, what the names of its files match (a regular expression, without .gz).
        drafts: makes its scenarios.
        columns: by part, what the first line of its files names, where it names columns.
    """

    name: str
    parts: Mapping[str, str]
    drafts: Callable[[Tables, Files], list[Draft]]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def find(self, files: Sequence[Path]) -> dict[str, list[Path]] | None:
        """Returns the data set's files by part; None where files are not this data set."""
        found = {
            part: [file for file in files if re.fullmatch(pattern, plain_name(file))]
            for part, pattern in self.parts.items()
        }
        return found if all(found.values()) and self._has_columns(found) else None

    def _has_columns(self, found: Files) -> bool:
        return all(
            set(names) <= set(re.findall(r"[\w -]+", first_line(file)))
            for part, names in self.columns.items()
            for file in found[part]
        )


def text_columns(*names: str) -> str:
    """Returns columns of text, as the reader of CSV takes them."""
    return "{" + ", ".join(f"'{name}': 'VARCHAR'" for name in names) + "}"


def plain_name(file: Path) -> str:
    """Returns a file's name in lower case, without the ending of its compression."""
    name = file.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name


def first_line(file: Path) -> str:
    """Returns the first line of a text file, plain or compressed; empty if it is broken."""
    import pyarrow as pa

    try:
        with pa.input_stream(str(file), compression=compression_of(file)) as stream:
            return stream.read(65_536).split(b"\n")[0].decode("utf-8", "replace")
    except OSError:
        return ""


def public_sets() -> list[PublicSet]:
    """Returns all public data sets that are known."""
    from mtrec_ray.sources import (
        ali_ccp,
        amazon_reviews,
        book_crossing,
        deskdrop,
        kuairand,
        mind,
        movielens,
        online_retail,
        rees46,
    )  # fmt: skip

    modules = (
        movielens, mind, online_retail, deskdrop, book_crossing, amazon_reviews, kuairand, rees46,
        ali_ccp,
    )  # fmt: skip
    return [known for module in modules for known in module.SETS]


def recognise(files: Sequence[Path]) -> tuple[PublicSet, dict[str, list[Path]]] | None:
    """Returns the public data set that some files are, and its files; None where they are none."""
    for known in public_sets():
        found = known.find(files)
        if found:
            return known, found
    return None
