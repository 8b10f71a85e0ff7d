"""Past statistics and histories of one partition of rows, in numpy.

A partition holds all rows of its keys (users, items or categories), so everything here is exact and
local. Of a key whose rows lie in several partitions, `hot_keys.py` answers the same questions.

Letters: N rows, T tasks, H history length, F features, K distinct keys.

Time: a feature of a row at time t uses rows with time strictly before t, and a label with delay d
only of rows with time strictly before t - d. Without time: rows of the other folds (training
rows only), so that no row's feature holds its own label.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Bools, Float32s, Floats, Ints
from mtrec_ray.data.columns import DAY_MS
from mtrec_ray.data.preparing.past import AnyPast, Past, Places, Questions, questions

Windows = Mapping[str, int]


WINDOWS_MS = {"1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}


NO_WINDOWS: Windows = {}


NUM_FOLDS = 5


SMOOTHING = 10.0


@dataclass(frozen=True)
class KeyedRows:
    """Rows of a partition.

    Attributes:
        key: i64[N], a number for each key.
        time: i64[N], milliseconds; ignored where `fold` is set.
        labels: f32 or f64[N, T], NaN where unknown.
        counts: bool[N], whether the row may enter the statistics and histories of others.
        fold: i64[N] fold of a training row, -1 for rows that only ask; None where time exists.
    """

    key: Ints
    time: Ints
    labels: Floats | Float32s
    counts: Bools
    fold: Ints | None = None

    @functools.cached_property
    def past(self) -> Past:
        """The rows by key and time, sorted once for statistics and histories."""
        return Past(self.key, self.time, self.counts)


def feature_names(
    kind: str, tasks: Sequence[str], timed: bool, windows: Windows = WINDOWS_MS
) -> list[str]:
    """Returns the names of the columns of `statistics` for the key `kind` (user, item, ...)."""
    names = [f"{kind}.log_count"]
    if timed:
        names += [f"{kind}.log_count_{w}" for w in windows]
        names += [f"{kind}.log_seconds_since_first", f"{kind}.log_seconds_since_last"]
    for task in tasks:
        names += [f"{kind}.log_known.{task}", f"{kind}.rate.{task}"]
        names += [f"{kind}.rate_{w}.{task}" for w in windows] if timed else []
    return names


def statistics(
    rows: KeyedRows,
    delays_ms: Sequence[int],
    priors: Sequence[float],
    windows: Windows = WINDOWS_MS,
    dtype: type = np.float64,
) -> np.ndarray:
    """Returns [N, F]: past counts and smoothed past label means, as `feature_names` lists them.

    Over the whole past, and over windows of it (of labels: windows that end when they are known).
    A mean is `(sum + 10 prior) / (known + 10)`, with the training mean as prior. All is computed
    in 64 bits and rounded to `dtype`.
    """
    if rows.fold is None:
        known = running_labels(rows.past, rows.labels)
        return past_statistics(rows.past, known, delays_ms, priors, windows, dtype)
    return fold_statistics(rows, rows.fold, priors, fold_sums(rows, rows.fold), dtype)


# By task: running sums f64[C + 1] of known labels, and of their values.
RunningLabels = list[tuple[Floats, Floats]]


# Sums of the rows that count, f64[1 + 2T, K] of each key and f64[1 + 2T, 5K] of each key's folds:
# how many they are, and by task the known labels and their values.
FoldSums = tuple[Floats, Floats]


def running_labels(past: Past, labels: Floats | Float32s) -> RunningLabels:
    """Returns running sums of the labels [N, T], NaN where unknown, in the sorted order."""
    return [(past.running(known), past.running(value)) for known, value in map(_known, labels.T)]


def past_statistics(
    past: AnyPast,
    labels: Sequence[tuple[Places, Places]],
    delays_ms: Sequence[int],
    priors: Sequence[float],
    windows: Windows = WINDOWS_MS,
    dtype: type = np.float64,
) -> np.ndarray:
    """Returns [N, F], the columns of `statistics` for the keys and times of `past`."""
    width = 3 + len(windows) + len(labels) * (2 + len(windows))
    values = np.empty((len(past.order), width), dtype)
    for asked in questions(past):
        columns = _counts(asked, windows)
        for sums, delay, prior in zip(labels, delays_ms, priors, strict=True):
            columns += _rates(asked, sums, delay, prior, windows)
        values[asked.place] = np.stack(columns, 1, dtype=dtype, casting="same_kind")
    return values


def _counts(asked: Questions, windows: Windows) -> list[Floats]:
    """Returns f64[B] each: rows in the past and in its windows, seconds since its ends."""
    start, end = asked.start, asked.end()
    columns = [np.log1p(end - start)]
    columns += [np.log1p(end - asked.end(window)) for window in windows.values()]
    return columns + [_log_seconds_since(asked, at) for at in (start, end - 1)]


def _rates(
    asked: Questions, sums: tuple[Places, Places], delay: int, prior: float, windows: Windows
) -> list[Floats]:
    """Returns f64[B] each: a task's known labels, their mean, and their mean in each window."""
    known, value = sums
    end = asked.end(delay)
    until = known[end], value[end]

    def since(begin: Ints) -> list[Floats]:
        return _smoothed(until[0] - known[begin], until[1] - value[begin], prior)

    return since(asked.start) + [since(asked.end(delay + w))[1] for w in windows.values()]


