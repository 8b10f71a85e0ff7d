"""The sample world: the seed fixes every row, sizes are kept, labels follow their parents."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.sample_world import Dials, write_sample_world

NAMES = ("shop", "news", "video")
SIZES = {"users": 60, "items": 24, "events": 500}


def read(root: Path) -> dict[str, pa.Table]:
    return {
        f"{name}/{kind}": pq.read_table(root / name / f"{kind}.parquet")
        for name in NAMES
        for kind in ("items", "events")
    }


def write(root: Path, **changes) -> dict[str, pa.Table]:
    write_sample_world(str(root), **{"seed": 3, **SIZES, **changes})
    return read(root)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, pa.Table]:
    return write(tmp_path_factory.mktemp("world"))


def column(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy()


def test_same_seed_same_rows(world, tmp_path):
    """Writing the world again with the same seed gives the same tables, row for row."""
    again = write(tmp_path)
    assert all(again[name].equals(table) for name, table in world.items())


def test_other_seed_other_rows(world, tmp_path):
    """Another seed changes every table."""
    other = write(tmp_path, seed=4)
    assert not any(other[name].equals(table) for name, table in world.items())


def test_scenarios_differ(world):
    """The scenarios are not copies of each other: their user-item pairs differ."""
    pairs = [set(pairs_of(world[f"{n}/events"])) for n in NAMES]
    assert all(len(a & b) < 0.5 * len(a) for a, b in zip(pairs, pairs[1:] + pairs[:1], strict=True))


def pairs_of(events: pa.Table) -> list[tuple[str, str]]:
    items = [item.split("_")[1] for item in events.column("item_id").to_pylist()]
    return list(zip(events.column("user_id").to_pylist(), items, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_sizes(world, name):
    """There are as many items and events as asked, and no more users."""
    items, events = world[f"{name}/items"], world[f"{name}/events"]
    assert (items.num_rows, events.num_rows) == (SIZES["items"], SIZES["events"])
    assert len(set(items.column("item_id").to_pylist())) == SIZES["items"]
    assert len(set(events.column("user_id").to_pylist())) <= SIZES["users"]
    assert set(events.column("item_id").to_pylist()) <= set(items.column("item_id").to_pylist())


@pytest.mark.parametrize("name", NAMES)
def test_no_pair_twice(world, name):
    """No user meets an item twice."""
    pairs = pairs_of(world[f"{name}/events"])
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("name", NAMES)
def test_events_are_sorted_by_time(world, name):
    """Events come in the order of time, without nulls."""
    time = world[f"{name}/events"].column("time")
    assert time.null_count == 0
    assert (np.diff(time.to_numpy()) >= np.timedelta64(0)).all()


def test_users_are_shared(world):
    """The scenarios have users in common."""
    users = [set(world[f"{n}/events"].column("user_id").to_pylist()) for n in NAMES]
    assert len(users[0] & users[1] & users[2]) > SIZES["users"] / 2


@pytest.mark.parametrize(("name", "task"), [("shop", "buy"), ("news", "like")])
def test_conditional_labels_are_null_where_the_parent_is_0(world, name, task):
    """A conditional label is null exactly where there was no click, and else 0 or 1."""
    events = world[f"{name}/events"]
    click, label = events.column("click"), events.column(task)
    assert click.null_count == 0
    assert pc.equal(pc.is_null(label), pc.equal(click, 0.0)).to_pylist() == [True] * len(click)
    for values in (click, label.drop_null()):
        assert set(values.to_pylist()) == {0.0, 1.0}


def test_ratings(world):
    """Ratings are half stars from 1 to 5, some missing; likes are 0 or 1."""
    events = world["video/events"]
    stars = events.column("rating")
    assert 0 < stars.null_count < len(stars) / 2
    known = column(pa.table({"rating": stars.drop_null()}), "rating")
    assert set(known * 2) <= set(range(2, 11))
    assert set(events.column("like").to_pylist()) == {0.0, 1.0}


def test_news_are_published_before_they_are_read(world):
    """No event of a news item lies before its publication."""
    items, events = world["news/items"], world["news/events"]
    published = dict(
        zip(items.column("item_id").to_pylist(), column(items, "published"), strict=True)
    )
    wanted = np.array([published[i] for i in events.column("item_id").to_pylist()])
    assert (column(events, "time") > wanted).all()


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_not_empty(world, name):
    """Every item has a title and a description without template braces."""
    items = world[f"{name}/items"]
    for text in items.column("title").to_pylist() + items.column("description").to_pylist():
        assert len(text.split()) >= 2
        assert "{" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"items": 7}, "items: found 7; allowed: 8"),
        ({"users": 0}, "found users 0, events 500"),
        ({"events": 0}, "found users 60, events 0"),
        ({"events": 721}, "events: found 721; allowed: up to 720"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, changes, words):
    """Sizes that no world can have are an error that names them, and nothing is written."""
    with pytest.raises(ValueError, match=words):
        write(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_the_fullest_world_can_be_written(tmp_path):
    """Half of all pairs, the most that is allowed, can be drawn."""
    tables = write(tmp_path, events=720)
    assert all(len(set(pairs_of(tables[f"{n}/events"]))) == 720 for n in NAMES)


def users_of(world, name):
    """The distinct users of a scenario's events."""
    return set(world[f"{name}/events"].column("user_id").to_pylist())


