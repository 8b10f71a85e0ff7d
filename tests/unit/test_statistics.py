"""Features come from strictly earlier rows and known labels, or from other folds: never their own.

The loops below are the definitions, row by row; the vectorised code must equal them.
"""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.data.catalogue import NO_TIME, ItemLookup
from mtrec_ray.data.columns import DAY_MS, hash_strings, matrix
from mtrec_ray.data.preparing import features, statistics
from mtrec_ray.data.preparing.events import Findings, canonical
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.past import Past
from mtrec_ray.data.preparing.scan import LogSource, scan_rows
from mtrec_ray.data.preparing.statistics import KeyedRows
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.split import SPLITS
from tests.builders import project_tree, scenario_tree

nan = math.nan
PRIORS = (0.3, 2.0)
WINDOWS = {"1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}

# Days with a millisecond to either side: ties, and rows just inside and outside of a window.
moments = st.builds(
    lambda day, ms: day * DAY_MS + ms, st.integers(-3, 33), st.sampled_from([-1, 0, 0, 1])
)
delays = st.sampled_from([0, 1, DAY_MS, 7 * DAY_MS, 100 * DAY_MS])
labels = st.sampled_from([0.0, 1.0, 1.0, 4.5, nan])
timed_rows = st.lists(
    st.tuples(st.integers(0, 2), moments, labels, labels, st.booleans()), min_size=1, max_size=25
)
folded_rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-1, 4), labels, labels, st.booleans()),
    min_size=1,
    max_size=25,
)


def rows_of(table, folded=False) -> KeyedRows:
    key, second, first_label, second_label, counts = (np.array(c) for c in zip(*table, strict=True))
    both = np.stack([first_label, second_label], 1)
    if folded:
        return KeyedRows(key, np.zeros(len(key), np.int64), both, counts & (second >= 0), second)
    return KeyedRows(key, second, both, counts)


def by_name(values, kind, timed):
    names = statistics.feature_names(kind, ["a", "b"], timed)
    return [dict(zip(names, row, strict=True)) for row in values.tolist()]


def smoothed(values, prior):
    known = [v for v in values if not math.isnan(v)]
    return len(known), (sum(known) + 10 * prior) / (len(known) + 10)


def looped_statistics(rows, i, delays_ms):
    """The statistics of row i where rows have a time."""
    t = rows.time[i]
    mine = [j for j in range(len(rows.key)) if rows.key[j] == rows.key[i] and rows.counts[j]]
    past = [j for j in mine if rows.time[j] < t]
    found = {"item.log_count": math.log(1 + len(past))}
    for name, length in WINDOWS.items():
        recent = [j for j in past if rows.time[j] >= t - length]
        found[f"item.log_count_{name}"] = math.log(1 + len(recent))
    moments = [rows.time[j] for j in past]
    for name, moment in (("first", min(moments, default=nan)), ("last", max(moments, default=nan))):
        found[f"item.log_seconds_since_{name}"] = math.log(1 + (t - moment) / 1000)
    for task, label, delay, prior in zip("ab", (0, 1), delays_ms, PRIORS, strict=True):
        until = t - delay
        past = [j for j in mine if rows.time[j] < until]
        known, rate = smoothed([rows.labels[j, label] for j in past], prior)
        found |= {f"item.log_known.{task}": math.log(1 + known), f"item.rate.{task}": rate}
        for name, length in WINDOWS.items():
            recent = [rows.labels[j, label] for j in past if rows.time[j] >= until - length]
            found[f"item.rate_{name}.{task}"] = smoothed(recent, prior)[1]
    return found


def other_fold_rows(rows, i):
    """Rows that may speak about row i where rows have no time."""
    return [
        j
        for j in range(len(rows.key))
        if rows.key[j] == rows.key[i] and rows.counts[j] and rows.fold[j] != rows.fold[i]
    ]


def looped_fold_statistics(rows, i):
    """The statistics of row i without time; counts of training rows are scaled by 5/4."""
    scale = 1.25 if rows.fold[i] >= 0 else 1
    others = other_fold_rows(rows, i)
    found = {"item.log_count": math.log(1 + scale * len(others))}
    for task, label, prior in zip("ab", (0, 1), PRIORS, strict=True):
        known, rate = smoothed([rows.labels[j, label] for j in others], prior)
        found |= {f"item.log_known.{task}": math.log(1 + scale * known), f"item.rate.{task}": rate}
    return found


