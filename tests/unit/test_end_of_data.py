"""The end of the data is the moment after the last row, also in logs that end before 1970."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.data.columns import fixed_list
from mtrec_ray.data.prepared import parse_scenario
from mtrec_ray.data.preparing.events import Findings
from mtrec_ray.data.preparing.scan import LogSource, merge_scans, scan_rows
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from tests.builders import SHOP, project_tree, scenario_tree


def scan_of(times):
    """The scan of canonical rows at some moments."""
    scenario = scenario_tree({"click": {"kind": "binary"}})
    project = parse_project(project_tree({"shop": scenario}))
    num = len(times)
    table = pa.table(
        {
            "row": np.arange(num),
            "user": np.arange(num),
            "user_id": pa.array([str(i) for i in range(num)], pa.string()),
            "item": np.zeros(num, np.int32),
            "time": np.array(times, np.int64),
            "split": np.zeros(num, np.int8),
            "labels": fixed_list(np.ones((num, 1), np.float32)),
            "event_categorical": fixed_list(np.zeros((num, 0), np.int64), 1),
        }
    )
    source = LogSource(project.scenarios["shop"], None, 1, 1, None)  # pyright: ignore[reportArgumentType]
    return scan_rows(table, Findings(), source)


@pytest.mark.parametrize("last", [-5_000_000, 0, 7_000])
def test_the_last_moment_is_the_last_rows(last):
    """Rows in parts, one of which is empty, end at the last row of any part."""
    parts = [scan_of([last - 9, last]), scan_of([]), scan_of([last - 100])]
    whole = None
    for part in parts:
        whole = merge_scans(whole, part)
    assert whole is not None
    assert whole.last_ms == last


def test_a_manifest_without_the_end_is_refused():
    """Data that an earlier version prepared is refused in one line that says what to do."""
    tree = asdict(SHOP)
    del tree["end_ms"]
    with pytest.raises(ProjectError, match=r"^prepared data: found no end_ms .*; allowed: prepare"):
        parse_scenario(tree)
