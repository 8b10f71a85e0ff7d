"""The finetune stage: a training run for every scenario, side by side, and the decision on each.

Each run is a Ray Train run of the train stage with its own controller, workers and resume key
`scenarios/NAME/training`; with `finetune.num_workers: 0` it is one Ray task.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import read_rows
from mtrec_ray.evaluation.model_choice import ScoredRows, choose_model, rare_labels, too_few
from mtrec_ray.model.encoder import encoder_problems, quantise_problems
from mtrec_ray.progress import Log, begin_stage
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import Fields, task_weights
from mtrec_ray.project.project import Project
from mtrec_ray.project.training import FineTuning
from mtrec_ray.stages.channel import Sender, open_channel
from mtrec_ray.stages.cluster import connect, task_of
from mtrec_ray.stages.common_people import advice, common_people
from mtrec_ray.stages.finetuning.chosen_model import (
    ZERO_SHOT,
    base_model,
    finetuned_model,
    model_before,
    score_split_by_tasks,
)
from mtrec_ray.stages.finetuning.few_shot import draw_curve
from mtrec_ray.stages.finetuning.joint_run import JointRun, check_names, open_joint_run
from mtrec_ray.stages.finetuning.new_scenario import prepare_new_scenario
from mtrec_ray.stages.finetuning.recipe import (
    DELTA_FOLDER,
    export_encoder,
    scenario_project,
    start_of,
    store_delta,
)
from mtrec_ray.stages.finetuning.transfer import compare_models
from mtrec_ray.stages.parallel_runs import run_in_parallel
from mtrec_ray.stages.run_folder import BEST, Record, RunFolder, Stage, with_search_choice
from mtrec_ray.stages.teacher import add_teacher_labels
from mtrec_ray.stages.train import TrainingRun, train_model
from mtrec_ray.stages.trained_model import ensure_vectors
from mtrec_ray.training.checkpoint import WEIGHTS

DECISION, TRAINING = "decision.json", "training"


@dataclass(frozen=True)
class Options:
    """Which scenarios (none: all); whether each is trained alone, too; rows of a learning curve."""

    names: tuple[str, ...] = ()
    compare: bool = False
    shots: tuple[str, ...] = ()


EVERYTHING = Options()


def run_finetune(
    project: Project, storage_path: str, log: Log, options: Options = EVERYTHING
) -> Record:
    """Fine-tune all scenarios, or those named, side by side; returns the decisions.

    A scenario that the joint model does not have joins it: its data is prepared first.

    Raises:
        ProjectError: no joint model, an unknown scenario, or another configuration.
        RuntimeError: scenarios whose runs failed, after all others have ended.
    """
    storage.check_writable(storage_path)
    project = with_search_choice(project, RunFolder.of(project, storage_path), log)
    joint_run = open_joint_run(project, storage_path)
    names = check_names(options.names, project)
    new = [n for n in names if joint_run.is_new(n)]
    if options.shots and not new:
        refuse(
            [
                f"--shots: found no new scenario among {', '.join(names)}; allowed: with one that "
                "the joint model does not have"
            ]
        )
    for name in new:
        joint_run = with_new_scenario(joint_run, name, project, log)
    summary = summary_of(joint_run, fine_tune(joint_run, names, project, log))
    if options.compare:
        summary["comparison"] = compare_models(joint_run, names, project, log)
        for line in advice(common_people(joint_run.prepared)):
            log(line)
    if options.shots:
        summary["shots"] = {n: draw_curve(joint_run, n, project, options.shots, log) for n in new}
    return summary


def with_new_scenario(joint_run: JointRun, name: str, project: Project, log: Log) -> JointRun:
    """Returns the joint run with the data of a scenario that joins it."""
    data = prepare_new_scenario(project, joint_run.prepared, joint_run.run, name, log)
    joint_run = replace(joint_run, joined=joint_run.joined | {name: data})
    refuse(unserved(joint_run, data, name, project))
    return joint_run


def unserved(joint_run: JointRun, data: Prepared, name: str, project: Project) -> list[str]:
    """Returns a line for a new scenario that could neither be fine-tuned nor scored zero-shot."""
    least = project.finetune.of(name).least_labels
    if joint_run.project.model.general or max(rare_label_counts(data, name).values()) >= least:
        return []
    return [
        f"scenarios.{name}: found too few labels of its validation split to fine-tune it, and no "
        f"general head (model.general: false); allowed: {least} of the rarer kind "
        "(finetune.least_labels)"
    ]


def fine_tune(
    joint_run: JointRun, names: Sequence[str], project: Project, log: Log
) -> dict[str, Record]:
    """Returns the decision of each scenario; those that are finished are not repeated.

    Raises:
        RuntimeError: scenarios whose runs failed, after all others have ended.
    """
    finished = {n: find_decision(joint_run, n, project) for n in names}
    left = [n for n in names if finished[n] is None]
    if not left:
        begin_stage(log, "finetune: already done")
        return {n: d for n, d in finished.items() if d}
    refuse(run_problems(joint_run, left, project))
    begin_stage(log, f"finetune: {', '.join(left)}")
    connect(project.run)
    export_encoder(joint_run)
    data = {n: data_with_teacher(joint_run, n, project, log) for n in left}
    ensure_vectors(base_model(joint_run))
    with open_channel(log) as sender:
        jobs = {
            n: functools.partial(finetune_one, joint_run, data[n], n, project, log, sender)
            for n in left
        }
        decided = run_in_parallel(jobs, project, log)
    return {n: decided.get(n) or finished[n] or {} for n in names}


def data_with_teacher(joint_run: JointRun, name: str, project: Project, log: Log) -> Prepared:
    """Returns a scenario's data, with the teacher's predictions where training has a teacher."""
    if joint_run.is_new(name):
        own, data = project.only([name]), joint_run.data(name)
        return add_teacher_labels(own, data, joint_run.folder(name), log)
    folder = joint_run.run.path()
    return add_teacher_labels(joint_run.project, joint_run.prepared, folder, log).only([name])


def finetune_depends_on(joint_run: JointRun, name: str, project: Project) -> Fields:
    """Returns whatever a scenario's model depends on."""
    tuned = project.finetune.of(name).model_dump(mode="json")
    return {
        "prepared": joint_run.data(name).fingerprint,
        "joint": {"fingerprint": joint_run.fingerprint},
        "finetune": {**tuned, "keep": project.finetune.keep},
        **task_weights(project, name),
    }


