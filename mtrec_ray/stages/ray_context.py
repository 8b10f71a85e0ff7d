"""What the training loop sees of a Ray Train worker, and how checkpoints reach the storage."""

import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import ray.train.torch

from mtrec_ray.data import storage
from mtrec_ray.data.stream import RowSource
from mtrec_ray.progress import Log
from mtrec_ray.training.batches import OpenRows

REACHED = "reached.json"


SNAPSHOT, KEPT = "checkpoint_manager_snapshot.json", ".kept"  # Ray Train's, and a copy


UPLOAD_PAUSES = (1, 2, 4, 8, 16, 32)  # seconds between tries to store a checkpoint


class RayTrainContext:
    """The loop's view of a Ray Train worker."""

    def __init__(self, folder: str, source: RowSource, log: Log) -> None:
        self.folder, self.source, self.log = folder, source, log
        self.device = ray.train.torch.get_device()
        self.redone = 0
        self.copy = tempfile.TemporaryDirectory()  # of the checkpoint to go on from

    @property
    def open_rows(self) -> OpenRows:
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
        """Returns whether Ray knows that a node of the workers will be preempted (a barrier)."""
        return ray.train.get_preemption_info() is not None

    def note_start(self, step: int) -> int:
        """Compare with the furthest step in the run's folder; returns the steps repeated."""
        path = storage.join(self.folder, REACHED)
        before = storage.read_json(path) if storage.exists(path) else {"step": 0, "redone": 0}
        self.redone = before["redone"] + max(before["step"] - step, 0)
        self.note_step(step)
        return self.redone

    def note_step(self, step: int) -> None:
        """Keep the step in the run's folder; a storage that fails does not stop the run."""
        with suppress(OSError):
            note = {"step": step, "redone": self.redone}
            storage.write_json(storage.join(self.folder, REACHED), note)

    def show_curve(self, curve: list[dict[str, Any]]) -> None:
        """Write the curves for TensorBoard."""
        with suppress(OSError):
            write_curves(curve, storage.join(self.folder, "tensorboard"))

    def checkpoint_folder(self) -> Path | None:
        """Returns the latest checkpoint of this run's name, copied to this node."""
        held = ray.train.get_checkpoint()
        return Path(held.to_directory(self.copy.name)) if held else None


def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Bring a checkpoint into the run's folder; retries for a while where the storage fails."""
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


def write_curves(curve: list[dict[str, Any]], folder: str) -> None:
    """Write a run's curves for TensorBoard, in place of those of earlier epochs."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as local:
        writer = SummaryWriter(local)
        for record in curve:
            step = record["step"]
            writer.add_scalar("valid/joint_score", record["joint_score"], step)
            for group in (
                "train_loss",
                "retrieval_loss",
                "valid",
                "gradient_share",
                "gradient_cosine",
            ):
                for key, value in record[group].items():
                    writer.add_scalar(f"{group}/{key}", value, step)
        writer.close()
        storage.remove_folder(folder)
        fs, inner = storage.filesystem(folder)
        fs.create_dir(inner, recursive=True)
        pafs.copy_files(local, inner, destination_filesystem=fs)