@given(timed_rows, delays, delays)
def test_statistics_equal_the_loop(table, first, second):
    """Counts, windows, ages and label rates are the loop's, with ties, delays and nulls."""
    rows = rows_of(table)
    found = by_name(statistics.statistics(rows, [first, second], PRIORS), "item", timed=True)
    for i, mine in enumerate(found):
        wanted = looped_statistics(rows, i, [first, second])
        assert mine == pytest.approx(wanted, nan_ok=True, rel=1e-12, abs=1e-12)


@given(folded_rows)
def test_fold_statistics_equal_the_loop(table):
    """Without time, statistics are the loop's over the counting rows of other folds."""
    rows = rows_of(table, folded=True)
    found = by_name(statistics.statistics(rows, [0, 0], PRIORS), "item", timed=False)
    for i, mine in enumerate(found):
        assert mine == pytest.approx(looped_fold_statistics(rows, i), rel=1e-12, abs=1e-12)


@given(timed_rows, st.integers(1, 4), delays)
def test_histories_equal_the_loop(table, last, delay):
    """A history is the loop's: newest first, at most `last`, ages floor(log2(1 + seconds))."""
    rows = rows_of(table)
    item = np.arange(100, 100 + len(table), dtype=np.int32)
    found = statistics.histories(rows, item, last, delay)
    history, ages = found.items, found.ages
    for i in range(len(table)):
        past = [
            j
            for j in range(len(table))
            if rows.key[j] == rows.key[i] and rows.counts[j] and rows.time[j] < rows.time[i] - delay
        ]
        newest = sorted(past, key=lambda j: (rows.time[j], j), reverse=True)[:last]
        buckets = [math.frexp(1 + (rows.time[i] - rows.time[j]) / 1000)[1] - 1 for j in newest]
        missing = last - len(newest)
        assert history[i].tolist() == [item[j] for j in newest] + [-1] * missing
        assert ages[i].tolist() == buckets + [0] * missing


@given(folded_rows, st.integers(1, 4))
def test_fold_histories_equal_the_loop(table, last):
    """Without time, a history is the first rows, in the order given, of the key's other folds."""
    rows = rows_of(table, folded=True)
    item = np.arange(100, 100 + len(table), dtype=np.int32)
    found = statistics.histories(rows, item, last, 0)
    history = found.items
    assert not found.ages.any()
    for i in range(len(table)):
        first = other_fold_rows(rows, i)[:last]
        assert history[i].tolist() == [item[j] for j in first] + [-1] * (last - len(first))


def test_equal_times_do_not_see_each_other():
    """Rows of one key with one time have neither each other nor themselves in their features."""
    rows = KeyedRows(
        np.zeros(3, np.int64), np.full(3, 5000), np.ones((3, 1)), counts=np.ones(3, bool)
    )
    found = statistics.statistics(rows, [0], [0.25])
    names = statistics.feature_names("user", ["buy"], timed=True)
    for row in found:
        values = dict(zip(names, row, strict=True))
        assert values["user.log_count"] == values["user.log_known.buy"] == 0
        assert values["user.rate.buy"] == pytest.approx(0.25)
        assert math.isnan(values["user.log_seconds_since_last"])
    assert (statistics.histories(rows, np.arange(3, dtype=np.int32), 4, 0).items == -1).all()


def test_a_label_is_known_only_after_its_delay():
    """A label with a delay of 10 ms counts from the 11th ms on; the row itself from the 1st."""
    rows = KeyedRows(
        np.zeros(4, np.int64),
        np.array([0, 1, 10, 11]),
        np.array([[1.0], [nan], [nan], [nan]]),
        np.array([True, False, False, False]),
    )
    found = statistics.statistics(rows, [10], [0.5])
    names = statistics.feature_names("item", ["buy"], timed=True)
    np.testing.assert_allclose(np.expm1(found[:, names.index("item.log_count")]), [0, 1, 1, 1])
    np.testing.assert_allclose(np.expm1(found[:, names.index("item.log_known.buy")]), [0, 0, 0, 1])


