"""The finetune stage: a training run for every scenario, side by side, and what each one gave.

Each run is a Ray Train run of the train stage with its own controller, workers and resume key
`scenarios/NAME/training`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import read_rows
from mtrec_ray.evaluation.model_choice import Scored, decide, rare_labels, too_few
from mtrec_ray.model.encoder import encoder_problems, quantise_problems
from mtrec_ray.progress import Say
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.project import Project
from mtrec_ray.project.training import Tuned
from mtrec_ray.stages.cluster import connect, task_of
from mtrec_ray.stages.finetuning.chosen_model import (
    DECISION,
    ZERO_SHOT,
    base_model,
    model_before,
    score_rows_of,
    tuned_model,
)
from mtrec_ray.stages.finetuning.few_shot import draw_curve
from mtrec_ray.stages.finetuning.joint_run import Ground, check_names, open_ground
from mtrec_ray.stages.finetuning.new_scenario import prepare_joined, restricted
from mtrec_ray.stages.finetuning.recipe import (
    DELTA_FOLDER,
    export_encoder,
    scenario_project,
    start_of,
    store_delta,
    task_weights,
)
from mtrec_ray.stages.finetuning.transfer import compare
from mtrec_ray.stages.parallel_runs import Record, side_by_side
from mtrec_ray.stages.run_folder import DONE, as_settled, begin, find_finished
from mtrec_ray.stages.teacher import with_teacher
from mtrec_ray.stages.train import BEST, TrainingRun, train_model
from mtrec_ray.stages.trained_model import ensure_vectors
from mtrec_ray.training.checkpoint import WEIGHTS

TRAINING = "training"


@dataclass(frozen=True)
class Options:
    """Which scenarios (none: all); whether each is trained alone, too; rows of a learning curve."""

    names: tuple[str, ...] = ()
    compare: bool = False
    shots: tuple[str, ...] = ()


EVERYTHING = Options()


def run_finetune(
    project: Project, storage_path: str, say: Say, options: Options = EVERYTHING
) -> dict[str, Any]:
    """Fine-tune all scenarios, or those named, side by side; returns the decisions.

    A scenario that the joint model does not have joins it: its data is prepared first.

    Raises:
        ValueError: no joint model, an unknown scenario, or another configuration.
        RuntimeError: scenarios whose runs failed, after all others have ended.
    """
    storage.check_writable(storage_path)
    project = as_settled(project, storage_path)
    ground = open_ground(project, storage_path)
    names = check_names(options.names, project)
    if options.shots and not any(ground.is_new(n) for n in names):
        refuse(
            [
                f"--shots: found no new scenario among {', '.join(names)}; allowed: with one that "
                "the joint model does not have"
            ]
        )
    for name in names:
        if ground.is_new(name):
            data = prepare_joined(
                project, ground.prepared, ground.run_folder, storage_path, name, say
            )
            ground = replace(ground, joined=ground.joined | {name: data})
            refuse(unserved(ground, data, name, project))
    decisions = fine_tune(ground, names, project, say)
    found = summary_of(ground, decisions)
    if options.compare:
        found["comparison"] = compare(ground, names, project, say)
    if options.shots:
        new = [n for n in names if ground.is_new(n)]
        found["shots"] = {n: draw_curve(ground, n, project, options.shots, say) for n in new}
    return found


def unserved(ground: Ground, data: Prepared, name: str, project: Project) -> list[str]:
    """A line for a new scenario that could neither be fine-tuned nor scored zero-shot."""
    least = project.finetune.of(name).least_labels
    if ground.project.model.general or max(label_counts(data, name).values()) >= least:
        return []
    return [
        f"scenarios.{name}: found too few labels of its validation split to fine-tune it, and no "
        f"general head (model.general: false); allowed: {least} of the rarer kind "
        "(finetune.least_labels)"
    ]


def fine_tune(
    ground: Ground, names: Sequence[str], project: Project, say: Say
) -> dict[str, Record]:
    """The decision of each scenario; those that are finished are not repeated.

    Raises:
        RuntimeError: scenarios whose runs failed, after all others have ended.
    """
    finished = {n: find_decision(ground, n, project) for n in names}
    left = [n for n in names if finished[n] is None]
    if not left:
        say("finetune: already done")
        return {n: d for n, d in finished.items() if d}
    refuse(run_problems(ground, left, project))
    connect(project.run)
    export_encoder(ground)
    data = {n: taught(ground, n, project, say) for n in left}
    ensure_vectors(base_model(ground))
    jobs = {n: functools.partial(finetune_one, ground, data[n], n, project, say) for n in left}
    found = side_by_side(jobs, project, say)
    return {n: found.get(n) or finished[n] or {} for n in names}


def taught(ground: Ground, name: str, project: Project, say: Say) -> Prepared:
    """A scenario's data, with the teacher's predictions where training has a teacher."""
    if ground.is_new(name):
        own = restricted(project, [name])
        return with_teacher(own, ground.data(name), ground.folder(name), say)
    found = with_teacher(ground.project, ground.prepared, ground.run_folder, say)
    return found.only([name])


def tuned_with(ground: Ground, name: str, project: Project) -> dict[str, Any]:
    """Whatever a scenario's model depends on, as a tree."""
    return {
        "prepared": ground.data(name).fingerprint,
        "joint": {"fingerprint": ground.fingerprint},
        "finetune": {
            **project.finetune.of(name).model_dump(mode="json"),
            "keep": project.finetune.keep,
        },
        "scenarios": {name: {"tasks": task_weights(project, name)}},
    }


