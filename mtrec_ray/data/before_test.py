"""Test users at their first moment of test, and the catalogue as it was before test."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.end_states import user_parts, users_at_end
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing import statistics
from mtrec_ray.data.preparing.samples import FIRST_NEGATIVE
from mtrec_ray.data.preparing.statistics import NO_WINDOWS, WINDOWS_MS
from mtrec_ray.data.shards import Arrays, read_rows
from mtrec_ray.data.snapshot import (
    PUBLISHED,
    ItemSnapshot,
    SnapshotColumns,
    UserCategoryStatistics,
    UserSnapshot,
    no_category_statistics,
    overlay,
)

BATCH_ROWS = 65_536


def read_split(prepared: Prepared, name: str, split: str) -> Arrays:
    """All rows of a split, without their numbers."""
    parts = [
        {k: a[k] for k in ("row", "person", "item", "time", "labels")}
        for a in read_rows(prepared.shard_paths(name, split), BATCH_ROWS, 0, 2**62)
    ]
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def first_test_moments(
    layout: SnapshotColumns, task: str, limit: int
) -> tuple[UserSnapshot, list[NDArray[np.int64]]]:
    """At most so many test users with positives (drawn by a fixed hash), and these, as items."""
    prepared, name = layout.prepared, layout.name
    facts = prepared.scenarios[name]
    rows = read_split(prepared, name, "test")
    hit = (rows["labels"][:, facts.tasks.index(task)] == 1) & (rows["row"] < FIRST_NEGATIVE)
    who = np.unique(rows["person"][hit])
    who = np.sort(who[np.argsort(hash_ints(who, 0), kind="stable")][:limit])
    first = first_rows(rows, who)
    positives = [np.zeros(0, np.int64)] * len(who)
    order = np.argsort(rows["person"][hit], kind="stable")
    persons, items = rows["person"][hit][order], rows["item"][hit][order].astype(np.int64)
    for i, (a, b) in enumerate(zip(*bounds(persons, who), strict=True)):
        positives[i] = np.unique(items[a:b])
    return users_of_rows(layout, who, first), positives


def bounds(values: NDArray[Any], wanted: NDArray[Any]) -> tuple[NDArray[np.int64], ...]:
    """Where each wanted value starts and stops among sorted ones."""
    return np.searchsorted(values, wanted), np.searchsorted(values, wanted, side="right")


def first_rows(rows: Arrays, who: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row number of the earliest row of each person, sampled negatives left out."""
    real = np.flatnonzero(rows["row"] < FIRST_NEGATIVE)
    order = real[np.lexsort([rows["row"][real], rows["time"][real], rows["person"][real]])]
    start, _ = bounds(rows["person"][order], who)
    return rows["row"][order][start]


def users_of_rows(
    layout: SnapshotColumns, who: NDArray[np.int64], row: NDArray[np.int64]
) -> UserSnapshot:
    """The users as some rows of test say that they were."""
    prepared, name = layout.prepared, layout.name
    wanted = np.sort(row)
    parts = []
    for arrays in read_rows(prepared.shard_paths(name, "test"), BATCH_ROWS, 0, 2**62):
        place = np.minimum(np.searchsorted(wanted, arrays["row"]), len(wanted) - 1)
        mine = wanted[place] == arrays["row"]
        parts.append({k: v[mine] for k, v in arrays.items()})
    found = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    order = np.argsort(found["person"])
    found = {k: v[order] for k, v in found.items()}
    assert (found["person"] == who).all()
    mine = layout.group(("user.", *statistics.CALENDAR_NAMES))
    return UserSnapshot(
        ids=who.astype(str).astype(object),
        person=who,
        user=found["user"].astype(np.int64),
        history=found["history"].astype(np.int64),
        ages=found["history_age"].astype(np.int64),
        numeric=np.where(mine, found["numeric"], np.nan).astype(np.float32),
    )


