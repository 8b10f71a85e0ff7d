"""The train stage: joint training by Ray Train workers. The only place where a trainer is built."""

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mtrec_ray.config import ProjectError, fingerprint, parse_project
from mtrec_ray.data import storage
from mtrec_ray.data.prepare import Say
from mtrec_ray.data.shards import load_prepared
from mtrec_ray.data.stream import data_config, open_pass, training_datasets
from mtrec_ray.learning import loop
from mtrec_ray.learning.feed import OpenPass
from mtrec_ray.model.encoder import check_encoder
from mtrec_ray.schema import Project
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.prepare import prepared_folder

BEST, DONE = "best", "done.json"


class RayHost:
    """The loop's view of a Ray Train worker."""

    def __init__(self, curves: str) -> None:
        self.curves = curves
        self.device = ray.train.torch.get_device()

    def open_pass(self, scenario: str) -> OpenPass:
        """Passes over this worker's share of the scenario's stream."""
        return lambda _: open_pass(scenario)

    def report(self, metrics: dict[str, Any], folder: Path | None) -> None:
        """Report to Ray Train (a barrier over ranks)."""
        held = ray.train.Checkpoint.from_directory(str(folder)) if folder else None
        ray.train.report(metrics, checkpoint=held)

    def show_curve(self, curve: list[dict[str, Any]]) -> None:
        """Write the curves for TensorBoard."""
        write_curves(curve, self.curves)

    def restore(self) -> Path | None:
        """The latest checkpoint of this run's name, copied to this node."""
        held = ray.train.get_checkpoint()
        return Path(held.to_directory(tempfile.mkdtemp())) if held else None

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
    return loop.train(project, load_prepared(config["prepared"]), RayHost(config["curves"]))


def build_trainer(project: Project, prepared_path: str, run_folder: str, name: str) -> TorchTrainer:
    """A trainer whose name in the run's folder is the resume key."""
    prepared = load_prepared(prepared_path)
    run = project.run
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "project": project.dump(),
            "prepared": prepared_path,
            "curves": storage.join(run_folder, name, "tensorboard"),
        },
        scaling_config=ScalingConfig(
            num_workers=run.num_workers,
            use_gpu=run.use_gpu,
            resources_per_worker={
                "CPU": run.cpus_per_worker,
                **({"GPU": 1} if run.use_gpu else {}),
            },
        ),
        datasets=training_datasets(prepared),
        dataset_config=data_config(),
        run_config=RunConfig(
            name=name,
            storage_path=run_folder,
            failure_config=FailureConfig(max_failures=run.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute="joint_score",
                checkpoint_score_order="min",
            ),
        ),
    )


def train_fingerprint(project: Project, prepared_mark: str) -> str:
    """Changes with whatever the joint model depends on."""
    weights = {
        n: [s.weight, [t.weight for t in s.tasks.values()]] for n, s in project.scenarios.items()
    }
    tree = project.dump()
    return fingerprint(prepared_mark, weights, tree["model"], tree["training"], tree["evaluation"])


def check_mark(folder: str, mark: str, job: str) -> dict[str, Any] | None:
    """The record of a finished stage, or None where it is still to be done.

    Raises:
        ProjectError: the folder belongs to another configuration.
    """
    started = storage.join(folder, "mark.json")
    if storage.exists(started) and storage.read_json(started)["fingerprint"] != mark:
        raise ProjectError(
            [
                f"run.name: the {job} stage of this run was made with another configuration; "
                f"allowed: the same one, another name, or delete {folder}"
            ]
        )
    storage.write_json(started, {"fingerprint": mark})
    finished = storage.join(folder, DONE)
    return storage.read_json(finished) if storage.exists(finished) else None


def run_train(project: Project, storage_path: str, say: Say) -> dict[str, Any]:
    """Train the joint model, or go on with it, or find it trained; returns the summary."""
    storage.check_writable(storage_path)
    run_folder = storage.join(storage_path, project.run.name)
    prepared_path = prepared_folder(project, storage_path)
    prepared = load_prepared(prepared_path)
    folder = storage.join(run_folder, "joint")
    mark = train_fingerprint(project, prepared.fingerprint)
    finished = check_mark(folder, mark, "train")
    if finished:
        say("train: already done")
        return finished
    check_encoder(project.model.encoder)
    loop.make_plan(project, prepared, project.run.num_workers)
    connect(project.run)
    say(f"joint training with {project.run.num_workers} workers")
    result = build_trainer(project, prepared_path, run_folder, "joint").fit()
    if result.error:
        raise result.error
    summary = dict(result.return_value or {})
    keep_best(result, folder)
    storage.write_json(storage.join(folder, DONE), summary)
    return summary


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
            for group in ("train_loss", "valid", "gradient_share"):
                for key, value in record[group].items():
                    writer.add_scalar(f"{group}/{key}", value, step)
        writer.close()
        storage.remove_folder(folder)
        fs, inner = storage.filesystem(folder)
        fs.create_dir(inner, recursive=True)
        pafs.copy_files(local, inner, destination_filesystem=fs)
