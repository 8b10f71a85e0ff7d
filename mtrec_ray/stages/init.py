"""A user's first step: from his files to a project file that says what was guessed, and why."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtrec_ray.data.tables import Table, Tables
from mtrec_ray.progress import Log
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.sources.columns import Column, columns_of
from mtrec_ray.sources.draft import Draft, project_file
from mtrec_ray.sources.files import FileGroup, groups_of, splits_of
from mtrec_ray.sources.guess import guess
from mtrec_ray.sources.kinds import join_kinds
from mtrec_ray.sources.pairing import Pair, as_id, pairs_of, user_of
from mtrec_ray.sources.public import recognise


def run_init(paths: Sequence[str], out: str, log: Log) -> dict[str, Any]:
    """Write a project file of some files and folders; returns its path and the scenarios' sizes.

    Files that are not Parquet, or whose rows need a change, are written as Parquet into a folder
    beside the project file, with the name of the project file and `-data`.

    Raises:
        ProjectError: files that cannot be read, that show no log, or a project file that is there.
    """
    target = Path(out)
    refuse(target_problems(target))
    groups, others = groups_of(paths)
    for file in others:
        log(f"passed over: {file}")
    folder = target.with_name(f"{target.stem}-data")
    work = folder / ".tables"
    try:
        work.mkdir(parents=True)
    except OSError as error:
        found = f"--out: found {target.parent}, which cannot be written ({error.strerror})"
        raise ProjectError([f"{found}; allowed: another folder"]) from None
    try:
        tables = Tables(work)
        drafts = drafts_of(tables, groups, log)
        trees = {}
        for draft in drafts:
            log(f"writing {draft.name}")
            trees[draft.name] = draft.tree(tables, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(work)
    if not any(folder.iterdir()):
        folder.rmdir()
    command = " ".join(["mtrec init", *paths, "--out", out])
    root = folder.name if folder.exists() else "."
    target.write_text(project_file(command, target.stem, root, trees, drafts), encoding="utf-8")
    return {"config": str(target), "scenarios": list(trees), "notes": notes_of(drafts)}


def target_problems(target: Path) -> list[str]:
    """Returns a line for each reason why a project file cannot be written."""
    if target.suffix not in (".yaml", ".yml"):
        return [f"--out: found {target}; allowed: a name that ends with .yaml"]
    folder = target.with_name(f"{target.stem}-data")
    taken = [path for path in (target, folder) if path.exists()]
    if not target.parent.is_dir():
        return [
            f"--out: found no folder {target.parent}; allowed: a file in a folder that is there"
        ]
    return [f"--out: found {path}, which is there; allowed: another name" for path in taken]


def default_out(paths: Sequence[str]) -> str:
    """Returns the name of the project file of some files: that of the first folder or file."""
    name = Path(paths[0]).resolve().name.split(".")[0]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name) or 'project'}.yaml"


def drafts_of(tables: Tables, groups: Sequence[FileGroup], log: Log) -> list[Draft]:
    """Returns the scenarios of some tables: of a public data set, or guessed.

    Raises:
        ProjectError: no table is a log.
    """
    known = recognise([file for group in groups for file in group.files])
    if known:
        data_set, files = known
        log(f"recognised {data_set.name}")
        return data_set.drafts(tables, files)
    opened = []
    for group, name in zip(groups, table_names(groups), strict=True):
        options = {"filename": "true"} if splits_of(group.files) else {}
        table = tables.open(name, group.files, options, group.whole)
        log(f"read {table.label}: {table.rows:,} rows")
        opened.append(table)
    columns = {table.name: columns_of(tables, table) for table in opened}
    opened = join_kinds(tables, opened, columns)
    pairs = pairs_of(tables, opened, columns)
    if not pairs:
        shown = "; ".join(
            f"{t.label}{'' if t.rows else ' without rows'}: {', '.join(t.types)}"[:120]
            for t in opened
        )
        raise ProjectError(
            [
                f"PATH: found no log of users and items ({shown}); allowed: a table with a column "
                "of users and one of items, such as user_id and item_id (in a CSV its first line "
                "names them)"
            ]
        )
    drafts = [
        guess(tables, p, columns[p.log.name], columns[p.catalogue.name] if p.catalogue else ())
        for p in pairs
    ]
    tell_apart(drafts)
    tell_common_users(tables, pairs, drafts)
    tell_unused_tables(opened, columns, pairs, drafts)
    return drafts


def tell_unused_tables(
    opened: Sequence[Table],
    columns: Mapping[str, Sequence[Column]],
    pairs: Sequence[Pair],
    drafts: Sequence[Draft],
) -> None:
    """Add a note of the tables that have no place, and why, to the first scenario."""
    used = {p.log.name for p in pairs} | {p.catalogue.name for p in pairs if p.catalogue}
    for table in opened:
        if table.name not in used:
            reason = "no log, and no catalogue of the items of one"
            if not table.rows:
                reason = "it has no rows"
            elif user_of(columns[table.name]):
                reason = "of logs of the same items that with most rows is the scenario's"
            drafts[0].notes.append(f"{table.label} is not used: {reason}")


def table_names(groups: Sequence[FileGroup]) -> list[str]:
    """Returns a name for each table; those that stand twice have their folder before them."""
    names = [group.name for group in groups]
    return [
        name if names.count(name) == 1 else f"{group.files[0].parent.name}_{name}"
        for name, group in zip(names, groups, strict=True)
    ]


def tell_apart(drafts: Sequence[Draft]) -> None:
    """Give scenarios that have the same name different ones."""
    names = [draft.name for draft in drafts]
    for number, draft in enumerate(drafts):
        if names.count(draft.name) > 1:
            draft.name = f"{draft.name}_{number + 1}"


def tell_common_users(tables: Tables, pairs: Sequence[Pair], drafts: Sequence[Draft]) -> None:
    """Add a note where the user ids of a scenario stand in another one, too."""
    for pair, draft in zip(pairs, drafts, strict=True):
        others = [f"SELECT {as_id(p.user)} FROM {p.log.sql}" for p in pairs if p is not pair]
        if others:
            own = f"SELECT DISTINCT {as_id(pair.user)} AS id FROM {pair.log.sql}"
            everywhere = " UNION ALL ".join(others)
            share = tables.value(f"SELECT avg((id IN ({everywhere}))::INT) FROM ({own})") or 0.0
            if share >= 0.1:
                draft.notes.append(
                    f"{share:.0%} of the user ids stand in other scenarios, too: where an id is "
                    "the same person, add `users: people` to each, and they learn from one another"
                )


def notes_of(drafts: Sequence[Draft]) -> list[str]:
    """Returns what was left out; what is said of several scenarios is said once."""
    said: dict[str, list[str]] = {}
    for draft in drafts:
        for note in draft.notes:
            said.setdefault(note, []).append(draft.name)
    return [f"{', '.join(names)}: {note}" for note, names in said.items()]
