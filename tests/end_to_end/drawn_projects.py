"""Projects drawn at random: files of many types, with gaps, and a project file from the schema.

Most choices are plain ones, so that several odd ones seldom meet: a project that is odd everywhere
is refused for one reason and says nothing of the others. Values are made by NumPy from a drawn
seed; what hypothesis makes smaller are the choices.

Letters: N rows, n items.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

START = 1_735_689_600  # 2025-01-01 in seconds
DAYS = 12

Ints = np.ndarray
Kind = Callable[[Ints], pa.Array]  # of whole numbers N to a column


@dataclass
class Drawn:
    """A project file and its Parquet files, by path."""

    tree: dict[str, Any]
    files: dict[str, pa.Table] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The project file, and of each table the columns with their first values."""
        lines = [f"\n{self.tree!r}"]
        for path, table in self.files.items():
            lines.append(f"{path}: {table.num_rows} rows")
            lines += [
                f"    {name!r} {column.type} {str(column.slice(0, 4).to_pylist())[:100]}"
                for name, column in zip(table.column_names, table.columns, strict=True)
            ]
        return "\n".join(lines)


# --- columns ---------------------------------------------------------------------------------


def texts(values: Ints) -> list[str]:
    """A text for each number."""
    return [f"k{v}" for v in values]


def uuids(values: Ints) -> pa.Array:
    """Sixteen bytes for each number."""
    return pa.array([uuid.UUID(int=int(v) + 2**100).bytes for v in values], pa.binary(16))


def decimals(values: Ints, places: str = "1.00") -> pa.Array:
    """Decimals of whole numbers."""
    return pa.array(
        [Decimal(int(v)).quantize(Decimal(places)) for v in values], pa.decimal128(20, 2)
    )


def cast(kind: pa.DataType) -> Kind:
    """A column of numbers in a type of Arrow."""
    return lambda values: pa.array(values, pa.int64()).cast(kind)


IDS: dict[str, Kind] = {
    "string": lambda v: pa.array(texts(v), pa.string()),
    "large_string": lambda v: pa.array(texts(v), pa.large_string()),
    "string_view": lambda v: pa.array(texts(v), pa.string_view()),
    "dictionary": lambda v: pa.array(texts(v), pa.string()).dictionary_encode(),
    "dictionary of numbers": lambda v: pa.array(v).dictionary_encode(),
    "bytes": lambda v: pa.array([t.encode() for t in texts(v)], pa.binary()),
    "bytes that are no text": lambda v: pa.array([b"\xe9%d" % i for i in v], pa.binary()),
    "large bytes": lambda v: pa.array([t.encode() for t in texts(v)], pa.large_binary()),
    "dictionary of bytes": lambda v: pa.array([t.encode() for t in texts(v)]).dictionary_encode(),
    **{f"int{b}": cast(pa.from_numpy_dtype(f"int{b}")) for b in (8, 16, 32, 64)},
    "uint8": cast(pa.uint8()),
    "uint64": lambda v: pa.array(v.astype(np.uint64) + np.uint64(2**63)),
    "large int64": lambda v: pa.array(v + 2**62),
    "float64": cast(pa.float64()),
    "float32": cast(pa.float32()),
    "float16": lambda v: pa.array(v.astype(np.float16)),
    "UUID bytes": uuids,
    "UUIDs": lambda v: pa.ExtensionArray.from_storage(pa.uuid(), uuids(v)),
    "decimal": decimals,
    "date": lambda v: pa.array(v.astype(np.int32) + 20_000, pa.date32()),
    "time stamp": lambda v: pa.array(v + START, pa.timestamp("s")),
    "zoned": lambda v: pa.array((v + START) * 1000, pa.timestamp("ms", "Europe/Berlin")),
    "time of day": lambda v: pa.array(v.astype(np.int32), pa.time32("s")),
    "time of day in us": lambda v: pa.array(v, pa.time64("us")),
    "duration": lambda v: pa.array(v, pa.duration("us")),
    "boolean": lambda v: pa.array(v % 2 == 0),
    "null": lambda v: pa.nulls(len(v)),
    "list": lambda v: pa.array([[int(i)] for i in v], pa.list_(pa.int64())),
    "struct": lambda v: pa.array([{"a": int(i)} for i in v], pa.struct([("a", pa.int64())])),
}
GOOD_IDS = ("string", "large_string", "dictionary", "int64", "bytes", "UUIDs", "float64", "int16")


