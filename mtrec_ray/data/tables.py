"""Files of any usual kind as tables of one DuckDB: Parquet, CSV in its dialects, JSON lines."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa

from mtrec_ray.data.storage import PARQUET_ENDINGS
from mtrec_ray.project.base import ProjectError

JSON = (".json", ".jsonl", ".ndjson")
CSV = (".csv", ".tsv", ".txt", ".tab", ".dat", ".data", ".item", ".user")
COMPRESSED = (".gz", ".zst")
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

# What is tried in turn: the first rows tell the types, or all of them.
SAMPLES = ("100000", "-1")
ENCODINGS = ("utf-8", "latin-1")

NO_OPTIONS: Mapping[str, str] = {}
NULLS = "['', 'NULL', 'null', '\\N', 'NaN', 'nan']"

ALLOWED = "Parquet, CSV or JSON lines, plain or .gz or .zst"


def quoted(name: str) -> str:
    """Returns a name as SQL reads it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Returns a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def kind_of(file: Path) -> str:
    """Returns `parquet`, `json` or `csv` by a file's name, or an empty text for any other."""
    endings = [e.lower() for e in file.suffixes if e.lower() not in COMPRESSED]
    last = endings[-1] if endings else ""
    kinds = {"parquet": PARQUET_ENDINGS, "json": JSON, "csv": CSV}
    found = next((kind for kind, known in kinds.items() if last in known), "")
    return found or ("parquet" if is_parquet(file) else "")


def is_parquet(file: Path) -> bool:
    """Returns whether a file begins as Parquet files do, whatever its name."""
    with file.open("rb") as handle:
        return handle.read(4) == b"PAR1"


def compression_of(file: Path) -> str | None:
    """Returns `gzip` or `zstd` by a file's first bytes, whatever its name; None if it is plain."""
    with file.open("rb") as handle:
        start = handle.read(4)
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


def encodings_of(file: Path) -> tuple[str, ...]:
    """Returns the encodings that are tried: a mark at the start says UTF-16."""
    with file.open("rb") as handle:
        marked = handle.read(2) in (b"\xff\xfe", b"\xfe\xff")
    return ("utf-16",) if marked else ENCODINGS


def stem_of(file: Path) -> str:
    """Returns a file's name without its endings."""
    name = file.name
    while Path(name).suffix.lower() in (*PARQUET_ENDINGS, *JSON, *CSV, *COMPRESSED):
        name = Path(name).stem
    return name


@dataclass(frozen=True)
class Table:
    """A table of the database.

    Attributes:
        name: in the database.
        files: that it was read from.
        types: DuckDB's type by column.
        rows: how many.
        whole: the folder of which they are all files, or the only file; None for neither.
        parts: files and rows of each log that it was joined of.
    """

    name: str
    files: tuple[Path, ...]
    types: dict[str, str]
    rows: int
    whole: Path | None = None
    parts: tuple[tuple[str, int], ...] = ()

    @property
    def sql(self) -> str:
        """The name as SQL reads it."""
        return quoted(self.name)

    @property
    def label(self) -> str:
        """The files for a person."""
        if self.parts:
            return " and ".join(label for label, _ in self.parts)
        more = f" and {len(self.files) - 1} more files" if self.files[1:] else ""
        return f"{self.files[0].name}{more}"

    @property
    def own_path(self) -> Path | None:
        """Where its Parquet files lie by themselves; None where they do not."""
        if not all(file.suffix == ".parquet" for file in self.files) or self.whole is None:
            return None
        return self.whole.resolve()


