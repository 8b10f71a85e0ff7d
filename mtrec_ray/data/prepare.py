"""Events and items to training shards, with Ray Data.

    catalogue   items -> token ids                          one pass over the items
    scan        log -> counts, label means, vocabularies    one pass over the row groups
    expand      only with split by fractions or sampled negatives: shuffle by user
    features    shuffle by item -> item statistics -> shuffle by user -> histories, shards

No step holds more than a row group, a partition of about `ROWS_PER_PARTITION` rows, a catalogue,
or a vocabulary.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from mtrec_ray.config import ProjectError
from mtrec_ray.data import inputs, partition, storage
from mtrec_ray.data.catalogue import assemble, load_catalogue
from mtrec_ray.data.events import TRAIN, Findings, ItemLookup, canonical, matrix
from mtrec_ray.data.inputs import Fragment
from mtrec_ray.data.partition import Layout
from mtrec_ray.data.tokens import item_texts, load_tokenizer, tokenise
from mtrec_ray.schema import SPLITS, Project, Scenario

ROWS_PER_PARTITION = 500_000
ROWS_PER_SHARD = 32_768
SCENARIO_STRIDE = 2**20
TEXTS_PER_BLOCK = 20_000
CATALOGUE = "catalogue.parquet"

Say = Callable[[str], None]


@dataclass
class Scan:
    """Counts and vocabularies of a scenario's log, merged over its row groups."""

    findings: Findings = field(default_factory=Findings)
    split_rows: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    label_sums: np.ndarray = field(default_factory=lambda: np.zeros((3, 1)))
    item_rows: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    users: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    categories: list[np.ndarray] = field(default_factory=list)
    last_ms: int = 0
    label_ranges: np.ndarray = field(default_factory=lambda: np.zeros((2, 1)))


@dataclass(frozen=True)
class Source:
    """What reading a scenario's rows takes; lies in the object store."""

    scenario: Scenario
    lookup: ItemLookup
    width: int
    num_items: int


def list_width(project: Project) -> int:
    """Width of the padded list columns: the most tasks or event columns of any scenario."""
    return max(
        max(len(s.tasks), len(s.events.numeric), len(s.events.categorical), 1)
        for s in project.scenarios.values()
    )


# --- catalogue -------------------------------------------------------------------------------


def read_items(project: Project, name: str) -> pa.Table:
    """The columns of a scenario's items that the project file names.

    Raises:
        ProjectError: item ids that are null or not unique.
    """
    scenario = project.scenarios[name]
    columns = list(inputs.wanted_columns(scenario)["items"])
    tables = []
    for path in storage.parquet_files(project.path(scenario.items.path)):
        fs, inner = storage.filesystem(path)
        tables.append(pq.read_table(inner, filesystem=fs, columns=columns))
    table = pa.concat_tables(tables, promote_options="permissive")
    ids = table.column(scenario.items.id)
    where = f"scenarios.{name}.items.id"
    if ids.null_count:
        raise ProjectError([f"{where}: found {ids.null_count} nulls; allowed: none"])
    counts = ids.value_counts()
    repeated = [c["values"] for c in counts.to_pylist() if c["counts"] > 1]
    if repeated:
        raise ProjectError(
            [f"{where}: found {len(repeated)} duplicate ids, such as {repeated[0]}; allowed: none"]
        )
    return table


