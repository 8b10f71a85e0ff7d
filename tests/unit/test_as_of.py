"""What is known of items, categories and users at each user's own moment, by brute force.

Small random logs are prepared in this process by the functions of the passes. What the code says of
every pair of an asking user and an item is then counted again from the raw rows, row by row.
"""

import math
import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.data.as_of import CatalogueAsOf
from mtrec_ray.data.asking_users import asking_users
from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.end_states import items_at_end, read_catalogue
from mtrec_ray.data.snapshot import category_statistics, overlay
from mtrec_ray.project.load import parse_project
from tests.builders import project_tree, scenario_tree
from tests.prepared_log import prepare_log

HOUR, DAY, NUM_ROWS, NUM_ITEMS = 3_600_000, 86_400_000, 150, 9
BRANDS = ["a", "b", None, "a", "c", None, "b", "d", "a"]  # no row has item 7: brand d has no past
TAGS = [
    ["x", "y"],
    ["y"],
    None,
    ["z", "x", "z"],
    [],
    [" x"],
    ["y", "x"],
    ["x", "w"],
    ["y", "", None],
]
PUBLISHED = [5 * DAY, None, 0, 30 * DAY, DAY, 2 * DAY, 9 * DAY, 3 * DAY, None]
TASKS = {
    "click": {"kind": "binary"},
    "buy": {"kind": "binary", "given": "click", "delay": "1d"},
    "stars": {"kind": "regression"},
}
CATALOGUE = pa.table({
    "item_id": [f"item {i}" for i in range(NUM_ITEMS)], "brand": pa.array(BRANDS),
    "tags": pa.array(TAGS, pa.list_(pa.string())),
    "published": pa.array(PUBLISHED, pa.timestamp("ms")),
})  # fmt: skip
COLUMNS = {"path": "e", "time": "time"}
CASES = {
    "column": {"events": COLUMNS},
    "frozen": {"events": COLUMNS, "statistics": "frozen"},
    "fractions": {"events": COLUMNS, "split": {"fractions": [0.5, 0.2, 0.3]}},
    "negatives": {
        "events": COLUMNS,
        "split": {"fractions": [0.5, 0.2, 0.3]},
        "negatives": {"per_positive": 2, "of": "click"},
    },
    "cuts": {"events": COLUMNS, "split": {"time": ["1970-01-21", "1970-02-01"]}},
    "no time": {"events": {"path": "e"}},
}


def scenario_of(case):
    items = {"path": "i", "text": "{title}", "categorical": ["brand"], "lists": ["tags"]}
    items["statistics_of"] = ["tags", "brand"]
    if case != "no time":
        items["published"] = "published"
    tree = scenario_tree(TASKS, items=items, history={"of": "click", "last": 3}, **CASES[case])
    return parse_project(project_tree({"video": tree})).scenarios["video"]


def raw_log(seed, scenario):
    """Rows of 8 users over 45 days, many of them at the same hour; no row of items 7 and 8."""
    rng = np.random.default_rng(seed)
    time = rng.integers(0, 90, NUM_ROWS) * 12 * HOUR
    cuts = [20 * DAY, 31 * DAY]
    split = rng.choice(3, NUM_ROWS, p=[0.6, 0.2, 0.2])
    if scenario.split.time:
        split = np.searchsorted(cuts, time, side="right")
    click = np.where(rng.random(NUM_ROWS) < 0.1, np.nan, rng.integers(0, 2, NUM_ROWS))
    buy = np.where(click == 1, rng.integers(0, 2, NUM_ROWS), np.nan)
    stars = np.where(rng.random(NUM_ROWS) < 0.4, np.nan, rng.integers(1, 6, NUM_ROWS))
    return {
        "user": rng.integers(0, 8, NUM_ROWS),
        "item": rng.integers(0, NUM_ITEMS - 2, NUM_ROWS),
        "time": time if scenario.events.time else np.zeros(NUM_ROWS, np.int64),
        "split": split.astype(np.int8),
        "labels": np.stack([click, buy, stars], 1),
    }


