"""A small sample world: shop, news and video events with a preference that is planted in the text.

Eight topics are shared by all scenarios. Every item is written about one topic, sometimes a little
about a second one; every user prefers one to three topics, the same ones in each scenario. Whether
a user likes an item depends mostly on whether the topics meet, and little on the item's quality
and the user's generosity, which no column shows. So a model that reads the text does much better
than popularity, also on items that it has never seen, and what it learns in one scenario helps in
the others.

Four dials ask when one model for all scenarios is better than one for each (`Dials`).

Only numpy and pyarrow: the world can be written without Ray and torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from mtrec_ray.data import storage
from mtrec_ray.data.columns import DAY_MS
from mtrec_ray.data.sample_scenarios import (
    SCENARIOS,
    WorldItems,
    WorldPairs,
    WorldScenario,
    timestamps,
)
from mtrec_ray.data.sample_texts import TOPICS, item_text
from mtrec_ray.project.base import ProjectError

SMALL = "news"  # the scenario that may have fewer events


MAX_TOPICS_PER_USER = 3


SECOND_TOPIC_CHANCE = 0.25


SECOND_TOPIC_SHARE = 0.35


CHOSEN_EXPOSURE = 0.15  # share of events where the user was shown a preferred topic on purpose


GOLDEN = 0.6180339887498949  # its multiples are spread evenly over 0..1


USER_ACTIVITY_SKEW = 1.5  # rank = uniform ** skew: 1 is uniform, more favours the first ranks


ITEM_POPULARITY_SKEW = 1.7


MAX_FILL = 0.5  # of all user-item pairs; above, distinct pairs become hard to draw


MINUTE_MS = 60_000


WORLD_DAYS = 90


PUBLISHED_BEFORE_START_DAYS = 10


PUBLISHED_UNTIL_DAY = 85


@dataclass(frozen=True)
class Dials:
    """What decides whether scenarios can learn from one another; by default they can.

    Attributes:
        common_users: share of users who are the same people in all scenarios; the others are
            different people in each.
        small_events: events of `news`; None: as many as the others have.
        small_days: how long before the end `news` begins; None: as long as the others.
        in_text: share of taste that lies in the text; the rest lies in groups of items that no
            column shows. (What users are shown follows the topics of the text in any case.)
        conflict: share of users whose preferred topics are others in each scenario.
    """

    common_users: float = 1.0
    small_events: int | None = None
    small_days: float | None = None
    in_text: float = 1.0
    conflict: float = 0.0


SHARED = Dials()  # every scenario can learn from the others


@dataclass(frozen=True)
class WorldUsers:
    """Hidden taste of the users: `preference` is 0/1, (users, topics).

    `common`: bool (users), whether a user is the same person in all scenarios.
    """

    preference: np.ndarray
    generosity: np.ndarray
    common: np.ndarray


def write_sample_world(
    root: str, *, seed: int, users: int, items: int, events: int, dials: Dials = SHARED
) -> None:
    """`root/{shop,news,video}/{items,events}.parquet`; the same seed and sizes, the same rows.

    Args:
        root: Folder or URI, made if missing; files of an earlier world are overwritten.
        seed: Seed of all random choices.
        users: Number of users of each scenario; by default all share them.
        items: Number of items of each scenario.
        events: Number of events of each scenario, sorted by time, no user-item pair twice.
        dials: What scenarios have in common.

    Raises:
        ProjectError: fewer items than topics, no user, no event, or events over half of the pairs.
    """
    _check_sizes(users, items, {"events": events, "small_events": dials.small_events or 1})
    people = _draw_users(np.random.default_rng([seed, 0]), users)
    for number, (name, scenario) in enumerate(SCENARIOS.items(), start=1):
        rng = np.random.default_rng([seed, number])
        more = np.random.default_rng([seed, number, 1])  # of the dials: they move no other draw
        catalogue = _draw_items(rng, more, items, scenario.lifetime_days)
        own = _people_of(more, people, dials)
        own_events = dials.small_events if name == SMALL and dials.small_events else events
        pairs = _draw_pairs(rng, own, catalogue, own_events, scenario.lifetime_days, dials.in_text)
        if name == SMALL and dials.small_days is not None:
            late = _later(catalogue.published_ms, dials.small_days)
            catalogue = replace(catalogue, published_ms=late)
            pairs = replace(pairs, time_ms=_later(pairs.time_ms, dials.small_days))
        for kind, table in (
            ("items", _items_table(rng, name, scenario, catalogue)),
            ("events", _events_table(rng, name, scenario, pairs)),
        ):
            storage.write_table(storage.join(root, name, f"{kind}.parquet"), table)


def _later(time_ms: np.ndarray, days: float) -> np.ndarray:
    """Returns times since the start, pressed into the last days of the world."""
    start = (WORLD_DAYS - days) * DAY_MS
    return (start + time_ms * (days / WORLD_DAYS)).astype(np.int64)


def _check_sizes(users: int, items: int, events: Mapping[str, int]) -> None:
    if items < len(TOPICS):
        raise ProjectError(
            [f"sample_world.items: found {items}; allowed: {len(TOPICS)} (one a topic) or more"]
        )
    if users < 1 or min(events.values()) < 1:
        found = ", ".join(f"{field} {num}" for field, num in {"users": users, **events}.items())
        raise ProjectError([f"sample_world: found {found}; allowed: 1 or more"])
    most = int(MAX_FILL * users * items)
    allowed = f"allowed: up to {most} ({MAX_FILL:.0%} of users x items)"
    lines = [
        f"sample_world.{field}: found {num}; {allowed}"
        for field, num in events.items()
        if num > most
    ]
    if lines:
        raise ProjectError(lines)


def _draw_users(rng: np.random.Generator, users: int) -> WorldUsers:
    order = rng.random((users, len(TOPICS))).argsort(axis=1).argsort(axis=1)
    num_preferred = rng.integers(1, MAX_TOPICS_PER_USER + 1, size=(users, 1))
    preference = (order < num_preferred).astype(np.float64)
    return WorldUsers(preference, rng.standard_normal(users), np.ones(users, bool))


def _people_of(rng: np.random.Generator, people: WorldUsers, dials: Dials) -> WorldUsers:
    """Returns the users of a scenario: some are other people, some have other tastes there."""
    others, number = _draw_users(rng, len(people.generosity)), np.arange(len(people.generosity))
    common = number < round(dials.common_users * len(number))
    differs = number * GOLDEN % 1 < dials.conflict  # the same users in all scenarios
    preference = np.where((common & ~differs)[:, None], people.preference, others.preference)
    generosity = np.where(common, people.generosity, others.generosity)
    return WorldUsers(preference, generosity, common)


def _draw_items(
    rng: np.random.Generator, more: np.random.Generator, items: int, lifetime_days: int | None
) -> WorldItems:
    topic = rng.permutation(np.arange(items) % len(TOPICS))
    other = (topic + rng.integers(1, len(TOPICS), size=items)) % len(TOPICS)
    second = np.where(rng.random(items) < SECOND_TOPIC_CHANCE, other, topic)
    shares = np.zeros((items, len(TOPICS)))
    np.add.at(shares, (np.arange(items), topic), 1 - SECOND_TOPIC_SHARE)
    np.add.at(shares, (np.arange(items), second), SECOND_TOPIC_SHARE)
    first_ms, last_ms = -PUBLISHED_BEFORE_START_DAYS * DAY_MS, PUBLISHED_UNTIL_DAY * DAY_MS
    published_ms = rng.integers(first_ms, last_ms, size=items)
    if lifetime_days is None:
        published_ms = np.zeros(items, dtype=np.int64)
    group = np.eye(len(TOPICS))[more.permutation(np.arange(items) % len(TOPICS))]
    return WorldItems(topic, second, shares, group, rng.standard_normal(items), published_ms)


def _draw_pairs(
    rng: np.random.Generator,
    users: WorldUsers,
    items: WorldItems,
    events: int,
    lifetime_days: int | None,
    in_text: float,
) -> WorldPairs:
    user_order = rng.permutation(len(users.generosity))
    item_order = rng.permutation(len(items.topic))
    keys = np.empty(0, dtype=np.int64)
    while len(keys) < events:
        user = user_order[_skewed_ranks(rng, len(user_order), events, USER_ACTIVITY_SKEW)]
        item = item_order[_skewed_ranks(rng, len(item_order), events, ITEM_POPULARITY_SKEW)]
        chosen = rng.random(events) < CHOSEN_EXPOSURE
        item[chosen] = _preferred_items(rng, users.preference[user[chosen]], items.topic)
        keys = np.concatenate([keys, user * len(item_order) + item])
        _, first = np.unique(keys, return_index=True)
        keys = keys[np.sort(first)]
    user, item = np.divmod(keys[:events], len(item_order))
    time_ms = _event_times(rng, items.published_ms[item], lifetime_days)
    order = np.argsort(time_ms, kind="stable")
    user, item, time_ms = user[order], item[order], time_ms[order]
    shares = in_text * items.shares[item] + (1 - in_text) * items.group[item]
    match = (users.preference[user] * shares).sum(axis=1)
    return WorldPairs(
        user, item, time_ms, match, items.quality[item], users.generosity[user], users.common[user]
    )


def _skewed_ranks(rng: np.random.Generator, size: int, num: int, skew: float) -> np.ndarray:
    return (size * rng.random(num) ** skew).astype(np.int64)


def _preferred_items(
    rng: np.random.Generator, preference: np.ndarray, topic: np.ndarray
) -> np.ndarray:
    """Returns one random item a row, of a topic that the row's user prefers."""
    wanted = (preference * rng.random(preference.shape)).argmax(axis=1)
    by_topic = np.argsort(topic, kind="stable")
    counts = np.bincount(topic, minlength=len(TOPICS))
    starts = np.cumsum(counts) - counts
    return by_topic[starts[wanted] + (counts[wanted] * rng.random(len(wanted))).astype(np.int64)]


