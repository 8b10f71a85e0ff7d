"""YAML as a tree of mappings with text keys, with a line for whatever YAML would pass over."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from mtrec_ray.project.base import ProjectError

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
VALUES = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool")}
BY_VALUE = ("gains", "class_weights")  # fields whose keys are values of a column, of any kind


def read_tree(file: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the mapping of a YAML file, and a line for each key that is no text or stands twice.

    Keys that are no text are left out of the mapping, but those that are values of a column.

    Raises:
        ProjectError: no text in UTF-8, no YAML, or no mapping.
    """
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = with_text_keys(yaml.safe_load(text))
    except UnicodeDecodeError:
        raise ProjectError([f"{file}: found bytes that are no UTF-8; allowed: text"]) from None
    except RecursionError:
        raise ProjectError([f"{file}: found mappings without end; allowed: sections"]) from None
    except yaml.YAMLError as error:
        raise ProjectError([f"{file}: {yaml_mistake(error)}"]) from None
    except ValueError as error:  # such as the date 2025-02-30
        raise ProjectError([f"{file}: found a wrong value ({error}); allowed: YAML"]) from None
    if tree is None:
        raise ProjectError([f"{file}: found nothing; allowed: a mapping of sections"])
    if not isinstance(tree, dict):
        raise ProjectError([f"{file}: found {type(tree).__name__}; allowed: a mapping of sections"])
    return tree, [f"{file}: {line}" for line in key_mistakes(root)]


def yaml_mistake(error: yaml.YAMLError) -> str:
    """Returns the line of the file and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error)
    if mark is None:
        return f"not YAML: {' '.join(problem.split())}"
    if "'\\t'" in problem:
        return f"line {mark.line + 1}: not YAML: found a tab; allowed: spaces"
    return f"line {mark.line + 1}: not YAML: {problem}"


def key_mistakes(root: yaml.Node) -> Iterator[str]:
    """Yields a line for each key that stands twice in its mapping or is no text.

    Of a field whose keys are values of a column a number, true or false is a key, too.
    """
    waiting, visited = [("", root)], set[int]()
    while waiting:
        field, node = waiting.pop()
        if id(node) in visited:  # an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield from mapping_mistakes(node, VALUES if field in BY_VALUE else set())
            waiting += [(str(key.value), value) for key, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [("", value) for value in reversed(node.value)]


def mapping_mistakes(node: yaml.MappingNode, others: Collection[str]) -> Iterator[str]:
    """Yields a line for each key of one mapping that stands twice or is no text.

    `others`: tags that a key may have beside that of a text.
    """
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in (TEXT, MERGE, *others):
            yield (
                f"line {line}: found the key {key.value}, which YAML reads as "
                f'{key.tag.rsplit(":", 1)[-1]}; allowed: a text, such as "{key.value}"'
            )
        elif key.value in first:
            yield (
                f"line {line}: found the key {key.value} for a second time (first in line "
                f"{first[key.value]}); allowed: one"
            )
        first.setdefault(str(key.value), line)


def with_text_keys(tree: Any, field: str = "") -> Any:
    """Returns the tree without keys that are no text; shared parts stay shared no longer.

    Those of a field whose keys are values of a column stay.
    """
    if isinstance(tree, dict):
        kept = str | bool | int | float if field in BY_VALUE else str
        return {k: with_text_keys(v, str(k)) for k, v in tree.items() if isinstance(k, kept)}
    return [with_text_keys(v) for v in tree] if isinstance(tree, list) else tree
