"""The network sees what a user took in other scenarios: what lies there alone is learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mtrec_ray.data.catalogue import NO_TIME, Catalogue
from mtrec_ray.data.elsewhere import ElsewhereFacts, Timeline
from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot
from mtrec_ray.model.catalogue_scorer import CatalogueScorer
from mtrec_ray.model.history import cosines, similarity_kernels
from mtrec_ray.model.profiles import Asking
from mtrec_ray.model.recommender import scenario_parameters
from mtrec_ray.model.samples import Samples
from tests.builders import (
    FACTS,
    HISTORY,
    NUM_ITEMS,
    build,
    make_catalogues,
    make_rows,
    make_timelines,
    small_model,
    stir,
)  # fmt: skip
from tests.planted import learn, planted_facts, planted_model, planted_rows, predicted

CATALOGUES = make_catalogues()
TIMELINES = make_timelines()
KINDS, NUM_USERS, NUM_ROWS, EACH = 3, 400, 4000, 3
KIND_OF_ITEM, KIND_OF_USER = np.arange(NUM_ITEMS) % KINDS, np.arange(NUM_USERS) % KINDS
PERSONS = np.sort(np.random.default_rng(9).integers(-(2**62), 2**62, NUM_USERS))
SEEN, NEW = np.arange(NUM_USERS // 2), np.arange(NUM_USERS // 2, NUM_USERS)
PLANTED = replace(planted_facts(NUM_ITEMS, [KINDS + 1]), user_space="people")
NOW, LATER = 1000, 5000
ITEMS = Catalogue(
    tokens=7 + KIND_OF_ITEM.astype(np.int32),
    offsets=np.arange(NUM_ITEMS + 1),
    categorical=(KIND_OF_ITEM[:, None] + 1).astype(np.int32),
    numeric=np.zeros((NUM_ITEMS, 0), np.float32),
    published=np.full(NUM_ITEMS, NO_TIME),
    known=np.ones(NUM_ITEMS, bool),
)


# --- rows and blocks of a catalogue -------------------------------------------------------------


def model_of(timelines=TIMELINES, **fields):
    """A stirred model in evaluation."""
    model, vectors = build(small_model("none", **fields), CATALOGUES, timelines=timelines)
    vectors.refresh()
    return model.eval(), vectors


def users_asking(num):
    """Users who are known elsewhere, and the last one, who is not, at moments of their own."""
    rng, shape = np.random.default_rng(2), (num, HISTORY)
    some = np.arange(HISTORY) < rng.integers(0, HISTORY + 1, num)[:, None]
    return UserSnapshot(
        ids=np.arange(num).astype(str).astype(object), person=np.arange(num),
        moment=rng.integers(0, 10**6, num), user=rng.integers(0, 9, num),
        history=np.where(some, rng.integers(0, NUM_ITEMS, shape), -1),
        ages=np.where(some, rng.integers(0, 30, shape), 0),
        numeric=np.full((num, 3), np.nan, np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["shop", "video"])
@pytest.mark.parametrize("hidden", [(), ("text",), ("history",)])
@torch.no_grad()
def test_scores_of_all_pairs(name, hidden):
    """A block of users has the scores that each pair has as a sample, with times and without."""
    model, vectors = model_of(**dict.fromkeys(hidden, False))
    users, facts = users_asking(5), FACTS[name]
    num_numbers = len(facts.numeric_names)
    users = replace(users, numeric=users.numeric[:, :num_numbers])
    numbers = np.random.default_rng(0).normal(size=(NUM_ITEMS, num_numbers)).astype("f4")
    items = ItemSnapshot(np.arange(NUM_ITEMS), np.ones(NUM_ITEMS, bool), numbers, {}, {})
    user, item = (x.ravel() for x in np.indices((len(users), NUM_ITEMS)))
    samples = Samples.of({
        "item": item, "user": users.user[user], "person": users.person[user],
        "time": users.moment[user], "history": users.history[user],
        "history_age": users.ages[user], "numeric": numbers[item],
        "categorical": np.zeros((len(user), 1), int), "labels": np.zeros((len(user), 2)),
    })  # fmt: skip
    wanted = model.score(name, samples, vectors.of_items(name, samples.items))
    text = vectors.of_items(name, torch.arange(NUM_ITEMS))
    found = CatalogueScorer(model, name, text, items).logits(users)
    torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=1e-4, atol=1e-5)
    without = model_of({}, **dict.fromkeys(hidden, False))[0]
    plain = CatalogueScorer(without, name, text, items).logits(users)
    moved = (found - plain).abs().amax((1, 2)) > 1e-4
    seen = (TIMELINES[name].taken(users.person, users.moment).items >= 0).any(1)
    assert seen.sum() in (3, 4)
    assert moved.tolist() == (seen & (hidden != ("history",))).tolist()


@torch.no_grad()
def test_a_row_sees_its_items_by_attention_and_by_cosines():
    """As the scenario's own history: one row at a time, its items alone."""
    model, _ = model_of()
    side, timeline = model.elsewhere_side("shop"), TIMELINES["shop"]
    person, moment = torch.tensor([0, 1, 2, 9]), torch.tensor([10**6, 600_000, 0, 10**6])
    candidate, item = torch.randn(4, 8), torch.tensor([3, 3, 5, 7])
    found = side.of_samples(Asking(person, moment), candidate, item)
    for i in range(4):
        mine = timeline.taken(person[i : i + 1].numpy(), moment[i : i + 1].numpy())
        items = torch.from_numpy(mine.items[mine.items >= 0])
        if not len(items):
            assert not found.user[i].any()
            assert not found.columns[i].any()
            continue
        texts = torch.from_numpy(timeline.texts).float()
        vectors = side.norm(side.project(texts[items]) + side.origins[1])
        place, ages = torch.arange(len(items))[None], torch.from_numpy(mine.ages[:, : len(items)])
        mask = torch.ones_like(place, dtype=torch.bool)
        user = side.attention(candidate[i : i + 1], vectors, place, ages, mask)
        torch.testing.assert_close(found.user[i : i + 1], user)
        both = torch.cat([texts[item[i]][None], texts[items]])
        kernels = similarity_kernels(cosines(both, torch.zeros(1, dtype=int), place + 1), mask)
        wanted = side.similarity(kernels)
        torch.testing.assert_close(found.columns[i : i + 1], wanted, rtol=0.01, atol=1e-3)


