"""A shuffle of rows between Ray tasks: each hands a table to every partition of the next ones.

A task does the work on its partition and cuts the result for the partitions that follow; the pieces
lie in the object store (which spills to disk) until the task of their partition reads them there.
`groupby` of Ray Data would sort the rows of a partition and copy them on each of its steps; and it
hashes the numbers of partitions, so that one task may get several of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mtrec_ray.data.arrays import Ints

# By task, by partition: the rows that the task has for the partition.
Pieces = list[list["ray.ObjectRef[pa.Table]"]]


# Rows to the number of a partition for each, i64[N].
Numbers = Callable[[pa.Table], Ints]


# A partition's number, its rows, and what else is known of its keys, to what becomes of the rows.
Work = Callable[[int, pa.Table, Any], pa.Table]


# A partition's number and its rows, and further ones, to whatever is wanted at the end.
LastWork = Callable[..., Any]


def begin(tasks: Sequence[Callable[[], Iterable[pa.Table]]], numbers: Numbers, k: int) -> Pieces:
    """Returns rows that tasks read, for k partitions."""
    return [_submit(_read, k, task, numbers, k) for task in tasks]


def go_on(
    pieces: Pieces, work: Work, numbers: Numbers, k: int, known: Mapping[int, "ray.ObjectRef[Any]"]
) -> Pieces:
    """Do the work on every partition; returns the rows that it makes, for k partitions.

    `known` are handles of what is known of the keys of some partitions; of others it is None.
    """
    return [
        _submit(_work, k, work, numbers, k, number, known.get(number), *own)
        for number, own in enumerate(zip(*pieces, strict=True))
    ]


def look_at(
    pieces: Pieces, work: Callable[[pa.Table], tuple[Any, Any]], partitions: Iterable[int]
) -> tuple[list["ray.ObjectRef[Any]"], list["ray.ObjectRef[Any]"]]:
    """Returns handles of the two things that the work returns of each of some partitions."""
    task = ray.remote(_look).options(num_returns=2)
    handles: Any = [task.remote(work, *(own[i] for own in pieces)) for i in partitions]
    return [first for first, _ in handles], [second for _, second in handles]


def end(pieces: Pieces, work: LastWork, *more: Pieces) -> list["ray.ObjectRef[Any]"]:
    """Do the work on every partition; returns handles of what it returns, None without rows.

    `more` are further rows for the same partitions, of which the work takes a table each.
    """
    counts = [len(tasks) for tasks in (pieces, *more)]
    return [
        ray.remote(_finish).remote(work, number, counts, *own)
        for number, own in enumerate(zip(*chain(pieces, *more), strict=True))
    ]


def cut(table: pa.Table, number: Ints, k: int) -> list[pa.Table]:
    """Returns the rows of each of k partitions in the order given; `number` i64[N] is below k."""
    table = table.combine_chunks()
    order = np.argsort(number.astype(np.int32), kind="stable")
    bounds = np.searchsorted(number[order], np.arange(k + 1))
    return [table.take(pa.array(order[a:b])) for a, b in pairwise(bounds)]


def _submit(function: Callable[..., Any], k: int, *args: Any) -> list["ray.ObjectRef[pa.Table]"]:
    handles: Any = ray.remote(function).options(num_returns=k).remote(*args)
    return handles if k > 1 else [handles]


def _read(task: Callable[[], Iterable[pa.Table]], numbers: Numbers, k: int) -> Any:
    parts: list[list[pa.Table]] = [[] for _ in range(k)]
    for table in task():
        for part, piece in zip(parts, cut(table, numbers(table), k), strict=True):
            part.append(piece)
    return _returned([pa.concat_tables(part) for part in parts])


def _work(work: Work, numbers: Numbers, k: int, number: int, known: Any, *pieces: pa.Table) -> Any:
    table = _joined(pieces)
    if table.num_rows:
        table = work(number, table, known)
    return _returned(cut(table, numbers(table), k))


def _look(work: Callable[[pa.Table], tuple[Any, Any]], *pieces: pa.Table) -> tuple[Any, Any]:
    return work(_joined(pieces))


def _finish(work: LastWork, number: int, counts: Sequence[int], *pieces: pa.Table) -> Any:
    bounds = pairwise(accumulate(counts, initial=0))
    table, *more = [_joined(pieces[a:b]) for a, b in bounds]
    return work(number, table, *more) if table.num_rows else None


def _joined(pieces: Sequence[pa.Table]) -> pa.Table:
    """Returns the rows of the pieces; those without rows may lack columns that work adds."""
    return pa.concat_tables([piece for piece in pieces if piece.num_rows] or pieces[:1])


def _returned(tables: list[pa.Table]) -> Any:
    """Returns the tables as a task must that returns as many values."""
    return tables if len(tables) > 1 else tables[0]
