"""The leakage audit of profiles: users of sampled rows looked up in their table once more.

By code of its own, as the rest of the audit: ids are compared as text, and not by their hash, and
of rows with times the latest is looked for among all rows of the user.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.data import storage
from mtrec_ray.data.input_files import input_files
from mtrec_ray.data.mapped_arrays import map_array
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.audit_log import raw_milliseconds, raw_nulls, raw_numbers, raw_text
from mtrec_ray.data.profiles import ProfileIndex, persons_and_times, profiles_path
from mtrec_ray.data.vectors import vectors_path
from mtrec_ray.project.project import Project

Row = dict[str, Any]
ROW = "mtrec_ray.row"  # the column of the rows' numbers; no column of a user has such a name

# Of a row: when it was written, in ms; no column of a table of users has such a name.
WRITTEN = "the time of the row"


@dataclass(frozen=True)
class AuditProfiles:
    """Rows of a table of users, as they were found and as they were prepared.

    Attributes:
        raw: by id, the values of the columns of his rows: texts, numbers, standardised vectors as
            lists, None or NaN for null.
        prepared: the user's id, numbers, vectors, and texts of which training knows enough, of each
            row.
        index: where the model finds these rows.
        vocabularies: by categorical column.
    """

    raw: dict[str, list[Row]]
    prepared: list[Row]
    index: ProfileIndex
    vocabularies: dict[str, list[str]]

    def expected(self, user: str, moment: float) -> Row | None:
        """Returns the last row of a user that was written before a moment, in ms; None if none."""
        earlier = [row for row in self.raw.get(user, ()) if row[WRITTEN] < moment]
        return max(earlier, key=lambda row: row[WRITTEN], default=None)

    def found(self, person: int, moment: int) -> Row | None:
        """Returns the prepared row that the model reads; None if none."""
        if not self.prepared:
            return None
        place = int(self.index.places(np.array([person]), np.array([moment]))[0])
        return self.prepared[place] if place >= 0 else None

    def check(self, user: str, person: int, time: float, moment: int) -> list[str]:
        """Returns a line for each value of a row's user that is not what his table says.

        `person` and `moment` are what was prepared of `user` and `time`, in ms.
        """
        expected, found = self.expected(user, time), self.found(person, moment)
        if expected is None or found is None:
            there = "none, in the table one" if expected else "one, in the table none"
            return [] if expected is found else [f"profile: prepared {there}"]
        if found["id"] != user:
            return [f"profile: prepared that of user {found['id']!r}, in the log {user!r}"]
        known = {n: v if v in self.vocabularies.get(n, (v,)) else None for n, v in expected.items()}
        return [
            f"profile.{name}: prepared {shown(found[name])}, in the table {shown(value)}"
            for name, value in known.items()
            if not (found[name] == value if name == WRITTEN else same(found[name], value))
        ]


def same(first: object, second: object) -> bool:
    """Returns whether two values are equal, numbers in 32 bits, those of vectors in 16.

    NaN is equal to itself.
    """
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and np.allclose(first, second, rtol=1e-3, atol=1e-3)
    if isinstance(first, float) and isinstance(second, float):
        return bool(np.isclose(first, second, rtol=1e-6, atol=0, equal_nan=True))
    return first == second


def shown(value: object) -> str:
    """Returns a value for a person; of a vector the first numbers."""
    if not isinstance(value, list):
        return repr(value)
    numbers = ", ".join(f"{number:.3g}" for number in value[:4])
    return f"[{numbers}, ...]" if value[4:] else f"[{numbers}]"


def read_audit_profiles(
    project: Project, prepared: Prepared, name: str, users: Sequence[str]
) -> AuditProfiles | None:
    """Returns the profiles of some users of a scenario; None where they have no table."""
    space = project.scenarios[name].users
    if space not in project.users:
        return None
    facts = prepared.users[space]
    raw = raw_profiles(project, space, users)
    for row in (row for rows in raw.values() for row in rows):
        for column, mean in facts.vector_means.items():
            row[column] = standardised(row[column], mean, facts.vector_scales[column])
    stored, index = prepared_profiles(prepared, space, users)
    return AuditProfiles(raw, stored, index, facts.vocabularies)


def raw_profiles(project: Project, space: str, users: Sequence[str]) -> dict[str, list[Row]]:
    """Returns the rows of some users as the table has them, by id; a table is read file by file.

    One that holds at any time was written at minus infinity.
    """
    own = project.users[space]
    found: dict[str, list[Row]] = {}
    columns = [own.id, *own.categorical, *own.numeric, *own.vectors]
    columns += [own.time] if own.time else []
    blank = {c: v for c, v in own.missing.items() if c not in own.vectors}
    for file in input_files(project.path(own.path)):
        table = raw_nulls(storage.read_table(file, list(dict.fromkeys(columns))), blank)
        ids = raw_text(table.column(own.id))
        table, ids = rows_of(table, ids, users)
        values: dict[str, list[Any]] = {WRITTEN: [-math.inf] * table.num_rows}
        if own.time:
            values[WRITTEN] = raw_milliseconds(table.column(own.time), own.time_unit).tolist()
        for column in own.categorical:
            values[column] = raw_text(table.column(column)).to_pylist()
        for column in own.numeric:
            values[column] = raw_numbers(table.column(column)).tolist()
        for column in own.vectors:
            words = pd.Series(own.missing.get(column, ()), dtype=object)
            none = pd.to_numeric(words, errors="coerce").astype(float).tolist()
            values[column] = [raw_vector(v, none) for v in table.column(column).to_pylist()]
        for user, row in zip(ids.to_pylist(), rows_of_columns(values), strict=True):
            found.setdefault(user, []).append(row)
    return found


def raw_vector(value: Sequence[Any] | None, none: Collection[float]) -> list[float] | None:
    """Returns a vector as the table has it; None without one.

    There is none where a number is null or not finite in 32 bits, or where all of them are values
    that mean it.
    """
    if value is None or any(number is None for number in value):
        return None
    numbers = np.array([float(number) for number in value])
    finite = (np.abs(numbers) <= np.finfo(np.float32).max).all()
    return numbers.tolist() if finite and not {*numbers.tolist()} <= {*none} else None


def standardised(
    vector: Sequence[float] | None, mean: Sequence[float], scale: float
) -> list[float] | None:
    """Returns a vector less the mean, over the scale, within 1,000 of them."""
    if vector is None:
        return None
    return np.clip((np.array(vector) - np.array(mean)) / scale, -1000, 1000).tolist()


def prepared_profiles(
    prepared: Prepared, space: str, users: Sequence[str]
) -> tuple[list[Row], ProfileIndex]:
    """Returns the prepared rows of some users, codes as the texts that they stand for."""
    path = profiles_path(prepared.folder, space)
    table = storage.read_table(path)
    table = table.append_column(ROW, pa.array(np.arange(table.num_rows)))
    table, ids = rows_of(table, table.column("user_id"), users)
    persons, times = persons_and_times(table)
    values: dict[str, list[Any]] = {"id": ids.to_pylist()}
    values[WRITTEN] = [-math.inf] * len(persons) if times is None else times.astype(float).tolist()
    for column, words in prepared.users[space].vocabularies.items():
        codes = table.column(f"categorical.{column}").to_pylist()
        values[column] = [words[code - 1] if code else None for code in codes]
    for column in table.column_names:
        if column.startswith("numeric."):
            numbers = table.column(column).to_numpy().astype(float)
            values[column.removeprefix("numeric.")] = numbers.tolist()
    for number, column in enumerate(prepared.users[space].vector_means):
        found = map_array(vectors_path(path, number))[table.column(ROW).to_numpy()].tolist()
        values[column] = [None if any(np.isnan(vector)) else vector for vector in found]
    return rows_of_columns(values), ProfileIndex.of(persons, times)


def rows_of(
    table: pa.Table, ids: pa.ChunkedArray, users: Sequence[str]
) -> tuple[pa.Table, pa.ChunkedArray]:
    """Returns the rows of some users, and their ids."""
    wanted = pc.is_in(ids, pa.array(users, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
    return table.filter(wanted), ids.filter(wanted)


def rows_of_columns(values: dict[str, list[Any]]) -> list[Row]:
    """Returns the rows of some columns."""
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
