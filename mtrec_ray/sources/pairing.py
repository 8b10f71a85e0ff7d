"""Which tables are logs, and which table is whose catalogue: by names and by ids in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mtrec_ray.data.tables import Table, Tables, quoted
from mtrec_ray.sources.columns import ITEM, TITLE, USER, Column, says

SAMPLED_IDS = 10_000
LEAST_SHARED = 0.5  # of the log's ids must be in the catalogue
EXACT_SHARED = 0.1  # ... or so many where both columns have the same name

Columns = Mapping[str, Sequence[Column]]


@dataclass(frozen=True)
class Pair:
    """A log and its catalogue.

    Attributes:
        user, item: columns of the log.
        catalogue, id: None where items are known from the log alone.
        shared: share of the log's items that the catalogue has.
        plain: whether ids are the same only without zeros around them: 12, `00012`, `12.0`.
    """

    log: Table
    user: Column
    item: Column
    catalogue: Table | None = None
    id: Column | None = None
    shared: float = 1.0
    plain: bool = False

    @property
    def item_sql(self) -> str:
        """The log's item as an id, in SQL."""
        return as_id(self.item, self.plain)

    @property
    def id_sql(self) -> str:
        """The catalogue's id, in SQL."""
        assert self.id is not None
        return as_id(self.id, self.plain)


def is_id(column: Column) -> bool:
    """Returns whether a column can hold ids: text or whole numbers, no moments, no long texts."""
    short = column.is_text and column.width <= 64
    number = column.is_whole or (column.is_number and says(column.name, ("id", *USER, *ITEM)))
    return (short or number) and column.unit is None and not column.is_flag


def is_key(column: Column) -> bool:
    """Returns whether a column can be a catalogue's id: hardly any value stands twice."""
    return (
        is_id(column)
        and column.distinct >= 0.9 * column.rows
        and column.known >= 0.99 * column.rows
    )


def user_of(columns: Sequence[Column], *, once: bool = False) -> Column | None:
    """Returns the column of users of a log: by its name, or the ids that repeat most.

    `once`: each user may have a single row.
    """
    ids = [c for c in columns if is_id(c) and c.known and (once or not is_key(c))]
    named = [c for c in ids if says(c.name, USER)]
    order = {word: place for place, word in enumerate(USER)}
    if named:
        return min(named, key=lambda c: min(order[w] for w in USER if says(c.name, (w,))))
    others = [
        c for c in ids if c.distinct > 12 and says(c.name, ("id",)) and not says(c.name, ITEM)
    ]
    return max(others, key=lambda c: c.distinct, default=None)


def pairs_of(tables: Tables, opened: Sequence[Table], columns: Columns) -> list[Pair]:
    """Returns a pair for each log; of logs with the same catalogue only the one with most rows."""
    users = [(log, user) for log in opened if (user := user_of(columns[log.name]))]
    found = [p for log, user in users if (p := pair_of(tables, log, opened, columns, user))]
    best: dict[str, Pair] = {}
    for pair in found:
        key = pair.catalogue.name if pair.catalogue else pair.log.name
        if key not in best or pair.log.rows > best[key].log.rows:
            best[key] = pair
    catalogues = {p.catalogue.name for p in best.values() if p.catalogue}
    return [p for p in best.values() if p.log.name not in catalogues]


def pair_of(
    tables: Tables, log: Table, opened: Iterable[Table], columns: Columns, user: Column
) -> Pair | None:
    """Returns a log with the catalogue that fits it best; None where nothing names an item."""
    candidates = [
        c for c in columns[log.name] if is_id(c) and c is not user and not says(c.name, USER)
    ]
    others = [other for other in opened if other is not log]
    for plain, repeated in ((False, False), (True, False), (False, True)):
        scored = [
            (pair.shared + fitness(pair, columns[other.name]), pair)
            for other in others
            for column in candidates
            for key in columns[other.name]
            if (may_repeat(column, key, columns[other.name]) if repeated else is_key(key))
            and (pair := shared_pair(tables, Pair(log, user, column, other, key, plain=plain)))
        ]
        if scored:
            return max(scored, key=lambda s: s[0])[1]
    named = [c for c in candidates if says(c.name, ITEM) and not is_key(c)]
    return Pair(log, user, named[0]) if named else None


def may_repeat(column: Column, key: Column, columns: Sequence[Column]) -> bool:
    """Returns whether a column that repeats is a catalogue's id: by its name, without users."""
    people = any(says(c.name, USER) for c in columns)
    return is_id(key) and key.rows > 0 and key.name == column.name and not people


def fitness(pair: Pair, columns: Sequence[Column]) -> float:
    """Returns how much names and texts speak for a catalogue, beside the share of common ids."""
    log, other, key = pair.log, pair.catalogue, pair.id
    assert other is not None
    assert key is not None
    near = log.files[0].parent == other.files[0].parent
    same_start = log.name.split("_")[0].lower() == other.name.split("_")[0].lower()
    titled = any(c.is_text and says(c.name, TITLE) for c in columns)
    item = says(pair.item.name, ITEM) + (pair.item.name == key.name)
    return 0.5 * titled + 0.5 * item + 0.3 * near + 0.3 * same_start


def shared_pair(tables: Tables, pair: Pair) -> Pair | None:
    """Returns a pair with its share of common ids, by a sample of the log's; None of too few."""
    assert pair.catalogue is not None
    assert pair.id is not None
    if pair.plain and not (pair.item.is_text or pair.id.is_text):
        return None
    ids = f"""
        SELECT DISTINCT {pair.item_sql} AS id FROM {pair.log.sql}
        WHERE {quoted(pair.item.name)} IS NOT NULL LIMIT {SAMPLED_IDS}"""
    keys = f"SELECT {pair.id_sql} FROM {pair.catalogue.sql}"
    share = float(tables.value(f"SELECT avg((id IN ({keys}))::INT) FROM ({ids})") or 0.0)
    least = EXACT_SHARED if pair.item.name == pair.id.name else LEAST_SHARED
    return replace(pair, shared=share) if share >= least else None


def as_id(column: Column, plain: bool = False) -> str:
    """Returns a column as ids in SQL: text; numbers with a fraction of zero without it.

    `plain`: whole numbers that are text without zeros before them and a fraction of zero, too.
    """
    name = quoted(column.name)
    if plain and column.is_text:
        number = rf"regexp_extract({name}, '^0*(\d+?)(?:\.0+)?$', 1)"
        return f"coalesce(nullif({number}, ''), {name})"
    if column.is_number and not column.is_whole:
        return f"try_cast({name} AS BIGINT)::VARCHAR"
    return f"{name}::VARCHAR"
