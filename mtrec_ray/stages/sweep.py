"""Trials run by Ray Tune: who suggests them, who ends them early, who keeps what they told.

An interrupted search goes on from its trials' records, not from Tune's own state: those that ended
are kept, told to the searcher, and fill the scheduler's rungs; those that ran go on from their
checkpoints. Lost are the epoch that was on its way, and the state of the random numbers: the trials
that are still to come differ from those of a search that was not interrupted.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import optuna
import ray
import ray.tune
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from mtrec_ray.data import storage
from mtrec_ray.data.prepare import Say
from mtrec_ray.schema import Project
from mtrec_ray.stages.cluster import SPARE_CPUS
from mtrec_ray.stages.space import Point, Space
from mtrec_ray.stages.trial import Train, run_trial
from mtrec_ray.stages.trials import Trial, best_of

JOINT, SCORE = "joint_score", "score"
REDUCTION = 2  # of trials from one rung to the next
STARTUP_SHARE = 4  # one in so many trials is drawn before the searcher has learned anything
HEAD_BYTES = 2**20  # what a trial that only waits for its workers asks for
STUDY = "search"


def objectives(project: Project) -> list[str]:
    """Metrics that the searcher lowers."""
    if project.search.objectives == "joint":
        return [JOINT]
    return [f"{SCORE}/{name}" for name in project.scenarios]


def objective_values(project: Project, trial: Trial) -> list[float] | None:
    """The values of a trial's objectives; None where it has none."""
    best = trial.best
    if best is None:
        return None
    if project.search.objectives == "joint":
        return [best[JOINT]]
    values = [best["scores"].get(name, math.nan) for name in project.scenarios]
    return values if all(map(math.isfinite, values)) else None


