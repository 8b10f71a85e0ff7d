"""Which trial is next, and which one ends early: Optuna's searcher and ASHA, as Ray Tune has them.

Both go on from the records of trials: those that ended are told to the searcher, and fill the
scheduler's rungs.
"""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from mtrec_ray.project.project import Project
from mtrec_ray.project.search import RUNG_FACTOR
from mtrec_ray.search.records import Trial, best_of
from mtrec_ray.search.space import Point, Space

JOINT, SCORE = "joint_score", "score"


BRACKETS = 3  # of hyperband: each begins to end trials a rung later than the last


STARTUP_SHARE = 4  # one in so many trials is drawn before the searcher has learned anything


STUDY = "search"


def objectives(project: Project) -> list[str]:
    """Returns metrics that the searcher lowers."""
    if project.search.objectives == "joint":
        return [JOINT]
    return [f"{SCORE}/{name}" for name in project.scenarios]


def objective_values(project: Project, trial: Trial) -> list[float] | None:
    """Returns the values of a trial's objectives; None where it has none."""
    best = trial.best
    if best is None:
        return None
    if project.search.objectives == "joint":
        return [best[JOINT]]
    values = [best["scores"].get(name, math.nan) for name in project.scenarios]
    return values if all(map(math.isfinite, values)) else None


def optuna_search(project: Project, space: Space, trials: Sequence[Trial]) -> OptunaSearch:
    """Returns Optuna's searcher, which knows the ended trials; the others are next, in order."""
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
    """Returns a trial that ended as Optuna keeps it."""
    values = None if trial.status == "failed" else objective_values(project, trial)
    return optuna.trial.create_trial(
        state=TrialState.FAIL if values is None else TrialState.COMPLETE,
        values=values,
        params=trial.point or {},
        distributions=space.distributions(),
    )


def drawn(space: Space, num: int, seed: int) -> list[Point]:
    """Returns so many points of the space at random, the same for the same seed."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [study.ask(space.distributions()).params for _ in range(num)]


def config_of(trial: Trial) -> dict[str, Any]:
    """Returns a trial as Tune hands it to its process."""
    own = {"name": trial.name, "overrides": trial.overrides, "point": trial.point}
    return {"trial": own}


class Suggester(Searcher):
    """Waiting trials in their order, then what Optuna suggests (None: nothing)."""

    def __init__(
        self, waiting: Sequence[Trial], optuna: OptunaSearch | None, new: Callable[[Point], Trial]
    ) -> None:
        super().__init__(metric=JOINT, mode="min")
        self.waiting, self.optuna, self.new = list(waiting), optuna, new

    def suggest(self, trial_id: str) -> Any:
        """Returns the name and overrides of the next trial, or that there is none."""
        point = self.optuna.suggest(trial_id) if self.optuna else None
        if self.waiting:
            trial = self.waiting.pop(0)
        elif point is not None:
            trial = self.new(point)
        else:
            return Searcher.FINISHED
        return config_of(trial)

    def configs(self) -> list[dict[str, Any]]:
        """Returns all waiting trials at once, for a population."""
        return [config_of(trial)["trial"] for trial in self.waiting]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna the outcome; a trial without finite scores has failed."""
        if self.optuna is None:
            return
        wanted: Any = self.optuna.metric
        values = [(result or {}).get(name, math.nan) for name in wanted]
        failed = error or not all(map(math.isfinite, values))
        self.optuna.on_trial_complete(trial_id, None if failed else result, error=failed)

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: Tune's own state is never read back."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: an interrupted search goes on from the records of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: nothing was saved."""


class Halving(ASHAScheduler):
    """ASHA over epochs (1810.05934) that spares some trials, and lets the last epoch end by itself.

    With several brackets it is an asynchronous Hyperband (1603.06560), and with Optuna's TPE as
    searcher what BOHB does (1807.01774): a trial's bracket, drawn at random, says when it can end
    first.

    Attributes:
        stopped: names of the trials that it ended.
    """

    def __init__(
        self, epochs: int, grace: float, spared: Sequence[str], *, brackets: int = 1
    ) -> None:
        super().__init__(
            time_attr="epoch", metric=JOINT, mode="min", max_t=epochs,
            grace_period=grace,  # pyright: ignore[reportArgumentType] (rungs are powers of it)
            reduction_factor=RUNG_FACTOR, stop_last_trials=False, brackets=brackets,
        )  # fmt: skip
        self.epochs, self.spared = epochs, frozenset(spared)
        self.stopped: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether a trial goes on after an epoch."""
        if not math.isfinite(result[JOINT]) or result["epoch"] >= self.epochs:
            return TrialScheduler.CONTINUE
        name = trial.config["trial"]["name"]
        action = super().on_trial_result(tune_controller, trial, result)
        if action != TrialScheduler.STOP or name in self.spared:
            return TrialScheduler.CONTINUE
        self.stopped.add(name)
        return action

    def fill(self, trials: Sequence[Trial]) -> None:
        """Fill the rungs with the epochs of trials that ended before."""
        for trial in trials:
            known: Any = SimpleNamespace(trial_id=trial.name, config=config_of(trial))
            self.on_trial_add(None, known)  # pyright: ignore[reportArgumentType]
            for i in range(len(trial.curve)):
                best = best_of(trial.curve[: i + 1])
                if best:
                    told = {"epoch": trial.curve[i]["epoch"], JOINT: best[JOINT]}
                    super().on_trial_result(None, known, told)  # pyright: ignore[reportArgumentType]
