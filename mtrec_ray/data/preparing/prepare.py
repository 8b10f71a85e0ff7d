"""Events and items to training shards, in Ray tasks.

    catalogue   items -> token ids                          one pass over the items
    scan        log -> counts, label means, vocabularies    one pass over the row groups
    split       only by fractions: shuffle by user
    negatives   only where they are sampled: shuffle by user
    features    shuffle by each category that has statistics, by item -> their statistics
                beside it: narrow rows, one for each value, by each column with several values
                -> shuffle by user -> user statistics, histories, shards

A task holds a row group or a partition, which is about `ROWS_PER_PARTITION` rows whatever the log
has of one item or value of a category, and more only where a user has more (`partitions.py`);
catalogues and vocabularies lie in the
object store, and in the driver.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import (
    NO_TIME,
    TOKENS,
    assemble,
    category_codes,
    published_ms,
    value_codes,
)
from mtrec_ray.data.columns import floats, milliseconds
from mtrec_ray.data.outcomes import level_bounds
from mtrec_ray.data.prepared import parse_scenario
from mtrec_ray.data.preparing import inputs
from mtrec_ray.data.preparing.elsewhere import write_timelines
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.data.preparing.manifest import manifest_of, task_facts
from mtrec_ray.data.preparing.passes import add_fractions, build_shards, rewrite_with_negatives
from mtrec_ray.data.preparing.problems import item_problems, scan_problems, user_problems
from mtrec_ray.data.preparing.profiles import (
    KnownUsers,
    TrainingUsers,
    profile_problems,
    user_vector_problems,
    without_profile,
    write_profiles,
)
from mtrec_ray.data.preparing.scan import Scan, Sources, scan, source_of
from mtrec_ray.data.preparing.taken_rows import Beside
from mtrec_ray.data.preparing.vectors import (
    incomplete_vectors,
    item_vector_problems,
    write_table_vectors,
)
from mtrec_ray.data.tokens import item_texts, load_tokenizer, tokenise
from mtrec_ray.progress import Log
from mtrec_ray.project.base import refuse
from mtrec_ray.project.project import Project

TEXTS_PER_BLOCK = 20_000


CATALOGUE = "catalogue.parquet"


NO_USERS: Mapping[str, KnownUsers] = {}


def tokenised_items(project: Project, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Returns the item tables of all scenarios with their token ids, in the order of the rows."""
    texts = {n: item_texts(table, project.scenarios[n].items) for n, table in tables.items()}
    return tokenised(project, tables, texts)