def prepared_log(seed, case, folder):
    """The layout of a random log prepared below `folder`, and its raw rows with their split."""
    scenario = scenario_of(case)
    log = raw_log(seed, scenario)
    return prepare_log(log, scenario, CATALOGUE, folder), log


def counted(layout, log, moment, mine):
    """Numbers of the rows among `mine` that statistics know at a moment (None: without time)."""
    only_train = layout.scenario.statistics == "frozen" or moment is None
    return [
        i for i in np.flatnonzero(mine)
        if (moment is None or log["time"][i] < moment) and not (only_train and log["split"][i])
    ]  # fmt: skip


def brute_force(layout, log, moment, mine, kind, windows):
    """By column: the statistics of a key whose rows are `mine`, counted one by one."""
    rows = counted(layout, log, moment, mine)
    found = {f"{kind}.log_count": math.log1p(len(rows))}
    days = {"1d": 1, "7d": 7, "30d": 30} if windows and moment is not None else {}
    if moment is not None:
        times = [int(log["time"][i]) for i in rows]
        for word, number in days.items():
            late = [t for t in times if t >= moment - number * DAY]
            found[f"{kind}.log_count_{word}"] = math.log1p(len(late))
        ages = [math.log1p((moment - t) / 1000) for t in (min(times), max(times))] if rows else None
        found[f"{kind}.log_seconds_since_first"] = ages[0] if ages else math.nan
        found[f"{kind}.log_seconds_since_last"] = ages[1] if ages else math.nan
    for place, (task, tree) in enumerate(TASKS.items()):
        delay, prior = DAY if "delay" in tree else 0, layout.facts.label_means[task]
        known = [i for i in rows if not math.isnan(log["labels"][i, place])]
        if moment is not None:
            known = [i for i in known if log["time"][i] < moment - delay]

        def rate(some, place=place, prior=prior):
            return (sum(log["labels"][i, place] for i in some) + 10 * prior) / (len(some) + 10)

        found[f"{kind}.log_known.{task}"] = math.log1p(len(known))
        found[f"{kind}.rate.{task}"] = rate(known)
        for word, number in days.items():
            begin = moment - delay - number * DAY
            found[f"{kind}.rate_{word}.{task}"] = rate(
                [i for i in known if log["time"][i] >= begin]
            )
    return found


def tags_of(item):
    """The different tags of an item, without white space around them."""
    return {tag.strip() for tag in TAGS[item] or () if tag and tag.strip()}


def together(name, values):
    """The number of several tags: mean of rates, shortest time since the last, else the most."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return math.nan
    if ".rate." in name:
        return sum(known) / len(known)
    return min(known) if name.endswith("_since_last") else max(known)


def expected_row(layout, log, user, item, moment):
    """By column: what a row of a user and an item would hold of both at a moment."""
    brand = np.array([BRANDS[i] == BRANDS[item] for i in log["item"]]) & (BRANDS[item] is not None)
    own = log["user"] == user
    found = brute_force(layout, log, moment, log["item"] == item, "item", True)
    for kind, mine in (("category.brand", brand), ("user_category.brand", brand & own)):
        of_brand = brute_force(layout, log, moment, mine, kind, False)
        found |= of_brand if BRANDS[item] else dict.fromkeys(of_brand, math.nan)
    for kind, some in (("values.tags", log["user"] >= 0), ("user_values.tags", own)):
        each = []
        for tag in tags_of(item):
            mine = some & np.array([tag in tags_of(i) for i in log["item"]])
            each.append(brute_force(layout, log, moment, mine, kind, False))
        names = brute_force(layout, log, moment, log["user"] < 0, kind, False)
        found |= {n: together(n, [of_tag[n] for of_tag in each]) for n in names}
    if moment is not None:
        published = PUBLISHED[item]
        age = math.nan if published is None else math.log1p(max(moment - published, 0) / 1000)
        found["item.log_seconds_since_published"] = age
        found |= brute_force(layout, log, moment, own, "user", True)
    return found


def pair_columns(items, users, number, item):
    """f32[F] of a user's place and an item: the user's rows with the item's category and tags."""
    of_tags = category_statistics(
        items, "tags", users.categories["tags"], np.array([number]), np.array([item])
    )[0]
    pairs, code = users.categories["brand"], items.codes["brand"][item]
    mine = (pairs.user == number) & (pairs.category == code)
    row = pairs.numeric[mine][0] if mine.any() else items.default["brand"]
    return overlay(row if code >= 0 else np.full_like(row, np.nan), of_tags)


