"""Positives of each item, counted while the rows are read."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from mtrec_ray.data import as_of
from mtrec_ray.data.popularity import training_popularity
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.snapshot import SnapshotColumns
from tests.builders import SHOP, two_scenario_project

NUM_BATCHES, NUM_ROWS = 40, 100_000


def batches(paths, columns):
    """Rows of which every hundredth is a positive of item 1, with the columns asked for."""
    assert set(columns) == {"row", "item", "time", "labels"}
    for number in range(NUM_BATCHES):
        labels = np.zeros((NUM_ROWS, 2), np.float32)
        labels[::100, 0] = 1
        yield {
            "row": np.arange(NUM_ROWS) + number * NUM_ROWS,
            "item": np.ones(NUM_ROWS, np.int32),
            "time": np.arange(NUM_ROWS) + 7,
            "labels": labels,
        }


@pytest.mark.parametrize("timed", [True, False])
def test_memory_grows_with_the_positives_alone(monkeypatch, timed):
    """Counting takes the memory of a few batches, and not that of all rows."""
    monkeypatch.setattr(as_of, "read_columns", batches)
    scenario = two_scenario_project().scenarios["shop"]
    if not timed:
        scenario = scenario.model_copy(
            update={"events": scenario.events.model_copy(update={"time": None})}
        )
    facts = replace(SHOP, numeric_names=[])
    layout = SnapshotColumns(Prepared("", "", {"shop": facts}), "shop", scenario)
    tracemalloc.start()
    found = training_popularity(layout, "click")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.at(np.array([10**9]))[0, :3].tolist() == [0, NUM_BATCHES * NUM_ROWS / 100, 0]
    assert peak < 30e6  # the rows are 28 bytes each, 112e6 in all