def _log_seconds_since(asked: Questions, at: Ints) -> Floats:
    """Returns f64[B]: log(1 + seconds since the row at a place of the order); NaN without one."""
    times = asked.past.times
    if not len(times):
        return np.full(len(at), np.nan)
    seconds = (asked.time - times[np.clip(at, 0, len(times) - 1)]) / 1000
    return np.log1p(np.where(asked.end() > asked.start, seconds, np.nan))


def fold_statistics(
    rows: KeyedRows, fold: Ints, priors: Sequence[float], sums: FoldSums, dtype: type
) -> np.ndarray:
    """Returns [N, F]: totals over training rows of other folds, scaled to all training rows."""
    whole, own = sums
    asks = fold >= 0
    others = whole[:, rows.key] - np.where(asks, own[:, _cells(rows, fold)], 0.0)
    scale = np.where(asks, NUM_FOLDS / (NUM_FOLDS - 1), 1.0)
    columns = [np.log1p(others[0] * scale)]
    for known, total, prior in zip(others[1::2], others[2::2], priors, strict=True):
        log_known, rate = _smoothed(known, total, prior)
        columns += [np.log1p(np.expm1(log_known) * scale), rate]
    return np.stack(columns, 1).astype(dtype, copy=False)


def fold_sums(rows: KeyedRows, fold: Ints) -> FoldSums:
    """Returns the sums of each key, and of each key's folds."""
    num_keys = int(rows.key.max(initial=0)) + 1
    values = [
        np.ones(len(rows.key)),
        *(part for labels in rows.labels.T for part in _known(labels)),
    ]
    counted = [np.where(rows.counts, value, 0.0) for value in values]

    def sums(place: Ints, num: int) -> Floats:
        return np.stack([np.bincount(place, v, num).astype(np.float64) for v in counted])

    return sums(rows.key, num_keys), sums(_cells(rows, fold), num_keys * NUM_FOLDS)


def _cells(rows: KeyedRows, fold: Ints) -> Ints:
    """Returns i64[N]: the number of each row's key and fold together."""
    return rows.key * NUM_FOLDS + np.maximum(fold, 0)


def _known(labels: Floats | Float32s) -> tuple[Floats, Floats]:
    """Returns f64[N] twice: 1 where a label is known, and the label, 0 where it is not."""
    known = np.isfinite(labels)
    return known.astype(float), np.where(known, labels, 0.0).astype(float, copy=False)


def _smoothed(known: Floats, total: Floats, prior: float) -> list[Floats]:
    return [np.log1p(known), (total + SMOOTHING * prior) / (known + SMOOTHING)]


@dataclass(frozen=True)
class Histories:
    """The user's last items before each row, newest first.

    Attributes:
        items: i32[N, H], catalogue rows, -1 where there is none.
        ages: u8[N, H], floor(log2(1 + seconds)); without time 0.
        outcomes: i32[N, H], what came of them (`data/outcomes.py`), 0 where there is none; None
            where nobody asked.
    """

    items: NDArray[np.int32]
    ages: NDArray[np.uint8]
    outcomes: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Outcomes:
    """What came of each row: i32[N, T], a part of its outcome, known after T delays in ms."""

    parts: NDArray[np.int32]
    delays_ms: Sequence[int]


