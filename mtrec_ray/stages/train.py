"""The train stage: joint training by Ray Train workers. The only place where a trainer is built."""

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import ray.train.torch
import torch
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer

from mtrec_ray.config import parse_project
from mtrec_ray.data import storage
from mtrec_ray.data.prepare import Say, refuse
from mtrec_ray.data.shards import Prepared, load_prepared
from mtrec_ray.data.stream import Source, training_source
from mtrec_ray.learning import loop
from mtrec_ray.learning.adapt import Start
from mtrec_ray.learning.feed import Reader
from mtrec_ray.learning.plan import make_plan
from mtrec_ray.learning.run import NotFiniteError
from mtrec_ray.model.encoder import encoder_problems
from mtrec_ray.schema import Project, Run
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.marks import DONE, begin, find_finished, trained_with
from mtrec_ray.stages.prepare import open_prepared
from mtrec_ray.stages.settled import as_settled
from mtrec_ray.stages.teach import with_teacher

BEST, REACHED = "best", "reached.json"
SNAPSHOT, KEPT = "checkpoint_manager_snapshot.json", ".kept"  # Ray Train's, and a copy
UPLOAD_PAUSES = (1, 2, 4, 8, 16, 32)  # seconds between tries to store a checkpoint


class RayHost:
    """The loop's view of a Ray Train worker."""

    def __init__(self, folder: str, source: Source) -> None:
        self.folder, self.source = folder, source
        self.device = ray.train.torch.get_device()
        self.redone = 0
        self.copy = tempfile.TemporaryDirectory()  # of the checkpoint to go on from

    @property
    def reader(self) -> Reader:
        """The rows from the object store, or streamed."""
        return self.source.read

    def report(self, metrics: dict[str, Any], folder: Path | None) -> None:
        """Report to Ray Train (a barrier over ranks)."""
        held = ray.train.Checkpoint.from_directory(str(folder)) if folder else None
        if held:
            with suppress(OSError, ValueError):
                keep_snapshot(self.folder)
        ray.train.report(metrics, checkpoint=held, checkpoint_upload_fn=upload)

    def preempted(self) -> bool:
        """Whether Ray has been told that a node of the workers is about to go (a barrier)."""
        return ray.train.get_preemption_info() is not None

    def started(self, step: int) -> int:
        """Compare with the furthest step in the run's folder; returns the steps done again."""
        path = storage.join(self.folder, REACHED)
        before = storage.read_json(path) if storage.exists(path) else {"step": 0, "redone": 0}
        self.redone = before["redone"] + max(before["step"] - step, 0)
        self.reached(step)
        return self.redone

    def reached(self, step: int) -> None:
        """Keep the step in the run's folder; a storage that fails does not stop the run."""
        with suppress(OSError):
            note = {"step": step, "redone": self.redone}
            storage.write_json(storage.join(self.folder, REACHED), note)

    def show_curve(self, curve: list[dict[str, Any]]) -> None:
        """Write the curves for TensorBoard."""
        with suppress(OSError):
            write_curves(curve, storage.join(self.folder, "tensorboard"))

    def restore(self) -> Path | None:
        """The latest checkpoint of this run's name, copied to this node."""
        held = ray.train.get_checkpoint()
        return Path(held.to_directory(self.copy.name)) if held else None

    def say(self, text: str) -> None:
        """Print on the worker; Ray forwards it to the job.

        Not by `print`, which Ray Train patches: it would come twice.
        """
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    for name in (
        None,
        "ray.train",
    ):  # some of Ray Train's loggers are named by file: below the root
        logging.getLogger(name).setLevel(logging.WARNING)
    project = parse_project(config["project"])
    torch.set_num_threads(project.run.cpus_per_worker)
    host = RayHost(config["folder"], config["source"])
    try:
        prepared = load_prepared(config["prepared"]).only(project.scenarios)
        if config["rows"] is not None:
            prepared = prepared.first(config["rows"])
        return loop.train(project, prepared, host, config["start"])
    except NotFiniteError as error:  # to start again would not help
        return {"refused": str(error)}


def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Bring a checkpoint into the run's folder; a storage that fails is tried again for a while."""
    context: Any = ray.train.get_context()
    place = context.get_storage()
    target, fs = place.build_checkpoint_path_from_name(name), place.storage_filesystem
    for pause in (*UPLOAD_PAUSES, None):
        try:
            fs.create_dir(target, recursive=True)
            pafs.copy_files(
                checkpoint.path, target,
                source_filesystem=checkpoint.filesystem, destination_filesystem=fs,
            )  # fmt: skip
            break
        except OSError as error:
            if pause is None:
                raise
            sys.stdout.write(f"checkpoint not stored ({error}); tried again in {pause} s\n")
            time.sleep(pause)
    return ray.train.Checkpoint(target, fs)


def keep_snapshot(folder: str) -> None:
    """Copy Ray Train's list of checkpoints, which it writes in place, if it is whole."""
    path = storage.join(folder, SNAPSHOT)
    if storage.exists(path):
        storage.write_json(path + KEPT, storage.read_json(path))


