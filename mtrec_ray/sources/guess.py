"""A scenario from a log and its catalogue: what each column is, and why."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mtrec_ray.data.columns import UNITS_PER_SECOND
from mtrec_ray.data.tables import Table, Tables, literal, quoted
from mtrec_ray.sources.columns import (
    CONTEXT,
    EVENT,
    RATING,
    SHOWN,
    TIME,
    Column,
    says,
    words_of,
)
from mtrec_ray.sources.draft import Draft, moment
from mtrec_ray.sources.files import SPLIT_WORDS, root_of, splits_of
from mtrec_ray.sources.guess_items import guess_items, items_from_log, used_of
from mtrec_ray.sources.pairing import Pair

GENERIC = {"items", "item", "catalogue", "catalog", "meta", "metadata", "info", "data", "list",
           "table", "dim"}  # fmt: skip
SPLITS = {"train", "valid", "test"}
MOST_EVENT_TYPES = 12
MOST_RATINGS = 201
# How times stand in text; the first that reads them is taken. The month comes before the day, and
# years of two digits before those of four, whose form would read 10 as the year 10.
DAYS = (
    "%Y%m%d", "%Y/%m/%d", "%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y",
    "%d-%m-%Y", "%m-%d-%Y",
)  # fmt: skip
CLOCKS = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", "%H%M%S")
LEAST_READ = 0.98  # of the texts that are times
LEAST_POSITIVES = 20


@dataclass
class Log:
    """What the columns of a log are; `used` are all that have a place."""

    time: Column | None = None
    time_sql: str | None = None  # of what is read as time stamps
    clock: Column | None = None  # the time of day, where the time is a date
    split: Column | None = None
    event_type: Column | None = None
    rating: Column | None = None
    flags: list[Column] = field(default_factory=list)


def read_log(tables: Tables, pair: Pair, columns: Sequence[Column]) -> Log:
    """Returns what the columns of a log are, other than its ids."""
    others = [c for c in columns if c is not pair.user and c is not pair.item and c.distinct > 0]
    log = Log()
    log.time, log.time_sql = time_of(tables, pair.log, others)
    if log.time and log.time.kind == "DATE":
        log.clock = next((c for c in others if c.kind == "TIME"), None)
        log.time_sql = f"{quoted(log.time.name)} + {quoted(log.clock.name)}" if log.clock else None
    others = [c for c in others if c not in (log.time, log.clock)]
    log.split = next((c for c in others if c.is_text and split_words(c) == SPLITS), None)
    flags = [c for c in others if c.is_flag and not says(c.name, CONTEXT)]
    log.flags = [c for c in flags if c.distinct == 2 or c.low in ("1", "1.0")]
    named = [c for c in others if c.is_number and says(c.name, RATING) and c.distinct > 2]
    log.rating = next((c for c in named if c.distinct <= MOST_RATINGS), None)
    types = [c for c in others if c.is_text and 2 <= c.distinct <= MOST_EVENT_TYPES]
    log.event_type = next((c for c in types if says(c.name, EVENT)), None)
    return log


def time_of(
    tables: Tables, table: Table, columns: Sequence[Column]
) -> tuple[Column | None, str | None]:
    """Returns the column of times, and how to read it where it is text."""
    moments = [c for c in columns if c.is_moment and c.known >= 0.5 * c.rows]
    named = [c for c in moments if says(c.name, TIME)]
    stamps = [c for c in moments if c.is_stamp]
    for chosen in (named, stamps, moments):
        if chosen:
            return max(chosen, key=lambda c: c.distinct), None
    for column in columns:
        whole_day = column.is_whole and len(column.low) == len(column.high) in (8, 14)
        if (column.is_text or whole_day) and says(column.name, TIME):
            for sql in readings_of(tables, table, column):
                read = tables.value(f"SELECT count({sql}) FROM {table.sql}")
                if read > LEAST_READ * max(column.known, 1):
                    return column, sql
    return None, None


def readings_of(tables: Tables, table: Table, column: Column) -> list[str]:
    """Returns how a column can be read as time stamps in SQL, by a sample of its values."""
    name = f"{quoted(column.name)}::VARCHAR"
    iso = [f"try_cast({name} AS TIMESTAMPTZ)::TIMESTAMP"] if column.is_text else []
    forms = [day + clock for clock in CLOCKS for day in DAYS]
    every = iso + [f"try_strptime({name}, {literal(form)})" for form in forms]
    sample = f"FROM {table.sql} WHERE {quoted(column.name)} IS NOT NULL LIMIT 10000"
    counts = ", ".join(f"count({sql})" for sql in every)
    known, *read = tables.rows(f"SELECT count(*), {counts} FROM (SELECT * {sample})")[0]
    return [sql for sql, number in zip(every, read, strict=True) if number > LEAST_READ * known]


def split_words(column: Column) -> set[str | None]:
    """Returns the splits that a column's values name, such as valid for validation; else None."""
    return {SPLIT_WORDS.get(value.lower()) for value in column.values}


