"""Ranges of searched fields are read as they are written, and refused where they are empty."""

import pytest

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.ranges import Range, parse_range, rejoin
from tests.builders import two_scenario_project


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("uniform(0, 1)", Range("uniform", 0.0, 1.0)),
        (" loguniform( 1e-6 ,1e-4 ) ", Range("loguniform", 1e-6, 1e-4)),
        ("randint(2, 5)", Range("randint", 2.0, 5.0)),
        ("choice(0.0, 1e-1, none)", Range("choice", values=("0.0", "0.1", '"none"'))),
        ("choice([256, 128], [64])", Range("choice", values=("[256, 128]", "[64]"))),
        ("grid(1, 2)", Range("grid", values=("1", "2"))),
    ],
)
def test_ranges_are_read(text, found):
    """Kind, ends and values are those of the text; numbers such as 1e-4 are numbers."""
    assert parse_range(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uniform(1, 1)", "an empty range"),
        ("loguniform(2, 1)", "an empty range"),
        ("choice()", "an empty range"),
        ("choice(1, 1)", "an empty range"),
        ("loguniform(0, 1)", "low above 0"),
        ("uniform(0, x)", "two numbers"),
        ("uniform(1)", "two numbers"),
        ("randint(1.5, 3)", "two whole numbers"),
        ("normal(0, 1)", "allowed: uniform"),
        ("__import__('os').system('true')", "allowed: uniform"),
        ("choice([1)", "allowed: uniform"),
        ("", "allowed: uniform"),
    ],
)
def test_what_is_no_range(text, message):
    """A range that is empty or no range is refused with what is allowed."""
    with pytest.raises(ValueError, match=message):
        parse_range(text)


def test_a_range_in_braces_is_one_piece():
    """YAML parts `{a: uniform(1, 2), b: 3}` at the comma; it is put together again."""
    assert rejoin({"a": "uniform(1", "2)": None, "b": 3}) == {"a": "uniform(1, 2)", "b": 3}
    assert rejoin({"a": "choice(1", 2: None, "3)": None}) == {"a": "choice(1, 2, 3)"}
    assert rejoin({"a": None, "b": None}) == {"a": None, "b": None}


def project_with(**search):
    """The project of two scenarios with a search."""
    return parse_project(two_scenario_project().dump() | {"search": search})


def test_fields_may_stand_among_the_keys():
    """Dotted keys of `search` are fields, beside those of `fields`."""
    tree = {"trials": 3, "training.lr": "uniform(0.1, 1)", "fields": {"model.dropout": [0.1, 0.2]}}
    found = project_with(**tree).search
    assert found.trials == 3
    assert found.fields == {"model.dropout": "choice(0.1, 0.2)", "training.lr": "uniform(0.1, 1)"}
    assert project_with().search.fields is None
    assert project_with(fields={}).search.fields == {}


@pytest.mark.parametrize(
    ("search", "line"),
    [
        (
            {"training.lr": "uniform(1, 1)"},
            r"search\.fields\.training\.lr: an empty range; allowed",
        ),
        ({"training.lr": 3}, r"search\.fields\.training\.lr: allowed: uniform"),
        ({"trails": 3}, r"search\.trails: found an unknown key; allowed: algorithm, "),
        ({"choose": "preference"}, r"search\.preference: found none with choose: preference"),
        ({"preference": {"shop": 1}}, r"search\.preference: found \{'shop': 1.0\} with choose: jo"),
        (
            {"choose": "preference", "preference": {"shop": 1, "books": 2}},
            r"project file: search\.preference: found \['books'\]; allowed: \['shop', 'video'\]",
        ),
    ],
)
def test_mistakes_of_the_section(search, line):
    """A mistake is one line that names the field."""
    with pytest.raises(ProjectError, match=line) as caught:
        project_with(**search)
    assert len(caught.value.problems) == 1
