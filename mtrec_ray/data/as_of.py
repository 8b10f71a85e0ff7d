"""What was known of items, categories and users' categories at any moments.

"As of a moment" means: rows strictly before it, and of their labels those whose delay has passed
by then. With `statistics: live` rows of all splits count, as in a live system; with
`frozen` those of training alone. Sampled negatives are not rows of the log.

Rows that count are held in memory, sorted once by item and once by each categorical column: each
time they take 24 bytes a row, and 16 more for each task. By a column with several values they take
that for each value of a row.

Letters: n items, B moments, N rows, T tasks, F numeric columns of a row, f of them of a key.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import Ragged
from mtrec_ray.data.end_states import CatalogueColumns
from mtrec_ray.data.merged_past import MergedPast
from mtrec_ray.data.preparing.classes import with_gains
from mtrec_ray.data.preparing.past import Past, Places
from mtrec_ray.data.preparing.pooling import pooled
from mtrec_ray.data.preparing.samples import FIRST_NEGATIVE
from mtrec_ray.data.preparing.statistics import (
    NO_WINDOWS,
    WINDOWS_MS,
    Windows,
    past_statistics,
    running_labels,
)
from mtrec_ray.data.shards import Arrays, concatenate, read_columns
from mtrec_ray.data.snapshot import (
    SnapshotColumns,
    UserCategoryStatistics,
    no_category_statistics,
    overlay,
)
from mtrec_ray.project.split import SPLITS


def counting_splits(layout: SnapshotColumns) -> tuple[str, ...]:
    """Returns the splits whose rows enter statistics."""
    live = layout.timed and layout.scenario.statistics == "live"
    return SPLITS if live else ("train",)


def log_rows(
    layout: SnapshotColumns, splits: tuple[str, ...], columns: tuple[str, ...]
) -> Iterator[Arrays]:
    """Yields columns of the log's rows of some splits, in batches, without sampled negatives."""
    for split in splits:
        paths = layout.prepared.shard_paths(layout.name, split)
        for arrays in read_columns(paths, ("row", *columns)):
            real = arrays["row"] < FIRST_NEGATIVE
            yield {name: values[real] for name, values in arrays.items()}


@dataclass(frozen=True)
class KeyedPast:
    """Rows by a key, for questions about any key at any moment."""

    layout: SnapshotColumns
    past: Past | MergedPast
    labels: Sequence[tuple[Places, Places]]
    windows: Windows

    @classmethod
    def of(
        cls, layout: SnapshotColumns, key: Ints, rows: Arrays, windows: Windows = NO_WINDOWS
    ) -> "KeyedPast":
        """Returns the past of `key` i64[N], which is -1 for rows that do not count."""
        past = Past(key, rows["time"], key >= 0)
        labels = with_gains(rows["labels"], layout.scenario).astype(np.float64)
        sums = running_labels(past, labels)
        nobody = np.zeros(0, np.int64)  # the rows' own questions are not kept
        return cls(layout, past.asked(nobody, nobody), sums, windows)

    def with_rows(self, key: Ints, rows: Arrays) -> "KeyedPast":
        """Returns the past with F later rows of `key` i64[F], -1 for those that do not count."""
        assert isinstance(self.past, Past)
        later = Past(key, rows["time"], key >= 0)
        labels = with_gains(rows["labels"], self.layout.scenario).astype(np.float64)
        past = MergedPast(self.past, later)
        sums = [
            (past.sums(known, more_known), past.sums(value, more_value))
            for (known, value), (more_known, more_value) in zip(
                self.labels, running_labels(later, labels), strict=True
            )
        ]
        return KeyedPast(self.layout, past, sums, self.windows)

    def at(self, key: Ints, moment: Ints) -> Float32s:
        """Returns f32[m, f]: statistics of the keys i64[m] as of the moments i64[m]."""
        layout = self.layout
        asked = self.past.asked(key, moment)
        return past_statistics(
            asked, self.labels, layout.delays_ms, layout.priors, self.windows, np.float32
        )


