"""Events of several scenarios of the same people say what a prepare of all longer logs says."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from mtrec_ray.data.end_states import items_at_end, user_parts, users_at_end
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.project.split import SPLITS
from mtrec_ray.serving.event_store import Event, open_store
from mtrec_ray.serving.fresh_crowd import FreshTimeline
from mtrec_ray.serving.fresh_rows import persons_of
from mtrec_ray.serving.fresh_state import FreshState
from mtrec_ray.serving.incoming import check_events
from tests.cluster.logs import NUM_SLOTS, SLOT, START, write_logs
from tests.cluster.runs import prepare_in_partitions, prepared_folder
from tests.cluster.test_elsewhere import NAMES, project_of

pytestmark = [pytest.mark.cluster, pytest.mark.long]

NUM_MORE = 60
LOGS = {"logged": "ordered"}


def more_rows(log, rng):
    """Rows after the end of a log: of users and items that it knows, and of new users."""
    usable = log.rows
    rows = usable.sample(NUM_MORE, random_state=int(rng.integers(1000))).copy()
    rows["user_id"] = [
        f"newcomer {i % 5}" if i % 4 == 0 else user for i, user in enumerate(rows["user_id"])
    ]
    if "time" in rows:
        ms = np.sort(rng.choice(20 * 86_400_000, NUM_MORE, replace=False))
        late = START + SLOT * NUM_SLOTS
        time = late + pd.to_timedelta(ms, "ms")
        if not pd.api.types.is_datetime64_any_dtype(usable["time"]):  # plain seconds
            time = (time - pd.Timestamp(0)) // pd.Timedelta(seconds=1)
        rows["time"] = time
    if "split" in rows:
        rows["split"] = "test"
    return rows


def events_of(rows, name, scenario):
    """The rows as events, with the labels that they have."""
    seconds = "time" in rows and not pd.api.types.is_datetime64_any_dtype(rows["time"])
    found = []
    for number, row in enumerate(rows.to_dict("records")):
        labels = {task: row[scenario.label(task).column] for task in scenario.tasks}
        known = {task: float(value) for task, value in labels.items() if not np.isnan(value)}
        time = None
        if scenario.events.time is not None:
            moment = row["time"] * 1000 if seconds else row["time"].value // 1_000_000
            time = int(moment)
        event = Event(name, row["user_id"], row["item_id"], f"event {number}", time, known)
        found.append(event)
    return found


@pytest.fixture(scope="module")
def worlds(logs, tmp_path_factory):
    """Four logs prepared, prepared again with more rows, and the former with these as events."""
    rng = np.random.default_rng(11)
    ordered = logs["ordered"].events
    split = np.random.default_rng(5).choice(SPLITS, len(ordered))
    short = logs | {"ordered": replace(logs["ordered"], events=ordered.assign(split=split))}
    more = {n: more_rows(short[LOGS.get(n, n)], rng) for n in NAMES}
    longer = dict(short)
    for name, rows in more.items():
        log = short[LOGS.get(name, name)]
        both = pd.concat([log.events, rows], ignore_index=True)
        longer[LOGS.get(name, name)] = replace(log, events=both.astype(log.events.dtypes))
    found = []
    for words in (short, longer):
        root, storage = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("prepared")
        write_logs(root, words)
        project = project_of(root)
        prepare_in_partitions(project, storage, 1000)
        prepared = load_prepared(prepared_folder(project, str(storage)))
        found.append({n: SnapshotColumns(prepared, n, s) for n, s in project.scenarios.items()})
    before, after = found
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('store')}/events.sqlite")
    states = {name: FreshState(layout, store) for name, layout in before.items()}
    for name, rows in more.items():
        events = events_of(rows, name, before[name].scenario)
        check_events(states, events, 2**41)
        store.append(events)
    return before, after, states


def users_of(layout):
    """The users at the end of prepared data, partition by partition."""
    return [users_at_end(layout, part) for part in user_parts(layout.prepared, layout.name)]


@pytest.mark.parametrize("name", NAMES)
def test_users_and_items_are_those_of_the_longer_log(worlds, name):
    """All users, also new ones and those that other scenarios know, and all items."""
    before, after, states = worlds
    state, layout = states[name], after[name]
    assert state.now(0) == layout.end
    assert before[name].end < layout.end or not layout.timed
    new, default = 0, items_at_end(layout).default
    for wanted in users_of(layout):
        found = state.users(wanted.ids.tolist(), layout.end)
        for part in fields(wanted):
            if part.name != "categories":
                np.testing.assert_array_equal(
                    getattr(found, part.name), getattr(wanted, part.name), err_msg=part.name
                )
        for column, pairs in wanted.categories.items():
            assert told(found.categories[column], default[column]) == told(pairs, default[column])
        new += sum(user.startswith("newcomer") for user in wanted.ids)
    assert new == 5
    np.testing.assert_array_equal(state.items(layout.end).numeric, items_at_end(layout).numeric)


def told(pairs, default):
    """What is known of pairs of user and value, without those that have negatives alone."""
    return {
        (int(user), int(value)): row.tobytes()
        for user, value, row in zip(pairs.user, pairs.category, pairs.numeric, strict=True)
        if not np.array_equal(row, default, equal_nan=True)
    }


@pytest.mark.parametrize("name", NAMES)
def test_timelines_are_those_of_the_longer_logs(worlds, name):
    """What users took in the other scenarios, also those who have no row in any log."""
    before, after, states = worlds
    users = [user for layout in after.values() for part in users_of(layout) for user in part.ids]
    person = persons_of(sorted(set(users)))
    wanted = after[name].prepared.timeline(name)
    shorter = before[name].prepared.timeline(name)
    found = FreshTimeline.of(shorter, name, states)
    end = max(layout.end for layout in after.values())
    changed = 0
    for days in (-30, -5, 0, 3):
        moment = np.full(len(person), end + days * 86_400_000)
        for ours, theirs in zip(
            found.taken(person, moment), wanted.taken(person, moment), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
        changed += (shorter.taken(person, moment).items != found.taken(person, moment).items).sum()
    assert (changed > 50) == after[name].timed  # without time others' training rows are seen
