"""All mistakes of a project file at once, one line each: field, what was found, what is allowed.

Pydantic does not check a section between its fields while one of them is wrong. Here a section is
read as far as it goes, and each check runs that needs none of the wrong fields.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mtrec_ray.project.base import Section, section_of, shorten
from mtrec_ray.project.project import Project


def mistakes_of(tree: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Returns a line for each mistake of a tree that pydantic refused."""
    lines = [line for item in error.errors() for line in describe(item)]
    read_section(Project, tree, (), lines)
    return list(dict.fromkeys(line for line in lines if not is_inherited(line, lines)))


def is_inherited(line: str, lines: Sequence[str]) -> bool:
    """Returns whether a scenario's fine-tuning only repeats a mistake of `finetune`."""
    general = re.sub(r"^finetune\.scenarios\.[\w-]+\.", "finetune.", line)
    return general != line and general in lines


def describe(error: Any) -> list[str]:
    """Returns a line for each mistake of a pydantic error."""
    location = [str(p) for p in error["loc"] if p != "[key]"]
    field = ".".join(location) or "project file"
    found = f"found {shorten(error.get('input'))}"
    match error["type"]:
        case "extra_forbidden":
            allowed = ", ".join(allowed_keys(location))
            return [f"{field}: found an unknown key; allowed: {allowed}"]
        case "missing":
            return [f"{field}: found nothing; allowed: a value (the field is required)"]
        case "model_type" | "dict_type":
            return [f"{field}: {found}; allowed: a mapping"]
        case "value_error" if isinstance(error["input"], dict):
            return [below(location, line) for line in str(error["ctx"]["error"]).splitlines()]
        case "value_error":
            return [f"{field}: {found}; {error['ctx']['error']}"]
        case _:
            return [f"{field}: {found}; allowed: {error['msg'][0].lower() + error['msg'][1:]}"]


def below(location: Sequence[str], line: str) -> str:
    """Returns a section's own mistake with the section before it.

    The line may begin with a field of the section.
    """
    section = ".".join(location)
    names_field = re.match(r"[\w.-]+: ", line)
    if not section:
        return line if names_field else f"project file: {line}"
    return f"{section}.{line}" if names_field else f"{section}: {line}"


def allowed_keys(location: Sequence[str]) -> list[str]:
    """Returns the keys that the section around an unknown key has."""
    section: type[Section] = Project
    parts = iter([part for part in location[:-1] if not part.isdigit()])  # places in lists
    for part in parts:
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        inner, many = section_of(fields[part].annotation) if part in fields else (None, False)
        if inner is None:
            return ["see the reference project file"]
        section = inner
        if many:
            next(parts, None)  # the name of a scenario, a task or a searched field
    return sorted(field.alias or name for name, field in section.model_fields.items())


def read_section(
    section: type[Section], tree: object, at: tuple[str, ...], lines: list[str]
) -> Section:
    """Returns a section without its wrong fields, and adds a line for each mistake between others.

    Reading an absent field raises AttributeError: the check that needs it is left out. Beside an
    unknown key, which may be a misspelt field, no field has its default.
    """
    written = fields_of(section, tree)
    fields = {field.alias or name: (name, field) for name, field in section.model_fields.items()}
    read = section.model_construct()
    values = vars(read)
    if written is None or set(written) - set(fields):
        values.clear()
    for key, value in (written or {}).items():
        if key in fields:
            name, field = fields[key]
            values.pop(name, None)
            try:
                values[name] = read_field(field, value, (*at, key), lines)
            except ValidationError:
                continue
    for check in section.checks():
        try:
            lines += [below(at, line) for line in check(read)]
        except AttributeError:
            continue
    return read


def fields_of(section: type[Section], tree: object) -> Mapping[str, Any] | None:
    """Returns what a tree says of a section's fields; None where it is no section at all."""
    try:
        fields = section.read(tree)
    except ValueError:
        return None
    return fields if isinstance(fields, Mapping) else None


def read_field(field: FieldInfo, value: Any, at: tuple[str, ...], lines: list[str]) -> Any:
    """Returns a field's value; of sections without their wrong fields.

    Raises:
        ValidationError: the value is wrong.
    """
    section, many = section_of(field.annotation)
    if section is None or not isinstance(value, Mapping):
        return TypeAdapter(field.rebuild_annotation()).validate_python(value)
    if not many:
        return read_section(section, value, at, lines)
    return {n: read_section(section, tree, (*at, str(n)), lines) for n, tree in value.items()}
