"""The recommend stage: the best items of a scenario for each user.

Candidates from several sources, scored by the scenario's chosen model, ordered by the list model
(`stages/lists.py`). What does not depend on the user is computed once. Ray Data streams partitions
of users to actors, which rank and write.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from mtrec_ray.candidates.filters import catalogue_footers, listed_items
from mtrec_ray.data import storage
from mtrec_ray.data.columns import plain_type
from mtrec_ray.data.end_states import read_catalogue, read_states, user_parts
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.model.encoder import quantise_problems
from mtrec_ray.progress import Log, begin_stage
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import Fields, fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.finetuning.chosen_model import chosen_model, model_kind, version
from mtrec_ray.stages.finetuning.joint_run import JointRun, check_data, check_names, open_joint_run
from mtrec_ray.stages.list_inputs import ListInputs, layout_of, list_task
from mtrec_ray.stages.list_parts import ensure_parts
from mtrec_ray.stages.list_writer import NEW_USERS, ListMaker, Writers
from mtrec_ray.stages.prepare import with_parquet, with_sample_world
from mtrec_ray.stages.run_folder import RunFolder, Stage, with_search_choice

USERS_PER_UNIT = 4096


def units_of(prepared: Prepared, name: str, wanted: Sequence[str] | None) -> list[dict[str, Any]]:
    """Returns the work: slices of partitions of users, and wanted users without a row."""
    units, known = [], set()
    for part in user_parts(prepared, name):
        state = read_states(prepared, name, "users", part)
        assert state is not None
        if wanted is not None:
            known |= set(state.column("user_id").to_pylist())
        for start in range(0, state.num_rows, USERS_PER_UNIT):
            stop = min(start + USERS_PER_UNIT, state.num_rows)
            units.append({"part": part, "start": start, "stop": stop, "users": "[]"})
    missing = [u for u in dict.fromkeys(wanted or ()) if u not in known]
    if missing:
        users = json.dumps(missing)
        units.append({"part": NEW_USERS, "start": 0, "stop": len(missing), "users": users})
    return units


def recommend_scenarios(
    makers: Mapping[str, ListMaker], project: Project, wanted: Sequence[str] | None, log: Log
) -> dict[str, dict[str, Any]]:
    """Write the recommendations of some scenarios; returns counts and speed of each.

    The same actors write all of them, one scenario after another: to start one takes seconds.
    """
    run = project.run
    for maker in makers.values():
        maker.wait()  # actors that wait for tasks may hold all CPUs
    units = [
        {"scenario": name, **unit}
        for name, maker in makers.items()
        for unit in units_of(maker.inputs.layout().prepared, name, wanted)
    ]
    rows = (
        ray.data.from_items(units, override_num_blocks=max(len(units), 1))
        .map(
            cast("Any", Writers),  # Ray types the class as its own result
            fn_constructor_args=(dict(makers),),
            compute=ray.data.ActorPoolStrategy(size=max(min(run.most_workers, len(units)), 1)),
            num_cpus=run.cpus_per_worker,
            num_gpus=1 if run.use_gpu else 0,
        )
        .take_all()
        if units
        else []
    )
    return {
        name: counts_of(name, maker, [row for row in rows if row["scenario"] == name], log)
        for name, maker in makers.items()
    }


def counts_of(
    name: str, maker: ListMaker, rows: Sequence[Mapping[str, Any]], log: Log
) -> dict[str, Any]:
    """Returns how many users and rows were written, how fast, and by which model."""
    counts = {k: sum(r[k] for r in rows) for k in ("users", "rows")}
    kind, speed = model_kind(maker.inputs.model), speed_of(counts["users"], rows)
    log(f"{name}: {counts['users']:,} users in {speed['seconds']:.0f} s, {kind} model")
    items = maker.inputs.layout().facts.num_items
    return {**counts, "model": kind, "folder": maker.folder, "items": items, **speed}


def speed_of(users: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns seconds, and users a second: of all workers, and of one."""
    began = min((row["began"] for row in rows), default=0.0)
    seconds = max((row["ended"] for row in rows), default=0.0) - began
    of_workers = sum(row["ended"] - row["began"] for row in rows)
    return {
        "seconds": seconds,
        "users_per_s": users / max(seconds, 1e-9),
        "users_per_s_of_a_worker": users / max(of_workers, 1e-9),
    }