def guess(tables: Tables, pair: Pair, log: Sequence[Column], items: Sequence[Column]) -> Draft:
    """Returns the scenario of a pair; `log` and `items` are the columns of its two tables."""
    roles = read_log(tables, pair, log)
    draft = Draft(name_of(pair), "", "", {}, {}, {})
    if pair.catalogue and pair.id:
        guess_items(tables, draft, pair, items)
    else:
        items_from_log(tables, draft, pair, [c for c in log if c not in (pair.user, roles.time)])
    guess_events(tables, draft, pair, roles)
    allow_unknown_items(tables, draft, pair)
    tell_unused(draft, pair, roles, log)
    return draft


def name_of(pair: Pair) -> str:
    """Returns the scenario's name: what log and catalogue have in common, or the catalogue's."""
    own = pair.log.name
    words = words_of(own)
    if pair.catalogue:
        common = [w for w in words if w in words_of(pair.catalogue.name)]
        rest = [w for w in words_of(pair.catalogue.name) if w not in GENERIC]
        words = common or rest or [root_of(pair.log.files[0]).resolve().name]
    name = re.sub(r"[^a-z0-9_-]+", "_", "_".join(words).lower()).strip("_-")
    return name if name[:1].isalpha() else f"s_{name}"


def guess_events(tables: Tables, draft: Draft, pair: Pair, log: Log) -> None:
    """Add the log of a pair: ids, time, split, tasks."""
    table = pair.log
    draft.event_fields = {"user": pair.user.name, "item": pair.item.name}
    draft.why["events.path"] = f"{table.rows:,} rows of {table.label}"
    draft.why["events.user"] = f"about {pair.user.distinct:,} values"
    replaced: dict[str, str] = {}
    added: dict[str, str] = {}
    if log.time:
        add_time(tables, draft, table, log, replaced)
    if split := splits_of(table.files):
        draft.split_column = "split"
        cases = " ".join(f"WHEN {literal(str(f))} THEN '{s}'" for f, s in split.items())
        added["split"] = f"CASE filename {cases} END"
        draft.why["split"] = "by the names of the files"
    elif log.split:
        draft.split_column = log.split.name
        if not set(log.split.values) <= SPLITS:
            replaced[log.split.name] = split_sql(log.split)
    if pair.plain:
        replaced[pair.item.name] = pair.item_sql
    replaced |= {c.name: f"({c.label_sql})::FLOAT" for c in log.flags if c.yes is not None}
    where = f"{quoted(pair.user.name)} IS NOT NULL"
    if log.event_type and not log.flags:
        tasks_of_events(tables, draft, pair, log, log.event_type)
        return
    add_tasks(tables, draft, table, log)
    draft.events, changed = changed_query(table, replaced, added, where)
    draft.events_path = None if changed else table.own_path


def add_time(
    tables: Tables, draft: Draft, table: Table, log: Log, replaced: dict[str, str]
) -> None:
    """Add the time of a log; a text, a date with a time of day are read as time stamps."""
    assert log.time is not None
    name, unit = log.time.name, log.time.unit
    draft.event_fields["time"] = name
    sql = log.time_sql or quoted(name)
    first, last = tables.rows(f"SELECT min({sql}), max({sql}) FROM {table.sql}")[0]
    draft.why["events.time"] = f"from {moment(first, unit)} to {moment(last, unit)}"
    if log.time_sql:
        replaced[name] = log.time_sql
        form = re.search("'(.*%.*)'", log.time_sql)
        draft.why["events.time"] += f", read as {form[1]}" if form else ""
    elif unit and unit != "s":
        draft.event_fields["time_unit"] = unit


