"""Users and items at a moment, as numeric columns of rows that do not exist yet.

Some numeric columns of a row follow from the item, some from the user, and some from the user and
a value of the item's (`features.numeric_names`). A snapshot holds each of these groups over all F
columns, with NaN in the columns of the others: `overlay` puts them together into a row.

Letters: n items, B users, F numeric columns of a row, H history items, m pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import NO_TIME, Ragged
from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.elsewhere import Taken
from mtrec_ray.data.given_profiles import GivenProfiles
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing import statistics
from mtrec_ray.data.preparing.features import numeric_names
from mtrec_ray.data.preparing.pooling import pooled
from mtrec_ray.data.preparing.statistics import WINDOWS_MS, KeyedRows, Windows
from mtrec_ray.data.shards import GIVEN, MOMENT, OUTCOME, SEVERAL, Arrays
from mtrec_ray.project.scenario import Scenario

PUBLISHED = "item.log_seconds_since_published"


@dataclass(frozen=True)
class UserCategoryStatistics:
    """Statistics of users' rows with a category: f32[m, F] for pairs `user` [m], `category` [m].

    Of a column with several values a pair has one of them.
    """

    user: Ints
    category: Ints
    numeric: Float32s

    def of(self, start: int, stop: int) -> "UserCategoryStatistics":
        """Returns the pairs of the users start..stop, who are numbered from 0 then."""
        kept = (self.user >= start) & (self.user < stop)
        return UserCategoryStatistics(
            self.user[kept] - start, self.category[kept], self.numeric[kept]
        )

    def repeated(self, rows: Ints) -> "UserCategoryStatistics":
        """Returns the pairs of users i64[B'], who are numbered in this order; some come twice."""
        order = np.argsort(self.user, kind="stable")
        start = np.searchsorted(self.user[order], rows, side="left")
        size = np.searchsorted(self.user[order], rows, side="right") - start
        place = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size - start, size)
        pairs = order[place]
        user = np.repeat(np.arange(len(rows)), size)
        return UserCategoryStatistics(user, self.category[pairs], self.numeric[pairs])

    def renumbered(self, number: Ints) -> "UserCategoryStatistics":
        """Returns the pairs of the users whose new `number` i64[B] is not -1."""
        user = number[self.user]
        kept = user >= 0
        return UserCategoryStatistics(user[kept], self.category[kept], self.numeric[kept])


@dataclass(frozen=True)
class UserSnapshot:
    """Users at a moment.

    Attributes:
        ids: their ids, as strings; `person`: hashes of these.
        moment: i64[B], when each asks, in ms.
        user: i64[B], vocabulary numbers, 0 for users without a training row.
        history, ages: i64[B, H], as in a sample; so are `outcomes`, None where data has none.
        numeric: f32[B, F], the user's own columns.
        categories: by column of items whose values have statistics.
        given: profiles that they bring along; None: all have those of the table of users.
        elsewhere: what they took in other scenarios; None: what the timeline says.
    """

    ids: NDArray[np.object_]
    person: Ints
    moment: Ints
    user: Ints
    history: Ints
    ages: Ints
    numeric: Float32s
    categories: dict[str, UserCategoryStatistics] = field(default_factory=dict)
    outcomes: Ints | None = None
    given: GivenProfiles | None = None
    elsewhere: Taken | None = None

    def __len__(self) -> int:
        """Returns the number of users."""
        return len(self.user)

    def of(self, start: int, stop: int) -> "UserSnapshot":
        """Returns the users start..stop."""
        pairs = {c: s.of(start, stop) for c, s in self.categories.items()}
        return self._with_rows(slice(start, stop), pairs)

    def take(self, rows: Ints) -> "UserSnapshot":
        """Returns some of the users, in the order of `rows`, in which one may come twice."""
        if len(np.unique(rows)) < len(rows):
            pairs = {c: s.repeated(rows) for c, s in self.categories.items()}
            return self._with_rows(rows, pairs)
        number = np.full(len(self), -1)
        number[rows] = np.arange(len(rows))
        return self._with_rows(rows, {c: s.renumbered(number) for c, s in self.categories.items()})

    def _with_rows(
        self, rows: slice | Ints, categories: dict[str, UserCategoryStatistics]
    ) -> "UserSnapshot":
        return replace(
            self,
            ids=self.ids[rows],
            person=self.person[rows],
            moment=self.moment[rows],
            user=self.user[rows],
            history=self.history[rows],
            ages=self.ages[rows],
            numeric=self.numeric[rows],
            categories=categories,
            outcomes=None if self.outcomes is None else self.outcomes[rows],
            given=None if self.given is None else self.given.take(rows),
            elsewhere=None
            if self.elsewhere is None
            else Taken(*(values[rows] for values in self.elsewhere)),
        )


