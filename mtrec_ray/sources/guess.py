"""A scenario from a log and its catalogue: what each column is, and why."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtrec_ray.project.scenario import template_columns
from mtrec_ray.sources.columns import (
    CHANGED,
    CONTEXT,
    EVENT,
    FUTURE,
    PUBLISHED,
    RATING,
    TEXT,
    TIME,
    TITLE,
    Column,
    says,
    words_of,
)  # fmt: skip
from mtrec_ray.sources.draft import Draft, moment
from mtrec_ray.sources.files import SPLIT_WORDS, root_of, splits_of
from mtrec_ray.sources.pairing import Pair
from mtrec_ray.sources.tables import Table, Tables, literal, quoted

ADDRESSES = ("url", "uri", "link", "image", "img", "imgs", "picture", "poster", "path", "icon")
GROUPS = (
    "category", "categories", "genre", "genres", "brand", "author", "authors", "type", "lang",
    "language", "department", "aisle", "publisher", "artist", "tag", "tags", "site", "city",
    "color", "store", "group", "subcategory", "topic", "source", "country", "format", "studio",
    "kategorie", "marke", "gruppe", "farbe", "categoria", "marca", "genero", "categorie", "marque",
)  # fmt: skip
# Numbers that are names: nothing grows with them.
CODES = ("id", "code", "key", "nr", "ean", "gtin", "upc", "sku", "isbn", "barcode", "zip", "plz")
GENERIC = {"items", "item", "catalogue", "catalog", "meta", "metadata", "info", "data", "list",
           "table", "dim"}  # fmt: skip
PLAIN_NAME = r"(?!\d+$)[^\s.{}!:\[\]]([^.{}!:\[\]]*[^\s.{}!:\[\]])?"  # fits into a template
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


# --- the catalogue ---------------------------------------------------------------------------


def guess_items(tables: Tables, draft: Draft, pair: Pair, columns: Sequence[Column]) -> None:
    """Add the catalogue of a pair."""
    table, key = pair.catalogue, pair.id
    assert table is not None
    assert key is not None
    others = [c for c in columns if c is not key and c.known]
    lists = [c for c in others if c.kind == "VARCHAR[]"]
    distinct = tables.value(f"SELECT count(DISTINCT {pair.id_sql}) FROM {table.sql}")
    clean = distinct == table.rows == key.known and not lists and not pair.plain
    joined = [f"array_to_string({quoted(c.name)}, ', ') AS {quoted(c.name)}" for c in lists]
    joined += [f"{pair.id_sql} AS {quoted(key.name)}"] if pair.plain else []
    replaced = f" REPLACE ({', '.join(joined)})" if joined else ""
    query = f"SELECT *{replaced} FROM {table.sql} WHERE {quoted(key.name)} IS NOT NULL"
    if distinct < table.rows:
        query = f"SELECT DISTINCT ON ({quoted(key.name)}) * FROM ({query})"
        draft.notes.append(
            f"{table.label}: {table.rows - distinct:,} rows repeat an item or have none; left out"
        )
    draft.items = f"{query} ORDER BY {quoted(key.name)}"
    draft.items_path = own_path(table) if clean else None
    draft.why["items.path"] = f"{table.rows:,} rows of {table.label}"
    draft.why["items.id"] = f"{pair.shared:.0%} of the log's {pair.item.name} are here" + (
        ", as numbers without zeros around them" if pair.plain else ""
    )
    draft.item_fields = {"id": key.name, **item_fields(draft, others)}
    noted = [c for c in others if c.is_number and says(c.name, FUTURE)]
    unused = [c.name for c in others if c.name not in used_of(draft) and c not in noted]
    if unused:
        draft.notes.append(f"not used of the catalogue: {', '.join(unused)}")


def used_of(draft: Draft) -> set[str]:
    """Returns the columns of the catalogue that have a place."""
    fields = draft.item_fields
    listed = [*fields.get("categorical", ()), *fields.get("numeric", ())]
    return {*template_columns(fields["text"]), *listed, fields.get("published", fields["id"])}


def item_fields(draft: Draft, columns: Sequence[Column]) -> dict[str, object]:
    """Returns text, categories, numbers and time of publication of a catalogue's columns."""
    plain = [c for c in columns if not says(c.name, ADDRESSES)]
    future = [c for c in plain if c.is_number and says(c.name, FUTURE)]
    if future:
        draft.notes.append(
            f"not used: {', '.join(c.name for c in future)}: as far as the name tells counted over "
            "the whole log, which would tell the future"
        )
    plain = [c for c in plain if c not in future]
    texts = text_columns(plain)
    groups = [c for c in plain if is_group(c) and c not in texts[:1]]
    numbers = [c for c in plain if c.is_number and not c.is_moment and not says(c.name, CODES)]
    dates = [c for c in plain if c.is_moment and not says(c.name, CHANGED)]
    published = [c for c in dates if c.is_stamp or says(c.name, PUBLISHED)]
    template = ". ".join(f"{{{c.name}}}" for c in texts) or "{" + draft_id(columns) + "}"
    draft.why["items.text"] = "what the language model reads" if texts else "there is no text"
    fields: dict[str, object] = {"text": template}
    if groups:
        fields["categorical"] = [c.name for c in groups]
    if numbers := [c for c in numbers if c not in groups and c.distinct > 1]:
        fields["numeric"] = [c.name for c in numbers]
    if published:
        fields["published"] = published[0].name
    return fields


