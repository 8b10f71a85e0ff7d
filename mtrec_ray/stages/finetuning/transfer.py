"""Joint, fine-tuned, or alone? The three models of each scenario on the same test rows.

Alone starts from the pretrained encoder and has the same budget: the joint model's epochs, as many
rows of the scenario as joint training and fine-tuning took together, and batches of its share of a
joint batch.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from safetensors.numpy import save

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.evaluation.bootstrap import paired_difference
from mtrec_ray.evaluation.metrics import MAIN_METRIC, error, roc_auc, said_of
from mtrec_ray.evaluation.model_choice import ScoredRows, score_difference
from mtrec_ray.progress import Log
from mtrec_ray.project.depends_on import Fields, task_weights
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.stages.channel import Sender, open_channel
from mtrec_ray.stages.finetuning.chosen_model import (
    finetuned_model,
    model_before,
    score_split_by_tasks,
)
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.finetuning.recipe import DELTA_FOLDER
from mtrec_ray.stages.parallel_runs import run_in_parallel
from mtrec_ray.stages.run_folder import BEST, Record, Stage
from mtrec_ray.stages.teacher import add_teacher_labels
from mtrec_ray.stages.train import TrainingRun, train_model
from mtrec_ray.stages.trained_model import TrainedModel, joint_model
from mtrec_ray.training.batches import make_plan

COMPARISON, SCORES = "comparison.json", "scores.safetensors"
PAIRS = (("finetuned", "joint"), ("finetuned", "alone"), ("joint", "alone"))


def compare_models(joint_run: JointRun, names: list[str], project: Project, log: Log) -> Record:
    """Trains each scenario alone, side by side, and compares on test; also as comparison.json."""
    comparisons = {n: find_comparison(joint_run, n, project) for n in names}
    left = [n for n, comparison in comparisons.items() if comparison is None]
    if left:
        log("training each scenario alone, with the same budget")
        with open_channel(log) as sender:
            jobs = {
                n: functools.partial(compare_one, joint_run, n, project, log, sender) for n in left
            }
            comparisons |= run_in_parallel(jobs, project, log)
    tables = {n: comparison for n, comparison in comparisons.items() if comparison}
    path = storage.join(joint_run.run.scenarios, COMPARISON)
    storage.write_json(path, earlier_comparisons(joint_run) | tables)
    return tables


def alone_stage(joint_run: JointRun, name: str) -> Stage:
    """Returns the stage of the model that is trained on one scenario alone, and compared."""
    return joint_run.run.stage("finetune --compare", "scenarios", name, "alone")


def earlier_comparisons(joint_run: JointRun) -> Record:
    """Returns the comparisons of all scenarios that were made with the present joint model."""
    comparisons = {}
    for name in joint_run.facts:
        stage = alone_stage(joint_run, name)
        made_from = stage.made_from or {"joint": {}}
        if stage.result and made_from["joint"].get("fingerprint") == joint_run.fingerprint:
            comparisons[name] = stage.result
    return comparisons


def comparison_depends_on(joint_run: JointRun, name: str, project: Project) -> Fields:
    """Returns whatever a comparison depends on."""
    return {
        "prepared": joint_run.data(name).fingerprint,
        "joint": {"fingerprint": joint_run.fingerprint},
        "finetune": project.finetune.of(name).model_dump(mode="json"),
        "chosen": decision_of(joint_run, name)["chosen"],
        "training": project.training.model_dump(mode="json"),
        **task_weights(project, name),
    }


def decision_of(joint_run: JointRun, name: str) -> Record:
    """Returns what fine-tuning decided of a scenario."""
    decision = joint_run.stage(name).result
    assert decision is not None, f"{name} is not fine-tuned"
    return decision


def find_comparison(joint_run: JointRun, name: str, project: Project) -> Record | None:
    """Returns the comparison of a scenario that is finished.

    Raises:
        ProjectError: it was made from something else.
    """
    made_from = comparison_depends_on(joint_run, name, project)
    return alone_stage(joint_run, name).finished(made_from)


def alone_project(joint_run: JointRun, name: str, project: Project, rows: int) -> Project:
    """Returns the project of a scenario by itself, with so many rows over all epochs."""
    alone, joint = project.single(name), joint_run.project
    batch = alone.training.batch_size
    if not joint_run.is_new(name):
        plan = make_plan(joint, joint_run.prepared, joint.run.most_workers)
        batch = plan.quotas[name] * joint.run.most_workers * joint.training.accumulation
    return with_overrides(
        alone,
        {
            "training.batch_size": max(batch, alone.run.most_workers),
            "training.accumulation": 1,
            "training.rows_per_epoch": -(-rows // alone.training.epochs),
        },
    )


def row_budget(joint_run: JointRun, name: str) -> int:
    """Returns the rows of a scenario that joint training and its fine-tuning took."""
    joint = joint_run.run.train.result or {}
    tuned = decision_of(joint_run, name).get("training", {}).get("rows_seen", {})
    return int(joint["rows_seen"].get(name, 0)) + int(tuned.get(name, 0))


def compare_one(
    joint_run: JointRun, name: str, project: Project, log: Log, sender: Sender
) -> Record:
    """Trains a scenario alone and compares its models on test; returns the table."""
    stage = alone_stage(joint_run, name)
    stage.start(comparison_depends_on(joint_run, name, project))
    models = {"alone": train_alone(joint_run, name, project, log, sender)}
    before = model_before(joint_run, name, project)
    if before:
        models["joint"] = before
    if storage.exists(storage.join(joint_run.folder(name), DELTA_FOLDER)):
        models["finetuned"] = finetuned_model(joint_run, name, project)
    scored = score_models(models, name)
    arrays = {"users": scored.users, "labels": scored.labels, **scored.scores}
    storage.write_bytes(storage.join(stage.folder, SCORES), save(arrays))
    facts = joint_run.data(name).scenarios[name]
    table = transfer_table(facts, scored, decision_of(joint_run, name)["chosen"])
    storage.write_json(storage.join(stage.folder, COMPARISON), table)
    log(f"{name}: {table['verdict']}")
    return stage.finish(table)


def train_alone(
    joint_run: JointRun, name: str, project: Project, log: Log, sender: Sender
) -> TrainedModel:
    """Trains a scenario alone, or goes on, unless it is finished; returns the model."""
    rows = max(row_budget(joint_run, name), 1)
    alone, data = alone_project(joint_run, name, project, rows), joint_run.data(name).only([name])
    folder, told = alone_stage(joint_run, name).folder, sender.named(f"{name} alone")
    training = TrainingRun(alone, data, folder, "training", log=told)
    if training.stage.result is None:
        labelled = with_alone_teacher(joint_run, name, alone, log)
        train_model(replace(training, prepared=labelled))
    return joint_model(alone, data.folder, storage.join(training.stage.folder, BEST))


def score_models(models: Mapping[str, TrainedModel], name: str) -> ScoredRows:
    """Returns the test rows of a scenario as each model scores them."""
    splits = {model: score_split_by_tasks(m, name, "test") for model, m in models.items()}
    users, labels, _ = next(iter(splits.values()))
    return ScoredRows(users, labels, {model: scores for model, (_, _, scores) in splits.items()})


def with_alone_teacher(joint_run: JointRun, name: str, own: Project, log: Log) -> Prepared:
    """Returns the scenario's data with the same teacher as in joint training."""
    if joint_run.is_new(name):
        return add_teacher_labels(own, joint_run.data(name), joint_run.folder(name), log)
    labelled = add_teacher_labels(joint_run.project, joint_run.prepared, joint_run.run.path(), log)
    return labelled.only([name])


