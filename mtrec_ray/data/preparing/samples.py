"""Which rows become samples: splits by fractions, and sampled negatives."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtrec_ray.data.columns import fixed_list, hash_ints, matrix
from mtrec_ray.project.scenario import Scenario

# Row numbers of sampled negatives start here: FIRST_NEGATIVE + row of the positive * k + 0..k-1.
FIRST_NEGATIVE = 2**48


def order_key(table: pa.Table, seed: int) -> NDArray[np.uint64]:
    """A fixed pseudo-random order of rows."""
    return hash_ints(table.column("row").to_numpy(), seed)


def source_rows(number: NDArray[np.int64], scenario: Scenario) -> NDArray[np.int64]:
    """i64[N]: row of the log that each sample comes from (a negative's is its positive's)."""
    if scenario.negatives is None:
        return number
    source = (number - FIRST_NEGATIVE) // scenario.negatives.per_positive
    return np.where(number >= FIRST_NEGATIVE, source, number)


def expand_users(
    table: pa.Table,
    scenario: Scenario,
    item_weights: NDArray[np.float64],
    published: NDArray[np.int64],
    seed: int,
) -> pa.Table:
    """Rows of a partition of users with their split by fractions and their sampled negatives."""
    table = table.sort_by("row")  # a shuffle's order is not reproducible, the draws below must be
    if scenario.split.fractions:
        table = table.set_column(
            table.column_names.index("split"), "split", pa.array(_fractions(table, scenario, seed))
        )
    if scenario.negatives is None:
        return table
    return pa.concat_tables([table, _negatives(table, scenario, item_weights, published, seed)])


def _fractions(table: pa.Table, scenario: Scenario, seed: int) -> NDArray[np.int8]:
    """Split of each row by its place among its user's rows in time (without time by a hash).

    Rows of a user with one time are never parted: all get the split of the earliest.
    """
    assert scenario.split.fractions
    user, time = table.column("user").to_numpy(), table.column("time").to_numpy()
    tie = order_key(table, seed) if scenario.events.time is None else np.zeros(len(user), np.uint64)
    order = np.lexsort([tie, time, user])
    sorted_user = user[order]
    new_user = np.concatenate([[True], sorted_user[1:] != sorted_user[:-1]])
    start = np.maximum.accumulate(np.where(new_user, np.arange(len(order)), 0))
    size = np.diff(np.append(np.flatnonzero(new_user), len(order)))[np.cumsum(new_user) - 1]
    place = np.arange(len(order)) - start
    if scenario.events.time is not None:
        new = new_user | np.concatenate([[True], np.diff(time[order]) != 0])
        place = place[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    share = place / size
    cuts = np.cumsum(scenario.split.fractions)[:2] - 1e-9
    split = np.empty(len(order), np.int8)
    split[order] = np.searchsorted(cuts, share, side="right")
    return split


def _negatives(
    table: pa.Table,
    scenario: Scenario,
    weights: NDArray[np.float64],
    published: NDArray[np.int64],
    seed: int,
) -> pa.Table:
    """Sampled negatives of each positive, drawn by weight.

    Items that the user has a row with, and those not yet published by then, are left out.
    """
    assert scenario.negatives
    of = list(scenario.tasks).index(scenario.negatives.of)
    labels = matrix(table.column("labels"))
    positive = np.flatnonzero(labels[:, of] == 1)
    each = scenario.negatives.per_positive
    rng = np.random.default_rng([seed, int(table.column("row").to_numpy().min())])
    source = np.repeat(positive, each)
    item = rng.choice(len(weights), len(source), p=weights / weights.sum()).astype(np.int32)
    user = table.column("user").to_numpy()[source]
    item_of = table.column("item").to_numpy().astype(np.int64)
    own = np.unique(np.stack([table.column("user").to_numpy(), item_of], 1), axis=0)
    fresh = ~_pairs_in(np.stack([user, item.astype(np.int64)], 1), own)
    if scenario.events.time is not None:
        fresh &= published[item] <= table.column("time").to_numpy()[source]
    number = (
        table.column("row").to_numpy()[source] * each
        + np.arange(len(source)) % each
        + FIRST_NEGATIVE
    )
    source, item, number = source[fresh], item[fresh], number[fresh]
    rows = table.take(pa.array(source))
    label = np.full((len(source), labels.shape[1]), np.nan, np.float32)
    label[:, of] = 0
    values = {"row": number, "item": item, "sampled": np.ones(len(source), bool)}
    for name, value in values.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(value))
    return rows.set_column(rows.column_names.index("labels"), "labels", fixed_list(label))


def _pairs_in(pairs: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    both, inverse = np.unique(np.concatenate([known, pairs]), axis=0, return_inverse=True)
    seen = np.zeros(len(both), bool)
    seen[inverse[: len(known)]] = True
    return seen[inverse[len(known) :]]


def needs_expansion(scenario: Scenario) -> bool:
    """Whether the log's rows are not yet the samples (fractions or sampled negatives)."""
    return scenario.split.fractions is not None or scenario.negatives is not None


def negative_weights(
    scenario: Scenario, item_rows: NDArray[np.int64], num_items: int
) -> NDArray[np.float64]:
    """f64[n]: how likely each catalogue row is drawn as a negative."""
    if scenario.negatives and scenario.negatives.source == "popularity":
        return item_rows.astype(np.float64)
    return np.ones(num_items)
