"""How fast do rows come from the shards into composed batches, and how long does training wait?

    python -m benchmarks.ingest [--quick] [--out FILE] [--set FIELD=VALUE]

On a generated world (three scenarios) that the pipeline prepared, one consumer takes batches of all
scenarios over several passes, without a model: from the object store (`object_store.*`, the default
and the figures without a prefix), streamed (`stream.*`), and from two plain
`torch.utils.data.DataLoader`s over the same Parquet files, one process a scenario each:

    dataloader_rows_per_s      an IterableDataset that shuffles whole shards as arrays
    dataloader_each_rows_per_s a Dataset of single rows, batched by the DataLoader's own sampler

    first_batch_s              from nothing to the first batch, reading into the store included
    pause_between_passes_s     the longest batch at the end of a pass, less the median batch
    data_wait_share            of the time of a training epoch with MiniLM (its top layer learns),
                               spent by rank 0 of two Ray Train workers on waiting for rows
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer
import yaml
from torch.utils.data import DataLoader, Dataset, IterableDataset

from benchmarks.common import TOP, write_result
from benchmarks.local import prepared_by_process
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays, TrainShard, to_arrays
from mtrec_ray.data.stream import training_source
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect
from mtrec_ray.training.batches import BatchComposer, quotas

KINDS = ("object_store", "stream")
PASSES, BATCH, TRAINED = 3, 2048, 100_000
FULL = {"users": 20_000, "items": 2_000, "events": 400_000}
QUICK = {"users": 4_000, "items": 500, "events": 60_000}


def project_of(sizes: dict[str, int], overrides: list[str]) -> Project:
    """The quickstart's project with a larger world."""
    tree = load_project(TOP / "jobs" / "quickstart.yaml", overrides).dump()
    tree["sample_world"] |= sizes
    tree["run"] |= {"name": "ingest"}
    return parse_project(tree)


# --- batches without a model -----------------------------------------------------------------


def timed(batches: Iterator[Any], number: int) -> np.ndarray:
    """f64[number]: the seconds at which each batch had come, from the start."""
    started = time.monotonic()
    found = []
    for _ in range(number):
        next(batches)
        found.append(time.monotonic() - started)
    return np.array(found)


def of_feed(prepared: Prepared, kind: str, own: dict[str, int], number: int) -> Iterator[Any]:
    """Composed batches as a training worker takes them, from nothing."""
    source = training_source(prepared, kind, 1)
    composer = BatchComposer(prepared, own, 0, (0, 1))
    composer.open(source.read, number)
    while True:
        yield composer.next_batch()