class CatalogueAsOf:
    """A scenario's catalogue as of any moment, from the rows of a log with time."""

    def __init__(self, layout: SnapshotColumns, catalogue: CatalogueColumns, before: int) -> None:
        """Read the rows before the moment `before`, the latest that is asked for."""
        self.layout, self.catalogue = layout, catalogue
        rows = rows_before(layout, before)
        item = rows["item"].astype(np.int64)
        self.items = KeyedPast.of(layout, item, rows, WINDOWS_MS)
        self.categories = {
            column: KeyedPast.of(layout, code[item], rows)
            for column, code in catalogue.codes.items()
        }
        self.values = {
            column: KeyedPast.of(layout, *by_value(rows, own))
            for column, own in catalogue.values.items()
        }

    def with_rows(self, rows: Arrays) -> "CatalogueAsOf":
        """Returns the same with later rows that enter statistics: `item`, `time`, `labels`."""
        other, catalogue, item = copy.copy(self), self.catalogue, rows["item"]
        other.items = self.items.with_rows(item, rows)
        other.categories = {
            column: past.with_rows(catalogue.codes[column][item], rows)
            for column, past in self.categories.items()
        }
        other.values = {
            column: past.with_rows(*by_value(rows, catalogue.values[column]))
            for column, past in self.values.items()
        }
        return other

    def numeric(self, item: Ints, moment: Ints) -> Float32s:
        """Returns f32[m, F]: the columns of items i64[m] as of moments i64[m]."""
        parts = [self.layout.scatter("item", WINDOWS_MS, self.items.at(item, moment))]
        parts += [self._category(column, item, moment) for column in self.categories]
        parts += [self._values(column, item, moment) for column in self.values]
        parts.append(self.layout.item_ages(self.catalogue.published[item], moment))
        return overlay(*parts)

    def _category(self, column: str, item: Ints, moment: Ints) -> Float32s:
        """Returns f32[m, F]: statistics of each item's category; NaN for an item without one."""
        code = self.catalogue.codes[column][item]
        stats = self.categories[column].at(code.clip(0), moment)
        stats[code < 0] = np.nan
        return self.layout.scatter(f"category.{column}", NO_WINDOWS, stats)

    def _values(self, column: str, item: Ints, moment: Ints) -> Float32s:
        """Returns f32[m, F]: pooled statistics of each item's values; NaN for one without any."""
        own = self.catalogue.values[column].take(item)
        stats = self.values[column].at(own.codes.astype(np.int64), moment[own.rows])
        of_items = pooled(stats, own.offsets, self.layout.timed)
        return self.layout.scatter(f"values.{column}", NO_WINDOWS, of_items)


def by_value(rows: Arrays, values: Ragged) -> tuple[Ints, Arrays]:
    """Returns i64[m], the value of each of m rows, one for each value of the item of a row."""
    own = values.take(rows["item"])
    return own.codes.astype(np.int64), {name: array[own.rows] for name, array in rows.items()}


def rows_before(layout: SnapshotColumns, before: int) -> Arrays:
    """Returns items, times and labels of the rows before a moment that enter statistics."""
    parts = []
    for arrays in log_rows(layout, counting_splits(layout), ("item", "time", "labels")):
        early = arrays["time"] < before
        parts.append({name: arrays[name][early] for name in ("item", "time", "labels")})
    return concatenate(parts)


def rows_of_persons(layout: SnapshotColumns, persons: Ints, moments: Ints) -> Arrays:
    """Returns the rows of some persons, before the moment of each, that enter statistics.

    `persons` is sorted; the result's `person` is an index into it.
    """
    columns = ("person", "item", "time", "labels")
    parts = []
    for arrays in log_rows(layout, counting_splits(layout), columns):
        place = places_among(persons, arrays["person"])
        kept = (place >= 0) & (arrays["time"] < moments[place])
        parts.append({name: arrays[name][kept] for name in columns} | {"person": place[kept]})
    return concatenate(parts)


def places_among(wanted: Ints, values: Ints) -> Ints:
    """Returns i64[N], the index of each value in the sorted `wanted`, or -1."""
    place = np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)
    return np.where(wanted[place] == values, place, -1)


def categories_as_of(
    layout: SnapshotColumns, catalogue: CatalogueColumns, persons: Ints, moments: Ints
) -> dict[str, UserCategoryStatistics]:
    """Returns statistics of each person's rows by value as of the person's moment, by column.

    `persons` i64[B] is sorted; the result names a user by an index into it.
    """
    rows = rows_of_persons(layout, persons, moments)
    keyed = {c: (code[rows["item"]], rows) for c, code in catalogue.codes.items()}
    keyed |= {c: by_value(rows, own) for c, own in catalogue.values.items()}
    return {c: _pairs_as_of(layout, key, *keyed[c], moments) for c, key in layout.pair_keys.items()}


def _pairs_as_of(
    layout: SnapshotColumns, kind: str, code: Ints, rows: Arrays, moments: Ints
) -> UserCategoryStatistics:
    size = int(code.max(initial=0)) + 1
    key = np.where(code >= 0, rows["person"] * size + code, -1)
    pairs = np.unique(key[key >= 0])
    if not len(pairs):
        return no_category_statistics(layout)
    user, category = np.divmod(pairs, size)
    stats = KeyedPast.of(layout, key, rows).at(pairs, moments[user])
    return UserCategoryStatistics(user, category, layout.scatter(kind, NO_WINDOWS, stats))
