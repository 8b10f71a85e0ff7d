"""Prepared training rows by Ray Data, in the order that each rank takes them.

Rows that fit are put into the object store once, for all passes, ranks and runs of a driver.
Others are streamed: the pieces that a rank will take, of all scenarios in the order of need, are
one Ray Data stream, from the present piece to the last of the run, so that no pass waits for the
start of the next.
"""

import heapq
import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ExecutionResources

from mtrec_ray.data import storage
from mtrec_ray.data.order import Piece
from mtrec_ray.data.shards import Arrays, Prepared, Wanted, to_arrays

# What of the object store the training rows of all scenarios may fill; above, they are streamed,
# and what is on its way fills at most as much.
OBJECT_STORE_SHARE = 0.3

T = TypeVar("T")
Ref = Any  # ray.ObjectRef[pa.Table]


class Source(Protocol):
    """Where workers get their rows; can be pickled."""

    @property
    def kind(self) -> str:
        """`object_store` or `stream`."""
        ...

    def read(self, wanted: Mapping[str, Wanted]) -> Mapping[str, Iterator[Arrays]]:
        """The rows of each piece of each scenario, in order."""
        ...


def object_store_bytes() -> float:
    """Object store memory of the cluster."""
    return float(ray.cluster_resources().get("object_store_memory", 0))


def training_source(prepared: Prepared, cache: str, num_workers: int) -> Source:
    """Training rows in the object store (`object_store`, or `auto` where they fit), or streamed."""
    paths = {n: prepared.shard_paths(n, "train") for n in prepared.scenarios}
    budget = OBJECT_STORE_SHARE * object_store_bytes()
    if cache == "object_store" or (cache == "auto" and estimated_bytes(paths) < budget):
        return StoredRows({n: stored(found) for n, found in paths.items()})
    return StreamedRows(paths, budget / num_workers)


def estimated_bytes(paths: Mapping[str, list[str]]) -> float:
    """Size of all rows in memory, as Ray Data estimates it."""
    return sum(float(ray.data.read_parquet(found).size_bytes() or 0) for found in paths.values())


def stored(paths: list[str]) -> list[tuple[Ref, int]]:
    """Blocks of the rows of some shards, in their order, with their numbers of rows."""
    data = ray.data.read_parquet(paths, override_num_blocks=len(paths))
    data.context.execution_options.preserve_order = True
    refs = data.materialize().to_arrow_refs()
    count = ray.remote(num_cpus=0)(number_of_rows)
    return list(zip(refs, ray.get([count.remote(ref) for ref in refs]), strict=True))


def number_of_rows(table: pa.Table) -> int:
    """Rows of a block, in a Ray task."""
    return table.num_rows


@dataclass(frozen=True)
class StoredRows:
    """Rows in the object store: blocks of each scenario, one after another."""

    blocks: dict[str, list[tuple[Ref, int]]]
    kind: str = "object_store"

    def read(self, wanted: Mapping[str, Wanted]) -> Mapping[str, Iterator[Arrays]]:
        """The rows of each piece; the next one is made while the present one is taken."""
        return {name: ahead(self._parts(name, own)) for name, own in wanted.items()}

    def _parts(self, name: str, wanted: Wanted) -> Iterator[Arrays]:
        bases = np.concatenate([[0], np.cumsum(wanted.shard_rows)])
        for piece in wanted.pieces:
            cuts = [
                cut
                for shard, start, stop in piece.segments
                for cut in self._cut(name, int(bases[shard]) + start, int(bases[shard]) + stop)
            ]
            yield permuted(cuts, piece)

    def _cut(self, name: str, start: int, stop: int) -> Iterator[pa.Table]:
        """Rows start..stop of the blocks laid one after another."""
        at = 0
        for ref, num_rows in self.blocks[name]:
            low, high = max(start - at, 0), min(stop - at, num_rows)
            if low < high:
                table: Any = ray.get(ref)
                yield table.slice(low, high - low)
            at += num_rows


@dataclass(frozen=True)
class StreamedRows:
    """Rows read from the shards while they are taken, within `budget` bytes a rank."""

    paths: dict[str, list[str]]
    budget: float
    kind: str = "stream"

    def read(self, wanted: Mapping[str, Wanted]) -> Mapping[str, Iterator[Arrays]]:
        """The rows of each piece, out of one stream of all of them."""
        arriving = ahead(self._stream(wanted))
        waiting: dict[str, list[Arrays]] = {name: [] for name in wanted}

        def parts(name: str) -> Iterator[Arrays]:
            while True:
                while not waiting[name]:
                    other, rows = next(arriving)
                    waiting[other].append(rows)
                yield waiting[name].pop(0)

        return {name: parts(name) for name in wanted}

    def _stream(self, wanted: Mapping[str, Wanted]) -> Iterator[tuple[str, Arrays]]:
        specs = [
            {"spec": json.dumps({"scenario": name, "paths": self.paths[name], **piece.spec()})}
            for name, piece in by_need(wanted)
        ]
        data = ray.data.from_items(specs, override_num_blocks=len(specs)).map(read_piece)
        options = data.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(object_store_memory=self.budget)
        batches: Iterator[Any] = iter(
            data.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1)
        )
        for batch in batches:
            name = batch.column("scenario")[0].as_py()
            payload = batch.column("payload")[0].as_buffer()
            yield name, to_arrays(pa.ipc.open_stream(payload).read_all())


def read_piece(row: dict[str, Any]) -> dict[str, Any]:
    """The rows of a piece as an Arrow stream, in a Ray task."""
    spec = json.loads(row["spec"])
    piece = Piece.of(spec)
    cuts = [read_cut(spec["paths"][shard], a, b) for shard, a, b in piece.segments]
    table = pa.concat_tables(cuts).take(piece.order).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"scenario": spec["scenario"], "payload": sink.getvalue().to_pybytes()}


def read_cut(path: str, start: int, stop: int) -> pa.Table:
    """Rows start..stop of a Parquet file; only the row groups that hold them are read."""
    fs, inner = storage.filesystem(path)
    with fs.open_input_file(inner) as handle:
        file = pq.ParquetFile(handle)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        table = file.read_row_groups(list(range(first, last + 1)))
        return table.slice(start - int(ends[first]) + sizes[first], stop - start)


def by_need(wanted: Mapping[str, Wanted]) -> Iterator[tuple[str, Piece]]:
    """The pieces of all scenarios up to the last batch, in the order in which batches need them."""

    def needed(name: str, own: Wanted) -> Iterator[tuple[float, str, Piece]]:
        before = 0
        for piece in own.pieces:
            if before >= own.num_rows:
                return
            yield before / own.rows_per_batch, name, piece
            before += len(piece)

    merged = heapq.merge(*itertools.starmap(needed, wanted.items()), key=lambda x: x[:2])
    return ((name, piece) for _, name, piece in merged)


def permuted(cuts: list[pa.Table], piece: Piece) -> Arrays:
    """The rows of a piece, from the tables of its segments."""
    rows = to_arrays(pa.concat_tables(cuts).combine_chunks())
    order = piece.order
    return {k: v[order] for k, v in rows.items()}


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next of which is made in a thread while the present one is used."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield cast("T", item)
