"""Trials run by Ray Tune: how many at a time, and the records of their reports.

An interrupted search goes on from its trials' records, not from Tune's own state: those that ended
are kept, told to the searcher, and fill the scheduler's rungs; those that ran go on from their
checkpoints. The unfinished epoch and the state of the random numbers are lost: the trials that
are still to come differ from those of a search that was not interrupted.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray.tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mtrec_ray.data import storage
from mtrec_ray.progress import Log, tell_progress
from mtrec_ray.project.project import Project
from mtrec_ray.search.records import Trial
from mtrec_ray.stages.cluster import SPARE_CPUS
from mtrec_ray.stages.tuning.population import Population
from mtrec_ray.stages.tuning.searcher import JOINT, Suggester
from mtrec_ray.stages.tuning.trial import Train, run_trial

NodeResources = Mapping[str, float]


HEAD_BYTES = 2**20  # what a trial that only waits for its workers asks for


class Recorder(Callback):
    """Records on the driver what trials report, and shows their progress.

    `keep`: the models of trials that have ended stay in the folder `runs`, too.
    """

    def __init__(
        self,
        trials: dict[str, Trial],
        folder: str,
        runs: str,
        total: int,
        log: Log,
        *,
        keep: bool = False,
    ) -> None:
        self.trials, self.folder, self.runs = trials, folder, runs
        self.total, self.log, self.keep = total, log, keep
        self.epochs = 1  # of a trial that is not stopped early
        self.started: dict[str, float] = {}
        self.scheduler: TrialScheduler | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: Tune's own state is never read back."""
        return {}

    def record_of(self, trial: Any) -> Trial:
        """Returns our record of one of Tune's trials."""
        return self.trials[trial.config["trial"]["name"]]

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record that a trial starts, or goes on: in a population with other values than before."""
        record = self.record_of(trial)
        record.status = "running"
        now = trial.config["trial"]
        if now["overrides"] != record.overrides:
            record.move(now["from"], now["overrides"], now["point"])
            self.log(f"{record.name} goes on from {now['from']} with other values")
        self.started[record.name] = time.monotonic() - record.seconds
        record.save(self.folder)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record an epoch of a trial, its failure, or what else its training returned."""
        record = self.record_of(trial)
        record.seconds = time.monotonic() - self.started[record.name]
        if result.get("entry"):
            record.add(result["entry"])
        record.reason = " ".join(str(result.get("failed", "")).split())
        record.result = result.get("result", record.result)
        record.save(self.folder)
        self.show_progress()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record that a trial ended by itself, or was ended by the scheduler."""
        record = self.record_of(trial)
        stopped = record.name in getattr(self.scheduler, "stopped", ())
        if record.best is None:
            record.reason = record.reason or "no epoch with a finite score"
        record.status = "failed" if record.reason else "stopped" if stopped else "finished"
        self.end(record)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record that a trial's process was lost too often."""
        record = self.record_of(trial)
        record.status = "failed"
        record.reason = "its process ended, more often than run.max_failures"
        self.end(record)

    def end(self, record: Trial) -> None:
        """Record that a trial ended; delete its checkpoints unless a confirmation keeps them."""
        record.save(self.folder)
        if not self.keep:
            with suppress(OSError):
                storage.remove_folder(storage.join(self.runs, record.name))
        self.log(self.line(record))
        self.show_progress()

    def line(self, record: Trial) -> str:
        """Returns how a trial ended."""
        trained = record.epochs
        epochs = "1 epoch" if trained == 1 else f"{trained:g} epochs"
        told = f"{score_of(record):.4f} after {epochs}" if record.best else record.reason
        return f"{record.name} {record.status}: {told}, {record.seconds:.0f} s"

    def show_progress(self) -> None:
        """Show how many trials have ended, how many epochs were trained, and the best score."""
        trials = self.trials.values()
        ended = sum(t.ended for t in trials)
        epochs = sum(self.epochs if t.ended else t.epochs for t in trials)
        best = min((t for t in trials if t.best), key=score_of, default=None)
        leads = f", best {best.name} {score_of(best):.4f}" if best else ""
        trained = sum(t.epochs for t in trials)
        text = f"{ended} of {self.total} ended, {trained:g} epochs{leads}"
        whole = self.total * self.epochs
        # A trial that has told its last epoch has not ended yet.
        done = whole if ended == self.total else min(epochs, 0.99 * whole)
        tell_progress(self.log, "trials", done, whole, text)

    def check_all_ended(self) -> None:
        """Raises where trials are left.

        Raises:
            RuntimeError: tells how many ended.
        """
        ended = sum(trial.ended for trial in self.trials.values())
        if ended < self.total:
            raise RuntimeError(
                f"the search was ended with {ended} of {self.total} trials; the same call goes on"
            )

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Report that a trial's process was lost; it goes on from its checkpoint."""
        self.log(
            f"{self.record_of(trial).name}: its process was lost, it goes on from its checkpoint"
        )