def assert_row(layout, found, wanted):
    for name, value in wanted.items():
        got = found[layout.names.index(name)]
        assert got == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


def first_moment(layout, log, user):
    """When a user has the first row of test, and None without time."""
    if not layout.timed:
        return None
    return int(log["time"][(log["user"] == user) & (log["split"] == 2)].min())


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_pair_is_as_the_raw_rows_say(case, seed):
    """Columns of every asking user and item are those of rows before the user's own moment."""
    with tempfile.TemporaryDirectory() as folder:
        layout, log = prepared_log(seed, case, folder)
        catalogue = read_catalogue(layout)
        asking = asking_users(layout, catalogue, "click", 100)
        if layout.timed:
            past = CatalogueAsOf(layout, catalogue, int(asking.moments.max()))
            items = catalogue.snapshot(layout, layout.blank(NUM_ITEMS))
            every = np.tile(np.arange(NUM_ITEMS), len(asking))
            moments = np.repeat(asking.moments, NUM_ITEMS)
            numeric = past.numeric(every, moments).reshape(len(asking), NUM_ITEMS, -1)
        else:
            items = items_at_end(layout)
            numeric = np.broadcast_to(items.numeric, (len(asking), *items.numeric.shape))
    persons = {p: u for u, p in enumerate(hash_strings(user_ids()).view(np.int64).tolist())}
    for number, person in enumerate(asking.users.person.tolist()):
        user = persons[person]
        moment = first_moment(layout, log, user)
        assert moment is None or asking.moments[number] == moment
        for item in range(NUM_ITEMS):
            found = numeric[number, item].copy()
            for part in (
                asking.users.numeric[number],
                pair_columns(items, asking.users, number, item),
            ):
                np.copyto(found, part, where=~np.isnan(part))
            assert_row(layout, found, expected_row(layout, log, user, item, moment))


def user_ids():
    return pa.array([f"user {u}" for u in range(8)])


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_positives_and_seen_items(case, seed):
    """Lists are judged by positives in test; seen items are of rows before."""
    with tempfile.TemporaryDirectory() as folder:
        layout, log = prepared_log(seed, case, folder)
        asking = asking_users(layout, read_catalogue(layout), "click", 100)
    ids = hash_strings(user_ids()).view(np.int64)
    hits = {u for u in range(8) if ((log["user"] == u) & (log["split"] == 2)
            & (log["labels"][:, 0] == 1)).any()}  # fmt: skip
    assert sorted(ids[sorted(hits)]) == asking.users.person.tolist()
    for number, person in enumerate(asking.users.person):
        user = int(np.flatnonzero(ids == person)[0])
        own, moment = log["user"] == user, first_moment(layout, log, user)
        wanted = own & (log["split"] == 2) & (log["labels"][:, 0] == 1)
        assert asking.positives[number].tolist() == sorted(set(log["item"][wanted]))
        before = log["split"] < 2 if moment is None else log["time"] < moment
        seen = asking.seen[1][asking.seen[0] == person]
        assert sorted(seen) == sorted(log["item"][own & before])


def test_positives_that_were_seen_are_left_out():
    """Users whose positives were all seen before do not ask; the others ask for the rest."""
    with tempfile.TemporaryDirectory() as folder:
        layout, _ = prepared_log(3, "fractions", folder)
        asking = asking_users(layout, read_catalogue(layout), "click", 100)
    left = asking.without_seen()
    kept = dict(zip(left.users.person.tolist(), left.positives, strict=True))
    assert 0 < len(left) <= len(asking)
    for person, positives in zip(asking.users.person.tolist(), asking.positives, strict=True):
        new = set(positives) - set(asking.seen[1][asking.seen[0] == person])
        assert set(kept.get(person, ())) == new
