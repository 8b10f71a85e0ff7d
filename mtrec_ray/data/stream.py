"""Prepared training rows by Ray Data, in the order that each rank takes them.

Rows that fit are put into the object store once, for all passes, ranks and runs of a driver.
Others are streamed: the slices that a rank will take, of all scenarios in the order of use, go
through Ray Data, `SLICES_PER_STREAM` at a time, across the ends of passes: no pass waits for the
next one to start.
"""

import heapq
import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar, cast

import pyarrow as pa
import ray.data
from ray.data import ExecutionResources

from mtrec_ray.data.order import ReadPlan, Slice
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays, TrainShard, to_arrays

# The share of the object store that the training rows of all scenarios may fill. Above it they are
# streamed, and the rows in flight fill at most as much.
OBJECT_STORE_SHARE = 0.3


# Reading tasks of a stream at a time. They ask for no CPU: training workers may hold them all.
CONCURRENCY = 2


# Slices, and blocks, of a Ray Data stream: of 65,536 rows each, a new stream starts every 134
# million rows, and neither the driver's plan nor its list of blocks grows with the run.
SLICES_PER_STREAM = 2048


Prefetched = TypeVar("Prefetched")


Ref = Any  # ray.ObjectRef[pa.Table]


class RowSource(Protocol):
    """Where workers get their rows; can be pickled."""

    @property
    def kind(self) -> str:
        """`object_store` or `stream`."""
        ...

    def read(self, wanted: Mapping[str, ReadPlan]) -> Mapping[str, Iterator[Arrays]]:
        """Returns the rows of each slice of each scenario, in order."""
        ...


def training_source(prepared: Prepared, cache: str, num_ranks: int) -> RowSource:
    """Returns training rows in the object store (`object_store`; `auto`: if they fit), or streamed.

    The streams of `num_ranks` ranks share the budget.
    """
    shards = {n: prepared.train_shards(n) for n in prepared.scenarios}
    fits = rows_in_memory(prepared) < OBJECT_STORE_SHARE * object_store_bytes()
    if cache == "object_store" or (cache == "auto" and fits):
        return StoredRows({n: store_shards(found) for n, found in shards.items()})
    return StreamedRows(shards, OBJECT_STORE_SHARE * object_store_bytes() / num_ranks)


def object_store_bytes() -> float:
    """Returns object store memory of the cluster."""
    return float(ray.cluster_resources().get("object_store_memory", 0))


def rows_in_memory(prepared: Prepared) -> int:
    """Returns the bytes of all training rows as Arrow tables, with the teacher's predictions."""
    facts, teaches = prepared.scenarios.values(), prepared.teacher_labels is not None
    return sum(f.num_rows("train") * (f.row_bytes + teaches * 4 * len(f.tasks)) for f in facts)


def store_shards(shards: list[TrainShard]) -> list[Ref]:
    """Put the rows of some shards into the object store, a block a shard; returns their refs."""
    items = [{"shard": json.dumps(asdict(shard))} for shard in shards]
    data = ray.data.from_items(items, override_num_blocks=len(items))
    tasks = ray.data.TaskPoolStrategy(min(CONCURRENCY, len(items)))
    data = data.map(read_shard, num_cpus=0, compute=tasks)
    data.context.execution_options.preserve_order = True
    return data.materialize().to_arrow_refs()


def read_shard(row: dict[str, Any]) -> dict[str, Any]:
    """Returns all rows of a shard as an Arrow stream, in a Ray task."""
    return {"payload": packed(TrainShard(**json.loads(row["shard"])).read())}


@dataclass(frozen=True)
class StoredRows:
    """Rows in the object store: a block for each shard of each scenario."""

    blocks: dict[str, list[Ref]]
    kind: str = "object_store"

    def read(self, wanted: Mapping[str, ReadPlan]) -> Mapping[str, Iterator[Arrays]]:
        """Returns the rows of each slice; the next one is read while the present one is used."""
        return {name: prefetch(self._parts(name, plan.slices)) for name, plan in wanted.items()}

    def _parts(self, name: str, slices: Iterator[Slice]) -> Iterator[Arrays]:
        for one in slices:
            cuts = [self._shard(name, i).slice(a, b - a) for i, a, b in one.segments]
            rows, order = to_arrays(pa.concat_tables(cuts).combine_chunks()), one.order
            yield {k: v[order] for k, v in rows.items()}

    def _shard(self, name: str, number: int) -> pa.Table:
        """Returns a shard's rows, in shared memory."""
        block: Any = ray.get(self.blocks[name][number])
        return unpacked(block)


