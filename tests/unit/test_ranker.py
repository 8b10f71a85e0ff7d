"""What a table of recommendations says of users and items."""

from types import SimpleNamespace

import numpy as np

from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot
from mtrec_ray.stages.ranker import Ranker
from tests.builders import SHOP


def ranker_of(values, best):
    """A ranker that has ranked already: only its table is looked at, so it has no model."""
    found = object.__new__(Ranker)
    found.facts = SHOP
    ids = np.array(["a", "b", "c"], object)
    found.items = ItemSnapshot(ids, np.array([True, False, True]), np.zeros((3, 1), "f4"), {}, {})
    found.top = lambda users, seen, numeric=None: (values, best, np.zeros((*best.shape, 2), "f4"))
    return found


def test_users_with_a_training_row_are_not_new():
    """A user is new without a training row; rows without a positive history make nobody new."""
    none = np.full((3, 2), -1)
    history = np.array([[-1, -1], [2, -1], [-1, -1]])  # the first has training rows, no positives
    users = UserSnapshot(
        np.array(["plain", "shopper", "stranger"], object), np.arange(3), np.array([7, 3, 0]),
        history, none, np.zeros((3, 1), "f4"),
    )  # fmt: skip
    ranker = ranker_of(np.zeros((3, 1), "f4"), np.array([[0], [1], [2]]))
    table = ranker.best(users, np.zeros((3, 3), bool)).to_pydict()
    new = dict(zip(table["user"], table["new_user"], strict=True))
    assert new == {"plain": False, "shopper": False, "stranger": True}
    assert table["new_item"] == [False, True, False]


def test_where_nothing_is_left_no_row_is_written():
    """A score of minus infinity is no recommendation."""
    values = np.array([[0.5, -np.inf], [-np.inf, -np.inf]], np.float32)
    ranker = ranker_of(values, np.array([[1, 0], [0, 1]]))
    users = SimpleNamespace(ids=np.array(["u", "v"], object), user=np.array([1, 1]))
    assert ranker.best(users, None).column("item").to_pylist() == ["b"]