def histories(
    rows: KeyedRows,
    item: NDArray[np.int32],
    last: int,
    delay_ms: int,
    listed: Bools | None = None,
    outcomes: Outcomes | None = None,
) -> Histories:
    """Returns the user's last items i32[N] before each row.

    `listed` bool[N] marks the rows that may stand in a history (positives of the history's tasks,
    if they count); without it all that count may.
    """
    counts = rows.counts if listed is None else rows.counts & listed
    if rows.fold is None:
        return _timed_histories(rows.past.only(counts), item, last, delay_ms, outcomes)
    index = _fold_history(rows, rows.fold, counts, last)
    known = index >= 0
    history = np.where(known, item[index], -1).astype(np.int32)
    told = None
    if outcomes is not None:
        told = np.where(known, outcomes.parts.sum(1, dtype=np.int32)[index], 0).astype(np.int32)
    return Histories(history, np.zeros(index.shape, np.uint8), told)


def _timed_histories(
    past: Past, item: NDArray[np.int32], last: int, delay_ms: int, outcomes: Outcomes | None
) -> Histories:
    history = np.full((len(past.order), last), -1, np.int32)
    ages = np.zeros(history.shape, np.uint8)
    told = None if outcomes is None else np.zeros(history.shape, np.int32)
    items = item[past.rows]
    for asked in questions(past):
        taken = asked.end(delay_ms)[:, None] - 1 - np.arange(last)
        exists = taken >= asked.start[:, None]
        if not exists.any():
            continue
        taken = np.maximum(taken, 0)
        age = np.maximum(asked.time[:, None] - past.times[taken], 0) / 1000
        history[asked.place] = np.where(exists, items[taken], -1)
        # 1 + age = m 2^e with 1/2 <= m < 1: e - 1 is the floor of its logarithm, without one.
        ages[asked.place] = np.where(exists, np.frexp(1 + age)[1] - 1, 0)
        if outcomes is not None and told is not None:
            told[asked.place] = np.where(exists, _known_outcomes(past, asked, taken, outcomes), 0)
    return Histories(history, ages, told)


def _known_outcomes(
    past: Past, asked: Questions, taken: Ints, outcomes: Outcomes
) -> NDArray[np.int32]:
    """Returns i32[B, H]: what is known of rows `taken` in the sorted order when each asks."""
    parts = outcomes.parts[past.rows[taken]]
    for task, delay in enumerate(outcomes.delays_ms):
        parts[taken >= asked.end(delay)[:, None], task] = 0
    return parts.sum(-1, dtype=np.int32)


def _fold_history(rows: KeyedRows, fold: Ints, counts: Bools, last: int) -> Ints:
    """Returns i64[N, H]: the first rows (in the order given) of the key in other folds.

    For each fold f the counting rows outside f are laid out by key; rows of fold f (and the
    asking rows, as a fold of their own that excludes nothing) look up the first H of their key.
    """
    index = np.full((len(rows.key), last), -1)
    num_keys = int(rows.key.max()) + 1 if len(rows.key) else 0
    for f in range(-1, NUM_FOLDS):
        asking = np.flatnonzero(fold == f)
        source = np.flatnonzero(counts & ((fold != f) if f >= 0 else True))
        source = source[np.argsort(rows.key[source], kind="stable")]
        bounds = np.searchsorted(rows.key[source], np.arange(num_keys + 1))
        taken = bounds[rows.key[asking]][:, None] + np.arange(last)
        valid = taken < bounds[rows.key[asking] + 1][:, None]
        if len(source):
            index[asking] = np.where(valid, source[np.minimum(taken, len(source) - 1)], -1)
    return index


def calendar(time: Ints) -> Floats:
    """Returns f64[N, 4]: sine and cosine of the hour of day and of the day of week (UTC)."""
    day = 2 * np.pi * (time % DAY_MS) / DAY_MS
    week = 2 * np.pi * (time % (7 * DAY_MS)) / (7 * DAY_MS)
    return np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], 1)


CALENDAR_NAMES = ["hour_sin", "hour_cos", "week_sin", "week_cos"]