@dataclass(frozen=True)
class ItemValues:
    """A column with several values that have statistics.

    Attributes:
        of_items: the numbers of each item's values.
        columns: where a row has the pooled statistics of its user with these values.
        timed: whether they have times.
    """

    of_items: Ragged
    columns: slice
    timed: bool


@dataclass(frozen=True)
class ItemSnapshot:
    """The catalogue at a moment.

    Attributes:
        ids: as strings; `in_training`: whether training has a row of the item.
        numeric: f32[n, F], the item's own columns.
        codes: by categorical column that has statistics: i64[n] the number of its value, or -1.
        default: by such a column: f32[F], the columns of a user without a row of the value.
        values: columns with several values, which have a default, too.
    """

    ids: NDArray[np.object_]
    in_training: NDArray[np.bool_]
    numeric: Float32s
    codes: dict[str, Ints]
    default: dict[str, Float32s]
    values: dict[str, ItemValues] = field(default_factory=dict)


class SnapshotColumns:
    """Where the columns of a scenario's rows stand."""

    def __init__(self, prepared: Prepared, name: str, scenario: Scenario) -> None:
        """The project file may list the tasks in another order than the prepared rows have."""
        self.prepared, self.name = prepared, name
        self.facts = prepared.scenarios[name]
        tasks = {task: scenario.tasks[task] for task in self.facts.tasks}
        self.scenario = scenario.model_copy(update={"tasks": tasks})
        self.names = numeric_names(self.scenario)
        self.timed = scenario.events.time is not None

    @property
    def width(self) -> int:
        """F."""
        return len(self.names)

    @property
    def end(self) -> int:
        """The end of the data, in ms: the moment just after the last row."""
        return self.facts.end_ms

    @property
    def pair_keys(self) -> dict[str, str]:
        """The keys of users' statistics by the columns of items whose values have them."""
        items = self.scenario.items
        one = {c: f"user_category.{c}" for c in items.statistics_columns}
        return one | {c: f"user_values.{c}" for c in items.pooled_columns}

    @property
    def delays_ms(self) -> list[int]:
        """How long after its row each task's label is known."""
        return [1000 * self.scenario.label_delay(task) for task in self.scenario.tasks]

    @property
    def priors(self) -> list[float]:
        """The training mean of each task's label."""
        return [self.facts.label_means[task] for task in self.facts.tasks]

    def columns_of(self, key: str, windows: Windows) -> slice:
        """Returns the columns of a key's statistics.

        A key is `item`, `user`, `category.COLUMN`, `values.COLUMN`, or one of the latter two with
        `user_` before it.
        """
        names = statistics.feature_names(key, tuple(self.scenario.tasks), self.timed, windows)
        start = self.names.index(names[0])
        return slice(start, start + len(names))

    def scatter(self, key: str, windows: Windows, stats: NDArray[np.floating]) -> Float32s:
        """Returns f32[.., F]: a key's statistics [.., f] in their columns, NaN in all others."""
        row = self.blank(*stats.shape[:-1])
        columns = self.columns_of(key, windows)
        row[..., columns] = stats[..., : columns.stop - columns.start]
        return row

    def blank(self, *shape: int) -> Float32s:
        """Returns f32[*shape, F] of NaN."""
        return np.full((*shape, self.width), np.nan, np.float32)

    def cold_start(self, windows: Windows) -> Float32s:
        """Returns f32[1, f]: the statistics of a key without a past."""
        rows = KeyedRows(
            key=np.zeros(1, np.int64),
            time=np.zeros(1, np.int64),
            labels=np.full((1, len(self.facts.tasks)), np.nan),
            counts=np.zeros(1, bool),
            fold=None if self.timed else np.full(1, -1),
        )
        values = statistics.statistics(rows, self.delays_ms, self.priors, windows)
        return values.astype(np.float32)

    def calendar(self, time: Ints) -> Float32s:
        """Returns f32[B, F]: hour and day of the week, where rows have a time."""
        row = self.blank(len(time))
        if self.timed:
            start = self.names.index(statistics.CALENDAR_NAMES[0])
            row[:, start : start + len(statistics.CALENDAR_NAMES)] = statistics.calendar(time)
        return row

    def item_ages(self, published: Ints, moment: Ints | int) -> Float32s:
        """Returns f32[.., F]: time since the items were published, where the catalogue says when.

        `published` and `moment` are broadcast; an item of a later moment is 0 seconds old.
        """
        seconds = np.maximum(moment - published, 0) / 1000
        row = self.blank(*seconds.shape)
        if PUBLISHED in self.names:
            known = np.where(published == NO_TIME, np.nan, np.log1p(seconds))
            row[..., self.names.index(PUBLISHED)] = known
        return row

    def group(self, prefixes: tuple[str, ...]) -> NDArray[np.bool_]:
        """Returns bool[F]: columns whose names start with one of the prefixes."""
        return np.array([n.startswith(prefixes) for n in self.names])


