"""Whether events may be appended: one line for each mistake, as for a project file."""

from collections.abc import Iterator, Mapping, Sequence

from mtrec_ray.data.columns import LATEST_MS
from mtrec_ray.project.base import refuse, shorten
from mtrec_ray.project.task import Task
from mtrec_ray.serving.event_store import Event
from mtrec_ray.serving.fresh_rows import is_label
from mtrec_ray.serving.fresh_state import FreshState

SKEW_MS = 60_000  # by which the clock of whoever tells an event may be ahead
KINDS = {
    "binary": "0 or 1",
    "regression": "a finite number",
    "count": "a whole number from 0 on",
    "duration": "a finite number from 0 on",
}


def check_events(states: Mapping[str, FreshState], events: Sequence[Event], clock: int) -> None:
    """Refuse events that a prepare of the longer log would leave out or not read.

    `states`: of the scenarios by name. `clock`: now, in ms since 1970.

    Raises:
        ProjectError: a line for each mistake, which names the event by its place.
    """
    refuse(
        [
            f"events[{place}].{line}"
            for place, event in enumerate(events)
            for line in event_problems(states, event, clock)
        ]
    )


def event_problems(states: Mapping[str, FreshState], event: Event, clock: int) -> Iterator[str]:
    """Yields a line for each mistake of an event."""
    state = states.get(event.scenario)
    if state is None:
        yield f"scenario: found {shorten(event.scenario)}; allowed: one of {sorted(states)}"
        return
    for name in ("user", "id"):
        if not getattr(event, name):
            yield f"{name}: found ''; allowed: a text that is not empty"
    if event.item not in state.fresh.item_of:
        yield (
            f"item: found {shorten(event.item)}; allowed: an item of the catalogue of "
            f"{event.scenario}"
        )
    yield from time_problems(state, event, clock)
    yield from label_problems(state.layout.scenario.tasks, event.labels)


def time_problems(state: FreshState, event: Event, clock: int) -> Iterator[str]:
    """Yields a line for a time that is no moment between the end of the data and now.

    An event from before the end belongs into the log: a model was trained on what happened then.
    """
    time, end = event.time, state.layout.end
    if time is None:
        return
    if not state.layout.timed:
        yield f"time: found {time}; allowed: none, as the log of {event.scenario} has no time"
    elif not end <= time <= min(clock + SKEW_MS, LATEST_MS):
        yield (
            f"time: found {time}; allowed: ms since 1970 from {end}, the end of the prepared data, "
            f"to {min(clock + SKEW_MS, LATEST_MS)}, a minute from now"
        )


def label_problems(tasks: Mapping[str, Task], labels: Mapping[str, object]) -> Iterator[str]:
    """Yields a line for each label of no task, or that its task cannot have."""
    for name, value in labels.items():
        task = tasks.get(name)
        if task is None:
            yield f"labels: found {shorten(name)}; allowed: tasks, {', '.join(tasks)}"
        elif not is_label(task, value):
            yield f"labels.{name}: found {shorten(value)}; allowed: {allowed_labels(task)}"


def allowed_labels(task: Task) -> str:
    """Returns what the labels of a task may be, in words."""
    if task.label.always:
        return "1, as every row of the log is a positive"
    return shorten(list(task.classes)) if task.classes else KINDS[task.kind]