def find_decision(ground: Ground, name: str, project: Project) -> Record | None:
    """The record of a scenario that is finished.

    Raises:
        ProjectError: it was made with another configuration or from other joint weights.
    """
    made_with = tuned_with(ground, name, project)
    return find_finished(ground.folder(name), made_with, job="finetune", run=project.run.name)


def run_problems(ground: Ground, names: Sequence[str], project: Project) -> list[str]:
    """A line for each scenario whose model could not be built as asked."""
    problems = quantise_problems() if project.evaluation.precision == "int8" else []
    for name in names:
        try:
            own = scenario_project(ground, name, project.finetune.of(name), project)
        except ProjectError as error:
            problems += [f"finetune: {name}: {line}" for line in error.problems]
            continue
        workers, batch = own.run.most_workers, own.training.batch_size
        if batch < workers * own.training.accumulation:
            problems.append(
                f"finetune.batch_size: found {batch} for {name}, whose run has {workers} workers; "
                f"allowed: at least {workers * own.training.accumulation}"
            )
        options = own.model.encoder
        if options.source == project.model.encoder.source:
            problems += encoder_problems(options)
        else:  # it is written below the run's folder later, and has the same build
            source = project.model.encoder.source
            problems += encoder_problems(options.model_copy(update={"source": source}))
    return list(dict.fromkeys(p.replace("model.encoder.lora", "finetune.lora") for p in problems))


def finetune_one(ground: Ground, own: Prepared, name: str, project: Project, say: Say) -> Record:
    """Fine-tune a scenario, decide, and store its delta; returns the decision."""
    tuned, folder = project.finetune.of(name), ground.folder(name)
    begin(folder, tuned_with(ground, name, project))
    counts = label_counts(own, name)
    if max(counts.values()) < tuned.least_labels:
        chosen = ZERO_SHOT if ground.is_new(name) else "joint"
        reason = too_few(counts, tuned.least_labels)
        return conclude(folder, {"labels": counts, "chosen": chosen, "reason": reason}, name, say)
    say(f"{name}: fine-tuning ({tuned.mode})")
    summary = train_scenario(ground, own, name, project)
    delta = write_delta(ground, own, name, tuned, project)
    decision = {"labels": counts} | choose(ground, own, name, project)
    told = ("epochs", "steps", "trainable_parameters", "best_joint_score", "rows_seen")
    decision |= {"mode": tuned.mode, "bytes": delta["bytes"]}
    decision["training"] = {k: summary[k] for k in told}
    return conclude(folder, decision, name, say)


