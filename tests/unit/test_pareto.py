"""The simplex is covered evenly; front, hypervolume and gains are what they are defined to be."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import beta, kstest

from mtrec_ray.evaluation.metrics import scenario_scores, task_scores
from mtrec_ray.search.importance import importances
from mtrec_ray.search.pareto import hypervolume, pareto_front, preferred, worst_gains
from mtrec_ray.search.simplex import lattice, numbers_of, scaled, weights_of

POINTS = arrays(np.float64, st.tuples(st.integers(1, 7), st.just(3)), elements=st.floats(0, 1.2))
ONE = np.ones(3)


# --- the simplex -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5])
def test_uniform_numbers_cover_the_simplex_evenly(size):
    """Each share of uniform u has the marginal of the uniform simplex, Beta(1, k - 1)."""
    rng = np.random.default_rng(5)
    shares = np.array([weights_of(u) for u in rng.random((4000, size))]) / size
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    for column in shares.T:
        assert kstest(column, beta(1, size - 1).cdf).pvalue > 0.001


def test_independent_uniform_weights_do_not():
    """The same test refuses normalised independent uniform weights."""
    raw = np.random.default_rng(5).random((4000, 3))
    shares = raw / raw.sum(1, keepdims=True)
    assert kstest(shares[:, 0], beta(1, 2).cdf).pvalue < 1e-6


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=5))
def test_weights_come_back_from_their_numbers(weights):
    """Weights go to numbers and back, up to a common factor and what numbers can hold."""
    found = weights_of(numbers_of(weights))
    np.testing.assert_allclose(found, scaled(weights), rtol=1e-3, atol=1e-3)


def test_uniform_and_own_weights_are_exact():
    """Equal weights come back as exactly 1, a weight of 0 as almost nothing."""
    assert weights_of(numbers_of([3.0, 3.0, 3.0])) == [1.0, 1.0, 1.0]
    assert max(weights_of(numbers_of([0.0, 1.0, 1.0]))[:1]) < 1e-5


def test_no_scenario_is_special():
    """Swapped numbers give swapped weights."""
    u = [0.2, 0.7, 0.9]
    for order in itertools.permutations(range(3)):
        assert weights_of([u[i] for i in order]) == [weights_of(u)[i] for i in order]


def test_lattice_has_every_point_once():
    """All compositions of 4 into 3 parts, corners and middle included."""
    found = list(lattice(3, 4))
    assert len(found) == len({tuple(p) for p in found}) == 15
    assert [3.0, 0.0, 0.0] in found
    assert [0.75, 1.5, 0.75] in found
    assert list(lattice(1, 4)) == [[1.0]]


# --- the front -------------------------------------------------------------------------------


@given(POINTS)
def test_the_front_by_its_definition(points):
    """A point is on the front where none is no worse everywhere and better somewhere."""
    wanted = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert pareto_front(points).tolist() == wanted


def test_hypervolume_of_known_fronts():
    """Boxes: one, two that overlap, one inside another, one outside the reference."""
    two = np.ones(2)
    assert hypervolume(np.array([[0.5, 0.5]]), two) == pytest.approx(0.25)
    assert hypervolume(np.array([[0.2, 0.6], [0.6, 0.2]]), two) == pytest.approx(0.48)
    assert hypervolume(np.array([[0.5, 0.5], [0.6, 0.7]]), two) == pytest.approx(0.25)
    assert hypervolume(np.array([[0.5, 1.5]]), two) == 0
    assert hypervolume(np.array([[0.5, 0.5, 0.5], [0.2, 0.9, 0.9]]), ONE) == pytest.approx(0.128)
    assert hypervolume(np.zeros((0, 3)), ONE) == 0


@given(POINTS)
def test_hypervolume_by_inclusion_and_exclusion(points):
    """The slices give the volume of the union of boxes, computed by all intersections."""
    edges = np.clip(1 - points, 0, None)
    union = sum(
        (-1) ** (size + 1) * np.prod(edges[list(chosen)].min(0))
        for size in range(1, len(points) + 1)
        for chosen in itertools.combinations(range(len(points)), size)
    )
    assert hypervolume(points, ONE) == pytest.approx(union, abs=1e-9)


@given(POINTS)
def test_dominated_points_add_no_volume(points):
    """The volume is that of the front alone, in any order of scenarios."""
    front = points[pareto_front(points)]
    assert hypervolume(front, ONE) == pytest.approx(hypervolume(points, ONE), abs=1e-12)
    assert hypervolume(points[:, ::-1], ONE) == pytest.approx(hypervolume(points, ONE), abs=1e-9)


def test_gains_and_preference():
    """The worst gain is that of the scenario that gains least; a preference weighs the scores."""
    points = np.array([[0.8, 0.5], [0.9, 0.45]])
    np.testing.assert_allclose(worst_gains(points, np.array([1.0, 0.5])), [0.0, 0.1])
    np.testing.assert_allclose(preferred(points, [3, 1]), [0.725, 0.7875])


def test_scores_of_flat_metrics():
    """A scenario's score is the mean of its tasks' NE or relative RMSE, without unknown ones."""
    valid = {
        "shop/click/ne": 0.8, "shop/click/auc": 0.7, "shop/buy/ne": float("nan"),
        "video/like/ne": 0.6, "video/stars/relative_rmse": 0.9, "video/stars/rmse": 3.0,
    }  # fmt: skip
    assert scenario_scores(valid) == pytest.approx({"shop": 0.8, "video": 0.75})
    assert task_scores(valid)["video/stars"] == 0.9


# --- importance ------------------------------------------------------------------------------


def test_the_field_that_decides_is_the_most_important():
    """Of two fields the one that the score follows has the larger share; constants have none."""
    rng = np.random.default_rng(1)
    values = [{"a": a, "b": b, "c": 1.0, "d": "x"} for a, b in rng.random((24, 2))]
    found = importances(values, [2 * v["a"] + 0.1 * v["b"] for v in values])
    assert found["a"] > 0.8
    assert set(found) == {"a", "b"}


def test_importance_needs_trials_and_differences():
    """Nothing is said of a few trials, or of equal scores."""
    values = [{"a": float(i)} for i in range(9)]
    assert importances(values[:3], [1.0, 2.0, 3.0]) == {}
    assert importances(values, [1.0] * 9) == {}
    assert importances(values, [float("nan")] * 9) == {}
    assert importances([], []) == {}


def test_hypervolume_of_many_scenarios():
    """Of a front on a simplex in six dimensions: no longer than a moment, and a sum of slices."""
    rng = np.random.default_rng(0)
    points = rng.dirichlet(np.ones(6), 32)
    whole = hypervolume(points, np.ones(6))
    samples = rng.random((20_000, 6))
    inside = (points[None] <= samples[:, None]).all(-1).any(-1).mean()
    assert whole == pytest.approx(inside, abs=0.02)
