"""The mark of tests that take minutes: they run where MTREC_LONG is set."""

import os

import pytest

takes_minutes = pytest.mark.skipif(
    not os.environ.get("MTREC_LONG"), reason="takes minutes: set MTREC_LONG=1"
)
