"""Why an item has its score: differences of the served score itself, and sums that are whole."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.data import storage
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.preparing.features import numeric_names
from mtrec_ray.data.preparing.statistics import NO_WINDOWS, WINDOWS_MS
from mtrec_ray.data.snapshot import (
    ItemSnapshot,
    SnapshotColumns,
    UserCategoryStatistics,
    UserSnapshot,
    overlay,
)
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.serving.explain import Explainer
from mtrec_ray.stages.serving.explain_words import load_encoder, token_groups
from mtrec_ray.stages.trained_model import TrainedModel, joint_model
from mtrec_ray.training import checkpoint
from tests.builders import (
    HISTORY,
    NUM_ITEMS,
    SHOP,
    build,
    make_catalogue,
    project_tree,
    scenario_tree,
    small_model,
    write_catalogue,
)
from tests.cluster.logs import ENCODER

NUM_BRANDS = 3
CATALOGUE = make_catalogue(np.random.default_rng(0), SHOP)


def shop_project(trainable: str) -> Project:
    """A shop whose brands have statistics, over the tiny encoder."""
    tasks = {"click": {"kind": "binary"}, "buy": {"kind": "binary", "given": "click"}}
    shop = scenario_tree(
        tasks,
        items={"path": "items.parquet", "text": "{title}", "categorical": ["brand"]},
        history={"of": "any", "last": HISTORY, "outcomes": True},
    )
    project = parse_project(project_tree({"shop": shop}, recommend={"by": {"shop": BY}}))
    return project.model_copy(update={"model": small_model(trainable)})


BY = {"click": 1.0, "buy": 0.5}


def facts_of(project: Project) -> PreparedScenario:
    """What prepared data says of the shop: the real columns, with scales by chance."""
    rng, names = np.random.default_rng(1), numeric_names(project.scenarios["shop"])
    quantiles = np.sort(rng.normal(size=(len(names), 5)), 1)
    return replace(
        SHOP, entire=[], numeric_names=names, numeric_quantiles=quantiles.tolist(),
        numeric_mean=quantiles.mean(1).tolist(), numeric_std=quantiles.std(1).tolist(),
        popularity={"click": "item.rate.click", "buy": "item.rate.buy"}, history_outcomes=True,
    )  # fmt: skip


def stored_model(folder: Path, trainable: str) -> TrainedModel:
    """A stirred model of the shop, stored as training stores it."""
    project = shop_project(trainable)
    facts = {"shop": facts_of(project)}
    write_catalogue(folder / "prepared" / "shop" / "catalogue.parquet", CATALOGUE)
    manifest = {"fingerprint": "by hand", "scenarios": {n: asdict(f) for n, f in facts.items()}}
    storage.write_json(str(folder / "prepared" / "manifest.json"), manifest)
    model, _ = build(project.model, {"shop": CATALOGUE}, facts)
    checkpoint.save_model(folder / "best", model, {})
    return joint_model(project, str(folder / "prepared"), str(folder / "best"))


def by_chance(rng: np.random.Generator, layout: SnapshotColumns, key: str, windows, num: int):
    """Columns of a key's statistics, drawn."""
    size = layout.columns_of(key, windows)
    return layout.scatter(key, windows, rng.normal(size=(num, size.stop - size.start)))


def make_items(layout: SnapshotColumns) -> ItemSnapshot:
    """Items with statistics of their own and of their brands; some without a brand."""
    rng = np.random.default_rng(2)
    code = rng.integers(-1, NUM_BRANDS, NUM_ITEMS)
    brands = by_chance(rng, layout, "category.brand", NO_WINDOWS, NUM_BRANDS + 1)
    brands[-1] = np.nan
    cold = layout.scatter("user_category.brand", NO_WINDOWS, layout.cold_start(NO_WINDOWS))
    return ItemSnapshot(
        ids=np.array([f"item {i}" for i in range(NUM_ITEMS)], object),
        in_training=np.ones(NUM_ITEMS, bool),
        numeric=overlay(by_chance(rng, layout, "item", WINDOWS_MS, NUM_ITEMS), brands[code]),
        codes={"brand": code},
        default={"brand": cold[0]},
    )


