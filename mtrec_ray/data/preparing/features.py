"""What each pass adds to the rows of its partition: statistics, and histories.

Each function takes all canonical rows (`events.py`) of some users, items or categories, or some
rows of a hot one and what is known of all of them (`hot_keys.py`). Their columns `statistics.GROUP`
carry what earlier passes computed.

Letters: N rows, K distinct keys, T tasks, H history length, F features, C categorical columns.
"""

import functools
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.catalogue import NO_TIME, Ragged
from mtrec_ray.data.columns import fixed_list, hash_ints, matrix
from mtrec_ray.data.outcomes import levels, outcome_parts
from mtrec_ray.data.preparing import statistics
from mtrec_ray.data.preparing.classes import with_gains
from mtrec_ray.data.preparing.event_values import EventValues, all_codes
from mtrec_ray.data.preparing.events import TRAIN
from mtrec_ray.data.preparing.hot_keys import HotKey, PartRows, PartTotals, part_of
from mtrec_ray.data.preparing.pooling import pooled
from mtrec_ray.data.preparing.samples import order_key, source_rows
from mtrec_ray.data.preparing.statistics import (
    NO_WINDOWS,
    WINDOWS_MS,
    Histories,
    KeyedRows,
    Outcomes,
    Windows,
)
from mtrec_ray.data.shards import OUTCOME, SEVERAL, WEIGHT
from mtrec_ray.project.scenario import Scenario

PUBLISHED_AGE = "item.log_seconds_since_published"


@dataclass(frozen=True)
class NumericColumns:
    """The numeric columns of a prepared row.

    Attributes:
        places: the columns of each group, in their order: `item`, `category.COLUMN`,
            `values.COLUMN` (these are known before the last pass), `user`, `user_category.COLUMN`,
            `user_values.COLUMN`, `calendar`, `published`, `event`.
        names: of all columns.
        num_of_items: how many columns are of the item and its values; they come first.
    """

    places: dict[str, slice]
    names: tuple[str, ...]
    num_of_items: int

    @classmethod
    def of(cls, scenario: Scenario) -> "NumericColumns":
        """Returns the columns of a scenario's rows."""
        of_items = _statistics_names(scenario, "item", "")
        groups = of_items | _statistics_names(scenario, "user", "user_")
        if scenario.events.time is not None:
            groups["calendar"] = statistics.CALENDAR_NAMES
            groups["published"] = [PUBLISHED_AGE] if scenario.items.published else []
        groups["event"] = [f"event.{c}" for c in scenario.events.numeric]
        ends = list(accumulate(len(names) for names in groups.values()))
        places = {
            group: slice(end - len(names), end)
            for (group, names), end in zip(groups.items(), ends, strict=True)
        }
        names = tuple(name for group in groups.values() for name in group)
        return cls(places, names, sum(map(len, of_items.values())))


def _statistics_names(scenario: Scenario, key: str, prefix: str) -> dict[str, list[str]]:
    """Returns names of the statistics of a key, and of it with each category or value, by group."""
    tasks, timed = tuple(scenario.tasks), scenario.events.time is not None
    groups: dict[str, tuple[str, Windows]] = {key: (key, WINDOWS_MS)}
    items = scenario.items
    for kind in (
        *(f"{prefix}category.{column}" for column in items.statistics_columns),
        *(f"{prefix}values.{column}" for column in items.pooled_columns),
    ):
        groups[kind] = (kind, NO_WINDOWS)
    return {
        group: statistics.feature_names(kind, tasks, timed, windows)
        for group, (kind, windows) in groups.items()
    }


def numeric_names(scenario: Scenario) -> list[str]:
    """Returns names of the numeric columns of a prepared row."""
    return list(NumericColumns.of(scenario).names)


