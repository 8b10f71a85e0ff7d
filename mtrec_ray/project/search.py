"""The section `search` of a project file."""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from mtrec_ray.project.base import Name, Section
from mtrec_ray.project.ranges import check_range, rejoin

SearchedFields = dict[str, Annotated[str, BeforeValidator(check_range)]]


class Search(Section):
    """What the tune stage searches, with what, and how it chooses from what it found.

    `fields`: ranges of fields of this file, which may stand among the other keys of this section,
    too (`training.lr: loguniform(1e-4, 1e-2)`); null: both learning rates, within a factor of 5.
    `scenario_weights`: the scenarios' weights, uniform over the simplex (`learning/simplex.py`);
    in `grid` all its points in steps of 1 / `grid_steps`. `objectives`: one for each scenario, or
    the joint score. `asha` ends those trials early that are not among the better half after
    `grace` epochs, twice as many, and so on; with `pbt` those of the worse quarter go on every
    `grace` epochs from one of the better quarter, with values near its. Trials have `epochs` and
    `rows_per_epoch` in place of training's, and `num_workers` (null: the run's; 0: a trial is one
    process, which goes on with the next trial and has nothing to start), so many at a time
    (`concurrent`; null: as the cluster has room for). `choose` is the lowest joint score, the best
    worst-case gain over models of one scenario, which are trained, too, or the lowest mean of the
    scores by `preference`. `confirm_seeds`: so many whole runs each of the chosen and of uniform
    weights, scored on test. `pipeline_trials`: a short search that the pipeline makes, without a
    confirmation, to train with what it chose (0: none); the tune stage goes on with it.
    """

    trials: PositiveInt = 16
    algorithm: Literal["optuna", "random", "grid"] = "optuna"
    objectives: Literal["scenarios", "joint"] = "scenarios"
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    grace: PositiveInt = 1
    scenario_weights: bool = True
    grid_steps: PositiveInt = 4
    fields: SearchedFields | None = None
    epochs: PositiveInt | None = None
    rows_per_epoch: PositiveInt | None = None
    num_workers: NonNegativeInt | None = None
    concurrent: PositiveInt | None = None
    choose: Literal["joint", "worst_case", "preference"] = "joint"
    preference: dict[Name, NonNegativeFloat] = Field(default_factory=dict)
    confirm_seeds: NonNegativeInt = 0
    pipeline_trials: NonNegativeInt = 0
    seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _fields_among_the_keys(cls, tree: object) -> object:
        if not isinstance(tree, dict):
            return tree
        tree = rejoin(tree)
        inner = tree.get("fields")
        fields = rejoin(inner) if isinstance(inner, dict) else inner
        dotted = {k: tree.pop(k) for k in list(tree) if "." in str(k)}
        if dotted and (fields is None or isinstance(fields, dict)):
            fields = {**(fields or {}), **dotted}
        return tree if fields is None else tree | {"fields": fields}

    @model_validator(mode="after")
    def _preference_is_chosen(self) -> Self:
        given = sum(self.preference.values()) > 0
        if given != (self.choose == "preference"):
            raise ValueError(
                f"preference: found {self.preference or 'none'} with choose: {self.choose}; "
                "allowed: numbers above 0 by scenario, with choose: preference"
            )
        return self

    def only(self, names: Collection[str]) -> Self:
        """Returns the search over some scenarios; without a preference left it chooses `joint`."""
        preference = {n: weight for n, weight in self.preference.items() if n in names}
        if self.choose != "preference" or sum(preference.values()) > 0:
            return self.model_copy(update={"preference": preference})
        return self.model_copy(update={"preference": {}, "choose": "joint"})