@dataclass(frozen=True)
class StreamedRows:
    """Rows read from the shards while they are taken.

    Attributes:
        budget: bytes of the object store that a rank's stream may fill.
    """

    shards: dict[str, list[TrainShard]]
    budget: float
    kind: str = "stream"

    def read(self, wanted: Mapping[str, ReadPlan]) -> Mapping[str, Iterator[Arrays]]:
        """Returns the rows of each slice, out of one stream of all scenarios."""
        arriving = prefetch(self._stream(in_order_of_use(wanted)))
        waiting: dict[str, list[Arrays]] = {name: [] for name in wanted}

        def parts(name: str) -> Iterator[Arrays]:
            while True:
                while not waiting[name]:
                    other, rows = next(arriving)
                    waiting[other].append(rows)
                yield waiting[name].pop(0)

        return {name: parts(name) for name in wanted}

    def _stream(self, slices: Iterator[tuple[str, Slice]]) -> Iterator[tuple[str, Arrays]]:
        """Yields the rows of slices, a Ray Data stream after another."""
        while some := list(itertools.islice(slices, SLICES_PER_STREAM)):
            yield from self._one_stream([{"spec": self._spec(*each)} for each in some])

    def _one_stream(self, specs: list[dict[str, str]]) -> Iterator[tuple[str, Arrays]]:
        data = ray.data.from_items(specs, override_num_blocks=len(specs))
        data = data.map(read_slice, num_cpus=0, compute=ray.data.TaskPoolStrategy(CONCURRENCY))
        options = data.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(object_store_memory=self.budget)
        batches: Iterator[Any] = iter(
            data.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1)
        )
        for batch in batches:
            yield batch.column("scenario")[0].as_py(), to_arrays(unpacked(batch))

    def _spec(self, name: str, wanted: Slice) -> str:
        """Returns what a task needs to read a slice: the shards of its own segments only."""
        shards = {str(i): asdict(self.shards[name][i]) for i, _, _ in wanted.segments}
        return json.dumps({"scenario": name, "shards": shards, **wanted.spec()})


def read_slice(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the rows of a slice as an Arrow stream, in a Ray task."""
    spec = json.loads(row["spec"])
    wanted = Slice.of(spec)
    cuts = [TrainShard(**spec["shards"][str(i)]).read(a, b) for i, a, b in wanted.segments]
    table = pa.concat_tables(cuts).take(wanted.order).combine_chunks()
    return {"scenario": spec["scenario"], "payload": packed(table)}


def packed(table: pa.Table) -> bytes:
    """Returns a table as an Arrow stream: one value, which Ray Data neither splits nor joins."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpacked(block: pa.Table) -> pa.Table:
    """Returns the table in a block's only row, without a copy."""
    return pa.ipc.open_stream(block.column("payload")[0].as_buffer()).read_all()


def in_order_of_use(wanted: Mapping[str, ReadPlan]) -> Iterator[tuple[str, Slice]]:
    """Yields the slices of all scenarios up to the last batch, in the order of their use."""

    def by_batch(name: str, plan: ReadPlan) -> Iterator[tuple[float, str, Slice]]:
        before = 0
        for one in plan.slices:
            if before >= plan.num_rows:
                return
            yield before / plan.rows_per_batch, name, one
            before += len(one)

    merged = heapq.merge(*itertools.starmap(by_batch, wanted.items()), key=lambda x: x[:2])
    return ((name, one) for _, name, one in merged)


def prefetch(items: Iterator[Prefetched]) -> Iterator[Prefetched]:
    """Yields the same items; a thread makes the next one while the present one is used."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield cast("Prefetched", item)