def split_sql(column: Column) -> str:
    """Returns a column of words such as validation as train, valid and test, in SQL."""
    cases = " ".join(
        f"WHEN {literal(value)} THEN '{SPLIT_WORDS[value.lower()]}'" for value in column.values
    )
    return f"CASE {quoted(column.name)} {cases} END"


def changed_query(
    table: Table, replaced: dict[str, str], added: dict[str, str], where: str
) -> tuple[str, bool]:
    """Returns the query of a log, and whether it changes anything."""
    swaps = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in replaced.items())
    news = "".join(f", {sql} AS {quoted(name)}" for name, sql in added.items())
    columns = "*" + (f" REPLACE ({swaps})" if swaps else "") + news
    return f"SELECT {columns} FROM {table.sql} WHERE {where}", bool(swaps or news)


def add_tasks(tables: Tables, draft: Draft, table: Table, log: Log) -> None:
    """Add a task for each column of 0 and 1, two for ratings, or that a row happened at all."""
    counts = {column: positives(tables, table, column) for column in log.flags}
    flags = [column for column, number in counts.items() if number >= LEAST_POSITIVES]
    for column in sorted(flags, key=lambda c: -counts[c]):
        task = task_name(column.name)
        label = {} if task == column.name else {"label": column.name}
        draft.tasks[task] = {"kind": "binary", **label}
        share = f"{column.yes or 1} in {counts[column] / column.known:.1%} of the rows"
        draft.why[f"tasks.{task}"] = f"{share} where it is known"
    if flags:
        add_parent(tables, draft, table, {c.name: c.label_sql for c in flags})
    if log.rating:
        rating = log.rating.name
        cut, share = best_cut(tables, table, rating)
        if not draft.tasks:
            label = {"column": rating, "at_least": cut}
            draft.tasks["like"] = {"kind": "binary", "label": label}
            draft.why["tasks.like"] = f"{rating} of {cut:g} or more: {share:.0%} of the rows"
        label = {} if task_name(rating) == rating else {"label": rating}
        draft.tasks[task_name(rating)] = {"kind": "regression", **label}
        draft.why[f"tasks.{task_name(rating)}"] = f"from {log.rating.low} to {log.rating.high}"
    if not draft.tasks:
        draft.tasks["take"] = {"kind": "binary", "label": 1}
        draft.why["tasks.take"] = "no column is a label: that a row happened is the positive"
    binary = [task for task, spec in draft.tasks.items() if spec["kind"] == "binary"]
    draft.history = binary[0] if binary else "any"


def add_parent(tables: Tables, draft: Draft, table: Table, labels: Mapping[str, str]) -> None:
    """Make tasks that are known only where the first one is 1 conditional on it."""
    parent, *others = draft.tasks
    first = labels[draft.tasks[parent].get("label", parent)]
    for task in others:
        label = labels[draft.tasks[task].get("label", task)]
        known, elsewhere = tables.rows(
            f"SELECT count({label}), count({label}) FILTER (WHERE {first} IS DISTINCT FROM 1) "
            f"FROM {table.sql}"
        )[0]
        if not elsewhere and known < table.rows:
            draft.tasks[task]["given"] = parent
            draft.why[f"tasks.{task}"] = f"known only where {parent} is 1"


def positives(tables: Tables, table: Table, column: Column) -> int:
    """Returns how many rows have a 1."""
    return int(tables.value(f"SELECT count(*) FROM {table.sql} WHERE {column.label_sql} = 1"))


def best_cut(tables: Tables, table: Table, rating: str) -> tuple[float, float]:
    """Returns the rating from which on the share of rows is nearest to a half, and the share."""
    name = quoted(rating)
    counts = tables.rows(
        f"SELECT {name}::DOUBLE, count(*) FROM {table.sql} WHERE {name} IS NOT NULL GROUP BY 1 "
        "ORDER BY 1 DESC"
    )
    rows, above, shares = sum(n for _, n in counts), 0, {}
    for value, number in counts[:-1]:
        above += number
        shares[value] = above / rows
    return min(shares.items(), key=lambda s: abs(s[1] - 0.5))


