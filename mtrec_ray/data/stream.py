"""Prepared training rows as Ray Data streams, one a scenario."""

from collections.abc import Callable, Iterator

import ray
import ray.data
import ray.train
from ray.train import DataConfig

from mtrec_ray.data.shards import Arrays, Prepared, to_arrays

# What of the object store the training rows of all scenarios may fill; above, they are streamed.
OBJECT_STORE_SHARE = 0.3
READ_ROWS = 16_384

Opener = Callable[[], ray.data.Dataset]


def object_store_bytes() -> float:
    """Object store memory of the cluster."""
    return float(ray.cluster_resources().get("object_store_memory", 0))


def training_datasets(prepared: Prepared) -> dict[str, ray.data.Dataset | Opener]:
    """A way to open each scenario's training rows; called whenever a worker group starts.

    Rows that fit are put into the object store once and shared by all passes: starting read
    tasks anew costs seconds a pass, whatever the size.
    """
    opened = {n: open_training(prepared.shard_paths(n, "train")) for n in prepared.scenarios}
    total = sum(d.size_bytes() or 0 for d in opened.values())
    if total < OBJECT_STORE_SHARE * object_store_bytes():
        opened = {n: d.materialize() for n, d in opened.items()}
    return {n: _opener(d) for n, d in opened.items()}


def open_training(paths: list[str]) -> ray.data.Dataset:
    """The rows of some shards in their order, a block a shard: the same in every run of a seed.

    Ray Data takes blocks as they are finished, and as many as there are CPUs, unless told.
    """
    data = ray.data.read_parquet(paths, override_num_blocks=len(paths))
    data.context.execution_options.preserve_order = True
    return data


def _opener(dataset: ray.data.Dataset) -> Opener:
    return lambda: dataset


def data_config() -> DataConfig:
    """Blocks in a fixed order, split equally over the ranks."""
    options = ray.data.ExecutionOptions(preserve_order=True)
    return DataConfig(execution_options=options)


def open_pass(name: str) -> Iterator[Arrays]:
    """One pass over this worker's training rows of a scenario, inside a Ray Train worker."""
    shard = ray.train.get_dataset_shard(name)
    assert shard is not None
    for batch in shard.iter_batches(
        batch_size=READ_ROWS, batch_format="pyarrow", prefetch_batches=1
    ):
        yield to_arrays(batch)
