"""Events and items to training shards, with Ray Data.

    catalogue   items -> token ids                          one pass over the items
    scan        log -> counts, label means, vocabularies    one pass over the row groups
    expand      only with split by fractions or sampled negatives: shuffle by user
    features    shuffle by each counted category, by item -> their statistics
                -> shuffle by user -> user statistics, histories, shards

No step holds more than a row group, a partition of about `ROWS_PER_PARTITION` rows, a catalogue,
or a vocabulary.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import assemble, category_codes, load_catalogue
from mtrec_ray.data.preparing import inputs, samples
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.data.preparing.manifest import manifest_of
from mtrec_ray.data.preparing.passes import build_shards, expand
from mtrec_ray.data.preparing.scan import Scan, list_width, scan, scan_problems, source_of
from mtrec_ray.data.tokens import item_texts, load_tokenizer, tokenise
from mtrec_ray.progress import Log
from mtrec_ray.project.base import refuse
from mtrec_ray.project.project import Project

TEXTS_PER_BLOCK = 20_000


CATALOGUE = "catalogue.parquet"


NO_USERS: Mapping[str, np.ndarray] = {}


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


def layout_of(
    project: Project,
    name: str,
    found: Scan,
    users: np.ndarray,
    items: pa.Table,
    catalogue_path: str,
) -> FeatureSpec:
    """What the partition functions need, with the numbers fitted on training rows."""
    known, total, _ = found.label_sums
    return FeatureSpec(
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


def prepare(
    project: Project, folder: str, log: Log, stored_users: Mapping[str, np.ndarray] = NO_USERS
) -> dict[str, Any]:
    """Write the prepared data of a project; returns the manifest (without its fingerprint).

    `stored_users`: by id space, the sorted hashes of the users that a model knows already.

    Raises:
        ProjectError: whatever in the inputs the job cannot work with, all at once.
    """
    load_tokenizer(project.model.encoder.source)
    tables = {name: read_items(project, name) for name in project.scenarios}
    refuse(item_problems(project, tables))
    log(f"tokenising {sum(t.num_rows for t in tables.values()):,} items")
    items = tokenised_items(project, tables)
    known = {name: source_of(project, name, items[name]) for name in items}
    sources = ray.put(known)
    pieces = [
        piece
        for name, scenario in project.scenarios.items()
        for piece in inputs.fragments(name, project.path(scenario.events.path))
    ]
    log(f"scanning {sum(p.num_rows for p in pieces):,} rows")
    scans = scan(pieces, sources)
    pieces, scans = _expanded(project, pieces, sources, scans, folder, log)
    refuse(scan_problems(project, scans))
    vocabularies = write_catalogues(project, items, scans, folder)
    users = user_vocabularies(project, scans, stored_users)
    paths = {name: storage.join(folder, name, CATALOGUE) for name in items}
    layouts = {n: layout_of(project, n, scans[n], users[n], items[n], paths[n]) for n in items}
    log("statistics, histories and shards")
    written = build_shards(pieces, sources, layouts, folder)
    return manifest_of(project, scans, layouts, vocabularies, written, folder)


def _expanded(
    project: Project,
    pieces: list[Fragment],
    sources: ray.ObjectRef,
    scans: dict[str, Scan],
    folder: str,
    log: Log,
) -> tuple[list[Fragment], dict[str, Scan]]:
    names = [n for n, s in project.scenarios.items() if samples.needs_expansion(s)]
    if not names:
        return pieces, scans
    log(f"splitting and sampling negatives: {', '.join(names)}")
    weights = {
        n: samples.negative_weights(
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
