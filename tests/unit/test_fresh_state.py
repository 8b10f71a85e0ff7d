"""What events change is what a prepare of the longer log says, of every user and item.

A random log is prepared, and again with more rows at its end. The fresh state over the first, with
those rows as events in random pieces, equals the end of the second to the bit.
"""

import tempfile
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.candidates.crowd import Crowd
from mtrec_ray.data.end_states import items_at_end, users_at_end
from mtrec_ray.data.interactions import END, Moments, read_interactions
from mtrec_ray.data.labels import read_labels
from mtrec_ray.data.snapshot import new_users
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.task import Task
from mtrec_ray.serving.event_store import Event, open_store
from mtrec_ray.serving.fresh_crowd import fresh_crowd, fresh_labels
from mtrec_ray.serving.fresh_rows import is_label, label_of, persons_of
from mtrec_ray.serving.fresh_state import FreshState
from mtrec_ray.serving.incoming import check_events
from tests.builders import project_tree, scenario_tree
from tests.prepared_log import prepare_log

HOUR, DAY = 3_600_000, 86_400_000
NUM_ITEMS, NUM_USERS, NUM_ROWS, NUM_MORE = 9, 9, 120, 40
ITEMS = pa.table({
    "item_id": [f"item {i}" for i in range(NUM_ITEMS)],
    "brand": ["a", "b", None, "a", "c", None, "b", "d", "a"],
    "tags": ["x|y", "y", None, "z|x", "", "x", "y|x", "w", "y"],
    "published": pa.array([5 * DAY, None, 0, 30 * DAY, DAY, 0, 9 * DAY, 0, None],
                          pa.timestamp("ms")),
})  # fmt: skip
TASKS = {
    "click": {"kind": "binary"},
    "buy": {"kind": "binary", "given": "click", "delay": "3d"},
    "stars": {"kind": "regression", "delay": "1d"},
    "mood": {"kind": "multiclass", "classes": ["bad", "good", "great"], "gains": {"good": 2}},
}
TIMED = {"events": {"path": "e", "time": "time"}}
CASES = {
    "live": TIMED | {"history": {"of": ["click", "buy"], "last": 4, "outcomes": True}},
    "frozen": TIMED | {"statistics": "frozen"},
    "cuts": TIMED | {"split": {"time": ["1970-01-21", "1970-01-26"]}},
    "negatives of the log": TIMED | {"negatives": {"of": "click", "from": "log"}},
    "drawn negatives": TIMED | {"negatives": {"of": "click"}},
    "no time": {"events": {"path": "e"}, "history": {"of": "any", "last": 4, "outcomes": True}},
}


def scenario_of(case):
    """A scenario with categories, several values, delays and a task of most kinds."""
    items = {
        "path": "i", "text": "{title}", "categorical": ["brand"], "separators": {"tags": "|"},
        "statistics_of": ["tags", "brand"],
    }  # fmt: skip
    if case != "no time":
        items["published"] = "published"
    tree = {"items": items, "history": {"of": "any", "last": 4}} | CASES[case]
    return parse_project(project_tree({"video": scenario_tree(TASKS, **tree)})).scenarios["video"]


def random_log(seed, scenario):
    """A log whose last rows are of test and later than all others; some users are new there."""
    rng = np.random.default_rng(seed)
    num = NUM_ROWS + NUM_MORE
    later = np.arange(num) >= NUM_ROWS
    time = np.where(later, rng.integers(61, 90, num), rng.integers(0, 60, num)) * 12 * HOUR
    split = np.where(later, 2, rng.choice(3, num, p=[0.7, 0.2, 0.1]))
    if scenario.split.time:
        split = np.searchsorted([20 * DAY, 25 * DAY], time, side="right")
    click = np.where(rng.random(num) < 0.1, np.nan, rng.integers(0, 2, num))
    labels = [
        click,
        np.where(click == 1, rng.integers(0, 2, num), np.nan),
        np.where(rng.random(num) < 0.4, np.nan, rng.integers(1, 6, num)),
        np.where(rng.random(num) < 0.3, np.nan, rng.integers(0, 3, num)),
    ]
    return {
        "user": rng.integers(0, np.where(later, NUM_USERS, NUM_USERS - 2)),
        "item": rng.integers(0, NUM_ITEMS - 1, num),
        "time": time if scenario.events.time else np.zeros(num, np.int64),
        "split": split.astype(np.int8),
        "labels": np.stack(labels, 1),
    }