def test_other_weights_start_where_they_did():
    """Without a timeline there is no such part; with one, its columns add nothing at the start."""
    options = small_model("none")
    torch.manual_seed(0)
    plain = build(options, CATALOGUES)[0].state_dict()
    with_it = build(options, CATALOGUES, timelines=TIMELINES)[0]
    assert not any("elsewhere" in name for name in plain)
    own = {n: v for n, v in with_it.state_dict().items() if not n.startswith("elsewhere.")}
    assert own.keys() == plain.keys()
    assert not any("texts" in name or "timeline" in name for name in with_it.state_dict())
    assert "elsewhere.shop" in scenario_parameters(with_it, "shop")
    fresh = planted(timeline())[0]
    bare = planted(None)[0].state_dict()
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in bare.items())
    assert not fresh.elsewhere_side("shop").similarity.weight.any()


def test_texts_carry_no_gradient_into_the_encoder():
    """The side learns; texts are constants."""
    model, vectors = model_of()
    rows = make_rows(np.random.default_rng(1), FACTS["shop"], 12)
    samples = Samples.of(rows)
    model.train().score("shop", samples, vectors.of_items("shop", samples.items)).sum().backward()
    side = model.elsewhere_side("shop")
    assert not side.texts.requires_grad
    assert all(p.grad is not None and p.grad.any() for p in side.parameters())
    assert all(p.grad is None for p in model.elsewhere_side("video").parameters())


# --- a planted taste ----------------------------------------------------------------------------


