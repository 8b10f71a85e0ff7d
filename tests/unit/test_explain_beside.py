"""What other scenarios, profiles and columns of the catalogue do to a score is exact, too."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.data.catalogue import Ragged
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.serving.event_store import Event
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.serving.explain import Explainer
from mtrec_ray.stages.serving.explain_words import ItemScore
from mtrec_ray.stages.serving.requests import ScoreRequest
from mtrec_ray.stages.serving.view_requests import ExplainRequest
from mtrec_ray.training.build import build_model
from tests.builders import CPU, stir
from tests.served_people import (
    HOUR,
    LAST,
    NUM_USERS,
    TEXT_WIDTH,
    Served,
    encoders,
    profile_of,
)

ITEM = "shop 7"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("served"))


def scored(served, **who):
    """The main task's prediction of the item for who asks."""
    ask = ScoreRequest.model_validate({**who, "items": [ITEM]})
    return served.engines["shop"].score([ask])[0].items[0].predictions["click"]


def explained(served, **who):
    """Why the item has its score for who asks."""
    ask = ExplainRequest.model_validate({**who, "item": ITEM, "words": False})
    return served.views("shop").explain(ask)


def by_column(parts):
    """Effects by column, the strongest first."""
    assert all(abs(a.effect) >= abs(b.effect) for a, b in pairwise(parts))
    return {part.column: part.effect for part in parts}


def test_a_profile_is_left_out_exactly(served):
    """An effect is the difference of two scored requests: with the profile, and without it."""
    who, own = {"history": ["shop 2", "shop 3"]}, profile_of(1)
    found = by_column(explained(served, **who, profile=own).profile)
    assert set(found) == {None, "country", "plan", "age", "points", "likes", "face", "text"}
    whole = scored(served, **who, profile=own)
    assert found[None] == pytest.approx(whole - scored(served, **who), abs=1e-6)
    for column, effect in found.items():
        if column is not None:
            left_out = ("city", "job") if column == "text" else (column,)
            less = {name: value for name, value in own.items() if name not in left_out}
            wanted = whole - scored(served, **who, profile=less)
            assert effect == pytest.approx(wanted, abs=1e-6)
            assert abs(effect) > 1e-6


def test_a_stored_profile_is_explained_as_one_of_a_request(served):
    """By the user alone, or with the same columns in the request."""
    first = explained(served, user="user 1")
    second = explained(served, user="user 1", profile=profile_of(1))
    assert by_column(first.profile) == pytest.approx(by_column(second.profile), abs=1e-6)
    country = by_column(first.profile)["country"]
    wanted = scored(served, user="user 1") - scored(
        served, user="user 1", profile={"country": None}
    )
    assert country == pytest.approx(wanted, abs=1e-6)
    assert explained(served, user=f"user {NUM_USERS - 2}").profile == []


def test_words_are_explained_beside_the_profile_of_the_request(served):
    """The score at the end of their path is that of the user with this profile."""
    engine, tokens = served.engines["shop"], np.array([101, 7592, 102])
    found = []
    for body in ({}, {"profile": profile_of(1)}, {"profile": profile_of(2)}):
        ask = ScoreRequest.model_validate({"user": "user 1", "items": [ITEM], **body})
        users = engine.askers.known([ask]).users
        score = ItemScore(engine.ranker, encoders().pretrained[0], users, 7)
        found.append(float(score(score.embeddings(tokens)).detach()))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert abs(found[0] - found[2]) > 1e-5


def with_elsewhere(known, taken):
    """The only user, as if he had taken other items elsewhere."""
    return replace(known, users=replace(known.users, elsewhere=taken))


def test_items_of_other_scenarios_are_left_out_exactly(served):
    """As if they had never been taken, the older ones moved up; named by their scenario and id."""
    engine, user = served.engines["shop"], "user 2"
    found = explained(served, user=user)
    known = engine.askers.known([ScoreRequest(user=user, items=[ITEM])])
    side = served.loaded[0].elsewhere_side("shop")
    taken = side.timeline.taken(known.users.person, known.users.moment)
    assert len(found.elsewhere) == LAST
    pair = np.zeros(1, int), np.array([engine.askers.state.fresh.item_of[ITEM]])
    for part in found.elsewhere:
        item = taken.items[0, part.place]
        assert (part.scenario, part.item) == ("video", f"video {item}")
        assert part.text == f"video number {item}"
        less = [
            np.append(np.delete(v[0], part.place), e)[None]
            for v, e in zip(taken, (-1, 0), strict=True)
        ]
        without = engine.predict(with_elsewhere(known, type(taken)(*less)), *pair)
        wanted = scored(served, user=user) - without[0, 0]
        assert part.effect == pytest.approx(wanted, abs=1e-6)
        assert abs(part.effect) > 1e-6