def pause(prepared: Prepared, own: dict[str, int], came: np.ndarray) -> float:
    """The longest batch in which a scenario's pass ends, less the median batch."""
    each = np.diff(came)
    ends = [
        step - 1
        for name, quota in own.items()
        for number in range(1, PASSES + 1)
        if 0 < (step := prepared.scenarios[name].num_rows("train") * number // quota) <= len(each)
    ]
    return float(max(each[step] for step in ends) - np.median(each))


# --- the plain way ---------------------------------------------------------------------------


class ShardRows(IterableDataset[Arrays]):
    """Batches of a scenario: shards in a random order, rows in a random order within each."""

    def __init__(self, shards: list[TrainShard], batch_rows: int) -> None:
        self.shards, self.batch_rows = shards, batch_rows

    def __iter__(self) -> Iterator[Arrays]:
        """Pass after pass."""
        rng = np.random.default_rng(0)
        while True:
            for i in rng.permutation(len(self.shards)):
                rows = to_arrays(self.shards[i].read().combine_chunks())
                order = rng.permutation(len(rows["row"]))
                for k in range(0, len(order) - self.batch_rows + 1, self.batch_rows):
                    own = order[k : k + self.batch_rows]
                    yield {name: v[own] for name, v in rows.items()}


class SingleRows(Dataset[Arrays]):
    """The rows of a scenario in memory, one by one."""

    def __init__(self, shards: list[TrainShard]) -> None:
        parts = [to_arrays(s.read().combine_chunks()) for s in shards]
        self.rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def __len__(self) -> int:
        return len(self.rows["row"])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A row."""
        return {k: v[number] for k, v in self.rows.items()}


def of_loaders(make: Callable[[str, int], DataLoader[Any]], own: dict[str, int]) -> Iterator[Any]:
    """Composed batches of a DataLoader a scenario; one that ends is started again."""

    def endless(name: str, quota: int) -> Iterator[Any]:
        loader = make(name, quota)
        return itertools.chain.from_iterable(itertools.repeat(loader))

    parts = {name: endless(name, quota) for name, quota in own.items()}
    while True:
        yield {name: next(part) for name, part in parts.items()}


def shard_loader(prepared: Prepared) -> Callable[[str, int], DataLoader[Any]]:
    """Makes a loader of whole shards."""
    return lambda name, quota: DataLoader(
        ShardRows(prepared.train_shards(name), quota), batch_size=None, num_workers=1
    )


def row_loader(prepared: Prepared) -> Callable[[str, int], DataLoader[Any]]:
    """Makes a loader of single rows."""
    return lambda name, quota: DataLoader(
        SingleRows(prepared.train_shards(name)), quota, shuffle=True, num_workers=1, drop_last=True
    )


# --- training --------------------------------------------------------------------------------


def wait_share(project: Project, kind: str, storage: str, sources: str) -> float:
    """Share of waiting in the second of two epochs of the train job on the prepared data."""
    tree = project.dump()
    tree["run"] |= {"name": kind, "cache": kind}
    tree["training"] |= {"epochs": 2, "rows_per_epoch": TRAINED}
    config = Path(storage) / f"{kind}.yaml"
    config.write_text(yaml.safe_dump(tree))
    (Path(storage) / kind).mkdir()
    (Path(storage) / kind / "prepared").symlink_to(sources)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", "--config", str(config), "--storage", storage],
        cwd=TOP, env=os.environ | {"PYTHONPATH": str(TOP)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    speed = json.loads(done.stdout.splitlines()[-1])["speed"]
    print(f"{kind}: {speed}", flush=True)
    return speed[-1]["data_wait_share"]


# --- the benchmark ---------------------------------------------------------------------------


def figures_of(project: Project, prepared: Prepared) -> dict[str, float]:
    """Everything but training."""
    rows = {n: f.num_rows("train") for n, f in prepared.scenarios.items()}
    own = quotas(rows, BATCH, 1.0)
    number = PASSES * sum(rows.values()) // BATCH
    steady = slice(number // 4, None)
    found: dict[str, float] = {"rows": sum(rows.values())}
    connect(project.run)
    for kind in KINDS:
        came = timed(of_feed(prepared, kind, own, number), number)
        found[f"{kind}.rows_per_s"] = BATCH / float(np.diff(came[steady]).mean())
        found[f"{kind}.first_batch_s"] = float(came[0])
        found[f"{kind}.pause_between_passes_s"] = pause(prepared, own, came)
        print(kind, found, flush=True)
    ray.shutdown()
    for name, make, batches in (
        ("dataloader", shard_loader, number),
        ("dataloader_each", row_loader, max(number // 6, 20)),
    ):
        came = timed(of_loaders(make(prepared), own), batches)
        found[f"{name}_rows_per_s"] = BATCH / float(np.diff(came[batches // 4 :]).mean())
        found[f"{name}_first_batch_s"] = float(came[0])
        print(name, found, flush=True)
    return found


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rows.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Measure both ways to feed against plain loaders."""
    project = project_of(QUICK if quick else FULL, override or [])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as storage:
        prepared = replace(prepared_by_process(project, storage), teacher_labels=None)
        figures = figures_of(project, prepared)
        for kind in KINDS:
            share = wait_share(project, kind, storage, prepared.folder)
            figures[f"{kind}.data_wait_share"] = share
    for key in ("rows_per_s", "first_batch_s", "pause_between_passes_s", "data_wait_share"):
        figures[key] = figures[f"object_store.{key}"]
    for kind in KINDS:
        ratio = figures[f"{kind}.rows_per_s"] / figures["dataloader_rows_per_s"]
        figures[f"{kind}.over_dataloader"] = ratio
    write_result("ingest", figures, out)


if __name__ == "__main__":
    typer.run(main)