SIZES = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def stamps(unit: str, zone: str | None = None) -> Kind:
    """Time stamps of a unit."""
    return lambda v: pa.array(v * SIZES[unit], pa.timestamp(unit, zone))


def scaled(size: int, dtype: str = "int64") -> Kind:
    """Times as numbers in a unit."""
    return lambda v: pa.array((v * size).astype(dtype))


def days(values: Ints) -> Ints:
    """Times as days since 1970."""
    return (values // 86_400).astype(np.int32)


def iso(values: Ints) -> list[str]:
    """Times as days in words, such as 2025-01-31."""
    return [str(day) for day in days(values).astype("M8[D]")]


TIMES: dict[str, Kind] = {
    **{f"stamps in {unit}": stamps(unit) for unit in ("s", "ms", "us", "ns")},
    "UTC": stamps("us", "UTC"),
    "zone": stamps("ms", "America/New_York"),
    "offset": stamps("s", "+02:00"),
    "dictionary of stamps": lambda v: stamps("ms")(v).dictionary_encode(),
    "dates": lambda v: pa.array(days(v), pa.date32()),
    "date64": lambda v: pa.array(days(v), pa.date32()).cast(pa.date64()),
    **{f"numbers in {unit}": scaled(size) for unit, size in SIZES.items()},
    "float seconds": lambda v: pa.array(v + 0.25),
    "float ms": lambda v: pa.array(v * 1000.0),
    "int32": scaled(1, "int32"),
    "uint64 in us": scaled(10**6, "uint64"),
    "float32": scaled(1, "float32"),
    "decimal": decimals,
    "days as numbers": lambda v: pa.array([int(d.replace("-", "")) for d in iso(v)], pa.int64()),
    "text": lambda v: pa.array(iso(v), pa.string()),
    "null": lambda v: pa.nulls(len(v)),
    "time of day": lambda v: pa.array((v % 86_400).astype(np.int32), pa.time32("s")),
    "duration": lambda v: pa.array(v, pa.duration("s")),
    "boolean": lambda v: pa.array(v % 2 == 0),
    "list": lambda v: pa.array([[int(i)] for i in v], pa.list_(pa.int64())),
}  # fmt: skip
GOOD_TIMES = tuple(TIMES)[:18]
UNITS = {
    "numbers in ms": "ms", "numbers in us": "us", "numbers in ns": "ns", "float ms": "ms",
    "uint64 in us": "us",
}  # fmt: skip


def floats_with(*odd: float) -> Kind:
    """Numbers, every seventh of them odd."""

    def make(values: Ints) -> pa.Array:
        found = values.astype(np.float64)
        found[::7] = np.resize(odd, len(found[::7]))
        return pa.array(found)

    return make


LABELS: dict[str, Kind] = {
    "int64": lambda v: pa.array(v % 2),
    "float64": lambda v: pa.array((v % 2).astype(float)),
    "boolean": lambda v: pa.array(v % 2 == 1),
    "int8": lambda v: pa.array((v % 2).astype(np.int8)),
    "dictionary": lambda v: pa.array(v % 2).dictionary_encode(),
    "decimal": lambda v: decimals(v % 2),
    "float16": lambda v: pa.array((v % 2).astype(np.float16)),
    "NaN": lambda v: floats_with(np.nan)(v % 2),
    "infinite": lambda v: floats_with(np.inf, -np.inf)(v % 2),
    "all 1": lambda v: pa.array(np.ones(len(v))),
    "all 0": lambda v: pa.array(np.zeros(len(v), int)),
    "stars": lambda v: pa.array(v % 5),
    "huge": lambda v: floats_with(1e300, 3e38)(v % 2),
    "large": lambda v: pa.array((v % 2) * 1e20),
    "text": lambda v: pa.array(texts(v % 2)),
    "null": lambda v: pa.nulls(len(v)),
    "dictionary of booleans": lambda v: pa.array(v % 2 == 1).dictionary_encode(),
    "list": IDS["list"],
}  # fmt: skip
GOOD_LABELS = ("int64", "float64", "boolean", "int8", "dictionary", "decimal", "NaN", "float16")

NUMBERS: dict[str, Kind] = {
    "float64": lambda v: pa.array(v * 0.5),
    "int64": lambda v: pa.array(v),
    "float32": lambda v: pa.array(v.astype(np.float32)),
    "NaN": floats_with(np.nan),
    "infinite": floats_with(np.inf, -np.inf),
    "huge": floats_with(1e300, -1e300, 3.4e38, 1e-300),
    "large": lambda v: pa.array(v * 1e37),
    "large int64": lambda v: pa.array(v + (2**63 - 1000)),
    "uint64": IDS["uint64"],
    "boolean": IDS["boolean"],
    "decimal": decimals,
    "float16": IDS["float16"],
    "constant": lambda v: pa.array(np.full(len(v), 7.5)),
    "null": IDS["null"],
    "dictionary": lambda v: pa.array(v * 0.5).dictionary_encode(),
    "all NaN": lambda v: pa.array(np.full(len(v), np.nan)),
    "text": IDS["string"],
    "list": IDS["list"],
}
GOOD_NUMBERS = tuple(NUMBERS)[:13]

ODD_TEXTS = ("\x00 \u202e{x} <b>\U0001f600", "", "  ")
TEXTS: dict[str, Kind] = {
    "string": lambda v: pa.array([f"thing number {i}" for i in v], pa.string()),
    "odd text": lambda v: pa.array([ODD_TEXTS[i % 3] for i in v], pa.string()),
    **{k: IDS[k] for k in IDS if k not in ("list", "struct")},
    "list": lambda v: pa.array([["a", "b"]] * len(v), pa.list_(pa.string())),
    "struct": IDS["struct"],
}  # fmt: skip
GOOD_TEXTS = (
    "string",
    "odd text",
    "dictionary",
    "bytes",
    "int64",
    "float64",
    "date",
    "zoned",
    "null",
)


def kind_of(draw: Random, kinds: Mapping[str, Kind], good: Sequence[str]) -> Kind:
    """Mostly a good kind of column, sometimes any."""
    return kinds[draw.choice(tuple(kinds) if seldom(draw, 20) else tuple(good))]


def seldom(draw: Random, one_in: int = 5) -> bool:
    """Whether something odd is drawn, once in so many draws."""
    return draw.randint(1, one_in) == one_in


def with_nulls(draw: Random, column: pa.Array, rng: np.random.Generator) -> pa.Array:
    """A column that may have nulls: few of them, or all."""
    share = draw.choice((0.005, 0.1, 0.2, 0.2, 1)) if seldom(draw, 8) else 0
    if not share or pa.types.is_null(column.type):
        return column
    nulls = rng.random(len(column)) < share
    plain = pa.string() if column.type == pa.string_view() else column.type
    return column.cast(plain).take(pa.array(np.arange(len(column)), mask=nulls)).cast(column.type)


# --- tables ----------------------------------------------------------------------------------

# Names that the project uses for columns of its own, and names that formats and tools trip over.
ODD_NAMES = (
    "time", "user", "split", "row", "part", "item", "labels", "person", "index", "tokens", "known",
    "text", "sampled", "user_id", "item_id", "numeric", "categorical", "event_numeric", "history",
    "level_0", "__index_level_0__", "product name", "größe", "ctr %", "名前", "a.b", "x[0]", "0",
    "self", "label.click", "category.brand", "code.brand", "statistics", "partition", "key", "",
    "published", "scenario", "count", "values", "a/b", "a=b", "null", "True", "-", "train_rows",
)  # fmt: skip


def names_of(draw: Random, roles: Sequence[str]) -> dict[str, str]:
    """The name of each role's column; mostly the role's own, all different."""
    found = dict(zip(roles, roles, strict=True))
    if seldom(draw, 3):
        for role in roles:
            other = draw.choice(ODD_NAMES) if (draw.random() < 0.5) else role
            if other not in found.values():
                found[role] = other
    return found


def in_files(draw: Random, folder: str, table: pa.Table) -> tuple[str, dict[str, pa.Table]]:
    """A path, and the table in one file or several, of which one may differ from the others."""
    if not seldom(draw, 3):
        return f"{folder}.parquet", {f"{folder}.parquet": table}
    cut = draw.randint(0, 4) * table.num_rows // 4
    parts = [table.slice(0, cut), table.slice(cut), table.slice(0, 0)]
    parts = parts[: draw.randint(1, 3)]
    if seldom(draw, 3):
        parts[-1] = changed(draw, parts[-1])
    return folder, {f"{folder}/{i}.parquet": part for i, part in enumerate(parts)}


def changed(draw: Random, table: pa.Table) -> pa.Table:
    """A table without one of its columns, or with one of another type."""
    place = draw.randint(0, table.num_columns - 1)
    if seldom(draw, 3):
        return table.drop_columns(table.column_names[place])
    kind = IDS[draw.choice(tuple(IDS))]
    return table.set_column(place, table.column_names[place], kind(np.arange(table.num_rows) % 50))


@dataclass
class Sizes:
    """Rows, items and users of a scenario, and the source of its values."""

    rows: int
    items: int
    users: int
    rng: np.random.Generator

    def numbers(self, below: int, rows: int | None = None) -> Ints:
        """Whole numbers below another, one a row of the log."""
        return self.rng.integers(0, max(below, 1), self.rows if rows is None else rows)


def drawn_sizes(draw: Random) -> Sizes:
    """Mostly enough rows for three splits, sometimes hardly any."""
    rows = draw.choice((100, 40, 7, 1, 0) if seldom(draw, 12) else (300, 400))
    items = draw.choice((3, 1, 0) if seldom(draw, 12) else (12, 60))
    users = draw.choice((20, 90, 1))
    return Sizes(rows, items, users, np.random.default_rng(draw.randint(0, 999)))


def catalogue_of(draw: Random, size: Sizes, names: dict[str, str], ids: Kind) -> pa.Table:
    """The catalogue; ids may be null or twice."""
    row = np.arange(size.items)
    if size.items > 1 and seldom(draw, 25):
        row[-1] = row[0]
    kinds = {
        "title": kind_of(draw, TEXTS, GOOD_TEXTS)(np.arange(size.items)),
        "brand": kind_of(draw, IDS, GOOD_IDS)(row % 3),
        "price": kind_of(draw, NUMBERS, GOOD_NUMBERS)(row),
        "published": kind_of(draw, TIMES, GOOD_TIMES[:9])(START - 86_400 * row),
    }
    item = ids(row)
    item = with_nulls(draw, item, size.rng) if seldom(draw, 25) else item
    columns = {"item_id": item} | {k: with_nulls(draw, c, size.rng) for k, c in kinds.items()}
    return pa.table(list(columns.values()), [names[k] for k in columns])


def split_words(draw: Random, size: Sizes) -> pa.Array:
    """Words of the split by the order of rows; some unknown."""
    place = np.arange(size.rows) / max(size.rows, 1)
    words = np.select([place < 0.7, place < 0.85], ["train", "valid"], "test").astype(object)
    if seldom(draw, 25):
        words[::9] = draw.choice(("Train", "", None, "dev", "all"))
    form = draw.choice(("string", "dictionary", "bytes", "large"))
    column = pa.array(words.tolist(), pa.string())
    if form == "dictionary":
        return column.dictionary_encode()
    return column.cast(
        {"string": pa.string(), "bytes": pa.binary(), "large": pa.large_string()}[form]
    )


def log_of(draw: Random, size: Sizes, names: dict[str, str], ids: Kind, time: str) -> pa.Table:
    """The log; items may be unknown, rows doubled and in any order."""
    seconds = START + np.sort(size.numbers(DAYS * 86_400))
    item = size.numbers(size.items + (size.items // 5 if seldom(draw, 8) else 0))
    if seldom(draw, 25):
        ids = kind_of(draw, IDS, GOOD_IDS)
    columns = {
        "user_id": kind_of(draw, IDS, GOOD_IDS)(size.numbers(size.users)),
        "item_id": ids(item),
        "time": TIMES[time](seconds),
        "device": kind_of(draw, IDS, GOOD_IDS)(size.numbers(4)),
        "ctr": kind_of(draw, NUMBERS, GOOD_NUMBERS)(size.numbers(99)),
    }
    columns |= {x: kind_of(draw, LABELS, GOOD_LABELS)(size.numbers(100)) for x in LABEL_COLUMNS}
    columns = {k: with_nulls(draw, c, size.rng) for k, c in columns.items()}
    columns["split"] = split_words(draw, size)
    table = pa.table(list(columns.values()), [names[k] for k in columns])
    if size.rows and seldom(draw, 6):
        cut = int(size.numbers(size.rows)[0])
        table = pa.concat_tables([table.slice(cut), table.slice(0, cut), table.slice(0, 9)])
    return table


# --- the project file ------------------------------------------------------------------------

TASK_NAMES = ("click", "stars", "time", "user", "split", "row", "item", "any", "labels")
LABEL_COLUMNS = ("click", "stars", "buy")
DURATIONS = (0, 0, "1h", "2d", "40d", 60, "1.5d", -1)


def drawn_tasks(draw: Random, names: Mapping[str, str]) -> dict[str, Any]:
    """One task to three, each with a label of its own or another's."""
    chosen = draw.sample(TASK_NAMES, len(TASK_NAMES))[: draw.randint(1, 3)]
    tasks: dict[str, Any] = {}
    for name, label in zip(chosen, LABEL_COLUMNS, strict=False):
        kind = "binary"
        if tasks and seldom(draw, 3):
            kind = draw.choice(("regression", "regression", "count", "duration"))
        task = {"kind": kind, "label": drawn_label(draw, names[label])}
        if tasks and seldom(draw, 2):
            task["given"] = draw.choice(chosen) if seldom(draw, 12) else draw.choice([*tasks])
            task["space"] = (
                draw.choice(("masked", "entire")) if task["kind"] == "binary" else "masked"
            )
        if seldom(draw, 3):
            task["delay"] = draw.choice(DURATIONS[: 8 if seldom(draw, 8) else 6])
        if seldom(draw, 8):
            shapes = ({"positive_weight": 3}, {"label_smoothing": 0.1}, {"focal": 2}, {"huber": 1})
            task |= draw.choice(shapes)
        if seldom(draw, 4):
            task["weight"] = draw.choice((0, 0.5, 2) if tasks else (0.5, 2))
        tasks[name] = task
    return tasks


def drawn_label(draw: Random, column: str) -> Any:
    """A column of labels, sometimes one that they follow from, or every row a positive."""
    if not seldom(draw, 6):
        return column
    rules = ({"at_least": draw.choice((0, 1, 1.5))}, {"equals": draw.choice((1, "1", [0, "k1"]))})
    return 1 if seldom(draw, 6) else {"column": column} | draw.choice(rules)


def drawn_split(draw: Random, names: Mapping[str, str], timed: bool) -> dict[str, Any]:
    """One of the ways to split, sometimes none, or one with no rows on a side."""
    ways: list[dict[str, Any]] = [{"column": names["split"]}, {"fractions": [0.8, 0.1, 0.1]}]
    if timed or seldom(draw, 30):
        ways += [
            {"time": ["2025-01-09", "2025-01-11"]},
            {"time": ["2025-01-08T12:00:00+02:00", "2025-01-10"]},
        ]
    if seldom(draw, 20):
        ways = [{}, {"time": ["2024-01-01", "2026-01-01"]}, {"fractions": [0.98, 0.01, 0.01]}]
    return draw.choice(ways)


def drawn_missing(draw: Random, columns: Sequence[str]) -> dict[str, Any]:
    """Values that mean missing, of some column."""
    values = (-1, 0, "", "k1", 1.5, [0, "none"], 7, 2**63, 1e300, True, "1", 2**80, float("nan"))
    return {draw.choice(tuple(columns)): draw.choice(values)}


def drawn_events(
    draw: Random, path: str, names: Mapping[str, str], unit: str | None
) -> dict[str, Any]:
    """The section of the log."""
    timed = not seldom(draw, 6)
    events: dict[str, Any] = {"path": path, "user": names["user_id"], "item": names["item_id"]}
    if timed:
        events["time"] = names["time"]
    if unit or seldom(draw, 12):
        events["time_unit"] = unit or draw.choice(("s", "ms", "us", "ns"))
    if seldom(draw, 2):
        events["categorical"] = [names["device"]]
    if seldom(draw, 2):
        events["numeric"] = [names["ctr"]]
    if seldom(draw, 10):
        events["weight_column"] = names[draw.choice(("click", "ctr"))]
    if seldom(draw, 5):
        extra = draw.choice(("user_id", "item_id", "time", "split", "click", "device"))
        key = draw.choice(("categorical", "numeric"))
        events[key] = [*events.get(key, []), names[extra]]
    if seldom(draw, 5):
        named = [events["user"], events["item"], *events.get("numeric", ())]
        named += events.get("categorical", [])
        named += [events["time"]] if timed else []
        events["missing"] = drawn_missing(draw, named)
    return events


def drawn_items(draw: Random, path: str, names: Mapping[str, str]) -> dict[str, Any]:
    """The section of the catalogue."""
    forms = ("{%s}", "{%s}. {%s}", "a {{thing}} {%s}", "none")[: 4 if seldom(draw, 30) else 3]
    form = draw.choice(forms)
    shown = draw.choice(("title", "brand", "price", "item_id"))
    items: dict[str, Any] = {
        "path": path, "id": names["item_id"],
        "text": form % ((names["title"], names[shown])[: form.count("%s")]),
    }  # fmt: skip
    if seldom(draw, 2):
        items["categorical"] = [names["brand"]]
        if seldom(draw, 3):
            items["statistics_of"] = draw.choice(([], [names["brand"]]))
    if seldom(draw, 2):
        items["numeric"] = [names["price"]]
    if seldom(draw, 3):
        items["published"] = names["published"]
    if seldom(draw, 5):
        items["categorical"] = [*items.get("categorical", []), names[shown]]
    if seldom(draw, 5):
        named = [names["item_id"], names["title"], *items.get("numeric", ())]
        named += items.get("categorical", [])
        named += [names["published"]] if "published" in items else []
        items["missing"] = drawn_missing(draw, named)
    return items


def drawn_scenario(draw: Random, name: str, files: dict[str, pa.Table]) -> dict[str, Any]:
    """A scenario, whose files are added to the others."""
    size, ids = drawn_sizes(draw), kind_of(draw, IDS, GOOD_IDS)
    time = draw.choice(tuple(TIMES) if seldom(draw, 12) else GOOD_TIMES)
    of_items = names_of(draw, ("item_id", "title", "brand", "price", "published"))
    of_log = names_of(
        draw, ("user_id", "item_id", "time", "device", "ctr", *LABEL_COLUMNS, "split")
    )
    items, of_files = in_files(draw, f"{name}_items", catalogue_of(draw, size, of_items, ids))
    files |= of_files
    events, of_files = in_files(draw, f"{name}_log", log_of(draw, size, of_log, ids, time))
    files |= of_files
    tasks = drawn_tasks(draw, of_log)
    unit = None if seldom(draw, 12) else UNITS.get(time)
    log = drawn_events(draw, events, of_log, unit)
    scenario: dict[str, Any] = {
        "items": drawn_items(draw, items, of_items), "events": log,
        "split": drawn_split(draw, of_log, "time" in log), "tasks": tasks,
        "max_unknown_items": draw.choice((0.01, 0.5, 1)),
    }  # fmt: skip
    if seldom(draw, 2):
        of = draw.choice(tuple(tasks) if seldom(draw, 8) else ("any", *list(tasks)[:1]))
        scenario["history"] = {"of": of, "last": draw.choice((1, 3, 20))}
    if seldom(draw, 2):
        source = draw.choice(("popularity", "uniform", "log"))
        of, each = next(iter(tasks)), draw.randint(1, 4)
        scenario["negatives"] = {"of": of, "from": source, "per_positive": each}
    if seldom(draw, 3):
        scenario["users"] = "people"
    if seldom(draw, 3):
        scenario["statistics"] = "frozen"
    if seldom(draw, 4):
        scenario["weight"] = draw.choice((0.5, 3) if name == "shop" else (0, 0.5, 3))
    return scenario


def drawn_model(draw: Random, source: str) -> dict[str, Any]:
    """A small model over the encoder of a folder."""
    trainable = draw.choice(("none", "none", "all", "top_k", "lora"))
    encoder = {
        "source": source, "max_tokens": 8, "trainable": trainable,
        "pooling": draw.choice(("mean", "cls", "last")), "lora": {"layers": 1, "rank": 2},
    }  # fmt: skip
    chosen = {
        "sharing": ("bottom", "mmoe", "ple", "star", "pepnet"),
        "layout": ("vectors", "vectors", "vectors", "pair"),
        "bins": (0, 1, 4), "general": (True, False), "hidden": ((4,), (6, 4)),
        **dict.fromkeys(("user_ids", "item_ids", "history", "statistics"), (True, False)),
    }  # fmt: skip
    model: dict[str, Any] = {k: draw.choice(values) for k, values in chosen.items()}
    model |= {"encoder": encoder, "width": 8, "attention_heads": 2, "head_hidden": 4, "experts": 2}
    model |= {
        "pair_tokens": 16,
        "text": not (trainable == "none" and model["layout"] == "vectors" and seldom(draw, 3)),
    }
    model["retrieval"] = {"enabled": (draw.random() < 0.5), "width": 4, "negatives": 5}
    return model | ({"width": 7} if seldom(draw, 60) else {})


def drawn_project(draw: Random, source: str) -> Drawn:
    """A project with the encoder of a folder, and its files."""
    files: dict[str, pa.Table] = {}
    number = 1 + seldom(draw, 4) + seldom(draw, 8)
    scenarios = {n: drawn_scenario(draw, n, files) for n in ("shop", "video", "time")[:number]}
    batch = draw.choice((16, 64, 1) if seldom(draw, 8) else (16, 64))
    training = {
        "batch_size": batch, "rows_per_epoch": batch, "epochs": 1, "max_skipped": 0,
        "alpha": draw.choice((1, 0.5, 0)), "precision": "fp32",
    }  # fmt: skip
    tree = {
        "scenarios": scenarios, "model": drawn_model(draw, source), "training": training,
        "run": {"name": "x", "num_workers": 1},
    }  # fmt: skip
    return Drawn(tree, files)