def _event_times(
    rng: np.random.Generator, published_ms: np.ndarray, lifetime_days: int | None
) -> np.ndarray:
    """Returns milliseconds since `START`; soon after publishing where items have a lifetime."""
    if lifetime_days is None:
        return rng.integers(0, WORLD_DAYS * DAY_MS, size=len(published_ms))
    first = np.maximum(published_ms + MINUTE_MS, 0)
    last = np.minimum(published_ms + lifetime_days * DAY_MS, WORLD_DAYS * DAY_MS)
    return first + ((last - first) * rng.beta(1, 4, size=len(first))).astype(np.int64)


def _items_table(
    rng: np.random.Generator, name: str, scenario: WorldScenario, items: WorldItems
) -> pa.Table:
    kinds = scenario.phrases.kinds
    kind = np.array(kinds)[rng.integers(0, len(kinds), size=len(items.topic))]
    texts = [
        item_text(rng, scenario.phrases, topic, second, flavour)
        for topic, second, flavour in zip(items.topic, items.second, kind, strict=True)
    ]
    columns = {
        "item_id": _ids(name, np.arange(len(kind))),
        "title": pa.array([title for title, _ in texts]),
        "description": pa.array([description for _, description in texts]),
    }
    return pa.table(columns | scenario.extra_columns(rng, items, kind))


def _events_table(
    rng: np.random.Generator, name: str, scenario: WorldScenario, pairs: WorldPairs
) -> pa.Table:
    common = np.asarray(_ids("user", pairs.user))
    own = np.asarray(_ids(f"{name}_user", pairs.user))
    columns = {
        "user_id": pa.array(np.where(pairs.common, common, own).tolist(), pa.string()),
        "item_id": _ids(name, pairs.item),
        "time": timestamps(pairs.time_ms),
    }
    return pa.table(columns | scenario.labels(rng, pairs))


def _ids(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pa.array([f"{prefix}_{number:05d}" for number in numbers])