def tokenised_items(project: Project, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The item tables of all scenarios with their token ids."""
    encoder = project.model.encoder

    def add_tokens(block: pa.Table) -> pa.Table:
        texts = block.column("text").to_pylist()
        tokens = tokenise(load_tokenizer(encoder), texts, encoder.max_tokens)
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
    whole = pa.concat_tables(ray.get(found))
    result = {}
    for code, (name, table) in enumerate(tables.items()):
        mine = whole.filter(pa.compute.equal(whole.column("scenario"), code)).sort_by("index")
        result[name] = table.append_column("tokens", mine.column("tokens"))
    return result


# --- reading and scanning --------------------------------------------------------------------


def source_of(project: Project, name: str, items: pa.Table) -> Source:
    """What reading a scenario's rows takes."""
    scenario = project.scenarios[name]
    lookup = ItemLookup.of(items.column(scenario.items.id))
    return Source(scenario, lookup, list_width(project), items.num_rows)


def read_canonical(fragment: Fragment, source: Source) -> tuple[pa.Table, Findings]:
    """Canonical rows of a row group: of the user's log, or of an expanded one."""
    table = inputs.read_fragment(fragment)
    if "event_categorical" in table.column_names:
        return table, Findings()
    return canonical(table, source.scenario, fragment.first_row, source.lookup, source.width)


def scan_rows(table: pa.Table, findings: Findings, source: Source) -> Scan:
    """The scan of some canonical rows."""
    num_tasks = len(source.scenario.tasks)
    split = table.column("split").to_numpy()
    train = split == TRAIN if (split == TRAIN).any() or (split < 3).any() else split == 3
    labels = matrix(table.column("labels"))[train][:, :num_tasks].astype(np.float64)
    filled = np.nan_to_num(labels)
    sums = np.stack([np.isfinite(labels).sum(0), filled.sum(0), (filled**2).sum(0)])
    low = np.where(np.isfinite(labels), labels, np.inf).min(0, initial=np.inf)
    high = np.where(np.isfinite(labels), labels, -np.inf).max(0, initial=-np.inf)
    items = table.column("item").to_numpy()[train]
    categories = matrix(table.column("event_categorical"))[train]
    return Scan(
        findings=findings,
        split_rows=np.bincount(split, minlength=4)[:4],
        label_sums=sums,
        item_rows=np.bincount(items, minlength=source.num_items),
        users=np.unique(table.column("user").to_numpy()[train].view(np.uint64)),
        categories=[
            np.unique(categories[:, i]) for i in range(len(source.scenario.events.categorical))
        ],
        last_ms=int(table.column("time").to_numpy().max(initial=0)),
        label_ranges=np.stack([low, high]),
    )


def merge_scans(first: Scan | None, second: Scan) -> Scan:
    """One scan of two parts."""
    if first is None:
        return second
    first.findings.add(second.findings)
    return Scan(
        findings=first.findings,
        split_rows=first.split_rows + second.split_rows,
        label_sums=first.label_sums + second.label_sums,
        item_rows=first.item_rows + second.item_rows,
        users=np.union1d(first.users, second.users),
        categories=[
            np.union1d(a, b) for a, b in zip(first.categories, second.categories, strict=True)
        ],
        last_ms=max(first.last_ms, second.last_ms),
        label_ranges=np.stack(
            [
                np.minimum(first.label_ranges[0], second.label_ranges[0]),
                np.maximum(first.label_ranges[1], second.label_ranges[1]),
            ]
        ),
    )


def fragment_dataset(fragments: list[Fragment]) -> ray.data.Dataset:
    """A data set of row groups to read, a few to a task."""
    rows = [f.__dict__ for f in fragments]
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), 256))


def scan(fragments: list[Fragment], sources: ray.ObjectRef) -> dict[str, Scan]:
    """The scan of each scenario's log."""

    def scan_one(row: dict[str, Any]) -> dict[str, Any]:
        fragment = Fragment(**row)
        source = cast("dict[str, Source]", ray.get(sources))[fragment.scenario]
        table, findings = read_canonical(fragment, source)
        found = scan_rows(table, findings, source)
        return {"scenario": fragment.scenario, "scan": pickle.dumps(found)}

    merged: dict[str, Scan] = {}
    for row in fragment_dataset(fragments).map(scan_one).iter_rows():
        merged[row["scenario"]] = merge_scans(
            merged.get(row["scenario"]), pickle.loads(row["scan"])
        )
    return merged


def scan_problems(project: Project, scans: dict[str, Scan]) -> list[str]:
    """One line for each thing in the data that the job cannot work with."""
    return [
        line
        for name in project.scenarios
        for line in _scenario_problems(name, project.scenarios[name], scans[name])
    ]


def _scenario_problems(name: str, scenario: Scenario, found: Scan) -> Iterator[str]:
    counts, examples = found.findings.counts, found.findings.examples
    where = f"scenarios.{name}"
    unknown, rows = counts["unknown item"], max(counts["rows"], 1)
    if unknown / rows > scenario.max_unknown_items:
        yield (
            f"{where}.events.item: found {unknown} of {rows} rows ({unknown / rows:.1%}) whose "
            f"item the catalogue does not have, such as {examples['unknown item']}; allowed: "
            f"max_unknown_items = {scenario.max_unknown_items:.1%}"
        )
    for what, number in counts.items():
        if what.startswith("bad label of "):
            task = what.removeprefix("bad label of ")
            yield (
                f"{where}.tasks.{task}: found {number} labels of a binary task that are neither "
                f"0, 1 nor null, such as {examples[what]}; allowed: 0, 1, null"
            )
        if what == "unknown split":
            yield (
                f"{where}.split.column: found {number} rows such as {examples[what]!r}; "
                f"allowed: {', '.join(SPLITS)}"
            )
    for split, number in zip(SPLITS, found.split_rows, strict=False):
        if not number and not found.split_rows[3]:
            yield f"{where}.split: found no rows in {split}; allowed: at least one"
    for i, task in enumerate(scenario.tasks):
        low, high = found.label_ranges[:, i]
        if low >= high:
            value = "no labels" if low > high else f"only the label {low:g}"
            yield f"{where}.tasks.{task}: found {value} in train; allowed: two values or more"


# --- passes over partitions ------------------------------------------------------------------


