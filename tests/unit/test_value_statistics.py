"""Statistics of an item's several values are those of each value, counted row by row and pooled."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.data.catalogue import NO_TIME, Ragged, value_codes
from mtrec_ray.data.columns import matrix
from mtrec_ray.data.preparing import features, partitions, passes, values
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.hot_keys import HotKey
from mtrec_ray.data.preparing.pooling import pooled
from mtrec_ray.data.preparing.scan import Scan
from mtrec_ray.data.preparing.statistics import feature_names
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.scenario import Scenario
from tests.builders import project_tree, scenario_tree
from tests.unit.test_hot_keys import NUM_ITEMS, TASKS, canonical_log

nan = math.nan
DAY = 86_400_000
PRIORS = (0.4, 0.2, 3.0)
DELAYS_MS = (0, 2 * DAY, 9 * DAY)

# Item 1 has half of all rows; a tag of many items, one twice in a list, white space, no tags.
TAGS = (
    "b|a|b", "a|c", " a ", "", None, "c|a|d", "d", "|", "a|b|c|d", "e|a", None, "a",
)  # fmt: skip
TAG_SETS = [{t.strip() for t in (tags or "").split("|") if t.strip()} for tags in TAGS]


def scenario_of(timed: bool, negatives: bool, live: bool) -> Scenario:
    fields = {
        "items": {
            "path": "i", "text": "{title}", "separators": {"tags": "|"}, "statistics_of": ["tags"]
        },
        "history": {"of": "click", "last": 3},
        "statistics": "live" if live or not timed else "frozen",
    }  # fmt: skip
    if not timed:
        fields["events"] = {"path": "e"}
    if negatives:
        fields["negatives"] = {"of": "click", "per_positive": 2}
    return parse_project(project_tree({"shop": scenario_tree(TASKS, **fields)})).scenarios["shop"]


def spec_of(scenario: Scenario, table: pa.Table) -> FeatureSpec:
    return FeatureSpec(
        scenario=scenario,
        priors=PRIORS,
        end_ms=int(table.column("time").to_numpy().max()) + 1,
        published=np.full(NUM_ITEMS, NO_TIME),
        users=np.zeros(0, np.uint64),
        event_vocabularies=(),
        seed=5,
        values={"tags": value_codes(pa.chunked_array([pa.array(TAGS)]), "|")},
        level_bounds=((0.0, 1.0),) * 3,
    )


def without_events(table: pa.Table) -> pa.Table:
    """Canonical rows whose log has no columns of its own."""
    num = table.num_rows
    for name, dtype in (("event_numeric", np.float32), ("event_categorical", np.int64)):
        table = table.append_column(name, features.fixed_list(np.zeros((num, 1), dtype)))
    return table


def by_value(table: pa.Table, spec: FeatureSpec, size: int, one_in: int):
    """Statistics of narrow rows and states, by partitions of about `size` rows as the passes do."""
    of_items, item = spec.values["tags"], table.column("item").to_numpy()
    scan = Scan(all_item_rows=np.bincount(item, minlength=NUM_ITEMS), sample=table[::one_in])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "ROWS_PER_PARTITION", size)
        layout = passes.value_partitions(of_items, scan)
    narrow = values.exploded(table, of_items)
    number = layout.numbers(narrow)
    pieces = [narrow.filter(pa.array(number == i)) for i in range(layout.count)]
    hot: dict[int, HotKey] = {}
    for own in layout.hot_keys():
        totals, rows = zip(*(features.hot_key_part(pieces[i], spec) for i in own), strict=True)
        hot |= dict.fromkeys(own, HotKey.of(totals, rows.__getitem__))
    found = [
        (i, *values.value_features(piece, spec, hot.get(i)))
        for i, piece in enumerate(pieces)
        if piece.num_rows
    ]
    rows = pa.concat_tables([rows for _, rows, _ in found])
    return rows, pa.concat_tables([state for i, _, state in found if layout.is_first(i)]), hot


def loop(table: dict[str, np.ndarray], spec: FeatureSpec, asks: int | None, mine) -> list[float]:
    """Statistics by a row (None: at the end) of the rows `mine` that may speak, one by one."""
    time = spec.end_ms if asks is None else table["time"][asks]
    fold = -1 if asks is None or table["fold"] is None else table["fold"][asks]
    rows = [i for i in mine if table["counts"][i]]
    scale = 1.0
    if spec.timed:
        rows = [i for i in rows if table["time"][i] < time]
    elif fold >= 0:
        rows, scale = [i for i in rows if table["fold"][i] != fold], 1.25
    found = [math.log1p(scale * len(rows))]
    if spec.timed:
        times = [table["time"][i] for i in rows]
        ends = (min(times), max(times)) if times else (nan, nan)
        found += [math.log1p((time - t) / 1000) for t in ends]
    for task, (delay, prior) in enumerate(zip(DELAYS_MS, PRIORS, strict=True)):
        labels = [
            table["labels"][i, task]
            for i in rows
            if not spec.timed or table["time"][i] < time - delay
        ]
        known = [label for label in labels if not math.isnan(label)]
        found += [math.log1p(scale * len(known)), (sum(known) + 10 * prior) / (len(known) + 10)]
    return found


def looped_pool(each: list[list[float]], timed: bool) -> list[float]:
    """Rates by their mean, the time since the last row by the least, all else by the most."""
    names = feature_names("x", list(TASKS), timed, {})
    if not each:
        return [nan] * len(names)
    found = []
    for name, column in zip(names, zip(*each, strict=True), strict=True):
        known = [v for v in column if not math.isnan(v)]
        if ".rate." in name:
            found.append(sum(known) / len(known))
        else:
            of = min if name == "x.log_seconds_since_last" else max
            found.append(of(known, default=nan))
    return found


def arrays_of(table: pa.Table, spec: FeatureSpec) -> dict:
    """What the loops read."""
    return {
        "row": table.column("row").to_numpy(), "user": table.column("user").to_numpy(),
        "item": table.column("item").to_numpy(), "time": table.column("time").to_numpy(),
        "counts": features.counting(table, spec), "fold": features.folds(table, spec),
        "labels": features.label_matrix(table, spec),
    }  # fmt: skip


def assert_rows(finished: pa.Table, read: dict, spec: FeatureSpec) -> None:
    """The finished rows' columns are those of the loops."""
    places, row = spec.columns.places, finished.column("row").to_numpy()
    numeric = matrix(finished.column("numeric"))[np.argsort(row)]
    with_tag = {t: [i for i, n in enumerate(read["item"]) if t in TAG_SETS[n]] for t in "abcde"}
    for place, i in enumerate(np.argsort(read["row"])):
        own = np.flatnonzero(read["user"] == read["user"][i])
        tags = sorted(TAG_SETS[read["item"][i]])
        for group, some in (("values.tags", None), ("user_values.tags", set(own.tolist()))):
            each = [
                loop(read, spec, i, [j for j in with_tag[t] if some is None or j in some])
                for t in tags
            ]
            wanted = looped_pool(each, spec.timed)
            np.testing.assert_allclose(numeric[place, places[group]], wanted, rtol=1e-5, atol=1e-6)


