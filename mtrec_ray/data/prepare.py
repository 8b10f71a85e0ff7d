"""Events and items to training shards, with Ray Data.

    catalogue   items -> token ids                          one pass over the items
    scan        log -> counts, label means, vocabularies    one pass over the row groups
    expand      only with split by fractions or sampled negatives: shuffle by user
    features    shuffle by each counted category, by item -> their statistics
                -> shuffle by user -> user statistics, histories, shards

No step holds more than a row group, a partition of about `ROWS_PER_PARTITION` rows, a catalogue,
or a vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from mtrec_ray.config import ProjectError
from mtrec_ray.data import inputs, partition, storage
from mtrec_ray.data.catalogue import assemble, category_codes, load_catalogue
from mtrec_ray.data.inputs import Fragment
from mtrec_ray.data.manifest import manifest_of
from mtrec_ray.data.partition import Layout
from mtrec_ray.data.scan import (
    Scan,
    Source,
    fragment_dataset,
    list_width,
    read_canonical,
    scan,
    scan_problems,
    source_of,
)
from mtrec_ray.data.tokens import item_texts, load_tokenizer, tokenise
from mtrec_ray.schema import SPLITS, Project

ROWS_PER_PARTITION = 500_000
ROWS_PER_SHARD = 32_768
SCENARIO_STRIDE = 2**20
TEXTS_PER_BLOCK = 20_000
CATALOGUE = "catalogue.parquet"
NO_USERS: Mapping[str, np.ndarray] = {}

Say = Callable[[str], None]
# What rows are partitioned by: the scenario's name and its rows to a number for each row.
Key = Callable[[str, pa.Table], np.ndarray]


# --- catalogue -------------------------------------------------------------------------------


def read_items(project: Project, name: str) -> pa.Table:
    """The columns of a scenario's items that the project file names."""
    scenario = project.scenarios[name]
    columns = list(inputs.wanted_columns(scenario)["items"])
    tables = []
    for path in storage.parquet_files(project.path(scenario.items.path)):
        fs, inner = storage.filesystem(path)
        tables.append(pq.read_table(inner, filesystem=fs, columns=columns))
    return pa.concat_tables(tables, promote_options="permissive")


def item_problems(project: Project, tables: dict[str, pa.Table]) -> list[str]:
    """One line for each catalogue whose ids are null or not unique."""
    problems = []
    for name, table in tables.items():
        ids = table.column(project.scenarios[name].items.id)
        where = f"scenarios.{name}.items.id"
        if ids.null_count:
            problems.append(f"{where}: found {ids.null_count} nulls; allowed: none")
        counts = ids.value_counts()
        repeated = counts.filter(pa.array(counts.field("counts").to_numpy() > 1))
        if len(repeated):
            example = repeated.field("values")[0].as_py()
            problems.append(
                f"{where}: found {len(repeated)} duplicate ids, such as {example!r}; allowed: none"
            )
    return problems


