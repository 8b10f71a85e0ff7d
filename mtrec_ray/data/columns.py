"""Arrow columns to arrays and back, hashes, and times."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def hash_strings(values: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """u64[N]: a fixed 64-bit hash of each value as a string."""
    text = pc.cast(values, pa.string())
    return pd.util.hash_array(np.asarray(text.to_numpy(zero_copy_only=False), object))


def milliseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """i64 with nulls: a time stamp, a date or a number of seconds as milliseconds since 1970."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return pc.cast(pc.cast(column, pa.timestamp("ms"), safe=False), pa.int64())
    seconds = pc.cast(column, pa.float64()).to_numpy()
    return pa.chunked_array([pa.array(np.floor(seconds * 1000), pa.int64(), from_pandas=True)])


def fixed_list(values: np.ndarray, width: int | None = None) -> pa.FixedSizeListArray:
    """A matrix [N, k] as a fixed-size list column, padded with zeros (NaN) to `width` columns."""
    width = max(width or values.shape[1], 1)
    if values.shape[1] < width:
        fill = np.nan if values.dtype.kind == "f" else 0
        pad = np.full((len(values), width - values.shape[1]), fill, values.dtype)
        values = np.concatenate([values, pad], 1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """[N, width] of a fixed-size list column, without a copy where it has one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    width = array.type.list_size
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 of a date; one without zone is UTC."""
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


DAY_MS = 86_400_000


def hash_ints(values: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """u64[N]: a fixed mixing of integers (splitmix64, Steele et al. 2014), for order and folds."""
    mixed = values.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
