"""Logs of one catalogue, a file for each kind of event (views, clicks, purchases), as one log."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mtrec_ray.data.tables import Table, Tables, literal, quoted
from mtrec_ray.project.base import ProjectError
from mtrec_ray.sources.columns import SHOWN, Column, columns_of, says, words_of
from mtrec_ray.sources.files import root_of
from mtrec_ray.sources.guess import read_log
from mtrec_ray.sources.pairing import Pair, pair_of, user_of

# Words of files' names that say what happened.
HAPPENED = (
    *SHOWN, "view", "visit", "pageview", "click", "play", "watch", "listen", "read", "download",
    "like", "favorite", "favourite", "save", "bookmark", "wishlist", "share", "comment", "follow",
    "cart", "basket", "order", "purchase", "buy", "sale", "transaction", "checkout", "booking",
    "payment", "return", "refund",
)  # fmt: skip
EVENT_COLUMN = "event"  # of a joined log: which file a row is of


def join_kinds(
    tables: Tables, opened: Sequence[Table], columns: dict[str, list[Column]]
) -> list[Table]:
    """Returns the tables, with one log in place of those that tell one kind of event each.

    They have the same columns of users and items, the same catalogue, no labels of their own, and
    names that say what happened. What is known of the new log's columns is added to `columns`.

    Raises:
        ProjectError: logs of one catalogue that nothing tells apart, or whose times differ.
    """
    groups: dict[tuple[object, ...], list[Pair]] = {}
    for pair in unlabelled_logs(tables, opened, columns):
        place = pair.catalogue.name if pair.catalogue else root_of(pair.log.files[0])
        groups.setdefault((place, pair.user.name, pair.item.name), []).append(pair)
    kept = list(opened)
    for pairs in groups.values():
        check_distinct(pairs)
        told = [pair for pair in pairs if happened(pair.log.name)]
        if told[1:]:
            check_times(tables, told, columns)
            joined = join(tables, told)
            columns[joined.name] = columns_of(tables, joined)
            parts = [pair.log for pair in told]
            kept = [table for table in kept if table not in parts] + [joined]
    return kept


def happened(name: str) -> str:
    """Returns the words of a table's name that say what happened, or an empty text."""
    return "_".join(word for word in words_of(name) if says(word, HAPPENED))


def unlabelled_logs(
    tables: Tables, opened: Sequence[Table], columns: Mapping[str, Sequence[Column]]
) -> list[Pair]:
    """Returns the logs whose columns have no labels, with their catalogues.

    Where a name says what happened, no user has to have two rows.
    """
    others = [table for table in opened if not happened(table.name)]
    pairs = []
    for table in opened:
        own = columns[table.name]
        user = user_of(own, once=bool(happened(table.name)))
        pair = pair_of(tables, table, others, columns, user) if user else None
        if pair and "filename" not in table.types:
            roles = read_log(tables, pair, own)
            if not (roles.flags or roles.rating or roles.event_type):
                pairs.append(pair)
    return pairs


def check_distinct(pairs: Sequence[Pair]) -> None:
    """Refuse logs of one catalogue that may be parts of one, or of two kinds: nothing tells.

    Raises:
        ProjectError: their names.
    """
    seen: dict[object, Table] = {}
    for pair in pairs:
        key = happened(pair.log.name) or frozenset(pair.log.types)
        if pair.catalogue and key in seen:
            raise ProjectError(
                [
                    f"PATH: found {seen[key].label} and {pair.log.label}, logs of the same items, "
                    "and nothing that tells whether they are parts of one; allowed: a folder or a "
                    "number for each part (events_1, events_2), or names of what happened (views, "
                    "purchases)"
                ]
            )
        seen[key] = pair.log


def check_times(
    tables: Tables, pairs: Iterable[Pair], columns: Mapping[str, Sequence[Column]]
) -> None:
    """Refuse logs whose rows cannot be put in one order.

    Raises:
        ProjectError: their times have different names or types, or one of them has none.
    """
    found = {}
    for pair in pairs:
        time = read_log(tables, pair, columns[pair.log.name]).time
        found[pair.log.label] = f"{time.name} ({time.kind})" if time else "no time"
    if len(set(found.values())) > 1:
        each = ", ".join(f"{time} in {label}" for label, time in found.items())
        allowed = "a column of the same name and type in each"
        raise ProjectError([f"PATH: found {each}; allowed: {allowed}"])


def join(tables: Tables, pairs: Sequence[Pair]) -> Table:
    """Returns one table of the rows of several logs: the columns they share, and whose each is."""
    logs = [pair.log for pair in pairs]
    ids = [pairs[0].user.name, pairs[0].item.name]
    first, *others = logs
    same = [c for c, kind in first.types.items() if all(o.types.get(c) == kind for o in others)]
    shared = [quoted(c) for c in same]
    shared += [f"{quoted(c)}::VARCHAR AS {quoted(c)}" for c in ids if c not in same]
    rows = " UNION ALL ".join(
        f"SELECT {', '.join(shared)}, {literal(happened(log.name))} AS {EVENT_COLUMN} "
        f"FROM {log.sql}"
        for log in logs
    )
    words = [w for w in words_of(first.name) if all(w in words_of(o.name) for o in others)]
    name = "_".join(words) or "_".join(happened(log.name) for log in logs)
    table = tables.view(f"{name} joined", rows, tuple(f for log in logs for f in log.files))
    return replace(table, parts=tuple((log.label, log.rows) for log in logs))