@dataclass(frozen=True)
class FeatureSpec:
    """What the partition functions need to know of a scenario, with its fitted numbers.

    Attributes:
        priors: mean of each task's training labels.
        end_ms: the moment of the states at the end, just after the last row.
        published: i64[n], ms, when each item was published.
        users: sorted hashes of the users that training knows.
        event_vocabularies: sorted hashes of the values that training has, by categorical column.
        event_values: of the log's columns with several values.
        categories: of the catalogue columns whose values have statistics: i64[n], a number for the
            value of each item, -1 where it has none.
        level_bounds: of each task, below which a label is low, and above which it is high.
        values: of the catalogue columns with several values that have statistics: the numbers of
            each item's values.
    """

    scenario: Scenario
    priors: tuple[float, ...]
    end_ms: int
    published: NDArray[np.int64]
    users: NDArray[np.uint64]
    event_vocabularies: tuple[NDArray[np.uint64], ...]
    seed: int
    categories: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    event_values: tuple[EventValues, ...] = ()
    level_bounds: tuple[tuple[float, float], ...] = ()
    values: dict[str, Ragged] = field(default_factory=dict)

    @functools.cached_property
    def columns(self) -> NumericColumns:
        """Where the numeric columns of a row stand."""
        return NumericColumns.of(self.scenario)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in the order of the label columns."""
        return tuple(self.scenario.tasks)

    @property
    def timed(self) -> bool:
        """Whether rows have a time."""
        return self.scenario.events.time is not None

    @property
    def delays_ms(self) -> list[int]:
        """How long after its row each task's label is known: after its parent's at the earliest."""
        return [1000 * self.scenario.label_delay(task) for task in self.tasks]


def folds(table: pa.Table, spec: FeatureSpec) -> NDArray[np.int64] | None:
    """Returns the fold of each training row, -1 for others; None where time exists.

    A sampled negative is in the fold of its positive: in one of its own it would count that
    positive, and the user's count alone would tell the two apart.
    """
    if spec.timed:
        return None
    number = source_rows(table.column("row").to_numpy(), spec.scenario)
    fold = (hash_ints(number, spec.seed + 1) % statistics.NUM_FOLDS).astype(np.int64)
    return np.where(table.column("split").to_numpy() == TRAIN, fold, -1)


def counting(table: pa.Table, spec: FeatureSpec) -> NDArray[np.bool_]:
    """Returns which rows may enter statistics: no negatives; without time training rows only."""
    logged = ~table.column("sampled").to_numpy(zero_copy_only=False)
    if spec.timed and spec.scenario.statistics == "live":
        return logged
    return logged & (table.column("split").to_numpy() == TRAIN)


def label_matrix(table: pa.Table, spec: FeatureSpec) -> Float32s:
    """Returns f32[N, T]: the labels, NaN where unknown, without the padding."""
    return np.ascontiguousarray(matrix(table.column("labels"))[:, : len(spec.tasks)])


def with_end_rows(
    table: pa.Table, key: NDArray[np.int64], spec: FeatureSpec
) -> tuple[KeyedRows, NDArray[np.int64]]:
    """Returns the rows, followed by one row for each key that asks at the end of the data.

    Returns:
        N + K rows, and i64[K], the index in the table of the first row of each key.
    """
    _, first, code = np.unique(key, return_index=True, return_inverse=True)
    num_keys = len(first)
    fold = folds(table, spec)
    labels = with_gains(label_matrix(table, spec), spec.scenario)
    rows = KeyedRows(
        key=np.concatenate([code, np.arange(num_keys)]),
        time=np.concatenate([table.column("time").to_numpy(), np.full(num_keys, spec.end_ms)]),
        labels=np.concatenate([labels, np.full((num_keys, labels.shape[1]), np.nan, np.float32)]),
        counts=np.concatenate([counting(table, spec), np.zeros(num_keys, bool)]),
        fold=None if fold is None else np.concatenate([fold, np.full(num_keys, -1)]),
    )
    return rows, first


def statistics_of(
    rows: KeyedRows, spec: FeatureSpec, windows: Windows = WINDOWS_MS, hot: HotKey | None = None
) -> Float32s:
    """Returns f32[N + K, F]: statistics of rows as `with_end_rows` lists them.

    `hot`: the key of all rows, where it has others elsewhere.
    """
    compute = hot.statistics if hot else statistics.statistics
    return compute(rows, spec.delays_ms, spec.priors, windows, np.float32)


def hot_key_part(table: pa.Table, spec: FeatureSpec) -> tuple[PartTotals, PartRows]:
    """Returns what some rows of a hot key add to it, and what its other rows look up in them."""
    rows, _ = with_end_rows(table, np.zeros(table.num_rows, np.int64), spec)
    return part_of(rows)


def without_padding(table: pa.Table, scenario: Scenario) -> pa.Table:
    """Returns canonical rows whose list columns are no wider than this scenario needs."""
    widths = {
        "labels": len(scenario.tasks),
        "event_numeric": len(scenario.events.numeric),
        "event_categorical": len(scenario.events.categorical),
    }
    for name, width in widths.items():
        values = np.ascontiguousarray(matrix(table.column(name))[:, : max(width, 1)])
        table = table.set_column(table.column_names.index(name), name, fixed_list(values))
    return table


def narrow(table: pa.Table) -> pa.Table:
    """Returns what statistics need of canonical rows."""
    return table.select(["row", "user", "time", "split", "sampled", "labels"])


def add_statistics(table: pa.Table, group: str, values: Float32s) -> pa.Table:
    """Returns the rows with a group of statistics f32[N, F] as a further column."""
    return table.append_column(f"statistics.{group}", fixed_list(values))


def statistics_of_items(table: pa.Table, spec: FeatureSpec) -> list[Float32s]:
    """Returns f32[N, F] of each group that earlier passes have added, as a row has them."""
    groups = [g for g in spec.columns.places if f"statistics.{g}" in table.column_names]
    return [matrix(table.column(f"statistics.{group}")) for group in groups]


def item_features(
    table: pa.Table, spec: FeatureSpec, hot: HotKey | None = None
) -> tuple[pa.Table, pa.Table]:
    """Returns the rows with item statistics, and the state of each item at the end of the data."""
    rows, first = with_end_rows(table, table.column("item").to_numpy().astype(np.int64), spec)
    values = statistics_of(rows, spec, hot=hot)
    num = table.num_rows
    out = add_statistics(table, "item", values[:num])
    items = table.column("item").take(pa.array(first))
    return out, pa.table({"item": items, "numeric": fixed_list(values[num:])})


def category_features(
    table: pa.Table, spec: FeatureSpec, column: str, hot: HotKey | None = None
) -> tuple[pa.Table, pa.Table]:
    """Returns the rows with the statistics of their category, and its state at the end of the data.

    An item without a value has no statistics (NaN).
    """
    code = spec.categories[column][table.column("item").to_numpy()]
    values, first, state = category_statistics(table, code, spec, hot)
    out = add_statistics(table, f"category.{column}", values)
    return out, pa.table({"category": code[first], "numeric": fixed_list(state)})


def category_statistics(
    table: pa.Table, key: NDArray[np.int64], spec: FeatureSpec, hot: HotKey | None = None
) -> tuple[Float32s, NDArray[np.int64], Float32s]:
    """Returns statistics f32[N, F] by a key that may be -1 (then NaN), without windows.

    Returns:
        Statistics of the rows, the index of the first row of each key (-1 left out), and the
        keys' statistics at the end of the data.
    """
    rows, first = with_end_rows(table, key, spec)
    values = statistics_of(rows, spec, NO_WINDOWS, hot)
    num = len(key)
    has_key = key[first] >= 0
    values[:num][key < 0] = np.nan
    return values[:num], first[has_key], values[num:][has_key]


def history_rows(rows: KeyedRows, spec: FeatureSpec) -> tuple[NDArray[np.bool_] | None, int]:
    """Returns which rows histories list (None: all), and after how many ms that is known."""
    tasks = [spec.tasks.index(task) for task in spec.scenario.history.tasks]
    if not tasks:
        return None, 0
    return (rows.labels[:, tasks] == 1).any(1), max(spec.delays_ms[task] for task in tasks)


@dataclass(frozen=True)
class UserColumns:
    """What the users of some rows add to them, and have at the end: N rows, K users.

    Attributes:
        first: i64[K], a row of each user.
        user: i32[N], vocabulary numbers, 0 for unknown ones.
        statistics: f32[N + K, F], those of the user before each row and at the end.
        past: histories [N + K, H], in the same order.
        by_value: f32[N, F] of each column of items whose values have statistics.
        pairs: the end states of users and values, by kind.
    """

    first: NDArray[np.int64]
    user: NDArray[np.int32]
    statistics: Float32s
    past: Histories
    by_value: list[Float32s]
    pairs: dict[str, pa.Table]

    @classmethod
    def of(cls, table: pa.Table, spec: FeatureSpec) -> "UserColumns":
        """Returns the columns of rows in the order of `order_key`."""
        rows, first = with_end_rows(table, table.column("user").to_numpy(), spec)
        user = vocabulary_numbers(table.column("user").to_numpy(), spec.users)
        by_value, pairs = user_categories(table, user, rows.key[: table.num_rows], spec)
        past = histories_of(rows, table, spec)
        return cls(first, user, statistics_of(rows, spec), past, by_value, pairs)

    @property
    def histories(self) -> dict[str, Any]:
        """The columns of histories by their name, [N + K, H]."""
        parts = {"history": self.past.items, "history_age": self.past.ages}
        return parts if self.past.outcomes is None else parts | {OUTCOME: self.past.outcomes}

    def states(self, table: pa.Table) -> dict[str, pa.Table]:
        """Returns the end states by kind."""
        num = table.num_rows
        users = pa.table(
            {
                "user_id": table.column("user_id").take(pa.array(self.first)),
                "user": self.user[self.first],
                **{name: fixed_list(part[num:]) for name, part in self.histories.items()},
                "numeric": fixed_list(self.statistics[num:]),
            }
        )
        return self.pairs | {"users": users}


def in_order(table: pa.Table, spec: FeatureSpec) -> pa.Table:
    """Returns the rows in their fixed pseudo-random order."""
    return table.take(pa.array(np.argsort(order_key(table, spec.seed), kind="stable")))


def user_states(table: pa.Table, spec: FeatureSpec) -> dict[str, pa.Table]:
    """Returns the end states of all users of a table by kind, as `user_features` does."""
    table = in_order(table, spec)
    return UserColumns.of(table, spec).states(table)


def user_features(table: pa.Table, spec: FeatureSpec) -> tuple[pa.Table, dict[str, pa.Table]]:
    """Returns the finished rows of a partition of users, and their end states by kind.

    A row: row, user (vocabulary number, 0 unknown), person (hash of the user), item, time, split,
    history, history_age, numeric, categorical, labels; its weight, what came of the items of its
    history, and codes of columns with several values, where the project wants them. States:
    `users`, and `user_category.COLUMN` or `user_values.COLUMN` of each user and value.
    """
    table = in_order(table, spec)
    own, num = UserColumns.of(table, spec), table.num_rows
    others: dict[str, Any] = {}
    if WEIGHT in table.column_names:
        others[WEIGHT] = table.column(WEIGHT)
    if spec.event_values:
        others[SEVERAL] = fixed_list(all_codes(table, spec.event_values))
    numbers = row_numbers(table, [own.statistics[:num], *own.by_value], spec)
    finished = pa.table(
        others
        | {
            "row": table.column("row"),
            "user": own.user,
            "person": table.column("user"),
            **{name: table.column(name) for name in ("item", "time", "split")},
            **{name: fixed_list(part[:num]) for name, part in own.histories.items()},
            "numeric": fixed_list(numbers),
            "categorical": fixed_list(event_categories(table, spec)),
            "labels": fixed_list(label_matrix(table, spec)),
        }
    )
    return finished, own.states(table)


def histories_of(rows: KeyedRows, table: pa.Table, spec: FeatureSpec) -> Histories:
    """Returns histories [N + K, H] before each row and at the end."""
    listed, delay = history_rows(rows, spec)
    at_the_end = np.full(len(rows.key) - table.num_rows, -1, np.int32)
    item = np.concatenate([table.column("item").to_numpy(), at_the_end])
    outcomes = None
    if spec.scenario.history.outcomes:
        parts = outcome_parts(levels(rows.labels, spec.level_bounds))
        outcomes = Outcomes(parts, spec.delays_ms)
    return statistics.histories(rows, item, spec.scenario.history.last, delay, listed, outcomes)


def user_categories(
    table: pa.Table, user: NDArray[np.int32], number: NDArray[np.int64], spec: FeatureSpec
) -> tuple[list[Float32s], dict[str, pa.Table]]:
    """Returns statistics of users' rows with each row's values, and the states at the end.

    `number` i64[N] tells the users of the partition apart; `user` are those of the vocabulary.
    """
    parts, states = [], {}
    for column, codes in spec.categories.items():
        code = codes[table.column("item").to_numpy()]
        key = np.where(code >= 0, number * (int(codes.max(initial=0)) + 1) + code, -1)
        values, first, state = category_statistics(table, key, spec)
        parts.append(values)
        states[f"user_category.{column}"] = pair_states(table, user, first, code[first], state)
    for column, values_of_items in spec.values.items():
        own = values_of_items.take(table.column("item").to_numpy())
        key = number[own.rows] * values_of_items.size + own.codes
        rows = narrow(table).take(pa.array(own.rows))
        values, first, state = category_statistics(rows, key, spec)
        parts.append(pooled(values, own.offsets, spec.timed))
        states[f"user_values.{column}"] = pair_states(
            table, user, own.rows[first], own.codes[first].astype(np.int64), state
        )
    return parts, states


def pair_states(
    table: pa.Table,
    user: NDArray[np.int32],
    first: NDArray[np.int64],
    value: NDArray[np.int64],
    state: Float32s,
) -> pa.Table:
    """Returns the end states f32[K, F] of K pairs of a user and a value.

    `first` i64[K] is a row of each pair's user.
    """
    return pa.table(
        {
            "user_id": table.column("user_id").take(pa.array(first)),
            "user": user[first],
            "category": value,
            "numeric": fixed_list(state),
        }
    )


def vocabulary_numbers(
    hashes: NDArray[np.int64], vocabulary: NDArray[np.uint64]
) -> NDArray[np.int32]:
    """Returns i32[N], the places of values in a sorted vocabulary from 1 on; 0 for unknown ones."""
    wanted = hashes.view(np.uint64)
    place = np.minimum(np.searchsorted(vocabulary, wanted), max(len(vocabulary) - 1, 0))
    listed = vocabulary[place] == wanted if len(vocabulary) else np.zeros(len(wanted), bool)
    return np.where(listed, place + 1, 0).astype(np.int32)


def row_numbers(table: pa.Table, of_users: list[Float32s], spec: FeatureSpec) -> Float32s:
    """Returns f32[N, F]: the numeric columns of a row, as `NumericColumns` lists them."""
    parts: list[np.ndarray] = [*statistics_of_items(table, spec), *of_users]
    time = table.column("time").to_numpy()
    if spec.timed:
        parts.append(statistics.calendar(time))
        if spec.scenario.items.published:
            published = spec.published[table.column("item").to_numpy()]
            seconds = np.maximum(time - published, 0) / 1000
            parts.append(np.where(published == NO_TIME, np.nan, np.log1p(seconds))[:, None])
    num_numeric = len(spec.scenario.events.numeric)
    parts.append(matrix(table.column("event_numeric"))[:, :num_numeric])
    return np.concatenate(parts, 1, dtype=np.float32, casting="same_kind")


def event_categories(table: pa.Table, spec: FeatureSpec) -> NDArray[np.int32]:
    """Returns i32[N, C]: codes of the log's categorical columns, 0 unknown."""
    hashes = matrix(table.column("event_categorical"))
    codes = [
        vocabulary_numbers(np.ascontiguousarray(hashes[:, i]), vocabulary)
        for i, vocabulary in enumerate(spec.event_vocabularies)
    ]
    return np.stack(codes, 1) if codes else np.zeros((table.num_rows, 0), np.int32)
