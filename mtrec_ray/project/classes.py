"""Classes of a multiclass task: values of a column in their order, and numbers that they have."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from mtrec_ray.project.assortment import Value
from mtrec_ray.project.base import shorten

Classes = tuple[Value, ...]

MOST_CLASSES = 100
LARGEST = 1e9  # of gains and weights: sums of them stay far from the largest number of 32 bits
BOOLEANS = {"true": 1.0, "false": 0.0}


def number_of(value: Value) -> float | None:
    """Returns the number that a column of numbers or booleans would read a value as, or None."""
    if not isinstance(value, str):
        return float(value)
    try:
        return BOOLEANS.get(value.lower()) if value.lower() in BOOLEANS else float(value)
    except ValueError:
        return None


def reads_alike(one: Value, other: Value) -> bool:
    """Returns whether a column may read two values as the same: 1 and 1.0, and the text 1."""
    if isinstance(one, str) and isinstance(other, str):
        return one == other
    return number_of(one) == number_of(other) is not None


def check_classes(classes: Classes) -> Classes:
    """Returns the classes, refused unless there are 2 to 100 and each is one value of a column."""
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"allowed: 2 to {MOST_CLASSES} values, in their order")
    for place, value in enumerate(classes):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("allowed: texts, finite numbers, true or false")
        if any(reads_alike(value, other) for other in classes[:place]):
            raise ValueError(f"{value!r} stands twice; allowed: each value once")
    return classes


def key_of(value: Value) -> str:
    """Returns a class as a key of JSON, which has texts alone: a dump reads back as it was."""
    return value if isinstance(value, str) else json.dumps(value)


def read_class_weights(value: object) -> object:
    """Returns numbers by class, whose keys are texts."""
    if not isinstance(value, dict):
        return value
    numbers: dict[str, object] = {}
    for name, number in value.items():
        key = name if not isinstance(name, bool | int | float) else key_of(name)
        if key in numbers:
            raise ValueError(f"found {key!r} twice; allowed: each class once")
        numbers[key] = number
    return numbers


def read_gains(value: object) -> object:
    """Returns numbers by class; a class alone stands for 1 of it and 0 of the others."""
    alone = isinstance(value, bool | int | float | str)
    return read_class_weights({value: 1.0} if alone else value)


Gain = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Gains = Annotated[dict[str, Gain], BeforeValidator(read_gains), Field(min_length=1)]
ClassWeight = Annotated[float, Field(gt=0, le=LARGEST)]
ClassWeights = Annotated[dict[str, ClassWeight], BeforeValidator(read_class_weights)]
ClassList = Annotated[Classes, AfterValidator(check_classes)]


def by_class(
    numbers: Mapping[str, float] | None, classes: Classes, default: Sequence[float]
) -> tuple[float, ...]:
    """Returns the number of each class, from numbers by value; `default` where there is none."""
    found = list(default)
    for value, number in (numbers or {}).items():
        for place, name in enumerate(classes):
            if reads_alike(value, name):
                found[place] = float(number)
    return tuple(found)


def own_gains(classes: Classes) -> list[float]:
    """Returns the numbers that classes are themselves, or else their places.

    The expectation of grades so is a grade (McRank, Li, Burges and Wu, NIPS 2007).
    """
    if any(isinstance(value, str) for value in classes):
        return [float(place) for place in range(len(classes))]
    return [float(value) for value in classes]


def check_keys(field: str, numbers: Mapping[str, float] | None, classes: Classes) -> Iterator[str]:
    """Yields a line for each key of numbers by class that is no class."""
    for value in numbers or {}:
        if not any(reads_alike(value, name) for name in classes):
            yield f"{field}: found {shorten(value)}; allowed: classes, {shorten(classes)}"
