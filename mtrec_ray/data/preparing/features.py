"""What each pass adds to the rows of its partition: statistics, and histories.

Each function takes all canonical rows (`events.py`) of some users or some items, so that a
partition is the only thing that one process ever holds.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.columns import fixed_list, hash_ints, matrix
from mtrec_ray.data.preparing import statistics
from mtrec_ray.data.preparing.events import TRAIN
from mtrec_ray.data.preparing.samples import order_key, source_rows
from mtrec_ray.data.preparing.statistics import NO_WINDOWS, KeyedRows
from mtrec_ray.project.scenario import Scenario


@dataclass(frozen=True)
class FeatureSpec:
    """What the partition functions need to know of a scenario, with its fitted numbers.

    Attributes:
        categories: of the catalogue columns whose values have statistics: a number for the value
            of each item, -1 where it has none.
    """

    scenario: Scenario
    width: int
    priors: tuple[float, ...]
    end_ms: int
    published: NDArray[np.int64]
    users: NDArray[np.uint64]
    event_vocabularies: tuple[NDArray[np.uint64], ...]
    seed: int
    categories: dict[str, NDArray[np.int64]] = field(default_factory=dict)

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
        """Delay of each task's label."""
        return [1000 * t.delay for t in self.scenario.tasks.values()]


def carried_names(scenario: Scenario) -> list[str]:
    """Names of the statistics that rows carry into the last pass: of item and its categories."""
    tasks, timed = tuple(scenario.tasks), scenario.events.time is not None
    names = statistics.feature_names("item", tasks, timed)
    for column in scenario.items.counted:
        names += statistics.feature_names(f"category.{column}", tasks, timed, NO_WINDOWS)
    return names


def carried_start(scenario: Scenario, key: str) -> int:
    """Where the statistics of a key (`item`, `category.COLUMN`) start in `carried_names`."""
    return next(i for i, n in enumerate(carried_names(scenario)) if n == f"{key}.log_count")


def numeric_names(scenario: Scenario) -> list[str]:
    """Names of the numeric columns of a prepared row."""
    tasks, timed = tuple(scenario.tasks), scenario.events.time is not None
    names = carried_names(scenario)
    names += statistics.feature_names("user", tasks, timed)
    for column in scenario.items.counted:
        names += statistics.feature_names(f"user_category.{column}", tasks, timed, NO_WINDOWS)
    if timed:
        names += statistics.CALENDAR_NAMES
        if scenario.items.published:
            names.append("item.log_seconds_since_published")
    return names + [f"event.{c}" for c in scenario.events.numeric]


def folds(table: pa.Table, layout: FeatureSpec) -> NDArray[np.int64] | None:
    """Fold of each training row, -1 for others; None where time exists.

    A sampled negative is in the fold of its positive: in one of its own it would count that
    positive, and the user's count alone would tell the two apart.
    """
    if layout.timed:
        return None
    number = source_rows(table.column("row").to_numpy(), layout.scenario)
    fold = (hash_ints(number, layout.seed + 1) % statistics.NUM_FOLDS).astype(np.int64)
    return np.where(table.column("split").to_numpy() == TRAIN, fold, -1)


def counting(table: pa.Table, layout: FeatureSpec) -> NDArray[np.bool_]:
    """Which rows may enter statistics: no sampled negatives; without time training rows only."""
    real = ~table.column("sampled").to_numpy(zero_copy_only=False)
    if layout.timed and layout.scenario.statistics == "live":
        return real
    return real & (table.column("split").to_numpy() == TRAIN)


def _with_states(
    table: pa.Table, key: NDArray[np.int64], layout: FeatureSpec
) -> tuple[KeyedRows, NDArray]:
    """Rows of the table followed by one asking row a key at the end of the data.

    Returns:
        The rows and the index in the table of the first row of each key.
    """
    _, first, code = np.unique(key, return_index=True, return_inverse=True)
    num_keys = len(first)
    fold = folds(table, layout)
    labels = matrix(table.column("labels"))[:, : len(layout.tasks)].astype(np.float64)
    rows = KeyedRows(
        key=np.concatenate([code, np.arange(num_keys)]),
        time=np.concatenate([table.column("time").to_numpy(), np.full(num_keys, layout.end_ms)]),
        labels=np.concatenate([labels, np.full((num_keys, labels.shape[1]), np.nan)]),
        counts=np.concatenate([counting(table, layout), np.zeros(num_keys, bool)]),
        fold=None if fold is None else np.concatenate([fold, np.full(num_keys, -1)]),
    )
    return rows, first