def assert_states(state: pa.Table, read: dict, spec: FeatureSpec, users: bool) -> None:
    """There is one state of each value (of each user) that has a row, and it is the loop's."""
    of_items = spec.values["tags"].take(read["item"])
    user = read["user"][of_items.rows] if users else np.zeros(len(of_items.codes), np.int64)
    wanted = sorted(set(zip(user.tolist(), of_items.codes.tolist(), strict=True)))
    ids = [int(u) for u in state.column("user_id").to_pylist()] if users else [0] * len(state)
    found = dict(
        zip(
            zip(ids, state.column("category").to_pylist(), strict=True),
            matrix(state.column("numeric")),
            strict=True,
        )
    )
    assert sorted(found) == wanted
    assert len(found) == len(state)
    for (one, code), numeric in found.items():
        mine = of_items.rows[(of_items.codes == code) & (user == one)]
        np.testing.assert_allclose(numeric, loop(read, spec, None, mine), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("timed", "negatives", "live"),
    [(True, False, True), (True, True, True), (True, True, False), (False, False, True),
     (False, True, True)],
    ids=["live", "live negatives", "frozen negatives", "no time", "no time, negatives"],
)  # fmt: skip
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(4, 90), one_in=st.integers(1, 7))
def test_rows_and_states_equal_the_loops(timed, negatives, live, seed, size, one_in):
    """Of rows of all splits, ties, delays, unknown labels, repeated values and items without one.

    With partitions of any size, which the rows of one value fill several times.
    """
    scenario = scenario_of(timed, negatives, live)
    table = without_events(canonical_log(np.random.default_rng(seed), scenario, 60))
    spec = spec_of(scenario, table)
    of_values, state, hot = by_value(table, spec, size, one_in)
    assert hot or size > 30
    mixed = of_values.take(pa.array(np.random.default_rng(seed).permutation(len(of_values))))
    whole, _ = features.item_features(table, spec)
    whole = values.add_pooled(whole, mixed, spec, "tags")
    finished, states = features.user_features(whole, spec)
    read = arrays_of(table, spec)
    assert_rows(finished, read, spec)
    assert_states(state, read, spec, users=False)
    assert_states(states["user_values.tags"], read, spec, users=True)