def task_name(column: str) -> str:
    """Returns a column's name as the name of a task: letters, digits, _ and -."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", column).strip("_")
    return name if name[:1].isalpha() else f"t_{name}"


def tasks_of_events(tables: Tables, draft: Draft, pair: Pair, log: Log, event_type: Column) -> None:
    """Add a log with a row for each user, item and day, and a task for each type of event."""
    table, kind = pair.log, quoted(event_type.name)
    user = quoted(pair.user.name)
    item = pair.item_sql if pair.plain else quoted(pair.item.name)
    counts = tables.rows(
        f"SELECT {kind}, count(*) FROM {table.sql} WHERE {kind} IS NOT NULL GROUP BY 1 "
        f"HAVING count(*) >= {LEAST_POSITIVES} ORDER BY 2 DESC, 1"
    )
    names = {task_name(str(value).lower()): str(value) for value, _ in counts}
    if table.parts:
        names = tell_parts(draft, pair, names)
    labels = "".join(
        f", max(({kind} = {literal(value)})::INT)::FLOAT AS {quoted(task)}"
        for task, value in names.items()
    )
    time = log.time_sql or (quoted(log.time.name) if log.time else None)
    day, first = "", ""
    if log.time and time:
        size = UNITS_PER_SECOND.get(log.time.unit or "")
        day = f", {time} // {86_400 * size}" if size else f", date_trunc('day', {time})"
        first = f", min({time}) AS {quoted(log.time.name)}"
    draft.events = f"""
        SELECT {user}, {item} AS {quoted(pair.item.name)}{first}{labels}
        FROM {table.sql} WHERE {user} IS NOT NULL GROUP BY {user}, {item}{day}"""
    delay = {"delay": "1d"} if day else {}
    for task in names:
        draft.tasks[task] = {"kind": "binary", **delay}
        what = f"{event_type.name} is {names[task]}"
        draft.why[f"tasks.{task}"] = f"it stands in the log of {task}" if table.parts else what
    draft.why["events.path"] = (
        f"of {table.rows:,} rows of {table.label}: a row for each user, item"
        + (" and day, at its first event" if day else "")
    )


def tell_parts(draft: Draft, pair: Pair, names: dict[str, str]) -> dict[str, str]:
    """Returns the tasks of a log that was joined, without that of what was only shown.

    Where nothing was only shown, each row is a positive, and negatives are drawn.
    """
    parts = " and ".join(f"{label} ({rows:,} rows)" for label, rows in pair.log.parts)
    draft.notes.append(
        f"{parts} have the same {pair.user.name} and {pair.item.name}, and names that say what "
        "happened: they are one log, with a label for each"
    )
    done = {task: value for task, value in names.items() if not says(value, SHOWN)} or names
    draft.positives_alone = len(done) == len(names)
    return done


def allow_unknown_items(tables: Tables, draft: Draft, pair: Pair) -> None:
    """Allow for rows whose item the catalogue lacks, where they are more than the default."""
    if pair.catalogue is None or pair.id is None:
        return
    ids = f"SELECT {pair.id_sql} FROM {pair.catalogue.sql}"
    item = quoted(pair.item.name)
    known = f"avg(({pair.item_sql} IN ({ids}))::INT)"
    share = 1 - float(tables.value(f"SELECT {known} FROM {pair.log.sql} WHERE {item} IS NOT NULL"))
    draft.allow_unknown_items(share)


def tell_unused(draft: Draft, pair: Pair, log: Log, columns: Sequence[Column]) -> None:
    """Add a note of the log's columns that have no place."""
    used = {pair.user, pair.item, log.time, log.clock, log.split, log.event_type, log.rating}
    others = [c for c in columns if c not in {*used, *log.flags} and c.name != "filename"]
    of_items = set() if pair.catalogue else used_of(draft)
    named = [c.name for c in others if c.name not in of_items]
    if named:
        draft.notes.append(
            f"not used of the log: {', '.join(named)} (what is known when the row happens may "
            "stand in events.categorical or events.numeric)"
        )