def events_of(log, scenario, rng, name="video"):
    """The last rows as events: some labels are told later, and some events twice."""
    first, later = [], []
    for row in range(NUM_ROWS, len(log["user"])):
        labels = {
            task: scenario.tasks[task].classes[int(value)] if task == "mood" else float(value)
            for task, value in zip(TASKS, log["labels"][row], strict=True)
            if not np.isnan(value)
        }
        early = {task: value for task, value in labels.items() if rng.random() < 0.7}
        first.append((row, early))
        if len(early) < len(labels) or rng.random() < 0.2:
            later.append((row, labels))
    rng.shuffle(later)
    time = log["time"].tolist() if scenario.events.time else [None] * len(log["user"])
    return [
        Event(name, f"user {log['user'][row]}", f"item {log['item'][row]}", f"event {row}",
              time[row], labels)
        for row, labels in first + later
    ]  # fmt: skip


class Worlds:
    """A log prepared twice, and the fresh state of the shorter one with no event yet."""

    def __init__(self, seed, case, folder):
        scenario = scenario_of(case)
        log = random_log(seed, scenario)
        short = {name: values[:NUM_ROWS].copy() for name, values in log.items()}
        self.before = prepare_log(short, scenario, ITEMS, f"{folder}/short")
        self.after = prepare_log(log, scenario, ITEMS, f"{folder}/long")
        self.rng = np.random.default_rng(seed)
        self.events = events_of(log, scenario, self.rng)
        self.store = open_store(f"sqlite:///{folder}/events.sqlite")
        self.state = FreshState(self.before, self.store)
        self.default = self.state.at_end.default

    def append(self, events):
        """Append the events in pieces."""
        while events:
            size = int(self.rng.integers(1, 12))
            self.store.append(events[:size])
            events = events[size:]


def assert_same_users(found, wanted, default):
    """All that two snapshots say of users is the same to the bit."""
    for part in fields(wanted):
        if part.name != "categories":
            np.testing.assert_array_equal(
                getattr(found, part.name), getattr(wanted, part.name), err_msg=part.name
            )
    assert set(found.categories) == set(wanted.categories)
    for column, pairs in wanted.categories.items():
        ours, theirs = (told_pairs(p, default[column]) for p in (found.categories[column], pairs))
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other, err_msg=column)


def told_pairs(pairs, default):
    """Sorted pairs of user and value, without those of whom nothing is known but negatives."""
    known = ~(np.isclose(pairs.numeric, default, 0, 0, equal_nan=True)).all(1)
    order = np.lexsort([pairs.category, pairs.user])
    order = order[known[order]]
    return pairs.user[order], pairs.category[order], pairs.numeric[order]


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_events_say_what_a_longer_log_says(case, seed):
    """All users and items, and what all users met and took, equal those of the longer log."""
    with tempfile.TemporaryDirectory() as folder:
        worlds = Worlds(seed, case, folder)
        state, after = worlds.state, worlds.after
        before, default = known(worlds.before), worlds.default
        assert_same_users(state.users(before.ids.tolist(), worlds.before.end), before, default)
        half = len(worlds.events) // 2
        worlds.append(worlds.events[:half])
        state.items(state.now(0))
        worlds.append(worlds.events[half:])
        wanted = known(after)
        assert state.now(0) == after.end
        assert_same_users(state.users(wanted.ids.tolist(), after.end), wanted, default)
        items = items_at_end(after)
        found = state.items(after.end)
        np.testing.assert_array_equal(found.numeric, items.numeric)
        some = worlds.rng.integers(0, NUM_ITEMS, 5)
        np.testing.assert_array_equal(state.columns(some, after.end), items.numeric[some])
        assert_same_crowds(worlds, wanted)


