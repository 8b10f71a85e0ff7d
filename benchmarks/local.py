"""Training in this process, without Ray: many models on the same prepared rows, side by side."""

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.order import Slice
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays, concatenate, to_arrays
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.training import checkpoint, loop
from mtrec_ray.training.batches import OpenRows
from mtrec_ray.training.build import build_model, cache_folder
from mtrec_ray.training.validation import score_split

Scores = dict[str, np.ndarray]


class LocalContext:
    """The loop's surroundings in this process: rows in memory, the best model in a folder."""

    device = torch.device("cpu")

    def __init__(self, prepared: Prepared, folder: Path | None = None) -> None:
        self.prepared, self.folder = prepared, folder
        self.rows: dict[str, list[Arrays]] = {}
        self.best = float("inf")

    @property
    def open_rows(self) -> OpenRows:
        """Training rows from memory."""
        return lambda wanted: {n: self._parts(n, own.slices) for n, own in wanted.items()}

    def _parts(self, scenario: str, slices: Iterator[Slice]) -> Iterator[Arrays]:
        shards = self.shards(scenario)
        for one in slices:
            cuts = [{k: v[a:b] for k, v in shards[i].items()} for i, a, b in one.segments]
            yield {k: v[one.order] for k, v in concatenate(cuts).items()}

    def shards(self, scenario: str) -> list[Arrays]:
        """The scenario's training rows, shard by shard, read once."""
        if scenario not in self.rows:
            shards = self.prepared.train_shards(scenario)
            self.rows[scenario] = [to_arrays(shard.read().combine_chunks()) for shard in shards]
        return self.rows[scenario]

    def preempted(self) -> bool:
        """Never."""
        return False

    def note_start(self, step: int) -> int:
        """Nothing was done before."""
        return 0

    def note_step(self, step: int) -> None:
        """Nothing is noted."""

    def report(self, metrics: dict[str, Any], folder: Path | None) -> None:
        """Keep the weights of the best epoch."""
        if self.folder and folder and metrics["joint_score"] < self.best:
            self.best = metrics["joint_score"]
            shutil.copytree(folder, self.folder, dirs_exist_ok=True)

    def show_curve(self, curve: list[dict[str, Any]]) -> None:
        """Nobody is shown."""

    def checkpoint_folder(self) -> Path | None:
        """There is nothing to go on from."""
        return None

    def log(self, text: str) -> None:
        """Nobody is told."""


def only(prepared: Prepared, names: Sequence[str]) -> Prepared:
    """The prepared data of some scenarios."""
    return replace(prepared, scenarios={n: prepared.scenarios[n] for n in names})


def variant(base: Project, names: Sequence[str], **sections: dict[str, Any]) -> Project:
    """The project of some scenarios, with fields of `model` and `training` changed."""
    tree = base.dump()
    tree["scenarios"] = {n: tree["scenarios"][n] for n in names}
    tree["evaluation"]["weights"] = {}
    for section, fields in sections.items():
        encoder = tree["model"]["encoder"] | fields.get("encoder", {})
        tree[section] |= fields
        if section == "model":
            tree["model"]["encoder"] = encoder
    return parse_project(tree)


@dataclass
class Fit:
    """A training: scores of valid and test by `SPLIT.SCENARIO`, its curve, seconds of training."""

    scores: dict[str, np.ndarray]
    curve: list[dict[str, Any]]
    seconds: float


def fit(project: Project, prepared: Prepared, splits: Sequence[str] = ("valid", "test")) -> Fit:
    """Train in this process with one thread; scores f32[N, T] are those of the best epoch."""
    torch.set_num_threads(1)
    mine = only(prepared, list(project.scenarios))
    if not project.training.teacher.share:
        mine = replace(mine, teacher_labels=None)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        summary = loop.train(project, mine, LocalContext(mine, Path(folder)))
        seconds = time.monotonic() - started
        if not splits:
            return Fit({}, summary["curve"], seconds)
        precision = project.training.precision
        model, vectors = build_model(project, mine, LocalContext.device, precision)
        checkpoint.load_model(Path(folder), model)
    vectors.compute_frozen(cache_folder(project))
    vectors.refresh()
    scores = {
        f"{split}.{name}": score_split(model, vectors, mine, name, split)[2]
        for split in splits
        for name in mine.scenarios
    }
    return Fit(scores, summary["curve"], seconds)


def side_by_side(calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    """Calls in processes of their own, as many at once as there are cores."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(multiprocessing.cpu_count(), maxtasksperchild=1) as pool:
        pending = [pool.apply_async(function, args) for function, args in calls]
        for one in pending:
            one.get()


def prepare_here(project: Project, storage: str, teach: bool) -> Prepared:
    """Prepare the data, and fit a teacher on it, in this process."""
    from mtrec_ray.stages.prepare import open_prepared, run_prepare
    from mtrec_ray.stages.run_folder import RunFolder
    from mtrec_ray.stages.teacher import add_teacher_labels

    run_prepare(project, storage, teller())
    prepared = open_prepared(project, RunFolder.of(project, storage))
    folder = files.join(storage, project.run.name)
    return add_teacher_labels(project, prepared, folder, teller()) if teach else prepared


def prepared_by_process(project: Project, storage: str, *, teach: bool = False) -> Prepared:
    """Prepare the data in a process that ends, and Ray with it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(prepare_here, (project, storage, teach))
        pool.close()
        pool.join()  # or it would be killed, and Ray's processes find that out later
    return found