def find_decision(joint_run: JointRun, name: str, project: Project) -> Record | None:
    """Returns the decision about a scenario that is finished.

    Raises:
        ProjectError: it was made with another configuration or from other joint weights.
    """
    return joint_run.stage(name).finished(finetune_depends_on(joint_run, name, project))


def run_problems(joint_run: JointRun, names: Sequence[str], project: Project) -> list[str]:
    """Returns a line for each scenario whose model could not be built as asked."""
    problems = quantise_problems() if project.evaluation.precision == "int8" else []
    for name in names:
        try:
            single = scenario_project(joint_run, name, project.finetune.of(name), project)
        except ProjectError as error:
            problems += [f"finetune: {name}: {line}" for line in error.problems]
            continue
        workers, batch = single.run.most_workers, single.training.batch_size
        if batch < workers * single.training.accumulation:
            problems.append(
                f"finetune.batch_size: found {batch} for {name}, whose run has {workers} workers; "
                f"allowed: at least {workers * single.training.accumulation}"
            )
        options = single.model.encoder
        if options.source == project.model.encoder.source:
            problems += encoder_problems(single.model)
        else:  # it is written below the run's folder later, and has the same build
            source = project.model.encoder.source
            options = options.model_copy(update={"source": source})
            problems += encoder_problems(single.model.model_copy(update={"encoder": options}))
    return list(dict.fromkeys(p.replace("model.encoder.lora", "finetune.lora") for p in problems))


def finetune_one(
    joint_run: JointRun, data: Prepared, name: str, project: Project, log: Log, sender: Sender
) -> Record:
    """Fine-tunes a scenario, decides, and stores its delta; returns the decision."""
    tuned, stage = project.finetune.of(name), joint_run.stage(name)
    stage.start(finetune_depends_on(joint_run, name, project))
    counts = rare_label_counts(data, name)
    least = least_labels(joint_run, name, project)
    if max(counts.values()) < least:
        chosen = ZERO_SHOT if joint_run.is_new(name) else "joint"
        reason = too_few(counts, least)
        decision: Record = {"labels": counts, "chosen": chosen, "reason": reason}
        return record_decision(stage, decision, name, log)
    log(f"{name}: fine-tuning ({tuned.mode})")
    training = replace(scenario_training(joint_run, data, name, project), log=sender.named(name))
    summary = training.stage.result or train_model(training)
    delta = write_delta(training, stage.folder, tuned)
    decision = {"labels": counts, **choose(joint_run, data, name, project), "mode": tuned.mode}
    reported_fields = ("epochs", "steps", "trainable_parameters", "best_joint_score", "rows_seen")
    decision |= {"bytes": delta["bytes"], "training": {k: summary[k] for k in reported_fields}}
    return record_decision(stage, decision, name, log)


