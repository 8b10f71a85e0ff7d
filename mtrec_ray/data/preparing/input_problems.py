"""What is wrong with the user's files before rows are read: files, columns, their types."""

from collections.abc import Iterator

import pyarrow as pa

from mtrec_ray.data.columns import is_bytes, is_list, is_plain_number, plain_type
from mtrec_ray.data.preparing.inputs import (
    ALLOWED_FILES,
    VECTORS,
    Footer,
    InputTable,
    events_table,
    footers,
    items_table,
    users_table,
)
from mtrec_ray.project.base import ProjectError, without_options
from mtrec_ray.project.project import Project


def input_problems(project: Project) -> list[str]:
    """Returns one line for each missing or broken file and each missing column."""
    tables = [of(project, n) for n in project.scenarios for of in (items_table, events_table)]
    tables += [users_table(project, space) for space in project.users]
    lines = [without_options(line) for table in tables for line in _table_problems(table)]
    return list(dict.fromkeys(lines))


def _table_problems(table: InputTable) -> Iterator[str]:
    path, where = table.path, table.where(f"{table.kind}.path")
    try:
        found = footers(path)
    except FileNotFoundError as error:
        reason = str(error).removeprefix(path).removeprefix(": ")
        more = f" ({reason})" if reason else ""
        yield f"{where}: found nothing at {path}{more}; {ALLOWED_FILES}"
        return
    except (pa.ArrowException, OSError) as error:
        yield f"{where}: {_unreadable(path, error)}"
        return
    except ProjectError as error:
        yield str(error) if "storage_options: " in str(error) else f"{where}: {error}"
        return
    if not sum(footer.num_rows for footer in found):
        yield f"{where}: found no rows in {path}; allowed: at least one"
    for column, field in dict.fromkeys(table.columns):
        yield from _column_problems(table.where(field), column, field, found)
    for column in table.missing.keys() - set(table.wanted):
        yield (
            f"{table.where(f'{table.kind}.missing')}: found column {column!r}, which no field "
            f"names; allowed: {', '.join(table.wanted)}"
        )


def _unreadable(path: str, error: Exception) -> str:
    notes = getattr(error, "__notes__", [])
    reason = " ".join(str(error).split())[:120]
    if notes:
        return f"{notes[-1]} is not a whole Parquet file ({reason}); {ALLOWED_FILES}"
    return f"found {path}, which cannot be reached ({reason}); {ALLOWED_FILES}"


def _column_problems(
    where: str, column: str, field: str, footers_of_log: list[Footer]
) -> Iterator[str]:
    """Yields at most a line for each kind of fault of a column, with the first file that has it."""
    lacking = [f for f in footers_of_log if column not in f.schema.names]
    if lacking:
        names = ", ".join(lacking[0].schema.names)
        yield (
            f"{where}: found no column {column!r} in {lacking[0].path}{_and_more(lacking)}; "
            f"allowed: {names}"
        )
    having = [f for f in footers_of_log if column in f.schema.names]
    wrong = [f for f in having if not fits(f.schema.field(column).type, field)]
    if wrong:
        yield (
            f"{where}: found column {column!r} of {wrong[0].path}{_and_more(wrong)} with type "
            f"{wrong[0].schema.field(column).type}; allowed: {allowed_types(field)}"
        )
    if field.startswith(("items.", "users.")) and field not in VECTORS and not wrong:
        first = having[0].schema.field(column).type if having else None
        odd = [f for f in having if not _can_be_joined(first, f.schema.field(column).type)]
        if odd:
            yield (
                f"{where}: found column {column!r} of {odd[0].path}{_and_more(odd)} with type "
                f"{odd[0].schema.field(column).type}; allowed: {first}, as in {having[0].path}"
            )


def _and_more(files: list[Footer]) -> str:
    return f" and {len(files) - 1} more files" if files[1:] else ""


def _can_be_joined(first: pa.DataType | None, second: pa.DataType) -> bool:
    """Returns whether rows of two files can stand in one table."""
    try:
        schemas = [pa.schema([("column", kind)]) for kind in (first or second, second)]
        pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


NUMBERS = (
    "tasks", "events.numeric", "items.numeric", "users.numeric", "events.weight_column",
    "events.propensity",
)  # fmt: skip


TIMES = ("events.time", "items.published", "users.time")


LISTS = ("items.lists", "users.lists", "events.lists")


TEXTS = ("items.separators", "users.separators", "events.separators")


def holds_numbers(field: str) -> bool:
    """Returns whether a field of the project file names a column of numbers."""
    of_values = field.removeprefix("tasks.").endswith((".label.equals", ".classes"))
    return field.startswith(NUMBERS) and not of_values


def fits(kind: pa.DataType, field: str) -> bool:
    """Returns whether a column of the type can hold what a field of the project file names."""
    kind = plain_type(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return fits(kind.storage_type, field)
    if pa.types.is_null(kind):
        return True
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if holds_numbers(field):
        return is_number or pa.types.is_boolean(kind)
    if field in TIMES:
        return is_number or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if field in LISTS:
        return is_list(kind) and not pa.types.is_nested(kind.value_type)
    if field in VECTORS:
        return is_list(kind) and is_plain_number(kind.value_type)
    if field in TEXTS:
        return pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_bytes(kind)
    return not pa.types.is_nested(kind)


def allowed_types(field: str) -> str:
    """Returns the types that a field's column may have, for a person."""
    if holds_numbers(field):
        return "a number or a boolean"
    if field in LISTS:
        return "a list of texts, numbers or dates"
    if field in VECTORS:
        return "a list of numbers"
    if field in TEXTS:
        return "text"
    return "a time stamp, a date or a number" if field in TIMES else "text, a number or a date"
