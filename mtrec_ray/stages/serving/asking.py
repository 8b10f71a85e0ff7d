"""Who asks in a scenario, as the model reads them: stored users, and histories of requests.

The rows of a stored user are those of the prepared log and of the events since; a request's history
is turned into rows of a log, too. From there on both are alike.

Letters: A askers, N rows, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mtrec_ray.candidates.crowd import Crowd
from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.interactions import Interactions, is_met
from mtrec_ray.data.preparing.events import TEST
from mtrec_ray.data.shards import Arrays, concatenate
from mtrec_ray.data.snapshot import ItemSnapshot, SnapshotColumns, UserSnapshot
from mtrec_ray.project.base import shorten
from mtrec_ray.serving.fresh_rows import label_row, persons_of
from mtrec_ray.serving.fresh_state import FreshState
from mtrec_ray.stages.serving.requests import Asker, Met

SECOND_MS = 1000


@dataclass(frozen=True)
class Known:
    """What is known of A askers.

    Attributes:
        users: each user once. place: i64[A], the user of each asker.
        crowd: what they did in all scenarios of the same people; None without lists.
        end: when they ask, in ms.
        items: the catalogue at that moment; None where no event came since the data was prepared.
    """

    users: UserSnapshot
    place: Ints
    crowd: Crowd | None
    end: int
    items: ItemSnapshot | None = None


@dataclass(frozen=True)
class Askers:
    """The state of a scenario's users.

    Attributes:
        state: of the scenario; `states`: of all scenarios whose people are the same.
        crowd: what these people did until the end of the prepared data; None without lists.
        columns: by scenario of the crowd, which label says what was taken.
    """

    name: str
    states: Mapping[str, FreshState]
    crowd: Crowd | None
    columns: Mapping[str, int]

    @property
    def state(self) -> FreshState:
        """That of the scenario itself."""
        return self.states[self.name]

    @property
    def layout(self) -> SnapshotColumns:
        """Where the columns of the scenario's rows stand."""
        return self.state.layout

    @cached_property
    def prepared_end(self) -> int:
        """The end of the crowd's rows in the prepared data, in ms."""
        return self.layout.end if self.crowd is None else self.crowd.end

    def problems(self, ask: Asker) -> list[str]:
        """Returns a line for each mistake in who asks."""
        if (ask.user is None) == (ask.history is None):
            found = "neither" if ask.user is None else "both"
            return [f"user: found {found} user and history; allowed: one of the two"]
        lines = []
        for number, met in enumerate(ask.history or ()):
            where = f"history.{number}"
            if met.item not in self.state.fresh.item_of:
                found = f"{where}.item: found {shorten(met.item)}"
                lines.append(f"{found}; allowed: an item of the catalogue of {self.name}")
            lines += label_problems(f"{where}.labels", met.labels, self.layout)
        return lines

    def known(self, asks: Sequence[Asker]) -> Known:
        """Returns what is known of those who ask, in their order."""
        for state in self.states.values():
            state.fresh.follow()
        moment = self.moment
        ids = [ask.user or request_id(number) for number, ask in enumerate(asks)]
        distinct = list(dict.fromkeys(ids))
        own = self.rows_of_requests(asks, moment)
        stored = persons_of([ask.user for ask in asks if ask.user is not None])
        rows = concatenate([self.state.rows_of(np.unique(stored)), own])
        users = self.state.users_of(rows, distinct, moment)
        place = {name: number for number, name in enumerate(distinct)}
        crowd = None if self.crowd is None else self.crowd_of(users.person, own)
        rows_of_asks = np.array([place[name] for name in ids])
        return Known(users, rows_of_asks, crowd, self.end, self.items(moment))

    @property
    def moment(self) -> int:
        """When users ask: just after the last row of the scenario, in ms."""
        return max(self.layout.end, last_time(self.state) + 1)

    @property
    def end(self) -> int:
        """When all labels of the crowd's rows are known, in ms."""
        ends = [self.prepared_end]
        if self.crowd is not None:
            ends += [
                last_time(self.states[name]) + rows.delay_ms + 1
                for name, rows in self.crowd.scenarios.items()
                if name in self.states
            ]
        return max(ends)

    def items(self, moment: int) -> ItemSnapshot | None:
        """Returns the catalogue as of now; None where it is that of the prepared data."""
        if not len(self.state.fresh.labels):
            return None
        return self.state.items(moment)

    def crowd_of(self, persons: Ints, own: Arrays) -> Crowd:
        """Returns what some persons did; `own`: rows of requests in this scenario."""
        assert self.crowd is not None
        found = {}
        for name, rows in self.crowd.scenarios.items():
            more = [self.states[name].fresh.of(persons)] if name in self.states else []
            more += [own] if name == self.name else []
            layout = self.states[name].layout if name in self.states else self.layout
            found[name] = with_rows(rows, persons, more, layout, self.columns[name])
        return Crowd(found)

    def rows_of_requests(self, asks: Sequence[Asker], moment: int) -> Arrays:
        """Returns the histories of requests as rows: row, person, item, time, labels, split."""
        parts = [
            self.rows_of_history(request_id(number), ask.history, moment)
            for number, ask in enumerate(asks)
            if ask.user is None and ask.history
        ]
        num_tasks = len(self.layout.facts.tasks)
        none = {n: np.zeros(0, np.int64) for n in ("row", "person", "item", "time")}
        empty = {"labels": np.zeros((0, num_tasks), np.float32), "split": np.zeros(0, np.int8)}
        return concatenate([{**none, **empty}, *parts])

    def rows_of_history(self, name: str, history: Sequence[Met], moment: int) -> Arrays:
        """Returns a history, the latest item last, as rows of a pseudonymous user."""
        layout, state = self.layout, self.state
        labels = [label_row(layout.scenario, met.labels or self.positive) for met in history]
        time = times_of(history, moment - self.delay_ms) if layout.timed else [0] * len(history)
        return {
            "row": state.log.next_row + np.arange(len(history)),
            "person": np.repeat(persons_of([name]), len(history)),
            "item": np.array([state.fresh.item_of[met.item] for met in history], np.int64),
            "time": np.array(time, np.int64),
            "labels": np.array(labels, np.float32),
            "split": np.full(len(history), TEST, np.int8),
        }

    @cached_property
    def positive(self) -> dict[str, float]:
        """The labels of an item of which a request says nothing more: what histories hold."""
        scenario, main = self.layout.scenario, self.layout.facts.main
        tasks = list(scenario.history.tasks) or ([main] if main else [])
        return {above: 1.0 for task in tasks for above in scenario.chain(task)}

    @cached_property
    def delay_ms(self) -> int:
        """How long after its row all labels of `positive` are known, in ms."""
        delays = dict(zip(self.layout.facts.tasks, self.layout.delays_ms, strict=True))
        return max([delays[task] for task in self.positive], default=0)