def known(layout):
    """The users at the end of prepared data."""
    return users_at_end(layout, "part-00000.parquet")


def assert_same_crowds(worlds, users):
    """What users met and took is that of the longer log, of all users or of some."""
    before, after = (
        Crowd({"video": read_interactions(layout, "click")})
        for layout in (worlds.before, worlds.after)
    )
    states, tasks = {"video": worlds.state}, {"video": "click"}
    whole = fresh_crowd(before, states, tasks).scenarios["video"]
    for part in ("person", "item", "time", "split", "taken"):
        wanted = getattr(after.scenarios["video"], part)
        np.testing.assert_array_equal(getattr(whole, part), wanted, err_msg=part)
    some = users.person[::3]
    times = np.full(len(some), after.end) if worlds.after.timed else None
    moments = Moments(some, times, END)
    asked, wanted = (
        crowd.ask("video", moments, 3)
        for crowd in (fresh_crowd(before, states, tasks, some), after)
    )
    assert (asked.taken != wanted.taken).nnz == (asked.recent != wanted.recent).nnz == 0
    np.testing.assert_array_equal(asked.history, wanted.history)
    np.testing.assert_array_equal(asked.met, wanted.met)
    for task, labels in read_labels(worlds.after).items():
        own = fresh_labels(read_labels(worlds.before)[task], worlds.state, task)
        np.testing.assert_array_equal(own.values, labels.values)
        np.testing.assert_array_equal(own.rows.time, labels.rows.time)
        np.testing.assert_array_equal(own.rows.item, labels.rows.item)


def test_only_what_events_touched_is_made_again(tmp_path):
    """Within the time of a refresh other items stay as they were; touched ones are exact."""
    worlds = Worlds(3, "live", tmp_path)
    state, moment = worlds.state, worlds.before.end
    first = state.items(moment).numeric
    time = moment + HOUR
    worlds.store.append([Event("video", "user 0", "item 4", "one", time, {"click": 1.0})])
    found = state.items(time + 1, refresh_ms=DAY).numeric
    exact = state.columns(np.arange(NUM_ITEMS), time + 1)
    touched = np.array([4])  # no other item has its brand, and it has no tags
    np.testing.assert_array_equal(found[touched], exact[touched])
    others = np.setdiff1d(np.arange(NUM_ITEMS), touched)
    np.testing.assert_array_equal(found[others], first[others])
    assert (exact[others] != first[others]).any()
    np.testing.assert_array_equal(state.items(time + 1).numeric, exact)


def test_brands_and_tags_carry_what_happened_to_other_items(tmp_path):
    """An event changes the columns of all items with the same brand or a common tag."""
    worlds = Worlds(5, "live", tmp_path)
    state, moment = worlds.state, worlds.before.end + 1
    state.items(moment)
    worlds.store.append([Event("video", "user 0", "item 0", "one", moment - 1, {"click": 1.0})])
    found = state.items(moment, refresh_ms=0).numeric
    held = state.items(moment, refresh_ms=DAY).numeric
    np.testing.assert_array_equal(held, found)
    worlds.store.append([Event("video", "user 1", "item 3", "two", moment - 1, {"click": 0.0})])
    np.testing.assert_array_equal(
        state.items(moment, refresh_ms=DAY).numeric, state.columns(np.arange(NUM_ITEMS), moment)
    )


def test_items_may_lag_but_users_do_not(tmp_path):
    """With a lag the rows of items are not sorted after each event; they are sorted later."""
    worlds = Worlds(5, "live", tmp_path)
    state, moment = FreshState(worlds.before, worlds.store, lag_s=1e9), worlds.before.end + 1
    every = np.arange(NUM_ITEMS)
    first = state.columns(every, moment)
    user = state.users(["user 0"], moment).numeric
    worlds.store.append([Event("video", "user 0", "item 0", "one", moment - 1, {"click": 1.0})])
    np.testing.assert_array_equal(state.columns(every, moment), first)
    assert not np.array_equal(state.users(["user 0"], moment).numeric, user, equal_nan=True)
    held = state.items(moment, refresh_ms=DAY).numeric
    np.testing.assert_array_equal(held, first)
    state.lag_s = 0.0
    exact = worlds.state.columns(every, moment)
    assert not np.array_equal(exact, first, equal_nan=True)
    np.testing.assert_array_equal(state.columns(every, moment), exact)
    np.testing.assert_array_equal(state.items(moment, refresh_ms=DAY).numeric, exact)


