"""Which rows become samples: splits by fractions, and sampled negatives."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtrec_ray.data.columns import fixed_list, hash_ints, matrix
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.split import SPLITS

# Row numbers of sampled negatives start here: FIRST_NEGATIVE + row of the positive * k + 0..k-1.
FIRST_NEGATIVE = 2**48


def order_key(table: pa.Table, seed: int) -> NDArray[np.uint64]:
    """Returns a fixed pseudo-random order of rows."""
    return hash_ints(table.column("row").to_numpy(), seed)


def source_rows(number: NDArray[np.int64], scenario: Scenario) -> NDArray[np.int64]:
    """Returns i64[N]: the log's row that each sample (or a negative's positive) comes from."""
    if scenario.negatives is None:
        return number
    source = (number - FIRST_NEGATIVE) // scenario.negatives.per_positive
    return np.where(number >= FIRST_NEGATIVE, source, number)


def split_by_fractions(table: pa.Table, scenario: Scenario, seed: int) -> pa.Table:
    """Returns the rows of a partition of users in the log's order, with splits by fractions.

    A row's split is by its place among its user's rows in time (without time by a hash). A user's
    rows with the same time all get the split of the earliest.
    """
    assert scenario.split.fractions
    table = table.sort_by("row")  # a shuffle's order is not reproducible
    user, time = table.column("user").to_numpy(), table.column("time").to_numpy()
    timed = scenario.events.time is not None
    tie = np.zeros(len(user), np.uint64) if timed else order_key(table, seed)
    order = np.lexsort([tie, time, user])
    cuts = np.cumsum(scenario.split.fractions)[:2] - 1e-9
    split = np.empty(len(order), np.int8)
    shares = _shares_before(user[order], time[order] if timed else None)
    split[order] = np.searchsorted(cuts, shares, side="right")
    return table.set_column(table.column_names.index("split"), "split", pa.array(split))


def _shares_before(user: NDArray[np.int64], time: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Returns f64[N]: the share of the user's rows before each row, or before those of its time.

    Rows are sorted by user, then time.
    """
    number = np.arange(len(user))
    new_user = np.concatenate([[True], user[1:] != user[:-1]])
    start = np.maximum.accumulate(np.where(new_user, number, 0))
    size = np.diff(np.append(np.flatnonzero(new_user), len(user)))[np.cumsum(new_user) - 1]
    place = number - start
    if time is not None:
        new = new_user | np.concatenate([[True], np.diff(time) != 0])
        place = place[np.maximum.accumulate(np.where(new, number, 0))]
    return place / size


def add_negatives(
    table: pa.Table,
    scenario: Scenario,
    weights: NDArray[np.float64],
    published: NDArray[np.int64],
    seed: int,
) -> pa.Table:
    """Returns the rows of a partition of users, and negatives of each positive by weight.

    Left out are items that the user has a row with in the positive's split or an earlier one, and
    those not yet published by then. A later split is the future, which must not shape a sample.
    """
    assert scenario.negatives
    table = table.sort_by("row")  # a shuffle's order is not reproducible, the draws must be
    of, each = list(scenario.tasks).index(scenario.negatives.of), scenario.negatives.per_positive
    row = table.column("row").to_numpy()
    positive = np.flatnonzero(matrix(table.column("labels"))[:, of] == 1)
    source = np.repeat(positive, each)
    rng = np.random.default_rng([seed, int(row.min())])
    item = rng.choice(len(weights), len(source), p=weights / weights.sum()).astype(np.int32)
    number = row[source] * each + np.arange(len(source)) % each + FIRST_NEGATIVE
    fresh = ~_already_met(table, source, item)
    if scenario.events.time is not None:
        fresh &= published[item] <= table.column("time").to_numpy()[source]
    drawn = _negative_rows(table, source[fresh], item[fresh], number[fresh], of)
    return pa.concat_tables([table, drawn])


def _already_met(
    table: pa.Table, source: NDArray[np.int64], item: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Returns bool[m]: whether row `source`'s user has a row with `item` up to that row's split."""
    user, split = table.column("user").to_numpy(), table.column("split").to_numpy()
    pairs = np.stack([user, table.column("item").to_numpy().astype(np.int64)], 1)
    drawn = np.stack([user[source], item.astype(np.int64)], 1)
    met = np.zeros(len(source), bool)
    for code in range(len(SPLITS)):
        asking = split[source] == code
        met[asking] = _pairs_in(drawn[asking], np.unique(pairs[split <= code], axis=0))
    return met


def _negative_rows(
    table: pa.Table,
    source: NDArray[np.int64],
    item: NDArray[np.int32],
    number: NDArray[np.int64],
    of: int,
) -> pa.Table:
    """Returns copies of rows with another item and row number, labelled 0 for one task alone."""
    rows = table.take(pa.array(source))
    labels = np.full_like(matrix(rows.column("labels")), np.nan)
    labels[:, of] = 0
    values = {"row": number, "item": item, "sampled": np.ones(len(source), bool)}
    for name, value in values.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(value))
    return rows.set_column(rows.column_names.index("labels"), "labels", fixed_list(labels))


def _pairs_in(pairs: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns bool[m]: which of the pairs [m, 2] are among the known ones [k, 2]."""
    both, inverse = np.unique(np.concatenate([known, pairs]), axis=0, return_inverse=True)
    seen = np.zeros(len(both), bool)
    seen[inverse[: len(known)]] = True
    return seen[inverse[len(known) :]]


def negative_weights(scenario: Scenario, train_rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns f64[n], each item's weight as a negative, from its training rows i64[n]."""
    if scenario.negatives and scenario.negatives.source == "popularity":
        return train_rows.astype(np.float64)
    return np.ones(len(train_rows))