def optuna_search(project: Project, space: Space, trials: Sequence[Trial]) -> OptunaSearch:
    """Optuna's searcher that knows the trials which ended; the others are next, in their order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search, metrics = project.search, objectives(project)
    ended = [t for t in trials if t.ended]
    seed = search.seed + len(ended)
    sampler = (
        optuna.samplers.RandomSampler(seed=seed)
        if search.algorithm == "random"
        else optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=max(search.trials // STARTUP_SHARE, 2),
            constant_liar=True,
        )
    )
    kept = optuna.storages.InMemoryStorage()
    lower = [StudyDirection.MINIMIZE for _ in metrics]
    study = optuna.create_study(storage=kept, study_name=STUDY, directions=lower)
    for trial in ended:
        study.add_trial(known_trial(project, space, trial))
    for trial in trials:
        if not trial.ended:
            study.enqueue_trial(trial.point or {})
    return OptunaSearch(
        space.distributions(), metric=metrics, mode=["min"] * len(metrics),
        sampler=sampler, storage=kept, study_name=STUDY,
    )  # fmt: skip


def known_trial(project: Project, space: Space, trial: Trial) -> optuna.trial.FrozenTrial:
    """A trial that ended as Optuna keeps it."""
    values = None if trial.status == "failed" else objective_values(project, trial)
    return optuna.trial.create_trial(
        state=TrialState.FAIL if values is None else TrialState.COMPLETE,
        values=values,
        params=trial.point or {},
        distributions=space.distributions(),
    )


class Suggester(Searcher):
    """Waiting trials in their order, then what Optuna suggests (None: nothing)."""

    def __init__(
        self, waiting: Sequence[Trial], optuna: OptunaSearch | None, new: Callable[[Point], Trial]
    ) -> None:
        super().__init__(metric=JOINT, mode="min")
        self.waiting, self.optuna, self.new = list(waiting), optuna, new

    def suggest(self, trial_id: str) -> Any:
        """Name and overrides of the next trial, or that there is none."""
        point = self.optuna.suggest(trial_id) if self.optuna else None
        if self.waiting:
            trial = self.waiting.pop(0)
        elif point is not None:
            trial = self.new(point)
        else:
            return Searcher.FINISHED
        return {"name": trial.name, "overrides": trial.overrides}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna what came out; a trial without finite scores has failed."""
        if self.optuna is None:
            return
        wanted: Any = self.optuna.metric
        values = [(result or {}).get(name, math.nan) for name in wanted]
        failed = error or not all(map(math.isfinite, values))
        self.optuna.on_trial_complete(trial_id, None if failed else result, error=failed)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for Tune's own state, which is not read again."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: an interrupted search goes on from the records of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Halving(ASHAScheduler):
    """ASHA over epochs (1810.05934) that spares some trials, and lets the last epoch end by itself.

    Attributes:
        stopped: names of the trials that it ended.
    """

    def __init__(self, epochs: int, grace: int, spared: Sequence[str]) -> None:
        super().__init__(
            time_attr="epoch", metric=JOINT, mode="min", max_t=epochs, grace_period=grace,
            reduction_factor=REDUCTION, stop_last_trials=False,
        )  # fmt: skip
        self.epochs, self.spared = epochs, frozenset(spared)
        self.stopped: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch."""
        if not math.isfinite(result[JOINT]) or result["epoch"] >= self.epochs:
            return TrialScheduler.CONTINUE
        name = trial.config["name"]
        action = super().on_trial_result(tune_controller, trial, result)
        if action != TrialScheduler.STOP or name in self.spared:
            return TrialScheduler.CONTINUE
        self.stopped.add(name)
        return action

    def fill(self, trials: Sequence[Trial]) -> None:
        """Take the epochs of trials that ended before, as if they had run now."""
        for trial in trials:
            known: Any = SimpleNamespace(trial_id=trial.name, config={"name": trial.name})
            self.on_trial_add(None, known)  # pyright: ignore[reportArgumentType]
            for i in range(len(trial.curve)):
                best = best_of(trial.curve[: i + 1])
                if best:
                    told = {"epoch": trial.curve[i]["epoch"], JOINT: best[JOINT]}
                    super().on_trial_result(None, known, told)  # pyright: ignore[reportArgumentType]


class Recorder(Callback):
    """Keeps on the driver what trials tell, and says how far they are.

    `keep`: the models of trials that have ended stay in the folder `runs`, too.
    """

    def __init__(
        self,
        trials: dict[str, Trial],
        folder: str,
        runs: str,
        total: int,
        say: Say,
        *,
        keep: bool = False,
    ) -> None:
        self.trials, self.folder, self.runs = trials, folder, runs
        self.total, self.say, self.keep = total, say, keep
        self.started: dict[str, float] = {}
        self.scheduler: TrialScheduler | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for Tune's own state, which is not read again."""
        return {}

    def own(self, trial: Any) -> Trial:
        """Our record of one of Tune's trials."""
        return self.trials[trial.config["name"]]

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial starts, or goes on."""
        own = self.own(trial)
        own.status = "running"
        self.started[own.name] = time.monotonic() - own.seconds
        own.save(self.folder)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial tells an epoch, how it failed, or what else its training returned."""
        own = self.own(trial)
        own.seconds = time.monotonic() - self.started[own.name]
        if result.get("entry"):
            own.add(result["entry"])
        own.reason = " ".join(str(result.get("failed", "")).split())
        own.result = result.get("result", own.result)
        own.save(self.folder)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial ended by itself, or was ended by the scheduler."""
        own = self.own(trial)
        stopped = own.name in getattr(self.scheduler, "stopped", ())
        if own.best is None:
            own.reason = own.reason or "no epoch with a finite score"
        own.status = "failed" if own.reason else "stopped" if stopped else "finished"
        self.end(own)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial's process was lost too often."""
        own = self.own(trial)
        own.status, own.reason = "failed", "its process ended, more often than run.max_failures"
        self.end(own)

    def end(self, own: Trial) -> None:
        """Keep a trial that ended; but for a confirmation its checkpoints are of no more use."""
        own.save(self.folder)
        if not self.keep:
            with suppress(OSError):
                storage.remove_folder(storage.join(self.runs, own.name))
        self.say(self.line(own))

    def line(self, own: Trial) -> str:
        """How a trial ended, how many have, and the best so far."""
        ended = [t for t in self.trials.values() if t.ended]
        best = min((t for t in ended if t.best), key=lambda t: score_of(t), default=None)
        told = f"{score_of(own):.4f} after {len(own.curve)} epochs" if own.best else own.reason
        leads = f", best {best.name} {score_of(best):.4f}" if best else ""
        return (
            f"{own.name} {own.status}: {told}, {own.seconds:.0f} s "
            f"({len(ended)} of {self.total}{leads})"
        )

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial's process was lost; it starts again from its checkpoint."""
        self.say(f"{self.own(trial).name}: its process was lost, it goes on from its checkpoint")


