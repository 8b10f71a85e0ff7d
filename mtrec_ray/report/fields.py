"""All fields of a project file as a table: built from the schema, so that it cannot go stale."""

import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BeforeValidator, JsonValue, TypeAdapter
from pydantic.fields import FieldInfo

from mtrec_ray.project.base import Section, section_of
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table

# What may stand in the file where it is not of the field's type, by the function that reads it.
WORDS = {
    "parse_duration": "a duration such as `31d`, `12h`",
    "check_workers": "integer > 0, or two: the least and the most",
    "check_workers_or_none": "integer >= 0, or two: the least and the most",
    "read_ends": "`[low, high]`",
    "read_positive_ends": "`[low, high]`, low > 0",
    "read_whole_ends": "`[low, high]`, integers",
    "read_alternatives": "list of different values",
    "values_by_column": "values by column",
    "read_value": "text, a number, `true` or `false`",
    "read_gains": "number by class, or a class",
    "read_class_weights": "number > 0 by class",
}
NAMES = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", JsonValue: "value"}
LIMITS = {
    "ge": ">= {:g}",
    "gt": "> {:g}",
    "le": "<= {:g}",
    "lt": "< {:g}",
    "min_length": "of {} at least",
}
NESTED = "NAME"


@dataclass(frozen=True)
class FieldRow:
    """A field of the project file: dotted name, what is allowed, default, meaning."""

    name: str
    allowed: str
    default: str
    meaning: str


def fields_table() -> str:
    """Returns a Markdown table of every field of a project file."""
    columns = {"field": "name", "allowed": "allowed", "default": "default", "meaning": "meaning"}
    rows = [{head: getattr(row, key) for head, key in columns.items()} for row in field_rows()]
    return markdown_table([{k: v.replace("|", "\\|") for k, v in row.items()} for row in rows])


def field_rows(section: type[Section] = Project, above: str = "") -> Iterator[FieldRow]:
    """Yields the fields of a section and of all sections inside it, in the schema's order."""
    for name, field in section.model_fields.items():
        path = f"{above}{field.alias or name}"
        inner, many = section_of(field.annotation)
        if inner and not issubclass(section, inner):
            if field.default is None:
                allowed = "fields below by name, or `null`" if many else "fields below, or `null`"
                yield FieldRow(f"`{path}`", allowed, "`null`", field.description or "")
            yield from field_rows(inner, f"{path}.{NESTED}." if many else f"{path}.")
            continue
        allowed = allowed_of(field.annotation, field.metadata)
        if inner:  # finetune.scenarios: a part of the section that holds it
            allowed = f"fields of `{above.rstrip('.')}` by name"
        yield FieldRow(f"`{path}`", allowed, default_of(field), field.description or "")


def allowed_of(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    """Returns what a field may be, in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return allowed_of(parts[0], [*parts[1:], *metadata])
    words = [WORDS[n] for m in metadata if (n := reader(m)) in WORDS]
    if words:
        return words[0]
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return union_of(parts, metadata)
    if origin is tuple:
        return list_of(parts)
    if origin is dict:
        return f"{allowed_of(parts[1])} by name"
    return NAMES.get(annotation, getattr(annotation, "__name__", "")) + limits(metadata)


def union_of(parts: typing.Sequence[Any], metadata: typing.Sequence[Any]) -> str:
    """Returns the words for one of several types; null comes last."""
    words = [allowed_of(part, metadata) for part in parts if part is not type(None)]
    return ", or ".join([*words, "`null`"] if type(None) in parts else words)


def list_of(parts: typing.Sequence[Any]) -> str:
    """Returns a list of any length, or of as many as there are types."""
    if parts[-1] is Ellipsis:
        return f"list of {allowed_of(parts[0])}"
    return f"list of {len(parts)}: {allowed_of(parts[0])}"


def reader(marker: Any) -> str:
    """Returns the name of the function that reads a field's text; empty where there is none."""
    return marker.func.__name__ if isinstance(marker, BeforeValidator) else ""


def limits(metadata: typing.Sequence[Any]) -> str:
    """Returns bounds of a number: ` >= 0, < 1`."""
    flat = [m for marker in metadata for m in (marker, *getattr(marker, "metadata", ()))]
    bounds = [
        words.format(limit)
        for marker in flat
        for name, words in LIMITS.items()
        if (limit := getattr(marker, name, None)) is not None
    ]
    return f" {', '.join(bounds)}" if bounds else ""


def default_of(field: FieldInfo) -> str:
    """Returns a field's default as the file would have it; `required` where it has none."""
    if field.is_required():
        return "required"
    value = TypeAdapter(Any).dump_python(field.get_default(call_default_factory=True), mode="json")
    return f"`{json.dumps(value)}`"
