"""A key whose rows lie in several parts has the statistics that one part with all of them gives."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.columns import DAY_MS, fixed_list, matrix
from mtrec_ray.data.preparing import features, partitions, past, samples, statistics
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.hot_keys import HotKey, part_of
from mtrec_ray.data.preparing.partitions import KeyPartitions
from mtrec_ray.data.preparing.statistics import KeyedRows
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.scenario import Scenario
from tests.builders import project_tree, scenario_tree

nan = math.nan
PRIORS = (0.3, 2.0)
NUM_ITEMS = 12
TASKS = {
    "click": {"kind": "binary"},
    "buy": {"kind": "binary", "given": "click", "delay": "2d"},
    "stars": {"kind": "regression", "delay": "9d"},
}

# Few moments: ties, also across the parts, and rows just inside and outside of a window.
moments = st.builds(
    lambda day, ms: day * DAY_MS + ms, st.integers(-3, 33), st.sampled_from([-1, 0, 0, 0, 1])
)
delays = st.sampled_from([0, 1, DAY_MS, 7 * DAY_MS, 100 * DAY_MS])
labels = st.sampled_from([0.0, 1.0, 4.5, nan])
timed_rows = st.lists(st.tuples(moments, labels, labels, st.booleans()), min_size=1, max_size=40)
folded_rows = st.lists(
    st.tuples(st.integers(-1, 4), labels, labels, st.booleans()), min_size=1, max_size=40
)
cuts = st.lists(st.integers(0, 40), max_size=6)


def rows_of(table, folded=False) -> KeyedRows:
    second, first_label, second_label, counts = (np.array(c) for c in zip(*table, strict=True))
    key, both = np.zeros(len(table), np.int64), np.stack([first_label, second_label], 1)
    if folded:
        return KeyedRows(key, key, both, counts & (second >= 0), second)
    return KeyedRows(key, second, both, counts)


def in_parts(rows: KeyedRows, bounds) -> list[KeyedRows]:
    """The rows of a key cut at some places, perhaps with nothing between two of them."""
    places = np.split(np.arange(len(rows.key)), sorted(min(b, len(rows.key)) for b in bounds))
    return [
        replace(
            rows,
            key=rows.key[p],
            time=rows.time[p],
            labels=rows.labels[p],
            counts=rows.counts[p],
            fold=None if rows.fold is None else rows.fold[p],
        )
        for p in places
    ]


def split_statistics(parts: list[KeyedRows], delays_ms) -> np.ndarray:
    totals, rows = zip(*map(part_of, parts), strict=True)
    hot = HotKey.of(totals, rows.__getitem__)
    found = [hot.statistics(p, delays_ms, PRIORS, statistics.WINDOWS_MS, np.float64) for p in parts]
    return np.concatenate(found)


@given(timed_rows, cuts, delays, delays, st.integers(1, 9))
def test_parts_by_time_give_the_statistics_of_the_whole(table, bounds, first, second, asked):
    """Equal to the last bit, with ties across parts, delays, unknown labels and empty parts."""
    whole = rows_of(sorted(table, key=lambda row: row[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past, "QUESTIONS", asked)
        found = split_statistics(in_parts(whole, bounds), [first, second])
    np.testing.assert_array_equal(found, statistics.statistics(whole, [first, second], PRIORS))


@given(folded_rows, cuts)
def test_parts_without_time_give_the_statistics_of_the_whole(table, bounds):
    """Equal to the last bit, wherever the rows of a fold lie."""
    whole = rows_of(table, folded=True)
    found = split_statistics(in_parts(whole, bounds), [0, 0])
    np.testing.assert_array_equal(found, statistics.statistics(whole, [0, 0], PRIORS))


def test_sums_that_are_not_exact_differ_by_their_rounding():
    """Labels of any size are added up in another order, which 32 bits do not show."""
    rng = np.random.default_rng(0)
    time = np.sort(rng.integers(0, 90 * DAY_MS, 5000))
    labels = np.exp(4 * rng.normal(size=(5000, 2)))
    whole = KeyedRows(np.zeros(5000, np.int64), time, labels, rng.random(5000) < 0.8)
    found = split_statistics(in_parts(whole, range(500, 5000, 500)), [0, 2 * DAY_MS])
    wanted = statistics.statistics(whole, [0, 2 * DAY_MS], PRIORS)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


# --- partitions of a log -----------------------------------------------------------------------


def scenario_of(timed: bool, negatives: bool, live: bool) -> Scenario:
    fields = {
        "items": {"path": "i", "text": "{title}", "categorical": ["brand"]},
        "history": {"of": "click", "last": 3},
        "statistics": "live" if live or not timed else "frozen",
    }
    if not timed:
        fields["events"] = {"path": "e"}
    if negatives:
        fields["negatives"] = {"of": "click", "per_positive": 2}
    return parse_project(project_tree({"shop": scenario_tree(TASKS, **fields)})).scenarios["shop"]


def canonical_log(rng: np.random.Generator, scenario: Scenario, num: int) -> pa.Table:
    """Canonical rows, most of one item and more of one brand, on few moments."""
    click = rng.choice([0.0, 1.0, nan], num)
    buy = np.where(click == 1, rng.choice([0.0, 1.0, nan], num), nan)
    stars = rng.choice([0.5, 3.0, 4.5, nan], num)
    timed = scenario.events.time is not None
    user = rng.integers(0, 9, num)
    table = pa.table(
        {
            "row": rng.permutation(num),
            "user": user,
            "user_id": user.astype(str),
            "item": np.where(rng.random(num) < 0.5, 1, rng.integers(0, NUM_ITEMS, num)).astype(
                "i4"
            ),
            "time": rng.integers(0, 60, num) * (DAY_MS // 2) if timed else np.zeros(num, np.int64),
            "split": rng.choice(3, num, p=[0.7, 0.15, 0.15]).astype(np.int8),
            "sampled": np.zeros(num, bool),
            "labels": fixed_list(np.stack([click, buy, stars], 1).astype(np.float32)),
        }
    )
    if scenario.draws_negatives:
        published = np.full(NUM_ITEMS, NO_TIME)
        table = samples.add_negatives(table, scenario, np.ones(NUM_ITEMS), published, 0)
    return table


def spec_of(scenario: Scenario, table: pa.Table) -> FeatureSpec:
    brand = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, -1, -1, -1])
    return FeatureSpec(
        scenario=scenario,
        priors=(0.4, 0.2, 3.0),
        end_ms=int(table.column("time").to_numpy().max()) + 1,
        published=np.full(NUM_ITEMS, NO_TIME),
        users=np.zeros(0, np.uint64),
        event_vocabularies=(),
        seed=5,
        categories={"brand": brand},
    )


def whole_key(table: pa.Table, spec: FeatureSpec, brand: bool, hot: HotKey | None = None):
    if brand:
        return features.category_features(table, spec, "brand", hot)
    return features.item_features(table, spec, hot)


def by_partition(table: pa.Table, spec: FeatureSpec, brand: bool, layout: KeyPartitions):
    """Statistics and states of each partition, as the passes compute them."""
    number = layout.numbers(table)
    pieces = [table.filter(pa.array(number == i)) for i in range(layout.count)]
    hot: dict[int, HotKey] = {}
    for own in layout.hot_keys():
        totals, rows = zip(*(features.hot_key_part(pieces[i], spec) for i in own), strict=True)
        hot |= dict.fromkeys(own, HotKey.of(totals, rows.__getitem__))
    found = [
        (i, *whole_key(piece, spec, brand, hot.get(i)))
        for i, piece in enumerate(pieces)
        if piece.num_rows
    ]
    rows = pa.concat_tables([rows for _, rows, _ in found])
    return rows, pa.concat_tables([state for i, _, state in found if layout.is_first(i)])


def layout_of(table: pa.Table, spec: FeatureSpec, brand: bool, sample: pa.Table) -> KeyPartitions:
    item = np.arange(NUM_ITEMS)
    code = spec.categories["brand"]
    key = np.where(code >= 0, code, 3 + item) if brand else item
    rows = np.bincount(table.column("item").to_numpy(), minlength=NUM_ITEMS)
    return KeyPartitions.of(key, rows, sample)


@given(
    st.integers(0, 10**6), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    st.integers(3, 90), st.integers(1, 7),
)  # fmt: skip
def test_partitions_of_any_size_give_the_statistics_of_one(
    seed, timed, negatives, live, brand, size, one_in
):
    """Rows and end states are those of one partition, to the last bit, for items and values.

    With ties in time, delays, unknown labels, sampled negatives and all splits, with and without
    time, and however few rows the sample has.
    """
    scenario, rng = scenario_of(timed, negatives, live), np.random.default_rng(seed)
    table = canonical_log(rng, scenario, 150)
    spec = spec_of(scenario, table)
    sample = table.filter(pa.array(rng.integers(0, one_in, table.num_rows) == 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "ROWS_PER_PARTITION", size)
        layout = layout_of(table, spec, brand, sample)
    found, states = by_partition(table, spec, brand, layout)
    wanted, wanted_states = whole_key(table, spec, brand)
    key = "category" if brand else "item"
    group = "statistics.category.brand" if brand else "statistics.item"
    for a, b, order, column in (
        (found, wanted, "row", group),
        (states, wanted_states, key, "numeric"),
    ):
        a, b = a.sort_by(order), b.sort_by(order)
        assert a.column(order).equals(b.column(order))
        np.testing.assert_array_equal(matrix(a.column(column)), matrix(b.column(column)))


@pytest.mark.parametrize("timed", [True, False], ids=["timed", "untimed"])
@pytest.mark.parametrize("brand", [True, False], ids=["brand", "item"])
def test_no_partition_is_larger_than_stated(monkeypatch, timed, brand):
    """Whole keys fill less than two partitions' rows, and parts of a hot one no more than one."""
    monkeypatch.setattr(partitions, "ROWS_PER_PARTITION", 50)
    scenario = scenario_of(timed, negatives=True, live=True)
    table = canonical_log(np.random.default_rng(0), scenario, 600)
    spec = spec_of(scenario, table)
    layout = layout_of(table, spec, brand, table)
    rows = np.bincount(layout.numbers(table), minlength=layout.count)
    assert rows.sum() == table.num_rows
    assert rows[: layout.num_whole].max() < 100
    [*hot] = layout.hot_keys()
    assert max(len(parts) for parts in hot) > 5
    assert [rows[list(parts)].max() <= 50 for parts in hot] == [True] * len(hot)


def test_parts_of_a_long_log_are_even_by_a_sample(monkeypatch):
    """A sample of one row in 20 makes parts of about the stated size, whatever the moments."""
    monkeypatch.setattr(partitions, "ROWS_PER_PARTITION", 5_000)
    rng, num = np.random.default_rng(0), 100_000
    time = np.where(rng.random(num) < 0.5, 7, rng.integers(0, 1000, num))  # half at one moment
    table = pa.table({"row": np.arange(num), "item": np.zeros(num, np.int32), "time": time})
    sample = table.filter(pa.array(rng.random(num) < 0.05))
    layout = KeyPartitions.of(np.zeros(1, np.int64), np.array([num]), sample)
    rows = np.bincount(layout.numbers(table))[layout.num_whole :]
    assert len(rows) == 20
    assert rows.max() < 6_500
