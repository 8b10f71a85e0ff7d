"""What labels of other items say: as defined, found where it is planted, of no later row."""

import numpy as np
import pytest

from mtrec_ray.candidates.label_model import (
    DAMPING,
    Given,
    LabelModel,
    LabelSource,
    frequent_of_each,
)
from mtrec_ray.data.interactions import END, Interactions, Moments
from mtrec_ray.data.labels import Labels
from mtrec_ray.stages import row_sources
from mtrec_ray.stages.row_labels import OpenLabels

NUM_ITEMS, TRAIN_END = 40, 700


def labels(seed, *, generous=0.0, num_rows=3000, persons=120):
    """Ratings of two tastes, over 1,000 moments, cut at 700; persons may be more or less generous.

    Persons and items have a side each; a person rates items of his side a point higher.
    """
    rng = np.random.default_rng(seed)
    person, item = rng.integers(0, persons, num_rows), rng.integers(0, NUM_ITEMS, num_rows)
    time = rng.permutation(1000).repeat(num_rows // 1000 + 1)[:num_rows] + 1
    order = np.lexsort([time, person])
    person, item, time = person[order], item[order], time[order]
    mood = np.random.default_rng(7).normal(0, generous, persons)  # the same in each scenario
    value = 3 + np.where(person % 2 == item % 2, 1.0, -1.0) + mood[person]
    split = np.where(time < TRAIN_END, 0, 2).astype(np.int8)
    rows = Interactions(person, item, time, split, np.ones(num_rows, bool), NUM_ITEMS)
    return Labels(rows, value + rng.normal(0, 0.3, num_rows))


def open_labels(given, *, timed=True, counted=END, name="video"):
    """The label sources of a scenario with one task, opened."""
    own = {"rating": LabelSource.fit({name: given[name]}, 1)}
    wider = {"rating": LabelSource.fit(given, 1)} if len(given) > 1 else {}
    return OpenLabels(name, ("rating", "none"), own, wider, timed, counted)


def rows_of_test(rng, num=90):
    """Rows of some persons after train, some at one moment."""
    return {
        "person": rng.integers(0, 30, num),
        "item": rng.integers(0, NUM_ITEMS, num).astype(np.int32),
        "time": TRAIN_END + rng.integers(1, 30, num) * 10,
    }


def test_means_are_those_of_the_paper():
    """Damped means of what items, and then users, are above the mean of all labels."""
    given = Given(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), np.array([5.0, 3, 4, 1]), 2)
    model = LabelModel.fit(given, [4])
    assert model.mean == 3.25
    wanted = [1.75 / (1 + DAMPING), 0.5 / (2 + DAMPING), -2.25 / (1 + DAMPING), 0]
    np.testing.assert_allclose(model.of_item, wanted)
    found = model.columns(given, np.array([0, 1]), np.array([3, 3]))
    above = [1.75 - 0.25 - wanted[0] - wanted[1], 0.75 - 2.25 - wanted[1] - wanted[2]]
    np.testing.assert_allclose(found["user_mean"], np.array(above) / (2 + DAMPING), rtol=1e-6)
    np.testing.assert_allclose(found["user_count"], np.log1p([2, 2]), rtol=1e-6)
    assert found["item_mean"].tolist() == [0, 0]


def test_neighbours_find_what_tastes_have_in_common():
    """Where items have no mean of their own, neighbours say who likes them; means do not."""
    given = {"video": labels(0)}
    rows, test = given["video"].rows, given["video"].rows.split == 2
    asked = {"person": rows.person[test], "item": rows.item[test], "time": rows.time[test]}
    found = open_labels(given).of_rows(asked)
    assert np.isnan(found["neighbours"][:, 1]).all()  # of the task without labels
    label = given["video"].values[test]
    correlation = {n: np.corrcoef(v[:, 0], label)[0, 1] for n, v in found.items()}
    assert correlation["neighbours"] > 0.7
    assert abs(correlation["user_mean"]) < 0.2
    assert abs(correlation["item_mean"]) < 0.2


