"""The user's files: which columns are named, what footers say, and rows as tables."""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.data import storage
from mtrec_ray.data.columns import as_text, blank, is_list, plain_type
from mtrec_ray.data.input_files import holds_text, input_files, look_at
from mtrec_ray.data.storage import FileVersion
from mtrec_ray.data.vectors import blank_vectors, vector_lists
from mtrec_ray.project.base import ProjectError, shorten, without_options
from mtrec_ray.project.depends_on import fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.users import Users

READ_THREADS = 16
ALLOWED_FILES = "allowed: Parquet, CSV or JSON lines, tables of Delta or Iceberg"
VECTORS = ("items.vectors", "users.vectors")  # fields that name columns of vectors


@dataclass(frozen=True)
class Fragment:
    """One row group of a log; `first_row` is its place in the whole log.

    `canonical`: whether it holds canonical rows that preparing wrote, not the user's.
    """

    scenario: str
    file: FileVersion
    row_group: int
    first_row: int
    num_rows: int
    canonical: bool = False


@dataclass(frozen=True)
class Footer:
    """What the footer of a Parquet file says: its columns, and the rows of each row group.

    Of CSV or JSON lines, all files have one, with what a look at their rows says.
    """

    file: FileVersion
    schema: pa.Schema
    group_rows: tuple[int, ...]

    @property
    def path(self) -> str:
        """Where the file lies."""
        return self.file.path

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)


def named_columns(scenario: Scenario) -> dict[str, list[tuple[str, str]]]:
    """Returns columns that the project file names, by file, each with the field that names it."""
    items, events = scenario.items, scenario.events
    of_items = [(items.id, "items.id")]
    of_items += [(column, "items.text") for column in items.text_columns]
    of_items += [(column, "items.categorical") for column in items.categorical]
    of_items += [(column, "items.numeric") for column in items.numeric]
    of_items += [(column, "items.lists") for column in items.lists]
    of_items += [(column, "items.separators") for column in items.separators]
    of_items += [(column, "items.vectors") for column in items.vectors]
    if items.published:
        of_items.append((items.published, "items.published"))
    of_events = [(events.user, "events.user"), (events.item, "events.item")]
    of_events += [(column, "events.categorical") for column in events.categorical]
    of_events += [(column, "events.numeric") for column in events.numeric]
    of_events += [(column, "events.lists") for column in events.lists]
    of_events += [(column, "events.separators") for column in events.separators]
    of_events += label_columns(scenario)
    of_events += [(column, f"events.{field}") for field, column in events.weigh.items()]
    if events.time:
        of_events.append((events.time, "events.time"))
    if scenario.split.column:
        of_events.append((scenario.split.column, "split.column"))
    return {"items": of_items, "events": of_events}


def label_columns(scenario: Scenario) -> list[tuple[str, str]]:
    """Returns the columns that labels come from, each with the field that names it."""
    found = []
    for task, spec in scenario.tasks.items():
        label = scenario.label(task)
        more = ["classes"] if spec.classes else [f"label.{way}" for way in label.ways]
        if label.column:
            found.append((label.column, ".".join([f"tasks.{task}", *more])))
    return found


def wanted_columns(scenario: Scenario, kind: str) -> list[str]:
    """Returns the columns of `items` or `events` that the project file names, each once."""
    return list(dict.fromkeys(column for column, _ in named_columns(scenario)[kind]))


def columns_of_users(users: Users) -> list[tuple[str, str]]:
    """Returns the columns that a table of users names, each with its field."""
    named = [(users.id, "users.id")]
    named += [(users.time, "users.time")] if users.time else []
    named += [(column, "users.text") for column in users.text_columns]
    named += [(column, "users.categorical") for column in users.categorical]
    named += [(column, "users.numeric") for column in users.numeric]
    named += [(column, "users.lists") for column in users.lists]
    named += [(column, "users.separators") for column in users.separators]
    return named + [(column, "users.vectors") for column in users.vectors]


