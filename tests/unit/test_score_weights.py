"""A joint validation score that cannot exist is refused before training."""

import numpy as np
import pytest

from mtrec_ray.evaluation.score_weights import score_problems
from mtrec_ray.project.load import parse_project
from tests.builders import (
    FACTS,
    make_catalogues,
    make_rows,
    two_scenario_project,
    write_prepared,
)


@pytest.fixture
def prepared(tmp_path):
    """Two shards of valid rows a scenario: shop has no label, video has one in the second."""
    rng, shards = np.random.default_rng(0), {}
    for name, facts in FACTS.items():
        parts = [make_rows(rng, facts, 20) for _ in range(2)]
        for part in parts:
            part["labels"][:] = np.nan
        shards[name] = {"valid": parts}
    shards["video"]["valid"][1]["labels"][7, 1] = 3.0
    return write_prepared(tmp_path, make_catalogues(), shards)


@pytest.mark.parametrize(
    ("weights", "refused"),
    [({}, ""), ({"shop": 1, "video": 0.5}, ""), ({"shop": 1}, "shop"), ({"video": 2}, "")],
)
def test_weights_need_a_scenario_with_labels(prepared, weights, refused):
    """Weights are refused where all scenarios that have one have no label in valid."""
    tree = two_scenario_project().dump() | {"evaluation": {"weights": weights}}
    lines = score_problems(parse_project(tree), prepared)
    assert bool(lines) == bool(refused)
    for line in lines:
        assert line.startswith(f"evaluation.weights: found weights above 0 for {refused} alone")


def test_no_label_at_all_is_refused(prepared):
    """Without weights, too, some scenario must have a label."""
    assert score_problems(two_scenario_project(), prepared.only(["shop"]))
    assert not score_problems(two_scenario_project(), prepared.only(["video"]))
