"""Who asks in a scenario, as the model reads them: stored users, and histories of requests.

The rows of a stored user are those of the prepared log and of the events since; a request's history
is turned into rows of a log, too. From there on both are alike.

Letters: A askers, N rows, T tasks.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mtrec_ray.candidates.crowd import Crowd
from mtrec_ray.candidates.label_model import LabelSource
from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.interactions import Interactions, is_met
from mtrec_ray.data.labels import Labels, labels_of
from mtrec_ray.data.preparing.events import TEST
from mtrec_ray.data.shards import Arrays, concatenate
from mtrec_ray.data.snapshot import SnapshotColumns, UserSnapshot
from mtrec_ray.project.base import shorten
from mtrec_ray.serving.fresh_crowd import fresh_crowd, fresh_labels
from mtrec_ray.serving.fresh_rows import label_row, persons_of
from mtrec_ray.serving.fresh_state import FreshState
from mtrec_ray.serving.incoming import label_problems
from mtrec_ray.stages.predictions import Beside
from mtrec_ray.stages.serving.profiles import RequestProfiles, users_by_profile
from mtrec_ray.stages.serving.requests import Asker, Met

SECOND_MS = 1000

Columns = Callable[[Ints], Float32s]


@dataclass(frozen=True)
class Known:
    """What is known of A askers.

    Attributes:
        users: each user once. place: i64[A], the user of each asker.
        crowd: what they did in all scenarios of the same people; None without lists.
        beside: tells what stands beside the network what they did.
        end: when they ask, in ms.
        columns: the columns f32[m, F] of items i64[m] at that moment; None: those of the end of the
            prepared data.
        new_values: of each user, the values of a request's profile that training does not know.
    """

    users: UserSnapshot
    place: Ints
    crowd: Crowd | None
    beside: Callable[[Beside], Beside]
    end: int
    columns: Columns | None = None
    new_values: Sequence[Mapping[str, list[str]]] = ()


@dataclass(frozen=True)
class Askers:
    """The state of a scenario's users.

    Attributes:
        states: of all scenarios whose people are the same, its own among them.
        crowd: what these people did until the end of the prepared data; None without lists.
        tasks: by scenario of the crowd, whose positives say what was taken.
        by_clock: whether users ask at the time of the clock, and not just after the latest row.
        profiles: reads those of requests; None: `no_profiles` says why not.
    """

    name: str
    states: Mapping[str, FreshState]
    crowd: Crowd | None
    tasks: Mapping[str, str]
    by_clock: bool = False
    profiles: RequestProfiles | None = None
    no_profiles: str = ""

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
        known = (ask.user is not None) + (ask.history is not None)
        if known > 1 or not (known or ask.profile):
            found = "neither" if ask.user is None else "both"
            return [f"user: found {found} user and history; allowed: one of the two"]
        lines = []
        for number, met in enumerate(ask.history or ()):
            where = f"history.{number}"
            if met.item not in self.state.fresh.item_of:
                found = f"{where}.item: found {shorten(met.item)}"
                lines.append(f"{found}; allowed: an item of the catalogue of {self.name}")
            tasks = self.layout.scenario.tasks
            lines += [f"{where}.{line}" for line in label_problems(tasks, met.labels)]
        return lines + self.profile_problems(ask)

    def profile_problems(self, ask: Asker) -> list[str]:
        """Returns a line for each mistake in a request's profile."""
        if ask.profile is None:
            return []
        if self.profiles is None:
            return [f"profile: {self.no_profiles}"]
        stored = ask.user is not None
        return [f"profile.{x}" for x in self.profiles.reader.problems(ask.profile, stored=stored)]

    def known(self, asks: Sequence[Asker]) -> Known:
        """Returns what is known of those who ask, in their order."""
        clock = round(time.time() * SECOND_MS) if self.by_clock else 0
        moment = self.state.now(clock)
        ids = [ask.user or request_id(number) for number, ask in enumerate(asks)]
        first, place = users_by_profile(ids, [ask.profile for ask in asks])
        own = self.rows_of_requests(asks, moment)
        stored = persons_of([ask.user for ask in asks if ask.user is not None])
        rows = concatenate([self.state.rows_of(np.unique(stored)), own])
        users, new_values = self.users(
            [asks[n] for n in first], [ids[n] for n in first], rows, moment
        )
        crowd = None if self.crowd is None else self.crowd_of(users.person, own)
        return Known(
            users=users,
            place=place,
            crowd=crowd,
            beside=lambda beside: self.told(beside, users, crowd, own),
            end=self.end(clock),
            columns=self.columns(moment),
            new_values=new_values,
        )

    def users(
        self, asks: Sequence[Asker], ids: Sequence[str], rows: Arrays, moment: int
    ) -> tuple[UserSnapshot, Sequence[Mapping[str, list[str]]]]:
        """Returns users with the profile that each asks with, and what values of it are unknown.

        `rows`: all that they have; one who asks with two profiles is there twice.
        """
        distinct = list(dict.fromkeys(ids))
        users = self.state.users_of(rows, distinct, moment)
        if len(distinct) < len(ids):
            users = users.take(np.array([distinct.index(name) for name in ids]))
        if self.profiles is None:
            return users, [{}] * len(ids)
        return self.profiles.given_to(users, [ask.profile for ask in asks])

    def end(self, clock: int) -> int:
        """Returns when all labels of the crowd's rows are known, in ms; not before a clock."""
        if self.crowd is None:
            return self.state.now(clock)
        ends = [
            self.states[name].fresh.latest + rows.delay_ms + 1
            for name, rows in self.crowd.scenarios.items()
            if name in self.states
        ]
        return max(clock, self.prepared_end, *ends)

    def columns(self, moment: int) -> Columns | None:
        """Returns the columns of items at a moment; None where they are those of the end."""
        state = self.state
        if moment == self.layout.end and not state.fresh.num_touched:
            return None
        return lambda item: state.columns(item, moment)

    def crowd_of(self, persons: Ints, own: Arrays) -> Crowd:
        """Returns what some persons did; `own`: rows of requests in this scenario."""
        assert self.crowd is not None
        found = dict(fresh_crowd(self.crowd, self.states, self.tasks, persons).scenarios)
        if len(own["row"]):
            column = self.layout.facts.tasks.index(self.tasks[self.name])
            found[self.name] = with_rows(found[self.name], own, self.layout, column)
        return Crowd(found)

    def told(self, beside: Beside, users: UserSnapshot, crowd: Crowd | None, own: Arrays) -> Beside:
        """Returns what stands beside the network, as it knows what some users did by now."""
        persons, trees = users.person, beside.trees
        sources, labels = beside.sources, beside.labels
        if trees is not None and users.given is not None:
            trees = trees.with_given(users.given)
        if sources is not None and crowd is not None:
            sources = replace(sources, crowd=crowd)
        if labels is not None:
            of_crowd, of_own = (
                {
                    task: self.labels_now(task, source, persons, own)
                    for task, source in by_task.items()
                }
                for by_task in (labels.of_crowd, labels.own)
            )
            labels = replace(labels, own=of_own, of_crowd=of_crowd)
        return replace(beside, trees=trees, sources=sources, labels=labels)

    def labels_now(self, task: str, source: LabelSource, persons: Ints, own: Arrays) -> LabelSource:
        """Returns a source of labels with those that some persons gave by now."""
        found = {
            name: fresh_labels(labels, self.states[name], task, persons)
            for name, labels in source.labels.items()
        }
        if self.name in found and len(own["row"]):
            found[self.name] = with_labels(found[self.name], own, self.layout, task)
        return replace(source, labels=found)

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
        times = times_of(history, moment - self.delay_ms) if layout.timed else [0] * len(history)
        return {
            "row": state.log.next_row + np.arange(len(history)),
            "person": np.repeat(persons_of([name]), len(history)),
            "item": np.array([state.fresh.item_of[met.item] for met in history], np.int64),
            "time": np.array(times, np.int64),
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


def times_of(history: Sequence[Met], moment: int) -> list[int]:
    """Returns when each item of a history was met, in ms; the latest a second before a moment."""
    times, later = [], moment
    for met in reversed(history):
        ago = met.seconds_ago
        later = later - SECOND_MS if ago is None else min(later, moment - round(ago * SECOND_MS))
        times.append(later)
    return times[::-1]


def with_rows(
    rows: Interactions, more: Arrays, layout: SnapshotColumns, column: int
) -> Interactions:
    """Returns rows with others of persons who have none; `column` of the labels is the taken."""
    met = np.flatnonzero(is_met(layout.scenario, layout.facts.tasks, more))
    taken = more["labels"][met, column] == 1
    fresh = Interactions(
        more["person"][met], more["item"][met], more["time"][met], more["split"][met], taken,
        rows.num_items, rows.delay_ms,
    )  # fmt: skip
    both, _ = joined(rows, fresh)
    return both


def joined(first: Interactions, second: Interactions) -> tuple[Interactions, Ints]:
    """Returns the rows of other persons in one order, and where each stood in the two."""

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    order = np.argsort(both("person"), kind="stable")
    rows = Interactions(
        both("person"), both("item"), both("time"), both("split"), both("taken"),
        first.num_items, first.delay_ms,
    )  # fmt: skip
    return rows.of(order), order


def with_labels(labels: Labels, more: Arrays, layout: SnapshotColumns, task: str) -> Labels:
    """Returns labels of a task with those of rows of persons who have none."""
    fresh = labels_of(layout, more, layout.facts.tasks.index(task))
    rows, order = joined(labels.rows, fresh.rows)
    return Labels(rows, np.concatenate([labels.values, fresh.values])[order], labels.sort)
