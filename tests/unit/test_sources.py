"""Sources of candidates: nothing of the future, and scores as their definitions say."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.candidates.crowd import Crowd
from mtrec_ray.candidates.popularity import Newness
from mtrec_ray.candidates.scores import Hidden
from mtrec_ray.candidates.sources import HISTORY, Taken, Texts, fit_sources
from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.columns import DAY_MS
from mtrec_ray.data.interactions import Interactions, Moments
from mtrec_ray.stages.ranker import NETWORK, SAMPLED, Ranker

NUM_ITEMS, TRAIN_END = 12, 100 * DAY_MS


def log(seed, num_rows=200):
    """A log of 150 days, cut at day 100; nine persons."""
    rng = np.random.default_rng(seed)
    person, time = rng.integers(0, 9, num_rows), rng.integers(1, 150 * DAY_MS, num_rows)
    order = np.lexsort([time, person])
    person, time = person[order], time[order]
    split = np.where(time < TRAIN_END, 0, 2).astype(np.int8)
    item, taken = rng.integers(0, NUM_ITEMS, num_rows), rng.random(num_rows) < 0.7
    return Interactions(person, item, time, split, taken, NUM_ITEMS)


def all_scores(crowd, moments):
    """Scores of every source for some users of `shop`, fitted on train."""
    texts = Texts({n: np.eye(NUM_ITEMS, 16, dtype=np.float32) for n in crowd.scenarios})
    published = np.arange(NUM_ITEMS) * 10 * DAY_MS
    shared = Taken.fit(crowd, 1)
    sources = fit_sources(crowd, "shop", 1, texts, published, shared)
    asked = crowd.ask("shop", moments, HISTORY)
    hidden = sources.hidden(asked, exclude_met=True)
    scores = sources.scores(asked)
    return {n: table_of(s, len(moments)) for n, s in scores.items()} | {
        f"best of {n}": s.best(4, hidden) for n, s in scores.items()
    }


def table_of(scores, num_users):
    """The scores of all items for all users."""
    user = np.repeat(np.arange(num_users), NUM_ITEMS)
    return scores.at(user, np.tile(np.arange(NUM_ITEMS), num_users)).reshape(num_users, -1)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_what_comes_later_moves_no_score(seed):
    """Rows of test at or after a user's moment change nothing that he is shown."""
    moments = Moments(np.arange(9), np.full(9, 120 * DAY_MS), 2)
    before = {"shop": log(seed), "news": log(seed + 1)}
    after = {}
    for name, rows in before.items():
        later = rows.time >= 120 * DAY_MS
        item = np.where(later, (rows.item + 1) % NUM_ITEMS, rows.item)
        after[name] = Interactions(
            rows.person, item, rows.time, rows.split, rows.taken ^ later, NUM_ITEMS
        )
    found, other = all_scores(Crowd(before), moments), all_scores(Crowd(after), moments)
    assert {"popularity", "last_7_days", "newest", "ease", "crowd_ease", "text_mean"} <= set(found)
    for source, values in found.items():
        np.testing.assert_array_equal(values, other[source], err_msg=source)


def test_popularity_of_the_last_days():
    """The last days end at the moment; all time is all of train, and no more."""
    rows, moment = log(3), 120 * DAY_MS
    found = all_scores(Crowd({"shop": rows, "news": log(4)}), Moments(np.zeros(1, int),
                       np.array([moment]), 2))  # fmt: skip
    for source, low, high in (("last_7_days", moment - 7 * DAY_MS, moment),
                              ("popularity", 0, TRAIN_END)):  # fmt: skip
        some = rows.taken & (rows.time >= low) & (rows.time < high)
        wanted = np.log1p(np.bincount(rows.item[some], minlength=NUM_ITEMS))
        assert found[source][0] == pytest.approx(wanted, rel=1e-6)


def test_frozen_statistics_count_train_alone():
    """With `counted` 1 the last days see no row after train; by default they see all."""
    rows, moment = log(3), np.array([103 * DAY_MS])
    crowd, texts = Crowd({"shop": rows}), Texts({"shop": np.eye(NUM_ITEMS, dtype=np.float32)})
    published = np.full(NUM_ITEMS, NO_TIME)
    asked = crowd.ask("shop", Moments(np.zeros(1, int), moment, 2), HISTORY)
    for counted, late in ((1, TRAIN_END), (3, moment[0])):
        sources = fit_sources(crowd, "shop", 1, texts, published, counted=counted)
        some = rows.taken & (rows.time >= moment[0] - 7 * DAY_MS) & (rows.time < late)
        wanted = np.log1p(np.bincount(rows.item[some], minlength=NUM_ITEMS))
        found = table_of(sources.scores(asked)["last_7_days"], 1)[0]
        assert found == pytest.approx(wanted, rel=1e-6)


def test_the_newest_come_first_and_the_unpublished_never():
    """Items without a time are the oldest; items of a later time are no candidates."""
    published = np.array([50 * DAY_MS, NO_TIME, 90 * DAY_MS, 110 * DAY_MS])
    times, none = np.array([100 * DAY_MS]), np.zeros(0, int)
    scores = Newness(published).scores(times)
    found = scores.at(np.zeros(4, int), np.arange(4))
    assert np.argsort(-found).tolist() == [2, 0, 1, 3]
    assert found[3] == -np.inf
    hidden = Hidden((none, none), np.ones(4, bool), published, times)
    assert scores.best(4, hidden).tolist() == [[2, 0, -1, -1]]


def ranker_of(source, sampled):
    """A ranker whose network has scored already: only its correction is looked at."""
    found = object.__new__(Ranker)
    negatives = SimpleNamespace(source=source, of="buy") if source else None
    found.layout = SimpleNamespace(scenario=SimpleNamespace(negatives=negatives))
    found.facts = SimpleNamespace(tasks=["buy"], given={}, kinds={"buy": "binary"})
    found.by, found.sampled = {"buy": 1.0}, np.log1p(sampled).astype(np.float32)
    return found


@pytest.mark.parametrize("source", ["uniform", "popularity", "log"])
def test_the_same_list_however_negatives_were_drawn(source):
    """The order is that of P(taken), for a network that learned beside each kind of negatives.

    Its odds are P(taken) / (c q(item)). Of negatives that the log holds the list model has what it
    needs: the times that each item was one, whose weight it learns.
    """
    rng = np.random.default_rng(0)
    taken = rng.dirichlet(np.ones(50))
    q = taken**1.5 / (taken**1.5).sum() if source != "uniform" else np.full(50, 1 / 50)
    sampled = np.round(1e7 * q)
    odds = taken / (4 * q)
    predicted = (odds / (1 + odds)).astype(np.float32)[:, None]
    found = ranker_of(source, sampled).scores(predicted, np.arange(50))
    score = found[NETWORK] + found.get(SAMPLED, 0)
    assert np.argsort(-score).tolist() == np.argsort(-taken).tolist()
    assert (SAMPLED in found) == (source == "log")


def test_candidates_hold_the_scores_that_they_are_given():
    """A source without a score for some scenario leaves the others as they are."""
    found = Candidates(np.zeros(2, int), np.arange(2), {"a": np.ones(2, "f4")}, 1)
    more = found.with_scores({"b": np.zeros(2, "f4")})
    assert set(more.scores) == {"a", "b"}
    assert set(found.scores) == {"a"}
