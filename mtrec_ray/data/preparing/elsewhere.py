"""Timelines: the rows of some scenarios, as another one with the same people sees them.

They are made of the prepared rows of those scenarios, in Ray tasks: each reads some shards, and
hands their rows to partitions by ranges of the persons, which are uniform hashes. A partition is
sorted by itself; one after another they are the whole timeline, sorted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.elsewhere import COLUMNS, ElsewhereFacts, timeline_path
from mtrec_ray.data.mapped_arrays import write_array
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.preparing import partitions, shuffle
from mtrec_ray.data.preparing.taken_rows import Beside, Source, sources_of
from mtrec_ray.project.project import Project


def write_timelines(
    project: Project, facts: Mapping[str, PreparedScenario], folder: str, beside: Beside | None
) -> dict[str, ElsewhereFacts]:
    """Write the timeline of each scenario of the project that asks for one; returns their facts."""
    written: dict[str, ElsewhereFacts] = {}
    for sources in sources_of(project, facts, folder, beside).values():
        asking = {
            name: elsewhere_facts(name, sources)
            for name in sources
            if name in project.scenarios and project.scenarios[name].history.elsewhere
        }
        if asking:
            write_space(sources, asking, folder)
        written |= asking
    return written


def elsewhere_facts(name: str, sources: Mapping[str, Source]) -> ElsewhereFacts:
    """Returns what a scenario asks of the others of its people."""
    own = sources[name]
    return ElsewhereFacts(
        last=own.scenario.history.elsewhere or 0,
        timed=own.timed,
        num_items={other: source.facts.num_items for other, source in sources.items()},
        delays_ms={other: s.delay_ms for other, s in sources.items() if other != name},
    )


def write_space(
    sources: Mapping[str, Source], asking: Mapping[str, ElsewhereFacts], folder: str
) -> None:
    """Write the timelines of the scenarios that ask, of some people."""
    wanted = {name: (sources[name].number, facts.timed) for name, facts in asking.items()}
    tasks = read_tasks(list(sources.values()))
    k = len(tasks)
    pieces = shuffle.begin(tasks, partial(numbers, k), k)
    counts, parts = shuffle.look_at(pieces, partial(timelines, wanted), range(k))
    sizes: list[dict[str, int]] = ray.get(counts)
    for name in asking:
        for column, dtype in COLUMNS.items():
            arrays = (ray.get(part)[name][column] for part in parts)
            shape = (sum(size[name] for size in sizes),)
            write_array(timeline_path(folder, name, column), dtype, shape, arrays)


def read_tasks(sources: Sequence[Source]) -> list[Callable[[], Iterator[pa.Table]]]:
    """Returns what each task reads: shards that together have as many rows as a partition."""
    groups: list[list[tuple[Source, bool, str]]] = []
    rows = 0
    for source in sources:
        for is_train, path, num_rows in source.shards():
            if not groups or rows + num_rows > partitions.ROWS_PER_PARTITION:
                groups.append([])
                rows = 0
            groups[-1].append((source, is_train, path))
            rows += num_rows
    return [partial(read_shards, group) for group in groups]


def read_shards(shards: Sequence[tuple[Source, bool, str]]) -> Iterator[pa.Table]:
    """Yields the rows of shards that stand in histories."""
    for source, is_train, path in shards:
        yield from source.rows(path, is_train)


def numbers(k: int, table: pa.Table) -> Ints:
    """Returns i64[N]: the range, of k equal ones of all hashes, that each row's person is in."""
    from_zero = table.column("person").to_numpy().view(np.uint64) ^ np.uint64(2**63)
    return ((from_zero >> np.uint64(32)) * np.uint64(k) >> np.uint64(32)).astype(np.int64)


def timelines(
    wanted: Mapping[str, tuple[int, bool]], table: pa.Table
) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """Returns the rows and the arrays of each timeline's part of a partition.

    `wanted`: the number of each scenario that asks, and whether it has times.
    """
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    order = np.lexsort([columns["tie"], columns["known"], columns["person"]])
    columns = {name: values[order] for name, values in columns.items()}
    parts = {}
    for name, (number, timed) in wanted.items():
        seen = (columns["source"] != number) & (columns["train"] | timed)
        parts[name] = {column: columns[column][seen] for column in COLUMNS}
    return {name: len(part["item"]) for name, part in parts.items()}, parts
