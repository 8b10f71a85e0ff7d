"""All items for some users at once: the scores of every pair by itself, and the best of them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtrec_ray.data.catalogue import Ragged
from mtrec_ray.data.shards import OUTCOME
from mtrec_ray.data.snapshot import (
    ItemSnapshot,
    ItemValues,
    UserCategoryStatistics,
    UserSnapshot,
    category_statistics,
)
from mtrec_ray.model.catalogue_scorer import CatalogueScorer, blend
from mtrec_ray.model.recommender import GENERAL
from mtrec_ray.model.samples import Samples
from tests.builders import SHOP, VIDEO, WITH_CLASSES, build, make_catalogues, small_model

NAMES = [
    "item.log_count",
    "category.brand.rate",
    "user.rate.click",
    "user_category.brand.rate",
    "event.x",
]
FACTS = {
    "shop": replace(
        SHOP,
        numeric_names=NAMES,
        numeric_mean=[0.1, 0.0, -0.2, 0.3, 0.0],
        numeric_std=[1.0, 1.5, 0.7, 0.9, 1.0],
        numeric_quantiles=[[-2.0, -0.5, 0.0, 0.5, 2.0]] * 5,
    ),
    "video": VIDEO,
}
CATALOGUES = make_catalogues()
NUM_USERS, NUM_ITEMS, NUM_BRANDS = 7, SHOP.num_items, 4


def only(values, place):
    """Numeric columns that speak in one place."""
    found = np.full((*values.shape, len(NAMES)), np.nan, np.float32)
    found[..., place] = values
    return found


@pytest.fixture
def world():
    """Items, users and their pairs' columns, the latter laid out by hand."""
    rng = np.random.default_rng(0)
    code = rng.integers(-1, NUM_BRANDS, NUM_ITEMS)
    numeric = only(rng.normal(size=NUM_ITEMS).astype("f4"), 0)
    numeric[:, 1] = np.where(code >= 0, rng.normal(size=NUM_ITEMS), np.nan)
    default = only(np.array(0.25, np.float32), 3)
    items = ItemSnapshot(
        ids=np.array([f"item {i}" for i in range(NUM_ITEMS)], object),
        in_training=np.ones(NUM_ITEMS, bool),
        numeric=numeric,
        codes={"brand": code},
        default={"brand": default},
    )
    shape = (NUM_USERS, SHOP.history_last)
    some = np.arange(shape[1]) < rng.integers(0, shape[1] + 1, NUM_USERS)[:, None]
    some[0] = False
    pairs = np.array([(0, 1), (2, 0), (2, 3), (5, 2)])
    rates = rng.normal(size=len(pairs)).astype("f4")
    users = UserSnapshot(
        ids=np.array([f"user {i}" for i in range(NUM_USERS)], object),
        person=np.arange(NUM_USERS),
        moment=np.zeros(NUM_USERS, int),
        user=rng.integers(0, SHOP.num_users, NUM_USERS),
        history=np.where(some, rng.integers(0, NUM_ITEMS, shape), -1),
        ages=np.where(some, rng.integers(0, 30, shape), 0),
        numeric=only(rng.normal(size=NUM_USERS).astype("f4"), 2),
        categories={"brand": UserCategoryStatistics(pairs[:, 0], pairs[:, 1], only(rates, 3))},
    )
    own = np.full((NUM_USERS, NUM_ITEMS), 0.25, np.float32)
    for (user, brand), rate in zip(pairs, rates, strict=True):
        own[user, code == brand] = rate
    own[:, code < 0] = np.nan
    return items, users, own


def samples_of_all_pairs(world):
    """Every pair of a user and an item as a sample, user by user."""
    items, users, own = world
    user, item = (x.ravel() for x in np.indices((NUM_USERS, NUM_ITEMS)))
    numeric = items.numeric[item].copy()
    numeric[:, 2], numeric[:, 3] = users.numeric[user, 2], own.ravel()
    arrays = {
        "item": item, "user": users.user[user], "person": users.person[user],
        "time": users.moment[user],
        "history": users.history[user], "history_age": users.ages[user], "numeric": numeric,
        "categorical": np.zeros((len(user), 1), np.int32),
        "labels": np.zeros((len(user), 2), np.float32),
    }  # fmt: skip
    if users.outcomes is not None:
        arrays[OUTCOME] = users.outcomes[user]
    return Samples.of(arrays)