def transfer_table(facts: PreparedScenario, scored: ScoredRows, chosen: str) -> Record:
    """Returns by task each model's metric and differences with intervals; and the verdict."""
    pairs = [p for p in PAIRS if set(p) <= set(scored.scores)]
    tasks = [t for i, t in enumerate(facts.tasks) if two_labels(scored.labels[:, i])]
    if not tasks:
        words = "cannot be told: no task has two different labels on test"
        return {"chosen": chosen, "tasks": {}, "scores": {}, "sharing": None, "verdict": words}
    table = {task: task_row(facts, task, scored, pairs) for task in tasks}
    used = "finetuned" if chosen == "finetuned" else "joint"  # of a new one the general head
    gaps = {"-".join(p): score_difference(facts, scored, tasks, p) for p in pairs}
    sharing = score_difference(facts, scored, tasks, (used, "alone"))
    words = "no certain gain or loss from sharing"
    if sharing.high < 0:
        words = "gains from sharing"
    elif sharing.low > 0:
        words = "is harmed by sharing (negative transfer)"
    return {
        "chosen": chosen,
        "tasks": table,
        "scores": {k: asdict(gap) for k, gap in gaps.items()},
        "sharing": asdict(sharing),
        "verdict": f"{words}: score {sharing.value:+.4f} [{sharing.low:+.4f}, {sharing.high:+.4f}]",
    }


def two_labels(labels: np.ndarray) -> bool:
    """Returns whether a task has two different labels on these rows."""
    known = labels[np.isfinite(labels)]
    return len(known) > 1 and known.min() < known.max()


def task_row(
    facts: PreparedScenario, task: str, scored: ScoredRows, pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """Returns the main metric of each model on a task's rows, and differences, 95 % intervals."""
    i = facts.tasks.index(task)
    known = np.isfinite(scored.labels[:, i])
    kind = facts.kinds[task]
    metric = MAIN_METRIC[kind]
    labels, users = scored.labels[known, i].astype(np.float64), scored.users[known]
    known_scores = {m: [said_of(facts, task, s)[known]] for m, s in scored.scores.items()}
    row: dict[str, Any] = {"metric": metric, "rows": int(known.sum())}
    for model, scores in known_scores.items():
        row[model] = metric_of(kind, labels, scores[0])
    for first, second in pairs:
        gap = paired_difference(metric, labels, known_scores[first], known_scores[second], users)
        row[f"{first}-{second}"] = asdict(gap)
    return row


def metric_of(kind: str, labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the main metric of a kind of label."""
    return roc_auc(labels, scores) if kind == "binary" else error(kind, labels, scores)