def score_of(trial: Trial) -> float:
    """Lowest joint score of a trial, infinite without one."""
    return trial.best[JOINT] if trial.best else math.inf


@dataclass(frozen=True)
class Need:
    """What a trial takes of the cluster: itself, and in all with its workers."""

    head: dict[str, float]
    cpus: float
    gpus: float


def need_of(project: Project) -> Need:
    """What a trial of the project takes.

    A trial that trains by workers asks for a little memory and no CPU itself: with a share of a CPU
    its workers would no more fit where they fill a node. (Tune refuses to ask for nothing.)
    """
    run = project.run
    if project.search.num_workers == 0:
        head = {"CPU": float(run.cpus_per_worker), "GPU": float(run.use_gpu)}
        return Need(head, run.cpus_per_worker, run.use_gpu)
    ranks = project.search.num_workers or run.most_workers
    head = {"CPU": 0.0, "memory": float(HEAD_BYTES)}
    return Need(head, ranks * run.cpus_per_worker, ranks * run.use_gpu)


def concurrency(project: Project, cluster: Mapping[str, float], *, local: bool) -> int:
    """How many trials go on at a time: as many as the cluster has room for, and at least one.

    More would not fail, but hold what others need to start. A local Ray has some logical CPUs that
    are no cores.
    """
    if project.search.concurrent:
        return project.search.concurrent
    need = need_of(project)
    cpus = cluster.get("CPU", 1.0) - (SPARE_CPUS if local else 0)
    room = cpus // need.cpus
    if need.gpus:
        room = min(room, cluster.get("GPU", 0.0) // need.gpus)
    return max(int(room), 1)


@contextmanager
def quiet_tune() -> Iterator[None]:
    """No loggers of Tune's own and no output beside ours, in this process and its workers."""
    ours = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
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
    """Run `num` trials; what they tell is in the recorder's records.

    Ray Tune's own files (`ray/` beside the records) are not read again.
    """
    recorder.scheduler = scheduler
    local = not os.environ.get("RAY_ADDRESS")
    own = storage.join(recorder.runs, "ray")
    storage.remove_folder(own)
    trainable = ray.tune.with_parameters(
        run_trial, tree=project.dump(), records=recorder.folder, train=train, shared=shared
    )
    with quiet_tune():
        Tuner(
            ray.tune.with_resources(trainable, need_of(project).head),
            tune_config=TuneConfig(
                search_alg=suggester,
                scheduler=scheduler or FIFOScheduler(),
                num_samples=num,
                max_concurrent_trials=concurrency(project, ray.cluster_resources(), local=local),
                reuse_actors=project.search.num_workers == 0,
                trial_name_creator=lambda trial: trial.config["name"],
                trial_dirname_creator=lambda trial: trial.config["name"],
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=recorder.runs,
                callbacks=[recorder],
                verbose=0,
                failure_config=FailureConfig(max_failures=project.run.max_failures),
            ),
        ).fit()
    storage.remove_folder(own if recorder.keep else recorder.runs)
