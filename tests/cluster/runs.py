"""A small sample world, and runs on it that tests share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.data.preparing import partitions
from mtrec_ray.data.sample_world import write_sample_world
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.run_folder import RunFolder
from mtrec_ray.stages.train import run_train
from tests.cluster.logs import ENCODER, Logs, logs_project, scenario_tree, write_logs

# An epoch must take some seconds: in time to end a process within it.
EPOCHS, ROWS_PER_EPOCH, BATCH = 3, 25_600, 256


@dataclass(frozen=True)
class Trained:
    """A project, the storage of its run, and what the train stage returned."""

    project: Project
    storage: Path
    summary: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.storage / self.project.run.name

    @property
    def prepared(self) -> Prepared:
        """The run's prepared data."""
        return load_prepared(prepared_folder(self.project, str(self.storage)))


def prepared_folder(project: Project, storage: str) -> str:
    """Returns where a run's prepared data lies."""
    return RunFolder.of(project, storage).prepare.folder


def say_nothing(text: str) -> None:
    """Tell nobody."""


def world_tree(root: Path) -> dict[str, Any]:
    """Two scenarios of the sample world and a small model over a frozen encoder."""
    shop = scenario_tree(
        "shop",
        split={"time": ["2025-03-12", "2025-03-22"]},
        tasks={"click": {"kind": "binary"}, "buy": {"kind": "binary", "given": "click"}},
        users="people",
        weight=2.0,
    )
    video = scenario_tree(
        "video",
        split={"fractions": [0.7, 0.1, 0.2]},
        history={"of": "like", "last": 5},
        tasks={"like": {"kind": "binary"}, "rating": {"kind": "regression", "weight": 0.5}},
        users="people",
    )
    encoder = {"source": ENCODER, "max_tokens": 24, "trainable": "none"}
    ids = {"user_ids": True, "item_ids": True}
    return {
        "root": str(root),
        "scenarios": {"shop": shop, "video": video},
        "model": {"encoder": encoder, "width": 16, "hidden": [32, 16], "head_hidden": 8, **ids},
        "training": {
            "epochs": EPOCHS,
            "rows_per_epoch": ROWS_PER_EPOCH,
            "batch_size": BATCH,
            "alpha": 0.5,
            "lr": 0.003,
            "patience": 9,
        },
        "run": {"name": "world", "num_workers": 2},
    }


def world_project(root: Path) -> Project:
    """The project of `world_tree`; writes its world below `root`."""
    write_sample_world(str(root), seed=7, users=200, items=40, events=2000)
    return parse_project(world_tree(root))


def prepare_in_partitions(project: Project, storage: Path, rows_per_partition: int) -> None:
    """Prepare a project in partitions of about so many rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "ROWS_PER_PARTITION", rows_per_partition)
        run_prepare(project, str(storage), say_nothing)


def prepare_again(
    factory: pytest.TempPathFactory, logs: Logs, row_group_size: int, rows_per_partition: int
) -> tuple[Project, Path]:
    """The logs written and prepared once more, in other pieces."""
    root, folder = factory.mktemp("logs"), factory.mktemp("prepared")
    write_logs(root, logs, row_group_size)
    project = parse_project(logs_project(root))
    prepare_in_partitions(project, folder, rows_per_partition)
    return project, folder


def train_world(project: Project, storage: Path) -> Trained:
    """The project prepared, in three partitions a scenario, and trained."""
    prepare_in_partitions(project, storage, 700)
    return Trained(project, storage, run_train(project, str(storage), say_nothing))


def changed(project: Project, **sections: dict[str, Any]) -> Project:
    """The project with some fields of some sections changed."""
    tree = project.dump()
    return parse_project(tree | {name: tree[name] | fields for name, fields in sections.items()})


def numbers(tree: Any) -> Iterator[float]:
    """All numbers of nested mappings and lists."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from numbers(value)
    elif isinstance(tree, int | float):
        yield float(tree)