class Tables:
    """Files as tables of a database in a folder, which holds more rows than memory does.

    Without a folder, files are not copied: what their first rows say of types is believed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.copies = folder is not None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        self.connection = duckdb.connect(str(folder / "tables.duckdb") if folder else ":memory:")
        self.connection.execute(
            "SET enable_progress_bar = false; SET preserve_insertion_order = true"
        )
        self.connection.execute("SET TimeZone = 'UTC'")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def batches(self, sql: str, rows: int = 1) -> pa.RecordBatchReader:
        """Returns the rows of a query in batches."""
        return self.connection.sql(sql).to_arrow_reader(rows)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query."""
        return self.connection.execute(sql).fetchall()

    def value(self, sql: str) -> Any:
        """Returns the first value of a query's first row."""
        return self.rows(sql)[0][0]

    def types_of(self, sql: str) -> dict[str, str]:
        """Returns DuckDB's type of each column of a query."""
        return {row[0]: str(row[1]) for row in self.rows(f"DESCRIBE {sql}")}

    def view(self, name: str, sql: str, files: tuple[Path, ...]) -> Table:
        """Returns the rows of a query as a table."""
        self.connection.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS {sql}")
        rows = self.value(f"SELECT count(*) FROM {quoted(name)}")
        return Table(name, files, self.types_of(f"FROM {quoted(name)}"), rows)

    def write(self, sql: str, path: Path) -> int:
        """Write a query's rows as Parquet; returns how many."""
        path.parent.mkdir(parents=True, exist_ok=True)
        options = "FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 500000"
        self.connection.execute(f"COPY ({sql}) TO {literal(str(path))} ({options})")
        return int(self.value(f"SELECT count(*) FROM read_parquet({literal(str(path))})"))

    def open(
        self,
        name: str,
        files: Sequence[Path],
        options: Mapping[str, str] = NO_OPTIONS,
        whole: Path | None = None,
    ) -> Table:
        """Returns files of one kind as one table; Parquet is not copied.

        `options` are those of DuckDB's `read_csv`, as SQL writes them.

        Raises:
            ProjectError: files that cannot be read.
        """
        try:
            self._load(name, files, options)
            types = self.types_of(f"FROM {quoted(name)}")
            rows = self.value(f"SELECT count(*) FROM {quoted(name)}")
        except duckdb.Error as error:
            reason = " ".join(re.split(r"\sLINE 1:", str(error))[0].split())[:160].rstrip(".")
            raise ProjectError([f"{files[0]}: {reason}; allowed: {ALLOWED}"]) from None
        return Table(name, tuple(files), types, rows, whole)

    def _load(self, name: str, files: Sequence[Path], options: Mapping[str, str]) -> None:
        kind = kind_of(files[0])
        packed = {"compression": literal(compression_of(files[0]) or "none")}
        match kind:
            case "parquet":
                told = {"union_by_name": "true", "hive_partitioning": "true", **options}
                sql = f"FROM {reader('read_parquet', files, **told)}"
                self.connection.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS {sql}")
            case "json":
                self._copy(
                    name, files, [packed | {"sample_size": n} for n in SAMPLES], "read_json_auto"
                )
            case "csv":
                told = {"union_by_name": "true", "nullstr": NULLS, **packed, **options}
                tries = [
                    told | {"encoding": literal(e), "sample_size": n}
                    for e in encodings_of(files[0])
                    for n in SAMPLES
                ]
                self._copy(name, files, tries, "read_csv")
            case _:
                line = f"{files[0]}: found a file of an unknown kind; allowed: {ALLOWED}"
                raise ProjectError([line])

    def _copy(
        self, name: str, files: Sequence[Path], tries: Sequence[dict[str, str]], function: str
    ) -> None:
        """Make a table by the first options that read all rows."""
        what = "TABLE" if self.copies else "VIEW"
        for told in tries:
            try:
                options = told | self._asked(files, told) if function == "read_csv" else told
                sql = f"FROM {reader(function, files, **options)}"
                self.connection.execute(f"CREATE OR REPLACE {what} {quoted(name)} AS {sql}")
                return
            except duckdb.Error:
                if told is tries[-1]:
                    raise

    def _asked(self, files: Sequence[Path], told: dict[str, str]) -> dict[str, str]:
        """Returns options that the text itself asks for.

        Numbers with a comma (`12,5`) are numbers; whole numbers of which some begin with a zero
        are text.
        """
        if {"names", "columns", "all_varchar"} & told.keys():
            return {}
        types = self.types_of("FROM " + reader("read_csv", files, **told))
        whole = [name for name, kind in types.items() if "INT" in kind]
        texts = [name for name, kind in types.items() if kind == "VARCHAR"]
        if not whole and not texts:
            return {}
        tests = [f"bool_or(regexp_matches({quoted(n)}, '^0[0-9]'))" for n in whole]
        tests += [
            f"bool_and(regexp_matches({c}, '^-?[0-9]+(,[0-9]+)?$')) AND bool_or(contains({c}, ','))"
            for c in map(quoted, texts)
        ]
        sample = f"FROM {reader('read_csv', files, **told, all_varchar='true')} LIMIT 100000"
        found = self.rows(f"SELECT {', '.join(tests)} FROM ({sample})")[0]
        padded = [n for n, is_padded in zip(whole, found, strict=False) if is_padded]
        asked = {"decimal_separator": "','"} if any(found[len(whole) :]) else {}
        if padded:
            asked["types"] = "{" + ", ".join(f"{literal(n)}: 'VARCHAR'" for n in padded) + "}"
        return asked


def reader(function: str, files: Iterable[Path], **options: str) -> str:
    """Returns the call of one of DuckDB's readers."""
    listed = ", ".join(literal(str(file)) for file in files)
    told = "".join(f", {name} = {value}" for name, value in options.items())
    return f"{function}([{listed}]{told})"
