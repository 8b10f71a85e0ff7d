"""One trial of a search: the train stage with overrides, its epochs reported to Ray Tune."""

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import ray.tune
from ray.train import Checkpoint, UserCallback
from ray.util.queue import Empty, Queue

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.stream import RowSource
from mtrec_ray.evaluation.metrics import scenario_scores, task_scores
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.search.records import best_of, load_trial
from mtrec_ray.stages.cluster import give_back
from mtrec_ray.stages.in_process import ReportEpoch, train_in_process
from mtrec_ray.stages.run_folder import Stage
from mtrec_ray.stages.train import TrainingRun, train_model
from mtrec_ray.stages.tuning.population import LATEST_SCORE, adopt, checkpoint_of
from mtrec_ray.training.context import NO_SCORE

QUEUE_SECONDS = 0.5


# How long a process waits, before it goes on with the next trial, for the thread of a trial that
# was ended early; Tune's own 2 seconds lose the next trial where giving memory back takes longer.
END_SECONDS = 300


@dataclass(frozen=True)
class TrialInputs:
    """What all trials share: prepared data, the training rows, and the folder of their runs."""

    prepared: Prepared
    source: RowSource
    folder: str


# Trains a project under a name and tells each epoch; returns what else is to be kept.
Train = Callable[[Project, str, Any, ReportEpoch], dict[str, Any]]


def trial_project(project: Project) -> Project:
    """Returns the project with the search's own epochs, rows and workers."""
    search, run = project.search, project.run
    rows = search.rows_per_epoch or project.training.rows_per_epoch
    epochs = search.epochs or project.training.epochs
    return with_overrides(
        project,
        {
            "training.epochs": epochs,
            "training.rows_per_epoch": rows,
            "training.validations": search.validations(epochs),
            "evaluation.valid_rows": min(
                search.valid_rows or project.evaluation.valid_rows, project.evaluation.valid_rows
            ),
            **workers(project),
            "run.name": run.name,
        },
    )


def workers(project: Project) -> dict[str, Any]:
    """Returns the number of workers of a trial, as an override: one process is one worker."""
    wanted = project.search.num_workers
    return {} if wanted is None else {"run.num_workers": max(wanted, 1)}


def run_trial(
    config: dict[str, Any],
    project: Project,
    records: str,
    train: Train,
    shared: Any,
    *,
    in_population: bool = False,
) -> None:
    """Runs a trial for Ray Tune: `config` names it and its overrides of the project.

    In a population its checkpoints are passed on, and it goes on from the one that it is given.
    Whatever training raises is reported as the trial's failure, without a retry; the earlier
    epochs of a trial that goes on are in its record.
    """
    logging.getLogger().setLevel(logging.WARNING)
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(END_SECONDS)
    name, overrides = config["trial"]["name"], config["trial"]["overrides"]
    before = load_trial(records, name)
    curve = Curve(list(before.curve) if before else [])
    try:
        if in_population:
            curve.checkpoints = storage.join(shared.folder, name)
            go_on_from_given(curve.checkpoints)
        result = train(with_overrides(project, overrides), name, shared, curve.tell)
    except Exception as error:  # noqa: BLE001 whatever it is, it ends this trial and no other
        reason = f"{type(error).__name__}: {error}"
        unscored = {"joint_score": math.nan, "score": {}}  # a searcher counts it as failed
        ray.tune.report(report_of(curve.entries, None) | unscored | {"failed": reason})
        return
    finally:
        give_back()
    ray.tune.report(report_of(curve.entries, None) | {"result": result})


@dataclass
class Curve:
    """The epochs of a trial, told to Tune one by one.

    Attributes:
        checkpoints: in a population, the folder of those that are passed on; else empty.
    """

    entries: list[dict[str, Any]]
    checkpoints: str = ""

    def tell(self, metrics: dict[str, Any]) -> None:
        """Tells Tune of an epoch that it does not know yet."""
        entry = entry_of(metrics)
        if entry and entry["epoch"] not in {e["epoch"] for e in self.entries}:
            self.entries.append(entry)
            passed_on = checkpoint_of(self.checkpoints) if self.checkpoints else None
            ray.tune.report(report_of(self.entries, entry), checkpoint=passed_on)


