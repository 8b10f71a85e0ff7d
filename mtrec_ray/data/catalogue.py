"""The catalogue of a scenario: token ids, categories and numbers of every item, as flat arrays.

An item is a row number of its catalogue everywhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec_ray.data import storage
from mtrec_ray.data.columns import (
    as_text,
    finite_floats,
    hash_strings,
    is_possible,
    list_parts,
    lists_of,
    milliseconds,
)
from mtrec_ray.data.mapped_arrays import map_array
from mtrec_ray.data.vectors import VECTORS, has_vector, vectors_path
from mtrec_ray.project.items import Items
from mtrec_ray.project.scenario import Scenario

NO_TIME = np.iinfo(np.int64).min


# Training rows that a value of a categorical column needs for an embedding of its own.
MIN_ROWS = 5


# The column of token ids; no column of a user has such a name.
TOKENS = "mtrec_ray.tokens"


# The prefix of prepared columns with several codes a row.
SEVERAL = "several."


@dataclass(frozen=True)
class Ragged:
    """Several codes from 1 on of each of n rows.

    Attributes:
        codes: i32[sum of lengths], those of one row after another.
        offsets: i64[n + 1], where those of each row start.
    """

    codes: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Number of different codes, with the unused 0."""
        return int(self.codes.max(initial=0)) + 1

    @property
    def rows(self) -> NDArray[np.int64]:
        """i64[sum of lengths], the row of each code."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, rows: NDArray[np.integer]) -> "Ragged":
        """Returns the codes of some rows, in their order."""
        starts, lengths = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.codes[np.arange(offsets[-1]) + shift], offsets)

    def indicators(self, most: int, *, exactly: bool = False) -> NDArray[np.uint8]:
        """Returns u8[n, K]: whether each row has the codes 1..K, at most (exactly) `most`."""
        num = most if exactly else min(most, self.size - 1)
        found = np.zeros((len(self.offsets) - 1, num), np.uint8)
        kept = self.codes <= num
        found[self.rows[kept], self.codes[kept] - 1] = 1
        return found


@dataclass(frozen=True)
class Catalogue:
    """Items of one scenario; n items, C categorical and M numeric columns.

    Attributes:
        tokens: i32[sum of lengths], texts one after another.
        offsets: i64[n + 1], where each text starts.
        categorical: i32[n, C], 0 for unknown.
        numeric: f32[n, M], NaN for null.
        published: i64[n], ms, NO_TIME for null.
        known: bool[n], whether training has a row of the item.
        several: of each column with several values.
        vectors: f16[n, D] of each column of vectors, standardised; NaN where an item has none.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    categorical: NDArray[np.int32]
    numeric: NDArray[np.float32]
    published: NDArray[np.int64]
    known: NDArray[np.bool_]
    several: tuple[Ragged, ...] = ()
    vectors: tuple[NDArray[np.float16], ...] = ()

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """i64[n]: number of tokens of each text."""
        return np.diff(self.offsets)


def encode_categories(
    column: pa.ChunkedArray,
    train_rows: NDArray[np.int64],
    vocabulary: list[str] | None = None,
    min_rows: int = MIN_ROWS,
) -> tuple[NDArray[np.int32], list[str]]:
    """Returns codes of a column by a vocabulary, fitted on training rows unless it is given.

    A value whose items have at least `min_rows` training rows gets a code from 1 on; code 0 is
    everything else.
    """
    series = pd.Series(as_text(column).to_pandas())
    if vocabulary is None:
        rows = pd.Series(train_rows).groupby(series).sum()
        vocabulary = sorted(str(v) for v in rows[rows >= min_rows].index)
    codes = pd.Index(vocabulary).get_indexer(pd.Index(series)) + 1
    return codes.astype(np.int32), vocabulary


def values_of(
    column: pa.ChunkedArray, separator: str | None
) -> tuple[NDArray[np.int64], pd.Series]:
    """Returns the values of a column of lists, or of texts with a separator, as texts.

    Values have no white space around them; those that are null or empty are left out, and so are
    repetitions in a row. i64[m] ascending says the row of each.
    """
    texts = column
    if separator is not None:
        texts = pc.split_pattern(as_text(column), separator)  # pyright: ignore[reportAttributeAccessIssue]
    rows, values = list_parts(texts)
    trimmed = pc.utf8_trim_whitespace(as_text(values)).to_pandas()  # pyright: ignore[reportAttributeAccessIssue]
    found = pd.DataFrame({"row": rows, "value": trimmed.to_numpy(object)})
    found = found[found["value"].notna() & (found["value"] != "")].drop_duplicates()
    return found["row"].to_numpy(), found["value"]


def encode_several(
    column: pa.ChunkedArray,
    separator: str | None,
    train_rows: NDArray[np.int64],
    vocabulary: list[str] | None = None,
) -> tuple[pa.Array, list[str]]:
    """Returns lists of codes of a column with several values, and the vocabulary.

    It is fitted as that of `encode_categories`, the most frequent value first, unless it is given;
    other values are left out.
    """
    rows, values = values_of(column, separator)
    if vocabulary is None:
        counts = pd.Series(train_rows[rows], values.to_numpy()).groupby(level=0).sum()
        enough = counts[counts >= MIN_ROWS].items()
        vocabulary = [str(v) for v, _ in sorted(enough, key=lambda pair: (-pair[1], pair[0]))]
    codes = (pd.Index(vocabulary, dtype=object).get_indexer(pd.Index(values)) + 1).astype(np.int32)
    known = codes > 0
    return lists_of(rows[known], pa.array(codes[known]), len(column)), vocabulary