def carry_nothing(table: pa.Table, width: int) -> pa.Table:
    """The rows with a column for the statistics that they will carry, all NaN."""
    empty = np.full((table.num_rows, width), np.nan, np.float32)
    return table.append_column("carried", fixed_list(empty))


def carry(table: pa.Table, stats: NDArray[np.float32], start: int) -> pa.Table:
    """The rows with some of the statistics that they carry written in."""
    carried = matrix(table.column("carried")).copy()
    carried[:, start : start + stats.shape[1]] = stats
    place = table.column_names.index("carried")
    return table.set_column(place, "carried", fixed_list(carried))


def item_features(table: pa.Table, layout: FeatureSpec) -> tuple[pa.Table, pa.Table]:
    """The rows with item statistics, and the state of each item at the end of the data."""
    rows, first = _with_states(table, table.column("item").to_numpy().astype(np.int64), layout)
    stats = statistics.statistics(rows, layout.delays_ms, layout.priors).astype(np.float32)
    num = table.num_rows
    out = carry(table, stats[:num], carried_start(layout.scenario, "item"))
    items = table.column("item").take(pa.array(first))
    return out, pa.table({"item": items, "numeric": fixed_list(stats[num:])})


def category_features(
    table: pa.Table, layout: FeatureSpec, column: str
) -> tuple[pa.Table, pa.Table]:
    """The rows with the statistics of their category, and its state at the end of the data.

    An item without a value has no statistics (NaN).
    """
    code = layout.categories[column][table.column("item").to_numpy()]
    stats, first, state = category_statistics(table, code, layout)
    out = carry(table, stats, carried_start(layout.scenario, f"category.{column}"))
    return out, pa.table({"category": code[first], "numeric": fixed_list(state)})


