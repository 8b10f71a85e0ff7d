"""Columns of the log with several values a row: hashes of the values, then codes, padded.

Canonical rows have them as lists of hashes, prepared rows as the codes of values that training
knows, so many for each row as the row with the most values has.

Letters: N rows, m values of all rows, V values of the vocabulary, S codes of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mtrec_ray.data.arrays import Bools, Ints
from mtrec_ray.data.catalogue import values_of
from mtrec_ray.data.columns import hash_strings, list_parts, lists_of

# Of a row's values, those that are kept at most, the most frequent: every row has room for them.
MOST_VALUES = 32


def column_name(number: int) -> str:
    """Returns the canonical column of the log's column with that number among those of its kind."""
    return f"event_several.{number}"


def hashed_values(column: pa.ChunkedArray, separator: str | None) -> pa.LargeListArray:
    """Returns lists of i64 hashes of each row's values, as `values_of` reads them."""
    rows, values = values_of(column, separator)
    hashes = hash_strings(pa.array(values, pa.string())).view(np.int64)
    return lists_of(rows, pa.array(hashes), len(column))


def counted_values(column: pa.ChunkedArray, chosen: Bools) -> tuple[Ints, Ints]:
    """Returns sorted u64 hashes of the values of the rows that bool[N] marks, and rows of each."""
    rows, values = list_parts(column)
    hashes = values.to_numpy().view(np.uint64)[chosen[rows]]
    found, counts = np.unique(hashes, return_counts=True)
    return found, counts.astype(np.int64)


def most_values(column: pa.ChunkedArray) -> int:
    """Returns the number of values of the row that has the most, from 1 to `MOST_VALUES`."""
    rows, _ = list_parts(column)
    return min(int(np.bincount(rows).max(initial=1)), MOST_VALUES)


@dataclass(frozen=True)
class EventValues:
    """The vocabulary of a column with several values.

    Attributes:
        hashes: u64[V], in the order of the codes from 1 on: the most frequent first.
        width: S, codes of a row.
    """

    hashes: np.ndarray
    width: int

    def codes(self, column: pa.ChunkedArray) -> np.ndarray:
        """Returns i32[N, S]: codes of known values, ascending, then zeros."""
        rows, values = list_parts(column)
        hashes, order = values.to_numpy().view(np.uint64), np.argsort(self.hashes)
        if not len(order):
            return np.zeros((len(column), self.width), np.int32)
        place = np.searchsorted(self.hashes, hashes, sorter=order)
        place = order[np.minimum(place, len(order) - 1)]
        known = self.hashes[place] == hashes
        return self._padded(rows[known], place[known] + 1, len(column))

    def _padded(self, rows: Ints, codes: Ints, num_rows: int) -> np.ndarray:
        """Returns i32[num_rows, S] of the codes i64[m] of rows i64[m]."""
        order = np.lexsort([codes, rows])
        rows, codes = rows[order], codes[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = place < self.width
        found = np.zeros((num_rows, self.width), np.int32)
        found[rows[kept], place[kept]] = codes[kept]
        return found


def all_codes(table: pa.Table, columns: Sequence[EventValues]) -> np.ndarray:
    """Returns i32[N, sum of S]: the codes of all columns of canonical rows, side by side."""
    return np.concatenate(
        [own.codes(table.column(column_name(i))) for i, own in enumerate(columns)], 1
    )
