"""What the job cannot work with in the rows of catalogues and logs, as one line each."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.data.arrays import Bools, Ints
from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.columns import (
    as_text,
    is_plain_number,
    is_possible,
    milliseconds,
    plausible_unit,
)
from mtrec_ray.data.preparing.vectors import length_problems
from mtrec_ray.project.classes import key_of
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.split import PLAUSIBLE_SECONDS, SPLITS
from mtrec_ray.project.users import Users

if TYPE_CHECKING:
    from mtrec_ray.data.preparing.scan import Scan


# All rows of a user are brought to one task, at some 300 bytes and a few copies each. Who has more
# is no person.
MAX_ROWS_PER_USER = 5_000_000


# Fields of weights: what is counted of their columns, and what may stand there.
WEIGHTS = (
    ("weight_column", "bad weight", "a number from 0 to 1e9"),
    ("propensity.column", "bad propensity", "a probability above 0, at most 1"),
)


# By kind of task: what is wrong with a label that it cannot have, and what it can.
LABELS = {
    "binary": ("neither 0, 1 nor null", "0, 1, null"),
    "count": ("negative or not whole", "whole numbers >= 0, null"),
    "duration": ("negative", "numbers >= 0, null"),
}


def item_problems(project: Project, tables: Mapping[str, pa.Table]) -> list[str]:
    """Returns a line for each fault of a catalogue: ids, odd vectors, times in no unit."""
    return [
        line
        for name, table in tables.items()
        for line in _catalogue_problems(name, project.scenarios[name], table)
    ]


def user_problems(project: Project, tables: Mapping[str, pa.Table]) -> list[str]:
    """Returns a line for each fault of a table of users: ids, times, vectors."""
    lines: list[str] = []
    for space, table in tables.items():
        users = project.users[space]
        lines += _user_table_problems(f"users.{space}", users, table)
        lines += length_problems(f"users.{space}", table, users.id, users.vectors)
    return lines


def _user_table_problems(where: str, users: Users, table: pa.Table) -> Iterator[str]:
    """Yields lines about nulls and repetitions of ids; with a time, of ids at a time."""
    ids = table.column(users.id)
    if users.time is None:
        yield from _id_problems(f"{where}.id", ids)
        return
    yield from _null_problems(f"{where}.id", ids)
    of_times = list(_profile_time_problems(where, users, table.column(users.time)))
    yield from of_times
    if not of_times:
        ms = milliseconds(table.column(users.time), users.time_unit)
        rows = pd.DataFrame({"id": as_text(ids).to_pandas(), "ms": ms.to_numpy()})
        twice = rows[rows["id"].notna() & rows.duplicated()]
        if len(twice):
            yield (
                f"{where}.time: found a user twice at the same time (to the millisecond), such as "
                f"{twice['id'].iloc[0]!r}, {twice['id'].nunique()} in all; allowed: one row of a "
                "user at a time"
            )


def _profile_time_problems(where: str, users: Users, column: pa.ChunkedArray) -> Iterator[str]:
    """Yields at most one line about the times of a table of users."""
    ms = milliseconds(column, users.time_unit)
    known, time = ms.is_valid().to_numpy(), pc.fill_null(ms, 0).to_numpy()
    if users.time_unit is None and is_plain_number(column.type):
        wrong = implausible(time, known)
        if 2 * len(wrong) > known.sum():
            example = column[int(wrong[len(wrong) // 2])].as_py()
            yield no_moment(f"{where}.time", f"{where}.time_unit", example)
            return
    if nulls := int((~known).sum()):
        yield f"{where}.time: found {nulls} nulls in {len(ms)} rows; allowed: a time in every row"
    elif (impossible := ~is_possible(time)).any():
        example = as_text(column.slice(int(impossible.argmax()), 1))[0].as_py()
        yield (
            f"{where}.time: found {impossible.sum()} of {len(ms)} times such as {example}; "
            "allowed: times from 1900 to 2100"
        )


def _id_problems(where: str, ids: pa.ChunkedArray) -> Iterator[str]:
    yield from _null_problems(where, ids)
    text = as_text(ids).drop_null()
    counts = text.value_counts()
    repeated = counts.filter(pa.array(counts.field("counts").to_numpy() > 1))
    if len(repeated):
        example = repeated.field("values")[0].as_py()
        yield f"{where}: found {len(repeated)} duplicate ids, such as {example!r}; allowed: none"


def _null_problems(where: str, ids: pa.ChunkedArray) -> Iterator[str]:
    if nulls := int(ids.is_null(nan_is_null=True).to_numpy().sum()):
        yield f"{where}: found {nulls} nulls; allowed: none"


def _catalogue_problems(name: str, scenario: Scenario, table: pa.Table) -> Iterator[str]:
    where = f"scenarios.{name}.items"
    yield from _id_problems(f"{where}.id", table.column(scenario.items.id))
    yield from length_problems(where, table, scenario.items.id, scenario.items.vectors)
    column = scenario.items.published
    if column and scenario.events.time_unit is None and is_plain_number(table[column].type):
        ms = pc.fill_null(milliseconds(table[column]), NO_TIME).to_numpy()
        wrong = implausible(ms, ms != NO_TIME)
        if 2 * len(wrong) > (ms != NO_TIME).sum():
            example = table[column][int(wrong[len(wrong) // 2])].as_py()
            yield no_moment(f"{where}.published", f"scenarios.{name}.events.time_unit", example)


def implausible(ms: Ints, known: Bools) -> Ints:
    """Returns the places of known times i64[N] that are not between 1990 and 2100."""
    low, high = (1000 * seconds for seconds in PLAUSIBLE_SECONDS)
    return np.flatnonzero(known & ((ms < low) | (ms >= high)))


def no_moment(where: str, unit_field: str, example: Any) -> str:
    """Returns the line for plain numbers that are no moment in seconds, with the unit that fits."""
    found = f"{where}: found numbers such as {example}, which as seconds since 1970 are not"
    unit = plausible_unit(float(example))
    meant = f"{unit_field}: {unit}" if unit else "a time stamp or a date"
    return (
        f"{found} between 1990 and 2100; allowed: {meant}, or {unit_field} (one of "
        "s, ms, us, ns) where the numbers are right"
    )


def scan_problems(
    project: Project, scans: Mapping[str, "Scan"], *, expanded: bool = True
) -> list[str]:
    """Returns one line for each thing in the logs that the job cannot work with.

    `expanded`: whether the logs hold their sampled negatives already. A scenario whose rows were
    not understood has no line about what follows from that: splits without rows, no labels.
    """
    lines: list[str] = []
    for name, scenario in project.scenarios.items():
        of_rows = list(_row_problems(f"scenarios.{name}", scenario, scans[name]))
        if not any(_hides_others(line) for line in of_rows):
            of_rows += _split_problems(f"scenarios.{name}", scans[name])
            of_labels = list(_label_problems(f"scenarios.{name}", scenario, scans[name], expanded))
            of_rows += of_labels or _valid_problems(f"scenarios.{name}", scenario, scans[name])
        lines += [*of_rows, *_user_problems(f"scenarios.{name}", scans[name])]
    return lines


def _hides_others(line: str) -> bool:
    field = line.split(": ", 1)[0]
    return field.endswith((".events.item", ".events.time", ".events.user", ".split.column"))


def _row_problems(where: str, scenario: Scenario, scan: "Scan") -> Iterator[str]:
    counts, examples = scan.findings.counts, scan.findings.examples
    rows = max(counts["rows"], 1)
    yield from _time_problems(where, scan)
    for what in ("user", "item"):
        if 2 * counts[f"null {what}"] > rows:
            yield (
                f"{where}.events.{what}: found {counts[f'null {what}']} nulls in {rows} rows; "
                "allowed: one in most of them"
            )
    unknown = counts["unknown item"]
    if unknown / rows > scenario.max_unknown_items:
        yield (
            f"{where}.events.item: found {unknown} of {rows} rows ({unknown / rows:.1%}) whose "
            f"item the catalogue does not have, such as {examples['unknown item']}; allowed: "
            f"max_unknown_items = {scenario.max_unknown_items:.1%}"
        )
    for what, number in counts.items():
        if what.startswith("bad label of "):
            task = what.removeprefix("bad label of ")
            kind = scenario.tasks[task].kind
            classes = ", ".join([*map(key_of, scenario.tasks[task].classes or ()), "null"])
            wrong, allowed = LABELS.get(kind, ("no class", classes))
            yield (
                f"{where}.tasks.{task}: found {number} labels of a {kind} task that are {wrong}, "
                f"such as {examples[what]}; allowed: {allowed}"
            )
    for field, what, allowed in WEIGHTS:
        if counts[what]:
            yield (
                f"{where}.events.{field}: found {counts[what]} of {rows} rows with a value such as "
                f"{examples[what]}; allowed: {allowed} in every row"
            )
    if counts["unknown split"]:
        yield (
            f"{where}.split.column: found {counts['unknown split']} rows such as "
            f"{examples['unknown split']!r}; allowed: {', '.join(SPLITS)}"
        )


def _user_problems(where: str, scan: "Scan") -> Iterator[str]:
    """Yields a line where a user has more rows than a task can hold, as a sample of rows tells."""
    users = scan.sample.column("user_id").combine_chunks().value_counts()
    rows = users.field("counts").to_numpy() * scan.one_in
    if rows.max(initial=0) > MAX_ROWS_PER_USER:
        about = "" if scan.one_in == 1 else "about "
        user = users.field("values")[int(rows.argmax())].as_py()
        yield (
            f"{where}.events.user: found {about}{rows.max():,} rows of the user {user!r}, which "
            f"one task would hold; allowed: at most {MAX_ROWS_PER_USER:,} rows of one user, "
            "sampled negatives among them"
        )


def _time_problems(where: str, scan: "Scan") -> Iterator[str]:
    """Yields at most one line about the times of a log."""
    counts, examples = scan.findings.counts, scan.findings.examples
    known = counts["rows"] - counts["null time"]
    if 2 * counts["implausible time"] > counts["plain time"]:
        example = float(examples["implausible time"])
        whole = int(example) if example == int(example) else example
        yield no_moment(f"{where}.events.time", f"{where}.events.time_unit", whole)
    elif 2 * counts["null time"] > counts["rows"]:
        yield (
            f"{where}.events.time: found {counts['null time']} nulls in {counts['rows']} rows; "
            "allowed: a time in most of them"
        )
    elif 2 * counts["impossible time"] > known:
        yield (
            f"{where}.events.time: found {counts['impossible time']} of {known} times such as "
            f"{examples['impossible time']}; allowed: times from 1900 to 2100"
        )


def _split_problems(where: str, scan: "Scan") -> Iterator[str]:
    for split, number in zip(SPLITS, scan.split_rows, strict=False):
        if not number and not scan.split_rows[3]:
            yield f"{where}.split: found no rows in {split}; allowed: at least one"


def _label_problems(where: str, scenario: Scenario, scan: "Scan", expanded: bool) -> Iterator[str]:
    if not scan.split_rows[[0, 3]].any():
        return  # without training rows there are no labels either
    for i, task in enumerate(scenario.tasks):
        low, high = scan.label_ranges[:, i]
        known, weight = scan.label_sums[:2, i]
        drawn = scenario.draws_negatives_of(task)
        if low > high:
            yield f"{where}.tasks.{task}: found no labels in train; allowed: two values or more"
        elif known and not weight:
            yield (
                f"{where}.events.weight_column: found only weights of 0 in the training rows with "
                f"a label of {task}; allowed: at least one above 0"
            )
        elif lacking := classes_without_rows(scenario, task, scan):
            yield (
                f"{where}.tasks.{task}.classes: found no row of {', '.join(lacking)} in train; "
                "allowed: classes that training has"
            )
        elif low == high and (expanded or not drawn):
            positives_alone = scenario.tasks[task].kind == "binary" and low == 1
            hint = f", or negatives: {{of: {task}}}" if positives_alone else ""
            yield (
                f"{where}.tasks.{task}: found only the label {low:g} in train; allowed: two values "
                f"or more{hint}"
            )


def classes_without_rows(scenario: Scenario, task: str, scan: "Scan") -> list[str]:
    """Returns the classes of a task that no training row has; none of another kind."""
    if task not in scan.class_sums:
        return []
    rows = scan.class_sums[task][0]
    return [
        key_of(v) for v, n in zip(scenario.tasks[task].classes or (), rows, strict=True) if not n
    ]


def _valid_problems(where: str, scenario: Scenario, scan: "Scan") -> Iterator[str]:
    """Yields a line for each task where none has labels in valid, by which models are chosen."""
    if scan.split_rows[1] and not scan.num_labels[1].any():
        for task in scenario.tasks:
            yield (
                f"{where}.tasks.{task}: found no labels in valid; allowed: labels of a task, by "
                "which models are compared"
            )
