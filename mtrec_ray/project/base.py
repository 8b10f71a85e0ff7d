"""What every section of a project file rests on: names, durations, and one kind of user error."""

import json
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(value: object) -> object:
    """Seconds of a duration such as `31d`, `12h` or a plain number of seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\s*([smhdw])", value.strip())
        if not match:
            raise ValueError("allowed: a number with a unit s, m, h, d or w, such as 31d")
        return int(match[1]) * SECONDS[match[2]]
    return value


def check_name(value: str) -> str:
    """The name itself, refused where it could not be a folder or a column prefix."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value):
        raise ValueError("allowed: a letter, then letters, digits, _ or -")
    return value


Duration = Annotated[int, BeforeValidator(parse_duration), Field(ge=0)]


Name = Annotated[str, AfterValidator(check_name)]


Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen section of the project file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def none_word(value: object) -> object:
    """None for the word `none`."""
    return None if value == "none" else value


def check_workers(value: object) -> object:
    """A number of workers, or the least and the most, as they stand in the file."""
    numbers = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError("allowed: a number above 0, or two of them, the least and the most")
    return value


class ProjectError(ValueError):
    """Every mistake of a project file or its data, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)  # what pickle makes one anew from
        self.problems = list(problems)

    def __str__(self) -> str:
        """One line each."""
        return "\n".join(self.problems)


def shorten(value: object) -> str:
    """A value for an error line, cut at 60 characters."""
    text = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse(problems: list[str]) -> None:
    """Raise the problems, if there are any, as one error."""
    if problems:
        raise ProjectError(problems)