@dataclass(frozen=True)
class InputTable:
    """Files that a section of the project file names.

    Attributes:
        scope: what stands before the names of its fields, `scenarios.shop` or `users.people`.
        kind: items, events or users.
        columns: those that are named, each with its field.
        missing: values that are read as null, by column.
    """

    scope: str
    kind: str
    path: str
    columns: Sequence[tuple[str, str]]
    missing: Mapping[str, Sequence[str | float]]

    @property
    def wanted(self) -> list[str]:
        """The columns, each once."""
        return list(dict.fromkeys(column for column, _ in self.columns))

    def where(self, field: str) -> str:
        """Returns the full name of a field such as `items.path`."""
        return f"{self.scope}.{field.removeprefix('users.')}"


def items_table(project: Project, name: str) -> InputTable:
    """Returns the catalogue of a scenario."""
    scenario, scope = project.scenarios[name], f"scenarios.{name}"
    path, columns = project.path(scenario.items.path), named_columns(scenario)["items"]
    return InputTable(scope, "items", path, columns, scenario.items.missing)


def events_table(project: Project, name: str) -> InputTable:
    """Returns the log of a scenario."""
    scenario, scope = project.scenarios[name], f"scenarios.{name}"
    path, columns = project.path(scenario.events.path), named_columns(scenario)["events"]
    return InputTable(scope, "events", path, columns, scenario.events.missing)


def users_table(project: Project, space: str) -> InputTable:
    """Returns a table of users."""
    users = project.users[space]
    path = project.path(users.path)
    return InputTable(f"users.{space}", "users", path, columns_of_users(users), users.missing)


def footers(path: str) -> list[Footer]:
    """Returns the footers of all files of a path; each version of a file is read once.

    Raises:
        FileNotFoundError: nothing is there.
        OSError, ArrowException: a file is broken; a note of the error has its path.
        ProjectError: a table, CSV or JSON lines that cannot be read.
    """
    files = input_files(path)
    if holds_text(files):
        return [_text_footer(tuple(files))]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(_footer, files))


@functools.lru_cache(maxsize=100_000)
def _footer(version: FileVersion) -> Footer:
    try:
        found = storage.read_footer(version.path)
        schema = found.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        error.add_note(version.path)
        raise
    for key, value in version.constants.items():
        if key not in schema.names:
            schema = schema.append(pa.field(key, value.type))
    rows = (found.row_group(i).num_rows for i in range(found.num_row_groups))
    return Footer(version, schema.remove_metadata(), tuple(rows))


@functools.lru_cache(maxsize=1000)
def _text_footer(versions: tuple[FileVersion, ...]) -> Footer:
    schema, rows = look_at(versions)
    return Footer(versions[0], schema, (rows,))


def fragments(scenario: str, path: str, *, canonical: bool = False) -> list[Fragment]:
    """Returns the row groups of the log with their first row's number."""
    listed: list[Fragment] = []
    row = 0
    for footer in footers(path):
        for group, num_rows in enumerate(footer.group_rows):
            listed.append(Fragment(scenario, footer.file, group, row, num_rows, canonical))
            row += num_rows
    return listed


def log_fragments(project: Project) -> list[Fragment]:
    """Returns the row groups of the logs of all scenarios."""
    return [
        fragment
        for name, scenario in project.scenarios.items()
        for fragment in fragments(name, project.path(scenario.events.path))
    ]


def read_log(fragment: Fragment, scenario: Scenario) -> pa.Table:
    """Returns the rows of a row group of a log, with the columns that the project file names."""
    columns = wanted_columns(scenario, "events")
    return storage.read_row_group(fragment.file, fragment.row_group, columns)


def read_items(project: Project, name: str) -> pa.Table:
    """Returns a scenario's items, as `read_whole` does; rows that are equal are one item."""
    table = read_whole(items_table(project, name))
    return without_copies(table, project.scenarios[name].items.id)