def choose(joint_run: JointRun, data: Prepared, name: str, project: Project) -> Record:
    """Returns which model validation chooses: the fine-tuned one, or the one before it."""
    before = model_before(joint_run, name, project)
    if before is None:
        return {"chosen": "finetuned", "reason": "nothing scored the new scenario before"}
    users, labels, after = score_split_by_tasks(
        finetuned_model(joint_run, name, project), name, "valid"
    )
    scores = {"finetuned": after, "joint": score_split_by_tasks(before, name, "valid")[2]}
    least = least_labels(joint_run, name, project)
    keep = "better" if joint_run.is_new(name) else project.finetune.keep
    decision = choose_model(data.scenarios[name], ScoredRows(users, labels, scores), least, keep)
    if joint_run.is_new(name) and decision["chosen"] == "joint":
        decision["chosen"] = ZERO_SHOT
    return decision


def least_labels(joint_run: JointRun, name: str, project: Project) -> int:
    """Returns how many validation labels of the rarer kind a task needs to have a say.

    A fifth for a new scenario: its model starts from the general head, and only adds to it.
    """
    least = project.finetune.of(name).least_labels
    starts_there = joint_run.is_new(name) and joint_run.project.model.general
    return max(least // 5, 1) if starts_there else least


def rare_label_counts(prepared: Prepared, name: str) -> dict[str, int]:
    """Returns by task the number of validation labels of the rarer kind."""
    facts = prepared.scenarios[name]
    rows = facts.num_rows("valid")
    parts = [a["labels"] for a in read_rows(prepared.shard_paths(name, "valid"), 65536, 0, rows)]
    return rare_labels(facts, np.concatenate(parts))


def scenario_training(
    joint_run: JointRun, data: Prepared, name: str, project: Project
) -> TrainingRun:
    """Returns the model that a scenario's fine-tuning trains."""
    tuned = project.finetune.of(name)
    recipe = scenario_project(joint_run, name, tuned, project)
    start = start_of(joint_run, name, tuned)
    alone = project.finetune.num_workers == 0
    folder = joint_run.folder(name)
    return TrainingRun(recipe, data, folder, TRAINING, start=start, in_process=alone)


def write_delta(training: TrainingRun, folder: str, tuned: FineTuning) -> Record:
    """Stores what a scenario's best epoch changed, in a Ray task; returns the delta's facts."""
    task = task_of(store_delta, training.project.run, gpu=False)
    best = storage.join(training.stage.folder, BEST)
    facts = {"tuned": tuned.model_dump(mode="json")}
    delta = storage.join(folder, DELTA_FOLDER)
    stored = task.remote(training.project, training.prepared, training.start, best, delta, facts)
    return ray.get(stored)


def record_decision(stage: Stage, decision: Record, name: str, log: Log) -> Record:
    """Writes and logs a decision, and deletes the run's checkpoints; returns the decision."""
    storage.write_json(storage.join(stage.folder, DECISION), decision)
    stage.finish(decision)
    storage.remove_folder(storage.join(stage.folder, TRAINING))
    log(f"{name}: {decision['chosen']} ({decision['reason']})")
    return decision


def summary_of(joint_run: JointRun, decisions: dict[str, Record]) -> Record:
    """Returns the decisions, and bytes: of the base, of the deltas, of as many copies of the base.

    `encoder_bytes`: the encoder that learned jointly as a plain one, which adapters load on.
    """
    base = storage.num_bytes(storage.join(joint_run.weights, WEIGHTS))
    exported = joint_run.encoder != joint_run.project.model.encoder.source
    encoder = sum(map(storage.num_bytes, storage.files(joint_run.encoder))) if exported else 0
    deltas = {n: d["bytes"] for n, d in decisions.items() if "bytes" in d}
    sizes = {"base_bytes": base, "encoder_bytes": encoder, "delta_bytes": deltas}
    sizes["all_bytes"] = base + encoder + sum(deltas.values())
    sizes["full_copies_bytes"] = base * len(deltas)
    return {"scenarios": decisions, "storage": sizes}