@given(timed_rows, st.randoms(use_true_random=False))
def test_present_and_future_change_nothing(table, random):
    """Replacing every other row of time t or later changes no feature of a row at time t."""
    i = random.randrange(len(table))
    t = table[i][1]
    changed = [
        row if j == i or row[1] < t else (random.randrange(3), t + random.randrange(9), 1.0, 0.0, 1)
        for j, row in enumerate(table)
    ]
    before, after = rows_of(table), rows_of(changed)
    item = np.arange(len(table), dtype=np.int32)
    np.testing.assert_allclose(
        statistics.statistics(before, [0, 1], PRIORS)[i],
        statistics.statistics(after, [0, 1], PRIORS)[i],
        rtol=1e-12,
    )
    first, second = (statistics.histories(rows, item, 3, 0) for rows in (before, after))
    np.testing.assert_array_equal(first.items[i], second.items[i])
    np.testing.assert_array_equal(first.ages[i], second.ages[i])


def test_too_many_keys_are_refused():
    """Keys and times whose product does not fit into 63 bits are an error, not a wrong answer."""
    with pytest.raises(ValueError, match="overflow"):
        Past(np.array([0, 2**40]), np.array([0, 2**40]), np.ones(2, bool))


# --- partitions: raw events to finished rows -------------------------------------------------

TASKS = {"click": {"kind": "binary"}, "buy": {"kind": "binary", "given": "click", "delay": "1d"}}
NUM_ITEMS = 6


def scenario_of(**fields) -> Scenario:
    tree = scenario_tree(TASKS, history={"of": "click", "last": 3}, **fields)
    return parse_project(project_tree({"shop": tree})).scenarios["shop"]


TIMED = scenario_of()
UNTIMED = scenario_of(events={"path": "e"})


def raw_events(num_rows=120, seed=0) -> dict[str, np.ndarray]:
    """A log of 7 users with ties in time, nulls and all splits."""
    rng = np.random.default_rng(seed)
    click = rng.integers(0, 2, num_rows).astype(float)
    return {
        "user_id": rng.integers(0, 7, num_rows),
        "item_id": rng.integers(0, NUM_ITEMS, num_rows),
        "time": rng.integers(0, 20, num_rows) * 43_200,
        "split": rng.choice(SPLITS, num_rows, p=[0.7, 0.15, 0.15]).astype(object),
        "click": np.where(rng.random(num_rows) < 0.1, nan, click),
        "buy": np.where(click == 1, rng.integers(0, 2, num_rows), nan),
        "color": rng.choice([f"color {i}" for i in range(40)], num_rows),
    }


def canonical_rows(raw, scenario) -> pa.Table:
    table = pa.table({k: pa.array(v.tolist()) for k, v in raw.items()})
    lookup = ItemLookup.of(pa.chunked_array([list(range(NUM_ITEMS))]))
    return canonical(table, scenario, 0, lookup, width=3)[0]


def layout_of(raw, scenario, end_ms=None, vocabularies=()) -> FeatureSpec:
    """The layout with all users of the log known except user 0."""
    users = np.unique(raw["user_id"][raw["user_id"] > 0])
    return FeatureSpec(
        scenario=scenario,
        priors=(0.4, 0.2),
        end_ms=int(raw["time"].max()) * 1000 + 1 if end_ms is None else end_ms,
        published=np.full(NUM_ITEMS, NO_TIME),
        users=np.unique(hash_strings(pa.array(users))),
        event_vocabularies=vocabularies,
        seed=5,
    )


def finish(raw, scenario, end_ms=None):
    """Finished rows in the order of the log, and the states of users and items by id."""
    layout = layout_of(raw, scenario, end_ms)
    with_items, item_state = features.item_features(canonical_rows(raw, scenario), layout)
    finished, states = features.user_features(with_items, layout)
    return finished.sort_by("row"), states["users"], item_state


def features_of(finished) -> dict[str, np.ndarray]:
    return {c: matrix(finished.column(c)) for c in ("history", "history_age", "numeric")}


def assert_same_features(first, second, rows=slice(None)):
    for name, values in features_of(first).items():
        np.testing.assert_allclose(values[rows], features_of(second)[name][rows], rtol=1e-6)


