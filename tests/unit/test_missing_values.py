"""What means missing, what is text, which values are kept, and what of a log is peculiar."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.data.columns import as_text, blank
from mtrec_ray.data.preparing.audit_log import raw_nulls, raw_text
from mtrec_ray.data.preparing.scan import Values
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import load_project
from mtrec_ray.stages.prepare import peculiar
from tests.builders import project_tree, scenario_tree

SENTINELS = [
    (pa.array([-1, 2, None]), [-1, "x", 0.5]),
    (pa.array([-1.0, 2.0, math.nan]), [-1]),
    (pa.array(["-1", "a", ""]), [-1, ""]),
    (pa.array(["guest", "a"]).dictionary_encode(), ["guest"]),
    (pa.array([1, 2], pa.decimal128(5, 2)), [1.0]),
    (pa.array([0, 10**9], pa.timestamp("s")), ["1970-01-01"]),
    (pa.array([b"", b"a"]), [""]),
    (pa.array([2**64 - 1, 2], pa.uint64()), [2**64 - 1]),
    (pa.array([float(2**80), 2.0]), [2**80]),
    (pa.array([True, False]), [-1, False]),
]


@pytest.mark.parametrize(("values", "missing"), SENTINELS)
def test_values_that_mean_missing_are_null_for_both(values, missing):
    """The preparation and the audit see null in the same rows, whatever type the column has."""
    column = pa.chunked_array([values])
    found = blank(column, missing)
    table = raw_nulls(pa.table({"a": column}), {"a": missing})
    assert found.is_null().to_pylist() == table.column("a").is_null().to_pylist()
    assert found.null_count > values.null_count


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        (pa.array([1, 2], pa.decimal128(5, 2)), [-1, 2**80]),
        (pa.array([True, False]), [-1, 7, 2**80, 0.5]),
        (pa.array(["a", "b"]), [2**80]),
    ],
)
def test_other_values_stay_as_they_are(values, missing):
    """A value that a type cannot hold is nowhere, and no other value changes its text."""
    column = pa.chunked_array([values])
    table = raw_nulls(pa.table({"a": column}), {"a": missing})
    assert as_text(blank(column, missing)).to_pylist() == as_text(column).to_pylist()
    assert raw_text(table.column("a")).to_pylist() == raw_text(column).to_pylist()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([b"caf\xc3\xa9", b"caf\xe9", None]), ["caf\u00e9", "636166e9", None]),
        (pa.array([bytes(16)], pa.binary(16)), ["00000000-0000-0000-0000-000000000000"]),
        (pa.array([b"abc", b"ab\xff"], pa.binary(3)), ["abc", "6162ff"]),
        (pa.array([1.0, math.nan, 2.5]), ["1", None, "2.5"]),
        (pa.array([b"a", None]).dictionary_encode(), ["a", None]),
    ],
)
def test_ids_are_the_same_text_for_both(values, words):
    """Ids of any type are text; the audit's own reader agrees."""
    column = pa.chunked_array([values])
    assert as_text(column).to_pylist() == raw_text(column).to_pylist() == words


def test_values_of_categories_are_bounded(monkeypatch):
    """Counts of two parts are added; above the bound the most frequent values stay."""
    first = Values(np.array([1, 5, 7], np.uint64), np.array([4, 1, 2]))
    second = Values(np.array([1, 6], np.uint64), np.array([1, 3]))
    assert first.add(second).rows.tolist() == [5, 1, 3, 2]
    monkeypatch.setattr("mtrec_ray.data.preparing.scan.MAX_VALUES", 2)
    assert first.add(second).hashes.tolist() == [1, 6]


def test_a_key_twice_in_an_override_is_refused(tmp_path):
    """YAML would take the last one of `--set`, too."""
    (tmp_path / "p.yaml").write_text(
        json.dumps(project_tree({"shop": scenario_tree({"click": {"kind": "binary"}})}))
    )
    with pytest.raises(ProjectError, match="--set training: line 1: found the key lr for a second"):
        load_project(tmp_path / "p.yaml", ["training={lr: 1.0, lr: 2.0}"])


REPORT = {
    "rows_in_log": 1000,
    "users_in_train": 100,
    "largest_user": {"user": "u1", "rows": 40},
    "rows_by_year": {"2024": 300, "2025": 700},
    "known_values": {"device": 2},
    "labels": {"valid": {"click": 9}, "test": {"click": 9}},
    "train_after_test": 0.0,
}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, None),
        ({"largest_user": {"user": "", "rows": 200}}, "20% of the rows are of the user ''"),
        ({"largest_user": {"user": "a", "rows": 400}, "users_in_train": 4}, None),
        ({"rows_by_year": {"1970": 2, "2024": 9, "2025": 989}}, "2 rows are of 1970, far"),
        ({"rows_by_year": {"2020": 500, "2025": 500}}, None),
        ({"known_values": {"session": 0}}, "no value of session has 5 training rows"),
        ({"labels": {"valid": {"click": 9}, "test": {"click": 0}}}, "no label of click in test"),
        ({"train_after_test": 0.25}, "25.0% of the training rows are later"),
    ],
)
def test_what_is_peculiar_is_one_line(change, line):
    """A report without anything peculiar has no line; each thing that is has one."""
    found = list(peculiar(REPORT | change))
    assert len(found) == (line is not None)
    assert all(x.startswith(str(line)) for x in found)
