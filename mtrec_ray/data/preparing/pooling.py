"""Past statistics of an item's several values as those of one key.

What is counted of rows with any of an item's values cannot be had from what is counted of each
value, because a row with two of them is in both. So of counts the pooled number is the largest,
which no value exceeds and the true number cannot be below. The time since the first row with any
of the values is exactly the longest, and that since the last one the shortest. A rate is the mean
of the values' rates: each says what rows with that value were like. An item with one value has
that value's statistics, and one without a value has none (NaN).

Letters: m values of n rows, F columns of a key's statistics without windows.
"""

import numpy as np

from mtrec_ray.data.arrays import Float32s, Ints

# Where `statistics.feature_names` lists the time since the last row.
SINCE_LAST = 2


def pooled(values: Float32s, offsets: Ints, timed: bool) -> Float32s:
    """Returns f32[n, F], the statistics of each row's values.

    Args:
        values: f32[m, F], those of one row after another.
        offsets: i64[n + 1], where those of each row start.
        timed: whether the statistics have times.
    """
    lengths = np.diff(offsets)
    found = np.full((len(lengths), values.shape[1]), np.nan, np.float32)
    some = np.flatnonzero(lengths)
    if not len(some):
        return found
    starts = offsets[some]
    most = np.fmax.reduceat(values, starts)
    if timed:
        most[:, SINCE_LAST] = np.fmin.reduceat(values[:, SINCE_LAST], starts)
    rates = slice(4 if timed else 2, None, 2)
    sums = np.add.reduceat(values[:, rates], starts, dtype=np.float64)
    most[:, rates] = sums / lengths[some][:, None]
    found[some] = most
    return found
