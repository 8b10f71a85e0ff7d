"""The user's Parquet files: are they there, whole, and do they have the columns the file names?"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.data import storage
from mtrec_ray.project.depends_on import fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario


@dataclass(frozen=True)
class Fragment:
    """One row group of an events file; `first_row` is its place in the whole log."""

    scenario: str
    path: str
    row_group: int
    first_row: int
    num_rows: int


def wanted_columns(scenario: Scenario) -> dict[str, dict[str, str]]:
    """Columns that the project file names, by file: column -> the field that names it."""
    items = {scenario.items.id: "items.id"}
    items |= dict.fromkeys(scenario.items.text_columns, "items.text")
    items |= dict.fromkeys(scenario.items.categorical, "items.categorical")
    items |= dict.fromkeys(scenario.items.numeric, "items.numeric")
    if scenario.items.published:
        items[scenario.items.published] = "items.published"
    events = {scenario.events.user: "events.user", scenario.events.item: "events.item"}
    events |= dict.fromkeys(scenario.events.categorical, "events.categorical")
    events |= dict.fromkeys(scenario.events.numeric, "events.numeric")
    events |= {scenario.label_column(t): f"tasks.{t}" for t in scenario.tasks}
    if scenario.events.time:
        events[scenario.events.time] = "events.time"
    if scenario.split.column:
        events[scenario.split.column] = "split.column"
    return {"items": items, "events": events}


def input_problems(project: Project) -> list[str]:
    """One line for each missing or broken file and each missing column of all scenarios."""
    return [line for name in project.scenarios for line in _scenario_problems(project, name)]


def _scenario_problems(project: Project, name: str) -> Iterator[str]:
    scenario = project.scenarios[name]
    for kind, wanted in wanted_columns(scenario).items():
        path = project.path(scenario.items.path if kind == "items" else scenario.events.path)
        where = f"scenarios.{name}.{kind}.path"
        try:
            schema = pq.read_schema(*_inner(storage.parquet_files(path)[0]))
            num_rows = sum(m.num_rows for _, m in footers(path))
        except FileNotFoundError:
            yield f"{where}: found nothing at {path}; allowed: a Parquet file or a folder of them"
            continue
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            yield f"{where}: {path} is not a whole Parquet file ({reason})"
            continue
        if not num_rows:
            yield f"{where}: found no rows in {path}; allowed: at least one"
        for column, field in wanted.items():
            if column not in schema.names:
                yield (
                    f"scenarios.{name}.{field}: found no column {column!r} in {path}; "
                    f"allowed: {', '.join(schema.names)}"
                )
            elif not fits(schema.field(column).type, field):
                yield (
                    f"scenarios.{name}.{field}: found column {column!r} of {path} with type "
                    f"{schema.field(column).type}; allowed: {allowed_types(field)}"
                )


NUMBERS = ("tasks", "events.numeric", "items.numeric")


TIMES = ("events.time", "items.published")


def fits(kind: pa.DataType, field: str) -> bool:
    """Whether a column of the type can hold what a field of the project file says it holds."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return True
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if field.startswith(NUMBERS):
        return is_number or pa.types.is_boolean(kind)
    if field in TIMES:
        return is_number or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    return not pa.types.is_nested(kind)


def allowed_types(field: str) -> str:
    """The types that a field's column may have, for a person."""
    if field.startswith(NUMBERS):
        return "a number or a boolean"
    return "a time stamp, a date or seconds" if field in TIMES else "no nested type"


def _inner(path: str) -> tuple[pa.NativeFile]:
    fs, inner = storage.filesystem(path)
    return (fs.open_input_file(inner),)


def footers(path: str) -> list[tuple[str, pq.FileMetaData]]:
    """The Parquet footer of each file of a path."""
    return [(f, pq.read_metadata(*_inner(f))) for f in storage.parquet_files(path)]


def fragments(scenario: str, path: str) -> list[Fragment]:
    """Row groups of the log with their first row's number."""
    found: list[Fragment] = []
    row = 0
    for file, meta in footers(path):
        for group in range(meta.num_row_groups):
            num_rows = meta.row_group(group).num_rows
            found.append(Fragment(scenario, file, group, row, num_rows))
            row += num_rows
    return found


def read_fragment(fragment: Fragment) -> pa.Table:
    """The rows of a row group, all columns."""
    return pq.ParquetFile(*_inner(fragment.path)).read_row_group(fragment.row_group)


def input_fingerprint(project: Project) -> str:
    """A hash of names, sizes and row counts of all input files."""
    parts: list[object] = []
    for scenario in project.scenarios.values():
        for path in (scenario.items.path, scenario.events.path):
            for file in storage.parquet_files(project.path(path)):
                fs, inner = storage.filesystem(file)
                info = fs.get_file_info(inner)
                parts.append([file, info.size, info.mtime_ns])
    return fingerprint(*parts)
