"""Profiles of users: a prepared table of users, found by the hash of a user's id, and a moment.

Rows and snapshots name a user by that hash (`person`), and say when they ask; they hold nothing of
his profile. He has one profile, or one for each time at which it changed. A row sees the latest one
strictly before its own time: a profile of the same millisecond may be what the row led to.

Letters: P rows of the table, N persons, C categorical and M numeric columns, Q quantiles.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
import pyarrow as pa

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import NO_TIME, Catalogue, load_catalogue
from mtrec_ray.data.columns import fixed_list, matrix
from mtrec_ray.data.given_profiles import NONE, GivenProfiles
from mtrec_ray.data.storage import join, read_footer, read_table, write_table
from mtrec_ray.data.vectors import VectorScale

Told = TypeVar("Told")
NAN = np.float32(np.nan)

# The column of times, in ms; a table with one row a user does not have it.
TIME = "time"


@dataclass(frozen=True)
class ProfileFacts:
    """What was fitted on the users of training.

    Attributes:
        vocabularies: by categorical column, the values that have an embedding; `several` by column
            with several values.
        numeric_mean, numeric_std, numeric_quantiles: of the numeric columns; [M], [M], [M, Q].
        has_text: whether users have a text.
        vector_means, vector_scales: by column of vectors, [D] and a number, as `VectorScale`.
    """

    vocabularies: dict[str, list[str]]
    several: dict[str, list[str]]
    numeric_mean: list[float]
    numeric_std: list[float]
    numeric_quantiles: list[list[float]]
    has_text: bool
    vector_means: dict[str, list[float]] = field(default_factory=dict)
    vector_scales: dict[str, float] = field(default_factory=dict)

    def vector_scale(self, column: str) -> VectorScale:
        """Returns mean and scale of a column of vectors."""
        return VectorScale(self.vector_means[column], self.vector_scales[column])

    @property
    def category_sizes(self) -> list[int]:
        """Vocabulary sizes with the unknown value."""
        return [len(values) + 1 for values in self.vocabularies.values()]

    @property
    def several_sizes(self) -> list[int]:
        """The same of the columns with several values."""
        return [len(values) + 1 for values in self.several.values()]


@dataclass(frozen=True)
class ProfileIndex:
    """Finds the row of a table by a person and a moment, with a binary search in `keys`.

    Attributes:
        persons: i64[P], ascending; those of one person are in the order of their times.
        clock: i64[T], the different times, ascending.
        keys: i64[P], ascending: the place of the person's first row, times T + 1, plus the place of
            the row's time in the clock.
    """

    persons: Ints
    clock: Ints
    keys: Ints

    @classmethod
    def of(cls, persons: Ints, times: Ints | None = None) -> Self:
        """Returns the index of rows sorted by person and time; one without times holds always."""
        if times is None:
            times = np.full(len(persons), NO_TIME)
        clock = np.unique(times)
        first = np.searchsorted(persons, persons)
        return cls(persons, clock, first * (len(clock) + 1) + np.searchsorted(clock, times))

    def places(self, person: Ints, moment: Ints) -> Ints:
        """Returns i64[N]: each person's last row before a moment, in ms; -1 without one."""
        earlier = np.searchsorted(self.clock, moment)  # times strictly before
        first = np.searchsorted(self.persons, person)
        place = np.searchsorted(self.keys, first * (len(self.clock) + 1) + earlier) - 1
        return np.where((place >= 0) & (self.persons[place] == person), place, -1)