def category_statistics(
    table: pa.Table, key: NDArray[np.int64], layout: FeatureSpec
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Statistics [N, F] by a key that may be -1 (then NaN), without windows.

    Returns:
        Statistics of the rows, the index of the first row of each key (-1 left out), and the
        keys' statistics at the end of the data.
    """
    rows, first = _with_states(table, key, layout)
    stats = statistics.statistics(rows, layout.delays_ms, layout.priors, NO_WINDOWS)
    stats = stats.astype(np.float32)
    num = len(key)
    known = key[first] >= 0
    return np.where(key[:, None] >= 0, stats[:num], np.nan), first[known], stats[num:][known]


def history_rows(rows: KeyedRows, layout: FeatureSpec) -> tuple[KeyedRows, int]:
    """The rows with those that may stand in a history marked, and the label's delay in ms."""
    of = layout.scenario.history.of
    if of == "any":
        return rows, 0
    index = layout.tasks.index(of)
    positive = rows.labels[:, index] == 1
    marked = KeyedRows(rows.key, rows.time, rows.labels, rows.counts & positive, rows.fold)
    return marked, layout.delays_ms[index]


def user_features(table: pa.Table, layout: FeatureSpec) -> tuple[pa.Table, dict[str, pa.Table]]:
    """The finished rows of a partition of users, and states at the end, by kind.

    A row: row, user (vocabulary number, 0 unknown), person (hash of the user), item, time, split,
    history, history_age, numeric, categorical, labels. States: `users`, and
    `user_category.COLUMN` of each user and value.
    """
    table = table.take(pa.array(np.argsort(order_key(table, layout.seed), kind="stable")))
    rows, first = _with_states(table, table.column("user").to_numpy(), layout)
    stats = statistics.statistics(rows, layout.delays_ms, layout.priors).astype(np.float32)
    num = table.num_rows
    item = table.column("item").to_numpy()
    marked, delay = history_rows(rows, layout)
    padded = np.concatenate([item, np.full(len(first), -1, np.int32)])
    history, age = statistics.histories(marked, padded, layout.scenario.history.last, delay)
    user = user_numbers(table.column("user").to_numpy(), layout.users)
    by_category, states = user_categories(table, user, layout)
    finished = pa.table(
        {
            "row": table.column("row"),
            "user": user,
            "person": table.column("user"),
            "item": item,
            "time": table.column("time"),
            "split": table.column("split"),
            "history": fixed_list(history[:num]),
            "history_age": fixed_list(age[:num]),
            "numeric": fixed_list(row_numbers(table, [stats[:num], *by_category], layout)),
            "categorical": fixed_list(event_categories(table, layout)),
            "labels": fixed_list(
                np.ascontiguousarray(matrix(table.column("labels"))[:, : len(layout.tasks)])
            ),
        }
    )
    states["users"] = pa.table(
        {
            "user_id": table.column("user_id").take(pa.array(first)),
            "user": user[first],
            "history": fixed_list(history[num:]),
            "history_age": fixed_list(age[num:]),
            "numeric": fixed_list(stats[num:]),
        }
    )
    return finished, states


def user_categories(
    table: pa.Table, user: NDArray[np.int32], layout: FeatureSpec
) -> tuple[list[NDArray[np.float32]], dict[str, pa.Table]]:
    """Statistics of each user's rows with the category of a row, and the states at the end."""
    parts, states = [], {}
    _, number = np.unique(table.column("user").to_numpy(), return_inverse=True)
    for column, codes in layout.categories.items():
        code = codes[table.column("item").to_numpy()]
        key = np.where(code >= 0, number * (int(codes.max(initial=0)) + 1) + code, -1)
        stats, first, state = category_statistics(table, key, layout)
        parts.append(stats)
        states[f"user_category.{column}"] = pa.table(
            {
                "user_id": table.column("user_id").take(pa.array(first)),
                "user": user[first],
                "category": code[first],
                "numeric": fixed_list(state),
            }
        )
    return parts, states


def user_numbers(hashes: NDArray[np.int64], users: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Vocabulary numbers of users, from 1 on; 0 for users that training never saw."""
    wanted = hashes.view(np.uint64)
    place = np.minimum(np.searchsorted(users, wanted), max(len(users) - 1, 0))
    found = users[place] == wanted if len(users) else np.zeros(len(wanted), bool)
    return np.where(found, place + 1, 0).astype(np.int32)


def row_numbers(
    table: pa.Table, user_stats: list[NDArray[np.float32]], layout: FeatureSpec
) -> NDArray[np.float32]:
    """f32[N, F]: the numeric columns of a row, as `numeric_names` lists them."""
    num_carried = len(carried_names(layout.scenario))
    parts = [matrix(table.column("carried"))[:, :num_carried], *user_stats]
    time = table.column("time").to_numpy()
    if layout.timed:
        parts.append(statistics.calendar(time))
        if layout.scenario.items.published:
            published = layout.published[table.column("item").to_numpy()]
            seconds = np.maximum(time - published, 0) / 1000
            parts.append(np.where(published == NO_TIME, np.nan, np.log1p(seconds))[:, None])
    num_numeric = len(layout.scenario.events.numeric)
    parts.append(matrix(table.column("event_numeric"))[:, :num_numeric])
    return np.concatenate(parts, 1).astype(np.float32)


def event_categories(table: pa.Table, layout: FeatureSpec) -> NDArray[np.int32]:
    """i32[N, C]: codes of the log's categorical columns, 0 unknown."""
    hashes = matrix(table.column("event_categorical"))
    codes = [
        user_numbers(np.ascontiguousarray(hashes[:, i]), vocabulary)
        for i, vocabulary in enumerate(layout.event_vocabularies)
    ]
    return np.stack(codes, 1) if codes else np.zeros((table.num_rows, 0), np.int32)
