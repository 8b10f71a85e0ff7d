"""Rules on columns of the user's own catalogue file: which items may be listed, and with which.

The file is read anew for each list, because stock and prices change after a model was trained.
Letters: n items as the model numbers them, N rows of the catalogue file.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec_ray.candidates.assortment import Cap
from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools
from mtrec_ray.data.catalogue import ItemLookup, category_codes
from mtrec_ray.data.columns import is_plain_number, plain_type
from mtrec_ray.data.preparing.inputs import ALLOWED_FILES, Footer, footers
from mtrec_ray.project.assortment import Filter
from mtrec_ray.project.base import ProjectError, refuse, shorten, without_options
from mtrec_ray.project.project import Project

BOUNDS = ("at_least", "at_most")


def listed_items(project: Project, name: str, ids: NDArray[np.object_]) -> tuple[Bools, list[Cap]]:
    """Returns bool[n], which items pass the rules of a scenario, and the caps on its lists.

    `ids` [n] are the items' ids as strings. An item that the file no longer has passes no rule.

    Raises:
        ProjectError: a column or a value that does not fit the catalogue file.
    """
    rules = project.recommend.filters.get(name, ())
    at_most = project.recommend.at_most_per.get(name, {})
    if not rules and not at_most:
        return np.ones(len(ids), bool), []
    table = read_catalogue_file(project, name)
    refuse([*filter_problems(name, rules, table), *cap_problems(name, at_most, table)])
    item_ids = table.column(project.scenarios[name].items.id)
    row = ItemLookup.of(item_ids).find(pa.chunked_array([pa.array(ids, pa.string())]))
    allowed = allowed_items(rules, table)[row] & (row >= 0) if rules else np.ones(len(ids), bool)
    caps = [Cap(np.where(row < 0, -1, category_codes(values_of(table, column))[row]), most)
            for column, most in at_most.items()]  # fmt: skip
    return allowed, caps


def read_catalogue_file(project: Project, name: str) -> pa.Table:
    """Returns the columns of a scenario's catalogue file that its lists need, and its ids.

    A column that is not there is left out; the others' names are in the schema's metadata.
    """
    options, items = project.recommend, project.scenarios[name].items
    wanted = {rule.column for rule in options.filters.get(name, ())}
    wanted |= {items.id, *options.at_most_per.get(name, {})}
    found = catalogue_footers(project, name)
    names = found[0].schema.names
    kept = [column for column in names if column in wanted]
    tables = [storage.read_table(f.file, kept).replace_schema_metadata() for f in found]
    table = pa.concat_tables(tables, promote_options="permissive")
    return table.replace_schema_metadata({"columns": ", ".join(names)})


def catalogue_footers(project: Project, name: str) -> list[Footer]:
    """Returns the footers of the files of a scenario's catalogue.

    Raises:
        ProjectError: nothing is there.
    """
    path = project.path(project.scenarios[name].items.path)
    try:
        return footers(path)
    except FileNotFoundError:
        where = f"scenarios.{name}.items.path"
        found = without_options(path)
        raise ProjectError([f"{where}: found nothing at {found}; {ALLOWED_FILES}"]) from None


def columns_text(table: pa.Table) -> str:
    """Returns the names of the columns that a catalogue file has, for a person."""
    named = (table.schema.metadata or {}).get(b"columns")
    return named.decode() if named else ", ".join(table.column_names)


def values_of(table: pa.Table, column: str) -> pa.ChunkedArray:
    """Returns a column's values, without a dictionary."""
    values = table.column(column)
    return pc.cast(values, plain_type(values.type))


def filter_problems(name: str, rules: Sequence[Filter], table: pa.Table) -> list[str]:
    """Returns a line for each rule of a scenario whose column or value does not fit its table."""
    return [
        line
        for number, rule in enumerate(rules)
        for line in rule_problems(f"recommend.filters.{name}.{number}", rule, table)
    ]


def rule_problems(where: str, rule: Filter, table: pa.Table) -> Iterator[str]:
    """Yields a line for a column that is not there, or for each value of another type."""
    if rule.column not in table.column_names:
        yield (
            f"{where}.column: found no column {rule.column!r} in the catalogue; "
            f"allowed: {columns_text(table)}"
        )
        return
    kind = plain_type(table.schema.field(rule.column).type)
    for field, values in rule.values.items():
        allowed = allowed_value(kind, field)
        wrong = [value for value in values if not fits(value, kind, field)]
        if wrong:
            yield (
                f"{where}.{field}: found {shorten(wrong[0])} for column {rule.column!r} with type "
                f"{kind}; allowed: {allowed}"
            )


def cap_problems(name: str, at_most: dict[str, int], table: pa.Table) -> Iterator[str]:
    """Yields a line for each column of a cap that is not there, or holds lists."""
    for column in at_most:
        where = f"recommend.at_most_per.{name}"
        if column not in table.column_names:
            yield (
                f"{where}: found no column {column!r} in the catalogue; "
                f"allowed: {columns_text(table)}"
            )
        elif pa.types.is_nested(plain_type(table.schema.field(column).type)):
            yield (
                f"{where}: found column {column!r} with type {table.schema.field(column).type}; "
                "allowed: text, a number, a date or a boolean"
            )


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a column holds text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def fits(value: object, kind: pa.DataType, field: str) -> bool:
    """Returns whether a rule's value can be compared with a column's."""
    if is_plain_number(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if field in BOUNDS:
        return False
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    return is_text(kind) and isinstance(value, str)


def allowed_value(kind: pa.DataType, field: str) -> str:
    """Returns what a rule's value may be for a column, for a person."""
    if is_plain_number(kind):
        return "a number"
    if field in BOUNDS:
        return "a column of numbers"
    if pa.types.is_boolean(kind):
        return "true or false"
    return "text" if is_text(kind) else "a column of text, numbers or booleans"


def allowed_items(rules: Sequence[Filter], table: pa.Table) -> Bools:
    """Returns bool[N]: which rows of a catalogue file pass all rules.

    A row without a value passes `none_of` only.
    """
    passed = np.ones(table.num_rows, bool)
    for rule in rules:
        values = values_of(table, rule.column)
        for field, wanted in rule.values.items():
            passed &= passes(values, field, wanted)
    return passed


def passes(values: pa.ChunkedArray, field: str, wanted: Sequence[object]) -> Bools:
    """Returns bool[N]: which values of a column pass one field of a rule."""
    if field in BOUNDS:
        numbers = pc.cast(values, pa.float64(), safe=False).to_numpy()  # null: NaN
        bound = float(wanted[0])  # pyright: ignore[reportArgumentType]
        return numbers >= bound if field == "at_least" else numbers <= bound
    if is_plain_number(values.type):
        inside = np.isin(*numbers_of(values, wanted))
    else:
        inside = pc.is_in(values, value_set=pa.array(wanted, values.type)).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
    return ~inside if field == "none_of" else inside


def numbers_of(values: pa.ChunkedArray, wanted: Sequence[object]) -> tuple[np.ndarray, np.ndarray]:
    """Returns numbers [N] of a column and those of a rule, as they compare: 0.1 in 32 bits, too."""
    if pa.types.is_decimal(values.type):
        values = pc.cast(values, pa.float64())
    own, rule = values.to_pandas().to_numpy(), np.array(wanted)
    return own, rule.astype(own.dtype) if own.dtype.kind == "f" else rule
