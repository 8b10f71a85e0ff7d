"""Ranges of searched fields, each a mapping with one key: `{loguniform: [1e-4, 1e-2]}`."""

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_serializer

from mtrec_ray.project.base import Section

Kind = Literal["uniform", "loguniform", "randint", "choice", "grid"]
KINDS: tuple[Kind, ...] = ("uniform", "loguniform", "randint", "choice", "grid")

MOST_OPTIONS = 256

ALLOWED = (
    "allowed: {uniform: [low, high]}, {loguniform: [low, high]}, {randint: [low, high]}, "
    "{choice: [a, b, ...]} or {grid: [a, b, ...]}"
)


def as_number(value: Any) -> Any:
    """Returns the number of a text such as `1e-4`, which YAML reads as text; others as they are."""
    number = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    if isinstance(value, str) and re.fullmatch(number, value.strip()):
        return float(value)
    return value


def is_number(value: object) -> bool:
    """Returns whether a value is a finite number."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def read_ends(value: object) -> list[float]:
    """Returns the two ends of a range, the lower one first."""
    ends = [as_number(v) for v in value] if isinstance(value, list | tuple) else []
    if len(ends) != 2 or not all(is_number(v) for v in ends):
        raise ValueError("allowed: two numbers, [low, high]")
    if ends[0] >= ends[1]:
        raise ValueError("allowed: [low, high] with low < high")
    return ends


def read_positive_ends(value: object) -> list[float]:
    """Returns the two ends of a range of numbers above 0."""
    ends = read_ends(value)
    if ends[0] <= 0:
        raise ValueError("allowed: [low, high] with low above 0")
    return ends


def read_whole_ends(value: object) -> list[int]:
    """Returns the two ends of a range of whole numbers."""
    ends = read_ends(value)
    if not all(float(v).is_integer() for v in ends):
        raise ValueError("allowed: two whole numbers, [low, high]")
    return [int(v) for v in ends]


def json_text(value: Any) -> str:
    """Returns a value as JSON; refuses what JSON cannot hold, such as a date."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("allowed: numbers, texts, true, false, null, and lists of them") from None


def read_alternatives(value: object) -> list[Any]:
    """Returns the values to choose from; `1` and `1.0` are the same value."""
    options = [as_number(v) for v in value] if isinstance(value, list | tuple) else []
    texts = {json_text(float(v) if is_number(v) else v) for v in options}
    if not options or len(texts) < len(options):
        raise ValueError("allowed: a list of one value or more, all different")
    return options


Ends = Annotated[tuple[float, float], BeforeValidator(read_ends)]
PositiveEnds = Annotated[tuple[float, float], BeforeValidator(read_positive_ends)]
WholeEnds = Annotated[tuple[int, int], BeforeValidator(read_whole_ends)]
Alternatives = Annotated[tuple[Any, ...], BeforeValidator(read_alternatives)]


def new_form(text: str) -> str:
    """Returns what is allowed in place of a text: `{uniform: [0, 1]}` for `uniform(0, 1)`."""
    old = re.fullmatch(rf"\s*({'|'.join(KINDS)})\s*\((.*)\)\s*", text, re.DOTALL)
    return f"allowed: {{{old[1]}: [{old[2].strip()}]}}" if old else ALLOWED


class Range(Section):
    """The values that a search may try for a field. Exactly one key stands in the file."""

    uniform: Ends | None = Field(
        default=None, description="Draws a number between low and high, both included."
    )
    loguniform: PositiveEnds | None = Field(
        default=None, description="Draws a number between low and high, uniformly on the logarithm."
    )
    randint: WholeEnds | None = Field(
        default=None, description="Draws a whole number between low and high, both included."
    )
    choice: Alternatives | None = Field(
        default=None, description="Draws one of these values. A list without a key is a choice."
    )
    grid: Alternatives | None = Field(
        default=None, description="Tries each of these values in a grid; elsewhere it is a choice."
    )

    @classmethod
    def read(cls, tree: object) -> object:
        """Returns a bare list as a choice; refuses a text with the form that is allowed."""
        if isinstance(tree, list | tuple):
            return {"choice": tree}
        if not isinstance(tree, dict | Range):
            raise ValueError(new_form(tree) if isinstance(tree, str) else ALLOWED)
        return tree

    def check_one_kind(self) -> Iterator[str]:
        """Yields a line unless exactly one key is given."""
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            yield f"found {' and '.join(given) or 'nothing'}; allowed: one of {', '.join(KINDS)}"

    @model_serializer
    def _as_written(self) -> dict[str, list[Any]]:
        return {self.kind: list(getattr(self, self.kind))}

    @property
    def kind(self) -> Kind:
        """The key that is given."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high of a range of numbers."""
        pair = self.uniform or self.loguniform or self.randint
        assert pair is not None, "a choice or a grid has values"
        return pair

    @property
    def values(self) -> tuple[str, ...]:
        """The values of a choice or a grid as JSON texts, which hash; else empty."""
        return tuple(json_text(v) for v in self.choice or self.grid or ())

    @property
    def samples(self) -> list[Any]:
        """Values to test a field with: all, or both ends and some between.

        Between the ends of uniform and loguniform stands one that is no whole number.
        """
        if self.randint:
            low, high = self.randint
            step = max((high - low) // MOST_OPTIONS, 1)
            return [*range(low, high, step), high]
        if self.values:
            return list(self.choice or self.grid or ())
        low, high = self.ends
        return [low, low + (high - low) / math.pi, high]
