"""What a table of recommendations says of users and items."""

from types import SimpleNamespace

import numpy as np
import pytest

from mtrec_ray.candidates.assortment import Cap
from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot
from mtrec_ray.project.project import Recommend
from mtrec_ray.stages.list_ranker import ItemRules, ListRanker, PairScorer, pairs_of
from tests.builders import SHOP


def writer_of(caps=(), **options):
    """A writer whose candidates are scored already: only its lists are looked at."""
    ids = np.array(["a", "b", "c"], object)
    known = np.array([True, False, True])
    items = ItemSnapshot(ids, known, np.zeros((3, 1), "f4"), {}, {})
    fields = Recommend.model_validate({"k": 2, **options})
    ranker = SimpleNamespace(facts=SHOP, items=items, options=fields)
    sources = SimpleNamespace(crowd=SimpleNamespace(end=0))
    rules = ItemRules(np.ones(3, bool), list(caps))
    return ListRanker(PairScorer(ranker), sources, rules, None, np.eye(3, dtype=np.float32))


def users_of(number):
    """Three users: with training rows but no positives, with both, and a stranger."""
    none, history = np.full((3, 2), -1), np.array([[-1, -1], [2, -1], [-1, -1]])
    ids = np.array(["plain", "shopper", "stranger"], object)
    users = UserSnapshot(
        ids, np.arange(3), np.zeros(3, int), np.array([7, 3, 0]), history, none,
        np.zeros((3, 1), "f4"),
    )  # fmt: skip
    return users.of(0, number)


def table_of(writer, users, candidates, score):
    predicted = np.arange(2 * len(candidates), dtype="f4").reshape(-1, 2)
    lists = writer.lists(users, candidates, np.asarray(score, float))
    return writer.table(users, candidates, predicted, lists).to_pydict(), predicted


def test_users_with_a_training_row_are_not_new():
    """A user is new without a training row; rows without a positive history make nobody new."""
    candidates = Candidates(np.arange(3), np.array([0, 1, 2]), {}, 3)
    table, _ = table_of(writer_of(), users_of(3), candidates, [0.1, 0.2, 0.3])
    new = dict(zip(table["user"], table["new_user"], strict=True))
    assert new == {"plain": False, "shopper": False, "stranger": True}
    assert table["new_item"] == [False, True, False]


def test_rows_are_the_best_candidates_with_their_own_predictions():
    """Two of three items by falling score, each with the predictions of its own pair."""
    candidates = Candidates(np.zeros(3, int), np.arange(3), {}, 1)
    table, predicted = table_of(writer_of(), users_of(1), candidates, [0.1, 0.9, 0.5])
    assert table["item"] == ["b", "c"]
    assert table["rank"] == [1, 2]
    assert table["score"] == pytest.approx([0.9, 0.5])
    for place, (task, kind) in enumerate(SHOP.kinds.items()):
        word = "probability" if kind == "binary" else "prediction"
        assert table[f"{word}.{task}"] == predicted[[1, 2], place].tolist()
    assert "propensity" not in table


def test_where_no_candidate_is_left_no_row_is_written():
    """A user without a candidate has no row; caps leave shorter lists."""
    one = Candidates(np.array([0]), np.array([1]), {}, 2)
    table, _ = table_of(writer_of(), users_of(2), one, [0.5])
    assert table["user"] == ["plain"]
    three = Candidates(np.zeros(3, int), np.arange(3), {}, 1)
    capped = writer_of([Cap(np.zeros(3, int), 1)])
    assert table_of(capped, users_of(1), three, [0.1, 0.9, 0.5])[0]["item"] == ["b"]


def test_chance_is_logged():
    """With chance each row has the probability with which it came to its rank."""
    candidates = Candidates(np.zeros(3, int), np.arange(3), {}, 1)
    writer = writer_of(explore={"way": "epsilon", "epsilon": 0.3})
    table, _ = table_of(writer, users_of(1), candidates, [0.1, 0.9, 0.5])
    first = 0.8 if table["item"][0] == "b" else 0.1  # 0.7 + 0.3 / 3, or 0.3 / 3
    assert table["propensity"][0] == pytest.approx(first)


def test_pairs_are_found_again():
    """A user and an item lead back to their pair among those sorted by both."""
    candidates = Candidates(np.array([0, 0, 1, 3]), np.array([2, 5, 2, 0]), {}, 4)
    found = pairs_of(candidates, np.array([3, 0, 1]), np.array([0, 5, 2]), 6)
    assert found.tolist() == [3, 1, 2]