def brute_force(model, vectors, world):
    """Logits of every pair as rows of their own, f32[B, n, T]."""
    samples = samples_of_all_pairs(world)
    return model.score("shop", samples, vectors[samples.items]).view(NUM_USERS, NUM_ITEMS, -1)


OPTIONS = [
    dict(zip(("text", "history", "statistics"), values, strict=True))
    for values in itertools.product([True, False], repeat=3)
]


def model_and_vectors(**fields):
    """A stirred model in evaluation, and random text vectors of the shop's items."""
    model, _ = build(small_model("none", **fields), CATALOGUES, FACTS)
    generator = torch.Generator().manual_seed(1)
    return model.eval(), torch.randn(NUM_ITEMS, model.encoder.width, generator=generator)


@pytest.mark.parametrize("general", ["towers", "general", "from_general"])
@pytest.mark.parametrize("fields", OPTIONS, ids=lambda f: "-".join(n for n, v in f.items() if v))
@torch.no_grad()
def test_scores_of_all_pairs(world, fields, general):
    """A block of users has the scores that each pair has as a sample by itself.

    By the towers, by the general head and by both, with and without texts, histories, statistics.
    """
    model, vectors = model_and_vectors(**fields)
    model.use_general_head = general == "general"
    model.starts_from_general = general == "from_general"
    found = CatalogueScorer(model, "shop", vectors, world[0]).logits(world[1])
    wanted = brute_force(model, vectors, world)
    if general != "general" or fields["statistics"] or (fields["text"] and fields["history"]):
        assert wanted[..., 0].std() > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scores_of_all_pairs_with_outcomes(world):
    """A block of users has the scores of its pairs where histories tell what came of their items.

    Other outcomes are other scores.
    """
    items, users, own = world
    facts = FACTS | {"shop": replace(FACTS["shop"], history_outcomes=True)}
    model, _ = build(small_model("none"), CATALOGUES, facts)
    vectors = model_and_vectors()[1]
    rng, found = np.random.default_rng(3), []
    for _ in range(2):
        outcomes = np.where(users.history >= 0, rng.integers(0, 16, users.history.shape), 0)
        told = items, replace(users, outcomes=outcomes), own
        found.append(CatalogueScorer(model.eval(), "shop", vectors, items).logits(told[1]))
        wanted = brute_force(model, vectors, told)
        torch.testing.assert_close(found[-1], wanted, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs()[1:].mean() > 0.01


@pytest.mark.parametrize("sharing", ["mmoe", "ple", "star", "pepnet"])
@torch.no_grad()
def test_scores_of_all_pairs_with_each_sharing(world, sharing):
    """A block of users has the scores of its pairs whatever layers scenarios share."""
    model, vectors = model_and_vectors(sharing=sharing)
    found = CatalogueScorer(model, "shop", vectors, world[0]).logits(world[1])
    wanted = brute_force(model, vectors, world)
    assert wanted.std() > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("general", ["towers", "general", "from_general"])
@torch.no_grad()
def test_scores_of_classes(world, general):
    """A block of users has the logits of its pairs where one task has several of them."""
    numbers = {k: v for k, v in vars(FACTS["shop"]).items() if k.startswith("numeric")}
    facts = WITH_CLASSES | {"shop": replace(WITH_CLASSES["shop"], **numbers)}
    model, _ = build(small_model("none"), CATALOGUES, facts)
    model.eval().use_general_head = general == "general"
    model.starts_from_general = general == "from_general"
    vectors = torch.randn(NUM_ITEMS, model.encoder.width)
    found = CatalogueScorer(model, "shop", vectors, world[0]).logits(world[1])
    wanted = brute_force(model, vectors, world)
    assert found.shape == (NUM_USERS, NUM_ITEMS, 5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert general == "general" or (wanted.std((0, 1)) > 0.01).all()


@pytest.mark.parametrize("hidden", ["text", "history", "statistics"])
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_what_is_hidden_does_not_move_the_general_head(world, hidden, training):
    """Without `text`, `history` or `statistics` the general head does not see them, with it does.

    In training, where it learns beside the towers, as in evaluation.
    """
    other_texts = torch.randn(NUM_ITEMS, 16)
    moved = []
    for seen in (True, False):
        model, vectors = model_and_vectors(**{hidden: seen})
        samples = samples_of_all_pairs(world)
        other = replace(samples)
        texts = vectors[samples.items]
        if hidden == "history":
            other.history = torch.full_like(samples.history, -1)
        if hidden == "statistics":
            other.numeric = samples.numeric + 1
        other_vectors = other_texts[samples.items] if hidden == "text" else texts
        logits = []
        for rows, text in ((samples, texts), (other, other_vectors)):
            if training:
                logits.append(model.train()({"shop": rows}, {"shop": text})[GENERAL + "shop"])
            else:
                model.use_general_head = True
                logits.append(model.score("shop", rows, text)[:, 0])
        moved.append(not torch.equal(*logits))
    assert moved == [True, False]


@torch.no_grad()
def test_blocks_are_the_whole(world):
    """Users in blocks, in another order, have the same scores."""
    model, _ = build(small_model("none"), CATALOGUES, FACTS)
    vectors = torch.randn(NUM_ITEMS, model.encoder.width)
    ranking = CatalogueScorer(model.eval(), "shop", vectors, world[0])
    users = world[1]
    order = np.array([3, 0, 6, 5, 1, 2, 4])
    mixed = users.take(order)
    parts = [ranking.logits(mixed.of(a, b)) for a, b in ((0, 3), (3, 7))]
    torch.testing.assert_close(torch.cat(parts), ranking.logits(users)[order])
    rng = np.random.default_rng(3)
    some = torch.from_numpy(np.stack([rng.permutation(NUM_ITEMS)[:5] for _ in range(NUM_USERS)]))
    wanted = ranking.logits(users).gather(1, some.unsqueeze(2).expand(-1, -1, 2))
    torch.testing.assert_close(ranking.logits(users, some), wanted)


@pytest.mark.parametrize("general", [False, True])
@torch.no_grad()
def test_items_as_of_each_users_moment(world, general):
    """Users for whom items have columns of their own are scored as each would be alone."""
    model, _ = build(small_model("none"), CATALOGUES, FACTS)
    model.eval().use_general_head = general
    vectors = torch.randn(NUM_ITEMS, model.encoder.width)
    items, users, _ = world
    rng = np.random.default_rng(5)
    numeric = only(rng.normal(size=(NUM_USERS, NUM_ITEMS)).astype("f4"), 0)
    blank = replace(items, numeric=np.full_like(items.numeric, np.nan))
    every = torch.arange(NUM_ITEMS).expand(NUM_USERS, -1)
    scorer = CatalogueScorer(model, "shop", vectors, blank)
    found = scorer.logits(users, every, torch.from_numpy(numeric))
    for i in range(NUM_USERS):
        alone = CatalogueScorer(model, "shop", vectors, replace(items, numeric=numeric[i]))
        torch.testing.assert_close(found[i], alone.logits(users.of(i, i + 1))[0])
    assert not torch.allclose(found[0], found[1])


def test_blend_multiplies_by_the_parent():
    """A task with a parent counts with the probability of both."""
    predicted = torch.tensor([[0.5, 0.2], [0.1, 0.9]])
    found = blend(predicted, ["click", "buy"], {"buy": "click"}, {"click": 0.5, "buy": 2.0})
    torch.testing.assert_close(found, torch.tensor([0.25 + 0.2, 0.05 + 0.18]))


TAGS = ["user_values.tags.log_count", "user_values.tags.log_known.click", "user_values.tags.rate"]
WIDE = len(NAMES) + len(TAGS)
OF_TAGS = slice(len(NAMES), WIDE)
TAG_FACTS = replace(
    FACTS["shop"],
    numeric_names=NAMES + TAGS,
    numeric_mean=[*FACTS["shop"].numeric_mean, 0.1, 0.0, 0.2],
    numeric_std=[*FACTS["shop"].numeric_std, 1.0, 1.3, 0.8],
    numeric_quantiles=[[-2.0, -0.5, 0.0, 0.5, 2.0]] * WIDE,
)


def wide(values, columns):
    """Numeric columns of a row with tags, NaN in all but some of them."""
    found = np.full((*values.shape[:-1], WIDE), np.nan, np.float32)
    found[..., columns] = values
    return found


def with_tags(world):
    """Items with up to three tags, users with statistics of some, and by hand those of all pairs.

    A pair's counts are the greatest of its tags', and its rate their mean.
    """
    items, users, _ = world
    rng, mine = np.random.default_rng(6), slice(0, len(NAMES))
    tags = [rng.choice(5, i % 4, replace=False) + 1 for i in range(NUM_ITEMS)]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in tags])])
    of_items = Ragged(np.concatenate(tags).astype(np.int32), offsets)
    pairs = np.array([(0, 1), (2, 1), (2, 3), (2, 5), (5, 2), (6, 4)])
    numbers, default = rng.normal(size=(6, 3)).astype("f4"), np.array([0, 0, 0.25], np.float32)
    brands = users.categories["brand"]
    categories = {
        "brand": replace(brands, numeric=wide(brands.numeric, mine)),
        "tags": UserCategoryStatistics(pairs[:, 0], pairs[:, 1], wide(numbers, OF_TAGS)),
    }
    users = replace(users, numeric=wide(users.numeric, mine), categories=categories)
    items = replace(
        items,
        numeric=wide(items.numeric, mine),
        default={
            "brand": wide(items.default["brand"], mine), "tags": wide(default, OF_TAGS)
        },
        values={"tags": ItemValues(of_items, OF_TAGS, timed=False)},
    )  # fmt: skip
    of_pair = dict(zip(map(tuple, pairs.tolist()), numbers, strict=True))
    hand = np.full((NUM_USERS, NUM_ITEMS, 3), np.nan, np.float32)
    for user, item in np.ndindex(NUM_USERS, NUM_ITEMS):
        each = [of_pair.get((user, tag), default) for tag in tags[item].tolist()]
        if each:
            hand[user, item] = [*np.max(each, 0)[:2], np.mean(each, 0)[2]]
    return items, users, hand


