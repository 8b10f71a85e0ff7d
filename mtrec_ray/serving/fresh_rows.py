"""Events as rows of a scenario's log: those that came since its data was prepared.

A longer log would have them at its end, in the order of their arrival. They are rows of `test`:
what was fitted on training stays. Events from before the end of the data are rows of the log
already, and those of items that the catalogue lacks are no rows, as in `prepare`.

Letters: N rows, T tasks.
"""

import math
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

LARGEST = 3.4e38  # of 32 bits


class GrowingRows:
    """Columns of rows that are appended one by one: row, person, item, time i64, labels f32[T]."""

    def __init__(self, num_tasks: int) -> None:
        self.num = 0
        self.numbers = np.zeros((1024, 4), np.int64)
        self.labels = np.zeros((1024, num_tasks), np.float32)

    def append(self, row: int, person: int, item: int, time: int, labels: Float32s) -> int:
        """Add a row; returns its place."""
        if self.num == len(self.numbers):
            self.numbers = np.concatenate([self.numbers, np.zeros_like(self.numbers)])
            self.labels = np.concatenate([self.labels, np.zeros_like(self.labels)])
        self.numbers[self.num] = row, person, item, time
        self.labels[self.num] = labels
        self.num += 1
        return self.num - 1

    def take(self, places: Ints) -> Arrays:
        """Returns some rows, which are of test."""
        row, person, item, time = self.numbers[places].T
        found = {"row": row, "person": person, "item": item, "time": time}
        arrays = {name: np.ascontiguousarray(values) for name, values in found.items()}
        split = np.full(len(places), TEST, np.int8)
        return {**arrays, "labels": self.labels[places], "split": split}


class FreshRows:
    """The rows of a scenario that follow from a store, which other processes write, too."""

    def __init__(
        self, layout: SnapshotColumns, store: EventStore, item_ids: Sequence[str], first_row: int
    ) -> None:
        """`item_ids` are those of the catalogue; `first_row` is the number of the next row."""
        self.layout, self.store, self.first_row = layout, store, first_row
        self.item_of = {name: place for place, name in enumerate(item_ids)}
        self.sequence = 0
        self.rows = GrowingRows(len(layout.facts.tasks))
        self.place_of: dict[int, int] = {}  # of a row, by the number of the event
        self.of_person: dict[int, list[int]] = {}
        self.touched: list[int] = []  # the item of each change
        self.latest = 0  # time of a row
        self.lock = threading.Lock()

    def follow(self) -> int:
        """Read what changed in the store; returns the sequence of the latest change."""
        with self.lock:
            while found := self.store.after(self.sequence, self.layout.name):
                persons = persons_of([stored.event.user for stored in found])
                for stored, person in zip(found, persons.tolist(), strict=True):
                    self._take(stored, person)
                self.sequence = found[-1].sequence
                if len(found) < EVENTS_AT_ONCE:
                    break
            return self.sequence

    def _take(self, stored: StoredEvent, person: int) -> None:
        event, layout = stored.event, self.layout
        item = self.item_of.get(event.item)
        time = stored.arrived if event.time is None else event.time
        if item is None or (layout.timed and time < layout.end):
            return
        labels = label_row(layout.scenario, event.labels)
        place = self.place_of.get(stored.number)
        if place is None:
            moment = time if layout.timed else 0
            row = self.first_row + stored.number
            place = self.rows.append(row, person, item, moment, labels)
            self.place_of[stored.number] = place
            self.of_person.setdefault(person, []).append(place)
            self.latest = max(self.latest, moment)
        self.rows.labels[place] = labels
        self.touched.append(item)

    def of(self, persons: Ints) -> Arrays:
        """Returns the rows of some persons, without an order: row, person, item, time, labels."""
        with self.lock:
            places = [p for person in persons.tolist() for p in self.of_person.get(person, ())]
            return self.rows.take(np.array(places, np.int64))

    def all(self) -> tuple[int, Arrays]:
        """Returns how often rows changed, and all of them in the order of arrival."""
        with self.lock:
            return len(self.touched), self.rows.take(np.arange(self.rows.num))

    @property
    def num_touched(self) -> int:
        """How often rows came or changed."""
        return len(self.touched)

    def touched_after(self, number: int) -> Ints:
        """Returns the items of the changes after the first ones."""
        return np.array(self.touched[number:], np.int64)


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


def label_of(task: Task, told: object) -> float:
    """Returns the label that an event tells of a task; of a class its place.

    NaN where it tells none, or what only another version of the project reads.
    """
    if task.label.always:
        return 1.0
    if not is_label(task, told):
        return float("nan")
    if task.classes is not None and isinstance(told, str | int | float):
        return float([reads_alike(value, told) for value in task.classes].index(True))
    return float(told) if isinstance(told, int | float) else float("nan")


def is_label(task: Task, value: object) -> bool:
    """Returns whether a task may have a label."""
    if task.classes is not None:
        if not isinstance(value, str | int | float):
            return False
        return any(reads_alike(own, value) for own in task.classes)
    if not isinstance(value, int | float) or not abs(value) <= LARGEST:  # nor NaN
        return False
    if task.label.always:
        return value == 1
    if task.kind == "binary":
        return value in (0, 1)
    whole = task.kind != "count" or math.floor(value) == value
    least = 0 if task.kind in ("count", "duration") else -LARGEST
    return not isinstance(value, bool) and value >= least and whole