def draft_id(columns: Sequence[Column]) -> str:
    """Returns a column that can stand in a template where there is no text."""
    return next((c.name for c in columns if c.is_text), columns[0].name if columns else "item_id")


def text_columns(columns: Sequence[Column]) -> list[Column]:
    """Returns the columns that a person would read: title, groups in words, description."""
    fit = [
        c for c in columns
        if (c.is_text or c.kind == "VARCHAR[]") and re.fullmatch(PLAIN_NAME, c.name)
        and (not says(c.name, ("id",)) or " " in "".join(c.values))
    ]  # fmt: skip
    titles = [c for c in fit if says(c.name, TITLE)] or [c for c in fit if c.width > 12][:1]
    groups = [c for c in fit if says(c.name, GROUPS) and c not in titles and c.width < 80]
    longer = [c for c in fit if says(c.name, TEXT) and c not in titles and c not in groups]
    return titles[:2] + groups[:3] + longer[:1]


def is_group(column: Column) -> bool:
    """Returns whether a column's values group items: at most half as many as there are items."""
    few = 2 <= column.distinct <= max(column.rows // 2, 2)
    return few and says(column.name, GROUPS) and (column.is_text or column.is_whole)


def items_from_log(tables: Tables, draft: Draft, pair: Pair, columns: Sequence[Column]) -> None:
    """Add a catalogue of what the log says of its items, where each item has one value."""
    item, table = quoted(pair.item.name), pair.log.sql
    items = tables.value(f"SELECT count(DISTINCT {item}) FROM {table}")
    own = []
    for column in columns:
        if column is pair.item or column.is_flag or column.is_list:
            continue
        pairs = f"SELECT DISTINCT {item}, {quoted(column.name)} FROM {table}"
        if tables.value(f"SELECT count(*) FROM ({pairs})") <= 1.1 * items + column.known * 0.001:
            own.append(column)
    taken = ", ".join(f"mode({quoted(c.name)}) AS {quoted(c.name)}" for c in own)
    draft.items = (
        f"SELECT {item}{', ' + taken if taken else ''} FROM {table} WHERE {item} IS NOT NULL "
        f"GROUP BY {item} ORDER BY {item}"
    )
    draft.why["items.path"] = f"there is no catalogue: what {pair.log.label} says of its items"
    draft.item_fields = {"id": pair.item.name, **item_fields(draft, own or [pair.item])}


# --- the log ---------------------------------------------------------------------------------


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
    add_tasks(tables, draft, table, log, added)
    draft.events, changed = changed_query(table, replaced, added, where)
    draft.events_path = None if changed else own_path(table)


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


def own_path(table: Table) -> Path | None:
    """Returns where the table's Parquet files lie by themselves; None where they do not."""
    if not all(file.suffix == ".parquet" for file in table.files) or table.whole is None:
        return None
    return table.whole.resolve()


def add_tasks(tables: Tables, draft: Draft, table: Table, log: Log, added: dict[str, str]) -> None:
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
            added["like"] = f"({quoted(rating)} >= {cut:g})::FLOAT"
            draft.tasks["like"] = {"kind": "binary"}
            draft.why["tasks.like"] = f"{rating} of {cut:g} or more: {share:.0%} of the rows"
        label = {} if task_name(rating) == rating else {"label": rating}
        draft.tasks[task_name(rating)] = {"kind": "regression", **label}
        draft.why[f"tasks.{task_name(rating)}"] = f"from {log.rating.low} to {log.rating.high}"
    if not draft.tasks:
        added["take"] = "1::FLOAT"
        draft.tasks["take"] = {"kind": "binary"}
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
    labels = "".join(
        f", max(({kind} = {literal(value)})::INT)::FLOAT AS {quoted(task)}"
        for task, value in names.items()
    )
    time = log.time_sql or (quoted(log.time.name) if log.time else None)
    day, first = "", ""
    if log.time and time:
        size = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}.get(log.time.unit or "")
        day = f", {time} // {86_400 * size}" if size else f", date_trunc('day', {time})"
        first = f", min({time}) AS {quoted(log.time.name)}"
    draft.events = f"""
        SELECT {user}, {item} AS {quoted(pair.item.name)}{first}{labels}
        FROM {table.sql} WHERE {user} IS NOT NULL GROUP BY {user}, {item}{day}"""
    delay = {"delay": "1d"} if day else {}
    for task in names:
        draft.tasks[task] = {"kind": "binary", **delay}
        draft.why[f"tasks.{task}"] = f"{event_type.name} is {names[task]}"
    draft.why["events.path"] = (
        f"of {table.rows:,} rows of {table.label}: a row for each user, item"
        + (" and day, at its first event" if day else "")
    )


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
