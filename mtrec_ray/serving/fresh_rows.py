"""Events as rows of a scenario's log: those that came since its data was prepared.

A longer log would have them at its end, in the order of their arrival. They are rows of `test`:
what was fitted on training stays. Events from before the end of the data are rows of the log
already, and those of items that the catalogue lacks are no rows, as in `prepare`.

Letters: N rows, T tasks.
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.preparing.events import TEST
from mtrec_ray.data.shards import Arrays
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.project.classes import reads_alike
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.task import Task
from mtrec_ray.serving.event_store import EVENTS_AT_ONCE, EventStore, LabelValue, StoredEvent


class FreshRows:
    """The rows of a scenario that follow from a store, which other processes write, too."""

    def __init__(
        self, layout: SnapshotColumns, store: EventStore, item_ids: Sequence[str], first_row: int
    ) -> None:
        """`item_ids` are those of the catalogue; `first_row` is the number of the next row."""
        self.layout, self.store, self.first_row = layout, store, first_row
        self.item_of = {name: place for place, name in enumerate(item_ids)}
        self.sequence = 0
        self.places: dict[int, int] = {}  # in the lists, by the number of the event
        self.of_person: dict[int, list[int]] = {}
        self.rows: dict[str, list[int]] = {n: [] for n in ("row", "person", "item", "time")}
        self.labels: list[Float32s] = []
        self.touched: list[int] = []  # the item of each change
        self.latest = 0  # time of a row
        self.lock = threading.Lock()

    def follow(self) -> int:
        """Read what changed in the store; returns the sequence of the latest change."""
        with self.lock:
            while found := self.store.after(self.sequence, self.layout.name):
                for stored in found:
                    self._take(stored)
                self.sequence = found[-1].sequence
                if len(found) < EVENTS_AT_ONCE:
                    break
            return self.sequence

    def _take(self, stored: StoredEvent) -> None:
        event, layout = stored.event, self.layout
        labels = label_row(layout.scenario, event.labels)
        known = self.places.get(stored.number)
        if known is not None:
            self.labels[known] = labels
            self.touched.append(self.rows["item"][known])
            return
        item = self.item_of.get(event.item)
        time = stored.arrived if event.time is None else event.time
        if item is None or (layout.timed and time < layout.end):
            return
        place = len(self.labels)
        person = int(persons_of([event.user])[0])
        moment = time if layout.timed else 0
        values = (self.first_row + stored.number, person, item, moment)
        for column, value in zip(self.rows.values(), values, strict=True):
            column.append(value)
        self.labels.append(labels)
        self.places[stored.number] = place
        self.touched.append(item)
        self.latest = max(self.latest, moment)
        self.of_person.setdefault(person, []).append(place)

    def of(self, persons: Ints) -> Arrays:
        """Returns the rows of some persons, without an order: row, person, item, time, labels."""
        with self.lock:
            places = [p for person in persons.tolist() for p in self.of_person.get(person, ())]
            return self._arrays(places)

    def all(self) -> tuple[int, Arrays]:
        """Returns how often rows changed, and all of them in the order of arrival."""
        with self.lock:
            return len(self.touched), self._arrays(range(len(self.labels)))

    @property
    def num_touched(self) -> int:
        """How often rows came or changed."""
        return len(self.touched)

    def touched_after(self, number: int) -> Ints:
        """Returns the items of the changes after the first ones."""
        return np.array(self.touched[number:], np.int64)

    def _arrays(self, places: Sequence[int]) -> Arrays:
        found = {n: np.array([c[p] for p in places], np.int64) for n, c in self.rows.items()}
        num_tasks = len(self.layout.facts.tasks)
        labels = np.array([self.labels[p] for p in places], np.float32).reshape(-1, num_tasks)
        return {**found, "labels": labels, "split": np.full(len(places), TEST, np.int8)}


def persons_of(users: Sequence[str]) -> Ints:
    """Returns i64[N], hashes of the ids of users."""
    return hash_strings(pa.array(list(users), pa.string())).view(np.int64)


def label_row(scenario: Scenario, told: Mapping[str, LabelValue]) -> Float32s:
    """Returns f32[T]: labels, NaN where unknown or where a task above is not positive."""
    values = {name: label_of(scenario.tasks[name], told.get(name)) for name in scenario.tasks}
    return np.array(
        [
            value if all(values[above] == 1 for above in scenario.chain(name)[1:]) else np.nan
            for name, value in values.items()
        ],
        np.float32,
    )


def label_of(task: Task, told: LabelValue | None) -> float:
    """Returns the label that an event tells of a task; of a class its place."""
    if task.label.always:
        return 1.0
    if told is None:
        return float("nan")
    if task.classes is not None:
        return float([reads_alike(value, told) for value in task.classes].index(True))
    return float(told)
