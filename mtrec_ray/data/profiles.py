"""Profiles of users: a prepared table of users, found by the hash of a user's id.

Rows and snapshots name a user by that hash (`person`); they hold nothing of his profile.

Letters: P users of the table, N persons, C categorical and M numeric columns, Q quantiles.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import Catalogue, load_catalogue
from mtrec_ray.data.columns import fixed_list, matrix
from mtrec_ray.data.storage import join, read_table, write_table
from mtrec_ray.data.vectors import VectorScale


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
class Profiles:
    """A table of users.

    Attributes:
        persons: i64[P], sorted.
        table: categories, numbers and token ids of each, and whether training knows him.
        texts: f32[P, D], what the pretrained encoder makes of the users' texts; None without texts.
    """

    facts: ProfileFacts
    persons: Ints
    table: Catalogue
    texts: Float32s | None = None

    def places(self, person: Ints) -> Ints:
        """Returns i64[N]: rows of the table, -1 for persons without one."""
        place = np.minimum(np.searchsorted(self.persons, person), len(self.persons) - 1)
        return np.where(self.persons[place] == person, place, -1)

    def categorical(self, person: Ints) -> Ints:
        """Returns i32[N, C]: codes, 0 for unknown."""
        place = self.places(person)
        return np.where(place[:, None] >= 0, self.table.categorical[place], 0)

    def indicators(self, person: Ints, most: int) -> list[Float32s]:
        """Returns f32[N, K] of each column with several values: whether he has the K first."""
        place = self.places(person)
        columns = (ragged.indicators(most) for ragged in self.table.several)
        return [np.where(place[:, None] >= 0, c[place], np.float32(np.nan)) for c in columns]

    def numeric(self, person: Ints) -> Float32s:
        """Returns f32[N, M]: numbers, NaN for null."""
        place = self.places(person)
        return np.where(place[:, None] >= 0, self.table.numeric[place], np.float32(np.nan))


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
    persons = read_table(path, ["person"]).column(0).to_numpy()
    if facts.has_text:
        texts = matrix(read_table(texts_path(folder, space)).column("text"))
    return Profiles(facts, persons, load_catalogue(path, vectors=True), texts)
