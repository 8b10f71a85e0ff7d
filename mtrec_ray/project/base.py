"""What every section of a project file rests on: names, durations, and one kind of user error."""

import json
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self
from urllib.parse import quote, unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(value: object) -> object:
    """Returns the seconds of a duration such as `31d`, `12h` or a plain number of seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\s*([smhdw])", value.strip())
        if not match:
            raise ValueError("allowed: a number with a unit s, m, h, d or w, such as 31d")
        return int(match[1]) * SECONDS[match[2]]
    return value


def check_name(value: str) -> str:
    """Returns the name itself; refuses what could not be a folder or a column prefix."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value):
        raise ValueError("allowed: a letter, then letters, digits, _ or -")
    return value


Duration = Annotated[int, BeforeValidator(parse_duration), Field(ge=0)]


Name = Annotated[str, AfterValidator(check_name)]


Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen section of the project file; unknown keys are refused.

    Each method named `check_...` yields a line for each mistake between fields. A line begins with
    the field: `width: found 30; allowed: a multiple of attention_heads, 4`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @classmethod
    def read(cls, tree: object) -> object:
        """Returns the fields of the section for what stands in the file."""
        return tree

    @classmethod
    def checks(cls) -> list[Callable[[Self], Iterator[str]]]:
        """Returns the methods that look for mistakes between fields."""
        methods = {n: m for base in reversed(cls.__mro__) for n, m in vars(base).items()}
        return [method for name, method in methods.items() if name.startswith("check_")]

    @model_validator(mode="before")
    @classmethod
    def _read_tree(cls, tree: object) -> object:
        return cls.read(tree)

    @model_validator(mode="after")
    def _run_checks(self) -> Self:
        lines = [line for check in self.checks() for line in check(self)]
        if lines:
            raise ValueError("\n".join(lines))
        return self


def section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """Returns the section that a field holds, and whether it holds one for each name."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    parts = typing.get_args(annotation)
    many = typing.get_origin(annotation) is dict
    for part in parts[1:] if many else parts:
        inner, deeper = section_of(part)
        if inner:
            return inner, many or deeper
    return None, False


def is_none(value: object) -> bool:
    """Returns whether a field has no value: a dump does not name it then.

    What was made before there was such a field stays.
    """
    return value is None


def none_word(value: object) -> object:
    """Returns None for the word `none`, any other value as it is."""
    return None if value == "none" else value


def check_workers(value: object) -> object:
    """Returns a number of workers, or the least and the most, as they stand in the file."""
    numbers = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError("allowed: a number above 0, or two of them, the least and the most")
    return value


def check_workers_or_none(value: object) -> object:
    """Returns a number of workers as `check_workers` does, or 0."""
    if type(value) is int and value == 0:
        return value
    try:
        return check_workers(value)
    except ValueError:
        raise ValueError(
            "allowed: 0 (one process), a number above 0, or two of them, the least and the most"
        ) from None


def check_validations(value: object) -> object:
    """Returns how many validations an epoch has, or the rising epochs after which they come."""
    if type(value) is int and value > 0:
        return value
    after = list(value) if isinstance(value, list | tuple) else []
    are_epochs = all(type(e) in (int, float) and 0 < e < math.inf for e in after)
    if not after or not are_epochs or after != sorted(set(after)):
        raise ValueError("allowed: a number above 0, or rising epochs above 0: [0.25, 0.5, 1]")
    return value


class ProjectError(ValueError):
    """Every mistake of a project file or its data, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)  # pickle calls the class with these arguments
        self.problems = list(problems)

    def __str__(self) -> str:
        """Returns one line for each mistake."""
        return "\n".join(self.problems)


def shorten(value: object) -> str:
    """Returns a value for an error line, cut at 60 characters."""
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    except (TypeError, ValueError):  # keys that are no text; a YAML alias inside itself
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse(problems: list[str]) -> None:
    """Raises the problems, if there are any, as one error."""
    if problems:
        raise ProjectError(problems)


def split_query(path: str) -> tuple[str, str]:
    """A URI without its query, and the query with its question mark; a local path has none."""
    if "://" not in path:
        return path, ""
    plain, mark, query = path.partition("?")
    return plain, mark + query


# How options of a file system travel with a URI, to every process that opens it.
OPTIONS = re.compile(r"[?&]storage_options=([\w.%~-]*)")


def with_options(path: str, options: Mapping[str, Any]) -> str:
    """Returns a URI that tells options of its file system, last in its query."""
    if not options:
        return path
    mark = "&" if split_query(path)[1] else "?"
    return f"{path}{mark}storage_options={quote(json.dumps(options), safe='')}"


def split_options(path: str) -> tuple[str, dict[str, Any]]:
    """Returns a URI without the options of its file system, and these."""
    found = OPTIONS.search(path) if "://" in path else None
    return (path.replace(found[0], ""), json.loads(unquote(found[1]))) if found else (path, {})


def without_options(text: str) -> str:
    """Returns a text, such as an error line, without the options of file systems in its URIs."""
    return OPTIONS.sub("", text)
