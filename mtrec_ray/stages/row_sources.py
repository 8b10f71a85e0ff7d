"""What the sources of candidates say of rows of the log, each row as of its own moment.

They are fitted on the rows of train, as the network is; what the row's own user did counts up to
its moment (without time: what he did in train), in all scenarios whose users are the same people.

Letters: N rows, B users who ask at a moment, M pairs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import ray

from mtrec_ray.candidates.sources import HISTORY, Sources, Taken, Texts, fit_sources
from mtrec_ray.data.arrays import Float32s, Floats, Ints
from mtrec_ray.data.end_states import read_catalogue
from mtrec_ray.data.interactions import END, Moments
from mtrec_ray.data.shards import Arrays
from mtrec_ray.project.project import Run
from mtrec_ray.project.split import SPLITS
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.list_inputs import ListInputs, fit_crowds

FITTED_BEFORE = SPLITS.index("valid")
ASK_AT_ONCE = 1024
SUMS = ("item_knn", "item_knn_recent", "ease", "crowd_knn", "crowd_ease")  # over what was taken


@dataclass(frozen=True)
class RowSources:
    """Handles of what a scenario's sources rest on; it travels.

    Attributes:
        own, of_crowd: the fits of what was taken in the scenario, and in all of the same people
            (None where it is alone).
    """

    inputs: ListInputs
    own: ray.ObjectRef
    of_crowd: ray.ObjectRef | None

    @property
    def fits(self) -> list[ray.ObjectRef]:
        """The handles of fits, which tasks may still be making."""
        return [self.own] + ([self.of_crowd] if self.of_crowd is not None else [])

    def open(self) -> Sources:
        """Returns the sources, which score pairs; texts need no index for that."""
        layout = self.inputs.layout()
        return fit_sources(
            ray.get(self.inputs.crowd),
            self.inputs.name,
            FITTED_BEFORE,
            Texts({name: ray.get(ref) for name, ref in self.inputs.texts.items()}),
            read_catalogue(layout).published,
            None if self.of_crowd is None else ray.get(self.of_crowd),
            1 if layout.scenario.statistics == "frozen" else END,
            own=ray.get(self.own),
        )


def fit_row_sources(inputs: Mapping[str, ListInputs], run: Run) -> dict[str, RowSources]:
    """Returns the sources of each scenario, fitted by Ray tasks."""
    crowds = fit_crowds(inputs, run, FITTED_BEFORE)
    fit = task_of(fit_own, run, gpu=False)
    return {name: RowSources(own, fit.remote(own), crowds[name]) for name, own in inputs.items()}


def fit_own(inputs: ListInputs) -> Taken:
    """Returns the fit of what was taken in a scenario; in a Ray task."""
    return Taken.fit(ray.get(inputs.crowd).only(inputs.name), FITTED_BEFORE)


def scores_of_rows(
    sources: Sources, rows: Arrays, *, timed: bool, known: int = FITTED_BEFORE
) -> dict[str, Float32s]:
    """Returns f32[N] by source, for rows in any order.

    `timed`: whether rows have a time; without one users are known by the splits before `known`.
    """
    found = {name: np.zeros(len(rows["item"]), np.float32) for name in sources.by_name}
    for moments, user, row in askers(rows, timed=timed, known=known):
        asked = sources.crowd.ask(sources.name, moments, HISTORY)
        item = rows["item"][row].astype(np.int64)
        for name, scores in sources.scores(asked).items():
            found[name][row] = scores.at(user, item)
    return found


def with_logarithms(scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """Returns scores, and of those that are sums over many items log(1 + 10 score), too.

    A first item that speaks for another one says more than a tenth one.
    """
    logs = {f"log_{n}": np.log1p(10 * scores[n].clip(min=0)) for n in SUMS if n in scores}
    return {**scores, **logs}


def askers(
    rows: Arrays, *, timed: bool, known: int = FITTED_BEFORE
) -> Iterator[tuple[Moments, Ints, Ints]]:
    """Yields users i64[B] who ask at a moment, and their pairs: user i64[M] of these, row i64[M].

    Rows of a user that are of one moment are asked for together.
    """
    person, time = rows["person"].astype(np.int64), rows["time"].astype(np.int64)
    order = np.lexsort([time, person])
    person, time = person[order], time[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(person) != 0) | (timed & (np.diff(time) != 0))
    first = np.flatnonzero(starts)
    asker = np.cumsum(starts) - 1
    for start in range(0, len(first), ASK_AT_ONCE):
        own = first[start : start + ASK_AT_ONCE]
        low, high = np.searchsorted(asker, [start, start + len(own)])
        times = time[own] if timed else None
        yield Moments(person[own], times, known), asker[low:high] - start, order[low:high]
