"""Ready vectors: what lies in them alone is learned with them, and not without."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.catalogue import NO_TIME, Catalogue
from mtrec_ray.data.profiles import ProfileFacts, Profiles
from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot
from mtrec_ray.model.catalogue_scorer import CatalogueScorer
from mtrec_ray.model.history import similarity_kernels
from mtrec_ray.model.profiles import Asking
from mtrec_ray.model.samples import Samples
from mtrec_ray.model.vectors import VectorLikeness, ready_vectors
from tests.builders import HISTORY, stir
from tests.planted import learn, planted_facts, planted_model, planted_rows, predicted

NUM_ITEMS, LENGTH, KINDS = 240, 10, 3
SEEN, NEW = np.arange(NUM_ITEMS // 2), np.arange(NUM_ITEMS // 2, NUM_ITEMS)
FACTS = planted_facts(NUM_ITEMS, [])
RNG = np.random.default_rng(5)
KIND = np.arange(NUM_ITEMS) % KINDS
CENTRES = RNG.normal(size=(KINDS, LENGTH))
IMAGES = (CENTRES[KIND] + RNG.normal(0, 0.7, (NUM_ITEMS, LENGTH))).astype(np.float16)
WITHOUT = Catalogue(
    tokens=np.full(NUM_ITEMS, 7, np.int32), offsets=np.arange(NUM_ITEMS + 1),
    categorical=np.zeros((NUM_ITEMS, 0), np.int32), numeric=np.zeros((NUM_ITEMS, 0), np.float32),
    published=np.full(NUM_ITEMS, NO_TIME), known=np.ones(NUM_ITEMS, bool),
)  # fmt: skip
WITH = replace(WITHOUT, vectors=(IMAGES,))
HOLES = IMAGES.copy()
HOLES[::5] = np.nan
TWO_COLUMNS = replace(WITHOUT, vectors=(HOLES, IMAGES[::-1, :3].copy()))


def auc_of(said, rows):
    return roc_auc_score(rows["labels"][:, 0], said)


def loved_rows(items, seed):
    """Rows of some items: those of the kind 0 are taken by anybody."""
    rng = np.random.default_rng(seed)
    item = rng.choice(items, 3000)
    return planted_rows(rng, item, np.zeros(len(item), int), KIND[item] == 0)


def rows_with_past(items, seed):
    """Rows of users who take items of the kind that they took before."""
    rng = np.random.default_rng(seed)
    item, taste = rng.choice(items, 3000), rng.integers(0, KINDS, 3000)
    own = np.stack([items[KIND[items] == kind] for kind in range(KINDS)])
    history = own[taste[:, None], rng.integers(0, own.shape[1], (len(item), HISTORY))]
    rows = planted_rows(rng, item, np.zeros(len(item), int), KIND[item] == taste)
    return rows | {"history": history}


@pytest.mark.parametrize("with_vectors", [True, False])
def test_a_taste_for_images_is_learned(with_vectors):
    """The network and its retrieval side tell items without a row in training by their vectors."""
    model, vectors = planted_model(FACTS, WITH if with_vectors else WITHOUT)
    learn(model, vectors, lambda step: loved_rows(SEEN, step))
    rows = loved_rows(NEW, 999)
    found = model.retrieval.item_vectors("shop", vectors.cache)
    user = F.normalize(model.retrieval.no_history["shop"], dim=0)
    network = auc_of(predicted(model, vectors, rows), rows)
    retrieval = auc_of((found @ user).detach().numpy()[rows["item"]], rows)
    if with_vectors:
        assert network > 0.8
        assert retrieval > 0.65
    else:
        assert max(abs(network - 0.5), abs(retrieval - 0.5)) < 0.03


@pytest.mark.parametrize("with_vectors", [True, False])
def test_a_taste_in_the_images_of_the_past_is_learned(with_vectors):
    """Each user likes what looks like his past; no item of the test is one of training."""
    model, vectors = planted_model(FACTS, WITH if with_vectors else WITHOUT)
    learn(model, vectors, lambda step: rows_with_past(SEEN, step))
    rows = rows_with_past(NEW, 999)
    found = auc_of(predicted(model, vectors, rows), rows)
    assert found > 0.8 if with_vectors else abs(found - 0.5) < 0.03


# --- users -----------------------------------------------------------------------------------

NUM_USERS = 400
PERSONS = np.sort(np.random.default_rng(9).integers(-(2**62), 2**62, NUM_USERS))
TASTE = np.arange(NUM_USERS) % KINDS
FACES = 1.5 * np.eye(KINDS, 6)[TASTE] + RNG.normal(0, 0.3, (NUM_USERS, 6))
OF_KINDS = replace(WITHOUT, categorical=(KIND[:, None] + 1).astype(np.int32))
KIND_FACTS = planted_facts(NUM_ITEMS, [KINDS + 1])


def profiles_with(vectors):
    """A table of users that holds vectors alone."""
    facts = ProfileFacts({}, {}, [], [], [], False)
    n = NUM_USERS
    table = Catalogue(
        tokens=np.zeros(0, np.int32), offsets=np.zeros(n + 1, int),
        categorical=np.zeros((n, 0), np.int32), numeric=np.zeros((n, 0), np.float32),
        published=np.full(n, NO_TIME), known=np.ones(n, bool), vectors=vectors,
    )  # fmt: skip
    return {"people": Profiles(facts, PERSONS, table)}


def rows_of_users(users, seed):
    """Rows of some users, who take items of the kind that their vector says."""
    rng = np.random.default_rng(seed)
    user, item = rng.choice(users, 3000), rng.integers(0, NUM_ITEMS, 3000)
    likes = TASTE[user] == KIND[item]
    rows = planted_rows(rng, item, PERSONS[user], likes)
    return rows | {"labels": (rng.random(3000) < np.where(likes, 0.95, 0.05))[:, None].astype("f4")}


@pytest.mark.parametrize("with_vectors", [True, False])
def test_a_taste_in_the_vectors_of_users_is_learned(with_vectors):
    """Users without a row of training are known by their vector, and by nothing else."""
    profiles = profiles_with((FACES.astype(np.float16),) if with_vectors else ())
    model, vectors = planted_model(KIND_FACTS, OF_KINDS, profiles)
    half = NUM_USERS // 2
    learn(model, vectors, lambda step: rows_of_users(np.arange(half), step), lr=0.01)
    rows = rows_of_users(np.arange(half, NUM_USERS), 999)
    found = auc_of(predicted(model, vectors, rows), rows)
    assert found > 0.8 if with_vectors else abs(found - 0.5) < 0.03


def test_a_profile_without_a_vector_has_the_learned_one():
    """A user whose vector is missing differs from one with a vector, and from one unknown."""
    faces = FACES.astype(np.float16)
    faces[[3, 7]] = np.nan
    model, _ = planted_model(KIND_FACTS, OF_KINDS, profiles_with((faces,)))
    stir(model)
    own = model.profiles["people"]
    persons = torch.from_numpy(np.append(PERSONS[[3, 7, 4]], PERSONS[0] + 1))
    found = own(Asking(persons, torch.zeros(4, dtype=torch.int64)))
    assert torch.equal(found[0], own.vectors[0].absent)
    assert torch.equal(found[0], found[1])
    wanted = own.vectors[0].project.weight @ torch.from_numpy(faces[4]).float()
    torch.testing.assert_close(found[2], wanted)
    assert torch.equal(found[3], own.absent)


# --- parts -----------------------------------------------------------------------------------


def stirred(catalogue=TWO_COLUMNS):
    """A model in evaluation whose weights are all off their start."""
    model, vectors = planted_model(FACTS, catalogue)
    stir(model)
    return model.eval(), vectors


@torch.no_grad()
def test_a_missing_vector_has_one_that_is_learned():
    """It is added in place of the map of a vector, whatever the others are."""
    (own,) = ready_vectors([HOLES], 4)
    stir(own)
    found = own(torch.tensor([5, 1, 10, 2]))
    assert torch.equal(found[0], own.absent)
    assert torch.equal(found[2], own.absent)
    torch.testing.assert_close(found[1], own.project.weight @ torch.from_numpy(HOLES[1]).float())
    assert own.of(torch.tensor([5, 1]))[1].tolist() == [False, True]


@torch.no_grad()
def test_likeness_is_that_of_cosines_by_hand():
    """Candidates and histories without a vector are like nothing; order of columns is kept."""
    columns, likeness = ready_vectors(TWO_COLUMNS.vectors, 4), VectorLikeness(2, 4)
    rows = rows_with_past(SEEN, 3)
    rows = {k: v[:40] for k, v in rows.items()}
    rows["history"][:10, 2:] = -1
    samples = Samples.of(rows)
    found = likeness.of_samples(columns, samples, samples.history >= 0)
    for values, got, to_width in zip(TWO_COLUMNS.vectors, found, likeness.maps, strict=True):
        for i in range(40):
            candidate = values[rows["item"][i]].astype(float)
            past = [
                values[j].astype(float) if j >= 0 else candidate * 0 for j in rows["history"][i]
            ]
            size = np.linalg.norm(candidate) * np.linalg.norm(past, axis=1)
            known = (rows["history"][i] >= 0) & np.isfinite(size)
            cosine = np.where(known, (past @ candidate) / np.where(known, size, 1), 0.0)
            kernels = similarity_kernels(
                torch.tensor(cosine[None]).float(), torch.from_numpy(known[None])
            )
            torch.testing.assert_close(got[i], to_width(kernels)[0], rtol=1e-4, atol=1e-5)
            if np.isnan(candidate).any():
                assert not got[i].any()


def snapshot_of(history):
    """Users with histories [B, H] as they ask."""
    num = len(history)
    return UserSnapshot(
        ids=np.arange(num).astype(str).astype(object), person=np.zeros(num, int),
        moment=np.zeros(num, int), user=np.zeros(num, int), history=history,
        ages=np.zeros_like(history), numeric=np.full((num, 1), np.nan, np.float32),
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("use_history", [True, False])
def test_users_are_scored_as_their_rows_are(use_history):
    """Blocks of a catalogue and samples say the same of vectors, missing ones too."""
    model, vectors = stirred()
    model.options = model.options.model_copy(update={"history": use_history})
    rng = np.random.default_rng(1)
    history = rng.integers(0, NUM_ITEMS, (4, HISTORY))
    history[1, 2:], history[2] = -1, -1
    user, item = (x.ravel() for x in np.indices((4, NUM_ITEMS)))
    rows = planted_rows(rng, item, np.zeros(len(item), int), np.zeros(len(item), bool))
    rows |= {"history": history[user], "numeric": np.zeros((len(user), 1))}
    samples = Samples.of(rows)
    wanted = model.score("shop", samples, vectors.of_items("shop", samples.items))
    ids = np.arange(NUM_ITEMS).astype(str).astype(object)
    numeric = np.zeros((NUM_ITEMS, 1), np.float32)
    items = ItemSnapshot(ids, np.ones(NUM_ITEMS, bool), numeric, {}, {})
    scorer = CatalogueScorer(model, "shop", vectors.cache, items)
    found = scorer.logits(snapshot_of(history))
    torch.testing.assert_close(found.view(-1, 1), wanted, rtol=1e-4, atol=1e-5)
    some = torch.tensor([[3, 0, 7], [5, 5, 1], [200, 10, 9], [0, 1, 2]])
    chosen = scorer.logits(snapshot_of(history), some)
    torch.testing.assert_close(chosen, found[torch.arange(4)[:, None], some], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_shuffled_catalogue_changes_no_score():
    """Vectors follow their items to other rows."""
    order = np.random.default_rng(1).permutation(NUM_ITEMS)
    place = np.argsort(order)
    moved = replace(TWO_COLUMNS, vectors=tuple(v[order] for v in TWO_COLUMNS.vectors))
    rows = rows_with_past(NEW, 4)
    moved_rows = rows | {"item": place[rows["item"]], "history": place[rows["history"]]}
    wanted, found = predicted(*stirred(), rows), predicted(*stirred(moved), moved_rows)
    assert wanted.std() > 1e-2
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_vectors_move_a_score():
    """Each column alone, so that the tests above could fail."""
    rows = rows_with_past(NEW, 4)
    wanted = predicted(*stirred(), rows)
    for i, values in enumerate(TWO_COLUMNS.vectors):
        other = [*TWO_COLUMNS.vectors]
        other[i] = values[::-1].copy()
        found = predicted(*stirred(replace(TWO_COLUMNS, vectors=tuple(other))), rows)
        assert not np.allclose(found, wanted, atol=1e-3)


def test_vectors_move_no_other_weight_at_the_start():
    """All other weights start where they do without vectors, and no checkpoint holds vectors."""
    with_them, without = planted_model(FACTS, TWO_COLUMNS)[0], planted_model(FACTS, WITHOUT)[0]
    weights = dict(with_them.named_parameters())
    for name, value in without.named_parameters():
        assert torch.equal(weights[name], value), name
    sizes = {tuple(value.shape) for value in with_them.state_dict().values()}
    assert not sizes & {(NUM_ITEMS, LENGTH), (NUM_ITEMS, 3)}
    assert not {tuple(b.shape) for b in with_them.buffers()} & {(NUM_ITEMS, LENGTH), (NUM_ITEMS, 3)}
