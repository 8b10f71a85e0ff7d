"""Profiles that requests bring along are read as `prepare` reads those of the table."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.data.given_profiles import NONE, GivenProfiles
from mtrec_ray.data.shards import GIVEN
from mtrec_ray.data.snapshot import rows_of_pairs
from mtrec_ray.stages.serving.requests import RequestError, ScoreRequest
from mtrec_ray.training.boosted_trees import Columns
from tests.served_people import NUM_ITEMS, NUM_USERS, Served, profile_of

ITEMS = [f"shop {i}" for i in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("served"))


def asked(served, **who):
    """The answer to a request in shop, or its problems."""
    (answer,) = served.engines["shop"].score([ScoreRequest.model_validate({**who, "items": ITEMS})])
    return answer.problems if isinstance(answer, RequestError) else answer


def numbers(answer):
    """Predictions [n, P]."""
    return np.array([list(one.predictions.values()) for one in answer.items])


@pytest.mark.parametrize("user", range(NUM_USERS - 2))
def test_a_profile_in_the_request_equals_a_stored_one(served, user):
    """Categories, numbers, lists, vectors, texts, nulls and missing values: the same scores."""
    stored, own = f"user {user}", profile_of(user)
    other = f"user {NUM_USERS - 2}"  # he has no stored profile
    known = served.engines["shop"].askers.known([ScoreRequest(user=other, items=ITEMS[:1])])
    twin = replace(known.users, person=hash_of(served, stored))
    side = served.loaded[0].elsewhere_side("shop")
    taken = side.timeline.taken(known.users.person, known.users.moment)
    pairs = (np.zeros(NUM_ITEMS, int), np.arange(NUM_ITEMS))
    wanted = served.engines["shop"].predict(
        replace(known, users=replace(twin, elsewhere=taken)), *pairs
    )
    found = asked(served, user=other, profile=own)
    np.testing.assert_allclose(numbers(found), wanted, atol=1e-6)
    without = numbers(asked(served, user=other))
    assert abs(wanted - without).max() > 1e-3


def hash_of(served, name):
    """The hash of a user's id."""
    return served.states["shop"].users([name], 0).person


def test_values_of_the_request_win_over_stored_ones(served):
    """Column by column: the others are those of the table."""
    first, second = profile_of(0), profile_of(1)
    mixed = first | {"country": second["country"], "age": second["age"], "likes": second["likes"],
                     "face": second["face"]}  # fmt: skip
    some = {name: second[name] for name in ("country", "age", "likes", "face")}
    whole = numbers(asked(served, user="user 0", profile=mixed))
    np.testing.assert_allclose(
        numbers(asked(served, user="user 0", profile=some)), whole, atol=1e-6
    )
    assert abs(whole - numbers(asked(served, user="user 0"))).max() > 1e-4
    texts = {name: second[name] for name in ("city", "job")}
    whole = numbers(asked(served, user="user 0", profile=first | texts))
    found = numbers(asked(served, user="user 0", profile=texts))
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_a_profile_stands_beside_a_history_or_alone(served):
    """Who is new has what he tells: a history, a profile, or both."""
    own = profile_of(2)
    alone = numbers(asked(served, profile=own))
    np.testing.assert_allclose(numbers(asked(served, history=[], profile=own)), alone, atol=1e-7)
    both = numbers(asked(served, history=ITEMS[:2], profile=own))
    assert abs(both - alone).max() > 1e-4
    assert abs(numbers(asked(served, history=ITEMS[:2])) - both).max() > 1e-4


def test_a_user_with_several_profiles_in_one_batch(served):
    """Each request has its own, and the same user without one keeps the stored profile."""
    bodies = [{"user": "user 0"}, {"user": "user 0", "profile": profile_of(1)},
              {"history": []}, {"user": "user 0", "profile": profile_of(3)},
              {"history": [], "profile": profile_of(1)}, {"user": "user 0"}]  # fmt: skip
    engine = served.engines["shop"]
    asks = [ScoreRequest.model_validate({**body, "items": ITEMS}) for body in bodies]
    for body, answer in zip(bodies, engine.score(asks), strict=True):
        np.testing.assert_allclose(numbers(answer), numbers(asked(served, **body)), atol=1e-6)