@pytest.mark.parametrize("general", ["towers", "general", "from_general"])
@torch.no_grad()
def test_scores_of_all_pairs_with_several_values(world, general):
    """A block of users has the scores of its pairs where items have several values, or none."""
    items, users, hand = with_tags(world)
    model, _ = build(small_model("none"), CATALOGUES, FACTS | {"shop": TAG_FACTS})
    model.eval().use_general_head = general == "general"
    model.starts_from_general = general == "from_general"
    vectors = model_and_vectors()[1]
    found = CatalogueScorer(model, "shop", vectors, items).logits(users)
    samples = samples_of_all_pairs((items, users, world[2]))
    samples.numeric[:, OF_TAGS] = torch.from_numpy(hand.reshape(-1, 3))

    def score():
        return model.score("shop", samples, vectors[samples.items]).view_as(found)

    torch.testing.assert_close(found, score(), rtol=1e-4, atol=1e-5)
    samples.numeric[:, OF_TAGS] = torch.nan
    assert (general == "general") == torch.allclose(found, score(), atol=1e-3)


def test_rows_of_pairs_with_several_values(world):
    """A pair as a row has the same numbers of its values, and none in the other columns."""
    items, users, hand = with_tags(world)
    user, item = (x.ravel() for x in np.indices((NUM_USERS, NUM_ITEMS)))
    found = category_statistics(items, "tags", users.categories["tags"], user, item)
    np.testing.assert_allclose(found[:, OF_TAGS], hand.reshape(-1, 3), rtol=1e-6)
    assert np.isnan(found[:, : len(NAMES)]).all()
