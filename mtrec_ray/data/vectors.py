"""Ready vectors of items or users, such as embeddings of images: as they come, and as they lie.

Prepared vectors are standardised: less the mean of the rows of training, over one scale for all
numbers of the column. Embeddings of images share a large mean, by which all of their cosines are
near 1; without it cosines tell alike from unlike, and one scale turns no direction. They lie beside
the prepared table as a plain array f16, NaN where a row has none, that processes map into memory.

Letters: n rows of a table, b of a block, D length of a column's vectors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.data.columns import is_one_of
from mtrec_ray.data.mapped_arrays import write_array
from mtrec_ray.project.base import split_query

# The prefix of prepared columns that say whether each row has a vector.
VECTORS = "vectors."

BLOCK_ROWS = 16_384  # that are turned into an array at a time
LARGEST = 1_000.0  # standard deviations; f16 ends at 65,504

Float16s = NDArray[np.float16]


@dataclass(frozen=True)
class VectorScale:
    """The mean [D] of the rows of training, and their root mean square distance a number."""

    mean: list[float]
    scale: float

    def of(self, block: Float32s) -> Float16s:
        """Returns f16[b, D] of vectors f32[b, D], NaN where there is none."""
        standard = (block - np.asarray(self.mean, np.float32)) / np.float32(self.scale)
        return np.clip(standard, -LARGEST, LARGEST).astype(np.float16)


def vector_lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns lists of numbers of any type as those of f32; beyond their range infinite."""
    return pc.cast(column, pa.large_list(pa.float32()), safe=False)


def blank_vectors(column: pa.ChunkedArray, values: Sequence[str | float]) -> pa.ChunkedArray:
    """Returns a column with null in place of vectors all of whose numbers are some values.

    So a file may say that there is none: by zeros. A vector with a zero among others is one.
    """
    chunks = []
    for chunk in column.chunks:
        lengths = np.maximum(vector_lengths(pa.chunked_array([chunk])), 0)
        hits = is_one_of(pa.chunked_array([chunk.flatten()]), values).to_numpy()
        ends = np.cumsum(lengths)
        so_far = np.concatenate([[0], np.cumsum(hits)])
        blank = (so_far[ends] - so_far[ends - lengths] == lengths) & (lengths > 0)
        chunks.append(pc.if_else(pa.array(blank), pa.scalar(None, chunk.type), chunk))  # pyright: ignore[reportAttributeAccessIssue]
    return pa.chunked_array(chunks, column.type)


def vector_lengths(column: pa.ChunkedArray) -> Ints:
    """Returns i64[n]: numbers of each vector, -1 for null."""
    return pc.fill_null(pc.list_value_length(column), -1).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]


def vector_blocks(column: pa.ChunkedArray, length: int | None = None) -> Iterator[Float32s]:
    """Yields the vectors f32[b, D] of some rows after another, of a column with one length D.

    `length`: D, which rows without any vector do not tell. All numbers are NaN of a row without a
    vector, and of one with a number that is not finite.
    """
    length = length or int(vector_lengths(column).max(initial=1))
    for chunk in column.chunks:
        for start in range(0, len(chunk), BLOCK_ROWS):
            rows = chunk.slice(start, BLOCK_ROWS)
            block = np.full((len(rows), length), np.nan, np.float32)
            given = rows.is_valid().to_numpy(zero_copy_only=False)
            block[given] = (
                rows.flatten().to_numpy(zero_copy_only=False).reshape(given.sum(), length)
            )
            block[~np.isfinite(block).all(1)] = np.nan
            yield block


def has_vector(column: pa.ChunkedArray) -> Bools:
    """Returns bool[n]: whether each row has a vector of finite numbers."""
    found = [np.isfinite(block[:, 0]) for block in vector_blocks(column)]
    return np.concatenate([np.zeros(0, bool), *found])


def fit_scale(column: pa.ChunkedArray, train: Bools) -> VectorScale | None:
    """Returns mean and scale of the vectors of `train` bool[n]; None where it has none.

    Vectors that are all the same have scale 1.
    """
    number, place = 0, 0
    total = squares = np.zeros(1)
    for block in vector_blocks(column):
        own = block[train[place : place + len(block)]].astype(np.float64)
        own = own[np.isfinite(own).all(1)]
        number, place = number + len(own), place + len(block)
        total, squares = total + own.sum(0), squares + (own**2).sum(0)
    if not number:
        return None
    mean, square = total / number, float((squares / number).mean())
    variance = square - float((mean**2).mean())
    scale = variance**0.5 if variance > 1e-12 * square else 1.0
    return VectorScale(mean.tolist(), scale)


def vectors_path(table: str, number: int) -> str:
    """Returns the file with the vectors of a prepared table's column, the first of which is 0."""
    path, query = split_query(table)
    return f"{path.removesuffix('.parquet')}.vectors.{number}.npy{query}"


def write_vectors(path: str, column: pa.ChunkedArray, scale: VectorScale) -> None:
    """Write a column's vectors, standardised, as an array of NumPy; a block at a time."""
    shape = (len(column), len(scale.mean))
    blocks = (scale.of(block) for block in vector_blocks(column, len(scale.mean)))
    write_array(path, np.float16, shape, blocks)
