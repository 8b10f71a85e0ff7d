"""The table of fields says what the schema says."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, Field

from mtrec_ray.report.fields import field_rows, fields_table

REFERENCE = Path(__file__).parents[2] / "jobs" / "reference.yaml"


class Inner(BaseModel):
    """A section inside."""

    size: Annotated[int, Field(ge=1, description="Rows | columns.")] = 2


class Outer(BaseModel):
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
