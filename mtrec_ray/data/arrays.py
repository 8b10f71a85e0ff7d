"""Types of numpy arrays, and a search in parts of one."""

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


Ints = NDArray[np.int64]


Int32s = NDArray[np.int32]


Floats = NDArray[np.float64]


Float32s = NDArray[np.float32]


def first_not_before(time: Ints, start: Ints, stop: Ints, moment: Ints) -> Ints:
    """Returns i64[B]: the first of the rows start..stop, sorted by time, at or after a moment."""
    low, high = start.copy(), stop.copy()
    while (low < high).any():
        middle = (low + high) // 2
        open_, before = low < high, time[np.minimum(middle, len(time) - 1)] < moment
        low, high = np.where(open_ & before, middle + 1, low), np.where(before, high, middle)
        high = np.maximum(high, low)
    return low