def read_users(project: Project, space: str) -> pa.Table:
    """Returns a table of users, as `read_whole` does."""
    return read_whole(users_table(project, space))


def user_types(project: Project, space: str) -> dict[str, pa.DataType]:
    """Returns the types of the columns of a table of users, as `read_users` has them.

    Raises:
        ProjectError: the table is not there, or cannot be read.
    """
    source = users_table(project, space)
    try:
        schemas = [footer.schema for footer in footers(source.path)]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowException, OSError) as error:
        reason = shorten(str(error))
        raise ProjectError([f"users.{space}.path: found {reason}; {ALLOWED_FILES}"]) from None
    vectors = {column for column, field in source.columns if field in VECTORS}
    return {
        column: pa.large_list(pa.float32())
        if column in vectors
        else plain_type(schema.field(column).type)
        for column in source.wanted
    }


def read_whole(source: InputTable) -> pa.Table:
    """Returns the columns of a table that the project file names.

    Raises:
        ProjectError: numbers of one file do not fit the type that the files have in common.
    """
    files = input_files(source.path)
    read: Callable[[FileVersion], pa.Table] = lambda file: read_columns(file, source)  # noqa: E731
    with ThreadPoolExecutor(READ_THREADS) as pool:
        table = _joined(source, list(pool.map(read, files)))
    vectors = {column for column, field in source.columns if field in VECTORS}
    for column, values in source.missing.items():
        number = table.column_names.index(column)
        emptied = blank_vectors if column in vectors else blank
        table = table.set_column(number, column, emptied(table.column(column), values))
    return table


def read_columns(file: FileVersion, source: InputTable) -> pa.Table:
    """Returns the columns of a file that the project file names, vectors in one type."""
    table = storage.read_table(file, source.wanted)
    for column, field in source.columns:
        if field in VECTORS:
            number = table.column_names.index(column)
            table = table.set_column(number, column, vector_lists(table.column(column)))
    return table


def _joined(source: InputTable, tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())[:120]
        raise ProjectError(
            [
                f"{source.where(f'{source.kind}.path')}: found files with numbers that do not fit "
                f"one type ({reason}); allowed: the same types in all files"
            ]
        ) from None


def without_copies(table: pa.Table, key: str) -> pa.Table:
    """Returns the rows without those that are equal to an earlier one, in the same order."""
    if pc.count_distinct(as_text(table.column(key))).as_py() == table.num_rows:  # pyright: ignore[reportAttributeAccessIssue]
        return table
    ids = as_text(table.column(key)).to_pandas()
    rows = np.flatnonzero(ids.duplicated(keep=False))
    lists = [n for n in table.column_names if is_list(table.schema.field(n).type)]
    plain = table.take(rows).to_pandas()
    plain[lists] = plain[lists].map(list_text)
    kept = np.ones(table.num_rows, bool)
    kept[rows] = ~plain.duplicated().to_numpy()
    return table.filter(pa.array(kept))


def list_text(value: np.ndarray | None) -> str:
    """Returns a list as a text that no other list has; NumPy's own leaves out what is long."""
    return str(None if value is None else value.tolist())


def num_items_read(project: Project, name: str) -> int:
    """Returns the rows of a scenario's catalogue files, copies of others too."""
    return sum(f.num_rows for f in footers(project.path(project.scenarios[name].items.path)))


def input_fingerprint(project: Project) -> str:
    """Returns a hash of names, sizes and times of all input files, in whatever order they stand."""
    paths = [
        path
        for _, scenario in sorted(project.scenarios.items())
        for path in (scenario.items.path, scenario.events.path)
    ]
    paths += [users.path for _, users in sorted(project.users.items())]
    return fingerprint(
        *(
            [without_options(version.path), version.size, version.mtime_ns]
            for path in paths
            for version in input_files(project.path(path))
        )
    )
