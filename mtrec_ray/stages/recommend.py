"""The recommend stage: the best items of a scenario for each user, by its chosen model.

The score of the network does not factorise (`model/catalogue_scorer.py`), so that every item is
scored in full for every user. Item vectors are computed once. Ray Data streams partitions of users
to actors, which rank and write.
"""

import json
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from mtrec_ray.data import storage
from mtrec_ray.data.end_states import (
    items_at_end,
    read_states,
    seen_pairs,
    user_parts,
    users_at_end,
)
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.snapshot import SnapshotColumns, UserSnapshot, new_users
from mtrec_ray.model.encoder import quantise_problems
from mtrec_ray.progress import Log, begin_stage
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import Fields, fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.finetuning.chosen_model import chosen_model, model_kind, version
from mtrec_ray.stages.finetuning.joint_run import JointRun, check_data, check_names, open_joint_run
from mtrec_ray.stages.ranker import NO_PAIRS, Ranker, SeenPairs
from mtrec_ray.stages.run_folder import RunFolder, with_search_choice
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors

USERS_PER_UNIT = 4096


NEW_USERS = "new"


class Writer:
    """Ranks the items for units of users and writes Parquet files; a Ray Data actor."""

    def __init__(
        self, trained_model: TrainedModel, name: str, vectors: ray.ObjectRef, items: ray.ObjectRef,
        wanted: ray.ObjectRef, folder: str,
    ) -> None:  # fmt: skip
        self.ranker = Ranker(trained_model, name, ray.get(vectors), ray.get(items))
        self.wanted: frozenset[str] | None = ray.get(wanted)
        self.folder, self.name = folder, name
        self.held: tuple[str, UserSnapshot, SeenPairs] | None = None

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write a unit's recommendations; returns its users, rows and seconds of ranking.

        A unit whose file is there is finished.
        """
        started = time.monotonic()
        name = f"{unit['part'].removesuffix('.parquet')}-{unit['start']:08}.parquet"
        path = storage.join(self.folder, name)
        if storage.exists(path):
            fs, inner = storage.filesystem(path)
            ranked = pq.read_table(inner, filesystem=fs, columns=["user"]).column(0)
            num = len(ranked.unique())
            return {"users": num, "rows": len(ranked), "seconds": 0.0}
        users, seen = self.users_of(unit)
        if not len(users):
            return {"users": 0, "rows": 0, "seconds": 0.0}
        table = self.ranker.rank_all(users, seen)
        storage.write_table(path, table)
        seconds = time.monotonic() - started
        return {"users": len(users), "rows": table.num_rows, "seconds": seconds}

    def users_of(self, unit: dict[str, Any]) -> tuple[UserSnapshot, SeenPairs]:
        """Returns the users of a unit that are wanted, and what they have seen."""
        if unit["part"] == NEW_USERS:
            return new_users(self.ranker.layout, json.loads(unit["users"])), NO_PAIRS
        users, seen = self.partition(unit["part"])
        users = users.of(unit["start"], unit["stop"])
        if self.wanted is not None:
            users = users.take(np.flatnonzero([i in self.wanted for i in users.ids]))
        return users, seen

    def partition(self, part: str) -> tuple[UserSnapshot, SeenPairs]:
        """Returns a partition's users and what they have seen; the last one is kept."""
        if self.held is None or self.held[0] != part:
            layout, seen = self.ranker.layout, NO_PAIRS
            if self.ranker.options.exclude_seen:
                seen = seen_pairs(layout.prepared, self.name, part=part)
            self.held = (part, users_at_end(layout, part), seen)
        return self.held[1:]


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


def recommend_scenario(
    joint_run: JointRun,
    name: str,
    project: Project,
    folder: str,
    wanted: Sequence[str] | None,
    log: Log,
) -> dict[str, Any]:
    """Write a scenario's recommendations; returns counts and speed."""
    trained_model = chosen_model(joint_run, name, project)
    prepared = trained_model.open_prepared()
    layout = SnapshotColumns(prepared, name, project.scenarios[name])
    vectors, items = ray.put(ensure_vectors(trained_model)), ray.put(items_at_end(layout))
    units = units_of(prepared, name, wanted)
    only = ray.put(None if wanted is None else frozenset(wanted))
    run = project.run
    started = time.monotonic()
    rows = (
        ray.data.from_items(units, override_num_blocks=len(units))
        .map(
            cast("Any", Writer),  # Ray types the class as its own result
            fn_constructor_args=(trained_model, name, vectors, items, only, folder),
            compute=ray.data.ActorPoolStrategy(size=min(run.most_workers, len(units))),
            num_cpus=run.cpus_per_worker,
            num_gpus=1 if run.use_gpu else 0,
        )
        .take_all()
    )
    seconds = time.monotonic() - started
    counts = {k: sum(r[k] for r in rows) for k in ("users", "rows")}
    log(f"{name}: {counts['users']:,} users in {seconds:.0f} s, {model_kind(trained_model)} model")
    more = {
        "model": model_kind(trained_model),
        "folder": folder,
        "items": prepared.scenarios[name].num_items,
    }
    ranking = sum(r["seconds"] for r in rows)  # of all workers, without starting them
    speed = {
        "users_per_s": counts["users"] / seconds,
        "users_per_s_of_a_worker": counts["users"] / max(ranking, 1e-9),
    }
    return {**counts, **more, "seconds": seconds, **speed}


def read_users(path: str) -> list[str]:
    """Returns user ids of a file: Parquet (its first column), or text with one id a line.

    Raises:
        ProjectError: there is no such file, or no user in it.
    """
    if not storage.is_file(path):
        raise ProjectError([f"--users: found no file {path}; allowed: Parquet, or one id a line"])
    fs, inner = storage.filesystem(path)
    if path.endswith(".parquet"):
        column = pq.read_table(inner, filesystem=fs).column(0)
        ids = column.cast(pa.string()).to_pylist()
    else:
        ids = [line.strip() for line in storage.read_bytes(path).decode().splitlines()]
    ids = [str(user) for user in ids if user]
    if not ids:
        raise ProjectError([f"--users: found no user in {path}; allowed: at least one"])
    return ids


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
    names = check_data(check_names(names, project), joint_run)
    refuse([line for name in names for line in blend_problems(joint_run, name, project)])
    wanted = read_users(users) if users else None
    connect(project.run)
    scenarios = {}
    for name in names:
        stage = run.recommend(name, listed=wanted is not None)
        made_from = recommendations_depend_on(joint_run, name, project, wanted)
        finished = stage.current(made_from)
        if finished:
            begin_stage(log, f"recommend: {name} already done")
        else:
            stage.start_anew(made_from)
            title = f"recommend: the best {project.recommend.k} items of every user of {name}"
            begin_stage(log, title)
            counts = recommend_scenario(joint_run, name, project, stage.folder, wanted, log)
            finished = stage.finish(counts)
        scenarios[name] = finished
    return {"scenarios": scenarios}


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
    trained_model, options = chosen_model(joint_run, name, project), project.recommend
    return {
        "model": version(joint_run, name, trained_model),
        "recommend": {
            "k": options.k, "exclude_seen": options.exclude_seen, "by": options.by.get(name)
        },
        "precision": project.evaluation.precision,
        "users": fingerprint(sorted(wanted)) if wanted is not None else "all",
    }  # fmt: skip
