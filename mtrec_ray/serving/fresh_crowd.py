"""What users took since the data was prepared, where lists and timelines look for it.

Each function takes the fresh states of the scenarios by name; those of a crowd are the scenarios
whose users are the same people. Rows of a person stay in the order of time, because events come
after the log: those of a log without time come after all of its rows.

Letters: P persons, N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mtrec_ray.candidates.crowd import Crowd
from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.elsewhere import COLUMNS, Taken, Timeline
from mtrec_ray.data.interactions import Interactions, is_met
from mtrec_ray.data.labels import Labels, labels_of
from mtrec_ray.data.preparing.taken_rows import Source
from mtrec_ray.data.shards import Arrays, concatenate
from mtrec_ray.serving.fresh_state import FreshState


def fresh_crowd(
    crowd: Crowd,
    states: Mapping[str, FreshState],
    tasks: Mapping[str, str],
    persons: Ints | None = None,
) -> Crowd:
    """Returns a crowd with the events of its people since the end of the data.

    It has the rows of `persons` i64[P] alone, which is quick, or those of all. `tasks`: by scenario
    the task whose positives say what was taken.
    """
    found = {}
    for name, rows in crowd.scenarios.items():
        own = rows if persons is None else rows_of_persons(rows, persons)
        state = states.get(name)
        found[name] = own if state is None else with_events(own, state, tasks[name], persons)
    return Crowd(found)


def rows_of_persons(rows: Interactions, persons: Ints) -> Interactions:
    """Returns the rows of some persons."""
    return rows.of(places_of(rows.person, persons))


def places_of(person: Ints, persons: Ints) -> Ints:
    """Returns the places of some persons in the sorted i64[N], in their order."""
    persons = np.unique(persons)
    start = np.searchsorted(person, persons, side="left")
    size = np.searchsorted(person, persons, side="right") - start
    return np.arange(size.sum()) - np.repeat(np.cumsum(size) - size - start, size)


def with_events(
    rows: Interactions, state: FreshState, task: str, persons: Ints | None
) -> Interactions:
    """Returns rows with those events of some or all persons by which they met an item."""
    fresh = met_events(state, persons)
    taken = fresh["labels"][:, state.layout.facts.tasks.index(task)] == 1
    order = np.argsort(np.concatenate([rows.person, fresh["person"]]), kind="stable")

    def both(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.concatenate([first, second])[order]

    return Interactions(
        both(rows.person, fresh["person"]), both(rows.item, fresh["item"]),
        both(rows.time, fresh["time"]), both(rows.split, fresh["split"]), both(rows.taken, taken),
        rows.num_items, rows.delay_ms,
    )  # fmt: skip


def met_events(state: FreshState, persons: Ints | None) -> Arrays:
    """Returns the events of some or all persons that met an item, sorted by person and time."""
    state.fresh.follow()
    rows = state.fresh.all()[1] if persons is None else state.fresh.of(np.unique(persons))
    met = is_met(state.layout.scenario, state.layout.facts.tasks, rows)
    order = np.lexsort([rows["row"], rows["time"], rows["person"]])
    return {name: values[order[met[order]]] for name, values in rows.items()}


def fresh_labels(
    labels: Labels, state: FreshState, task: str, persons: Ints | None = None
) -> Labels:
    """Returns the labels of a task with those that events told, of some or all persons."""
    layout = state.layout
    own = labels if persons is None else labels.take(places_of(labels.rows.person, persons))
    rows = met_events(state, persons)
    fresh = labels_of(layout, rows, layout.facts.tasks.index(task))

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(own.rows, name), getattr(fresh.rows, name)])

    order = np.lexsort([both("time"), both("person")])  # of equal times the log's come first
    joined = Interactions(
        both("person"), both("item"), both("time"), both("split"), both("taken"),
        own.rows.num_items,
    ).of(order)  # fmt: skip
    return Labels(joined, np.concatenate([own.values, fresh.values])[order], labels.sort)


@dataclass(frozen=True)
class FreshTimeline(Timeline):
    """A timeline with the events since the end of the data of the other scenarios.

    Attributes:
        sources: the other scenarios by name, as a timeline sees them.
        states: where their events come from.
    """

    sources: Mapping[str, Source] = field(default_factory=dict)
    states: Mapping[str, FreshState] = field(default_factory=dict)

    @classmethod
    def of(cls, timeline: Timeline, name: str, states: Mapping[str, FreshState]) -> "FreshTimeline":
        """Returns the timeline of a scenario with the events of the others."""
        facts = timeline.facts
        sources = {
            other: Source(
                states[other].layout.scenario, states[other].layout.facts,
                facts.scenarios.index(other), facts.base(other), "",
            )
            for other in facts.scenarios
            if other != name and other in states
        }  # fmt: skip
        return cls(
            facts, timeline.person, timeline.known, timeline.item, timeline.texts, sources, states
        )

    def taken(self, person: Ints, moment: Ints) -> Taken:
        """Returns the last items of persons i64[N] before the moment of each, in ms."""
        fresh = self._events(np.unique(person))
        if fresh is None or not len(fresh["person"]):
            return super().taken(person, moment)
        places = places_of(self.person, person)
        kept = {name: getattr(self, name)[places] for name in COLUMNS}
        both = {name: np.concatenate([kept[name], fresh[name]]) for name in COLUMNS}
        tie = np.concatenate([np.zeros(len(places), np.uint64), fresh["tie"]])
        order = np.lexsort([tie, both["known"], both["person"]])
        arrays = {name: values[order] for name, values in both.items()}
        return Timeline(self.facts, **arrays, texts=self.texts).taken(person, moment)

    def _events(self, persons: Ints) -> Arrays | None:
        """Returns the events of persons in scenarios whose later rows stand in histories."""
        parts = []
        for name, source in self.sources.items():
            if self.facts.timed and "test" in source.splits:
                self.states[name].fresh.follow()
                parts.append(source.listed(self.states[name].fresh.of(persons), is_train=False))
        return concatenate(parts) if parts else None
