"""The catalogue of a scenario: token ids, categories and numbers of every item, as flat arrays.

An item is a row number of its catalogue everywhere else.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec_ray.data import storage
from mtrec_ray.data.columns import as_text, finite_floats, hash_strings, is_possible, milliseconds
from mtrec_ray.project.scenario import Items, Scenario

NO_TIME = np.iinfo(np.int64).min


# Training rows that a value of a categorical column needs for an embedding of its own.
MIN_ROWS = 5


# The column of token ids; no column of a user has such a name.
TOKENS = "mtrec_ray.tokens"


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
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    categorical: NDArray[np.int32]
    numeric: NDArray[np.float32]
    published: NDArray[np.int64]
    known: NDArray[np.bool_]

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """i64[n]: number of tokens of each text."""
        return np.diff(self.offsets)


def encode_categories(
    column: pa.ChunkedArray, train_rows: NDArray[np.int64], min_rows: int = MIN_ROWS
) -> tuple[NDArray[np.int32], list[str]]:
    """Returns codes of a column by a vocabulary fitted on training rows.

    A value whose items have at least `min_rows` training rows gets a code from 1 on; code 0 is
    everything else.
    """
    series = pd.Series(as_text(column).to_pandas())
    rows = pd.Series(train_rows).groupby(series).sum()
    vocabulary = sorted(str(v) for v in rows[rows >= min_rows].index)
    return codes_of(column, vocabulary), vocabulary


def codes_of(column: pa.ChunkedArray, vocabulary: list[str]) -> NDArray[np.int32]:
    """Returns i32[n]: places of a column's values in a vocabulary from 1 on; 0 for all others."""
    values = pd.Index(as_text(column).to_pandas())
    return (pd.Index(vocabulary).get_indexer(values) + 1).astype(np.int32)


def category_codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns i64[n]: a number for each item's value of a catalogue column, -1 for null."""
    codes, _ = pd.factorize(column.to_pandas(), sort=False)
    return codes.astype(np.int64)


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
    """Returns the prepared catalogue table and the vocabularies of its categorical columns.

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
    for name in items.statistics_columns:
        columns[f"code.{name}"] = pa.array(category_codes(table.column(name)))
    for name in items.numeric:
        columns[f"numeric.{name}"] = pa.array(finite_floats(table.column(name)))
    if items.published:
        columns["published"] = pa.array(published_ms(table, items, scenario.events.time_unit))
    return pa.table(columns), vocabularies


def load_catalogue(path: str) -> Catalogue:
    """Returns the arrays of a prepared catalogue file."""
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
    )


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
