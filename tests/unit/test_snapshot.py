"""Where the columns of prepared rows stand, for rows that do not exist yet."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.features import numeric_names
from mtrec_ray.data.preparing.statistics import WINDOWS_MS
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.scenario import Scenario
from tests.builders import SHOP, project_tree, scenario_tree

DAY_MS = 86_400_000
TASKS = {
    "click": {"kind": "binary", "delay": "1d"},
    "buy": {"kind": "binary", "delay": "31d"},
    "back": {"kind": "binary", "given": "buy"},
}


def scenario_of(order: tuple[str, ...]) -> Scenario:
    """The scenario of a file that lists the tasks in some order."""
    tree = scenario_tree({task: TASKS[task] for task in order})
    return parse_project(project_tree({"shop": tree})).scenarios["shop"]


@pytest.mark.parametrize("order", list(itertools.permutations(TASKS)))
def test_the_order_of_tasks_in_the_file_moves_no_column(order):
    """Columns, delays and means are those of the prepared rows, whose tasks keep their order."""
    names = numeric_names(scenario_of(tuple(TASKS)))
    means = {"click": 0.4, "buy": 0.2, "back": 0.1}
    facts = replace(
        SHOP, kinds=dict.fromkeys(TASKS, "binary"), numeric_names=names, label_means=means
    )
    layout = SnapshotColumns(Prepared("", "", {"shop": facts}), "shop", scenario_of(order))
    assert layout.names == names
    assert layout.delays_ms == [DAY_MS, 31 * DAY_MS, 31 * DAY_MS]
    assert layout.priors == [0.4, 0.2, 0.1]
    stats = layout.cold_start(WINDOWS_MS)
    row = layout.scatter("item", WINDOWS_MS, stats)[0]
    for task, mean in means.items():
        np.testing.assert_allclose(row[names.index(f"item.rate.{task}")], mean, rtol=1e-6)
