"""Values of JSON as those of a column of a file: in the column's own type."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.data.columns import is_list, plain_type

WRONG = (
    pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, ValueError,
)  # fmt: skip


def read_value(value: Any, kind: pa.DataType) -> pa.Array:
    """Returns a value as a column of one row, in a type; times and decimals are read from text.

    Raises:
        ArrowException, OverflowError, ValueError: it has no such value.
    """
    kind = plain_type(kind)
    of_kind = isinstance(value, bool) == pa.types.is_boolean(kind)
    if isinstance(value, list) != is_list(kind):  # Arrow takes a text for a list of its letters
        of_kind = False
    if value is not None and not of_kind:
        raise pa.ArrowTypeError(f"{value} is no {kind}")
    if isinstance(value, str | int | float) and pa.types.is_decimal(kind):
        return pc.cast(pa.array([str(value)]), kind)
    if isinstance(value, str) and pa.types.is_temporal(kind):
        return pc.cast(pa.array([value]), kind)
    return pa.array([value], kind)


def converts(value: Any, kind: pa.DataType) -> bool:
    """Returns whether a value can stand in a column of a type."""
    try:
        read_value(value, kind)
    except WRONG:
        return False
    return True
