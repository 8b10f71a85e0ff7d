"""The prepare stage: samples, catalogues and states from a project's logs, audited."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import MIN_ROWS, load_catalogue
from mtrec_ray.data.elsewhere import item_texts_path
from mtrec_ray.data.input_files import convert, holds_text, input_files, text_kind
from mtrec_ray.data.mapped_arrays import write_array
from mtrec_ray.data.prepared import (
    MANIFEST,
    Prepared,
    load_prepared,
    parse_scenario,
    parse_users,
)
from mtrec_ray.data.preparing.audit import audit
from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.data.preparing.inputs import input_fingerprint
from mtrec_ray.data.preparing.prepare import CATALOGUE, NO_USERS, prepare
from mtrec_ray.data.preparing.profiles import KnownUsers
from mtrec_ray.data.preparing.taken_rows import Beside, sources_of
from mtrec_ray.data.profiles import profiles_path, write_texts
from mtrec_ray.data.sample_world import Dials, write_sample_world
from mtrec_ray.data.storage import FileVersion
from mtrec_ray.model.encoder import encoder_problems
from mtrec_ray.progress import Log, begin_stage, warn
from mtrec_ray.project.base import ProjectError, refuse, without_options
from mtrec_ray.project.depends_on import Fields, fingerprint, prepared_data_depends_on
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect, result_of, task_of
from mtrec_ray.stages.run_folder import Record, RunFolder, Stage
from mtrec_ray.training.build import read_texts

# A user is told with more than this share of a log's rows, and than so many equal shares.
LARGEST_USER, EQUAL_SHARES = 0.1, 3


# A year with a smaller share of the rows is told where no year beside it has any.
LONELY_YEAR = 0.01


def open_prepared(project: Project, run: RunFolder) -> Prepared:
    """Returns the finished prepared data of a run.

    Raises:
        ProjectError: there is none, or it was made from other values than the project has.
    """
    return load_finished(run.prepare, prepared_data_depends_on(project))


def load_finished(stage: Stage, made_from: Fields) -> Prepared:
    """Returns the prepared data of a finished stage.

    Raises:
        ProjectError: there is none, or it was made from something else.
    """
    if stage.finished(made_from) is None:
        raise ProjectError(
            [f"prepared data: found none in {stage.folder}; allowed: run the prepare job first"]
        )
    return load_prepared(stage.folder)


def with_sample_world(project: Project, storage_path: str, log: Log) -> Project:
    """Returns the project itself, or one whose root is the generated sample world that it asks for.

    The world lies in the storage, which every node reaches, once for each seed and size.
    """
    world = project.sample_world
    if world is None:
        return project
    root = storage.join(storage_path, f"sample_world-{fingerprint(world.model_dump())}")
    marker = storage.join(root, "sample_world.json")
    if not storage.exists(marker):
        begin_stage(log, f"data: writing the GENERATED sample world (not real data) to {root}")
        sizes = {"seed", "users", "items", "events"}
        dials = Dials(**world.model_dump(exclude=sizes))
        write_sample_world(root, **world.model_dump(include=sizes), dials=dials)
        storage.write_json(marker, world.model_dump())
    return project.model_copy(update={"root": root})


def with_parquet(
    project: Project, storage_path: str, log: Log, paths: Iterable[tuple[str, str]] | None = None
) -> Project:
    """Returns the project itself, or one whose paths of CSV and JSON lines are those of Parquet.

    The Parquet lies in the storage, once for each version of the files. `paths`: a scenario and
    `items` or `events` of each path that will be read; None is all.

    Raises:
        ProjectError: files that cannot be read.
    """
    scenarios = dict(project.scenarios)
    every = [(name, kind) for name in scenarios for kind in ("items", "events")]
    for name, kind in every if paths is None else paths:
        section = getattr(scenarios[name], kind)
        path = parquet_path(project, section.path, f"scenarios.{name}.{kind}", storage_path, log)
        changed = {kind: section.model_copy(update={"path": path})}
        scenarios[name] = scenarios[name].model_copy(update=changed)
    users = dict(project.users)
    for name, table in users.items() if paths is None else ():
        path = parquet_path(project, table.path, f"users.{name}", storage_path, log)
        users[name] = table.model_copy(update={"path": path})
    return project.model_copy(update={"scenarios": scenarios, "users": users})


def parquet_path(project: Project, path: str, where: str, storage_path: str, log: Log) -> str:
    """Returns a path of the project itself, or that of the Parquet of its CSV or JSON lines.

    Raises:
        ProjectError: as `as_parquet`, of the section `where`.
    """
    files = input_files(project.path(path))
    return as_parquet(files, f"{where}.path", storage_path, log) if holds_text(files) else path


def as_parquet(files: Sequence[FileVersion], field: str, storage_path: str, log: Log) -> str:
    """Returns the path of the Parquet file of CSV or JSON lines, written where it is not there.

    Raises:
        ProjectError: `field` and why its files cannot be read.
    """
    versions = [[without_options(file.path), file.size, file.mtime_ns] for file in files]
    target = storage.join(storage_path, f"tables-{fingerprint(versions)}", "rows.parquet")
    if not storage.exists(target):
        log(f"{field}: {text_kind(files[0].path)} to Parquet")
        try:
            rows = convert(files, target)
        except ProjectError as error:
            lines = [f"{field}: {without_options(line)}" for line in error.problems]
            raise ProjectError(lines) from None
        log(f"{field}: {rows:,} rows")
    return target


def run_prepare(project: Project, storage_path: str, log: Log) -> Record:
    """Prepares a project's data, or finds it prepared; returns the data report.

    Raises:
        ProjectError: unusable inputs, a changed configuration, or a failed leakage audit.
    """
    storage.check_writable(storage_path)
    project = with_sample_world(project, storage_path, log)
    refuse(input_problems(project) + encoder_problems(project.model))
    stage = RunFolder.of(project, storage_path).prepare
    inputs = input_fingerprint(project)
    report = stage.finished(prepared_data_depends_on(project))
    if report and report["inputs"] == inputs:
        begin_stage(log, "prepare: already done")
        return report["report"]
    if report:
        raise ProjectError(
            [
                f"run.name: found {project.run.name!r}, whose prepared data was made from other "
                "input files (their names, sizes or times have changed); allowed: the same ones, "
                f"another name, or delete {stage.folder}"
            ]
        )
    begin_stage(log, f"prepare: {', '.join(project.scenarios)}")
    return prepare_into(project, storage_path, stage, inputs, log)


def prepare_into(
    project: Project,
    storage_path: str,
    stage: Stage,
    inputs: str,
    log: Log,
    stored_users: Mapping[str, KnownUsers] = NO_USERS,
    beside: Beside | None = None,
) -> Record:
    """Prepares a project's data in a stage's folder and audits it; returns the data report.

    `inputs` is the fingerprint of its input files; `stored_users` and `beside` as `prepare` takes
    them.
    """
    readable = with_parquet(project, storage_path, log)
    refuse(input_problems(readable))
    connect(project.run)
    storage.remove_folder(stage.folder)
    try:
        manifest = prepare(readable, stage.folder, log, stored_users, beside)
        write_user_texts(readable, stage.folder, log)
        write_item_texts(readable, stage.folder, manifest, log, beside)
        check_leakage(readable, stage.folder, manifest, log, beside)
    except ProjectError:
        storage.remove_folder(stage.folder)
        raise
    made_from = prepared_data_depends_on(project)
    manifest["fingerprint"] = fingerprint(made_from, inputs)
    storage.write_json(storage.join(stage.folder, MANIFEST), manifest)
    storage.remove_folder(storage.join(stage.folder, "work"))
    stage.start(made_from)
    stage.finish({"report": manifest["report"], "inputs": inputs})
    for name in project.scenarios:
        for text in suspicious(name, manifest["report"][name]):
            warn(log, text)
    return manifest["report"]


def write_user_texts(project: Project, folder: str, log: Log) -> None:
    """Write what the pretrained encoder makes of the texts of each table of users."""
    spaces = [space for space, users in project.users.items() if users.text]
    if spaces:
        log(f"reading the texts of users: {', '.join(spaces)}")
    read = task_of(read_user_texts, project.run)
    for done in [read.remote(project, folder, space) for space in spaces]:
        result_of(done)


def read_user_texts(project: Project, folder: str, space: str) -> None:
    """Write the vectors of a table's texts; in a Ray task."""
    device = torch.device("cuda" if project.run.use_gpu else "cpu")
    table = load_catalogue(profiles_path(folder, space))
    write_texts(folder, space, read_texts(project, space, table, device).cpu().numpy())