def test_an_event_elsewhere_is_the_difference_of_two_scores(tmp_path):
    """The only item that somebody took elsewhere: the score after the event, less that before."""
    served, user = Served(tmp_path), f"user {NUM_USERS - 1}"
    late = max(layout.end for layout in served.layouts.values()) + HOUR
    store = served.states["shop"].fresh.store
    labels = {"click": 1.0, "stars": 4.0}
    store.append([Event("shop", "somebody", "shop 1", "a", late + HOUR, labels)])
    before = scored(served, user=user)
    assert explained(served, user=user).elsewhere == []
    store.append([Event("video", user, "video 4", "b", late, labels)])
    after = scored(served, user=user)
    (found,) = explained(served, user=user).elsewhere
    assert (found.scenario, found.item, found.place) == ("video", "video 4", 0)
    assert found.effect == pytest.approx(after - before, abs=1e-6)
    assert abs(found.effect) > 1e-5


class Changed(Prepared):
    """Prepared data of which an item of shop lacks a column, but for its statistics."""

    def catalogue(self, name):
        found = super().catalogue(name)
        return found if name != "shop" else CHANGES[self.fingerprint](found, int(ITEM.split()[1]))


def blanked(values, item, value):
    """A table's column with another value for an item."""
    found = np.array(values)
    found[item] = value
    return found


def without_tags(ragged, item):
    """Several values, none of them an item's."""
    kept = ragged.rows != item
    lengths = blanked(np.diff(ragged.offsets), item, 0)
    return Ragged(ragged.codes[kept], np.concatenate([[0], np.cumsum(lengths)]))


CHANGES = {
    "brand": lambda c, i: replace(c, categorical=blanked(c.categorical, i, 0)),
    "price": lambda c, i: replace(c, numeric=blanked(c.numeric, i, np.nan)),
    "tags": lambda c, i: replace(c, several=(without_tags(c.several[0], i),)),
    "cover": lambda c, i: replace(c, vectors=(blanked(c.vectors[0], i, np.nan),)),
}
CHANGES["all"] = lambda c, i: CHANGES["cover"](
    CHANGES["tags"](CHANGES["price"](CHANGES["brand"](c, i), i), i), i
)


def changed_score(served, change, users):
    """The item's score by the same weights over a catalogue in which it lacks a column."""
    known = served.model.open_prepared()
    prepared = Changed(known.folder, change, known.scenarios, users=known.users)
    model, vectors = build_model(served.project, prepared, CPU, "fp32", width=TEXT_WIDTH)
    stir(model)
    vectors.cache = torch.from_numpy(served.vectors)
    state = served.states["shop"]
    loaded = (model.eval(), vectors)
    ranker = Ranker(served.model, "shop", served.vectors, state.at_end, None, loaded)
    item = np.array([state.fresh.item_of[ITEM]])
    pair = Candidates(np.zeros(1, int), item, {}, 1)
    return float(ranker.blended(ranker.predictions(users, pair))[0])


def test_columns_of_the_item_are_left_out_exactly(served):
    """As a model over a catalogue file without them says it, whose statistics are the same."""
    who = next(f"user {u}" for u in range(NUM_USERS) if has_not_met(served, f"user {u}"))
    found = by_column(explained(served, user=who).columns)
    assert set(found) == {None, "brand", "price", "tags", "cover"}
    users = served.engines["shop"].askers.known([ScoreRequest(user=who, items=[ITEM])]).users
    assert changed_score(served, "brand", users) != pytest.approx(scored(served, user=who))
    for column, effect in found.items():
        wanted = scored(served, user=who) - changed_score(served, column or "all", users)
        assert effect == pytest.approx(wanted, abs=1e-6)
        assert abs(effect) > 1e-6


def has_not_met(served, user):
    """Whether the item is in nobody's history but others'."""
    item = served.states["shop"].fresh.item_of[ITEM]
    history = served.states["shop"].users([user], served.layouts["shop"].end).history
    return item not in history and (history >= 0).sum() > 1


def test_an_item_that_was_met_keeps_its_columns_in_the_history(served):
    """Only the candidate lacks them."""
    who = {"history": [ITEM, "shop 3"]}
    found = explained(served, **who)
    assert found.score == pytest.approx(scored(served, **who), abs=1e-6)
    assert by_column(found.columns)["brand"] != 0


def test_a_general_head_sees_none_of_it(served):
    """What it does not read has no effect, and is not told."""
    engine = served.engines["shop"]
    model = served.loaded[0]
    users = engine.askers.known([ScoreRequest(user="user 1", items=[ITEM])]).users
    explainer = Explainer(engine.ranker, None, engine.askers.profiles)
    model.use_general_head = True
    try:
        assert explainer.elsewhere(users, 3) == []
        assert explainer.profile(users, 3) == []
        assert explainer.explain(users, 3).columns == []
    finally:
        model.use_general_head = False


def test_the_profile_is_told_as_a_request_has_it(served):
    """Numbers, texts and lists; sent back, they make the same profile."""
    told = served.views("shop").user("user 1").profile
    own = dict(profile_of(1))
    assert told.pop("face") == pytest.approx(own.pop("face"))  # 32 bits
    assert told == own
