"""The section `search` of a project file."""

import math
from collections.abc import Collection, Iterator
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from mtrec_ray.project.base import Name, Section
from mtrec_ray.project.ranges import Range

RUNG_FACTOR = 4  # of epochs from one rung to the next, and of trials (1810.05934)


class Search(Section):
    """What the tune stage tries, with which algorithm, and how it chooses from what it tried.

    Ranges may also stand beside the other keys: `training.lr: {loguniform: [1e-4, 1e-2]}`.
    """

    trials: PositiveInt = Field(
        default=16, description="Number of trials; a higher one continues a finished search."
    )
    algorithm: Literal["optuna", "random", "grid"] = Field(
        default="optuna",
        description="What suggests values: Optuna's TPE, random draws, or all combinations of a "
        "grid, whatever `trials` is.",
    )
    objectives: Literal["scenarios", "joint"] = Field(
        default="scenarios",
        description="Optuna minimises one score per scenario, or the joint score.",
    )
    scheduler: Literal["asha", "hyperband", "pbt", "none"] = Field(
        default="asha",
        description="asha stops trials outside the best quarter; hyperband spares some of them for "
        "longer; pbt lets the worse quarter continue from the better quarter with values nearby.",
    )
    grace: PositiveFloat | None = Field(
        default=None,
        description="Epochs before asha and hyperband can end a trial, and again after four times "
        "as many; of pbt between moves. null: 0.25; of pbt 1.",
    )
    valid_rows: PositiveInt | None = Field(
        default=20_000,
        description="Rows of each scenario's valid that score a trial, at most. null: as many as "
        "in training.",
    )
    scenario_weights: bool = Field(
        default=True, description="Searches the scenarios' weights, uniformly over the simplex."
    )
    grid_steps: PositiveInt = Field(
        default=4, description="A grid takes the scenarios' weights in steps of 1 / grid_steps."
    )
    fields: dict[str, Range] | None = Field(
        default=None,
        description="Ranges by field of this file. null: both learning rates, from a fifth to five "
        "times theirs; {}: none.",
    )
    epochs: PositiveInt | None = Field(
        default=None, description="Epochs of a trial. null: those of `training`."
    )
    rows_per_epoch: PositiveInt | None = Field(
        default=None, description="Training rows per epoch of a trial. null: those of `training`."
    )
    num_workers: NonNegativeInt | None = Field(
        default=None,
        description="Workers of a trial. null: as many as `run` has; 0: one process runs one trial "
        "after another.",
    )
    concurrent: PositiveInt | None = Field(
        default=None, description="Trials at a time. null: as many as the cluster has room for."
    )
    choose: Literal["joint", "worst_case", "preference"] = Field(
        default="joint",
        description="The chosen trial has the lowest joint score, the best worst gain over models "
        "of one scenario, or the lowest mean score weighted by `preference`.",
    )
    preference: dict[Name, NonNegativeFloat] = Field(
        default_factory=dict,
        description="Weights of the scenarios' scores, for `choose: preference`.",
    )
    confirm_seeds: NonNegativeInt = Field(
        default=0,
        description="Whole runs each of the chosen values (also with the own weights), of uniform "
        "weights and of the own values, scored on test. 0: none.",
    )
    pipeline_trials: NonNegativeInt = Field(
        default=0,
        description="Trials of a short search in the pipeline, which trains with its choice. "
        "0: no search.",
    )
    seed: NonNegativeInt = Field(default=0, description="Seed of the suggested values.")

    @classmethod
    def read(cls, tree: object) -> object:
        """Returns the section with the ranges that stand among its keys below `fields`."""
        if not isinstance(tree, dict):
            return tree
        dotted = {key: value for key, value in tree.items() if "." in str(key)}
        fields = tree.get("fields")
        if not dotted or not isinstance(fields, dict | None):
            return tree
        rest = {key: value for key, value in tree.items() if key not in dotted}
        return rest | {"fields": {**(fields or {}), **dotted}}

    @property
    def first_stop(self) -> float:
        """Epochs before a trial can be ended, or moved."""
        return self.grace or (1.0 if self.scheduler == "pbt" else 0.25)

    def validations(self, epochs: int) -> int | list[float]:
        """Returns the validations of a trial: after each epoch, and where it can end or move."""
        first, after = self.first_stop, {float(epoch) for epoch in range(1, epochs + 1)}
        if self.scheduler in ("asha", "hyperband"):
            rungs = (first * RUNG_FACTOR**k for k in range(64))
            after |= {rung for rung in rungs if rung < epochs}
        elif self.scheduler == "pbt":
            after |= {first * k for k in range(1, math.ceil(epochs / first))}
        return sorted(after) if len(after) > epochs else 1

    def check_preference(self) -> Iterator[str]:
        """Yields a line for weights of scores without `choose: preference`, or it without them."""
        given = sum(self.preference.values()) > 0
        if given != (self.choose == "preference"):
            yield (
                f"preference: found {self.preference or 'none'} with choose: {self.choose}; "
                "allowed: numbers above 0 by scenario, with choose: preference"
            )

    def only(self, names: Collection[str]) -> Self:
        """Returns the search over some scenarios; without a preference left it chooses `joint`."""
        preference = {n: weight for n, weight in self.preference.items() if n in names}
        if self.choose != "preference" or sum(preference.values()) > 0:
            return self.model_copy(update={"preference": preference})
        return self.model_copy(update={"preference": {}, "choose": "joint"})