def test_new_users_and_the_order_of_those_who_ask(tmp_path):
    """Users come in the order in which they are asked for; without a row they are new."""
    worlds = Worlds(4, "live", tmp_path)
    state, end = worlds.state, worlds.before.end
    ids = ["user 3", "nobody", "user 1", "user 3", "nobody"]
    found = state.users(ids, end + 5)
    assert found.ids.tolist() == ids
    assert_same_users(found.of(1, 2), new_users(worlds.before, ["nobody"], end + 5), worlds.default)
    alone = state.users(["user 1"], end + 5)
    assert_same_users(found.of(2, 3), alone, worlds.default)
    assert_same_users(found.of(3, 5), found.of(0, 2), worlds.default)
    assert len(found.categories["brand"].user) > len(alone.categories["brand"].user)
    assert len(state.users([], end)) == 0
    worlds.store.append([Event("video", "nobody", "item 2", "x", end + 4, {"click": 1.0})])
    delay = 3 * DAY  # of the later one of the history's tasks
    assert state.users(["nobody"], end + 5 + delay).history[0, 0] == 2
    assert (state.users(["nobody"], end + 4 + delay).history == -1).all()  # strictly before


def test_a_user_who_asks_later_has_older_rows(tmp_path):
    """Without an event only ages, windows and the calendar change with the moment."""
    worlds = Worlds(8, "live", tmp_path)
    ids = known(worlds.before).ids.tolist()
    now, later = (worlds.state.users(ids, worlds.before.end + days * DAY) for days in (7, 40))
    np.testing.assert_array_equal(now.history, later.history)
    assert (later.ages >= now.ages).all()
    assert (later.ages > now.ages).any()
    names = worlds.before.names
    count, week = names.index("user.log_count"), names.index("user.log_count_7d")
    np.testing.assert_array_equal(now.numeric[:, count], later.numeric[:, count])
    assert (later.numeric[:, week] == 0).all()


def test_an_event_without_a_time_happened_when_it_arrived(tmp_path):
    """Its row has the moment at which the store first had it, however often it is sent."""
    worlds = Worlds(6, "live", tmp_path)
    state, told = worlds.state, Event("video", "user 1", "item 2", "a", None, {"click": 1.0})
    worlds.store.append([told])
    (stored,) = worlds.store.after(0, "video")
    worlds.store.append([told])
    assert state.now(0) == stored.arrived + 1
    late = stored.arrived + 3 * DAY  # when both tasks of the history are known
    assert state.users(["user 1"], late + 1).history[0, 0] == 2
    assert state.users(["user 1"], late).history[0, 0] != 2


def test_the_store_may_hold_what_this_model_does_not_know(tmp_path):
    """Events of other items, or from before the end of the data, change nothing."""
    worlds = Worlds(9, "live", tmp_path)
    end = worlds.before.end
    before = worlds.state.users(["user 1"], end)
    worlds.store.append(
        [
            Event("video", "user 1", "another item", "a", end, {"click": 1.0}),
            Event("video", "user 1", "item 2", "b", end - 1, {"click": 1.0}),
            Event("other", "user 1", "item 2", "c", end, {"click": 1.0}),
        ]
    )
    assert_same_users(worlds.state.users(["user 1"], end), before, worlds.default)
    assert worlds.state.now(0) == end
    persons = persons_of(["user 1"])
    own = Crowd({"video": read_interactions(worlds.before, "click")})
    rows = fresh_crowd(own, {"video": worlds.state}, {"video": "click"}, persons)
    assert len(rows.scenarios["video"]) == (own.scenarios["video"].person == persons[0]).sum()


