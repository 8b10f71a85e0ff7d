"""What a column of a table may be, by its name and its values: an id, a time, a label, a text."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mtrec_ray.data.columns import plausible_unit
from mtrec_ray.data.tables import Table, Tables, literal, quoted

# Words of names in English, and the most usual in German, Spanish, French, Italian, Portuguese.
ITEM = (
    "item", "product", "movie", "film", "book", "isbn", "article", "news", "content", "video",
    "song", "track", "asin", "sku", "business", "game", "anime", "recipe", "goods", "stock", "post",
    "document", "doc", "ad", "listing", "course", "show", "artist", "place", "poi", "iid",
    "artikel", "produkt", "buch", "ware", "articulo", "producto", "libro", "pelicula", "produit",
    "livre", "articolo", "prodotto", "artigo", "produto",
)  # fmt: skip
# The first of them that is there is taken: a person before a mailbox, a mailbox before a session.
USER = (
    "user", "customer", "person", "reviewer", "member", "visitor", "account", "client", "uid",
    "viewer", "reader", "buyer", "player", "student", "kunde", "kunden", "nutzer", "benutzer",
    "usuario", "cliente", "utilisateur", "utente", "email", "mail", "session", "cookie", "device",
)  # fmt: skip
TIME = (
    "time", "timestamp", "date", "datetime", "ts", "created", "at", "day", "when", "datum", "zeit",
    "zeitpunkt", "zeitstempel", "fecha", "hora", "heure", "ora",
)  # fmt: skip
RATING = (
    "rating", "score", "stars", "star", "overall", "feedback", "grade", "preference", "rate",
    "bewertung", "sterne", "valoracion", "note", "voto", "nota",
)  # fmt: skip
EVENT = ("event", "action", "behavior", "behaviour", "interaction", "type", "kind", "ereignis",
         "evento", "accion")  # fmt: skip
# What was shown to somebody who need not have done anything.
SHOWN = ("impression", "exposure", "shown", "display")
TITLE = ("title", "name", "headline", "caption", "label", "titel", "bezeichnung", "titulo",
         "nombre", "titre", "nom", "titolo", "nome")  # fmt: skip
TEXT = ("description", "desc", "text", "summary", "abstract", "body", "overview", "content",
        "beschreibung", "descripcion", "descrizione", "descricao")  # fmt: skip
PUBLISHED = ("published", "released", "release", "publication", "shared", "upload", "uploaded")
# Dates of an item that are not its publication.
CHANGED = ("updated", "modified", "changed", "valid", "until", "end", "ended", "expires", "last")
# What stands in a catalogue and was counted over the whole log: it tells the future.
FUTURE = (
    "rating", "ratings", "score", "popularity", "count", "views", "likes", "sales", "sold",
    "members", "reviews", "review", "rank", "votes", "vote", "average", "total", "num",
)  # fmt: skip
# What 0 and 1 say of the moment, not of what the user did.
CONTEXT = (
    "mobile", "desktop", "app", "weekend", "holiday", "new", "member", "premium", "promo",
    "promotion", "discount", "logged", "guest", "bot", "test", "subscriber", "autoplay",
)  # fmt: skip
# Two values of which the first means 1.
ANSWERS = [
    {"y": "n"}, {"yes": "no"}, {"true": "false"}, {"t": "f"}, {"1": "-1"}, {"1.0": "-1.0"},
    {"ja": "nein"}, {"si": "no"}, {"s\u00ed": "no"}, {"oui": "non"}, {"like": "dislike"},
    {"up": "down"}, {"1": "0"}, {"1.0": "0.0"},
]  # fmt: skip

COUNTER = r"column\d+|unnamed.*|index|__index_level_\d+__|row(_?(id|number|num))?"

NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL",
           "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")  # fmt: skip


def words_of(name: str) -> list[str]:
    """Returns the words of a name, in lower case, without accents: `userId` is user and id."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", plain)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", parts) if word]


def says(name: str, hints: Iterable[str]) -> bool:
    """Returns whether a word of a name, or the whole of it, is one of some hints."""
    words = words_of(name)
    joined = "".join(words)
    known = set(hints)
    return bool(known & {*words, *(w.removesuffix("s") for w in words)}) or any(
        joined == f"{hint}{end}" for hint in known for end in ("", "id", "ids", "code", "no")
    )


