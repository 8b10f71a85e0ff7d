"""Arrow columns to arrays and back, hashes, and times."""

import uuid
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec_ray.project.split import PLAUSIBLE_SECONDS

UNITS_PER_MS = {"ms": 1, "us": 1000, "ns": 1_000_000}
UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


LARGEST_MS = 2**62


# Times from 1900 to 2100 are possible: logs write an unknown time as year 1 or year 9999.
EARLIEST_MS, LATEST_MS = -2_208_988_800_000, 4_102_444_800_000


def hash_strings(values: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Returns u64[N]: a fixed 64-bit hash of each value as text."""
    return pd.util.hash_array(np.asarray(as_text(values).to_numpy(zero_copy_only=False), object))


def as_text(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns ids, categories and words as text; null for null and NaN, bytes by `bytes_text`."""
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    kind = plain_type(column.type)
    if not is_bytes(kind):
        missing = column.is_null(nan_is_null=True)
        text = pc.cast(column, pa.string())
        return pc.if_else(missing, pa.scalar(None, pa.string()), text)  # pyright: ignore[reportAttributeAccessIssue]
    encoded = pc.cast(column, kind).combine_chunks().dictionary_encode()
    known = pa.array([bytes_text(v, kind) for v in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([known.take(encoded.indices)])


def is_list(kind: pa.DataType) -> bool:
    """Returns whether values of a type are lists."""
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def list_parts(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
    """Returns the values of all lists of a column, and i64[m], the row of each."""
    whole = pc.cast(column, pa.large_list(column.type.value_type)).combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(whole), 0).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, pa.chunked_array([whole.flatten()])


def lists_of(rows: NDArray[np.int64], values: pa.Array, num_rows: int) -> pa.LargeListArray:
    """Returns a column of lists of the values, of which i64[m] ascending `rows` says the rows."""
    offsets = np.searchsorted(rows, np.arange(num_rows + 1))
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def blank(column: pa.ChunkedArray, values: Sequence[str | float]) -> pa.ChunkedArray:
    """Returns a column with null in place of some values, which are read in the column's type.

    Of a column of lists: in place of values in them.
    """
    kind = plain_type(column.type)
    if is_list(kind):
        rows, parts = list_parts(column)
        inner = blank(parts, values).combine_chunks()
        return pa.chunked_array([lists_of(rows, inner, len(column))])
    found = is_one_of(column, values)
    return pc.if_else(found, pa.scalar(None, kind), pc.cast(column, kind))  # pyright: ignore[reportAttributeAccessIssue]


def is_one_of(column: pa.ChunkedArray, values: Sequence[str | float]) -> pa.ChunkedArray:
    """Returns where a column has one of some values, which are read in the column's type."""
    kind = plain_type(column.type)
    plain = pc.cast(column, kind)
    if pa.types.is_float16(kind):  # which Arrow does not compare
        rounded = [scalar.as_py() for v in values if (scalar := _scalar(v, kind)) is not None]
        return is_one_of(pc.cast(plain, pa.float32()), rounded)
    compared = pc.cast(plain, pa.float64()) if pa.types.is_decimal(kind) else plain
    wanted = [scalar for value in values if (scalar := _scalar(value, compared.type)) is not None]
    return pc.is_in(compared, pa.array(wanted, compared.type))  # pyright: ignore[reportAttributeAccessIssue]


def place_among(column: pa.ChunkedArray, values: Sequence[str | float]) -> NDArray[np.float32]:
    """Returns f32[N]: which of some values a column has, compared as `is_one_of` does.

    From 0; -1 for another value, NaN for null.
    """
    found = np.full(len(column), -1, np.float32)
    for place, value in enumerate(values):
        found[is_one_of(column, [value]).to_numpy()] = place
    found[column.is_null(nan_is_null=True).to_numpy()] = np.nan
    return found


def _scalar(value: str | float, kind: pa.DataType) -> pa.Scalar | None:
    """Returns a value in a type; None where the type has no such value.

    Arrow reads a whole number of more than 63 bits as text alone, and each number but 0 as true.
    """
    if pa.types.is_boolean(kind) and not isinstance(value, str) and value not in (0, 1):
        return None
    try:
        plain = pa.scalar(value)
    except OverflowError:
        plain = pa.scalar(str(value))
    try:
        return plain.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def is_bytes(kind: pa.DataType) -> bool:
    """Returns whether values of a type are bytes that the file does not say to be text."""
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def bytes_text(value: bytes, kind: pa.DataType) -> str:
    """Returns bytes as text: a UUID for 16 of fixed size, UTF-8, or else hexadecimal digits."""
    if kind == pa.binary(16):
        return str(uuid.UUID(bytes=value))
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Returns f32[N]: numbers, NaN for null; beyond the range of 32 bits infinite."""
    return pc.cast(column, pa.float32(), safe=False).to_numpy().astype(np.float32)


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Returns [N]: numbers in the column's own precision, decimals in 64 bits; NaN for null."""
    kind = plain_type(column.type)
    is_float = pa.types.is_floating(kind)
    return pc.cast(column, kind if is_float else pa.float64(), safe=False).to_numpy()


def finite_floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Returns f32[N]: numbers, NaN for null and for those that are not finite in 32 bits."""
    values = floats(column)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of a column's values, whether or not they are stored in a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_plain_number(kind: pa.DataType) -> bool:
    """Returns whether times of a type are plain numbers, whose unit the file does not tell."""
    kind = plain_type(kind)
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def milliseconds(column: pa.ChunkedArray, unit: str | None = None) -> pa.ChunkedArray:
    """Returns i64 with nulls: time stamps, dates or numbers as whole milliseconds since 1970.

    Plain numbers are of a unit `s` (where none is given), `ms`, `us` or `ns`. Milliseconds are
    clipped to `LARGEST_MS`; NaN and infinity become null.
    """
    if not is_plain_number(column.type):
        stamps = pc.cast(column, plain_type(column.type))
        return pc.cast(pc.cast(stamps, pa.timestamp("ms"), safe=False), pa.int64())
    numbers = pc.cast(column, plain_type(column.type))
    if unit in UNITS_PER_MS and pa.types.is_integer(numbers.type):  # floats have 53 bits only
        unsigned = pa.types.is_unsigned_integer(numbers.type)
        whole = pc.cast(numbers, pa.uint64() if unsigned else pa.int64())
        values = pc.fill_null(whole, 0).to_numpy() // UNITS_PER_MS[unit]
        clipped = np.minimum(values, LARGEST_MS).astype(np.int64)
        return pa.chunked_array([pa.array(clipped, mask=whole.is_null().to_numpy())])
    plain = pc.cast(numbers, pa.float64(), safe=False).to_numpy()
    values = np.floor(plain / UNITS_PER_MS[unit] if unit in UNITS_PER_MS else plain * 1000)
    return clipped_ms(values)


def clipped_ms(values: NDArray[np.float64]) -> pa.ChunkedArray:
    """Returns i64 [N] with nulls for NaN and infinity, clipped to `LARGEST_MS`."""
    known = np.isfinite(values)
    whole_ms = np.clip(np.where(known, values, 0), -LARGEST_MS, LARGEST_MS).astype(np.int64)
    return pa.chunked_array([pa.array(whole_ms, mask=~known)])


def is_possible(ms: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns bool[N]: whether milliseconds since 1970 are a time that a log may have."""
    return (ms >= EARLIEST_MS) & (ms < LATEST_MS)


def plausible_unit(value: float) -> str | None:
    """Returns the unit in which a number is a moment from 1990 to 2100, or None."""
    low, high = PLAUSIBLE_SECONDS
    sizes = UNITS_PER_SECOND.items()
    return next((u for u, size in sizes if low <= value / size < high), None)


def fixed_list(values: np.ndarray, width: int | None = None) -> pa.FixedSizeListArray:
    """Returns a matrix [N, k] as a column of lists, padded with zeros (NaN) to `width`."""
    width = max(width or values.shape[1], 1)
    if values.shape[1] < width:
        fill = np.nan if values.dtype.kind == "f" else 0
        pad = np.full((len(values), width - values.shape[1]), fill, values.dtype)
        values = np.concatenate([values, pad], 1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Returns [N, width] of a column of lists, without a copy where it has one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    width = array.type.list_size
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


DAY_MS = 86_400_000


def hash_ints(values: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Returns u64[N], integers mixed by splitmix64 (Steele et al. 2014), for order and folds."""
    mixed = values.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
