"""What fields of items, events and users that name columns have in common."""

import math
import re
import string
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from mtrec_ray.project.base import shorten


def template_columns(template: str) -> tuple[str, ...]:
    """Returns columns named in braces in a text template, each once.

    Raises:
        ValueError: braces that do not match, hold no plain column name, or none at all.
    """
    allowed = "allowed: column names in braces, such as {title}, and {{ or }} for a brace itself"
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{error}; {allowed}") from None
    if not parts:
        raise ValueError(f"no column name in braces; {allowed}")
    for _, name, form, conversion in parts:
        plain = (
            re.fullmatch(r"[^\s.[\]]([^.[\]]*[^\s.[\]])?", name or "") and not str(name).isdigit()
        )
        if form or conversion or not plain:
            tail = (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(f"{{{name}{tail}}} is no column name; {allowed}")
    return tuple(dict.fromkeys(str(name) for _, name, _, _ in parts))


def check_template(template: str) -> str:
    """Returns the text template itself, refused where it names no columns."""
    template_columns(template)
    return template


def values_by_column(value: object) -> object:
    """Returns texts and numbers by column; one alone stands for a list of it."""
    if not isinstance(value, dict):
        return value
    lists = {k: v if isinstance(v, list | tuple) else (v,) for k, v in value.items()}
    for column, values in lists.items():
        if not all(
            isinstance(v, str | int) or (isinstance(v, float) and math.isfinite(v)) for v in values
        ):
            allowed = "allowed: texts and finite numbers, such as {stars: [-1, 0]}"
            raise ValueError(f"{column}: found {shorten(values)}; {allowed}")
    return lists


def check_separators(separators: dict[str, str]) -> dict[str, str]:
    """Returns separators by column, refused where one of them is empty."""
    for column, separator in separators.items():
        if not separator:
            raise ValueError(f"{column}: found ''; allowed: a separator, such as '|'")
    return separators


# Separators of texts that hold several values, by column.
Separators = Annotated[dict[str, str], AfterValidator(check_separators)]


def is_empty(value: Collection[object]) -> bool:
    """Returns whether a field says nothing: what was made before there was such a field stays."""
    return not value


# Values that mean that nothing is known, by column.
Missing = Annotated[dict[str, tuple[str | int | float, ...]], BeforeValidator(values_by_column)]


def twice_named(
    categorical: Collection[str], lists: Collection[str], separators: Collection[str]
) -> Iterator[str]:
    """Yields a line for each column of one or of several values that another field names, too."""
    for column in sorted({*categorical} & {*lists, *separators} | {*lists} & {*separators}):
        yield f"lists: found {column!r} twice; allowed: in one of categorical, lists, separators"


def shared_vectors(
    vectors: Collection[str], others: Mapping[str, Collection[str]]
) -> Iterator[str]:
    """Yields a line for each column of vectors that another field, of `others`, names, too."""
    for column in vectors:
        fields = [field for field, columns in others.items() if column in columns]
        if fields:
            also = " and ".join(fields)
            yield f"vectors: found {column!r}, which {also} names, too; allowed: in one of them"