def timeline(users=np.arange(NUM_USERS), known=NOW) -> Timeline:  # noqa: B008
    """What users took in another scenario: items of their kind, whose texts say the kind."""
    rng = np.random.default_rng(3)
    facts = ElsewhereFacts(EACH, True, {"shop": NUM_ITEMS, "news": NUM_ITEMS}, {"news": 0})
    person = np.repeat(PERSONS[users], EACH)
    kind = np.repeat(KIND_OF_USER[users], EACH)
    item = NUM_ITEMS + KINDS * rng.integers(0, NUM_ITEMS // KINDS, len(person)) + kind
    texts = np.eye(KINDS, 8, dtype=np.float16)[np.tile(KIND_OF_ITEM, 2)]
    return Timeline(facts, person, np.full(len(person), known), item.astype(np.int32), texts)


def planted(own: Timeline | None):
    """A model at its start, with a timeline or without one."""
    return planted_model(PLANTED, ITEMS, timelines={} if own is None else {"shop": own})


def rows_of(users, seed, time=NOW + 1):
    """Rows of users without a past here, who take items of their own kind."""
    rng = np.random.default_rng(seed)
    user, item = rng.choice(users, NUM_ROWS), rng.integers(0, NUM_ITEMS, NUM_ROWS)
    likes = KIND_OF_USER[user] == KIND_OF_ITEM[item]
    return planted_rows(rng, item, PERSONS[user], likes, np.full(NUM_ROWS, time))


def auc(model, vectors, time=NOW + 1):
    """AUC on rows of users of whom training had none."""
    rows = rows_of(NEW, 999, time)
    return roc_auc_score(rows["labels"][:, 0], predicted(model, vectors, rows))


def recall(model, vectors, users, moment):
    """The share of items of each user's kind among as many that are scored best.

    The users have no row in the scenario: they ask with the hash of their id and a moment.
    """
    num, none = len(users), np.full((len(users), HISTORY), -1)
    asking = UserSnapshot(
        ids=PERSONS[users].astype(str).astype(object), person=PERSONS[users],
        moment=np.full(num, moment), user=np.zeros(num, int), history=none,
        ages=np.zeros_like(none), numeric=np.full((num, 1), np.nan, np.float32),
    )  # fmt: skip
    numeric = np.zeros((NUM_ITEMS, 1), np.float32)
    items = ItemSnapshot(np.arange(NUM_ITEMS), np.ones(NUM_ITEMS, bool), numeric, {}, {})
    with torch.no_grad():
        scores = CatalogueScorer(model, "shop", vectors.cache, items).logits(asking)[..., 0]
    best = np.argsort(-scores.numpy(), 1)[:, : NUM_ITEMS // KINDS]
    wanted = KIND_OF_USER[users][:, None] == KIND_OF_ITEM
    return np.take_along_axis(wanted, best, 1).mean()


@pytest.fixture(scope="module")
def trained():
    """A model that learned from the rows of half of the users."""
    model, vectors = planted(timeline())
    learn(model, vectors, lambda step: rows_of(SEEN, step))
    return model, vectors


def test_a_taste_that_lies_elsewhere_is_learned(trained):
    """Of users who are new here; not before they took anything, at the moment itself neither."""
    assert auc(*trained) > 0.8
    assert abs(auc(*trained, time=NOW) - 0.5) < 0.03


def test_without_it_is_at_chance():
    """Nothing else of these rows tells what a user likes."""
    model, vectors = planted(None)
    learn(model, vectors, lambda step: rows_of(SEEN, step))
    assert abs(auc(model, vectors) - 0.5) < 0.03


def test_who_is_known_elsewhere_alone_is_recommended_by_it(trained):
    """Whoever has no row in the scenario gets what he likes, from the moment on."""
    assert recall(*trained, NEW, LATER) > 0.85
    assert recall(*trained, NEW, NOW) < 0.45


def test_a_model_reads_another_timeline_by_the_same_weights(trained):
    """Weights do not depend on who is in a timeline: they are of the scenario, not of its rows."""
    model, vectors = trained
    other, _ = planted(timeline(NEW[:50]))
    other.load_state_dict(model.state_dict())
    assert recall(other, vectors, NEW[:50], LATER) > 0.85
    stir(other)
    assert recall(other.eval(), vectors, NEW[50:], LATER) < 0.5