def tokenised_users(project: Project, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Returns the tables of users with their token ids, which are none where they have no text."""
    texts = {n: item_texts(t, project.users[n]) for n, t in tables.items() if project.users[n].text}
    found = tokenised(project, {n: tables[n] for n in texts}, texts) if texts else {}
    for name, table in tables.items():
        none = pa.array([[]] * table.num_rows, pa.list_(pa.int32()))
        found.setdefault(name, table.append_column(TOKENS, none))
    return found


def tokenised(
    project: Project, tables: dict[str, pa.Table], texts: Mapping[str, list[str]]
) -> dict[str, pa.Table]:
    """Returns tables with the token ids of their rows' texts, in the order of the rows."""
    encoder = project.model.encoder

    def add_tokens(block: pa.Table) -> pa.Table:
        texts = block.column("text").to_pylist()
        tokens = tokenise(load_tokenizer(encoder.source), texts, encoder.max_tokens)
        column = pa.array(tokens, pa.list_(pa.int32()))
        return block.drop_columns("text").append_column("tokens", column)

    blocks = [text_rows(code, texts[name]) for code, name in enumerate(tables)]
    refs = (
        ray.data.from_arrow(blocks)
        .repartition(target_num_rows_per_block=TEXTS_PER_BLOCK)
        .map_batches(add_tokens, batch_format="pyarrow", batch_size=None)
        .to_arrow_refs()
    )
    whole = pa.concat_tables(ray.get(cast("list[ray.ObjectRef[pa.Table]]", refs)))
    scenario = whole.column("scenario").to_numpy()
    result = {}
    for code, (name, table) in enumerate(tables.items()):
        rows = whole.filter(pa.array(scenario == code)).sort_by("index")
        others = [c for c in table.column_names if c != TOKENS]
        result[name] = table.select(others).append_column(TOKENS, rows.column("tokens"))
    return result


def text_rows(code: int, texts: list[str]) -> pa.Table:
    """Returns the texts of a scenario's items with its number and theirs."""
    columns = {
        "scenario": pa.array(np.full(len(texts), code, np.int32)),
        "index": np.arange(len(texts)),
        "text": pa.array(texts, pa.string()),
    }
    return pa.table(columns)


def spec_of(
    project: Project, name: str, scan: Scan, users: np.ndarray, items: pa.Table
) -> FeatureSpec:
    """Returns what the partition functions need, with the numbers fitted on training rows."""
    scenario = project.scenarios[name]
    return FeatureSpec(
        scenario=scenario,
        priors=tuple(scan.priors.tolist()),
        end_ms=scan.last_ms + 1,
        published=published_ms(items, scenario.items, scenario.events.time_unit),
        users=users,
        event_vocabularies=tuple(scan.vocabularies),
        event_values=scan.several_vocabularies,
        seed=project.data_seed,
        categories={
            column: category_codes(items.column(column))
            for column in scenario.items.statistics_columns
        },
        level_bounds=level_bounds(task_facts(scenario, scan)),
        values={
            column: value_codes(items.column(column), separator)
            for column, separator in scenario.items.pooled_columns.items()
        },
    )


def user_vocabularies(
    project: Project, scans: dict[str, Scan], stored: Mapping[str, KnownUsers]
) -> dict[str, np.ndarray]:
    """Returns sorted hashes of the known users of each id space.

    Of a space that is `stored` they are those already, and no others.
    """
    spaces: dict[str, np.ndarray] = {space: users.hashes for space, users in stored.items()}
    for name, scan_of_log in scans.items():
        space = project.scenarios[name].users or name
        if space in stored:
            continue
        spaces[space] = np.union1d(spaces.get(space, scan_of_log.users[:0]), scan_of_log.users)
    return {name: spaces[project.scenarios[name].users or name] for name in scans}


def write_catalogues(
    project: Project, items: dict[str, pa.Table], scans: dict[str, Scan], folder: str
) -> dict[str, dict[str, list[str]]]:
    """Write each scenario's catalogue and vectors; returns the vocabularies of its categories."""
    vocabularies = {}
    for name, table in items.items():
        out, vocabularies[name] = assemble(table, project.scenarios[name], scans[name].item_rows)
        path, rows = storage.join(folder, name, CATALOGUE), scans[name].item_rows
        storage.write_table(path, out)
        write_table_vectors(path, table, project.scenarios[name].items.vectors, rows > 0)
    return vocabularies


def prepare(
    project: Project,
    folder: str,
    log: Log,
    stored_users: Mapping[str, KnownUsers] = NO_USERS,
    beside: Beside | None = None,
) -> dict[str, Any]:
    """Write the prepared data of a project; returns the manifest (without its fingerprint).

    `stored_users`: by id space, the users that a model knows already. `beside`: scenarios that were
    prepared before, whose rows timelines hold, too.

    Raises:
        ProjectError: whatever in the inputs the job cannot work with, all at once.
    """
    load_tokenizer(project.model.encoder.source)
    tables = {name: inputs.read_items(project, name) for name in project.scenarios}
    people = {space: inputs.read_users(project, space) for space in project.users}
    refuse(item_problems(project, tables) + user_problems(project, people))
    log(f"tokenising {sum(t.num_rows for t in tables.values()):,} items")
    items = tokenised_items(project, tables)
    sources = ray.put({name: source_of(project, name, items[name]) for name in items})
    fragments, scans = expanded_log(project, sources, storage.join(folder, "work"), log)
    refuse(scan_problems(project, scans))
    refuse(item_vector_problems(project, items, {n: s.item_rows for n, s in scans.items()}))
    vocabularies = write_catalogues(project, items, scans, folder)
    users = user_vocabularies(project, scans, stored_users)
    trained_on = training_users(project, scans, users)
    profiles = prepare_profiles(project, people, trained_on, stored_users, folder)
    specs = {n: spec_of(project, n, scans[n], users[n], items[n]) for n in items}
    log("statistics, histories and shards")
    written = build_shards(fragments, sources, scans, specs, folder)
    facts = {name: item_facts(project, name, table) for name, table in tables.items()}
    for name, scenario in project.scenarios.items():
        if scenario.users in people:
            own = project.users[scenario.users]
            of_log = TrainingUsers(scans[name].users, trained_on[scenario.users].end_ms)
            missing = without_profile(people[scenario.users], own, of_log)
            facts[name]["users_without_profile"] = missing
            odd = incomplete_vectors(people[scenario.users], own.vectors)
            if any(odd.values()):
                facts[name]["ignored_user_values"] = {k: v for k, v in odd.items() if v}
    manifest = manifest_of(project, scans, specs, vocabularies, written, facts, folder) | profiles
    add_timelines(project, manifest["scenarios"], folder, log, beside)
    return manifest


def add_timelines(
    project: Project, scenarios: dict[str, Any], folder: str, log: Log, beside: Beside | None
) -> None:
    """Write what users took in other scenarios; the scenarios of the manifest tell it."""
    if any(scenario.history.elsewhere for scenario in project.scenarios.values()):
        log("what users took in other scenarios")
        facts = {name: parse_scenario(tree) for name, tree in scenarios.items()}
        for name, found in write_timelines(project, facts, folder, beside).items():
            scenarios[name]["elsewhere"] = asdict(found)


def training_users(
    project: Project, scans: Mapping[str, Scan], users: Mapping[str, np.ndarray]
) -> dict[str, TrainingUsers]:
    """Returns the users of training of each id space that has a table of them.

    `users`: by scenario, the sorted hashes of its id space's users of training.
    """
    found: dict[str, TrainingUsers] = {}
    for name, scenario in project.scenarios.items():
        if scenario.users in project.users:
            before = found.get(scenario.users, TrainingUsers(users[name]))
            end_ms = max(before.end_ms, scans[name].train_ms)
            found[scenario.users] = replace(before, end_ms=end_ms)
    return found


def prepare_profiles(
    project: Project,
    people: dict[str, pa.Table],
    known: Mapping[str, TrainingUsers],
    stored: Mapping[str, KnownUsers],
    folder: str,
) -> dict[str, Any]:
    """Write the tables of users; returns what the manifest says of them, nothing without any.

    `known`: by id space, the users of training.

    Raises:
        ProjectError: a table that knows none of them.
    """
    if not people:
        return {}
    lines = profile_problems(project, people, known)
    refuse(lines + user_vector_problems(project, people, known, stored))
    return {
        "users": write_profiles(project, tokenised_users(project, people), known, stored, folder)
    }


def item_facts(project: Project, name: str, table: pa.Table) -> dict[str, Any]:
    """Returns what of a catalogue was merged or ignored, by its name in the report."""
    scenario = project.scenarios[name]
    items, unit = scenario.items, scenario.events.time_unit
    ignored = {
        f"number of {column} that is infinite": int(np.isinf(floats(table.column(column))).sum())
        for column in items.numeric
    } | incomplete_vectors(table, items.vectors)
    if items.published:
        times = milliseconds(table.column(items.published), unit)
        known = int((published_ms(table, items, unit) != NO_TIME).sum())
        ignored["time of publication that is impossible"] = len(times) - times.null_count - known
    return {
        "merged_items": inputs.num_items_read(project, name) - table.num_rows,
        "ignored_item_values": {what: number for what, number in ignored.items() if number},
    }


def expanded_log(
    project: Project, sources: "ray.ObjectRef[Sources]", folder: str, log: Log
) -> tuple[list[Fragment], dict[str, Scan]]:
    """Returns the row groups of the samples, split and with sampled negatives, and their scans.

    Negatives come after the split: by popularity they are drawn by the training rows alone.

    Raises:
        ProjectError: rows of the log that cannot be worked with.
    """
    fragments = inputs.log_fragments(project)
    log(f"scanning {sum(f.num_rows for f in fragments):,} rows")
    scans = scan(fragments, sources)
    seed = project.data_seed
    by_fractions = [n for n, s in project.scenarios.items() if s.split.fractions]
    drawing = [n for n, s in project.scenarios.items() if s.draws_negatives]
    if by_fractions or drawing:
        refuse(scan_problems(project, scans, expanded=False))
    if by_fractions:
        log(f"splitting by fractions: {', '.join(by_fractions)}")
        work = storage.join(folder, "split")
        changed = add_fractions(only(fragments, by_fractions), sources, work, seed)
        fragments, scans = with_changed(fragments, scans, changed, sources)
    if drawing:
        refuse(scan_problems(project, scans, expanded=False))
        log(f"sampling negatives: {', '.join(drawing)}")
        work = storage.join(folder, "negatives")
        train_rows = {name: scans[name].item_rows for name in drawing}
        changed = rewrite_with_negatives(only(fragments, drawing), sources, train_rows, work, seed)
        fragments, scans = with_changed(fragments, scans, changed, sources)
    return fragments, scans


def only(fragments: list[Fragment], names: list[str]) -> list[Fragment]:
    """Returns the row groups of some scenarios."""
    return [f for f in fragments if f.scenario in names]


def with_changed(
    fragments: list[Fragment],
    scans: dict[str, Scan],
    changed: list[Fragment],
    sources: "ray.ObjectRef[Sources]",
) -> tuple[list[Fragment], dict[str, Scan]]:
    """Returns the row groups and scans with those of rewritten logs in place of the earlier ones.

    What was met in the user's log stays known.
    """
    again = scan(changed, sources)
    for name, found in again.items():
        found.findings = scans[name].findings
    others = [f for f in fragments if f.scenario not in again]
    return others + changed, {name: again.get(name, scans[name]) for name in scans}