@pytest.mark.parametrize("scenario", [TIMED, UNTIMED], ids=["timed", "untimed"])
def test_the_own_label_changes_no_own_feature(scenario):
    """Turning a row's own label over changes features of other rows and none of its own."""
    raw = raw_events()
    before = finish(raw, scenario)[0]
    changed_elsewhere = 0
    for i in np.flatnonzero(raw["split"] == "train")[:25]:
        other = {k: v.copy() for k, v in raw.items()}
        other["click"][i] = 0.0 if raw["click"][i] == 1 else 1.0
        after = finish(other, scenario)[0]
        assert_same_features(before, after, rows=[i])
        a, b = (features_of(x)["numeric"] for x in (before, after))
        changed_elsewhere += not np.allclose(a, b, equal_nan=True)
    assert changed_elsewhere > 15


def test_without_time_only_training_speaks():
    """Without time, labels and items of validation and test rows change no feature of any row."""
    raw = raw_events()
    asking = raw["split"] != "train"
    other = raw | {
        "click": np.where(asking, 1.0 - np.nan_to_num(raw["click"]), raw["click"]),
        "buy": np.where(asking, nan, raw["buy"]),
    }
    assert_same_features(finish(raw, UNTIMED)[0], finish(other, UNTIMED)[0])
    moved = raw | {"item_id": np.where(asking, 0, raw["item_id"])}
    before, after = (features_of(finish(r, UNTIMED)[0]) for r in (raw, moved))
    np.testing.assert_array_equal(before["history"], after["history"])


def test_frozen_statistics_hold_training_rows_only():
    """`statistics: frozen` ignores validation and test labels, which `live` does not."""
    raw = raw_events()
    other = raw | {"click": np.where(raw["split"] == "train", raw["click"], nan)}
    frozen = scenario_of(statistics="frozen")
    assert_same_features(finish(raw, frozen)[0], finish(other, frozen)[0])
    live = [features_of(finish(r, TIMED)[0])["numeric"] for r in (raw, other)]
    assert not np.allclose(*live, equal_nan=True)


@pytest.mark.parametrize("end_ms", [None, 40 * DAY_MS], ids=["at the end", "later"])
def test_user_state_is_that_of_a_row_at_the_end(end_ms):
    """A user's state equals the history and statistics of a further row at the end of the data."""
    raw = raw_events()
    end_ms = int(raw["time"].max()) * 1000 + 1 if end_ms is None else end_ms
    state = finish(raw, TIMED, end_ms)[1]
    names = features.numeric_names(TIMED)
    of_user = [i for i, n in enumerate(names) if n.startswith("user.")]
    assert sorted(state.column("user_id").to_pylist()) == list("0123456")
    for i, user in enumerate(state.column("user_id").to_pylist()):
        last = {
            "user_id": int(user), "item_id": 0, "time": end_ms / 1000, "split": "test",
            "click": nan, "buy": nan, "color": "",
        }  # fmt: skip
        longer = {k: np.append(v, last[k]) for k, v in raw.items()}
        row = features_of(finish(longer, TIMED, end_ms)[0])
        np.testing.assert_array_equal(row["history"][-1], matrix(state.column("history"))[i])
        np.testing.assert_array_equal(
            row["history_age"][-1], matrix(state.column("history_age"))[i]
        )
        np.testing.assert_allclose(
            row["numeric"][-1][of_user], matrix(state.column("numeric"))[i], rtol=1e-6
        )


def test_item_state_is_that_of_a_row_at_the_end():
    """An item's state equals the item statistics of a further row at the end of the data."""
    raw = raw_events()
    end_ms = int(raw["time"].max()) * 1000 + 1
    state = finish(raw, TIMED)[2]
    assert sorted(state.column("item").to_pylist()) == list(range(NUM_ITEMS))
    of_item = len(statistics.feature_names("item", list(TASKS), timed=True))
    for i, item in enumerate(state.column("item").to_pylist()):
        last = {
            "user_id": 99, "item_id": item, "time": end_ms / 1000, "split": "test",
            "click": nan, "buy": nan, "color": "",
        }  # fmt: skip
        longer = {k: np.append(v, last[k]) for k, v in raw.items()}
        row = features_of(finish(longer, TIMED, end_ms)[0])["numeric"][-1]
        np.testing.assert_allclose(row[:of_item], matrix(state.column("numeric"))[i], rtol=1e-6)


def test_state_without_time_uses_all_training_rows():
    """Without time, a user's state counts every training row of the user, unscaled."""
    raw = raw_events()
    state = finish(raw, UNTIMED)[1]
    names = statistics.feature_names("user", list(TASKS), timed=False)
    counts = np.expm1(matrix(state.column("numeric"))[:, names.index("user.log_count")])
    users = np.array(state.column("user_id").to_pylist()).astype(int)
    wanted = [((raw["user_id"] == u) & (raw["split"] == "train")).sum() for u in users]
    np.testing.assert_allclose(counts, wanted, rtol=1e-5)


