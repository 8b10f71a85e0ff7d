"""Tables of users to prepared profiles, with vocabularies and scales of the users of training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.data.catalogue import (
    MIN_ROWS,
    NO_TIME,
    SEVERAL,
    TOKENS,
    encode_categories,
    encode_several,
    load_catalogue,
    values_of,
)
from mtrec_ray.data.columns import as_text, finite_floats, hash_strings, milliseconds
from mtrec_ray.data.preparing.manifest import scales
from mtrec_ray.data.preparing.vectors import (
    stored_problems,
    train_problems,
    write_table_vectors,
)
from mtrec_ray.data.profiles import TIME, ProfileFacts, profiles_path
from mtrec_ray.data.vectors import VECTORS, has_vector
from mtrec_ray.project.project import Project
from mtrec_ray.project.users import Users

Vocabularies = Mapping[str, list[str]]


@dataclass(frozen=True)
class KnownUsers:
    """The users of an id space that a model knows already.

    Attributes:
        hashes: u64[U], sorted.
        profiles: what was fitted on their table; None without one.
    """

    hashes: np.ndarray
    profiles: ProfileFacts | None = None


@dataclass(frozen=True)
class TrainingUsers:
    """The users of an id space's training.

    Attributes:
        hashes: u64[U], sorted.
        end_ms: the time of the last training row of the space's scenarios: what was written then,
            or later, no training row sees.
    """

    hashes: np.ndarray
    end_ms: int = NO_TIME

    def rows(self, table: pa.Table, users: Users) -> Bools:
        """Returns bool[P]: rows of a table that are of these users, and that training could see."""
        known = np.isin(hash_strings(table.column(users.id)), self.hashes)
        return known if users.time is None else known & (times_of(table, users) < self.end_ms)


def times_of(table: pa.Table, users: Users) -> Ints:
    """Returns i64[P]: when each row of a table was written, in ms; all have a time."""
    assert users.time
    return milliseconds(table.column(users.time), users.time_unit).to_numpy()


def assemble_users(
    table: pa.Table, users: Users, known: Bools, stored: ProfileFacts | None
) -> tuple[pa.Table, dict[str, Vocabularies]]:
    """Returns the prepared table of users, sorted by person and time, and its vocabularies.

    These are `vocabularies` and `several` of `ProfileFacts`: those that are `stored`, if any.
    `known` bool[P]: rows that training could see.
    """
    person = hash_strings(table.column(users.id)).view(np.int64)
    columns: dict[str, Any] = {
        "person": person,
        **({TIME: times_of(table, users)} if users.time else {}),
        "user_id": as_text(table.column(users.id)),
        "tokens": table.column(TOKENS),
        "known": known,
    }
    single: dict[str, list[str]] = {}
    several: dict[str, list[str]] = {}
    rows = known.astype(np.int64)
    for name in users.categorical:
        column = table.column(name)
        before = stored.vocabularies[name] if stored else None
        if users.time and before is None:
            texts = as_text(column).to_pandas()
            before = sorted(frequent_values(texts, np.arange(len(column)), person, known))
        codes, single[name] = encode_categories(column, rows, before)
        columns[f"categorical.{name}"] = codes
    for name, separator in users.several.items():
        column = table.column(name)
        before = stored.several[name] if stored else None
        if users.time and before is None:
            of_row, texts = values_of(column, separator)
            before = frequent_values(texts, of_row, person, known)
        lists, several[name] = encode_several(column, separator, rows, before)
        columns[f"{SEVERAL}{name}"] = lists
    for name in users.numeric:
        columns[f"numeric.{name}"] = finite_floats(table.column(name))
    for name in users.vectors:
        columns[f"{VECTORS}{name}"] = has_vector(table.column(name))
    prepared = pa.table(columns).take(pa.array(row_order(table, users)))
    return prepared, {"vocabularies": single, "several": several}


def row_order(table: pa.Table, users: Users) -> Ints:
    """Returns i64[P]: the rows of a table in the order of the prepared one, by person and time."""
    person = hash_strings(table.column(users.id)).view(np.int64)
    times = [times_of(table, users)] if users.time else []
    return np.lexsort([*times, person])


def frequent_values(values: pd.Series, row: Ints, person: Ints, known: Bools) -> list[str]:
    """Returns the values that enough users of training had, those of the most users first.

    A user counts once for a value, however often his rows say it. `row` i64[m]: the row of each of
    the values, of rows of persons i64[P] that training could see, or not, bool[P].
    """
    pairs = pd.DataFrame({"person": person[row], "value": values.to_numpy(object)})[known[row]]
    users = pairs.dropna().drop_duplicates()["value"].value_counts()
    enough = [(str(value), number) for value, number in users.items() if number >= MIN_ROWS]
    return [value for value, _ in sorted(enough, key=lambda pair: (-pair[1], pair[0]))]


def write_profiles(
    project: Project,
    tables: Mapping[str, pa.Table],
    known: Mapping[str, TrainingUsers],
    stored: Mapping[str, KnownUsers],
    folder: str,
) -> dict[str, dict[str, Any]]:
    """Write each table of users; returns what was fitted on it, as plain values.

    `known`: by space, the users of training.
    """
    facts = {}
    for space, table in tables.items():
        users, path = project.users[space], profiles_path(folder, space)
        before = stored[space].profiles if space in stored else None
        seen = known[space].rows(table, users)
        out, vocabularies = assemble_users(table, users, seen, before)
        storage.write_table(path, out)
        scale = {f"numeric_{k}": v for k, v in numeric_scales(path).items()}
        fitted = ProfileFacts(**vocabularies, **scale, has_text=users.text is not None)
        facts[space] = asdict(fitted) | _write_vectors(path, table, users, seen, before)
        if not users.vectors:
            del facts[space]["vector_means"], facts[space]["vector_scales"]
    return facts


def _write_vectors(
    path: str, table: pa.Table, users: Users, known: Bools, stored: ProfileFacts | None
) -> dict[str, Any]:
    """Write the vectors of users in the order of the prepared rows; returns what was fitted."""
    order = row_order(table, users)
    own = table.select(users.vectors).take(order)
    scales = write_table_vectors(path, own, users.vectors, known[order], stored)
    return {
        "vector_means": {column: scale.mean for column, scale in scales.items()},
        "vector_scales": {column: scale.scale for column, scale in scales.items()},
    }


def numeric_scales(path: str) -> dict[str, Any]:
    """Returns means, standard deviations and quantiles, over rows that training could see."""
    table = load_catalogue(path)
    numbers: Float32s = table.numeric[table.known]
    return scales(numbers.astype(np.float64))


def profile_problems(
    project: Project, tables: Mapping[str, pa.Table], known: Mapping[str, TrainingUsers]
) -> list[str]:
    """Returns a line for each table that knows no user of training: other ids, or too late."""
    lines = []
    for space, table in tables.items():
        users, of_training = project.users[space], known[space]
        if of_training.rows(table, users).any():
            continue
        if np.isin(hash_strings(table.column(users.id)), of_training.hashes).any():
            last = np.datetime64(of_training.end_ms, "ms")
            lines.append(
                f"users.{space}.time: found no row of a user of training before {last}Z, the last "
                "row of training; allowed: some rows from before it"
            )
        else:
            example = as_text(table.column(users.id))[0].as_py()
            lines.append(
                f"users.{space}.id: found ids such as {example!r}, none of which is a user of "
                "training; allowed: the ids that events.user has"
            )
    return lines


def user_vector_problems(
    project: Project,
    tables: Mapping[str, pa.Table],
    known: Mapping[str, TrainingUsers],
    stored: Mapping[str, KnownUsers],
) -> list[str]:
    """Returns a line for each column of vectors that training has none of, or unlike the stored."""
    lines: list[str] = []
    for space, table in tables.items():
        users, where = project.users[space], f"users.{space}"
        before = stored[space].profiles if space in stored else None
        seen = known[space].rows(table, users)
        if before:
            lines += stored_problems(where, table, users.vectors, before)
        elif seen.any():
            lines += train_problems(where, table, users.vectors, seen, "a user")
    return lines


def without_profile(table: pa.Table, users: Users, known: TrainingUsers) -> int:
    """Returns how many users of training have no row in the table that training could see."""
    seen = table.filter(pa.array(known.rows(table, users)))
    return int((~np.isin(known.hashes, hash_strings(seen.column(users.id)))).sum())