def score_of(trial: Trial) -> float:
    """Returns the lowest joint score of a trial, infinite without one."""
    return trial.best[JOINT] if trial.best else math.inf


@dataclass(frozen=True)
class TrialResources:
    """What a trial takes of the cluster: itself, and in all with its workers."""

    head: dict[str, float]
    cpus: float
    gpus: float


def need_of(project: Project) -> TrialResources:
    """Returns what a trial of the project takes.

    A trial that trains by workers asks for a little memory and no CPU itself: with a share of a CPU
    its workers would no more fit where they fill a node. (Tune refuses to ask for nothing.)
    """
    run = project.run
    if project.search.num_workers == 0:
        head = {"CPU": float(run.cpus_per_worker), "GPU": float(run.use_gpu)}
        return TrialResources(head, run.cpus_per_worker, run.use_gpu)
    ranks = project.search.num_workers or run.most_workers
    head = {"CPU": 0.0, "memory": float(HEAD_BYTES)}
    return TrialResources(head, ranks * run.cpus_per_worker, ranks * run.use_gpu)


def concurrency(project: Project, nodes: Sequence[NodeResources], *, local: bool) -> int:
    """Returns how many trials the cluster has room for at a time, and at least one.

    More would not fail, but hold what others need to start. A trial of one process has to fit a
    node, one of workers the cluster. A local Ray has some logical CPUs that are no cores.
    """
    if project.search.concurrent:
        return project.search.concurrent
    need, spare = need_of(project), SPARE_CPUS if local else 0
    if project.search.num_workers != 0:
        nodes = [{kind: sum(n.get(kind, 0.0) for n in nodes) for kind in ("CPU", "GPU")}]
    room = 0
    for node in nodes:
        places = (node.get("CPU", 0.0) - spare) // need.cpus
        if need.gpus:
            places = min(places, node.get("GPU", 0.0) // need.gpus)
        room += max(int(places), 0)
    return max(room, 1)


def resources_of_nodes() -> list[NodeResources]:
    """Returns what each living node of the cluster has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def quiet_tune() -> Iterator[None]:
    """No loggers, output and handling of Ctrl-C of Tune's own, in this process and its workers."""
    ours = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would let an interrupted search return as if done
    }
    before = {name: os.environ.get(name) for name in ours}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(ours)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_trials(
    project: Project,
    suggester: Suggester,
    scheduler: TrialScheduler | None,
    recorder: Recorder,
    *,
    num: int,
    train: Train,
    shared: Any,
) -> None:
    """Runs `num` trials, which the recorder keeps.

    Ray Tune's own files (`ray/` beside the records) are never read back.

    Raises:
        RuntimeError: the search was ended before all trials were.
    """
    recorder.scheduler, recorder.epochs = scheduler, project.training.epochs
    recorder.show_progress()
    own_files = storage.join(recorder.runs, "ray")
    storage.remove_folder(own_files)
    in_population = isinstance(scheduler, Population)
    trainable = ray.tune.with_parameters(
        run_trial, project=project, records=recorder.folder, train=train, shared=shared,
        in_population=in_population,
    )  # fmt: skip
    num_slots, resources = slots_and_resources(project, in_population=in_population)
    if in_population:  # Ray allows it no searcher: its trials are drawn before
        space = {"trial": ray.tune.grid_search(suggester.configs())}
        tune = TuneConfig(scheduler=scheduler)
    else:
        space = None
        tune = TuneConfig(search_alg=suggester, scheduler=scheduler or FIFOScheduler())
        tune.num_samples, tune.max_concurrent_trials = num, num_slots
    tune.reuse_actors = project.search.num_workers == 0
    tune.trial_name_creator = tune.trial_dirname_creator = trial_name
    with quiet_tune():
        Tuner(
            ray.tune.with_resources(trainable, resources),
            param_space=space,
            tune_config=tune,
            run_config=tune_run_config(project, recorder),
        ).fit()
    storage.remove_folder(own_files)
    recorder.check_all_ended()


def trial_name(trial: Any) -> str:
    """Returns our name of one of Tune's trials."""
    return trial.config["trial"]["name"]


def slots_and_resources(project: Project, *, in_population: bool) -> tuple[int, dict[str, float]]:
    """Returns how many trials go on at a time, and what each asks for.

    All trials of a population are there at once, and wait for each other.
    """
    nodes, local = resources_of_nodes(), not os.environ.get("RAY_ADDRESS")
    num_slots, head = concurrency(project, nodes, local=local), need_of(project).head
    if in_population:
        cpus = [node.get("CPU", 0.0) for node in nodes]
        head |= {"CPU": max(min(sum(cpus) / num_slots, max(cpus)), head["CPU"])}
    return num_slots, head


def tune_run_config(project: Project, recorder: Recorder) -> RunConfig:
    """Returns where Tune keeps its own files, and how often a trial's process may be lost."""
    return RunConfig(
        name="ray",
        storage_path=recorder.runs,
        callbacks=[recorder],
        verbose=0,
        failure_config=FailureConfig(max_failures=project.run.max_failures),
    )
