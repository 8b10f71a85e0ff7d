"""Columns of ready vectors: what is wrong with them, and their files beside prepared tables."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from mtrec_ray.data.arrays import Bools
from mtrec_ray.data.columns import as_text
from mtrec_ray.data.profiles import ProfileFacts
from mtrec_ray.data.vectors import (
    VectorScale,
    fit_scale,
    has_vector,
    vector_lengths,
    vectors_path,
    write_vectors,
)
from mtrec_ray.project.project import Project

NULL = "allowed: numbers, or null where there is none"


def length_problems(where: str, table: pa.Table, key: str, columns: Sequence[str]) -> Iterator[str]:
    """Yields a line for each column of vectors with an empty one, or of lengths that differ."""
    for column in columns:
        lengths = vector_lengths(table.column(column))
        counts = Counter(lengths[lengths >= 0].tolist())
        found = f"{where}.vectors: found column {column!r} with"
        if 0 in counts:
            example = _example(table, key, lengths == 0)
            yield f"{found} {counts[0]} vectors of length 0, such as that of {example!r}; {NULL}"
        elif len(counts) > 1:
            shown = [
                f"{length} (such as that of {_example(table, key, lengths == length)!r})"
                for length, _ in counts.most_common(3)
            ]
            more = f" and {len(counts) - 3} more" if len(counts) > 3 else ""
            yield f"{found} vectors of lengths {', '.join(shown)}{more}; allowed: one length"


def _example(table: pa.Table, key: str, rows: Bools) -> str:
    return as_text(table.column(key).slice(int(rows.argmax()), 1))[0].as_py()


def train_problems(
    where: str, table: pa.Table, columns: Sequence[str], train: Bools, who: str
) -> Iterator[str]:
    """Yields a line for each column without any vector of the rows of `train` bool[n]."""
    for column in columns:
        if not (has_vector(table.column(column)) & train).any():
            yield (
                f"{where}.vectors: found column {column!r} without a vector of {who} that training "
                "knows; allowed: lists of finite numbers, of one of them at least"
            )


def item_vector_problems(
    project: Project, tables: Mapping[str, pa.Table], train_rows: Mapping[str, np.ndarray]
) -> list[str]:
    """Returns a line for each column of items' vectors of which training knows none."""
    lines: list[str] = []
    for name, table in tables.items():
        where, columns = f"scenarios.{name}.items", project.scenarios[name].items.vectors
        lines += train_problems(where, table, columns, train_rows[name] > 0, "an item")
    return lines


def stored_problems(
    where: str, table: pa.Table, columns: Sequence[str], stored: ProfileFacts
) -> Iterator[str]:
    """Yields a line for each column whose vectors are not as long as those that a model knows."""
    for column in columns:
        found = int(vector_lengths(table.column(column)).max(initial=-1))
        known = len(stored.vector_means[column])
        if found not in (-1, known):
            yield (
                f"{where}.vectors: found column {column!r} with vectors of length {found}; "
                f"allowed: {known}, as the joint model knows them"
            )


def write_table_vectors(
    path: str,
    table: pa.Table,
    columns: Sequence[str],
    train: Bools,
    stored: ProfileFacts | None = None,
) -> dict[str, VectorScale]:
    """Write the vectors of a prepared table beside it; returns their means and scales by column.

    Those are of the rows of `train` bool[n], or those that are `stored`.
    """
    scales: dict[str, VectorScale] = {}
    for number, column in enumerate(columns):
        own = table.column(column)
        scale = stored.vector_scale(column) if stored else fit_scale(own, train)
        assert scale is not None
        write_vectors(vectors_path(path, number), own, scale)
        scales[column] = scale
    return scales


def incomplete_vectors(table: pa.Table, columns: Sequence[str]) -> dict[str, int]:
    """Returns how many vectors have a number that is null or not finite, for the report."""
    return {
        f"vector of {column} with a null, NaN or infinite number": int(
            (table.column(column).is_valid().to_numpy() & ~has_vector(table.column(column))).sum()
        )
        for column in columns
    }
