"""Past statistics and histories of one partition of rows, in numpy.

A partition holds all rows of its keys (users or items), so everything here is exact and local.

Letters: N rows, T tasks, H history length, F features, K distinct keys.

Time: a feature of a row at time t uses rows with time strictly before t, and a label with delay d
only of rows with time strictly before t - d. Without time: rows of the other folds (training
rows only), so that no row's feature holds its own label.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Bools, Floats, Ints
from mtrec_ray.data.columns import DAY_MS

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
        labels: f64[N, T], NaN where unknown.
        counts: bool[N], whether the row may enter the statistics and histories of others.
        fold: i64[N] fold of a training row, -1 for rows that only ask; None where time exists.
    """

    key: Ints
    time: Ints
    labels: Floats
    counts: Bools
    fold: Ints | None = None


class Past:
    """Sums over the strictly earlier rows of the same key, by binary search.

    Counting rows are sorted by (key, time) and coded into one increasing integer,
    `key * span + time`, so that all N questions are answered by one `searchsorted`. The questions
    are the rows' own keys and times, or those of `asked`.
    """

    def __init__(self, key: Ints, time: Ints, counts: Bools) -> None:
        self.low = int(time.min()) if len(time) else 0
        self.span = (int(time.max()) if len(time) else 0) - self.low + 2
        code = self._first_code(key) + (time - self.low)
        rows = np.flatnonzero(counts)
        self.rows = rows[np.argsort(code[rows], kind="stable")]
        self.codes = code[self.rows]
        self.times = time[self.rows]
        self.key = key
        self.time = time
        self.start = np.searchsorted(self.codes, self._first_code(key))

    def _first_code(self, key: Ints) -> Ints:
        """Returns i64[N]: the code of the earliest time of each key."""
        if len(key) and int(key.max()) >= (2**62) // self.span:
            raise ValueError(f"{int(key.max())} keys over {self.span} ms overflow 63 bits")
        return key * self.span

    def asked(self, key: Ints, time: Ints) -> "Past":
        """Returns the same rows, asked for other keys and times; the rows are not sorted again."""
        other = copy.copy(self)
        other.key, other.time = key, time
        other.start = np.searchsorted(self.codes, self._first_code(key))
        return other

    def position(self, delay_ms: int = 0) -> Ints:
        """Returns i64[N]: end (exclusive) of the rows with time < t - delay in the sorted order."""
        cutoff = np.clip(self.time - self.low - delay_ms, 0, self.span - 1)
        return np.searchsorted(self.codes, self.key * self.span + cutoff, side="left")

    def running(self, values: Floats) -> Floats:
        """Returns f64[C + 1]: sums of values f64[N] of the first 0..C rows in the sorted order."""
        return np.concatenate([[0.0], np.cumsum(values[self.rows])])

    def sum(self, values: Floats, delay_ms: int = 0) -> Floats:
        """Returns f64[N]: sum of `values` over the rows of the key with time < t - delay."""
        total = self.running(values)
        return total[self.position(delay_ms)] - total[self.start]


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
) -> Floats:
    """Returns f64[N, F]: past counts and smoothed past label means, as `feature_names` lists them.

    Over the whole past, and over windows of it (of labels: windows that end when they are known).
    A mean is `(sum + 10 prior) / (known + 10)`, with the training mean as prior.
    """
    if rows.fold is None:
        return _timed_statistics(rows, delays_ms, priors, windows)
    return _fold_statistics(rows, rows.fold, priors)


def _timed_statistics(
    rows: KeyedRows, delays_ms: Sequence[int], priors: Sequence[float], windows: Windows
) -> Floats:
    past = Past(rows.key, rows.time, rows.counts)
    return past_statistics(past, running_labels(past, rows.labels), delays_ms, priors, windows)


# By task: running sums f64[C + 1] of known labels, and of their values.
RunningLabels = list[tuple[Floats, Floats]]


def running_labels(past: Past, labels: Floats) -> RunningLabels:
    """Returns running sums of the labels f64[N, T], NaN where unknown, in the sorted order."""
    return [(past.running(known), past.running(value)) for known, value in map(_known, labels.T)]