def write_item_texts(
    project: Project, folder: str, manifest: Record, log: Log, beside: Beside | None
) -> None:
    """Write what the pretrained encoder makes of the items that timelines name."""
    facts = {n: parse_scenario(s) for n, s in manifest["scenarios"].items()}
    asked = sorted({f.user_space for f in facts.values() if f.elsewhere})
    if asked:
        log(f"reading the texts of the items of: {', '.join(asked)}")
    sources = sources_of(project, facts, folder, beside) if asked else {}
    read = task_of(read_item_texts, project.run)
    for space in asked:
        folders = {name: source.folder for name, source in sources[space].items()}
        result_of(read.remote(project, folders, item_texts_path(folder, space)))


def read_item_texts(project: Project, folders: Mapping[str, str], path: str) -> None:
    """Write vectors of length 1 of the items of some scenarios to a file; in a Ray task.

    `folders`: those of the prepared data that holds each scenario.
    """
    device = torch.device("cuda" if project.run.use_gpu else "cpu")
    parts: list[np.ndarray] = []
    for name, folder in folders.items():
        table = load_catalogue(storage.join(folder, name, CATALOGUE))
        vectors = normalize(read_texts(project, name, table, device), dim=1)
        parts.append(vectors.cpu().numpy().astype(np.float16))
    shape = (sum(map(len, parts)), parts[0].shape[1])
    write_array(path, np.float16, shape, parts)


