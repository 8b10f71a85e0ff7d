"""Population based training (1711.09846) by Ray Tune: worse trials go on from better ones.

After every `search.grace` epochs a trial of the worse quarter takes the checkpoint of one of the
better quarter, and that one's values, moved at random. A trial's last values
follow others: only a confirmation tells whether they are good from the first step on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ray.train import Checkpoint
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from mtrec_ray.data import storage
from mtrec_ray.search.space import Point, Space
from mtrec_ray.stages.in_process import LATEST, read_latest
from mtrec_ray.training.context import NO_SCORE

LATEST_SCORE = "latest_score"


SPREAD = 0.15  # standard deviation of a move, as a share of the range (or of its logarithm)


RESAMPLED = 0.1  # share of values that are drawn anew


class Population(PopulationBasedTraining):
    """PBT over epochs; trials that are references keep their values."""

    def __init__(
        self, space: Space, epochs: int, grace: float, spared: Sequence[str], seed: int
    ) -> None:
        super().__init__(
            time_attr="epoch", metric=LATEST_SCORE, mode="min", perturbation_interval=grace,
            custom_explore_fn=dict, log_config=False,
        )  # fmt: skip
        self.space, self.epochs, self.spared = space, epochs, frozenset(spared)
        self.rng = np.random.default_rng(seed)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether a trial goes on, waits for others, or goes on from a better one."""
        if not math.isfinite(result[LATEST_SCORE]) or result["epoch"] >= self.epochs:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def _quantiles(self) -> tuple[list[Any], list[Any]]:
        lower, upper = super()._quantiles()
        return [t for t in lower if t.config["trial"]["name"] not in self.spared], upper

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        own, better = trial.config["trial"], trial_to_clone.config["trial"]
        point = moved(self.space, better["point"], self.rng)
        changed = {"point": point, "overrides": self.space.overrides(point)}
        return {"trial": own | changed | {"from": better["name"]}}, {}


def moved(space: Space, point: Mapping[str, Any], rng: np.random.Generator) -> Point:
    """Returns a point nearby: numbers move by a part of their range; few values are drawn anew."""
    return {n: moved_value(of, point[n], rng) for n, of in space.distributions().items()}


def moved_value(of: Any, value: Any, rng: np.random.Generator) -> Any:
    """Returns a value near another one in its distribution."""
    anew = rng.random() < RESAMPLED
    if isinstance(of, CategoricalDistribution):
        return of.choices[rng.integers(len(of.choices))] if anew else value
    assert isinstance(of, FloatDistribution | IntDistribution)
    log = isinstance(of, FloatDistribution) and of.log
    low, high, at = (math.log(x) if log else float(x) for x in (of.low, of.high, value))
    other = rng.uniform(low, high) if anew else rng.normal(at, SPREAD * (high - low))
    moved_number = min(max(math.exp(other) if log else other, of.low), of.high)
    return round(moved_number) if isinstance(of, IntDistribution) else float(moved_number)


def checkpoint_of(folder: str) -> Checkpoint:
    """Returns the latest checkpoint of a trial in its own process, for Tune to pass on."""
    fs, inner = storage.filesystem(storage.join(folder, read_latest(folder)["name"]))
    return Checkpoint(inner, fs)


def adopt(checkpoint: Checkpoint, folder: str) -> None:
    """Make a checkpoint, its own or a better trial's, the one that a trial goes on from."""
    with checkpoint.as_directory() as local:
        name = "checkpoint_taken"
        for file in sorted(storage.files(local)):
            target = storage.join(folder, name, storage.name_of(file))
            storage.write_bytes(target, storage.read_bytes(file))
    best = read_latest(folder).get("best", NO_SCORE)
    storage.write_json(storage.join(folder, LATEST), {"name": name, "best": best})