def latest(keys: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row with the greatest time of each key, in the order of keys."""
    order = np.lexsort([time, keys])
    last = np.concatenate([np.diff(keys[order]) != 0, [True]])
    return order[last]


def before_test(
    layout: SnapshotColumns, items: ItemSnapshot, users: UserSnapshot
) -> tuple[ItemSnapshot, UserSnapshot]:
    """Items and users' categories as their last rows before test left them."""
    if not layout.timed:
        return items, users_with_end_entries(layout, users)
    own = layout.group(("item.", "category."))
    nothing = layout.spread("item", WINDOWS_MS, layout.nothing(WINDOWS_MS))
    for column in items.codes:
        key = f"category.{column}"
        nothing = overlay(nothing, layout.spread(key, NO_WINDOWS, layout.nothing(NO_WINDOWS)))
    numeric = np.repeat(nothing, len(items.ids), 0)
    seen = np.full(len(items.ids), np.iinfo(np.int64).min)
    entries: dict[str, list[tuple[Any, ...]]] = {c: [] for c in items.codes}
    for split in ("train", "valid"):
        paths = layout.prepared.shard_paths(layout.name, split)
        for arrays in read_rows(paths, BATCH_ROWS, 0, 2**62):
            last = latest(arrays["item"].astype(np.int64), arrays["time"])
            item = arrays["item"][last]
            newer = arrays["time"][last] >= seen[item]
            seen[item[newer]] = arrays["time"][last][newer]
            numeric[item[newer]] = np.where(own, arrays["numeric"][last][newer], np.nan)
            for column, code in items.codes.items():
                entries[column].append(entry_rows(arrays, code, users.person))
    if PUBLISHED in layout.names:  # of the moment: the end's is near enough for all users
        numeric[:, layout.names.index(PUBLISHED)] = items.numeric[:, layout.names.index(PUBLISHED)]
    found = {c: newest_entries(layout, c, parts) for c, parts in entries.items()}
    before = ItemSnapshot(items.ids, items.known, numeric, items.codes, items.empty)
    return before, with_entries(users, found)


def entry_rows(
    arrays: Arrays, code: NDArray[np.int64], persons: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """Users' places, categories, times and numbers of the rows of some persons."""
    place = np.minimum(np.searchsorted(persons, arrays["person"]), len(persons) - 1)
    category = code[arrays["item"]]
    mine = (persons[place] == arrays["person"]) & (category >= 0)
    return place[mine], category[mine], arrays["time"][mine], arrays["numeric"][mine]


def newest_entries(
    layout: SnapshotColumns, column: str, parts: list[tuple[Any, ...]]
) -> UserCategoryStatistics:
    """The latest of the rows of each user and category."""
    user, category, time, numeric = (np.concatenate(x) for x in zip(*parts, strict=True))
    if not len(user):
        return no_category_statistics(layout)
    key = user * (int(category.max()) + 1) + category
    last = latest(key, time)
    mine = layout.group((f"user_category.{column}.",))
    values = np.where(mine, numeric[last], np.nan).astype(np.float32)
    return UserCategoryStatistics(
        user[last].astype(np.int64), category[last].astype(np.int64), values
    )


def with_entries(users: UserSnapshot, entries: dict[str, UserCategoryStatistics]) -> UserSnapshot:
    """The users with what they have of categories."""
    return UserSnapshot(
        users.ids, users.person, users.user, users.history, users.ages, users.numeric, entries
    )


def users_with_end_entries(layout: SnapshotColumns, users: UserSnapshot) -> UserSnapshot:
    """The users with their categories at the end, which without time is training alone."""
    found: dict[str, list[UserCategoryStatistics]] = {
        c: [] for c in layout.scenario.items.statistics_columns
    }
    for part in user_parts(layout.prepared, layout.name):
        state = users_at_end(layout, part)
        place = np.minimum(np.searchsorted(users.person, state.person), len(users) - 1)
        mine = np.flatnonzero(users.person[place] == state.person)
        for column, own in state.take(mine).entries.items():
            found[column].append(
                UserCategoryStatistics(place[mine][own.user], own.category, own.numeric)
            )
    joined = {
        c: UserCategoryStatistics(
            np.concatenate([e.user for e in parts]),
            np.concatenate([e.category for e in parts]),
            np.concatenate([e.numeric for e in parts]),
        )
        for c, parts in found.items()
    }
    return with_entries(users, joined)