def suspicious(name: str, report: Record) -> list[str]:
    """Returns a line for each thing in a scenario's rows that was left out, or that looks wrong."""
    left_out = {"dropped": "rows dropped", "missing_values": "values read as null"}
    ignored = ("ignored_labels", "ignored_numbers", "ignored_item_values", "ignored_user_values")
    left_out |= dict.fromkeys(ignored, "values ignored")
    lines = [
        f"{name}: {number:,} {what} ({why})"
        for part, what in left_out.items()
        for why, number in report.get(part, {}).items()
        if number
    ]
    if repeated := report["duplicates"]:
        lines.append(f"{name}: {repeated:,} rows repeat the user, item and time of another")
    if merged := report["merged_items"]:
        lines.append(f"{name}: {merged:,} rows of the catalogue are copies of another, and merged")
    if unknown := report.get("users_without_profile"):
        share = unknown / report["users_in_train"]
        lines.append(f"{name}: {share:.1%} of the users of training have no profile ({unknown:,})")
    return lines + [f"{name}: {line}" for line in peculiar(report)]


def peculiar(report: Record) -> Iterator[str]:
    """Yields a line for each thing in a scenario's data that a person may not have meant."""
    largest = report["largest_user"]
    share = largest["rows"] / report["rows_in_log"]
    if share > max(LARGEST_USER, EQUAL_SHARES / max(report["users_in_train"], 1)):
        yield f"{share:.0%} of the rows are of the user {largest['user']!r} (see events.missing)"
    for year, number in lonely_years(report["rows_by_year"]).items():
        yield f"{number:,} rows are of {year}, far from the others in time"
    for column, known in report["known_values"].items():
        if not known:
            yield f"no value of {column} has {MIN_ROWS} training rows, so that it says nothing"
    for split in ("valid", "test"):
        for task, known in report["labels"][split].items():
            if not known:
                yield f"no label of {task} in {split}, where it has no score"
    if late := report["train_after_test"]:
        yield f"{late:.1%} of the training rows are later than the first row of test"


def lonely_years(rows: Mapping[str, int]) -> dict[str, int]:
    """Returns the years with few of the rows, and with none in the years beside them."""
    total = sum(rows.values())
    return {
        year: number
        for year, number in rows.items()
        if number < LONELY_YEAR * total
        and not rows.keys() & {str(int(year) - 1), str(int(year) + 1)}
    }


def check_leakage(
    project: Project, folder: str, manifest: Record, log: Log, beside: Beside | None = None
) -> None:
    """Audits the prepared data.

    Raises:
        ProjectError: sampled rows that disagree with the raw log.
    """
    log("leakage audit")
    scenarios = {n: parse_scenario(s) for n, s in manifest["scenarios"].items()}
    prepared = Prepared(folder, "", scenarios, users=parse_users(manifest))
    problems = audit(project, prepared, beside=beside)
    refuse([f"leakage audit: {line}" for line in problems[:20]])
    manifest["report"]["audit"] = {"passed": True, "rows_per_split": 12}
