"""Profiles that requests bring along, read as `prepare` reads those of the table of users.

Vocabularies and scales are those that were fitted on the users of training. The types of columns
are those of the table's files, so that a value is the same text here as there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.data.catalogue import (
    NO_TIME,
    Catalogue,
    encode_categories,
    encode_several,
    ragged,
    values_of,
)
from mtrec_ray.data.columns import as_text, blank, finite_floats, is_plain_number
from mtrec_ray.data.given_profiles import Picked
from mtrec_ray.data.preparing.inputs import user_types
from mtrec_ray.data.profiles import ProfileFacts
from mtrec_ray.data.tokens import item_texts, load_tokenizer, tokenise
from mtrec_ray.data.vectors import blank_vectors, vector_blocks
from mtrec_ray.project.base import shorten
from mtrec_ray.project.model import Encoder
from mtrec_ray.project.project import Project
from mtrec_ray.project.users import Users
from mtrec_ray.serving.json_values import converts, read_value

ProfileColumns = Mapping[str, Any]


@dataclass(frozen=True)
class ReadProfile:
    """A profile as the model reads it.

    Attributes:
        row: a table of one row, in which the columns that were not given are null.
        picked: the columns that were given.
        unknown: by column, the values that training does not know.
    """

    row: Catalogue
    picked: Picked
    unknown: dict[str, list[str]]


@dataclass(frozen=True)
class ProfileReader:
    """Reads profiles of an id space.

    Attributes:
        facts: what was fitted on the table. types: by column.
        encoder: whose tokenizer reads the text.
    """

    users: Users
    facts: ProfileFacts
    types: Mapping[str, pa.DataType]
    encoder: Encoder

    @classmethod
    def of(cls, project: Project, space: str, facts: ProfileFacts) -> "ProfileReader":
        """Returns the reader of an id space of a project.

        Raises:
            ProjectError: its table of users is not there, or cannot be read.
        """
        types = user_types(project, space)
        return cls(project.users[space], facts, types, project.model.encoder)

    @property
    def named(self) -> list[str]:
        """The columns that a profile may have."""
        users = self.users
        columns = [*users.categorical, *users.numeric, *users.several, *users.vectors]
        return list(dict.fromkeys([*columns, *users.text_columns]))

    def type_of(self, column: str) -> pa.DataType:
        """Returns the type of a column; any number is allowed where it is read as a number."""
        users, kind = self.users, self.types[column]
        as_number = column in users.numeric and column not in users.text_columns
        if as_number and column not in users.categorical and is_plain_number(kind):
            return pa.float64()
        return kind

    def problems(self, columns: ProfileColumns, *, stored: bool) -> Iterator[str]:
        """Yields a line for each mistake; `stored`: the other columns are those of the table."""
        for name, value in columns.items():
            if name not in self.named:
                yield f"{name}: found an unknown column; allowed: {', '.join(self.named)}"
            elif not converts(value, kind := self.type_of(name)):
                yield f"{name}: found {shorten(value)}; allowed: a value of type {kind}"
            elif name in self.users.vectors and value is not None:
                length = len(self.facts.vector_means[name])
                if len(value) != length:
                    yield f"{name}: found {len(value)} numbers; allowed: {length}"
        texts = self.users.text_columns
        lacking = [name for name in texts if name not in columns]
        if stored and lacking and len(lacking) < len(texts):
            found = ", ".join(name for name in texts if name in columns)
            allowed = f"all columns of the text ({', '.join(texts)}), or none"
            yield f"{lacking[0]}: found none beside {found}; allowed: {allowed}"

    def read(self, columns: ProfileColumns) -> ReadProfile:
        """Returns a profile without a mistake."""
        table = self.table(columns)
        users, none = self.users, np.zeros(1, np.int64)
        codes = [
            encode_categories(table.column(c), none, known)[0]
            for c, known in self.facts.vocabularies.items()
        ]
        several = [
            encode_several(table.column(c), users.several[c], none, known)[0]
            for c, known in self.facts.several.items()
        ]
        numbers = [finite_floats(table.column(c)) for c in users.numeric]
        tokens = self.tokens(table)
        row = Catalogue(
            tokens=tokens,
            offsets=np.array([0, len(tokens)]),
            categorical=one_row(codes, np.int32),
            numeric=one_row(numbers, np.float32),
            published=np.array([NO_TIME]),
            known=np.ones(1, bool),
            several=tuple(ragged(pa.chunked_array([own])) for own in several),
            vectors=tuple(self.vector(table, c) for c in users.vectors),
        )
        return ReadProfile(row, self.picked(columns), self.unknown(table, columns))

    def table(self, columns: ProfileColumns) -> pa.Table:
        """Returns a table of one row, with null where a value is missing."""
        table = pa.table({c: read_value(columns.get(c), self.type_of(c)) for c in self.named})
        for column, values in self.users.missing.items():
            if column in self.named:
                emptied = blank_vectors if column in self.users.vectors else blank
                number = table.column_names.index(column)
                table = table.set_column(number, column, emptied(table.column(column), values))
        return table

    def tokens(self, table: pa.Table) -> np.ndarray:
        """Returns the tokens i32[L] of the text of a table's only row; none without a text."""
        if not self.facts.has_text:
            return np.zeros(0, np.int32)
        texts = item_texts(table, self.users)
        return tokenise(load_tokenizer(self.encoder.source), texts, self.encoder.max_tokens)[0]

    def vector(self, table: pa.Table, column: str) -> np.ndarray:
        """Returns f16[1, D]: a standardised vector, NaN where there is none."""
        scale = self.facts.vector_scale(column)
        (block,) = vector_blocks(table.column(column), len(scale.mean))
        return scale.of(block)

    def picked(self, columns: ProfileColumns) -> Picked:
        """Returns which columns of each kind were given."""
        users = self.users

        def given(names: Sequence[str]) -> list[bool]:
            return [name in columns for name in names]

        return Picked(
            given(list(self.facts.vocabularies)),
            given(users.numeric),
            given(list(self.facts.several)),
            given(users.vectors),
            any(given(users.text_columns)),
        )

    def unknown(self, table: pa.Table, columns: ProfileColumns) -> dict[str, list[str]]:
        """Returns the given values of columns with a vocabulary that it lacks."""
        found = {
            c: [v for v in as_text(table.column(c)).to_pylist() if v is not None]
            for c in self.facts.vocabularies
        } | {c: values_of(table.column(c), self.users.several[c])[1].tolist()
             for c in self.facts.several}  # fmt: skip
        known = {**self.facts.vocabularies, **self.facts.several}
        new = {c: [v for v in found[c] if v not in known[c]] for c in found if c in columns}
        return {c: values for c, values in new.items() if values}


def one_row(columns: Sequence[np.ndarray], kind: type) -> np.ndarray:
    """Returns [1, C] of columns [1]; [1, 0] without any."""
    return np.stack(columns, 1).astype(kind) if columns else np.zeros((1, 0), kind)
