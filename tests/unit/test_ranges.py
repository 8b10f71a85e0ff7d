"""Ranges of searched fields are mappings with one key; what is empty or unknown is refused."""

import datetime

import pytest
import yaml

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.ranges import MOST_OPTIONS, Range
from tests.builders import two_scenario_project


def project_with(**search):
    """The project of two scenarios with a search."""
    return parse_project(two_scenario_project().dump() | {"search": search})


def range_of(text: str) -> Range:
    """The range that a project file says for a field, in YAML."""
    fields = project_with(fields={"training.lr": yaml.safe_load(text)}).search.fields
    assert fields is not None
    return fields["training.lr"]


@pytest.mark.parametrize(
    ("text", "kind", "ends"),
    [
        ("{uniform: [0, 1]}", "uniform", (0, 1)),
        ("{loguniform: [1e-6, 1e-4]}", "loguniform", (1e-6, 1e-4)),
        ("{loguniform: ['1e-6', 1.0E+2]}", "loguniform", (1e-6, 100)),
        ("{randint: [2, 5e0]}", "randint", (2, 5)),
    ],
)
def test_ranges_of_numbers_are_read(text, kind, ends):
    """Kind and ends are those of the file; `1e-6`, which YAML reads as text, is a number."""
    found = range_of(text)
    assert (found.kind, found.ends, found.values) == (kind, ends, ())


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("{choice: [0.0, 1e-1, none]}", "choice", ("0.0", "0.1", '"none"')),
        ("[[256, 128], [64]]", "choice", ("[256, 128]", "[64]")),
        ("{grid: [1, 2]}", "grid", ("1", "2")),
        ("[true, false, null]", "choice", ("true", "false", "null")),
        ("[nan, inf]", "choice", ('"nan"', '"inf"')),
    ],
)
def test_values_to_choose_from_are_read(text, kind, values):
    """A bare list is a choice; numbers such as 1e-1 are numbers, words stay words."""
    found = range_of(text)
    assert (found.kind, found.values) == (kind, values)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{uniform: [1, 1]}", r"\.uniform: found \[1, 1\]; allowed: \[low, high\] with low < high"),
        ("{loguniform: [2, 1]}", r"\.loguniform: found \[2, 1\]; allowed: .* low < high"),
        ("{randint: [3, 2]}", r"\.randint: found \[3, 2\]; allowed: .* low < high"),
        ("{loguniform: [0, 1]}", r"\.loguniform: found \[0, 1\]; allowed: .* low above 0"),
        ("{loguniform: [-1e-3, 1]}", r"\.loguniform: found .*; allowed: .* low above 0"),
        ("{uniform: [0, x]}", r"\.uniform: found \[0, .x.\]; allowed: two numbers"),
        ("{uniform: [true, 2]}", r"\.uniform: found \[true, 2\]; allowed: two numbers"),
        ("{uniform: [0, .inf]}", r"\.uniform: found \[0, Infinity\]; allowed: two numbers"),
        ("{uniform: [1]}", r"\.uniform: found \[1\]; allowed: two numbers"),
        ("{uniform: 1}", r"\.uniform: found 1; allowed: two numbers"),
        ("{randint: [1.5, 3]}", r"\.randint: found \[1.5, 3\]; allowed: two whole numbers"),
        ("{choice: []}", r"\.choice: found \[\]; allowed: a list of one value or more"),
        ("[]", r"\.choice: found \[\]; allowed: a list of one value or more"),
        ("{grid: [1, 1.0]}", r"\.grid: found \[1, 1.0\]; allowed: .* all different"),
        ("{choice: mmoe}", r"\.choice: found 'mmoe'; allowed: a list"),
        ("{choice: [2025-01-01]}", r"\.choice: found .*; allowed: numbers, texts"),
        ("{normal: [0, 1]}", r"\.normal: found an unknown key; allowed: choice, grid, loguni"),
        ("{choice: [1], grid: [1]}", r": found choice and grid; allowed: one of uniform, logu"),
        ("{}", r": found nothing; allowed: one of uniform"),
        ("{uniform: null}", r": found nothing; allowed: one of uniform"),
        ("3", r": found 3; allowed: \{uniform: \[low, high\]\}, "),
        ("null", r": found null; allowed: \{uniform: \[low, high\]\}, "),
    ],
)
def test_what_is_no_range(text, line):
    """A range that is empty, of an unknown kind or of two kinds is one line."""
    with pytest.raises(ProjectError, match=r"^search\.fields\.training\.lr" + line) as caught:
        range_of(text)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("loguniform(1e-4, 1e-2)", "{loguniform: [1e-4, 1e-2]}"),
        ("' choice( mmoe, ple )'", "{choice: [mmoe, ple]}"),
        ("grid([256, 128], [64])", "{grid: [[256, 128], [64]]}"),
    ],
)
def test_the_form_of_earlier_files(text, allowed):
    """A call in place of a mapping is one line with the mapping for that very value."""
    with pytest.raises(ProjectError) as caught:
        range_of(text)
    (line,) = caught.value.problems
    assert line == (
        f"search.fields.training.lr: found {yaml.safe_load(text)!r}; allowed: {allowed}"
    )
    range_of(allowed)