def go_on_from_given(folder: str) -> None:
    """Makes the checkpoint that Tune gives a trial, if any, the one that it goes on from."""
    given = ray.tune.get_checkpoint()
    if given:
        adopt(given, folder)


def entry_of(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns an epoch of a trial's curve; None for a report in mid-epoch, without validation."""
    valid = {k: v for k, v in metrics.items() if k.count("/") == 2}
    if not valid:
        return None
    joint = metrics["joint_score"]
    return {
        "epoch": metrics["epoch"],
        "joint_score": joint if joint < NO_SCORE else math.nan,
        "scores": scenario_scores(valid),
        "tasks": task_scores(valid),
    }


def report_of(curve: list[dict[str, Any]], entry: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the report to Tune: scores of the best epoch so far (it is kept), and the entry."""
    best = best_of(curve) or {"joint_score": math.nan, "scores": {}}
    known = {name: math.nan for e in curve for name in e["scores"]}
    return {
        "epoch": max((e["epoch"] for e in curve), default=0),
        "joint_score": best["joint_score"],
        LATEST_SCORE: entry["joint_score"] if entry else math.nan,
        "score": known | best["scores"],
        "entry": entry or {},
    }


def train_trial(
    project: Project, name: str, shared: TrialInputs, tell: ReportEpoch
) -> dict[str, Any]:
    """Train a trial's model: in this process, or by Ray Train workers."""
    if project.search.num_workers == 0:
        stage = Stage(storage.join(shared.folder, name), "tune", project.run.name)
        summary = train_in_process(project, shared.prepared, stage, shared.source, tell)
    else:
        summary = train_in_workers(project, name, shared, tell)
    for record in summary["curve"]:  # an epoch whose report was lost
        tell({**record["valid"], "epoch": record["epoch"], "joint_score": record["joint_score"]})
    told = {key: summary[key] for key in ("epochs", "steps", "skipped_steps", "gradient_share")}
    return told | {"gradient_cosine": mean_cosines(summary["curve"])}


def mean_cosines(curve: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the cosine of each two scenarios' gradients, its mean over a trial's validations."""
    pairs = curve[0]["gradient_cosine"] if curve else {}
    return {pair: fmean(record["gradient_cosine"][pair] for record in curve) for pair in pairs}


class ToQueue(UserCallback):
    """Puts rank 0's metrics of each report into a queue, on Ray Train's controller.

    Not Ray's TuneReportCallback: it passes reports to Tune by a second thread of the trial, beside
    the one that runs the function, and where that returns while a report is on its way both wait
    for a queue of one place: the trial hangs (read in the source of Ray 2.60).
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Pass the metrics on."""
        self.queue.put(dict(metrics[0]))


def train_in_workers(
    project: Project, name: str, shared: TrialInputs, tell: ReportEpoch
) -> dict[str, Any]:
    """Train by Ray Train workers, in a thread of this process; tells from the calling thread.

    A trial that Tune stops ends in `tell`; its process, and with it the controller and workers that
    it owns, are then ended by Tune.
    """
    queue = Queue(actor_options={"num_cpus": 0})
    done: list[dict[str, Any] | BaseException] = []
    training = TrainingRun(
        project, shared.prepared, shared.folder, name, [ToQueue(queue)], shared.source
    )

    def train() -> None:
        try:
            done.append(train_model(training))
        except BaseException as error:  # noqa: BLE001 raised again in the calling thread
            done.append(error)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    for metrics in arriving(queue, thread):
        tell(metrics)
    queue.shutdown()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def arriving(queue: Queue, thread: threading.Thread) -> Iterator[dict[str, Any]]:
    """Yields what comes out of a queue until the thread has ended and the queue is empty."""
    while True:
        ends = not thread.is_alive()
        try:
            while True:
                yield queue.get(timeout=QUEUE_SECONDS)
        except Empty:
            if ends:
                return
