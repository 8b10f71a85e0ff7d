"""Reading a project file: YAML, `--set` overrides, all mistakes reported at once."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.mistakes import mistakes_of
from mtrec_ray.project.project import Project
from mtrec_ray.project.search import Search
from mtrec_ray.project.yaml_tree import key_mistakes, read_tree


def load_project(path: str | Path, overrides: Sequence[str] = ()) -> Project:
    """Returns the validated project of a YAML file with `a.b=c` overrides applied.

    Raises:
        ProjectError: file, syntax, keys or values; all of them at once.
    """
    file = Path(path)
    if not file.is_file():
        raise ProjectError([f"--config: found no file {file}; allowed: a project file in YAML"])
    tree, problems = read_tree(file)
    for override in overrides:
        problems += apply_override(tree, override)
    tree["root"] = resolve_root(file, tree.get("root", "."))
    try:
        project = parse_project(tree)
    except ProjectError as error:
        raise ProjectError([*problems, *error.problems]) from None
    whole = (project.unused_options(), project.single_weights(), project.lonely_histories())
    refuse([*problems, *(line for lines in whole for line in lines)])
    return project


def parse_project(tree: dict[str, Any]) -> Project:
    """Returns the validated project of a plain mapping.

    Raises:
        ProjectError: a line for each mistake.
    """
    try:
        return Project.model_validate(tree)
    except ValidationError as error:
        raise ProjectError(mistakes_of(tree, error)) from None


def resolve_root(file: Path, root: object) -> object:
    """Returns root as an absolute path or URI; a relative one starts at the file's folder."""
    if not isinstance(root, str) or "://" in root:
        return root
    return str((file.resolve().parent / root).resolve())


def apply_override(tree: dict[str, Any], override: str) -> list[str]:
    """Sets `a.b.c=value` in a nested mapping; the value is read as YAML.

    Returns a line where that cannot be done, with the tree as it was.
    """
    key, sep, text = override.partition("=")
    if not sep or not key:
        return [f"--set: found {override!r}; allowed: section.field=value"]
    try:
        value, root = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return [f"--set {key}: found {text!r}; allowed: a value in YAML"]
    parts = path_of(key)
    problems = [*unknown_names(tree, parts), *(key_mistakes(root) if root else ())]
    if problems:
        return [f"--set {key}: {line}" for line in problems]
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
    node[parts[-1]] = value
    return []


def path_of(key: str) -> list[str]:
    """Returns the keys on the way to a field; a searched field is one key, dots and all."""
    parts = key.split(".")
    searched = parts[1:]
    if parts[0] == "search" and searched[:1] == ["fields"]:
        searched = searched[1:]
    if parts[0] == "search" and len(searched) > 1 and searched[0] not in Search.model_fields:
        return ["search", "fields", ".".join(searched)]
    return parts


def unknown_names(tree: Mapping[str, Any], parts: Sequence[str]) -> Iterator[str]:
    """Yields a line where a path leads through a value, or a scenario or task that is not there."""
    names = {1: "scenario", 3: "task"} if parts[0] == "scenarios" else {}
    node: Any = tree
    for depth, part in enumerate(parts[:-1]):
        is_name = depth in names and (depth == 1 or parts[2] == "tasks")
        if is_name and part not in node:
            yield f"found no {names[depth]} {part!r}; allowed: {', '.join(sorted(node)) or 'none'}"
            return
        node = node.get(part, {})
        if not isinstance(node, dict):
            yield f"found that {'.'.join(parts[: depth + 1])} is a value; allowed: a section"
            return


def with_overrides(project: Project, overrides: Mapping[str, Any]) -> Project:
    """Returns the project with values set by field.

    Raises:
        ProjectError: values that the schema does not allow.
    """
    return parse_project(tree_with(project, overrides))


def tree_with(project: Project, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the project's tree with values set by field, which the schema may refuse."""
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