def partitioned(
    fragments: list[Fragment], sources: ray.ObjectRef, key: str, parts: dict[str, int]
) -> ray.data.Dataset:
    """Canonical rows with a column `part` by a hash of the user or the item."""

    def read(block: pa.Table) -> Iterator[pa.Table]:
        known = cast("dict[str, Source]", ray.get(sources))
        for row in block.to_pylist():
            fragment = Fragment(**row)
            table, _ = read_canonical(fragment, known[fragment.scenario])
            code = list(known).index(fragment.scenario)
            yield _with_part(table, key, code, parts[fragment.scenario])

    return fragment_dataset(fragments).map_batches(read, batch_size=1, batch_format="pyarrow")


def _with_part(table: pa.Table, key: str, code: int, parts: int) -> pa.Table:
    value = table.column(key).to_numpy().astype(np.int64).view(np.uint64) % np.uint64(parts)
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
        table = table.drop_columns("part")
        table = partition.expand_users(table, known[name].scenario, weights[name], seed)
        path = storage.join(folder, name, f"part-{index:05}.parquet")
        storage.write_table(path, table)
        return pa.table({"scenario": [name], "path": [path]})

    found = _grouped(partitioned(fragments, sources, "user", parts), work, parts).take_all()
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
    shared = ray.put(layouts)

    def by_item(table: pa.Table) -> pa.Table:
        known = cast("dict[str, Layout]", ray.get(shared))
        name, index = _place(table, known)
        out, state = partition.item_features(table, known[name])
        path = storage.join(folder, name, "state", "items", f"part-{index:05}.parquet")
        storage.write_table(path, state)
        width = max(len(partition.numeric_names(x.scenario)) for x in known.values())
        out = _pad_stats(out, width)
        return _with_part(out, "user", list(known).index(name), parts[name])

    def by_user(table: pa.Table) -> pa.Table:
        known = cast("dict[str, Layout]", ray.get(shared))
        name, index = _place(table, known)
        layout = known[name]
        table = _unpad_stats(table, layout)
        finished, state = partition.user_features(table, layout)
        path = storage.join(folder, name, "state", "users", f"part-{index:05}.parquet")
        storage.write_table(path, state)
        return write_samples(finished, folder, name, index, count_duplicates(table))

    data = partitioned(fragments, sources, "item", parts)
    return _grouped(_grouped(data, by_item, parts), by_user, parts).take_all()


def _pad_stats(table: pa.Table, width: int) -> pa.Table:
    """All scenarios travel through one shuffle, so their list columns must have one width."""
    from mtrec_ray.data.events import fixed_list

    stats = fixed_list(matrix(table.column("item_stats")), width)
    return table.set_column(table.column_names.index("item_stats"), "item_stats", stats)


def _unpad_stats(table: pa.Table, layout: Layout) -> pa.Table:
    from mtrec_ray.data import features
    from mtrec_ray.data.events import fixed_list

    num = len(features.feature_names("item", layout.tasks, layout.timed))
    stats = fixed_list(np.ascontiguousarray(matrix(table.column("item_stats"))[:, :num]))
    return table.set_column(table.column_names.index("item_stats"), "item_stats", stats)


def count_duplicates(table: pa.Table) -> int:
    """Rows that repeat the user, item and time of another."""
    real = table.filter(pa.compute.invert(table.column("sampled")))
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
    project: Project, name: str, found: Scan, users: np.ndarray, catalogue_path: str
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
        seed=project.training.seed,
    )


def user_vocabularies(project: Project, scans: dict[str, Scan]) -> dict[str, np.ndarray]:
    """Known users of each id space (scenarios that share users share numbers), sorted hashes."""
    spaces: dict[str, np.ndarray] = {}
    for name, found in scans.items():
        space = project.scenarios[name].users or name
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


def prepare(project: Project, folder: str, say: Say) -> dict[str, Any]:
    """Write the prepared data of a project; returns the manifest (without its fingerprint).

    Raises:
        ProjectError: whatever in the inputs the job cannot work with, all at once.
    """
    from mtrec_ray.data.manifest import manifest_of

    problems = inputs.input_problems(project)
    if problems:
        raise ProjectError(problems)
    load_tokenizer(project.model.encoder)
    tables = {name: read_items(project, name) for name in project.scenarios}
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
    problems = scan_problems(project, scans)
    if problems:
        raise ProjectError(problems)
    vocabularies = write_catalogues(project, items, scans, folder)
    users = user_vocabularies(project, scans)
    paths = {name: storage.join(folder, name, CATALOGUE) for name in items}
    layouts = {n: layout_of(project, n, scans[n], users[n], paths[n]) for n in items}
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
    bigger = expand(mine, sources, weights, work, project.training.seed)
    again = scan(bigger, sources)
    for name in names:
        again[name].findings = scans[name].findings
    others = [p for p in pieces if p.scenario not in names]
    return others + bigger, {n: again.get(n, scans[n]) for n in project.scenarios}
