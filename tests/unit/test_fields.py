"""The table of fields says what the schema says."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from mtrec_ray.project.base import Section, section_of
from mtrec_ray.project.project import Project
from mtrec_ray.report.fields import field_rows, fields_table

REFERENCE = Path(__file__).parents[2] / "jobs" / "reference.yaml"


class Inner(Section):
    """A section inside."""

    size: Annotated[int, Field(ge=1, description="Rows | columns.")] = 2


class Outer(Section):
    """A section with one of each kind of field."""

    kind: Literal["a", "b"]
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5,)
    cut: tuple[int, int] | None = None
    parts: dict[str, Inner] = Field(default_factory=dict)


def test_each_kind_of_field():
    """Values, bounds, lists, nulls, named sections and defaults come from the schema."""
    rows = {r.name: (r.allowed, r.default, r.meaning) for r in field_rows(Outer)}
    assert rows == {
        "`kind`": ("`a`, `b`", "required", ""),
        "`shares`": ("list of number > 0, <= 1", "`[0.5]`", ""),
        "`cut`": ("list of 2: integer, or `null`", "`null`", ""),
        "`parts.NAME.size`": ("integer >= 1", "`2`", "Rows | columns."),
    }


def test_every_field_of_the_reference_is_in_the_table():
    """Every key of jobs/reference.yaml below the scenarios' sections has its row."""
    tree = yaml.safe_load(REFERENCE.read_text())
    named = {row.name.strip("`") for row in field_rows()}
    scalars = {
        f"{section}.{key}"
        for section in ("model", "training", "search", "finetune", "evaluation", "recommend", "run")
        for key, value in tree[section].items()
        if not isinstance(value, dict)
    }
    assert len(scalars) > 50
    assert scalars <= named
    assert {"root", "scenarios.NAME.tasks.NAME.given", "model.encoder.lora.rank"} <= named


def test_rows_are_as_long_as_the_head():
    """A bar inside a meaning does not part a row's cells."""
    lines = fields_table().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {5}


def sections_below(section: type[Section]) -> set[type[Section]]:
    """A section and all sections inside it."""
    found = {section}
    for field in section.model_fields.values():
        inner, _ = section_of(field.annotation)
        if inner and inner not in found:
            found |= sections_below(inner)
    return found


def test_every_field_says_what_it_means():
    """Each field of each section has a description: a sentence or more, in one line."""
    fields = {
        f"{section.__name__}.{name}": field.description or ""
        for section in sections_below(Project)
        for name, field in section.model_fields.items()
    }
    assert len(fields) > 120
    wrong = {n for n, text in fields.items() if not text.endswith((".", "`.")) or "\n" in text}
    assert wrong == set()
    assert {n for n, text in fields.items() if len(text) > 200} == set()


def test_what_null_means_is_said():
    """A field whose default is null says what null means, unless one field of several is given."""
    one_of_several = {"Split", "Range", "Filter"}
    silent = {
        f"{section.__name__}.{name}"
        for section in sections_below(Project)
        for name, field in section.model_fields.items()
        if field.default is None and section.__name__ not in one_of_several
        if not any(word in (field.description or "") for word in ("null", "none:"))
    }
    assert silent <= {"Scenario.negatives"}
