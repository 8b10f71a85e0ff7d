"""Users of a split at the moment of their first row in it, to rank the whole catalogue for.

A user asks with the history and the statistics of that row. The list is measured
against the user's positives in the split, from that row on.

Letters: B users, H history items.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.as_of import categories_as_of, log_rows, places_among
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.end_states import CatalogueColumns, user_parts, users_at_end
from mtrec_ray.data.interactions import is_met
from mtrec_ray.data.preparing import statistics
from mtrec_ray.data.shards import OUTCOME, Arrays, concatenate, read_rows
from mtrec_ray.data.snapshot import SnapshotColumns, UserCategoryStatistics, UserSnapshot
from mtrec_ray.project.split import SPLITS

BATCH_ROWS = 65_536


@dataclass(frozen=True)
class AskingUsers:
    """Users who ask for recommendations, each at a moment of their own.

    Attributes:
        users: in the order of their persons.
        moments: i64[B], in ms.
        positives: by user, the items that the list should hold, sorted.
        seen: persons [m] and items [m] of the rows that they had before they asked.
    """

    users: UserSnapshot
    moments: Ints
    positives: list[Ints]
    seen: tuple[Ints, Ints]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: Ints) -> "AskingUsers":
        """Returns some of the users, in the order of `rows`."""
        positives = [self.positives[i] for i in rows]
        return AskingUsers(self.users.take(rows), self.moments[rows], positives, self.seen)

    def blocks(self, size: int) -> Iterator["AskingUsers"]:
        """Yields the users in blocks of at most `size`."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def without_seen(self) -> "AskingUsers":
        """Returns the users who have unseen positives, with these alone."""
        place = places_among(self.users.person, self.seen[0])
        order = np.argsort(place, kind="stable")
        items, ends = self.seen[1][order], np.arange(len(self) + 1)
        ends = np.searchsorted(place[order], ends)
        positives = [
            np.setdiff1d(wanted, items[ends[i] : ends[i + 1]])
            for i, wanted in enumerate(self.positives)
        ]
        left = np.flatnonzero([len(wanted) > 0 for wanted in positives])
        return replace(self, positives=positives).take(left)


def asking_users(
    layout: SnapshotColumns,
    catalogue: CatalogueColumns,
    task: str,
    limit: int,
    split: str = "test",
) -> AskingUsers:
    """Returns at most `limit` users with positives of a task in a split, drawn by a fixed hash."""
    persons = persons_with_positives(layout, task, split)
    persons = np.sort(persons[np.argsort(hash_ints(persons, 0), kind="stable")][:limit])
    if not len(persons):
        none = np.zeros(0, np.int64)
        return AskingUsers(no_users(layout), none, [], (none, none))
    rows = rows_in_split(layout, persons, split)
    first = first_rows(rows, len(persons))
    moments = rows["time"][first]
    users = users_of_rows(layout, persons, rows["row"][first], split)
    if layout.timed:
        categories = categories_as_of(layout, catalogue, persons, moments)
    else:
        categories = categories_at_end(layout, persons)
    return AskingUsers(
        users=replace(users, categories=categories),
        moments=moments,
        positives=positives_of(layout, task, rows, len(persons)),
        seen=seen_before(layout, persons, moments, split),
    )


def no_users(layout: SnapshotColumns) -> UserSnapshot:
    """Returns a snapshot without users."""
    none, history = np.zeros(0, np.int64), np.zeros((0, layout.facts.history_last), np.int64)
    return UserSnapshot(np.zeros(0, object), none, none, none, history, history, layout.blank(0))


def is_positive(layout: SnapshotColumns, task: str, labels: NDArray[np.float32]) -> NDArray[Any]:
    """Returns bool[N]: rows whose label of a task is 1."""
    return labels[:, layout.facts.tasks.index(task)] == 1


def persons_with_positives(layout: SnapshotColumns, task: str, split: str) -> Ints:
    """Returns sorted persons who have a positive of a task in a split."""
    persons = np.zeros(0, np.int64)
    for arrays in log_rows(layout, (split,), ("person", "labels")):
        hit = is_positive(layout, task, arrays["labels"])
        persons = np.union1d(persons, arrays["person"][hit])
    return persons


