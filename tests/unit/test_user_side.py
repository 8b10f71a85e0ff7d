"""The user side by itself: the model's own users, from the states of their histories alone."""

import numpy as np
import onnxruntime
import pytest
import torch

from mtrec_ray.data.catalogue import NO_TIME, Catalogue
from mtrec_ray.data.profiles import ProfileFacts, Profiles
from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.stages.exporting.onnx_file import export_onnx
from mtrec_ray.stages.exporting.user_side import (
    UserSide,
    inputs_of_users,
    profile_table,
    user_side_problem,
)
from tests.builders import (
    EVERY_KIND,
    FACTS,
    HISTORY,
    NUM_ITEMS,
    RETRIEVAL,
    make_catalogues,
    small_model,
    stir,
)

CATALOGUES, NUM_USERS = make_catalogues(), 9


def make_users() -> UserSnapshot:
    """Users with histories of 0 to 4 items, and what came of these."""
    rng, shape = np.random.default_rng(1), (NUM_USERS, HISTORY)
    some = np.arange(HISTORY) < (np.arange(NUM_USERS) % (HISTORY + 1))[:, None]
    return UserSnapshot(
        ids=np.array([f"user {i}" for i in range(NUM_USERS)], object),
        person=np.arange(NUM_USERS),
        moment=np.full(NUM_USERS, 10**7),
        user=np.zeros(NUM_USERS, int),
        history=np.where(some, rng.integers(0, NUM_ITEMS, shape), -1),
        ages=np.where(some, rng.integers(0, 30, shape), 0),
        numeric=np.zeros((NUM_USERS, 3), np.float32),
        outcomes=np.where(some, rng.integers(0, 4**5, shape), 0),
    )


def make_profiles() -> Profiles:
    """A table of users with a category, which has no row of the first two."""
    num = NUM_USERS - 2
    table = Catalogue(
        tokens=np.full(num, 7, np.int32),
        offsets=np.arange(num + 1),
        categorical=(np.arange(num)[:, None] % 3 + 1).astype(np.int32),
        numeric=np.zeros((num, 0), np.float32),
        published=np.full(num, NO_TIME),
        known=np.ones(num, bool),
    )
    facts = ProfileFacts(
        vocabularies={"country": ["a", "b", "c"]}, several={}, numeric_mean=[], numeric_std=[],
        numeric_quantiles=[], has_text=False,
    )  # fmt: skip
    return Profiles(facts, np.arange(2, NUM_USERS), table, None)


def make_model(facts=FACTS, profiles=None, **fields) -> Recommender:
    """A stirred model with a retrieval side."""
    options = small_model("none", **({"retrieval": RETRIEVAL} | fields))
    torch.manual_seed(0)
    encoder = TextEncoder(options.encoder)
    model = Recommender(options, facts, CATALOGUES, encoder, profiles or {})
    stir(model)
    return model.eval()


TEXT = torch.randn(NUM_ITEMS, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", ["plain", "outcomes", "profiles"])
@torch.no_grad()
def test_users_by_themselves(kind):
    """From states, ages, outcomes and profiles alone come the model's own vectors of users."""
    facts = EVERY_KIND if kind == "outcomes" else FACTS
    profiles = {"people": make_profiles()} if kind == "profiles" else None
    model, users = make_model(facts, profiles), make_users()
    inputs = inputs_of_users(model, "shop", users, TEXT)
    more = {"plain": [], "outcomes": ["outcomes"], "profiles": ["profile"]}[kind]
    assert list(inputs) == ["history", "known", "ages", *more]
    found = UserSide(model, "shop").eval()(**inputs)
    wanted = model.retrieval.user_vectors("shop", users, TEXT)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    for name in more:  # it is read
        other = inputs | {name: torch.zeros_like(inputs[name])}
        assert not torch.allclose(UserSide(model, "shop").eval()(**other), wanted, atol=1e-3)


def test_profiles_as_a_table():
    """The table of profiles has what the user side reads of each user, and of one without any."""
    model, users = make_model(FACTS, {"people": make_profiles()}), make_users()
    table = profile_table(model.retrieval, "people", [users.of(0, 4), users.of(4, NUM_USERS)])
    wanted = inputs_of_users(model, "shop", users, TEXT)["profile"]
    found = np.stack(table.column("profile").to_numpy())
    assert table.column("id").to_pylist() == [None, *users.ids]
    np.testing.assert_allclose(found[1:], wanted, atol=1e-6)
    np.testing.assert_allclose(found[0], wanted[1], atol=1e-6)
    assert abs(wanted[1] - wanted[2]).max() > 1e-3


def test_users_as_onnx(tmp_path):
    """As ONNX it makes the same vectors of any number of users with histories of any length."""
    model, users = make_model(EVERY_KIND, {"people": make_profiles()}), make_users()
    inputs = inputs_of_users(model, "shop", users, TEXT)
    some, length = torch.export.Dim("users"), torch.export.Dim("history")
    shapes = {n: {0: some} if n == "profile" else {0: some, 1: length} for n in inputs}
    path = tmp_path / "user.onnx"
    export_onnx(UserSide(model, "shop").eval(), inputs, path, "vector", shapes)
    session = onnxruntime.InferenceSession(path)
    wanted = model.retrieval.user_vectors("shop", users, TEXT)
    (found,) = session.run(None, {n: v.numpy() for n, v in inputs.items()})
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    cut = {n: v[:4, :3] if v.ndim > 1 and n != "profile" else v[:4] for n, v in inputs.items()}
    (found,) = session.run(None, {n: v.numpy() for n, v in cut.items()})
    np.testing.assert_allclose(found, wanted[:4], atol=1e-5)


def test_what_has_no_user_side_says_why():
    """Without retrieval there is none, and the reason is told."""
    assert "no retrieval" in str(
        user_side_problem(make_model(retrieval={"enabled": False}), "shop")
    )
    assert user_side_problem(make_model(), "shop") is None
