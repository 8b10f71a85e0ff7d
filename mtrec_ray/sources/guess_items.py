"""The catalogue of a scenario: what its columns are, or what a log without one says of items."""

import re
from collections.abc import Sequence

from mtrec_ray.data.tables import Tables, quoted
from mtrec_ray.project.column_fields import template_columns
from mtrec_ray.sources.columns import CHANGED, FUTURE, PUBLISHED, TEXT, TITLE, Column, says
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.pairing import Pair

ADDRESSES = ("url", "uri", "link", "image", "img", "imgs", "picture", "poster", "path", "icon")
GROUPS = (
    "category", "categories", "genre", "genres", "brand", "author", "authors", "type", "lang",
    "language", "department", "aisle", "publisher", "artist", "tag", "tags", "site", "city",
    "color", "store", "group", "subcategory", "topic", "source", "country", "format", "studio",
    "kategorie", "marke", "gruppe", "farbe", "categoria", "marca", "genero", "categorie", "marque",
)  # fmt: skip
# Numbers that are names: nothing grows with them.
CODES = ("id", "code", "key", "nr", "ean", "gtin", "upc", "sku", "isbn", "barcode", "zip", "plz")
PLAIN_NAME = r"(?!\d+$)[^\s.{}!:\[\]]([^.{}!:\[\]]*[^\s.{}!:\[\]])?"  # fits into a template


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
    draft.items_path = table.own_path if clean else None
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
