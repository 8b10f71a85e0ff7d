"""Tables of users: what lies in them alone is learned with them, and not without."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mtrec_ray.data.catalogue import NO_TIME, Catalogue
from mtrec_ray.data.profiles import ProfileFacts, ProfileIndex, Profiles
from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot
from mtrec_ray.model.catalogue_scorer import CatalogueScorer
from mtrec_ray.model.profiles import Asking, ProfileInputs
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.samples import Samples
from mtrec_ray.training.boosted_trees import Columns, fit_trees
from mtrec_ray.training.item_vectors import ItemVectors
from tests.builders import HISTORY, stir
from tests.planted import learn, planted_facts, planted_model, planted_rows, predicted

KINDS, NUM_ITEMS, NUM_USERS, NUM_ROWS = 3, 30, 400, 4000
FACTS = planted_facts(NUM_ITEMS, [KINDS + 1])
KIND_OF_ITEM, KIND_OF_USER = np.arange(NUM_ITEMS) % KINDS, np.arange(NUM_USERS) % KINDS
PERSONS = np.sort(np.random.default_rng(9).integers(-(2**62), 2**62, NUM_USERS))
SOURCES = ("categorical", "numeric", "text")


def table_of(num, categorical, numeric):
    """Rows of a catalogue or of users, each with a text of one token, which says its category."""
    return Catalogue(
        tokens=7 + categorical[:, 0].astype(np.int32),
        offsets=np.arange(num + 1),
        categorical=categorical.astype(np.int32),
        numeric=numeric.astype(np.float32),
        published=np.full(num, NO_TIME),
        known=np.ones(num, bool),
    )


ITEMS = table_of(NUM_ITEMS, KIND_OF_ITEM[:, None] + 1, np.zeros((NUM_ITEMS, 0)))


def profiles_of(source: str) -> Profiles:
    """A table of users, whose taste lies in one of its columns alone."""
    rng, num = np.random.default_rng(4), NUM_USERS
    kinds = {s: KIND_OF_USER if s == source else rng.integers(0, KINDS, NUM_USERS) for s in SOURCES}
    numeric = kinds["numeric"][:, None] + rng.normal(0, 0.1, (num, 1))
    numeric[rng.random(num) < 0.1] = np.nan
    texts = np.eye(KINDS, 8, dtype=np.float32)[kinds["text"]]
    facts = ProfileFacts(
        vocabularies={"country": ["a", "b", "c"]},
        several={},
        numeric_mean=[1.0],
        numeric_std=[0.8],
        numeric_quantiles=[[-0.3, 0.0, 0.1, 0.9, 1.0, 1.1, 1.9, 2.0, 2.3]],
        has_text=True,
    )
    categorical = kinds["categorical"][:, None] + 1
    return Profiles(facts, PERSONS, table_of(num, categorical, numeric), texts)


def rows_of(users: np.ndarray, seed: int):
    """Rows of some users, who take items of their own kind; none of them has a past."""
    rng = np.random.default_rng(seed)
    user, item = rng.choice(users, NUM_ROWS), rng.integers(0, NUM_ITEMS, NUM_ROWS)
    return planted_rows(rng, item, PERSONS[user], KIND_OF_USER[user] == KIND_OF_ITEM[item])


SEEN, NEW = np.arange(NUM_USERS // 2), np.arange(NUM_USERS // 2, NUM_USERS)


def model_of(profiles: Profiles | None) -> tuple[Recommender, ItemVectors]:
    """A model at its start, with a table of users or without one."""
    return planted_model(FACTS, ITEMS, {} if profiles is None else {"people": profiles})


def trained(profiles: Profiles | None) -> tuple[Recommender, ItemVectors]:
    """A model that learned from the rows of half of the users."""
    model, vectors = model_of(profiles)
    learn(model, vectors, lambda step: rows_of(SEEN, step))
    return model, vectors


def auc_of_new_users(model, vectors):
    """AUC on rows of users of whom training had none."""
    rows = rows_of(NEW, 999)
    return roc_auc_score(rows["labels"][:, 0], predicted(model, vectors, rows))


def snapshot_of(persons, moment=0):
    """New users as they ask: without a row of theirs."""
    num, none = len(persons), np.full((len(persons), HISTORY), -1)
    return UserSnapshot(
        ids=persons.astype(str).astype(object), person=persons, moment=np.full(num, moment),
        user=np.zeros(num, int), history=none, ages=np.zeros_like(none),
        numeric=np.full((num, 1), np.nan, np.float32),
    )  # fmt: skip


def recall(scores, users):
    """The share of the items of each user's kind among as many that are scored best."""
    wanted = KIND_OF_USER[users][:, None] == KIND_OF_ITEM
    best = np.argsort(-scores, 1)[:, : NUM_ITEMS // KINDS]
    return np.take_along_axis(wanted, best, 1).mean()


@torch.no_grad()
def recalls(model, vectors, persons, users):
    """Recall of the retrieval side and of the network, of users who have no row."""
    asking, text = snapshot_of(persons), vectors.cache
    found = model.retrieval.user_vectors("shop", asking, text)
    cosines = found @ model.retrieval.item_vectors("shop", text).T
    scorer = CatalogueScorer(model, "shop", text, items_at_end())
    return recall(cosines.numpy(), users), recall(scorer.logits(asking)[..., 0].numpy(), users)


def items_at_end():
    """The catalogue without a past."""
    numeric = np.zeros((NUM_ITEMS, 1), np.float32)
    ids = np.arange(NUM_ITEMS).astype(str).astype(object)
    return ItemSnapshot(ids, np.ones(NUM_ITEMS, bool), numeric, {}, {})


@pytest.mark.parametrize("source", SOURCES)
def test_a_taste_that_lies_in_the_table_of_users_is_learned_from_it(source):
    """In a category, a number or a text of the user: users without a row get what they like."""
    model, vectors = trained(profiles_of(source))
    assert auc_of_new_users(model, vectors) > 0.8
    known = recalls(model, vectors, PERSONS[NEW], NEW)
    unknown = recalls(model, vectors, PERSONS[NEW] + 1, NEW)
    assert min(known) > 0.85
    assert max(unknown) < 0.45


def test_without_the_table_it_is_at_chance():
    """Nothing else of these rows tells what a user likes."""
    model, vectors = trained(None)
    assert abs(auc_of_new_users(model, vectors) - 0.5) < 0.03


def test_trees_read_the_table():
    """Trees learn what lies in a category or a number of the table, and nothing without it."""
    found = {}
    for source in ("categorical", "numeric", None):
        profiles = None if source is None else profiles_of(source)
        columns = Columns(FACTS, ITEMS, np.eye(NUM_ITEMS, 4, dtype=np.float32), profiles=profiles)
        train, valid, test = (rows_of(u, s) for u, s in ((SEEN, 1), (SEEN, 2), (NEW, 3)))
        parts = [(columns.plain(r), r["labels"][:, 0]) for r in (train, valid)]
        trees = fit_trees(
            "binary", *parts, columns.num_categorical, seed=0, num_threads=1, rounds=60
        )
        found[source] = roc_auc_score(test["labels"][:, 0], trees.predict(columns.plain(test)))
    assert min(found["categorical"], found["numeric"]) > 0.8
    assert abs(found[None] - 0.5) < 0.03


def test_trees_read_how_near_a_text_is():
    """Cosines of items' and users' texts; NaN for a user without a profile."""
    profiles, vectors = profiles_of("text"), np.eye(NUM_ITEMS, 8, dtype=np.float32)
    columns = Columns(FACTS, ITEMS, vectors, profiles=profiles)
    rows = rows_of(SEEN, 1)
    rows["person"][0] += 1
    found = columns.text(rows)[:, -1]
    taste = KIND_OF_USER[np.searchsorted(PERSONS, rows["person"])]
    assert np.isnan(found[0])
    np.testing.assert_array_equal(found[1:], (rows["item"] == taste)[1:])


def asking(persons, moments=None) -> Asking:
    """Persons who ask, at moments; by default when the world begins."""
    moments = np.zeros(len(persons), int) if moments is None else moments
    return Asking(torch.from_numpy(persons), torch.from_numpy(moments))


def test_a_model_takes_over_weights_with_another_table_of_the_same_users():
    """A scenario that joins reads its own rows of the table by the vocabulary of the model."""
    profiles = profiles_of("text")
    model, _ = model_of(profiles)
    stir(model)
    few, own = slice(10, 20), profiles.table
    table = table_of(10, own.categorical[few], own.numeric[few])
    joined, _ = model_of(Profiles(profiles.facts, PERSONS[few], table, profiles.texts[few]))
    joined.load_state_dict(model.state_dict())
    asked = asking(PERSONS[few])
    torch.testing.assert_close(joined.profiles["people"](asked), model.profiles["people"](asked))
    other = asking(PERSONS[20:30])
    assert torch.equal(joined.profiles["people"](other)[0], joined.profiles["people"].absent)


def test_a_table_moves_no_other_weight_at_the_start():
    """All other weights start where they do without a table; the retrieval side reads zeros."""
    with_it, without = model_of(profiles_of("text"))[0], model_of(None)[0]
    weights = dict(with_it.named_parameters())
    for name, value in without.named_parameters():
        assert torch.equal(weights[name], value), name
    persons = asking(np.append(PERSONS, 1))
    assert not with_it.retrieval.profiles["people"](persons).any()
    found = with_it.profiles["people"](persons)
    assert found[:-1].any(1).all()
    assert not found[-1].any()


@torch.no_grad()
def test_users_are_scored_as_their_rows_are():
    """Blocks of a catalogue and samples see the same profiles, and none of an unknown user."""
    model, vectors = model_of(profiles_of("text"))
    stir(model)
    model.eval()
    persons = np.concatenate([PERSONS[:3], PERSONS[:2] + 1])
    user, item = (x.ravel() for x in np.indices((5, NUM_ITEMS)))
    rows = {k: v[: len(user)] for k, v in rows_of(SEEN, 0).items()}
    numeric = np.zeros((len(user), 1), np.float32)
    samples = Samples.of(rows | {"person": persons[user], "item": item, "numeric": numeric})
    wanted = model.score("shop", samples, vectors.of_items("shop", samples.items))
    scorer = CatalogueScorer(model, "shop", vectors.cache, items_at_end())
    found = scorer.logits(snapshot_of(persons))
    torch.testing.assert_close(found.view(-1, 1), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[3], found[4])
    assert not torch.allclose(found[0], found[3])
    of_rows = model.retrieval.sample_users(
        "shop", samples, vectors.of_items("shop", samples.items)
    ).view(5, NUM_ITEMS, -1)[:, 0]
    of_snapshot = model.retrieval.user_vectors("shop", snapshot_of(persons), vectors.cache)
    torch.testing.assert_close(of_rows, of_snapshot)


def test_persons_are_found_by_their_hash():
    """Rows of the table by person; persons without one have code 0 and no number."""
    profiles = profiles_of("numeric")
    asked = np.array([PERSONS[5], PERSONS[5] + 1, PERSONS[0], PERSONS[-1]])
    place = profiles.places(asked, np.array([0, 10**15, 7, -(10**12)]))
    assert place.tolist() == [5, -1, 0, NUM_USERS - 1]
    codes, numbers = profiles.categorical(place), profiles.numeric(place)
    assert codes[[0, 2, 3]].tolist() == profiles.table.categorical[[5, 0, -1]].tolist()
    assert codes[1] == 0
    np.testing.assert_array_equal(numbers[0], profiles.table.numeric[5])
    assert np.isnan(numbers[1])


# --- profiles that change --------------------------------------------------------------------

LAST = 1000  # of the times of rows
CHANGES = np.sort(np.random.default_rng(6).integers(1, LAST, (NUM_USERS, 2)), 1)
CHANGES += np.arange(2)  # never twice at the same time
WRITTEN = np.concatenate([np.full((NUM_USERS, 1), -5), CHANGES], 1)
KINDS_OF_USER = np.random.default_rng(7).permuted(np.tile(np.arange(KINDS), (NUM_USERS, 1)), axis=1)


def kinds_as_of(user, time):
    """The kind of each user as of a time, row by row."""
    return np.array(
        [
            [k for k, w in zip(KINDS_OF_USER[u], WRITTEN[u], strict=True) if w < t][-1]
            for u, t in zip(user, time, strict=True)
        ]
    )


def changing_profiles(*, last_alone: bool = False) -> Profiles:
    """A table in which every user changes twice to another kind; or his last row alone."""
    rows = slice(-1, None) if last_alone else slice(None)
    kinds, written = KINDS_OF_USER[:, rows].ravel(), WRITTEN[:, rows].ravel()
    facts = ProfileFacts({"country": ["a", "b", "c"]}, {}, [], [], [], has_text=False)
    table = table_of(len(kinds), kinds[:, None] + 1, np.zeros((len(kinds), 0)))
    persons = np.repeat(PERSONS, len(kinds) // NUM_USERS)
    return Profiles(facts, persons, table, times=None if last_alone else written)


def changing_rows(users: np.ndarray, seed: int):
    """Rows of users, who take items of the kind that they are of at that time."""
    rng = np.random.default_rng(seed)
    user, item = rng.choice(users, NUM_ROWS), rng.integers(0, NUM_ITEMS, NUM_ROWS)
    time = rng.integers(0, LAST, NUM_ROWS)
    likes = kinds_as_of(user, time) == KIND_OF_ITEM[item]
    return planted_rows(rng, item, PERSONS[user], likes, time)


def test_a_taste_that_flips_with_the_profile_is_learned():
    """Users without a row get what they like at that time; by their last profiles they do not."""
    found = {}
    for last_alone in (False, True):
        model, vectors = model_of(changing_profiles(last_alone=last_alone))
        learn(model, vectors, lambda step: changing_rows(SEEN, step))
        rows = changing_rows(NEW, 999)
        found[last_alone] = roc_auc_score(rows["labels"][:, 0], predicted(model, vectors, rows))
        if not last_alone:
            assert recalls_as_of(model, vectors, -5).max() < 0.45
            for moment in (0, 300, 600, LAST):
                assert recalls_as_of(model, vectors, moment).min() > 0.85
    assert found[False] > 0.8
    assert found[True] < 0.7


@torch.no_grad()
def recalls_as_of(model, vectors, moment):
    """Recall of the retrieval side and of the network, of users who ask at a moment."""
    users, text = snapshot_of(PERSONS[NEW], moment), vectors.cache
    cosines = (
        model.retrieval.user_vectors("shop", users, text)
        @ model.retrieval.item_vectors("shop", text).T
    )
    logits = CatalogueScorer(model, "shop", text, items_at_end()).logits(users)[..., 0]
    kind = kinds_as_of(NEW, np.full(len(NEW), max(moment, 0)))
    wanted = kind[:, None] == KIND_OF_ITEM
    best = (np.argsort(-s.numpy(), 1)[:, : NUM_ITEMS // KINDS] for s in (cosines, logits))
    return np.array([np.take_along_axis(wanted, b, 1).mean() for b in best])


def test_trees_read_the_profile_of_the_time():
    """What lies in a profile that changes is fitted, and predicts other users' rows."""
    columns = Columns(
        FACTS, ITEMS, np.eye(NUM_ITEMS, 4, dtype=np.float32), profiles=changing_profiles()
    )
    train, valid, test = (changing_rows(u, s) for u, s in ((SEEN, 1), (SEEN, 2), (NEW, 3)))
    parts = [(columns.plain(r), r["labels"][:, 0]) for r in (train, valid)]
    trees = fit_trees("binary", *parts, columns.num_categorical, seed=0, num_threads=1, rounds=60)
    assert roc_auc_score(test["labels"][:, 0], trees.predict(columns.plain(test))) > 0.8


def test_pairs_that_are_no_rows_ask_when_they_say():
    """Trees see the profile of that moment, and not of the row's time, which sources read."""
    vectors, profiles = np.eye(NUM_ITEMS, 4, dtype=np.float32), changing_profiles()
    columns = Columns(FACTS, ITEMS, vectors, profiles=profiles)
    rows = changing_rows(SEEN, 1)
    later = rows | {"time": np.full(NUM_ROWS, LAST + 1)}
    found = columns.plain(later | {"moment": rows["time"]})
    np.testing.assert_array_equal(found, columns.plain(rows))
    assert (found != columns.plain(later)).any()


TABLES = st.sets(st.tuples(st.integers(-3, 3), st.integers(-4, 9)), min_size=1, max_size=20)
QUESTIONS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-5, 10)), min_size=1, max_size=20)


@given(TABLES, QUESTIONS)
def test_the_latest_row_strictly_before_is_found(rows, questions):
    """As a look at all rows finds it, in numpy and by the network; also for unknown persons."""
    rows = sorted(rows)
    persons, times = (np.array(x, np.int64) for x in zip(*rows, strict=True))
    person, moment = (np.array(x, np.int64) for x in zip(*questions, strict=True))
    wanted = [
        max((i for i, (p, t) in enumerate(rows) if p == who and t < when), default=-1)
        for who, when in questions
    ]
    assert ProfileIndex.of(persons, times).places(person, moment).tolist() == wanted
    facts = ProfileFacts({}, {}, [0.0], [1.0], [[0.0, 1.0]], has_text=False)
    numbers = np.arange(len(rows), dtype=np.float32)[:, None]
    table = table_of(len(rows), np.zeros((len(rows), 1), int), numbers)
    inputs = ProfileInputs(Profiles(facts, persons, table, times=times), 4, 0, 1.0)
    found = inputs(asking(person, moment))
    for vector, place in zip(found, wanted, strict=True):
        own = inputs.absent if place < 0 else inputs.of_rows(torch.tensor([place]))[0]
        assert torch.equal(vector, own)