def test_who_is_generous_elsewhere_is_so_here():
    """A person without a label in the scenario is known by those that he gave in another one."""
    given = {"video": labels(0, generous=1.0), "books": labels(1, generous=1.0)}
    rows = given["video"].rows
    kept = rows.person >= 20  # the first twenty persons are new here
    given["video"] = Labels(rows.of(kept), given["video"].values[kept])
    asked = {"person": np.arange(20), "item": np.arange(20) % NUM_ITEMS, "time": np.full(20, 900)}
    found = open_labels(given).of_rows(asked)
    mood = np.random.default_rng(7).normal(0, 1.0, 120)[:20]
    assert (found["user_count"][:, 0] == 0).all()
    assert (found["user_mean"][:, 0] == 0).all()
    assert np.corrcoef(found["crowd_user_mean"][:, 0], mood)[0, 1] > 0.9


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("at_once", [1, 5, 1024])
def test_a_row_is_told_what_it_is_told_alone(monkeypatch, timed, at_once):
    """Rows in any order, in blocks of any size, have the columns of each asked by itself."""
    given = {"video": labels(0), "books": labels(1)}
    opened, rows = open_labels(given, timed=timed), rows_of_test(np.random.default_rng(3))
    alone = [opened.of_rows({k: v[i : i + 1] for k, v in rows.items()}) for i in range(90)]
    monkeypatch.setattr(row_sources, "ASK_AT_ONCE", at_once)
    for name, values in opened.of_rows(rows).items():
        wanted = np.concatenate([one[name] for one in alone])
        np.testing.assert_allclose(values, wanted, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("timed", [True, False])
def test_no_later_label_is_known(timed):
    """What is given at or after a row's moment (without time: after train) changes nothing."""
    before, after = {"video": labels(0), "books": labels(1)}, {}
    for name, given in before.items():
        later = given.rows.time >= (800 if timed else TRAIN_END)
        after[name] = Labels(given.rows, np.where(later, 9.0, given.values))
    rows = rows_of_test(np.random.default_rng(3))
    rows["time"] = np.full(90, 800)
    found, other = (open_labels(given, timed=timed).of_rows(rows) for given in (before, after))
    for name, values in found.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_labels_of_valid_and_test_count_only_with_live_statistics():
    """With frozen statistics users are known by train alone."""
    given = {"video": labels(0)}
    rows = rows_of_test(np.random.default_rng(3))
    rows["time"] = np.full(90, 2000)
    live, frozen = (open_labels(given, counted=counted).of_rows(rows) for counted in (END, 1))
    wanted = np.log1p([len(set_of(given["video"], p, split=1)) for p in rows["person"]])
    np.testing.assert_allclose(frozen["user_count"][:, 0], wanted, rtol=1e-6)
    assert (live["user_count"][:, 0] >= frozen["user_count"][:, 0]).all()
    assert live["user_count"][:, 0].sum() > frozen["user_count"][:, 0].sum()


def set_of(given, person, split):
    """The distinct items that a person gave a label in the splits before one."""
    rows = given.rows
    return set(rows.item[(rows.person == person) & (rows.split < split)].tolist())


def test_of_several_labels_the_latest_counts():
    """An item that a user gave two labels has the second one, once that is known."""
    rows = Interactions(
        np.zeros(3, int), np.array([0, 0, 1]), np.array([10, 20, 30]), np.zeros(3, np.int8),
        np.ones(3, bool), 2,
    )  # fmt: skip
    given = Labels(rows, np.array([1.0, 5.0, 2.0]))
    for moment, values in ((15, [1.0]), (25, [5.0]), (35, [2.0, 5.0])):
        _, row = given.known_to(Moments(np.zeros(1, int), np.array([moment]), 1), END)
        assert sorted(given.values[row].tolist()) == values


def test_a_model_of_one_label_of_each_user_says_nothing_odd():
    """Few labels, users without any, items without any: finite numbers, near 0."""
    given = {"video": labels(0, num_rows=1000, persons=1000)}
    rows = rows_of_test(np.random.default_rng(0)) | {"person": np.arange(5000, 5090)}
    found = open_labels(given).of_rows(rows)
    for name in ("user_mean", "user_count", "neighbours"):
        assert (found[name][:, 0] == 0).all()


def test_labels_given_again_weigh_once():
    """Rows of one user and item that are repeated change neither fit nor what users are told."""
    given = labels(0)
    again = np.sort(np.repeat(np.arange(len(given.values)), 1 + 4 * (given.rows.person < 20)))
    rows = rows_of_test(np.random.default_rng(1))
    once, often = (open_labels({"video": own}).of_rows(rows) for own in (given, given.take(again)))
    for name, values in once.items():
        np.testing.assert_allclose(often[name], values, atol=1e-5, err_msg=name)


def test_a_scenario_is_read_in_its_own_units():
    """Labels of another unit, mean and spread, of the same people, tell as much."""
    given = {"video": labels(0, generous=1.0), "books": labels(1, generous=1.0)}
    percent = Labels(given["books"].rows, given["books"].values * 20 + 500)
    rows = rows_of_test(np.random.default_rng(1))
    found, other = (open_labels(own).of_rows(rows) for own in (given, given | {"books": percent}))
    for name, values in found.items():
        np.testing.assert_allclose(other[name], values, atol=1e-4, err_msg=name)


def test_a_small_scenario_has_neighbours_beside_a_large_one():
    """Its most frequent items are among those that have neighbours, however many others have."""
    rows = {"large": labels(0, num_rows=3000), "small": labels(1, num_rows=300)}
    count = np.bincount(rows["small"].rows.before(1).item, minlength=NUM_ITEMS)
    sizes = [NUM_ITEMS, NUM_ITEMS]
    counts = np.concatenate([np.full(NUM_ITEMS, 99.0), count.astype(float)])
    found = frequent_of_each(counts, sizes, 10)
    assert (found < NUM_ITEMS).sum() == 10
    assert set(found[10:] - NUM_ITEMS) <= set(np.argsort(-count, kind="stable")[:10])