def past_statistics(
    past: Past,
    labels: RunningLabels,
    delays_ms: Sequence[int],
    priors: Sequence[float],
    windows: Windows = WINDOWS_MS,
) -> Floats:
    """Returns f64[N, F], the columns of `statistics` for the keys and times of `past`."""
    end = past.position()
    columns = [np.log1p(end - past.start)]
    columns += [np.log1p(end - past.position(window)) for window in windows.values()]
    columns += [_log_seconds_since(past, at, end) for at in (past.start, end - 1)]
    for (known, value), delay, prior in zip(labels, delays_ms, priors, strict=True):
        end = past.position(delay)
        columns += _smoothed(known[end] - known[past.start], value[end] - value[past.start], prior)
        for window in windows.values():
            begin = past.position(delay + window)
            recent = _smoothed(known[end] - known[begin], value[end] - value[begin], prior)
            columns.append(recent[1])
    return np.stack(columns, 1)


def _log_seconds_since(past: Past, at: Ints, end: Ints) -> Floats:
    """Returns f64[N]: log(1 + seconds since the row at a place of the order); NaN without one."""
    if not len(past.rows):
        return np.full(len(past.time), np.nan)
    time = past.times[np.clip(at, 0, len(past.rows) - 1)]
    return np.log1p(np.where(end > past.start, (past.time - time) / 1000, np.nan))


def _fold_statistics(rows: KeyedRows, fold: Ints, priors: Sequence[float]) -> Floats:
    """Returns totals over training rows of other folds, scaled to the whole training set."""
    scale = np.where(fold >= 0, NUM_FOLDS / (NUM_FOLDS - 1), 1.0)
    columns = [np.log1p(_other_folds(rows, fold, np.ones(len(rows.key))) * scale)]
    for labels, prior in zip(rows.labels.T, priors, strict=True):
        known, total = (_other_folds(rows, fold, values) for values in _known(labels))
        log_known, rate = _smoothed(known, total, prior)
        columns += [np.log1p(np.expm1(log_known) * scale), rate]
    return np.stack(columns, 1)


def _other_folds(rows: KeyedRows, fold: Ints, values: Floats) -> Floats:
    num_keys = int(rows.key.max()) + 1 if len(rows.key) else 0
    values = np.where(rows.counts, values, 0.0)
    whole = np.bincount(rows.key, values, num_keys).astype(np.float64)
    cell = rows.key * NUM_FOLDS + np.maximum(fold, 0)
    own = np.bincount(cell, values, num_keys * NUM_FOLDS)[cell]
    return whole[rows.key] - np.where(fold >= 0, own, 0.0)


def _known(labels: Floats) -> tuple[Floats, Floats]:
    """Returns f64[N] twice: 1 where a label is known, and the label, 0 where it is not."""
    known = np.isfinite(labels)
    return known.astype(float), np.where(known, labels, 0.0)


def _smoothed(known: Floats, total: Floats, prior: float) -> list[Floats]:
    return [np.log1p(known), (total + SMOOTHING * prior) / (known + SMOOTHING)]


def histories(
    rows: KeyedRows, item: NDArray[np.int32], last: int, delay_ms: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Returns the user's last items before each row.

    `rows.counts` marks the rows that may stand in a history (positives of the history's task).

    Returns:
        i32[N, H] catalogue rows, newest first, -1 where there is none, and
        u8[N, H] ages, floor(log2(1 + seconds)); without time 0.
    """
    if rows.fold is None:
        past = Past(rows.key, rows.time, rows.counts)
        taken = past.position(delay_ms)[:, None] - 1 - np.arange(last)
        index = _rows_at(past.rows, taken, taken >= past.start[:, None])
        age = (rows.time[:, None] - rows.time[index]) / 1000
        buckets = np.floor(np.log2(1 + np.maximum(age, 0))).astype(np.uint8)
    else:
        index = _fold_history(rows, rows.fold, last)
        buckets = np.zeros(index.shape, np.uint8)
    exists = index >= 0
    return np.where(exists, item[index], -1).astype(np.int32), np.where(exists, buckets, 0)


def _rows_at(order: Ints, position: Ints, valid: Bools) -> Ints:
    if not len(order):
        return np.full(position.shape, -1)
    return np.where(valid, order[np.maximum(position, 0)], -1)


def _fold_history(rows: KeyedRows, fold: Ints, last: int) -> Ints:
    """Returns i64[N, H]: the first rows (in the order given) of the key in other folds.

    For each fold f the counting rows outside f are laid out by key; rows of fold f (and the
    asking rows, as a fold of their own that excludes nothing) look up the first H of their key.
    """
    index = np.full((len(rows.key), last), -1)
    num_keys = int(rows.key.max()) + 1 if len(rows.key) else 0
    for f in range(-1, NUM_FOLDS):
        asking = np.flatnonzero(fold == f)
        source = np.flatnonzero(rows.counts & ((fold != f) if f >= 0 else True))
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