@pytest.mark.parametrize("text", ["normal(0, 1)", "__import__('os').system('true')", "''"])
def test_other_texts_show_all_forms(text):
    """A text that is no call of a range is one line with the forms of all kinds."""
    with pytest.raises(ProjectError, match=r"allowed: \{uniform: \[low, high\]\}, .*grid"):
        range_of(yaml.safe_dump(text))


def test_a_range_is_written_as_it_is_read():
    """A project with ranges is the same project after `dump`, whose ranges have one key each."""
    fields = {"training.lr": {"loguniform": ["1e-4", 0.01]}, "model.hidden": [[64], [32, 32]]}
    project = project_with(fields=fields)
    written = project.dump()["search"]["fields"]
    assert written == {
        "training.lr": {"loguniform": [1e-4, 0.01]},
        "model.hidden": {"choice": [[64], [32, 32]]},
    }
    assert parse_project(project.dump()) == project


def test_samples_of_a_range():
    """All values of a short range; of a long one both ends and as many between as are allowed."""
    assert Range(choice=(1, "a")).samples == [1, "a"]
    assert Range(randint=(2, 4)).samples == [2, 3, 4]
    long = Range(randint=(0, 10**9)).samples
    assert long[0] == 0
    assert long[-1] == 10**9
    assert len(long) <= 2 * MOST_OPTIONS
    low, middle, high = Range(uniform=(1, 9)).samples
    assert low == 1 < middle < 9 == high
    assert middle != int(middle)


def test_values_that_json_cannot_hold():
    """A date is refused as a value to choose from."""
    with pytest.raises(ValueError, match="allowed: numbers, texts"):
        Range(choice=(datetime.date(2025, 1, 1),))


def test_fields_may_stand_among_the_keys():
    """Dotted keys of `search` are fields, beside those of `fields`."""
    uniform = {"uniform": [0.1, 1]}
    found = project_with(**{
        "trials": 3, "training.lr": uniform, "fields": {"model.dropout": [0.1, 0.2]}
    }).search  # fmt: skip
    assert found.trials == 3
    assert found.fields == {
        "model.dropout": Range(choice=(0.1, 0.2)),
        "training.lr": Range(uniform=(0.1, 1)),
    }
    assert project_with().search.fields is None
    assert project_with(fields={}).search.fields == {}


@pytest.mark.parametrize(
    "override", ["search.training.lr=[1, 2]", "search.fields.training.lr={choice: [1, 2]}"]
)
def test_a_range_on_the_command_line(tmp_path, override):
    """`--set` takes a searched field with its dots, among the keys of search and below `fields`."""
    file = tmp_path / "project.yaml"
    file.write_text(yaml.safe_dump(two_scenario_project().dump() | {"search": {}}))
    found = load_project(file, [override, "search.preference.shop=2", "search.choose=preference"])
    assert found.search.fields == {"training.lr": Range(choice=(1, 2))}
    assert found.search.preference == {"shop": 2}


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"training.lr": {"uniform": [1, 1]}}, r"search\.fields\.training\.lr\.uniform: found"),
        ({"training.lr": 3}, r"search\.fields\.training\.lr: found 3; allowed: \{uniform"),
        ({"trails": 3}, r"search\.trails: found an unknown key; allowed: algorithm, "),
        ({"fields": 3}, r"search\.fields: found 3; allowed: a mapping"),
        ({"choose": "preference"}, r"search\.preference: found none with choose: preference"),
        ({"preference": {"shop": 1}}, r"search\.preference: found \{'shop': 1.0\} with choose: jo"),
        (
            {"choose": "preference", "preference": {"shop": 1, "books": 2}},
            r"^search\.preference: found \['books'\]; allowed: \['shop', 'video'\]",
        ),
    ],
)
def test_mistakes_of_the_section(search, line):
    """A mistake is one line that names the field."""
    with pytest.raises(ProjectError, match=line) as caught:
        project_with(**search)
    assert len(caught.value.problems) == 1