def category_codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns i64[n]: a number for each item's value of a catalogue column, -1 for null."""
    codes, _ = pd.factorize(column.to_pandas(), sort=False)
    return codes.astype(np.int64)


def value_codes(column: pa.ChunkedArray, separator: str | None) -> Ragged:
    """Returns a number from 1 on for each value of a column with several, ascending in a row.

    Rare values have one, too; null and empty ones, and repetitions in a row, are left out.
    """
    rows, values = values_of(column, separator)
    codes = pd.factorize(values, sort=False)[0].astype(np.int32) + 1
    offsets = np.searchsorted(rows, np.arange(len(column) + 1))
    return Ragged(codes[np.lexsort([codes, rows])], offsets)


def published_ms(table: pa.Table, items: Items, unit: str | None = None) -> NDArray[np.int64]:
    """Returns i64[n]: when each item was published, ms, NO_TIME where that is not known.

    `unit` is that of plain numbers, as `milliseconds` takes it. A time that no log has is unknown.
    """
    if items.published is None:
        return np.full(table.num_rows, NO_TIME)
    ms = pc.fill_null(milliseconds(table.column(items.published), unit), NO_TIME).to_numpy()
    return np.where(is_possible(ms), ms, NO_TIME)


def assemble(
    table: pa.Table, scenario: Scenario, train_rows: NDArray[np.int64]
) -> tuple[pa.Table, dict[str, list[str]]]:
    """Returns the prepared catalogue table and the vocabularies of its categories.

    `train_rows` i64[n]: training rows of each item. A number that is not finite counts as null.
    """
    items = scenario.items
    vocabularies: dict[str, list[str]] = {}
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "item_id": as_text(table.column(items.id)),
        "tokens": table.column(TOKENS),
        "known": pa.array(train_rows > 0),
        "train_rows": pa.array(train_rows),
    }
    for name in items.categorical:
        codes, vocabularies[name] = encode_categories(table.column(name), train_rows)
        columns[f"categorical.{name}"] = pa.array(codes)
    for name, separator in items.several.items():
        lists, vocabularies[name] = encode_several(table.column(name), separator, train_rows)
        columns[f"{SEVERAL}{name}"] = lists
    for name in items.statistics_columns:
        columns[f"code.{name}"] = pa.array(category_codes(table.column(name)))
    for name, separator in items.pooled_columns.items():
        numbers = value_codes(table.column(name), separator)
        columns[f"code.{name}"] = lists_of(numbers.rows, pa.array(numbers.codes), table.num_rows)
    for name in items.numeric:
        columns[f"numeric.{name}"] = pa.array(finite_floats(table.column(name)))
    for name in items.vectors:
        columns[f"{VECTORS}{name}"] = pa.array(has_vector(table.column(name)))
    if items.published:
        columns["published"] = pa.array(published_ms(table, items, scenario.events.time_unit))
    return pa.table(columns), vocabularies


def load_catalogue(path: str, *, vectors: bool = False) -> Catalogue:
    """Returns the arrays of a prepared catalogue file; with `vectors` those beside it, mapped."""
    table = storage.read_table(path).combine_chunks()
    tokens = table.column("tokens").combine_chunks()
    n = table.num_rows
    return Catalogue(
        tokens=tokens.flatten().to_numpy(zero_copy_only=False).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(tokens.value_lengths().to_numpy())]),
        categorical=_matrix(table, "categorical.", n, np.int32),
        numeric=_matrix(table, "numeric.", n, np.float32),
        published=table.column("published").to_numpy()
        if "published" in table.column_names
        else np.full(n, NO_TIME),
        known=table.column("known").to_numpy(),
        several=tuple(ragged(table.column(c)) for c in table.column_names if c.startswith(SEVERAL)),
        vectors=_mapped_vectors(path, table.column_names) if vectors else (),
    )


def _mapped_vectors(path: str, columns: Sequence[str]) -> tuple[NDArray[np.float16], ...]:
    number = sum(column.startswith(VECTORS) for column in columns)
    return tuple(map_array(vectors_path(path, i)) for i in range(number))


def ragged(column: pa.ChunkedArray) -> Ragged:
    """Returns a column of lists of codes as arrays."""
    rows, codes = list_parts(column)
    offsets = np.searchsorted(rows, np.arange(len(column) + 1))
    return Ragged(codes.to_numpy(), offsets)


def _matrix(table: pa.Table, prefix: str, n: int, dtype: type) -> np.ndarray:
    columns = [
        table.column(c).to_pandas().to_numpy(dtype)
        for c in table.column_names
        if c.startswith(prefix)
    ]
    return np.stack(columns, 1) if columns else np.zeros((n, 0), dtype)


@dataclass(frozen=True)
class ItemLookup:
    """Catalogue rows by the hash of the item id: both arrays sorted by hash."""

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int32]

    @classmethod
    def of(cls, ids: pa.ChunkedArray) -> "ItemLookup":
        """Returns the lookup of a catalogue's id column."""
        hashes = hash_strings(ids)
        order = np.argsort(hashes)
        return cls(hashes[order], order.astype(np.int32))

    def find(self, ids: pa.ChunkedArray) -> NDArray[np.int32]:
        """Returns i32[N]: catalogue rows, -1 where no item has the id."""
        hashes = hash_strings(ids)
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[place] == hashes, self.rows[place], -1).astype(np.int32)
