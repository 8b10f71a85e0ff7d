"""What labels that a row's user gave to other items say of the row's labels, as of its moment.

Fitted on train, task by task: in the scenario itself, and in all scenarios of the same people that
have a task of that name.

Letters: N rows, T tasks, B users who ask, M pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from mtrec_ray.candidates.label_model import LabelSource
from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.interactions import END, Moments
from mtrec_ray.data.labels import Labels, read_labels
from mtrec_ray.data.shards import Arrays
from mtrec_ray.project.project import Run
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.list_inputs import ModelByScenario, layout_of, user_space
from mtrec_ray.stages.row_sources import FITTED_BEFORE, askers
from mtrec_ray.stages.trained_model import TrainedModel

OF_CROWD = ("user_mean", "user_count", "neighbours")  # what labels elsewhere add

LabelSources = dict[str, LabelSource]  # by task


@dataclass(frozen=True)
class RowLabels:
    """Handles of the label sources of a scenario, and of its crowd; it travels."""

    model: TrainedModel
    name: str
    own: ray.ObjectRef
    of_crowd: ray.ObjectRef | None

    @property
    def fits(self) -> list[ray.ObjectRef]:
        """The handles, which tasks may still be making."""
        return [self.own] + ([self.of_crowd] if self.of_crowd is not None else [])

    def open(self) -> "OpenLabels":
        """Returns the sources, which tell of rows."""
        layout = layout_of(self.model, self.name)
        of_crowd = {} if self.of_crowd is None else ray.get(self.of_crowd)
        counted = 1 if layout.scenario.statistics == "frozen" else END
        return OpenLabels(
            self.name, layout.facts.tasks, ray.get(self.own), of_crowd, layout.timed, counted
        )


@dataclass(frozen=True)
class OpenLabels:
    """The label sources of a scenario, and of its crowd.

    Attributes:
        timed: whether rows have a time.
        counted: labels of the splits before this one are known to users.
    """

    name: str
    tasks: Sequence[str]
    own: LabelSources
    of_crowd: LabelSources
    timed: bool
    counted: int

    def of_rows(self, rows: Arrays, known: int = FITTED_BEFORE) -> dict[str, Float32s]:
        """Returns f32[N, T] by name, for rows in any order; NaN for a task that has no source.

        Where rows have no time users are known by the splits before `known`.
        """
        found: dict[str, Float32s] = {}
        shape = (len(rows["item"]), len(self.tasks))
        for moments, user, row in askers(rows, timed=self.timed, known=known):
            item = rows["item"][row].astype(np.int64)
            for i, task in enumerate(self.tasks):
                for name, values in self.of_pairs(task, moments, user, item).items():
                    column = found.setdefault(name, np.full(shape, np.nan, np.float32))
                    column[row, i] = values
        return found

    def of_pairs(self, task: str, moments: Moments, user: Ints, item: Ints) -> dict[str, Float32s]:
        """Returns f32[M] by name, of a task."""
        found = {}
        if task in self.own:
            found = self.own[task].columns(self.name, moments, self.counted, user, item)
        source = self.of_crowd.get(task)
        if source is not None and self.name in source.labels:
            wider = source.columns(self.name, moments, self.counted, user, item)
            found |= {f"crowd_{name}": wider[name] for name in OF_CROWD}
        return found


def fit_row_labels(models: ModelByScenario, run: Run) -> dict[str, RowLabels]:
    """Returns the label sources of each scenario, read and fitted by Ray tasks."""
    read, fit = (task_of(f, run, gpu=False) for f in (read_scenario_labels, fit_own_labels))
    labels = {name: read.remote(model, name) for name, model in models.items()}
    crowds: dict[str, list[str]] = {}
    for name, model in models.items():
        crowds.setdefault(user_space(model, name), []).append(name)
    fit_together = task_of(fit_crowd_labels, run, gpu=False)
    wider = {
        space: fit_together.remote(names, *(labels[name] for name in names))
        for space, names in crowds.items()
        if len(names) > 1
    }
    return {
        name: RowLabels(
            model, name, fit.remote(name, labels[name]), wider.get(user_space(model, name))
        )
        for name, model in models.items()
    }


def read_scenario_labels(model: TrainedModel, name: str) -> dict[str, Labels]:
    """Returns a scenario's labels by task; in a Ray task."""
    return read_labels(layout_of(model, name))


def fit_own_labels(name: str, labels: Mapping[str, Labels]) -> LabelSources:
    """Returns the label sources of a scenario by task; in a Ray task."""
    return {task: LabelSource.fit({name: own}, FITTED_BEFORE) for task, own in labels.items()}


def fit_crowd_labels(names: list[str], *labels: Mapping[str, Labels]) -> LabelSources:
    """Returns by task the source of all scenarios that have it, where several do; in a Ray task.

    Of a task that has labels of different sorts, those of the sort that most scenarios have.
    """
    by_task: dict[str, dict[str, Labels]] = {}
    for name, own in zip(names, labels, strict=True):
        for task, one in own.items():
            by_task.setdefault(task, {})[name] = one
    shared = {task: of_one_sort(own) for task, own in by_task.items()}
    return {t: LabelSource.fit(own, FITTED_BEFORE) for t, own in shared.items() if len(own) > 1}


def of_one_sort(labels: Mapping[str, Labels]) -> dict[str, Labels]:
    """Returns the labels of the scenarios whose sort most of them have."""
    sorts = [one.sort for one in labels.values()]
    most = max(sorts, key=sorts.count)
    return {name: one for name, one in labels.items() if one.sort == most}
