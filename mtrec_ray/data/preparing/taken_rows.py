"""Rows that stand in histories, of scenarios whose users are the same people.

Of the scenarios of a project, and of those that were prepared before, beside which one of the
project joins a model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools
from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.interactions import is_met
from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.data.shards import Arrays, read_columns
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.split import SPLITS

TIE_SEED = 5  # of the order of rows that are known from the same moment on


@dataclass(frozen=True)
class Source:
    """A scenario whose prepared rows are in a timeline.

    Attributes:
        number: its place among the scenarios of its people.
        base: its first item among all of theirs.
        folder: of the prepared data that holds it.
    """

    scenario: Scenario
    facts: PreparedScenario
    number: int
    base: int
    folder: str

    @property
    def timed(self) -> bool:
        """Whether rows have a time."""
        return self.scenario.events.time is not None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose rows stand in histories."""
        live = self.timed and self.scenario.statistics == "live"
        return SPLITS if live else SPLITS[:1]

    @property
    def delay_ms(self) -> int:
        """How long after its time a row stands in histories."""
        delays = [self.scenario.label_delay(task) for task in self.scenario.history.tasks]
        return 1000 * max(delays, default=0)

    def shards(self) -> Iterator[tuple[bool, str, int]]:
        """Yields whether a shard holds training rows, its path and its rows."""
        for split in self.splits:
            for shard in self.facts.shards[split]:
                yield split == "train", storage.join(self.folder, shard.path), shard.rows

    def rows(self, path: str, is_train: bool) -> Iterator[pa.Table]:
        """Yields a shard's rows that stand in histories, as those of a timeline."""
        for arrays in read_columns([path], ("row", "person", "item", "time", "labels")):
            yield pa.table(self.listed(arrays, is_train))

    def listed(self, arrays: Arrays, is_train: bool) -> Arrays:
        """Returns those of some rows that stand in histories, as those of a timeline."""
        kept = self.is_listed(arrays)
        row, time = arrays["row"][kept], arrays["time"][kept]
        return {
            "person": arrays["person"][kept],
            "known": time + self.delay_ms if self.timed else np.full(len(time), NO_TIME),
            "item": (arrays["item"][kept] + self.base).astype(np.int32),
            "source": np.full(len(row), self.number, np.int16),
            "train": np.full(len(row), is_train),
            "tie": hash_ints(row, TIE_SEED + self.number),
        }

    def is_listed(self, arrays: Arrays) -> Bools:
        """Returns bool[N]: rows that somebody met, positives of the history's tasks."""
        tasks = self.facts.tasks
        listed = is_met(self.scenario, tasks, arrays)
        places = [tasks.index(task) for task in self.scenario.history.tasks]
        return listed & (arrays["labels"][:, places] == 1).any(1) if places else listed


@dataclass(frozen=True)
class Beside:
    """Scenarios that were prepared before, beside which another one is prepared."""

    project: Project
    prepared: Prepared


def sources_of(
    project: Project, facts: Mapping[str, PreparedScenario], folder: str, beside: Beside | None
) -> dict[str, dict[str, Source]]:
    """Returns by space of users the scenarios that have rows of theirs, those `beside` first.

    `facts` and `folder` are those of the scenarios of the project.
    """
    members: dict[str, dict[str, tuple[Scenario, PreparedScenario, str]]] = {}
    parts = [(beside.project, beside.prepared.scenarios, beside.prepared.folder)] if beside else []
    for own, known, where in [*parts, (project, facts, folder)]:
        for name, one in known.items():
            space = members.setdefault(one.user_space, {})
            space[name] = (own.scenarios[name], one, where)
    found: dict[str, dict[str, Source]] = {}
    for space, own in members.items():
        bases = np.cumsum([0, *(facts.num_items for _, facts, _ in own.values())]).tolist()
        found[space] = {
            name: Source(scenario, facts, number, bases[number], where)
            for number, (name, (scenario, facts, where)) in enumerate(own.items())
        }
    return found
