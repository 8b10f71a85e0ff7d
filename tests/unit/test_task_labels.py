"""Labels that follow from a column of the log, and those of tasks that rest on others."""

import itertools
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.data.preparing.audit_log import raw_frame, raw_label
from mtrec_ray.data.preparing.events import Findings, label_values, read_labels
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.task import Label
from tests.builders import project_tree, scenario_tree

EVENT = ["view", "cart", None, "purchase", "view"]
nan = math.nan


def scenario_of(label, kind="binary", **fields) -> Scenario:
    """A scenario with one task, of a label."""
    tasks = {"buy": {"kind": kind, "label": label}}
    return parse_project(project_tree({"shop": scenario_tree(tasks, **fields)})).scenarios["shop"]


def refused(label, **fields) -> list[str]:
    """The lines of a scenario that is refused."""
    with pytest.raises(ProjectError) as caught:
        scenario_of(label, **fields)
    return caught.value.problems


def both(column: pa.Array, label) -> tuple[np.ndarray, np.ndarray]:
    """A label as preparing reads it, and as the audit does."""
    scenario = scenario_of({"column": "event", **label})
    table = pa.table({"event": column})
    return label_values(table, scenario.label("buy")), raw_label(table, scenario, "buy")


@pytest.mark.parametrize("short", [None, "bought", 1])
def test_short_forms_are_the_long_ones(short):
    """A column alone, 1 and null stand for sections, which the project file keeps."""
    long = {None: {}, "bought": {"column": "bought"}, 1: {"always": 1}}[short]
    negatives = {"negatives": {"of": "buy"}}
    assert scenario_of(short, **negatives) == scenario_of(long, **negatives)
    assert scenario_of(short, **negatives).tasks["buy"].label == Label(**long)


@pytest.mark.parametrize(
    ("column", "label", "wanted"),
    [
        (pa.array(EVENT), {"equals": "view"}, [1, 0, nan, 0, 1]),
        (pa.array(EVENT).dictionary_encode(), {"equals": ["cart", "view"]}, [1, 1, nan, 0, 1]),
        (pa.array([b"view", b"cart", None]), {"equals": "view"}, [1, 0, nan]),
        (pa.array([1, 3, None]), {"equals": 3}, [0, 1, nan]),
        (pa.array([1, 3, None]), {"equals": "view"}, [0, 0, nan]),
        (pa.array([1.0, nan, 3.0]), {"equals": [3, 5]}, [0, nan, 1]),
        (pa.array([True, False, None]), {"equals": True}, [1, 0, nan]),
        (pa.array([3, 4, None, 5], pa.int8()), {"at_least": 4}, [0, 1, nan, 1]),
        (pa.array([4.1, 4.0], pa.float32()), {"at_least": 4.1}, [1, 0]),
        (pa.array([4.1, nan, math.inf, -math.inf]), {"at_least": 4.1}, [1, nan, 1, 0]),
        (pa.array([Decimal("4.1"), None]), {"at_least": 4.1}, [1, nan]),
        (pa.array([True, None, False]), {"at_least": 1}, [1, nan, 0]),
    ],
)
def test_a_label_follows_from_its_column(column, label, wanted):
    """1 and 0 as the rule says, unknown where the column is null; the audit agrees."""
    for found in both(column, label):
        np.testing.assert_array_equal(found, np.array(wanted, float))


@given(
    st.lists(st.none() | st.integers(-5, 5), min_size=1),
    st.sampled_from([pa.int8(), pa.int64(), pa.float16(), pa.float32(), pa.float64()]),
    st.integers(-5, 5),
)
def test_the_audit_reads_labels_as_preparing_does(values, kind, rule):
    """Two ways of reading a rule, which share no code, agree on every column of numbers."""
    column = pa.array(values, pa.int64()).cast(kind)
    for label in ({"at_least": rule}, {"equals": rule}):
        np.testing.assert_array_equal(*both(column, label))


def test_every_row_may_be_a_positive():
    """`label: 1` needs no column of the log."""
    scenario = scenario_of(1, negatives={"of": "buy"})
    table = pa.table({"user_id": [1, 2]})
    assert label_values(table, scenario.label("buy")).tolist() == [1, 1]
    assert raw_label(table, scenario, "buy").tolist() == [1, 1]


CHAIN = {
    "buy": {"kind": "binary", "given": "cart"},
    "cart": {"kind": "binary", "given": "view"},
    "view": {"kind": "binary"},
}


def test_a_chain_knows_a_label_where_all_above_are_positive():
    """A buy is unknown where its cart or its view is not 1, whatever the order of the tasks."""
    columns = {"view": [1, 1, 0, 1, None], "cart": [1, 0, 1, None, 1], "buy": [1, 1, 1, 0, 1]}
    table = pa.table({**columns, "time": range(5), "split": ["train"] * 5})
    for order in itertools.permutations(CHAIN):
        tasks = {name: CHAIN[name] for name in order}
        tree = project_tree({"shop": scenario_tree(tasks)})
        shop, findings = parse_project(tree).scenarios["shop"], Findings()
        found = dict(zip(order, read_labels(table, shop, findings).T, strict=True))
        np.testing.assert_array_equal(found["buy"], [1, nan, nan, nan, nan])
        np.testing.assert_array_equal(found["cart"], [1, 0, nan, nan, nan])
        assert findings.counts["label of buy without a positive cart"] == 4
        raw = raw_frame(table, shop)
        for task in order:
            np.testing.assert_array_equal(raw[f"label.{task}"], found[task])


LABEL = "scenarios.shop.tasks.buy.label"


@pytest.mark.parametrize(
    ("label", "line"),
    [
        (0, f"{LABEL}: found 0; allowed: a column, 1, {{column: NAME, at_least: NUMBER}} or"),
        (True, f"{LABEL}: found true; allowed: a column, 1, {{column"),
        ("", f"{LABEL}: found ''; allowed: the name of a column, or null"),
        ({"least": 4}, f"{LABEL}.least: found an unknown key; allowed: always, at_least, column,"),
        ({"at_least": "many"}, f"{LABEL}.at_least: found 'many'; allowed: input should be a val"),
        ({"at_least": math.inf}, f"{LABEL}.at_least: found Infinity; allowed: input should be a f"),
        ({"equals": []}, f"{LABEL}.equals: found []; allowed: a value, or a list of one or"),
        (
            {"equals": {"a": 1}},
            f'{LABEL}.equals: found {{"a": 1}}; allowed: a value, or a list of one',
        ),
        ({"always": 2}, f"{LABEL}.always: found 2; allowed: input should be 1"),
        ({"at_least": 1, "equals": 2}, f"{LABEL}: found at_least and equals; allowed: one of at"),
        ({"column": "x", "always": 1}, f"{LABEL}.always: found 1 beside the column 'x'; allowed"),
    ],
)
def test_a_bad_label_is_one_line(label, line):
    """A label that follows from nothing, or in two ways, is one line that names it."""
    [found] = refused(label, negatives={"of": "buy"})
    assert found.startswith(line)


def test_a_regression_has_no_derived_label():
    """0 and 1 of a rule are labels of a binary task."""
    [found] = refused({"at_least": 3}, kind="regression")
    assert found.startswith("scenarios.shop.tasks.buy.label.at_least: found it in a regression; ")


def test_positives_alone_need_negatives():
    """A task of which every row is a positive needs drawn negatives of it."""
    for fields in ({}, {"negatives": {"of": "buy", "from": "log"}}):
        [found] = refused(1, **fields)
        assert found.startswith("scenarios.shop.tasks.buy.label: found 1 without sampled negativ")
