"""Who took what: rows known at a moment, and rows that are none."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.candidates.crowd import Crowd, places_from_latest
from mtrec_ray.data.interactions import Interactions, Moments, is_met, matrix_of
from mtrec_ray.data.preparing.samples import FIRST_NEGATIVE
from mtrec_ray.project.scenario import Negatives

NUM_ITEMS = 6


def random_rows(seed, delay_ms=0):
    """Thirty rows of four persons, sorted as they are read."""
    rng = np.random.default_rng(seed)
    person, time = rng.integers(0, 4, 30), rng.integers(1, 20, 30)
    order = np.lexsort([time, person])
    return Interactions(
        person[order], rng.integers(0, NUM_ITEMS, 30), time[order],
        rng.integers(0, 3, 30).astype(np.int8), rng.random(30) < 0.5, NUM_ITEMS, delay_ms,
    )  # fmt: skip


@given(st.integers(0, 10**6), st.booleans())
def test_rows_known_to_users_are_those_before_their_moments(seed, timed):
    """Of each user who asks all rows strictly before, in the order of time, and no others."""
    rows = random_rows(seed)
    persons = np.array([2, 0, 7])
    asking = Moments(persons, np.array([9, 15, 9]) if timed else None, 2)
    user, row = rows.known_to(asking)
    for place, person in enumerate(persons):
        before = rows.time < asking.times[place] if timed else rows.split < 2
        wanted = np.flatnonzero((rows.person == person) & before)
        assert row[user == place].tolist() == wanted.tolist()


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_the_last_rows_are_the_latest_of_all(seed, last):
    """With a limit each user has the end of what he has without one."""
    rows = random_rows(seed)
    asking = Moments(np.array([2, 0, 7]), np.array([9, 15, 9]), 2)
    user, row = rows.known_to(asking)
    some_user, some_row = rows.known_to(asking, last)
    for place in range(3):
        assert some_row[some_user == place].tolist() == row[user == place][-last:].tolist()


def test_rows_without_a_time_are_known_by_their_split():
    """Who asks at a moment knows no row of valid or test of a log that has no time."""
    rows = random_rows(0)
    rows = Interactions(
        rows.person, rows.item, np.zeros(30, int), rows.split, rows.taken, NUM_ITEMS
    )
    _, row = rows.known_to(Moments(np.arange(4), np.full(4, 15), 1))
    assert set(rows.split[row].tolist()) == {0}
    assert len(row) == (rows.split == 0).sum()


def test_a_label_counts_when_it_is_known():
    """A taken item enters a history only when its label's delay has passed."""
    rows = Interactions(
        np.zeros(2, int), np.array([1, 2]), np.array([5, 6]), np.zeros(2, np.int8),
        np.ones(2, bool), NUM_ITEMS, 10,
    )  # fmt: skip
    crowd = Crowd({"shop": rows})
    for moment, taken in ((15, []), (16, [1]), (17, [1, 2])):
        asked = crowd.ask("shop", Moments(np.zeros(1, int), np.array([moment]), 3), 5)
        assert np.flatnonzero(asked.taken.toarray()[0]).tolist() == taken
        assert sorted(asked.met[1].tolist()) == [1, 2]  # that it was met is known at once


@pytest.mark.parametrize(
    ("source", "met"), [(None, [1, 1, 0]), ("uniform", [1, 1, 0]), ("log", [1, 0, 0])]
)
def test_sampled_negatives_are_no_rows(source, met):
    """Negatives that `prepare` drew never count, those of the log do not with `from: log`."""
    negatives = Negatives.model_validate({"of": "buy", "from": source}) if source else None
    arrays = {"row": np.array([0, 1, FIRST_NEGATIVE]), "labels": np.array([[1.0], [0], [0]])}
    found = is_met(SimpleNamespace(negatives=negatives), ["buy"], arrays)
    assert found.astype(int).tolist() == met


def test_what_a_crowd_took_is_seen_from_each_scenario():
    """Items of all scenarios stand side by side; histories are the scenario's own, latest first."""
    one = Interactions(np.array([1, 1]), np.array([0, 2]), np.array([1, 3]),
                       np.zeros(2, np.int8), np.ones(2, bool), 3)  # fmt: skip
    other = Interactions(np.array([1, 2]), np.array([1, 0]), np.array([2, 2]),
                         np.zeros(2, np.int8), np.ones(2, bool), 2)  # fmt: skip
    crowd = Crowd({"one": one, "other": other})
    asked = crowd.ask("one", Moments(np.array([1, 2]), np.array([9, 9]), 3), 3)
    assert asked.history.tolist() == [[2, 0, -1], [-1, -1, -1]]
    assert asked.taken_anywhere.toarray().tolist() == [[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]]
    assert asked.recent.toarray()[0].tolist() == pytest.approx([0.9, 0, 1])
    assert crowd.end == 4


def test_places_count_from_the_latest_row():
    """Rows of a user are sorted by time: the last one has place 0."""
    assert places_from_latest(np.array([0, 0, 2, 2, 2]), 3).tolist() == [1, 0, 2, 1, 0]


def test_the_largest_weight_of_a_pair_stays():
    """An item that was taken twice weighs as much as its latest time."""
    found = matrix_of(np.array([0, 0]), np.array([1, 1]), (1, 2), np.array([0.5, 1.0], "f4"))
    assert found.toarray().tolist() == [[0, 1]]