@dataclass(frozen=True)
class Column:
    """What is known of a column.

    Attributes:
        name, kind: in the table; the type as DuckDB names it.
        rows, known, distinct: rows of the table, those that are not null, and about how many
            values they have.
        low, high: the least and the greatest value, as text.
        width: mean characters of a text, else 0.
        values: up to a dozen of its most frequent values, as text.
    """

    name: str
    kind: str
    rows: int
    known: int
    distinct: int
    low: str
    high: str
    width: float
    values: tuple[str, ...]

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.kind.startswith(NUMBERS)

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers."""
        return "INT" in self.kind

    @property
    def is_text(self) -> bool:
        """Whether it holds text."""
        return self.kind.startswith(("VARCHAR", "ENUM"))

    @property
    def is_stamp(self) -> bool:
        """Whether it holds time stamps or dates."""
        return self.kind.startswith(("TIMESTAMP", "DATE"))

    @property
    def is_list(self) -> bool:
        """Whether it holds lists, structures or maps."""
        return self.kind.endswith("]") or self.kind.startswith(("STRUCT", "MAP", "JSON"))

    @property
    def unit(self) -> str | None:
        """The unit in which its numbers are moments from 1990 to 2100; None if they are not."""
        if not self.is_number or self.distinct < 2:
            return None
        low, high = plausible_unit(float(self.low)), plausible_unit(float(self.high))
        return low if low == high else None

    @property
    def is_moment(self) -> bool:
        """Whether it can be the time of a row."""
        return self.is_stamp or self.unit is not None

    @property
    def is_flag(self) -> bool:
        """Whether it holds nothing but 0 and 1, or two values that answer yes and no."""
        plain = self.is_number and set(self.values) <= {"0", "1", "0.0", "1.0"}
        return self.kind == "BOOLEAN" or plain or self.yes is not None

    @property
    def yes(self) -> str | None:
        """The one of two values that means 1 (Y of Y and N, 1 of 1 and -1); None for 0 and 1."""
        values = {value.lower() for value in self.values}
        if self.is_number and values & {"0", "0.0"}:
            return None
        if not (self.is_text or self.is_number):
            return None
        return next((y for pair in ANSWERS for y, n in pair.items() if values == {y, n}), None)

    @property
    def label_sql(self) -> str:
        """Its values as labels in SQL, where it is a flag: 1, 0 or null."""
        name = quoted(self.name)
        if self.yes is None:
            return f"{name}::INT"
        return f"(lower({name}::VARCHAR) = {literal(self.yes)})::INT"


def columns_of(tables: Tables, table: Table) -> list[Column]:
    """Returns what is known of each column of a table, without those that number its rows."""
    plain = [
        n for n, kind in table.types.items() if not kind.endswith("]") and "STRUCT" not in kind
    ]
    lists = [n for n in table.types if n not in plain]
    found = [Column(n, table.types[n], table.rows, table.rows, 0, "", "", 0.0, ()) for n in lists]
    if not plain:
        return found
    parts = [
        f"count({c}), approx_count_distinct({c}), min({c})::VARCHAR, max({c})::VARCHAR, "
        f"avg(length({c}::VARCHAR)), approx_top_k({c}::VARCHAR, 12)"
        for c in map(quoted, plain)
    ]
    row = tables.rows(f"SELECT {', '.join(parts)} FROM {table.sql}")[0]
    each = len(row) // len(plain)
    for i, name in enumerate(plain):
        found.append(column_of(name, table, row[i * each : (i + 1) * each]))
    order = list(table.types)
    own = [c for c in found if not (c.is_whole and re.fullmatch(COUNTER, c.name.lower()))]
    return sorted(own, key=lambda c: order.index(c.name))


def column_of(name: str, table: Table, facts: tuple[Any, ...]) -> Column:
    """Returns a column of its facts, as `columns_of` asks for them."""
    known, distinct, low, high, width, values = facts
    kind = table.types[name]
    wide = float(width or 0) if kind.startswith("VARCHAR") else 0.0
    distinct = min(int(distinct), int(known))
    return Column(
        name, kind, table.rows, int(known), distinct, low or "", high or "", wide,
        tuple(values or ()),
    )  # fmt: skip