def tell_short_lists(inputs: ListInputs, k: int, log: Log) -> None:
    """Tell that a catalogue is smaller than the lists that are asked for."""
    num_items = inputs.layout().facts.num_items
    if num_items < k:
        items = f"{num_items:,} items of {inputs.name}"
        log(f"recommend.k: found {k} for the {items}; lists hold at most those")


def read_users(path: str) -> list[str]:
    """Returns user ids of a file: Parquet (its first column), or text with one id a line.

    Raises:
        ProjectError: no such file, a file or a column that holds no ids, or no user in it.
    """
    if not storage.is_file(path):
        raise ProjectError([f"--users: found no file {path}; allowed: Parquet, or one id a line"])
    ids = parquet_ids(path) if path.endswith(".parquet") else text_ids(path)
    ids = [str(user) for user in ids if user]
    if not ids:
        raise ProjectError([f"--users: found no user in {path}; allowed: at least one"])
    return ids


def text_ids(path: str) -> list[str]:
    """Returns the lines of a text file."""
    try:
        text = storage.read_bytes(path).decode()
    except UnicodeDecodeError:
        allowed = "Parquet with the ending .parquet, or text in UTF-8 with one id a line"
        raise ProjectError([f"--users: found no text in {path}; allowed: {allowed}"]) from None
    return [line.strip() for line in text.splitlines()]


def parquet_ids(path: str) -> list[str]:
    """Returns the first column of a Parquet file as text."""
    fs, inner = storage.filesystem(path)
    try:
        table = pq.read_table(inner, filesystem=fs)
    except pa.ArrowInvalid as error:
        found = str(error).splitlines()[0]
        line = f"--users: found {path}, which is no Parquet file ({found}); allowed: Parquet"
        raise ProjectError([line]) from None
    if not table.num_columns:
        raise ProjectError([f"--users: found no column in {path}; allowed: one of user ids"])
    column = table.column(0)
    kind = plain_type(column.type)
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise ProjectError(
            [
                f"--users: found column {table.column_names[0]!r} of type {kind} in {path}; "
                "allowed: ids as text or whole numbers, in the first column"
            ]
        )
    return column.cast(pa.string()).to_pylist()


def run_recommend(
    project: Project,
    storage_path: str,
    log: Log,
    names: Sequence[str] = (),
    users: str | None = None,
) -> dict[str, Any]:
    """Write the best items for all users or those of a file, by scenario; returns counts.

    Listed users are written into a folder of their own. What is there of the same model and
    options is kept: a stage that was interrupted goes on.

    Raises:
        ProjectError: no joint model, an unknown scenario, or a model that reads pairs.
    """
    storage.check_writable(storage_path)
    run = RunFolder.of(project, storage_path)
    project = with_search_choice(project, run, log)
    if project.model.layout == "pair":
        refuse(["model.layout: found pair; allowed for recommending: vectors (each pair a text)"])
    if project.evaluation.precision == "int8":
        refuse(quantise_problems())
    joint_run = open_joint_run(project, storage_path)
    known = check_data(check_names(names, project), joint_run)
    names = with_positives(known, joint_run, project, names, log)
    refuse([line for name in names for line in blend_problems(joint_run, name, project)])
    wanted = read_users(users) if users else None
    connect(project.run)
    stages = {name: run.recommend(name, listed=wanted is not None) for name in names}
    made_from = {n: recommendations_depend_on(joint_run, n, project, wanted) for n in names}
    scenarios = {name: stage.current(made_from[name]) for name, stage in stages.items()}
    for name in (name for name, counts in scenarios.items() if counts):
        begin_stage(log, f"recommend: {name} already done")
    missing = {n: made_from[n] for n, counts in scenarios.items() if not counts}
    if missing:
        task = Recommending(
            joint_run, project, with_files(project, missing, storage_path, log), log
        )
        scenarios |= task.run({n: stages[n] for n in missing}, missing, wanted)
    return {"scenarios": scenarios}


