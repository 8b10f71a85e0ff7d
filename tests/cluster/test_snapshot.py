"""The states that prepare leaves are the features of a row that happens just after the end."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.end_states import items_at_end, seen_pairs, user_parts, users_at_end
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.sample_world import write_sample_world
from mtrec_ray.data.shards import read_rows
from mtrec_ray.data.snapshot import (
    SnapshotColumns,
    category_statistics,
    new_users,
    overlay,
    rows_of_pairs,
)
from mtrec_ray.project.load import parse_project
from tests.cluster.logs import scenario_tree
from tests.cluster.runs import prepare_in_partitions, prepared_folder, world_tree

pytestmark = pytest.mark.cluster


def shop_tree(root):
    """Shop with categories, tags and numbers of items."""
    items = {"path": "shop/items.parquet", "text": "{title}", "categorical": ["brand"]}
    shop = scenario_tree(
        "shop",
        items={
            **items,
            "numeric": ["price"],
            "lists": ["tags"],
            "statistics_of": ["brand", "tags"],
        },
        split={"time": ["2025-03-12", "2025-03-22"]},
        tasks={"click": {"kind": "binary"}, "buy": {"kind": "binary", "given": "click"}},
        history={"of": "any", "last": 5, "outcomes": True},
    )
    return world_tree(root) | {"scenarios": {"shop": shop}}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Shop prepared, and again with three rows more, just after the end: their users and items."""
    root = tmp_path_factory.mktemp("world")
    write_sample_world(str(root), seed=7, users=80, items=24, events=700)
    catalogue = pq.read_table(root / "shop" / "items.parquet")
    tags = [[f"tag {i % 7}", f"tag {i % 3}", f"tag {i}"][: i % 4] for i in range(len(catalogue))]
    catalogue = catalogue.append_column("tags", pa.array(tags, pa.list_(pa.string())))
    pq.write_table(catalogue, root / "shop" / "items.parquet")
    found, events = [], pq.read_table(root / "shop" / "events.parquet")
    asked = [0, 100, 350]
    last = events.column("time").to_numpy().max()
    more = events.take(pa.array(asked))
    item = events.column("item_id").take(pa.array([5, 9, 200]))
    time = pa.array([last + np.timedelta64(1, "ms")] * 3, events.schema.field("time").type)
    more = more.set_column(more.column_names.index("item_id"), "item_id", item)
    more = more.set_column(more.column_names.index("time"), "time", time)
    for table in (events, pa.concat_tables([events, more])):
        pq.write_table(table, root / "shop" / "events.parquet")
        storage = tmp_path_factory.mktemp("prepared")
        project = parse_project(shop_tree(root))
        prepare_in_partitions(project, storage, 300)
        found.append((project, load_prepared(prepared_folder(project, str(storage)))))
    users = [events.column("user_id")[i].as_py() for i in asked]
    return found, users, [i.as_py() for i in item], events.num_rows


def rows_after(prepared, first):
    """The prepared samples of the rows from a number of the log on."""
    parts = list(read_rows(prepared.shard_paths("shop", "test"), 10_000, 0, 10**9))
    arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    order = np.argsort(arrays["row"])
    return {k: v[order][arrays["row"][order] >= first] for k, v in arrays.items()}


def test_state_is_the_next_rows_features(worlds):
    """Statistics, history and ages of a row after the end follow from the states, to the bit."""
    ((project, before), (_, after)), users, items, num_rows = worlds
    layout = SnapshotColumns(before, "shop", project.scenarios["shop"])
    catalogue, wanted = items_at_end(layout), rows_after(after, num_rows)
    assert len(wanted["row"]) == 3
    wanted["moment"] = wanted["time"]
    checked = 0
    for part in user_parts(before, "shop"):
        state = users_at_end(layout, part)
        for i, (user, item) in enumerate(zip(users, items, strict=True)):
            if user not in state.ids:
                continue
            at = int(np.flatnonzero(state.ids == user)[0])
            number = int(np.flatnonzero(catalogue.ids == item)[0])
            code, own = catalogue.codes["brand"][number], state.categories["brand"]
            mine = (own.user == at) & (own.category == code)
            pair = own.numeric[mine][0] if mine.any() else catalogue.default["brand"]
            of_tags = category_statistics(
                catalogue, "tags", state.categories["tags"], np.array([at]), np.array([number])
            )[0]
            assert np.isnan(of_tags).all() == (number % 4 == 0)
            found = overlay(catalogue.numeric[number], state.numeric[at], pair, of_tags)
            np.testing.assert_array_equal(found, wanted["numeric"][i])
            np.testing.assert_array_equal(state.history[at], wanted["history"][i])
            np.testing.assert_array_equal(state.ages[at], wanted["history_age"][i])
            np.testing.assert_array_equal(state.outcomes[at], wanted["history_outcome"][i])
            assert state.user[at] == wanted["user"][i]
            row = rows_of_pairs(layout, state, catalogue, np.array([at]), np.array([number]))
            assert set(wanted) - set(row) == {"row", "labels"}
            for name, values in row.items():
                np.testing.assert_array_equal(values[0], wanted[name][i], err_msg=name)
            checked += 1
    assert checked == 3
    assert layout.end == wanted["time"][0]


def test_unknown_users_have_no_past(worlds):
    """A user without a row has no history, and the statistics of one who never came."""
    (project, prepared), _ = worlds[0]
    layout = SnapshotColumns(prepared, "shop", project.scenarios["shop"])
    users = new_users(layout, ["nobody", "else"])
    assert (users.history == -1).all()
    assert (users.user == 0).all()
    counts = users.numeric[:, layout.names.index("user.log_count")]
    assert (counts == 0).all()


def test_seen_pairs_are_the_logs(worlds):
    """What users have seen are the pairs of the log, by partition and in all."""
    (_, prepared), _ = worlds[0]
    persons, items = seen_pairs(prepared, "shop")
    assert len(persons) == worlds[3]
    parts = [seen_pairs(prepared, "shop", part=p) for p in user_parts(prepared, "shop")]
    together = {pair for a, b in parts for pair in zip(a.tolist(), b.tolist(), strict=True)}
    assert together == set(zip(persons.tolist(), items.tolist(), strict=True))