def test_some_users_are_other_people_in_each_scenario(world, tmp_path):
    """A share of the users is common to the scenarios; a user who is not has a name of his own."""
    found = write(tmp_path, dials=Dials(common_users=0.5))
    for name, other in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True):
        own, others = users_of(found, name), users_of(found, other)
        assert own & others <= {f"user_{number:05d}" for number in range(30)}
        assert {u for u in own if u.startswith("user_")} == own - {
            u for u in own if u.startswith(f"{name}_user_")
        }
        assert len(own & others) > 20
        assert len(users_of(world, name)) == len(own)


def test_the_small_scenario_has_fewer_events(tmp_path):
    """News alone; the others stay what they are."""
    found = write(tmp_path, dials=Dials(small_events=100))
    assert [found[f"{name}/events"].num_rows for name in NAMES] == [500, 100, 500]


def test_too_many_events_of_the_small_scenario_are_refused(tmp_path):
    """More than half of the pairs of users and items: one line that names the dial."""
    with pytest.raises(
        ValueError, match=r"sample_world\.small_events: found 900; allowed: up to 720"
    ):
        write(tmp_path, dials=Dials(small_events=900))


def test_the_small_scenario_may_begin_late(world, tmp_path):
    """News of the last days alone, published no later than read; the others stay."""
    found = write(tmp_path, dials=Dials(small_days=30))
    events = found["news/events"]
    assert column(events, "time").min() >= np.datetime64("2025-03-02")
    published = dict(
        zip(*(column_list(found["news/items"], k) for k in ("item_id", "published")), strict=True)
    )
    times = zip(*(column_list(events, key) for key in ("item_id", "time")), strict=True)
    assert all(published[item] <= time for item, time in times)
    assert found["shop/events"].equals(world["shop/events"])


def column_list(table: pa.Table, name: str) -> list:
    """A column as a list."""
    return table.column(name).to_pylist()


def test_dials_move_no_other_draw(world, tmp_path):
    """Users, items and times of the events stay; labels follow the taste."""
    found = write(tmp_path, dials=Dials(in_text=0.0))
    for name in NAMES:
        assert found[f"{name}/items"].equals(world[f"{name}/items"])
        for key in ("user_id", "item_id", "time"):
            first, other = (w[f"{name}/events"].column(key) for w in (world, found))
            assert first.equals(other)
    assert not found["shop/events"].equals(world["shop/events"])
