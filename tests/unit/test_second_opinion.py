"""Trees beside the network: what they are fitted on, what is kept of them, what a score then is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtrec_ray.data.kinds import own_units
from mtrec_ray.evaluation.blend import Blend
from mtrec_ray.project.training import Opinions
from mtrec_ray.stages.predictions import Beside, SecondOpinion
from mtrec_ray.stages.second_opinion import blends_of, of_some_users
from mtrec_ray.training.boosted_trees import Examples, fit_trees
from mtrec_ray.training.second_opinion import fit_tree_model, load_tree_model, stops
from tests.builders import FACTS, make_catalogues, make_rows, write_prepared

OPTIONS = Opinions(rounds=20, least_labels=50)
SHOP = FACTS["shop"]


def write(folder, change=None):
    """Prepared rows whose clicks a column tells; `change` alters the arrays of a split of shop."""
    rng = np.random.default_rng(2)
    shards = {}
    for name, facts in FACTS.items():
        splits = {}
        for split, num in (("train", 600), ("valid", 400), ("test", 200)):
            rows = make_rows(rng, facts, num)
            rows["person"] = np.arange(num) % 60
            rows["labels"][:, 0] = rows["numeric"][:, 0] > 0
            if change and name == "shop":
                change(split, rows)
            splits[split] = [rows]
        shards[name] = splits
    return write_prepared(folder, make_catalogues(), shards), shards["shop"]["test"][0]


@pytest.fixture
def texts():
    """Vectors of shop's items."""
    num = make_catalogues()["shop"].num_items
    return np.random.default_rng(0).normal(size=(num, 8)).astype("f4")


def opinions(folder, texts, change=None, options=OPTIONS):
    """What trees say of shop's test rows."""
    prepared, rows = write(folder, change)
    return fit_tree_model(prepared, "shop", texts, options, 0, 1).predict(rows)


def test_trees_read_what_a_column_tells(tmp_path, texts):
    """Clicks follow a column, and the trees find it; a task with few labels has none."""
    found = opinions(tmp_path / "a", texts)
    _, rows = write(tmp_path / "b")
    clicked = rows["labels"][:, 0] == 1
    assert found["click"][clicked].min() > found["click"][~clicked].max()
    assert not opinions(tmp_path / "c", texts, options=Opinions(least_labels=10_000))


@pytest.mark.parametrize("kind", ["count", "duration"])
def test_trees_of_counts_and_durations_speak_in_their_units(kind):
    """Labels that a column tells are found in their own units, by another scale of the fit."""
    rng = np.random.default_rng(1)
    inputs, user = rng.normal(size=(2000, 3)), np.arange(2000) % 50
    label = np.round(np.exp(1 + inputs[:, 0])).astype("f4")
    rows = Examples(inputs, label[:, None], user, rng.random(2000) + 0.5)
    trees = fit_trees(
        kind, rows.of_task(0), rows.of_task(0), 0, weights=rows.weights_of(0), seed=0,
        num_threads=1, rounds=100,
    )  # fmt: skip
    found = own_units(kind, np.asarray(trees.predict(inputs)))
    assert np.corrcoef(np.log1p(found), np.log1p(label))[0, 1] > 0.97
    assert found.min() >= 0


def test_weights_move_trees():
    """Of two labels for the same inputs trees find the mean by the weights of the rows."""
    inputs, label = np.zeros((400, 1)), np.tile([0.0, 1.0], 200).astype("f4")
    rows = Examples(inputs, label[:, None], np.arange(400), np.where(label == 1, 3.0, 1.0))
    trees = fit_trees(
        "regression", rows.of_task(0), rows.of_task(0), 0, weights=rows.weights_of(0), seed=0,
        num_threads=1, rounds=1,
    )  # fmt: skip
    assert np.asarray(trees.predict(inputs))[0] == pytest.approx(0.75)


def test_they_are_kept_as_they_are(tmp_path, texts):
    """Trees that were written and read say the same."""
    prepared, rows = write(tmp_path / "a")
    model = fit_tree_model(prepared, "shop", texts, OPTIONS, 0, 1)
    model.save(str(tmp_path / "trees"))
    again = load_tree_model(prepared, "shop", texts, str(tmp_path / "trees"))
    before, after = model.predict(rows), again.predict(rows)
    assert set(before) == set(after)
    for task, values in before.items():
        np.testing.assert_array_equal(values, after[task])


@pytest.mark.parametrize("split", ["test", "valid"])
def test_no_label_that_judges_them_is_read(tmp_path, texts, split):
    """Turning labels of test, or of users of valid by whom they are weighed, changes nothing."""

    def turn(name, rows):
        if name == split:
            judged = ~stops(rows["person"]) if split == "valid" else np.ones(len(rows["row"]), bool)
            assert judged.any()
            rows["labels"][judged] = 1 - rows["labels"][judged]

    before, after = opinions(tmp_path / "a", texts), opinions(tmp_path / "b", texts, turn)
    for task, values in before.items():
        np.testing.assert_array_equal(values, after[task])


def test_a_score_is_the_blend_where_there_is_one():
    """The blend of a task that has one; the network's score of any other; both are written."""
    network = np.array([[0.2, 0.3], [0.6, 0.1]], np.float32)
    trees = {SHOP.tasks[0]: np.array([0.4, 0.9], np.float32)}
    blend = Blend("binary", {"network": 0.5, "trees": 0.5}, 0.1, gain=1, error=0)
    own = SecondOpinion(blends={SHOP.tasks[0]: blend})
    model: Any = SimpleNamespace(predict=lambda _: trees)
    found = Beside(own, SHOP, model, None, None, timed=True).values({}, network)
    pair = {"network": network[:, 0], "trees": trees[SHOP.tasks[0]]}
    wanted = blend.of({name: said.astype(np.float64) for name, said in pair.items()})
    np.testing.assert_allclose(found["score"][:, 0], wanted, rtol=1e-6)
    np.testing.assert_array_equal(found["score"][:, 1], network[:, 1])
    np.testing.assert_array_equal(found["network"], network)
    np.testing.assert_array_equal(found["trees"][:, 0], trees[SHOP.tasks[0]])
    assert np.isnan(found["trees"][:, 1]).all()


@pytest.mark.parametrize("all_know", [True, False])
def test_the_other_half_judges(all_know):
    """Trees that know the labels of those alone who said how many they are have no say."""
    rng = np.random.default_rng(0)
    num = 4000
    truth = rng.normal(size=num)
    label = (rng.random(num) < 1 / (1 + np.exp(-truth))).astype(float)
    person = rng.integers(0, 300, num)
    network, trees = (1 / (1 + np.exp(-own - rng.normal(size=num))) for own in (truth, 0 * truth))
    known = stops(person) | all_know
    said = {"network": network, "trees": np.where(known, 0.1 + 0.8 * label, trees)}
    rows = {k: np.stack([v, np.full(num, np.nan)], 1) for k, v in (said | {"label": label}).items()}
    found = blends_of(rows | {"person": person}, SHOP)
    assert set(found) == ({SHOP.tasks[0]} if all_know else set())


def test_blends_of_many_rows_rest_on_some_users():
    """Whole users are taken, about as many rows as asked for, and all where there are fewer."""
    user = np.random.default_rng(0).integers(0, 400, 5000)
    known = np.arange(5000) % 2 == 0
    taken = of_some_users(user, known, 1000)
    assert 1000 <= (taken & known).sum() < 1020
    assert not set(user[taken]) & set(user[~taken])
    assert of_some_users(user, known, 2500).all()
