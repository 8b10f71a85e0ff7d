"""The pass over a column with several values: a row for each of a row's values.

Rows are narrow there: what statistics need, and the number of the value. They go to the partitions
by value, and from there with their statistics to those by user, where they are joined to the rows
of the log by the number of the row.

Letters: N rows, m values of all of them, F columns of a value's statistics.
"""

import numpy as np
import pyarrow as pa

from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.catalogue import Ragged
from mtrec_ray.data.columns import fixed_list, matrix
from mtrec_ray.data.preparing.features import (
    FeatureSpec,
    add_statistics,
    category_statistics,
    narrow,
)
from mtrec_ray.data.preparing.hot_keys import HotKey
from mtrec_ray.data.preparing.pooling import pooled

VALUE = "value"


def exploded(table: pa.Table, values: Ragged) -> pa.Table:
    """Returns the narrow rows [m] of a table, in its order, with the number of their value."""
    own = values.take(table.column("item").to_numpy())
    return narrow(table).take(pa.array(own.rows)).append_column(VALUE, pa.array(own.codes))


def value_features(
    table: pa.Table, spec: FeatureSpec, hot: HotKey | None = None
) -> tuple[pa.Table, pa.Table]:
    """Returns the statistics of narrow rows' values, and those of the values at the end.

    `hot`: the value of all rows, where it has others elsewhere.
    """
    key = table.column(VALUE).to_numpy().astype(np.int64)
    values, first, state = category_statistics(table, key, spec, hot)
    out = table.select(["row", "user", VALUE]).append_column("statistics", fixed_list(values))
    return out, pa.table({"category": key[first], "numeric": fixed_list(state)})


def add_pooled(table: pa.Table, of_values: pa.Table, spec: FeatureSpec, column: str) -> pa.Table:
    """Returns rows with the pooled statistics of their values, which `of_values` [m] holds."""
    group = f"values.{column}"
    row = table.column("row").to_numpy()
    by_row = np.argsort(row)
    if not of_values.num_rows:  # and perhaps no statistics: no task has had a row
        places = spec.columns.places[group]
        nothing = np.full((len(row), places.stop - places.start), np.nan, np.float32)
        return add_statistics(table, group, nothing)
    place = np.searchsorted(row, of_values.column("row").to_numpy(), sorter=by_row)
    order = np.lexsort([of_values.column(VALUE).to_numpy(), place])
    offsets = np.searchsorted(place[order], np.arange(len(row) + 1))
    statistics: Float32s = matrix(of_values.column("statistics"))[order]
    found = np.empty((len(row), statistics.shape[1]), np.float32)
    found[by_row] = pooled(statistics, offsets, spec.timed)
    return add_statistics(table, group, found)
