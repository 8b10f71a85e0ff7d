"""Profiles that those who ask bring along, in place of what the table of users says of them.

Letters: B users who ask, R rows that they bring, D width of texts.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import Catalogue, Ragged

STORED, NONE = -1, -2  # places: as the table of users says; without a profile


@dataclass(frozen=True)
class GivenProfiles:
    """Rows as a table of users would have them, and whose they are.

    Attributes:
        place: i64[B], each user's row of `rows`, `STORED` or `NONE`.
        rows: R rows. texts: f32[R, D], what the pretrained encoder makes of their texts; None
            where users have no text.
    """

    place: Ints
    rows: Catalogue
    texts: Float32s | None = None

    def take(self, users: slice | Ints) -> Self:
        """Returns the same rows for some of the users."""
        return replace(self, place=self.place[users])


def picked(first: Catalogue, second: Catalogue, row: int, columns: "Picked") -> Catalogue:
    """Returns the only row of the first with the picked columns, else row `row` of the second."""
    return replace(
        first,
        categorical=np.where(columns.categorical, first.categorical, second.categorical[[row]]),
        numeric=np.where(columns.numeric, first.numeric, second.numeric[[row]]),
        several=tuple(
            own if chosen else other.take(np.array([row]))
            for own, other, chosen in zip(
                first.several, second.several, columns.several, strict=True
            )
        ),
        vectors=tuple(
            own if chosen else np.asarray(other[[row]])
            for own, other, chosen in zip(
                first.vectors, second.vectors, columns.vectors, strict=True
            )
        ),
    )


@dataclass(frozen=True)
class Picked:
    """Whether each column of a table is picked, by kind."""

    categorical: list[bool]
    numeric: list[bool]
    several: list[bool]
    vectors: list[bool]
    text: bool


def stacked(tables: list[Catalogue]) -> Catalogue:
    """Returns the rows of several tables, one after another, without their tokens."""
    first = tables[0]
    num = sum(len(own.known) for own in tables)
    return replace(
        first,
        tokens=np.zeros(0, np.int32),
        offsets=np.zeros(num + 1, np.int64),
        categorical=np.concatenate([own.categorical for own in tables]),
        numeric=np.concatenate([own.numeric for own in tables]),
        published=np.concatenate([own.published for own in tables]),
        known=np.concatenate([own.known for own in tables]),
        several=tuple(
            followed(list(own)) for own in zip(*(t.several for t in tables), strict=True)
        ),
        vectors=tuple(
            np.concatenate(own) for own in zip(*(t.vectors for t in tables), strict=True)
        ),
    )


def followed(parts: list[Ragged]) -> Ragged:
    """Returns the rows of several, one after another."""
    lengths = np.concatenate([np.diff(own.offsets) for own in parts])
    codes = np.concatenate([own.codes for own in parts])
    return Ragged(codes, np.concatenate([[0], np.cumsum(lengths)]))