def choose(ground: Ground, own: Prepared, name: str, project: Project) -> Record:
    """Which model a scenario uses, by validation: the fine-tuned one, or the one before it."""
    before = model_before(ground, name, project)
    if before is None:
        return {"chosen": "finetuned", "reason": "nothing scored the new scenario before"}
    users, labels, after = score_rows_of(tuned_model(ground, name, project), name, "valid")
    scores = {"finetuned": after, "joint": score_rows_of(before, name, "valid")[2]}
    least, keep = project.finetune.of(name).least_labels, project.finetune.keep
    found = decide(own.scenarios[name], Scored(users, labels, scores), least, keep)
    if ground.is_new(name) and found["chosen"] == "joint":
        found["chosen"] = ZERO_SHOT
    return found


def label_counts(prepared: Prepared, name: str) -> dict[str, int]:
    """By task: validation labels of its rarer kind."""
    facts = prepared.scenarios[name]
    rows = facts.num_rows("valid")
    parts = [a["labels"] for a in read_rows(prepared.shard_paths(name, "valid"), 65536, 0, rows)]
    return rare_labels(facts, np.concatenate(parts))


def train_scenario(ground: Ground, own: Prepared, name: str, project: Project) -> dict[str, Any]:
    """The summary of a scenario's training run, which is started, or gone on with, or finished."""
    folder = ground.folder(name)
    done = storage.join(folder, TRAINING, DONE)
    if storage.exists(done):
        return storage.read_json(done)
    tuned = project.finetune.of(name)
    sub = scenario_project(ground, name, tuned, project)
    start = start_of(ground, name, tuned)
    return train_model(TrainingRun(sub, own, folder, TRAINING, start=start))


def write_delta(
    ground: Ground, own: Prepared, name: str, tuned: Tuned, project: Project
) -> dict[str, Any]:
    """Store what a scenario's best epoch changed, in a Ray task; returns the delta's facts."""
    folder = ground.folder(name)
    best = storage.join(folder, TRAINING, BEST)
    sub = scenario_project(ground, name, tuned, project)
    task = task_of(store_delta, project.run, gpu=False)
    facts = {"tuned": tuned.model_dump(mode="json")}
    delta = storage.join(folder, DELTA_FOLDER)
    return ray.get(task.remote(sub, own, start_of(ground, name, tuned), best, delta, facts))


def conclude(folder: str, decision: Record, name: str, say: Say) -> Record:
    """Write a decision, say it, and delete the run's checkpoints."""
    storage.write_json(storage.join(folder, DECISION), decision)
    storage.write_json(storage.join(folder, DONE), decision)
    storage.remove_folder(storage.join(folder, TRAINING))
    say(f"{name}: {decision['chosen']} ({decision['reason']})")
    return decision


def summary_of(ground: Ground, decisions: dict[str, Record]) -> dict[str, Any]:
    """The decisions, and bytes: of the base, of the deltas, of as many copies of the base.

    `encoder_bytes`: the encoder that learned jointly as a plain one, which adapters load on.
    """
    base = storage.num_bytes(storage.join(ground.joint, WEIGHTS))
    exported = ground.encoder != ground.project.model.encoder.source
    encoder = sum(map(storage.num_bytes, storage.files(ground.encoder))) if exported else 0
    deltas = {n: d["bytes"] for n, d in decisions.items() if "bytes" in d}
    return {
        "scenarios": decisions,
        "storage": {
            "base_bytes": base,
            "encoder_bytes": encoder,
            "delta_bytes": deltas,
            "all_bytes": base + encoder + sum(deltas.values()),
            "full_copies_bytes": base * len(deltas),
        },
    }
