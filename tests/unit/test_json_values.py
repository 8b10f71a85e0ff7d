"""Values of requests, in the types of a file's columns."""

from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from mtrec_ray.serving.json_values import converts, read_value
from mtrec_ray.stages.serving.views import plain

READ = [
    ("a", pa.string(), "a"), (3, pa.int8(), 3), (3, pa.float32(), 3.0), (True, pa.bool_(), True),
    (None, pa.int64(), None), (["a"], pa.list_(pa.string()), ["a"]), ("a", pa.binary(), b"a"),
    ("a", pa.dictionary(pa.int32(), pa.string()), "a"), ([], pa.list_(pa.int64()), []),
    ("2025-03-01", pa.date32(), date(2025, 3, 1)), ("5.25", pa.decimal128(5, 2), Decimal("5.25")),
    ("2025-03-01 12:00:00", pa.timestamp("ms"), datetime(2025, 3, 1, 12)),
    (5, pa.decimal128(5, 2), 5),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind", "wanted"), READ)
def test_values_are_read_and_told(value, kind, wanted):
    """As the file has them; told as JSON and read again, they are the same."""
    assert read_value(value, kind).to_pylist() == [wanted]
    assert read_value(plain(wanted), kind).to_pylist() == [wanted]


WRONG = [
    ("a", pa.int64()), (3, pa.string()), (True, pa.int64()), (1, pa.bool_()), (2**80, pa.int64()),
    (300, pa.int8()), ("tea", pa.list_(pa.string())), (["a"], pa.string()), ({"a": 1}, pa.string()),
    (["a", 1], pa.list_(pa.string())), ("soon", pa.date32()), ("much", pa.decimal128(5, 2)),
    ("\ud800", pa.string()), (float("nan"), pa.int64()), (True, pa.decimal128(5, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), WRONG)
def test_other_values_do_not_convert(value, kind):
    """Of another kind, too large, or nested."""
    assert not converts(value, kind)