def with_files(project: Project, names: Iterable[str], storage_path: str, log: Log) -> Project:
    """Returns the project whose catalogues can be read where scenarios have rules on them.

    Raises:
        ProjectError: a catalogue that is not there, or cannot be read.
    """
    own, rules = with_sample_world(project, storage_path, log), project.recommend
    ruled = [name for name in names if rules.filters.get(name) or rules.at_most_per.get(name)]
    for name in ruled:
        catalogue_footers(own, name)
    return with_parquet(own, storage_path, log, [(name, "items") for name in ruled])


@dataclass(frozen=True)
class Recommending:
    """Lists that are still to be made; `resolved` names the files of the catalogues."""

    joint_run: JointRun
    project: Project
    resolved: Project
    log: Log

    def run(
        self, stages: Mapping[str, Stage], made_from: Mapping[str, Fields],
        wanted: Sequence[str] | None,
    ) -> dict[str, Any]:  # fmt: skip
        """Write the lists of some scenarios; returns counts."""
        joint_run, project, log = self.joint_run, self.project, self.log
        models = {name: chosen_model(joint_run, name, project) for name in joint_run.facts}
        for name in stages:  # rules that do not fit are refused before a folder is emptied
            listed_items(self.resolved, name, read_catalogue(layout_of(models[name], name)).ids)
        parts = ensure_parts(joint_run, models, project, log)
        inputs, k, makers = parts.inputs, project.recommend.k, {}
        begin_stage(log, f"recommend: the best {k} items of every user of {', '.join(stages)}")
        for name, stage in stages.items():
            stage.start_anew(made_from[name])
            tell_short_lists(inputs[name], k, log)
            makers[name] = parts.maker(name, self.resolved, stage.folder, wanted)
        found = recommend_scenarios(makers, project, wanted, log)
        return {name: stage.finish(found[name]) for name, stage in stages.items()}


def with_positives(
    names: Sequence[str], joint_run: JointRun, project: Project, asked: Sequence[str], log: Log
) -> list[str]:
    """Returns the scenarios with a binary task; the others have no lists.

    Raises:
        ProjectError: one that was asked for by name has none.
    """
    without = [n for n in names if list_task(chosen_model(joint_run, n, project), n) is None]
    refuse([no_binary_task(name) for name in without if name in asked])
    for name in without:
        log(f"recommend: {no_binary_task(name)}")
    return [name for name in names if name not in without]


def no_binary_task(name: str) -> str:
    """Returns the line for a scenario in which nothing tells what was taken."""
    return (
        f"scenarios.{name}.tasks: found no binary task; allowed for recommending: one whose "
        "positives say what a user took"
    )


def blend_problems(joint_run: JointRun, name: str, project: Project) -> list[str]:
    """Returns a line where only the general head scores, and the blend asks for more."""
    trained_model = chosen_model(joint_run, name, project)
    main, by = joint_run.facts[name].main, project.recommend.by.get(name)
    if not trained_model.general or (main and (not by or set(by) == {main})):
        return []
    named = ", ".join(by) if by else "no binary task"
    return [
        f"recommend.by.{name}: found {named} for a scenario without a model of its own, which the "
        f"general head scores; allowed: {f'{main} alone, or ' if main else ''}fine-tune it first"
    ]


def recommendations_depend_on(
    joint_run: JointRun, name: str, project: Project, wanted: Sequence[str] | None
) -> Fields:
    """Returns whatever a scenario's recommendations depend on."""
    models = {n: chosen_model(joint_run, n, project) for n in joint_run.facts}
    options = project.recommend
    return {
        "model": version(joint_run, name, models[name]),
        "models": {n: version(joint_run, n, model) for n, model in models.items()},
        "recommend": {
            "k": options.k, "exclude_seen": options.exclude_seen, "by": options.by.get(name),
            "fit_users": options.fit_users, "shortlist": options.shortlist,
            "diversity": options.diversity,
            "explore": options.explore.model_dump(mode="json"),
            "filters": [rule.model_dump(mode="json") for rule in options.filters.get(name, ())],
            "at_most_per": options.at_most_per.get(name, {}),
        },
        "precision": project.evaluation.precision,
        "opinions": project.opinions.model_dump(mode="json"),
        "users": fingerprint(sorted(wanted)) if wanted is not None else "all",
    }  # fmt: skip