@dataclass(frozen=True)
class Profiles:
    """A table of users.

    Attributes:
        persons: i64[P], ascending.
        table: categories, numbers and token ids of each, and whether training knows him.
        texts: f32[P, D], what the pretrained encoder makes of the users' texts; None without texts.
        times: i64[P], when each row was written, in ms, ascending for each person; None where a
            person has one row, which holds at any time.
        given: rows that users bring along, which have the places from P on; None without any.
    """

    facts: ProfileFacts
    persons: Ints
    table: Catalogue
    texts: Float32s | None = None
    times: Ints | None = None
    given: GivenProfiles | None = None

    def with_given(self, given: GivenProfiles) -> Self:
        """Returns the table with rows that users bring along."""
        return replace(self, given=given)

    @cached_property
    def index(self) -> ProfileIndex:
        """Where the rows lie."""
        return ProfileIndex.of(self.persons, self.times)

    def places(self, person: Ints, moment: Ints) -> Ints:
        """Returns i64[N]: rows of the table as of a moment, in ms; -1 for persons without one."""
        return self.index.places(person, moment)

    def places_given(self, place: Ints, given: Ints) -> Ints:
        """Returns i64[N]: where rows lie, of the table or (`GivenProfiles.place`) beside it."""
        return np.where(given >= 0, len(self.persons) + given, np.where(given == NONE, -1, place))

    def categorical(self, place: Ints) -> Ints:
        """Returns i32[N, C]: codes of rows i64[N], 0 for unknown."""
        return self._rows(place, self.table.categorical, self._given(lambda t: t.categorical), 0)

    def indicators(self, place: Ints, most: int) -> list[Float32s]:
        """Returns f32[N, K] of each column with several values: whether a row has the K first."""
        found = []
        for number, own in enumerate(self.table.several):
            columns = own.indicators(most)
            given = self._given(lambda t, n=number: t.several[n])
            more = None if given is None else given.indicators(columns.shape[1], exactly=True)
            found.append(self._rows(place, columns, more, NAN))
        return found

    def numeric(self, place: Ints) -> Float32s:
        """Returns f32[N, M]: numbers of rows i64[N], NaN for null."""
        more = self._given(lambda t: t.numeric)
        return self._rows(place, self.table.numeric, more, NAN)

    def texts_of(self, place: Ints) -> Float32s:
        """Returns f32[N, D]: texts of rows i64[N], NaN without one."""
        assert self.texts is not None
        more = None if self.given is None else self.given.texts
        return self._rows(place, self.texts, more, NAN)

    def _given(self, of: Callable[[Catalogue], Told]) -> Told | None:
        return None if self.given is None else of(self.given.rows)

    def _rows(
        self, place: Ints, own: np.ndarray, more: np.ndarray | None, missing: np.float32 | int
    ) -> np.ndarray:
        """Returns [N, ..] of places: of the table, from P on of `more`, below 0 `missing`."""
        num = len(self.persons)
        found = np.full((len(place), *own.shape[1:]), missing, np.result_type(own, missing))
        of_table = (place >= 0) & (place < num)
        found[of_table] = own[place[of_table]]
        if more is not None:
            found[place >= num] = more[place[place >= num] - num]
        return found


def profiles_path(folder: str, space: str) -> str:
    """Returns the prepared file of a table of users; no scenario has such a name."""
    return join(folder, f"profiles.{space}.parquet")


def texts_path(folder: str, space: str) -> str:
    """Returns the prepared file of the vectors of the users' texts."""
    return join(folder, f"profiles.{space}.texts.parquet")


def write_texts(folder: str, space: str, vectors: Float32s) -> None:
    """Write the vectors f32[P, D] of the users' texts, in the order of their table."""
    write_table(texts_path(folder, space), pa.table({"text": fixed_list(vectors)}))


def load_profiles(folder: str, space: str, facts: ProfileFacts) -> Profiles:
    """Returns a prepared table of users."""
    path, texts = profiles_path(folder, space), None
    columns = {"person", TIME} & set(read_footer(path).schema.names)
    persons, times = persons_and_times(read_table(path, sorted(columns)))
    if facts.has_text:
        texts = matrix(read_table(texts_path(folder, space)).column("text"))
    return Profiles(facts, persons, load_catalogue(path, vectors=True), texts, times)


def persons_and_times(table: pa.Table) -> tuple[Ints, Ints | None]:
    """Returns persons i64[P] of a prepared table, and times i64[P] of its rows, if it has any."""
    times = table.column(TIME).to_numpy() if TIME in table.column_names else None
    return table.column("person").to_numpy(), times