def test_what_training_does_not_know_is_told(served):
    """Such a value is read as one that `prepare` has no code for, and named in the answer."""
    own = {"country": "dk", "likes": ["tea", "chess"], "plan": 7, "age": 30}
    found = asked(served, user="user 0", profile=own)
    assert found.new_values == {"country": ["dk"], "plan": ["7"], "likes": ["chess"]}
    assert not found.new_user
    null = asked(served, user="user 0", profile={**own, "country": None, "plan": None,
                                                 "likes": ["tea"]})  # fmt: skip
    assert null.new_values == {}
    np.testing.assert_allclose(numbers(found), numbers(null), atol=1e-7)


WRONG = [
    ({"profile": {"colour": "red"}}, "profile.colour: found an unknown column; allowed: country, "),
    ({"profile": {"country": 3}}, "profile.country: found 3; allowed: a value of type string"),
    ({"profile": {"plan": "x"}}, "profile.plan: found 'x'; allowed: a value of type int32"),
    ({"profile": {"plan": True}}, "profile.plan: found true; allowed: a value of type int32"),
    ({"profile": {"plan": 2**40}}, "profile.plan: found 1099511627776; allowed: a value of type"),
    ({"profile": {"age": "old"}}, "profile.age: found 'old'; allowed: a value of type double"),
    ({"profile": {"likes": "tea"}}, "profile.likes: found 'tea'; allowed: a value of type list"),
    ({"profile": {"face": [1, 2]}}, "profile.face: found 2 numbers; allowed: 4"),
    ({"profile": {"face": [1, "a"]}}, 'profile.face: found [1, "a"]; allowed: a value of type'),
    ({"profile": {"city": "Rome"}}, "profile.job: found none beside city; allowed: all columns"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "line"), WRONG)
def test_mistakes_are_a_line_each(served, body, line):
    """The column, what was found and what is allowed."""
    (problem,) = asked(served, user="user 0", **body)
    assert problem.startswith(line)


def test_what_a_history_lacks_is_null(served):
    """Who is new may tell a part of a text; the age of half a year and huge numbers are numbers."""
    assert numbers(asked(served, history=[], profile={"city": "Rome"})).shape == (NUM_ITEMS, 2)
    found = numbers(asked(served, history=[], profile={"age": 30.5, "points": 1e300}))
    assert np.isfinite(found).all()


def test_a_scenario_without_a_table_takes_no_profile(served):
    """The line says why."""
    askers = replace(served.engines["shop"].askers, profiles=None, no_profiles="found one; none")
    ask = ScoreRequest(user="u", profile={"age": 1}, items=ITEMS[:1])
    assert askers.problems(ask) == ["profile: found one; none"]


def test_trees_read_the_same_profile(served):
    """Their columns of a user who brings a profile are those of a user who has it stored."""
    engine = served.engines["shop"]
    profiles = served.layouts["shop"].prepared.profiles("shop")
    catalogue = served.layouts["shop"].prepared.catalogue("shop")
    vectors = served.vectors[NUM_ITEMS:]
    columns = Columns(engine.facts, catalogue, vectors, profiles=profiles)
    stored = engine.askers.known([ScoreRequest(user="user 1", items=ITEMS[:1])]).users
    ask = ScoreRequest(user="user 0", profile=profile_of(1), items=ITEMS[:1])
    brings = engine.askers.known([ask]).users
    pairs = (np.zeros(4, int), np.arange(4))
    wanted, own, none = (
        rows_of_pairs(engine.ranker.layout, users, engine.ranker.items, *pairs)
        for users in (stored, replace(stored, given=brings.given),
                      replace(stored, given=GivenProfiles(np.array([NONE]), brings.given.rows)))
    )  # fmt: skip
    own["person"] = np.zeros_like(own["person"])
    found = columns.with_given(brings.given).every(own)
    np.testing.assert_allclose(found, columns.every(wanted), atol=1e-6)
    assert (none[GIVEN] == NONE).all()
    blank = columns.with_given(brings.given).every(none)
    absent = columns.every(wanted | {"person": np.zeros(4, int)})
    np.testing.assert_array_equal(blank, absent)


def test_types_are_those_of_the_file(served):
    """A whole number in a column that has floats, for its nulls, is the text that its file has."""
    reader = served.engines["shop"].askers.profiles.reader
    floats = replace(reader, types={**reader.types, "plan": pa.float64()})
    whole, number = (own.read({"plan": 1}) for own in (floats, reader))
    assert whole.unknown == {}
    assert whole.row.categorical.tolist() == number.row.categorical.tolist()
