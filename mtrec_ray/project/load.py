"""Reading a project file: YAML, `--set` overrides, all mistakes reported at once."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mtrec_ray.project.base import ProjectError, shorten
from mtrec_ray.project.project import Project


def load_project(path: str | Path, overrides: Sequence[str] = ()) -> Project:
    """The validated project of a YAML file with `a.b=c` overrides applied.

    Raises:
        ProjectError: file, syntax, keys or values; all of them at once.
    """
    file = Path(path)
    if not file.is_file():
        raise ProjectError([f"--config: found no file {file}; allowed: a project file in YAML"])
    try:
        tree = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ProjectError([f"{file}: not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(tree, dict):
        raise ProjectError([f"{file}: found {type(tree).__name__}; allowed: a mapping of sections"])
    for override in overrides:
        apply_override(tree, override)
    tree["root"] = resolve_root(file, tree.get("root", "."))
    return parse_project(tree)


def parse_project(tree: dict[str, Any]) -> Project:
    """The validated project of a plain mapping."""
    try:
        return Project.model_validate(tree)
    except ValidationError as error:
        raise ProjectError([x for item in error.errors() for x in describe(item)]) from None


def resolve_root(file: Path, root: object) -> object:
    """Root as an absolute path or URI; a relative one starts at the project file's folder."""
    if not isinstance(root, str) or "://" in root:
        return root
    return str((file.resolve().parent / root).resolve())


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a nested mapping; the value is read as YAML."""
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise ProjectError([f"--set: found {override!r}; allowed: section.field=value"])
    node = tree
    *parents, leaf = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ProjectError([f"--set {key}: {part!r} is a value, not a section"])
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ProjectError([f"--set {key}: found {value!r}; allowed: a value in YAML"]) from None


def describe(error: Any) -> list[str]:
    """A line for each mistake of a pydantic error: field, what was found, what is allowed."""
    location = [str(p) for p in error["loc"]]
    field = ".".join(location) or "project file"
    found = shorten(error.get("input"))
    match error["type"]:
        case "extra_forbidden":
            return [f"{field}: found an unknown key; allowed: {', '.join(allowed_keys(location))}"]
        case "missing":
            return [f"{field}: found nothing; allowed: a value (the field is required)"]
        case "value_error" if isinstance(error["input"], dict):
            return [below(location, line) for line in str(error["ctx"]["error"]).splitlines()]
        case "value_error":
            return [f"{field}: {error['ctx']['error']} (found {found})"]
        case _:
            return [
                f"{field}: found {found}; allowed: {error['msg'][0].lower() + error['msg'][1:]}"
            ]


def below(location: Sequence[str], line: str) -> str:
    """A section's own mistake with the section before it; the line may begin with a field of it."""
    section = ".".join(location)
    names_field = re.match(r"[\w.]+: ", line)
    if not section:
        return f"project file: {line}"
    return f"{section}.{line}" if names_field else f"{section}: {line}"


def allowed_keys(location: Sequence[str]) -> list[str]:
    """Keys that the section around an unknown key has."""
    model: Any = Project
    parts = iter(location[:-1])
    for part in parts:
        field = model.model_fields.get(part)
        sections = section_classes(field.annotation) if field else []
        if not sections:
            return ["see the reference project file"]
        model = sections[0]
        if "dict[" in str(field.annotation):
            next(parts, None)  # the name of a scenario or task
    return sorted(model.model_fields)


def section_classes(annotation: Any) -> list[type[BaseModel]]:
    """Section classes named anywhere in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return [found for part in inner for found in section_classes(part)]


def with_overrides(project: Project, overrides: Mapping[str, Any]) -> Project:
    """The project with values set by field.

    Raises:
        ProjectError: values that the schema does not allow.
    """
    return parse_project(tree_with(project, overrides))


def tree_with(project: Project, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The project's tree with values set by field, whether the schema allows them or not."""
    tree = project.dump()
    for field, value in overrides.items():
        *parents, leaf = field.split(".")
        node = tree
        for part in parents:
            node = node[part]
        node[leaf] = value
    return tree


def value_at(project: Project, field: str) -> Any:
    """Returns the value of a dotted field, such as `scenarios.shop.weight`, as plain values."""
    value: Any = project
    for part in field.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    return list(value) if isinstance(value, tuple) else value
