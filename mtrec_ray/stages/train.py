"""The train stage: joint training by Ray Train workers. The only place where a trainer is built."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.data.stream import RowSource, training_source
from mtrec_ray.evaluation.score_weights import score_problems
from mtrec_ray.model.encoder import encoder_problems
from mtrec_ray.progress import Log, begin_stage, no_log
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import joint_model_depends_on
from mtrec_ray.project.project import Project
from mtrec_ray.stages.channel import Sender, open_channel
from mtrec_ray.stages.cluster import connect, result_of, task_of
from mtrec_ray.stages.in_process import train_in_process
from mtrec_ray.stages.prepare import open_prepared
from mtrec_ray.stages.ray_context import RayTrainContext, mend_snapshot
from mtrec_ray.stages.run_folder import BEST, Record, RunFolder, Stage, with_search_choice
from mtrec_ray.stages.teacher import add_teacher_labels
from mtrec_ray.training import loop
from mtrec_ray.training.batches import make_plan
from mtrec_ray.training.delta import FineTuneStart
from mtrec_ray.training.run import NotFiniteError
from mtrec_ray.training.weighting import weighting_problems


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
        log: where its workers' progress is shown; by default in their own output alone.
        in_process: whether one process trains it, without a group of workers to start.
    """

    project: Project
    prepared: Prepared
    folder: str
    name: str
    callbacks: Sequence[UserCallback] = ()
    source: RowSource | None = None
    start: FineTuneStart | None = None
    rows: int | None = None
    log: Log | None = None
    in_process: bool = False

    @property
    def read(self) -> Prepared:
        """The rows that are read."""
        return self.prepared if self.rows is None else self.prepared.first(self.rows)

    @property
    def rows_source(self) -> RowSource:
        """Where the training rows come from."""
        run = self.project.run
        return self.source or training_source(self.read, run.cache, run.most_workers)

    @property
    def stage(self) -> Stage:
        """The model's folder, and whether its training is finished."""
        return Stage(storage.join(self.folder, self.name), "train", self.project.run.name)


def build_trainer(training: TrainingRun, sender: Sender) -> TorchTrainer:
    """Returns a trainer whose name in the run's folder is the resume key.

    Its rank 0 tells `sender` how far it is.
    """
    project, run = training.project, training.project.run
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "project": project,
            "prepared": training.read.folder,
            "folder": training.stage.folder,
            "source": training.rows_source,
            "start": training.start,
            "rows": training.rows,
            "log": sender,
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


def run_train(project: Project, storage_path: str, log: Log) -> Record:
    """Trains the joint model, or goes on with it, or finds it trained; returns the summary."""
    storage.check_writable(storage_path)
    run = RunFolder.of(project, storage_path)
    project = with_search_choice(project, run, log)
    prepared = open_prepared(project, run)
    made_from = joint_model_depends_on(project, prepared.fingerprint)
    finished = run.train.finished(made_from)
    if finished:
        begin_stage(log, "train: already done")
        return finished
    refuse(encoder_problems(project.model) + weighting_problems(project.training.weighting))
    refuse(score_problems(project, prepared))
    make_plan(project, prepared, project.run.most_workers)
    run.train.start(made_from)
    begin_stage(log, f"train: joint training with {project.run.workers_text} workers")
    connect(project.run)
    prepared = add_teacher_labels(project, prepared, run.path(), log)
    return train_model(TrainingRun(project, prepared, run.path(), "joint", log=log))


def train_model(training: TrainingRun) -> Record:
    """Trains a model in its folder, or goes on with it; returns the summary.

    Raises:
        ProjectError: too many steps without a finite loss.
    """
    if training.in_process:
        return train_in_task(training)
    mend_snapshot(training.stage.folder)
    with open_channel(training.log) as sender:
        result = build_trainer(training, sender).fit()
    if result.error:
        raise result.error
    summary = dict(result.return_value or {})
    if "refused" in summary:
        raise ProjectError([summary["refused"]])
    keep_best(result, training.stage.folder)
    return training.stage.finish(summary)


def train_in_task(training: TrainingRun) -> Record:
    """Trains a model in its folder in one Ray task, which goes on where it was lost.

    Raises:
        ProjectError: too many steps without a finite loss.
    """
    run = training.project.run
    task = task_of(train_alone, run).options(max_retries=run.max_failures, retry_exceptions=True)
    with open_channel(training.log) as sender:
        found: Record = result_of(task.remote(replace(training, log=sender), training.rows_source))
    if "refused" in found:
        raise ProjectError([found["refused"]])
    return found


def train_alone(training: TrainingRun, source: RowSource) -> Record:
    """Trains a model in the calling process; returns the summary, or why it cannot be trained."""
    read = load_prepared(training.read.folder).only(training.project.scenarios)
    prepared = read if training.rows is None else read.first(training.rows)
    try:
        return train_in_process(
            training.project, prepared, training.stage, source, no_log, training.start, training.log
        )
    except NotFiniteError as error:  # to start again would not help
        return {"refused": str(error)}


def keep_best(result: ray.train.Result, folder: str) -> None:
    """Copies the checkpoint with the lowest joint score to `best`, without its training state."""
    best = result.get_best_checkpoint("joint_score", "min")
    assert best is not None
    with best.as_directory() as local:
        for name in ("model.safetensors", "model.json"):
            storage.write_bytes(storage.join(folder, BEST, name), (Path(local) / name).read_bytes())


def train_worker(config: dict[str, Any]) -> Record:
    """Trains on one Ray Train worker; returns the summary."""
    # Some of Ray Train's loggers are named by their file, below the root.
    for name in (None, "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    project: Project = config["project"]
    torch.set_num_threads(project.run.cpus_per_worker)
    context = RayTrainContext(config["folder"], config["source"], config["log"])
    try:
        prepared = load_prepared(config["prepared"]).only(project.scenarios)
        if config["rows"] is not None:
            prepared = prepared.first(config["rows"])
        return loop.train(project, prepared, context, config["start"])
    except NotFiniteError as error:  # to start again would not help
        return {"refused": str(error)}