def problems(worlds, **fields):
    """The lines for an event with some fields changed."""
    now = worlds.before.end + HOUR
    told = {"scenario": "video", "user": "user 1", "item": "item 2", "id": "a", "time": now}
    try:
        check_events({"video": worlds.state}, [Event(**told | fields)], now)
    except ProjectError as error:
        return error.problems
    return []


def test_good_events_are_taken(tmp_path):
    """Labels as far as they are known, of each kind; times from the end of the data until now."""
    worlds = Worlds(1, "live", tmp_path)
    end = worlds.before.end
    labels = {"click": 0, "buy": True, "stars": -2.5, "mood": "great"}
    for told in ({}, {"labels": labels}, {"time": None}, {"time": end},
                 {"time": end + HOUR + 60_000}):  # fmt: skip
        assert problems(worlds, **told) == []


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"scenario": "shop"}, "scenario: found 'shop'; allowed: one of ['video']"),
        ({"user": ""}, "user: found ''; allowed: a text that is not empty"),
        ({"id": ""}, "id: found ''; allowed: a text that is not empty"),
        ({"item": "x"}, "item: found 'x'; allowed: an item of the catalogue of video"),
        ({"time": 5}, "time: found 5; allowed: ms since 1970 from {end}, the end of the prepared "
         "data, to {latest}, a minute from now"),
        ({"time": 2**62}, "time: found 4611686018427387904; allowed: ms since 1970 from {end}, "
         "the end of the prepared data, to {latest}, a minute from now"),
        ({"labels": {"likes": 1}},
         "labels: found 'likes'; allowed: tasks, click, buy, stars, mood"),
        ({"labels": {"click": 2}}, "labels.click: found 2; allowed: 0 or 1"),
        ({"labels": {"click": float("nan")}}, "labels.click: found NaN; allowed: 0 or 1"),
        ({"labels": {"stars": 1e39}}, "labels.stars: found 1e+39; allowed: a finite number"),
        ({"labels": {"stars": "5"}}, "labels.stars: found '5'; allowed: a finite number"),
        ({"labels": {"mood": "sad"}},
         'labels.mood: found \'sad\'; allowed: ["bad", "good", "great"]'),
    ],
)  # fmt: skip
def test_wrong_events_are_one_line(tmp_path, fields, line):
    """The field, what was found and what is allowed."""
    worlds = Worlds(1, "live", tmp_path)
    end = worlds.before.end
    wanted = line.replace("{end}", str(end)).replace("{latest}", str(end + HOUR + 60_000))
    assert problems(worlds, **fields) == [f"events[0].{wanted}"]


def test_a_log_without_time_takes_no_times(tmp_path):
    """What the log does not have an event cannot tell."""
    worlds = Worlds(1, "no time", tmp_path)
    line = "events[0].time: found 7; allowed: none, as the log of video has no time"
    assert problems(worlds, time=7) == [line]
    assert problems(worlds, time=None) == []


@pytest.mark.parametrize(
    ("task", "good", "wrong"),
    [
        (Task(kind="count"), [0, 3.0, 2**40], [-1, 0.5, True, "1", float("inf")]),
        (Task(kind="duration"), [0, 0.5, 1e30], [-0.1, True, None, float("nan")]),
        (Task(kind="regression"), [-7, 0.5], [False, 4e38, [1]]),
        (Task(kind="binary"), [0, 1.0, True], [0.5, "yes"]),
        (Task(kind="binary", label={"always": 1}), [1, True], [0]),
        (Task(kind="multiclass", classes=(1, 5)), [1, 5.0, "5"], [2, True + 1, [5], None]),
    ],
)
def test_labels_of_each_kind(task, good, wrong):
    """What a task may have is read; all else is refused, and unknown where it is in a store."""
    assert all(is_label(task, value) for value in good)
    assert not any(is_label(task, value) for value in wrong)
    if not task.label.always:
        assert all(np.isnan(label_of(task, value)) for value in wrong)
    assert [label_of(task, value) for value in good if not task.classes] == [
        float(value) for value in good if not task.classes
    ]
