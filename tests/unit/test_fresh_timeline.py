"""Events in one scenario are seen in the timelines of the others, as in those of longer logs."""

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.elsewhere import ElsewhereFacts, Timeline
from mtrec_ray.data.end_states import stored_users, users_at_end
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.elsewhere import timelines
from mtrec_ray.data.preparing.taken_rows import Source
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.serving.event_store import open_store
from mtrec_ray.serving.fresh_crowd import FreshTimeline
from mtrec_ray.serving.fresh_rows import persons_of
from mtrec_ray.serving.fresh_state import FreshState
from tests.prepared_log import prepare_log
from tests.unit.test_fresh_state import (
    DAY,
    ITEMS,
    NUM_ITEMS,
    NUM_ROWS,
    NUM_USERS,
    events_of,
    random_log,
    scenario_of,
)

NAMES = ("live", "no time", "negatives of the log", "frozen")
LAST = 4
USERS = [f"user {i}" for i in range(NUM_USERS)] + ["nobody"]


def prepare_all(logs, scenarios, folder):
    """The layouts of logs of the same people, which share their numbers of users."""
    users = np.concatenate([log["user"][log["split"] == 0] for log in logs.values()])
    ids = pa.array([f"user {user}" for user in np.unique(users)])
    vocabulary = np.unique(hash_strings(ids))
    layouts = {}
    for name, log in logs.items():
        scenario = scenarios[name].model_copy(update={"users": "people"})
        layouts[name] = prepare_log(log, scenario, ITEMS, folder, name, vocabulary)
    facts = {name: layout.facts for name, layout in layouts.items()}
    prepared = Prepared(folder, "", facts)
    return {n: SnapshotColumns(prepared, n, own.scenario) for n, own in layouts.items()}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Logs of the same people prepared, prepared with more rows, and states with these as events.

    No two scenarios have a row of the same moment, whose order is that of a hash.
    """
    folder = tmp_path_factory.mktemp("people")
    scenarios = {name: scenario_of(name) for name in NAMES}
    logs = {name: random_log(seed, scenarios[name]) for seed, name in enumerate(NAMES)}
    logs["live"]["user"][:NUM_ROWS] %= 4  # others of its people are known elsewhere alone
    for number, log in enumerate(logs.values()):
        log["time"] += np.where(log["time"] > 0, number, 0)
    short = {n: {k: v[:NUM_ROWS].copy() for k, v in log.items()} for n, log in logs.items()}
    before = prepare_all(short, scenarios, f"{folder}/short")
    after = prepare_all(logs, scenarios, f"{folder}/long")
    store, rng = open_store(f"sqlite:///{folder}/events.sqlite"), np.random.default_rng(0)
    for name, log in logs.items():
        store.append(events_of(log, scenarios[name], rng, name))
    return before, after, {n: FreshState(layout, store) for n, layout in before.items()}


def timeline_of(layouts, name):
    """The timeline of a scenario, as `prepare` makes it of the rows of the others."""
    sources = {
        other: Source(layout.scenario, layout.facts, i, i * NUM_ITEMS, layout.prepared.folder)
        for i, (other, layout) in enumerate(layouts.items())
    }
    rows = [
        table
        for source in sources.values()
        for is_train, path, _ in source.shards()
        for table in source.rows(path, is_train)
    ]
    wanted = {name: (sources[name].number, layouts[name].timed)}
    arrays = timelines(wanted, pa.concat_tables(rows))[1][name]
    delays = {other: own.delay_ms for other, own in sources.items() if other != name}
    sizes = dict.fromkeys(layouts, NUM_ITEMS)
    facts = ElsewhereFacts(LAST, layouts[name].timed, sizes, delays)
    texts = np.zeros((NUM_ITEMS * len(layouts), 2), np.float16)
    return Timeline(facts, **arrays, texts=texts)


@pytest.mark.parametrize("name", NAMES)
def test_timelines_are_those_of_the_longer_logs(worlds, name):
    """Of all users at several moments; rows that are frozen, or have no time, are not seen."""
    before, after, states = worlds
    shorter, wanted = timeline_of(before, name), timeline_of(after, name)
    found, changed = FreshTimeline.of(shorter, name, states), 0
    person = persons_of(USERS)
    for days in (28, 32, 35, 48, 50):
        moment = np.full(len(person), days * DAY)
        own, longer = found.taken(person, moment), wanted.taken(person, moment)
        np.testing.assert_array_equal(own.items, longer.items)
        np.testing.assert_array_equal(own.ages, longer.ages)
        changed += (own.items != shorter.taken(person, moment).items).sum()
    assert (changed > 30) == after[name].timed


@pytest.mark.parametrize("name", NAMES)
def test_users_have_the_numbers_that_all_scenarios_share(worlds, name):
    """Who has a first row here has the number by which another scenario knows him."""
    before, after, states = worlds
    wanted = users_at_end(after[name], "part-00000.parquet")
    known = users_at_end(before[name], "part-00000.parquet")
    found = states[name].users(wanted.ids.tolist(), after[name].end)
    np.testing.assert_array_equal(found.user, wanted.user)
    late = ~np.isin(wanted.ids, known.ids)
    assert late.any()
    assert (wanted.user[late] > 0).any() == (name == "live")
    assert found.history.tolist() == wanted.history.tolist()


def test_a_scenario_that_joined_keeps_the_numbers_of_its_model(worlds):
    """Its own data has some of the model's users alone; events of others are told by the model."""
    before, _, _ = worlds
    layout = before["live"]
    prepared = layout.prepared.only(["live"])
    alone = SnapshotColumns(prepared, "live", layout.scenario)
    ids = users_at_end(layout, "part-00000.parquet").ids.tolist()
    store = open_store(f"sqlite:///{prepared.folder}/none.sqlite")
    wanted = FreshState(layout, store).users(ids, layout.end).user
    assert (wanted > 0).any()
    hashes = stored_users(layout.prepared, layout.facts.user_space)
    assert wanted.max() > len(stored_users(prepared, layout.facts.user_space))
    for vocabulary in (None, hashes):
        found = FreshState(alone, store, vocabulary=vocabulary).users(ids, layout.end)
        np.testing.assert_array_equal(found.user, wanted)