def overlay(*parts: Float32s) -> Float32s:
    """Returns rows with the columns of several parts, each NaN in the others' columns."""
    row = parts[0].copy()
    for part in parts[1:]:
        np.copyto(row, part, where=~np.isnan(part))
    return row


def rows_of_pairs(
    layout: SnapshotColumns,
    users: UserSnapshot,
    items: ItemSnapshot,
    user: Ints,
    item: Ints,
    numeric: Float32s | None = None,
) -> Arrays:
    """Returns pairs i64[m] of users and items at the end of the data as rows.

    The items' columns are those of their snapshot, or `numeric` f32[m, F], those of the moment.
    What a row says of its own event (`events.categorical`, `events.lists`) is not known of them.
    """
    facts, own = layout.facts, items.numeric[item] if numeric is None else numeric
    num_categories, num_codes = len(facts.category_sizes), sum(facts.several_widths)
    categories = [
        category_statistics(items, column, own, user, item)
        for column, own in users.categories.items()
    ]
    told: Arrays = {"categorical": np.zeros((len(item), max(num_categories, 1)), np.int32)}
    if facts.several_sizes:
        told[SEVERAL] = np.zeros((len(item), max(num_codes, 1)), np.int32)
    if users.outcomes is not None:
        told[OUTCOME] = users.outcomes[user]
    if users.given is not None:
        told[GIVEN] = users.given.place[user]
    return told | {
        "person": users.person[user],
        MOMENT: users.moment[user],
        "user": users.user[user],
        "item": item,
        "time": np.full(len(item), layout.end),
        "history": users.history[user],
        "history_age": users.ages[user],
        "numeric": overlay(own, users.numeric[user], *categories),
    }


def category_statistics(
    items: ItemSnapshot, column: str, own: UserCategoryStatistics, user: Ints, item: Ints
) -> Float32s:
    """Returns f32[m, F]: what users did before with the items' values of a column.

    NaN for an item without a value, as in a row; pooled over several values.
    """
    if column in items.values:
        return value_statistics(items, column, own, user, item)
    code = items.codes[column][item]
    found = statistics_of_pairs(own, items.default[column], user, code)
    found[code < 0] = np.nan
    return found


def value_statistics(
    items: ItemSnapshot, column: str, own: UserCategoryStatistics, user: Ints, item: Ints
) -> Float32s:
    """Returns f32[m, F]: what users did before with the several values of items, pooled."""
    known = items.values[column]
    values = known.of_items.take(item)
    few = replace(own, numeric=own.numeric[:, known.columns])
    default = items.default[column][known.columns]
    each = statistics_of_pairs(few, default, user[values.rows], values.codes.astype(np.int64))
    found = np.full((len(item), len(items.default[column])), np.nan, np.float32)
    found[:, known.columns] = pooled(each, values.offsets, known.timed)
    return found


def statistics_of_pairs(
    own: UserCategoryStatistics, default: Float32s, user: Ints, code: Ints
) -> Float32s:
    """Returns f32[m, F]: the statistics of pairs of user and value, or the default f32[F]."""
    found = np.repeat(default[None], len(code), 0)
    size = max(int(code.max(initial=0)), int(own.category.max(initial=0))) + 1
    order = np.argsort(own.user * size + own.category, kind="stable")
    keys, wanted = (own.user * size + own.category)[order], user * size + code
    if len(keys):
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        there = (keys[place] == wanted) & (code >= 0)
        found[there] = own.numeric[order[place[there]]]
    return found


def no_category_statistics(layout: SnapshotColumns) -> UserCategoryStatistics:
    """Returns statistics without a pair of user and category."""
    none = np.zeros(0, np.int64)
    return UserCategoryStatistics(none, none, layout.blank(0))


def new_users(layout: SnapshotColumns, ids: list[str], moment: int | None = None) -> UserSnapshot:
    """Returns users of whom there is no row, at a moment in ms: by default the end of the data."""
    num = len(ids)
    moments = np.full(num, layout.end if moment is None else moment)
    numeric = layout.scatter("user", WINDOWS_MS, np.repeat(layout.cold_start(WINDOWS_MS), num, 0))
    none = np.full((num, layout.facts.history_last), -1)
    return UserSnapshot(
        ids=np.array(ids, object),
        person=hash_strings(pa.array(ids, pa.string())).view(np.int64),
        moment=moments,
        user=np.zeros(num, np.int64),
        history=none,
        ages=np.zeros_like(none),
        numeric=overlay(numeric, layout.calendar(moments)),
        categories={column: no_category_statistics(layout) for column in layout.pair_keys},
        outcomes=np.zeros_like(none) if layout.facts.history_outcomes else None,
    )


def blocks(users: UserSnapshot, size: int) -> Iterator[UserSnapshot]:
    """Yields the users in blocks of at most `size`."""
    for start in range(0, len(users), size):
        yield users.of(start, min(start + size, len(users)))