def tokenised_items(project: Project, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The item tables of all scenarios with their token ids."""
    encoder = project.model.encoder

    def add_tokens(block: pa.Table) -> pa.Table:
        texts = block.column("text").to_pylist()
        tokens = tokenise(load_tokenizer(encoder.source), texts, encoder.max_tokens)
        column = pa.array(tokens, pa.list_(pa.int32()))
        return block.drop_columns("text").append_column("tokens", column)

    blocks = [
        pa.table(
            {
                "scenario": pa.array([code] * table.num_rows, pa.int32()),
                "index": np.arange(table.num_rows),
                "text": pa.array(item_texts(table, project.scenarios[name].items), pa.string()),
            }
        )
        for code, (name, table) in enumerate(tables.items())
    ]
    found = (
        ray.data.from_arrow(blocks)
        .repartition(target_num_rows_per_block=TEXTS_PER_BLOCK)
        .map_batches(add_tokens, batch_format="pyarrow", batch_size=None)
        .to_arrow_refs()
    )
    whole = pa.concat_tables(ray.get(cast("list[ray.ObjectRef[pa.Table]]", found)))
    result = {}
    for code, (name, table) in enumerate(tables.items()):
        mine = whole.filter(pa.array(whole.column("scenario").to_numpy() == code)).sort_by("index")
        result[name] = table.append_column("tokens", mine.column("tokens"))
    return result


# --- passes over partitions ------------------------------------------------------------------


def partitioned(
    fragments: list[Fragment],
    sources: ray.ObjectRef,
    key: Key,
    parts: dict[str, int],
    width: int = 1,
) -> ray.data.Dataset:
    """Canonical rows with a column `part` by a hash of their key, to carry `width` statistics."""

    def read(block: pa.Table) -> Iterator[pa.Table]:
        known = cast("dict[str, Source]", ray.get(sources))
        for row in block.to_pylist():
            fragment = Fragment(**row)
            table, _ = read_canonical(fragment, known[fragment.scenario])
            code = list(known).index(fragment.scenario)
            values = key(fragment.scenario, table)
            table = partition.carry_nothing(table, width)
            yield _with_part(table, values, code, parts[fragment.scenario])

    return fragment_dataset(fragments).map_batches(read, batch_size=1, batch_format="pyarrow")


def by_column(column: str) -> Key:
    """The user or the item as key."""
    return lambda _, table: table.column(column).to_numpy()


def _with_part(table: pa.Table, values: np.ndarray, code: int, parts: int) -> pa.Table:
    value = values.astype(np.int64).view(np.uint64) % np.uint64(parts)
    column = pa.array(code * SCENARIO_STRIDE + value.astype(np.int64))
    if "part" in table.column_names:
        return table.set_column(table.column_names.index("part"), "part", column)
    return table.append_column("part", column)


def num_parts(rows: dict[str, int]) -> dict[str, int]:
    """Partitions of each scenario."""
    return {name: -(-n // ROWS_PER_PARTITION) for name, n in rows.items()}


def _grouped(
    data: ray.data.Dataset, work: Callable[[pa.Table], pa.Table], parts: dict[str, int]
) -> ray.data.Dataset:
    total = sum(parts.values())
    return data.groupby("part", num_partitions=min(total, 1024)).map_groups(
        work, batch_format="pyarrow"
    )


def _place(table: pa.Table, layouts: dict[str, Any]) -> tuple[str, int]:
    code, index = divmod(int(table.column("part")[0].as_py()), SCENARIO_STRIDE)
    return list(layouts)[code], index


def expand(
    fragments: list[Fragment],
    sources: ray.ObjectRef,
    weights: dict[str, np.ndarray],
    folder: str,
    seed: int,
) -> list[Fragment]:
    """Row groups of the expanded log (split by fractions, sampled negatives) in a work folder."""
    rows = {name: sum(f.num_rows for f in fragments if f.scenario == name) for name in weights}
    parts = {name: num_parts(rows).get(name, 1) for name in cast("dict", ray.get(sources))}

    def work(table: pa.Table) -> pa.Table:
        known = cast("dict[str, Source]", ray.get(sources))
        name, index = _place(table, known)
        table = table.drop_columns(["part", "carried"])
        source = known[name]
        table = partition.expand_users(
            table, source.scenario, weights[name], source.published, seed
        )
        path = storage.join(folder, name, f"part-{index:05}.parquet")
        storage.write_table(path, table)
        return pa.table({"scenario": [name], "path": [path]})

    found = _grouped(
        partitioned(fragments, sources, by_column("user"), parts), work, parts
    ).take_all()
    return [
        piece
        for name in weights
        for path in sorted(row["path"] for row in found if row["scenario"] == name)
        for piece in inputs.fragments(name, path)
    ]


def build_shards(
    fragments: list[Fragment], sources: ray.ObjectRef, layouts: dict[str, Layout], folder: str
) -> list[dict[str, Any]]:
    """Write samples and end states; one row for each file that was written."""
    rows = {name: sum(f.num_rows for f in fragments if f.scenario == name) for name in layouts}
    parts = num_parts(rows)
    width = max(len(partition.carried_names(x.scenario)) for x in layouts.values())
    shared = ray.put(layouts)

    def by_item(table: pa.Table) -> pa.Table:
        known = cast("dict[str, Layout]", ray.get(shared))
        name, index = _place(table, known)
        out, state = partition.item_features(table, known[name])
        write_state(state, folder, name, "items", index)
        values = out.column("user").to_numpy()
        return _with_part(out, values, list(known).index(name), parts[name])

    def by_user(table: pa.Table) -> pa.Table:
        known = cast("dict[str, Layout]", ray.get(shared))
        name, index = _place(table, known)
        finished, states = partition.user_features(table, known[name])
        for kind, state in states.items():
            write_state(state, folder, name, kind, index)
        return write_samples(finished, folder, name, index, count_duplicates(table))

    plain = [f for f in fragments if not layouts[f.scenario].categories]
    counted = [f for f in fragments if layouts[f.scenario].categories]
    data = [partitioned(plain, sources, by_column("item"), parts, width)] if plain else []
    if counted:
        data.append(category_passes(counted, sources, shared, parts, width, folder))
    joined = data[0].union(*data[1:]) if data[1:] else data[0]
    return _grouped(_grouped(joined, by_item, parts), by_user, parts).take_all()


def category_passes(
    fragments: list[Fragment],
    sources: ray.ObjectRef,
    shared: ray.ObjectRef,
    parts: dict[str, int],
    width: int,
    folder: str,
) -> ray.data.Dataset:
    """Rows with the statistics of their item's categories, partitioned by item for the next pass.

    One shuffle for each categorical column that is counted; scenarios with fewer columns than
    others pass through the last ones.
    """
    layouts = cast("dict[str, Layout]", ray.get(shared))
    names = {f.scenario for f in fragments}
    passes = max(len(layouts[n].categories) for n in names)

    def key(number: int) -> Key:
        def values(name: str, table: pa.Table) -> np.ndarray:
            known = cast("dict[str, Layout]", ray.get(shared))[name].categories
            item = table.column("item").to_numpy()
            return list(known.values())[number][item] + 1 if number < len(known) else item

        return values

    def work(number: int) -> Callable[[pa.Table], pa.Table]:
        def by_category(table: pa.Table) -> pa.Table:
            known = cast("dict[str, Layout]", ray.get(shared))
            name, index = _place(table, known)
            layout = known[name]
            if number < len(layout.categories):
                column = list(layout.categories)[number]
                table, state = partition.category_features(table, layout, column)
                write_state(state, folder, name, f"category.{column}", index)
            values = key(number + 1)(name, table)
            return _with_part(table, values, list(known).index(name), parts[name])

        return by_category

    mine = {n: p for n, p in parts.items() if n in names}
    data = partitioned(fragments, sources, key(0), parts, width)
    for number in range(passes):
        data = _grouped(data, work(number), mine)
    return data


def write_state(state: pa.Table, folder: str, name: str, kind: str, index: int) -> None:
    """Write the end state of a partition's keys."""
    path = storage.join(folder, name, "state", kind, f"part-{index:05}.parquet")
    storage.write_table(path, state)


def count_duplicates(table: pa.Table) -> int:
    """Rows that repeat the user, item and time of another."""
    real = table.filter(pa.array(~table.column("sampled").to_numpy()))
    groups = real.group_by(["user", "item", "time"]).aggregate([])
    return real.num_rows - groups.num_rows


def write_samples(
    finished: pa.Table, folder: str, name: str, index: int, duplicates: int
) -> pa.Table:
    """Write a partition's samples as shards; one row a file."""
    written: dict[str, list[Any]] = {
        k: [] for k in ("scenario", "split", "path", "rows", "duplicates")
    }
    split = finished.column("split").to_numpy()
    for code, word in enumerate(SPLITS):
        rows = finished.filter(pa.array(split == code)).drop_columns("split")
        for number, start in enumerate(range(0, rows.num_rows, ROWS_PER_SHARD)):
            shard = rows.slice(start, ROWS_PER_SHARD)
            path = storage.join(name, word, f"part-{index:05}-{number:04}.parquet")
            storage.write_table(storage.join(folder, path), shard)
            values = (name, word, path, shard.num_rows, duplicates if not written["path"] else 0)
            for key, value in zip(written, values, strict=True):
                written[key].append(value)
    return pa.table(written)


# --- the whole -------------------------------------------------------------------------------


def layout_of(
    project: Project,
    name: str,
    found: Scan,
    users: np.ndarray,
    items: pa.Table,
    catalogue_path: str,
) -> Layout:
    """What the partition functions need, with the numbers fitted on training rows."""
    known, total, _ = found.label_sums
    return Layout(
        scenario=project.scenarios[name],
        width=list_width(project),
        priors=tuple((total / np.maximum(known, 1)).tolist()),
        end_ms=found.last_ms + 1,
        published=load_catalogue(catalogue_path).published,
        users=users,
        event_vocabularies=tuple(found.categories),
        seed=project.data_seed,
        categories={
            column: category_codes(items.column(column))
            for column in project.scenarios[name].items.counted
        },
    )


def user_vocabularies(
    project: Project, scans: dict[str, Scan], stored: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Known users of each id space (scenarios that share users share numbers), sorted hashes.

    Of a space that is `stored` they are those already, and no others.
    """
    spaces: dict[str, np.ndarray] = dict(stored)
    for name, found in scans.items():
        space = project.scenarios[name].users or name
        if space in stored:
            continue
        spaces[space] = np.union1d(spaces.get(space, found.users[:0]), found.users)
    return {name: spaces[project.scenarios[name].users or name] for name in scans}


def write_catalogues(
    project: Project, items: dict[str, pa.Table], scans: dict[str, Scan], folder: str
) -> dict[str, dict[str, list[str]]]:
    """Write each scenario's catalogue; returns the vocabularies of its categorical columns."""
    vocabularies = {}
    for name, table in items.items():
        out, vocabularies[name] = assemble(
            table, project.scenarios[name].items, scans[name].item_rows
        )
        storage.write_table(storage.join(folder, name, CATALOGUE), out)
    return vocabularies


def refuse(problems: list[str]) -> None:
    """Raise the problems, if there are any, as one error."""
    if problems:
        raise ProjectError(problems)


def prepare(
    project: Project, folder: str, say: Say, stored_users: Mapping[str, np.ndarray] = NO_USERS
) -> dict[str, Any]:
    """Write the prepared data of a project; returns the manifest (without its fingerprint).

    `stored_users`: by id space, the sorted hashes of the users that a model knows already.

    Raises:
        ProjectError: whatever in the inputs the job cannot work with, all at once.
    """
    load_tokenizer(project.model.encoder.source)
    tables = {name: read_items(project, name) for name in project.scenarios}
    refuse(item_problems(project, tables))
    say(f"tokenising {sum(t.num_rows for t in tables.values()):,} items")
    items = tokenised_items(project, tables)
    known = {name: source_of(project, name, items[name]) for name in items}
    sources = ray.put(known)
    pieces = [
        piece
        for name, scenario in project.scenarios.items()
        for piece in inputs.fragments(name, project.path(scenario.events.path))
    ]
    say(f"scanning {sum(p.num_rows for p in pieces):,} rows")
    scans = scan(pieces, sources)
    pieces, scans = _expanded(project, pieces, sources, scans, folder, say)
    refuse(scan_problems(project, scans))
    vocabularies = write_catalogues(project, items, scans, folder)
    users = user_vocabularies(project, scans, stored_users)
    paths = {name: storage.join(folder, name, CATALOGUE) for name in items}
    layouts = {n: layout_of(project, n, scans[n], users[n], items[n], paths[n]) for n in items}
    say("statistics, histories and shards")
    written = build_shards(pieces, sources, layouts, folder)
    return manifest_of(project, scans, layouts, vocabularies, written, folder)


def _expanded(
    project: Project,
    pieces: list[Fragment],
    sources: ray.ObjectRef,
    scans: dict[str, Scan],
    folder: str,
    say: Say,
) -> tuple[list[Fragment], dict[str, Scan]]:
    names = [n for n, s in project.scenarios.items() if partition.needs_expansion(s)]
    if not names:
        return pieces, scans
    say(f"splitting and sampling negatives: {', '.join(names)}")
    weights = {
        n: partition.negative_weights(
            project.scenarios[n], scans[n].item_rows, len(scans[n].item_rows)
        )
        for n in names
    }
    mine = [p for p in pieces if p.scenario in names]
    work = storage.join(folder, "work")
    bigger = expand(mine, sources, weights, work, project.data_seed)
    again = scan(bigger, sources)
    for name in names:
        again[name].findings = scans[name].findings
    others = [p for p in pieces if p.scenario not in names]
    return others + bigger, {n: again.get(n, scans[n]) for n in project.scenarios}
