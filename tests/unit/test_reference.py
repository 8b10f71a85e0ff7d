"""jobs/reference.yaml is complete and true, and the shipped project files are valid."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mtrec_ray.project.assortment import Filter
from mtrec_ray.project.base import Section, section_of
from mtrec_ray.project.load import load_project
from mtrec_ray.project.model import Model
from mtrec_ray.project.project import Evaluation, Project, Recommend
from mtrec_ray.project.ranges import Range
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.search import Search
from mtrec_ray.project.serve import Serve
from mtrec_ray.project.training import Finetune, FineTuning, Training
from mtrec_ray.project.users import Users

JOBS = Path(__file__).parents[2] / "jobs"
TREE = yaml.safe_load((JOBS / "reference.yaml").read_text())


def fields_below(section: type[Section]) -> dict[str, type[Section]]:
    """Field names (as written in YAML) of a section and of all sections inside it."""
    found = {}
    for name, field in section.model_fields.items():
        found[f"{section.__name__}.{field.alias or name}"] = section
        inner, _ = section_of(field.annotation)
        if inner:
            found |= fields_below(inner)
    return found


def written_fields(tree: Any, section: type[Section]) -> set[str]:
    """Fields that a YAML tree of a section holds, in the names of `fields_below`."""
    found: set[str] = set()
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key not in tree:
            continue
        found.add(f"{section.__name__}.{key}")
        value = tree[key]
        inner, named = section_of(field.annotation)
        if inner and isinstance(value, dict):
            for part in value.values() if named else [value]:
                found |= written_fields(part, inner)
    return found


def test_every_field_of_a_scenario_is_shown():
    """No field of a scenario or of any section inside it is missing."""
    shown = {f for s in TREE["scenarios"].values() for f in written_fields(s, Scenario)}
    assert shown == set(fields_below(Scenario))


def test_every_field_of_a_table_of_users_is_shown():
    """No field of a table of users is missing."""
    shown = {f for users in TREE["users"].values() for f in written_fields(users, Users)}
    assert shown == set(fields_below(Users))


def test_every_section_is_shown():
    """The project's sections are those of the schema."""
    assert set(TREE) == set(Project.model_fields)


@pytest.mark.parametrize(
    "section", [Model, Training, Search, Finetune, Evaluation, Recommend, Serve]
)
def test_defaults_are_true(section):
    """The sections below the scenarios hold exactly the defaults of the schema."""
    shown = TREE[section.__name__.lower()]
    assert section.model_validate(shown) == section()
    wanted = {
        f for f, owner in fields_below(section).items() if owner not in (FineTuning, Range, Filter)
    }
    assert wanted == written_fields(shown, section)


def test_run_defaults_are_true():
    """Every field of run is shown, with its default."""
    project = load_project(JOBS / "reference.yaml")
    assert set(TREE["run"]) == set(type(project.run).model_fields)
    assert project.run == type(project.run)(name="example")


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_files_are_valid(file):
    """Each shipped project file passes validation, and says the same after a round trip."""
    project = load_project(file)
    assert Project.model_validate(project.dump()) == project