def request_id(number: int) -> str:
    """Returns the id of an asker who has none; no id of a user has a zero in it."""
    return f"\0{number}"


def last_time(state: FreshState) -> int:
    """Returns the time of the latest event, in ms; 0 without any."""
    return max(state.fresh.rows["time"], default=0)


def times_of(history: Sequence[Met], moment: int) -> list[int]:
    """Returns when each item of a history was met, in ms; the latest a second before a moment."""
    times, later = [], moment
    for met in reversed(history):
        ago = met.seconds_ago
        later = later - SECOND_MS if ago is None else min(later, moment - round(ago * SECOND_MS))
        times.append(later)
    return times[::-1]


def label_problems(where: str, labels: Mapping[str, float], layout: SnapshotColumns) -> list[str]:
    """Returns a line for each label of what is no task, or of a value that it cannot have."""
    kinds, lines = layout.facts.kinds, []
    for task, value in labels.items():
        if task not in kinds:
            allowed = ", ".join(kinds)
            lines.append(f"{where}: found {shorten(task)}; allowed: {allowed}")
        elif kinds[task] == "binary" and value not in (0, 1):
            lines.append(f"{where}.{task}: found {value:g}; allowed: 0 or 1")
    return lines


def with_rows(
    rows: Interactions, persons: Ints, more: Sequence[Arrays], layout: SnapshotColumns, column: int
) -> Interactions:
    """Returns the rows of some persons, with those that came since."""
    distinct = np.unique(persons)
    start = np.searchsorted(rows.person, distinct, side="left")
    size = np.searchsorted(rows.person, distinct, side="right") - start
    place = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size - start, size)
    parts = [rows.of(place), *(interactions_of(part, layout, column, rows) for part in more)]

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    person, time = both("person"), both("time")
    order = np.lexsort([np.arange(len(person)), time, person])
    columns = [both(name)[order] for name in ("item", "time", "split", "taken")]
    return Interactions(person[order], *columns, rows.num_items, rows.delay_ms)


def interactions_of(
    rows: Arrays, layout: SnapshotColumns, column: int, like: Interactions
) -> Interactions:
    """Returns rows of a log that somebody met, in the order of their numbers."""
    met = np.flatnonzero(is_met(layout.scenario, layout.facts.tasks, rows))
    met = met[np.argsort(rows["row"][met], kind="stable")]
    taken = rows["labels"][met, column] == 1
    return Interactions(
        rows["person"][met], rows["item"][met], rows["time"][met], rows["split"][met], taken,
        like.num_items, like.delay_ms,
    )  # fmt: skip