def make_user(layout: SnapshotColumns, num_met: int = 3) -> UserSnapshot:
    """A user with a history, outcomes, and rows with every brand."""
    rng, end = np.random.default_rng(3), np.array([10**9])
    some = np.arange(HISTORY) < num_met
    drawn = partial(rng.integers, size=HISTORY)
    pairs = by_chance(rng, layout, "user_category.brand", NO_WINDOWS, NUM_BRANDS)
    user = by_chance(rng, layout, "user", WINDOWS_MS, 1)
    return UserSnapshot(
        ids=np.array(["ada"], object), person=np.array([7]), moment=end, user=np.array([4]),
        history=np.where(some, rng.permutation(NUM_ITEMS)[:HISTORY], -1)[None],
        ages=np.where(some, drawn(0, 30), 0)[None],
        numeric=overlay(user, layout.calendar(end)),
        categories={
            "brand": UserCategoryStatistics(np.zeros(NUM_BRANDS, int), np.arange(NUM_BRANDS), pairs)
        },
        outcomes=np.where(some, drawn(0, 16), 0)[None],
    )  # fmt: skip


class World:
    """A served model, an explainer of it, a user and an item with a brand."""

    def __init__(self, folder: Path, trainable: str) -> None:
        trained = stored_model(folder, trainable)
        self.encoder = load_encoder(trained).eval()
        _, vectors = build(
            trained.project.model, {"shop": CATALOGUE}, {"shop": facts_of(trained.project)}
        )
        vectors.encoder.eval()
        vectors.refresh()
        layout = SnapshotColumns(trained.open_prepared(), "shop", trained.project.scenarios["shop"])
        self.ranker = Ranker(trained, "shop", vectors.cache.numpy(), make_items(layout))
        self.explainer = Explainer(self.ranker, self.encoder)
        self.user = make_user(layout)
        known = np.flatnonzero(self.ranker.items.codes["brand"] >= 0)
        self.item = int(known[~np.isin(known, self.user.history)][0])

    def score(self, user: UserSnapshot, ranker: Ranker | None = None) -> float:
        """The served score of the item for a user by himself."""
        ranker = ranker or self.ranker
        pair = Candidates(np.zeros(1, int), np.array([self.item]), {}, 1)
        return float(ranker.blended(ranker.predictions(user, pair))[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The world with an encoder of which the top layer learned."""
    return World(tmp_path_factory.mktemp("explained"), "top_k")


def test_history_is_left_out_exactly(world):
    """An item's effect is the score less that of a snapshot that never had the item."""
    found = world.explainer.history(world.user, world.item)
    assert sorted(effect.place for effect in found) == [0, 1, 2]
    assert [abs(e.effect) for e in found] == sorted((abs(e.effect) for e in found), reverse=True)
    assert abs(found[0].effect) > 1e-3
    for effect in found:
        kept = [i for i in range(HISTORY) if i != effect.place]
        parts = {
            name: np.concatenate([getattr(world.user, name)[:, kept], [[empty]]], 1)
            for name, empty in (("history", -1), ("ages", 0), ("outcomes", 0))
        }
        wanted = world.score(world.user) - world.score(replace(world.user, **parts))
        assert effect.effect == pytest.approx(wanted, abs=1e-6)
        assert effect.item_id == f"item {world.user.history[0, effect.place]}"


def test_statistics_at_their_cold_start(world, tmp_path):
    """A group's effect is the score less that of a user, or a catalogue, without such a past."""
    found = {e.group: e for e in world.explainer.statistics(world.user, world.item)}
    assert set(found) == {"item", "user", "category.brand", "user_category.brand", "calendar"}
    assert min(abs(e.effect) for e in found.values()) > 1e-5
    layout, items = world.ranker.layout, world.ranker.items
    assert sum(e.columns for e in found.values()) == layout.width
    cold = layout.scatter("user", WINDOWS_MS, layout.cold_start(WINDOWS_MS))
    new = replace(world.user, numeric=overlay(cold, layout.calendar(world.user.moment)))
    wanted = world.score(world.user) - world.score(new)
    assert found["user"].effect == pytest.approx(wanted, abs=1e-6)
    own, numeric = layout.columns_of("item", WINDOWS_MS), items.numeric.copy()
    numeric[:, own] = layout.cold_start(WINDOWS_MS)
    text = np.asarray(world.ranker.text)
    blank = Ranker(stored_model(tmp_path, "top_k"), "shop", text, replace(items, numeric=numeric))
    wanted = world.score(world.user) - world.score(world.user, blank)
    assert found["item"].effect == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("trainable", ["none", "top_k", "lora", "all"])
def test_words_explain_the_whole_score(tmp_path, trainable):
    """The words' effects sum to the score less that of the hidden text, for what ever learned.

    The score of the path's end is the served one.
    """
    world = World(tmp_path, trainable)
    found = world.explainer.words(world.user, world.item)
    assert found.score == pytest.approx(world.score(world.user), abs=1e-5)
    assert abs(found.score - found.baseline) > 2e-4
    total = sum(word.effect for word in found.words)
    assert total == pytest.approx(found.score - found.baseline, abs=1e-6)
    assert abs(found.unexplained) < 1e-6
    assert len(found.words) == CATALOGUE.lengths[world.item]


def test_words_see_the_history(world):
    """Gradients flow through the cosines with the history: without it, words have other effects."""
    alone = replace(world.user, history=np.full_like(world.user.history, -1))
    found = [world.explainer.words(u, world.item).words for u in (world.user, alone)]
    one, other = (np.array([word.effect for word in words]) for words in found)
    assert abs(one - other).max() > 1e-4


def test_an_explanation_is_ready_for_json(world, tmp_path):
    """All of it is written as JSON; the blend of its predictions is its score."""
    found = world.explainer.explain(world.user, world.item)
    storage.write_json(str(tmp_path / "found.json"), asdict(found))
    click, buy = found.predictions["click"], found.predictions["buy"]
    assert found.score == pytest.approx(BY["click"] * click + BY["buy"] * click * buy, abs=1e-6)
    assert found.blend == BY
    assert len(found.history) == 3
    assert found.words is not None


def test_a_user_without_a_history(world):
    """Of a history without items there is nothing to leave out."""
    alone = replace(world.user, history=np.full_like(world.user.history, -1))
    assert world.explainer.history(alone, world.item) == []


def test_tokens_are_merged_to_words():
    """Word pieces are one word, with its characters in the text; special tokens stay."""
    from mtrec_ray.data.tokens import load_tokenizer

    text = "Unbelievably soft socks, really"
    tokens = np.array(load_tokenizer(ENCODER)(text)["input_ids"])
    groups, hidden = token_groups(ENCODER, tokens, text, 64)
    assert [g.word for g in groups] == ["Unbelievably", "soft", "socks", ",", "really"]
    assert [text[g.start : g.end] for g in groups] == [g.word for g in groups]
    assert len(groups[0].places) > 1
    assert sorted(p for g in groups for p in g.places) == list(range(1, len(tokens) - 1))
    assert (hidden[[0, -1]] == tokens[[0, -1]]).all()
    assert len(set(hidden[1:-1].tolist())) == 1


def test_a_text_that_does_not_give_the_tokens():
    """With another text each token is a word by itself, without characters."""
    from mtrec_ray.data.tokens import load_tokenizer

    tokens = np.array(load_tokenizer(ENCODER)("soft socks")["input_ids"])
    groups, _ = token_groups(ENCODER, tokens, "hard shoes and more", 64)
    assert [(g.word, g.start) for g in groups] == [("soft", None), ("socks", None)]