def mend_snapshot(folder: str) -> None:
    """Put the copy back, if a job was killed while Ray Train wrote the list."""
    path = storage.join(folder, SNAPSHOT)
    if not storage.exists(path):
        return
    try:
        storage.read_json(path)
    except ValueError:
        if storage.exists(path + KEPT):
            storage.write_bytes(path, storage.read_bytes(path + KEPT))
        else:
            fs, inner = storage.filesystem(path)
            fs.delete_file(inner)


@dataclass(frozen=True)
class TrainingRun:
    """A model to train.

    Attributes:
        project: its scenarios, model and training.
        prepared: its rows.
        folder: of the run; `name`: of the model in it, the resume key.
        callbacks: of Ray Train, on its controller.
        source: the training rows, where the caller shares them among several models.
        start: where it starts; by default from initial weights.
        rows: so many first rows of `prepared` alone.
    """

    project: Project
    prepared: Prepared
    folder: str
    name: str
    callbacks: Sequence[UserCallback] = ()
    source: Source | None = None
    start: Start | None = None
    rows: int | None = None

    @property
    def place(self) -> str:
        """The model's folder."""
        return storage.join(self.folder, self.name)


def build_trainer(training: TrainingRun) -> TorchTrainer:
    """A trainer whose name in the run's folder is the resume key."""
    project, run, rows = training.project, training.project.run, training.rows
    read = training.prepared if rows is None else training.prepared.first(rows)
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "project": project.dump(),
            "prepared": read.folder,
            "folder": training.place,
            "source": training.source or training_source(read, run.cache, run.most_workers),
            "start": training.start,
            "rows": rows,
        },
        scaling_config=ScalingConfig(
            num_workers=run.num_workers,
            use_gpu=run.use_gpu,
            resources_per_worker={
                "CPU": run.cpus_per_worker,
                **({"GPU": 1} if run.use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=training.name,
            storage_path=training.folder,
            callbacks=list(training.callbacks),
            failure_config=FailureConfig(max_failures=run.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1,  # the best; Ray Train keeps the latest, too
                checkpoint_score_attribute="joint_score",
                checkpoint_score_order="min",
            ),
        ),
    )


def joint_made_with(project: Project, prepared: Prepared) -> dict[str, Any]:
    """Whatever the joint model depends on, as a tree."""
    return {"prepared": prepared.fingerprint, **trained_with(project)}


def run_train(project: Project, storage_path: str, say: Say) -> dict[str, Any]:
    """Train the joint model, or go on with it, or find it trained; returns the summary."""
    storage.check_writable(storage_path)
    project = as_settled(project, storage_path)
    run_folder = storage.join(storage_path, project.run.name)
    prepared = open_prepared(project, storage_path)
    folder = storage.join(run_folder, "joint")
    made_with = joint_made_with(project, prepared)
    finished = find_finished(folder, made_with, job="train", run=project.run.name)
    if finished:
        say("train: already done")
        return finished
    refuse(encoder_problems(project.model.encoder))
    make_plan(project, prepared, project.run.most_workers)
    begin(folder, made_with)
    connect(project.run)
    prepared = with_teacher(project, prepared, run_folder, say)
    say(f"joint training with {workers_text(project.run)} workers")
    return train_model(TrainingRun(project, prepared, run_folder, "joint"))


def train_model(training: TrainingRun) -> dict[str, Any]:
    """Train a model in its folder, or go on with it; returns the summary.

    Raises:
        ValueError: too many steps without a finite loss.
    """
    folder = training.place
    mend_snapshot(folder)
    trainer = build_trainer(training)
    result = trainer.fit()
    if result.error:
        raise result.error
    summary = dict(result.return_value or {})
    if "refused" in summary:
        raise ValueError(summary["refused"])
    keep_best(result, folder)
    storage.write_json(storage.join(folder, DONE), summary)
    return summary


def workers_text(run: Run) -> str:
    """`2`, or `2 to 4`."""
    least, most = run.least_workers, run.most_workers
    return str(most) if least == most else f"{least} to {most}"


def keep_best(result: ray.train.Result, folder: str) -> None:
    """Copy the checkpoint with the lowest joint score to `best`, without its training state."""
    best = result.get_best_checkpoint("joint_score", "min")
    assert best is not None
    with best.as_directory() as local:
        for name in ("model.safetensors", "model.json"):
            storage.write_bytes(storage.join(folder, BEST, name), (Path(local) / name).read_bytes())


def write_curves(curve: list[dict[str, Any]], folder: str) -> None:
    """Write a run's curves for TensorBoard, in place of those of earlier epochs."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as local:
        writer = SummaryWriter(local)
        for record in curve:
            step = record["step"]
            writer.add_scalar("valid/joint_score", record["joint_score"], step)
            for group in ("train_loss", "valid", "gradient_share", "gradient_cosine"):
                for key, value in record[group].items():
                    writer.add_scalar(f"{group}/{key}", value, step)
        writer.close()
        storage.remove_folder(folder)
        fs, inner = storage.filesystem(folder)
        fs.create_dir(inner, recursive=True)
        pafs.copy_files(local, inner, destination_filesystem=fs)