@pytest.mark.parametrize("timed", [True, False])
def test_partitions_of_any_size_give_the_same_bits(timed):
    """Rows and states are those of one partition, to the last bit."""
    scenario = scenario_of(timed, negatives=True, live=True)
    table = without_events(canonical_log(np.random.default_rng(3), scenario, 200))
    spec = spec_of(scenario, table)
    found = []
    for size, one_in in ((10**6, 1), (7, 3)):
        rows, state, hot = by_value(table, spec, size, one_in)
        assert bool(hot) == (size == 7)
        whole, state = values.add_pooled(table, rows, spec, "tags"), state.sort_by("category")
        found.append(
            (matrix(whole["statistics.values.tags"]), state["category"], matrix(state["numeric"]))
        )
    for one, many in zip(*found, strict=True):
        np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("timed", [True, False])
def test_items_with_one_value_have_the_statistics_of_a_category(timed):
    """A list of one value each gives what a categorical column gives, to the last bit."""
    scenario = scenario_of(timed, negatives=True, live=True)
    table = without_events(canonical_log(np.random.default_rng(4), scenario, 150))
    code = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, -1, -1, -1])
    offsets = np.concatenate([[0], np.cumsum(code >= 0)])
    one = Ragged((code[code >= 0] + 1).astype(np.int32), offsets)
    spec = spec_of(scenario, table)
    spec.values["tags"], spec.categories["brand"] = one, code
    rows, state, _ = by_value(table, spec, 10**6, 1)
    found = values.add_pooled(table, rows, spec, "tags").column("statistics.values.tags")
    wanted, wanted_state = features.category_features(table, spec, "brand")
    brand = wanted.column("statistics.category.brand")
    np.testing.assert_array_equal(matrix(found), matrix(brand))
    numbers = [matrix(s.sort_by("category").column("numeric")) for s in (state, wanted_state)]
    np.testing.assert_array_equal(*numbers)
    number = table.column("user").to_numpy()
    (of_brand, of_tags), _ = features.user_categories(table, number.astype(np.int32), number, spec)
    np.testing.assert_array_equal(of_brand, of_tags)


def test_no_narrow_rows_at_all():
    """A partition of users whose items have no values gets NaN, whatever the tables lack."""
    scenario = scenario_of(timed=True, negatives=False, live=True)
    table = without_events(canonical_log(np.random.default_rng(0), scenario, 20))
    spec = spec_of(scenario, table)
    nothing = values.exploded(table, spec.values["tags"])[:0]
    found = matrix(values.add_pooled(table, nothing, spec, "tags")["statistics.values.tags"])
    assert found.shape == (20, 9)
    assert np.isnan(found).all()


lengths = st.lists(st.integers(0, 3), min_size=1, max_size=8)
numbers = st.sampled_from([0.0, 0.25, 1.5, 7.0, nan])


@given(lengths, st.booleans(), st.data())
def test_pooled_numbers_equal_the_loop(lengths, timed, data):
    """Of any numbers of values, some of them unknown, and of none."""
    width = (3 if timed else 1) + 2 * len(TASKS)
    table = data.draw(
        st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=sum(lengths),
                 max_size=sum(lengths))
    )  # fmt: skip
    array = np.array(table, np.float32).reshape(-1, width)
    rates = slice(4 if timed else 2, None, 2)
    array[:, rates] = np.nan_to_num(array[:, rates])  # a rate is always known
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    found = pooled(array, offsets, timed)
    for row, begin, end in zip(found, offsets, offsets[1:], strict=False):
        wanted = looped_pool(array[begin:end].tolist(), timed)
        np.testing.assert_allclose(row, wanted, rtol=1e-6)
