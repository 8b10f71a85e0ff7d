"""Candidates and their order: what is named, what is learned, what is kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.candidates.candidates import Candidates, choose, standardised
from mtrec_ray.candidates.list_model import (
    ListModel,
    Question,
    fit_first,
    fit_list_model,
    shortlist,
)
from mtrec_ray.candidates.scores import Hidden, TableScores


def hidden_of(left_out):
    """What hides the pairs that bool[B, n] marks."""
    num = left_out.shape[1]
    return Hidden(np.nonzero(left_out), np.ones(num, bool), np.zeros(num, int), None)


def fit(questions):
    """The model of shortlists that hold all candidates."""
    return fit_list_model(fit_first(questions), questions)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_candidates_are_the_best_of_each_source(seed, each):
    """Each source's best items are candidates, items that are left out never are, none is twice."""
    rng = np.random.default_rng(seed)
    scores = {s: rng.normal(size=(5, 20)).astype("f4") for s in ("a", "b")}
    left_out = rng.random((5, 20)) < 0.3
    tables = {s: TableScores(values, np.arange(20)) for s, values in scores.items()}
    found = choose(tables, hidden_of(left_out), 5, each)
    pairs = set(zip(found.user.tolist(), found.item.tolist(), strict=True))
    assert len(pairs) == len(found)
    assert not left_out[found.user, found.item].any()
    for values in scores.values():
        for user in range(5):
            allowed = np.flatnonzero(~left_out[user])
            best = allowed[np.argsort(-values[user, allowed])][:each]
            assert {(user, int(item)) for item in best} <= pairs
    enough = np.minimum((~left_out).sum(1), each)
    assert (np.bincount(found.user, minlength=5) >= enough).all()
    assert (np.diff(found.user) >= 0).all()


def test_a_source_that_tells_nothing_names_nothing():
    """A user for whom all items score alike gets no candidates of that source."""
    values = np.array([[1.0, 1, 1, 1], [0, 3, 1, 0]], "f4")
    hidden = hidden_of(np.zeros((2, 4), bool))
    found = TableScores(values, np.arange(4), least=0.0).best(3, hidden)
    assert found.tolist() == [[-1, -1, -1], [1, 2, -1]]


def test_users_with_few_candidates_get_others():
    """Where no source tells items apart there still are candidates, the same each time."""
    scores = {"popularity": TableScores(np.zeros((2, 30), "f4"), np.arange(30))}
    found = choose(scores, hidden_of(np.zeros((2, 30), bool)), 2, 10)
    assert np.bincount(found.user).tolist() == [10, 10]
    assert found.item[:10].tolist() == found.item[10:].tolist()


def test_the_best_candidates_are_those_of_a_sort():
    """The k best pairs of each user by falling score; -1 where there are fewer."""
    candidates = Candidates(np.array([0, 0, 0, 2]), np.array([7, 8, 9, 4]), {}, 3)
    items, pairs = candidates.best(np.array([0.1, 0.3, 0.2, 0.5]), 2)
    assert items.tolist() == [[8, 9], [-1, -1], [4, -1]]
    assert pairs.tolist() == [[1, 2], [-1, -1], [3, -1]]


def test_a_shortlist_holds_the_best_by_the_first_order():
    """The first logit's best candidates of each user stay, in their order, with all scores."""
    asked = question(5, np.array([2.0, -1.0]), 300)
    first = fit_first({"shop": asked})
    score = first.scores("shop", asked.candidates)
    short = shortlist(asked.candidates, score, 5)
    assert np.bincount(short.user).tolist() == [5] * 300
    items, _ = asked.candidates.best(score, 5)
    assert (np.sort(items, 1) == short.item.reshape(300, 5)).all()
    place = np.searchsorted(asked.candidates.item, short.item)
    for source, values in short.scores.items():
        assert (values == asked.candidates.scores[source][place]).all()
    taken = asked.taken[place].mean() * 5
    assert taken > asked.taken.reshape(300, -1)[:, :5].any(1).mean() + 0.3


def test_scores_are_standardised_for_each_user():
    """Mean 0 and deviation 1 over a user's candidates; 0 of an unknown or constant source."""
    user = np.array([0, 0, 0, 1, 1])
    scores = {"a": np.array([1.0, 2, 3, 5, 5], "f4")}
    found = standardised(Candidates(user, np.arange(5), scores, 2), ["a", "b"])
    high = np.sqrt(1.5)
    assert found[:, 0].tolist() == pytest.approx([-high, 0, high, 0, 0])
    assert not found[:, 1].any()


def question(seed, weights, num_users=300, size=40):
    """Users who take one of their candidates by a softmax of planted weights."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), size)
    x = rng.normal(size=(num_users, size, len(weights)))
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    chosen = (x @ weights + rng.gumbel(size=(num_users, size))).argmax(1)
    taken = np.zeros((num_users, size), bool)
    taken[np.arange(num_users), chosen] = True
    scores = {f"source{i}": x[..., i].ravel().astype("f4") for i in range(len(weights))}
    return Question(Candidates(user, np.arange(len(user)), scores, num_users), taken.ravel())


def test_planted_weights_are_found():
    """The logit's weights are those by which users chose, within their error."""
    weights = np.array([1.5, 0.0, 0.7])
    model = fit({"shop": question(0, weights, 1500)})
    assert model.logit.own["shop"] == pytest.approx(weights, abs=0.12)
    assert model.users == {"shop": 1500}


def test_a_small_scenario_borrows():
    """Six users of a scenario leave its weights near those that the others share."""
    weights = np.array([1.5, 0.0, 0.7])
    many = question(0, weights, 1500)
    model = fit({"large": many, "small": question(1, weights, 6)})
    alone = fit({"small": question(1, weights, 20)})
    far = [
        np.abs(np.array(w) - weights).max()
        for w in (model.logit.own["small"], alone.logit.own["small"])
    ]
    assert far[0] < 0.35
    assert far[0] < far[1]


def test_the_order_survives_being_stored():
    """A model of plain JSON values orders as it did before."""
    model = fit({"shop": question(2, np.array([1.0, -1.0]))})
    other = question(3, np.array([1.0, -1.0]), 20).candidates
    again = ListModel.parse(model.dump())
    np.testing.assert_array_equal(again.scores("shop", other), model.scores("shop", other))
    np.testing.assert_array_equal(
        fit({"shop": question(2, np.array([1.0, -1.0]))}).scores("shop", other),
        model.scores("shop", other),
    )


def test_without_answers_the_popular_come_first():
    """Where nobody of valid took a candidate the order is that of popularity."""
    asked = question(0, np.array([1.0]), 5)
    asked.candidates.scores["popularity"] = asked.candidates.scores.pop("source0")
    model = fit({"shop": Question(asked.candidates, np.zeros(200, bool))})
    items, _ = asked.candidates.best(model.scores("shop", asked.candidates), 3)
    wanted, _ = asked.candidates.best(asked.candidates.scores["popularity"], 3)
    assert items.tolist() == wanted.tolist()
