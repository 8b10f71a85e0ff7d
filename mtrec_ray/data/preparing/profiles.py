"""Tables of users to prepared profiles, with vocabularies and scales of the users of training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools, Float32s
from mtrec_ray.data.catalogue import (
    SEVERAL,
    TOKENS,
    encode_categories,
    encode_several,
    load_catalogue,
)
from mtrec_ray.data.columns import as_text, finite_floats, hash_strings
from mtrec_ray.data.preparing.manifest import scales
from mtrec_ray.data.preparing.vectors import (
    stored_problems,
    train_problems,
    write_table_vectors,
)
from mtrec_ray.data.profiles import ProfileFacts, profiles_path
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


def in_training(table: pa.Table, users: Users, known: np.ndarray) -> Bools:
    """Returns bool[P]: users of a table that are among the sorted hashes `known` of training."""
    return np.isin(hash_strings(table.column(users.id)), known)


def assemble_users(
    table: pa.Table, users: Users, known: Bools, stored: ProfileFacts | None
) -> tuple[pa.Table, dict[str, Vocabularies]]:
    """Returns the prepared table of users, sorted by person, and its vocabularies.

    These are `vocabularies` and `several` of `ProfileFacts`: those that are `stored`, if any.
    `known` bool[P]: who has a training row.
    """
    columns: dict[str, Any] = {
        "person": hash_strings(table.column(users.id)).view(np.int64),
        "user_id": as_text(table.column(users.id)),
        "tokens": table.column(TOKENS),
        "known": known,
    }
    single: dict[str, list[str]] = {}
    several: dict[str, list[str]] = {}
    rows = known.astype(np.int64)
    for name in users.categorical:
        before = stored and stored.vocabularies[name]
        codes, single[name] = encode_categories(table.column(name), rows, before)
        columns[f"categorical.{name}"] = codes
    for name, separator in users.several.items():
        before = stored and stored.several[name]
        lists, several[name] = encode_several(table.column(name), separator, rows, before)
        columns[f"{SEVERAL}{name}"] = lists
    for name in users.numeric:
        columns[f"numeric.{name}"] = finite_floats(table.column(name))
    for name in users.vectors:
        columns[f"{VECTORS}{name}"] = has_vector(table.column(name))
    prepared = pa.table(columns).sort_by("person")
    return prepared, {"vocabularies": single, "several": several}


def write_profiles(
    project: Project,
    tables: Mapping[str, pa.Table],
    known: Mapping[str, np.ndarray],
    stored: Mapping[str, KnownUsers],
    folder: str,
) -> dict[str, dict[str, Any]]:
    """Write each table of users; returns what was fitted on it, as plain values.

    `known`: by space, the sorted hashes of the users of training.
    """
    facts = {}
    for space, table in tables.items():
        users, path = project.users[space], profiles_path(folder, space)
        before = stored[space].profiles if space in stored else None
        seen = in_training(table, users, known[space])
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
    """Write the vectors of users in the order of persons; returns what was fitted on them."""
    order = np.argsort(hash_strings(table.column(users.id)).view(np.int64))
    own = table.select(users.vectors).take(order)
    scales = write_table_vectors(path, own, users.vectors, known[order], stored)
    return {
        "vector_means": {column: scale.mean for column, scale in scales.items()},
        "vector_scales": {column: scale.scale for column, scale in scales.items()},
    }


def numeric_scales(path: str) -> dict[str, Any]:
    """Returns mean, standard deviation and quantiles of numbers, over users known to training."""
    table = load_catalogue(path)
    numbers: Float32s = table.numeric[table.known]
    return scales(numbers.astype(np.float64))


def profile_problems(
    project: Project, tables: Mapping[str, pa.Table], known: Mapping[str, np.ndarray]
) -> list[str]:
    """Returns a line for each table that knows no user of training: its ids are others."""
    lines = []
    for space, table in tables.items():
        users = project.users[space]
        if not in_training(table, users, known[space]).any():
            example = as_text(table.column(users.id))[0].as_py()
            lines.append(
                f"users.{space}.id: found ids such as {example!r}, none of which is a user of "
                "training; allowed: the ids that events.user has"
            )
    return lines


def user_vector_problems(
    project: Project,
    tables: Mapping[str, pa.Table],
    known: Mapping[str, np.ndarray],
    stored: Mapping[str, KnownUsers],
) -> list[str]:
    """Returns a line for each column of vectors of no user of training, or unlike the stored."""
    lines: list[str] = []
    for space, table in tables.items():
        users, where = project.users[space], f"users.{space}"
        before = stored[space].profiles if space in stored else None
        seen = in_training(table, users, known[space])
        if before:
            lines += stored_problems(where, table, users.vectors, before)
        elif seen.any():
            lines += train_problems(where, table, users.vectors, seen, "a user")
    return lines


def without_profile(table: pa.Table, users: Users, known: np.ndarray) -> int:
    """Returns how many users of the hashes `known` have no row in the table."""
    return int((~np.isin(known, hash_strings(table.column(users.id)))).sum())