def rows_in_split(layout: SnapshotColumns, persons: Ints, split: str) -> Arrays:
    """Returns a split's rows of some sorted persons; `person` holds places among them."""
    parts = []
    for arrays in log_rows(layout, (split,), ("person", "item", "time", "labels")):
        place = places_among(persons, arrays["person"])
        arrays["person"] = place
        parts.append({name: values[place >= 0] for name, values in arrays.items()})
    return concatenate(parts)


def first_rows(rows: Arrays, num_persons: int) -> Ints:
    """Returns i64[B], the index of each person's earliest row; of equally early ones the first."""
    order = np.lexsort([rows["row"], rows["time"], rows["person"]])
    return order[np.searchsorted(rows["person"][order], np.arange(num_persons))]


def positives_of(layout: SnapshotColumns, task: str, rows: Arrays, num_persons: int) -> list[Ints]:
    """Returns the sorted items of each person's positives of a task."""
    hit = is_positive(layout, task, rows["labels"])
    pairs = np.unique(
        np.stack([rows["person"][hit], rows["item"][hit].astype(np.int64)], 1), axis=0
    )
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, num_persons)))


def seen_before(
    layout: SnapshotColumns, persons: Ints, moments: Ints, split: str
) -> tuple[Ints, Ints]:
    """Returns persons and items of the rows that some sorted persons had before the moment of each.

    Without time: of their rows in earlier splits. Negatives that the log holds are no rows.
    """
    splits = SPLITS if layout.timed else SPLITS[: SPLITS.index(split)]
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for arrays in log_rows(layout, splits, ("person", "item", "time", "labels")):
        place = places_among(persons, arrays["person"])
        kept = (place >= 0) & is_met(layout.scenario, layout.facts.tasks, arrays)
        if layout.timed:
            kept &= arrays["time"] < moments[place]
        parts.append((arrays["person"][kept], arrays["item"][kept].astype(np.int64)))
    who, what = (np.concatenate(part) for part in zip(*parts, strict=True))
    return who, what


def users_of_rows(layout: SnapshotColumns, persons: Ints, row: Ints, split: str) -> UserSnapshot:
    """Returns the users as their rows of a split with the numbers `row` describe them."""
    wanted, parts = np.sort(row), []
    paths = layout.prepared.shard_paths(layout.name, split)
    for arrays in read_rows(paths, BATCH_ROWS, 0, 2**62):
        is_wanted = places_among(wanted, arrays["row"]) >= 0
        parts.append({name: values[is_wanted] for name, values in arrays.items()})
    rows = concatenate(parts)
    order = np.argsort(rows["person"])
    rows = {name: values[order] for name, values in rows.items()}
    assert (rows["person"] == persons).all()
    of_user = layout.group(("user.", *statistics.CALENDAR_NAMES))
    return UserSnapshot(
        ids=persons.astype(str).astype(object),
        person=persons,
        moment=rows["time"].astype(np.int64),
        user=rows["user"].astype(np.int64),
        history=rows["history"].astype(np.int64),
        ages=rows["history_age"].astype(np.int64),
        numeric=np.where(of_user, rows["numeric"], np.nan).astype(np.float32),
        outcomes=rows[OUTCOME].astype(np.int64) if layout.facts.history_outcomes else None,
    )


def categories_at_end(layout: SnapshotColumns, persons: Ints) -> dict[str, UserCategoryStatistics]:
    """Returns statistics of sorted persons by category, without time: those of training alone."""
    by_column: dict[str, list[UserCategoryStatistics]] = {c: [] for c in layout.pair_keys}
    for part in user_parts(layout.prepared, layout.name):
        state = users_at_end(layout, part)
        number = places_among(persons, state.person)
        for column, parts in by_column.items():
            parts.append(state.categories[column].renumbered(number))
    return {
        column: UserCategoryStatistics(
            *(
                np.concatenate([getattr(p, k) for p in parts])
                for k in ("user", "category", "numeric")
            )
        )
        for column, parts in by_column.items()
    }