def test_users_that_training_never_saw_are_unknown():
    """A known user has its own number from 1 on, the same in rows and state; others have 0."""
    raw = raw_events()
    finished, state, _ = finish(raw, TIMED)
    number = dict(
        zip(state.column("user_id").to_pylist(), state.column("user").to_pylist(), strict=True)
    )
    assert number["0"] == 0
    assert sorted(number.values()) == list(range(7))
    assert finished.column("user").to_pylist() == [number[str(u)] for u in raw["user_id"]]


def test_history_holds_positives_of_its_task():
    """A history holds items that the user clicked strictly before, newest first, and no others."""
    raw = raw_events()
    history = matrix(finish(raw, TIMED)[0].column("history"))
    assert (history >= 0).any(1).sum() > 50
    for i, found in enumerate(history):
        mine = (raw["user_id"] == raw["user_id"][i]) & (raw["time"] < raw["time"][i])
        mine &= raw["click"] == 1
        newest = np.sort(raw["time"][mine])[::-1][:3]
        items = {t: set(raw["item_id"][mine & (raw["time"] == t)]) for t in newest}
        assert (found >= 0).sum() == len(newest)
        assert all(item in items[t] for item, t in zip(found, newest, strict=False))


@pytest.mark.parametrize("scenario", [TIMED, UNTIMED], ids=["timed", "untimed"])
def test_order_of_rows_in_a_partition_does_not_matter(scenario):
    """A shuffled partition gives each row the same features, with ties in time and without time."""
    raw = raw_events()
    layout = layout_of(raw, scenario)
    table = features.item_features(canonical_rows(raw, scenario), layout)[0]
    shuffled = table.take(pa.array(np.random.default_rng(2).permutation(table.num_rows)))
    both = (features.user_features(t, layout)[0].sort_by("row") for t in (table, shuffled))
    assert_same_features(*both)


def test_event_categories_have_codes_of_their_own():
    """A category with five training rows gets its own code from 1 on, any other the code 0."""
    events = {"path": "e", "time": "time", "categorical": ["color"]}
    scenario = scenario_of(events=events)
    raw = raw_events(400)
    table = canonical_rows(raw, scenario)
    lookup, published = ItemLookup.of(pa.chunked_array([[0]])), np.full(NUM_ITEMS, NO_TIME)
    found = scan_rows(table, Findings(), LogSource(scenario, lookup, 3, NUM_ITEMS, published))
    layout = layout_of(raw, scenario, vocabularies=tuple(found.vocabularies))
    codes = features.event_categories(table, layout)[:, 0]
    train = raw["split"] == "train"
    values, rows = np.unique(raw["color"][train], return_counts=True)
    seen = set(values[rows >= 5])
    assert len(seen) < len(set(raw["color"]))
    pairs = set(zip(raw["color"].tolist(), codes.tolist(), strict=True))
    assert len(pairs) == len(set(raw["color"]))
    assert sorted(c for _, c in pairs if c) == list(range(1, len(seen) + 1))
    assert {color for color, c in pairs if c == 0} == set(raw["color"]) - seen


@pytest.mark.parametrize("scenario", [TIMED, UNTIMED], ids=["timed", "untimed"])
def test_infinite_labels_are_unknown(scenario):
    """An infinite label of a regression is counted as unknown and spoils no other row's rate."""
    rated = replace_tasks(scenario, {"rating": {"kind": "regression"}})
    raw = raw_events()
    raw["rating"] = np.where(np.arange(120) == 3, np.inf, 2.0)
    layout = replace(layout_of(raw, rated), priors=(2.0,))
    table, _ = features.item_features(canonical_rows(raw, rated), layout)
    names = statistics.feature_names("item", ["rating"], layout.timed)
    rates = matrix(table.column("statistics.item"))[:, names.index("item.rate.rating")]
    np.testing.assert_allclose(rates, 2.0)


def replace_tasks(scenario, tasks) -> Scenario:
    tree = scenario.model_dump(mode="json", by_alias=True)
    return Scenario.model_validate(tree | {"tasks": tasks, "history": {"of": "any"}})
