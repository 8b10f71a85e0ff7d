"""Shards of prepared rows, and a teacher's predictions beside them, as numpy arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.data import storage
from mtrec_ray.data.columns import fixed_list, matrix

LISTS = ("history", "history_age", "numeric", "categorical", "labels")


SCALARS = ("row", "user", "person", "item", "time")


# The column of the weights of rows, f32[N]; data without weights does not have it.
WEIGHT = "weight"


# The column of what came of the items of a history, i32[N, H] (`outcomes.py`); data without it does
# not have it.
OUTCOME = "history_outcome"


# The column of the log's columns with several values: codes i32[N, S] of all of them, side by side,
# 0 where a row has no more values; data without such columns does not have it.
SEVERAL = "several"


# When pairs that are no rows of the log ask for their users' profiles, i64[N], in ms; rows ask at
# their own time.
MOMENT = "moment"


# Which of the profiles that users bring along such a pair has, i64[N] (`GivenProfiles.place`); only
# where some do.
GIVEN = "given"


Arrays = dict[str, np.ndarray]


# The column of a teacher's predictions, f32[N, T], beside the columns of prepared rows.
TEACHER = "teacher"


@dataclass(frozen=True)
class TrainShard:
    """A shard of training rows, and the file of its teacher's predictions (none: empty)."""

    path: str
    teacher_path: str = ""

    def read(self, start: int = 0, stop: int | None = None) -> pa.Table:
        """Returns rows start..stop, by default all, with the teacher's predictions as a column."""
        table = read_cut(self.path, start, stop)
        if not self.teacher_path:
            return table
        predictions = read_cut(self.teacher_path, start, stop).column(TEACHER)
        return table.append_column(TEACHER, predictions)


def to_arrays(table: pa.Table) -> Arrays:
    """Returns columns of samples as arrays: [N] for numbers, [N, k] for lists."""
    scalars = [*SCALARS, WEIGHT] if WEIGHT in table.column_names else SCALARS
    arrays = {c: table.column(c).to_numpy() for c in scalars}
    lists = [*LISTS, *(c for c in (OUTCOME, SEVERAL, TEACHER) if c in table.column_names)]
    return arrays | {c: matrix(table.column(c)) for c in lists}


def read_rows(paths: Sequence[str], batch_rows: int, start: int, stop: int) -> Iterator[Arrays]:
    """Yields rows start..stop of the shards laid one after another, in batches, file by file."""
    row = 0
    for path in paths:
        fs, inner = storage.filesystem(path)
        with fs.open_input_file(inner) as handle:
            file = pq.ParquetFile(handle)
            if row + file.metadata.num_rows <= start or row >= stop:
                row += file.metadata.num_rows
                continue
            for batch in file.iter_batches(batch_rows):
                low, high = max(start - row, 0), min(stop - row, batch.num_rows)
                row += batch.num_rows
                if low < high:
                    yield to_arrays(pa.Table.from_batches([batch.slice(low, high - low)]))


def read_cut(path: str, start: int = 0, stop: int | None = None) -> pa.Table:
    """Returns rows start..stop of a Parquet file; only the row groups that hold them are read."""
    fs, inner = storage.filesystem(path)
    with fs.open_input_file(inner) as handle:
        file = pq.ParquetFile(handle)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        stop = int(ends[-1]) if stop is None else stop
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        table = file.read_row_groups(list(range(first, last + 1)))
        return table.slice(start - int(ends[first]) + sizes[first], stop - start)


def concatenate(parts: list[Arrays]) -> Arrays:
    """Returns the rows of several parts (at least one), one after another."""
    if len(parts) == 1:
        return parts[0]
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def write_predictions(path: str, predicted: np.ndarray) -> None:
    """Write a teacher's predictions f32[N, T] of a shard's rows, in their order."""
    storage.write_table(path, pa.table({TEACHER: fixed_list(predicted)}))


def read_columns(
    paths: Sequence[str], columns: Sequence[str], batch_rows: int = 65_536
) -> Iterator[Arrays]:
    """Yields some columns of all rows of the shards, in batches; no other column is read."""
    for path in paths:
        fs, inner = storage.filesystem(path)
        with fs.open_input_file(inner) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(batch_rows, columns=list(columns)):
                table = pa.Table.from_batches([batch])
                yield {
                    c: matrix(table.column(c)) if c in LISTS else table.column(c).to_numpy()
                    for c in columns
                }
