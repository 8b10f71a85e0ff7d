"""Ranges of searched fields, as they stand in the project file: `loguniform(1e-4, 1e-2)`."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

Kind = Literal["uniform", "loguniform", "randint", "choice", "grid"]


KINDS: dict[str, Kind] = {
    "uniform": "uniform",
    "loguniform": "loguniform",
    "randint": "randint",
    "choice": "choice",
    "grid": "grid",
}


MOST_OPTIONS = 256


ALLOWED = (
    "allowed: uniform(low, high), loguniform(low, high), randint(low, high), choice(a, b, ...) or "
    "grid(a, b, ...)"
)


@dataclass(frozen=True)
class Range:
    """What a searched field may be: between `low` and `high`, both included, or one of `values`.

    `grid` is `choice` to an algorithm other than grid. `values` are JSON texts (they hash).
    """

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    values: tuple[str, ...] = ()

    @property
    def options(self) -> list[Any]:
        """Values that show what is possible: all, or of many and of numbers ends and some between.

        Of uniform and loguniform one that is no whole number is among them.
        """
        if self.values:
            return [json.loads(v) for v in self.values]
        if self.kind == "randint":
            low, high = int(self.low), int(self.high)
            return [*range(low, high, max((high - low) // MOST_OPTIONS, 1)), high]
        return [self.low, self.low + (self.high - self.low) / math.pi, self.high]


def parse_range(text: str) -> Range:
    """The range that a text says.

    Raises:
        ValueError: what is wrong with it and what is allowed.
    """
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text, re.DOTALL)
    kind = KINDS.get(match[1]) if match else None
    if match is None or kind is None:
        raise ValueError(ALLOWED)
    values = [as_number(v) for v in read_list(match[2])]
    if kind in ("choice", "grid"):
        return choice_of(kind, values)
    if len(values) != 2 or not all(isinstance(v, int | float) for v in values):
        raise ValueError(f"allowed: {kind}(low, high) of two numbers")
    low, high = values
    if low >= high:
        raise ValueError(f"an empty range; allowed: {kind}(low, high) with low < high")
    if kind == "loguniform" and low <= 0:
        raise ValueError("allowed: loguniform(low, high) with low above 0")
    if kind == "randint" and not all(float(v).is_integer() for v in values):
        raise ValueError("allowed: randint(low, high) of two whole numbers")
    return Range(kind, float(low), float(high))


def choice_of(kind: Kind, values: list[Any]) -> Range:
    """The range of some values."""
    texts = tuple(json.dumps(v) for v in values)
    if not texts or len(set(texts)) < len(texts):
        raise ValueError(f"an empty range; allowed: {kind}(a, b, ...) of different values")
    return Range(kind, values=texts)


def read_list(text: str) -> list[Any]:
    """The values between the brackets, read as YAML."""
    try:
        return yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise ValueError(ALLOWED) from None


def as_number(value: Any) -> Any:
    """The number of a text such as `1e-4`, which is none in YAML; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def check_range(value: object) -> object:
    """The text itself, or that of a list of values, refused where it is no range."""
    if isinstance(value, list):
        value = f"choice({', '.join(json.dumps(v) for v in value)})"
    if not isinstance(value, str):
        raise ValueError(ALLOWED)
    parse_range(value)
    return value


def rejoin(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with ranges in one piece.

    In YAML's `{a: uniform(1, 2)}` the comma parts entries: `a: uniform(1` and `2): null`.
    """
    found: dict[str, Any] = {}
    last = None
    for key, value in tree.items():
        before = found.get(last) if last is not None else None
        if value is None and isinstance(before, str) and before.count("(") > before.count(")"):
            found[str(last)] = f"{before}, {key}"
        else:
            found[key], last = value, key
    return found
