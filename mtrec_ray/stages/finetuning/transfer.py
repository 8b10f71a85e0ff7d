"""Joint, fine-tuned, or alone? The three models of each scenario on the same test rows.

Alone is trained from the pretrained encoder with the same budget: in the joint model's number of
epochs as many rows of the scenario as joint training and fine-tuning took of it together, in
batches of its share of a joint batch.
"""

import functools
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors.numpy import save
from sklearn.metrics import roc_auc_score, root_mean_squared_error

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.evaluation.bootstrap import paired_difference
from mtrec_ray.evaluation.model_choice import ScoredRows, score_difference
from mtrec_ray.progress import Log
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.channel import Sender, open_channel
from mtrec_ray.stages.finetuning.chosen_model import (
    DECISION,
    finetuned_model,
    model_before,
    score_split_by_tasks,
)
from mtrec_ray.stages.finetuning.joint_run import SCENARIOS, JointRun
from mtrec_ray.stages.finetuning.recipe import single, task_weights
from mtrec_ray.stages.parallel_runs import Record, run_in_parallel
from mtrec_ray.stages.run_folder import DONE, MARK, find_finished, mark_started
from mtrec_ray.stages.teacher import add_teacher_labels
from mtrec_ray.stages.train import BEST, TrainingRun, train_model
from mtrec_ray.stages.trained_model import joint_model
from mtrec_ray.training.batches import make_plan

COMPARISON, SCORES, ALONE = "comparison.json", "scores.safetensors", "alone"


PAIRS = (("finetuned", "joint"), ("finetuned", "alone"), ("joint", "alone"))


def compare_models(
    joint_run: JointRun, names: list[str], project: Project, log: Log
) -> dict[str, Any]:
    """Train each scenario alone, side by side, and compare on test; also as comparison.json."""
    found = {n: find_comparison(joint_run, n, project) for n in names}
    left = [n for n in names if found[n] is None]
    if left:
        log("training each scenario alone, with the same budget")
        with open_channel(log) as sender:
            jobs = {
                n: functools.partial(compare_one, joint_run, n, project, log, sender) for n in left
            }
            found |= run_in_parallel(jobs, project, log)
    tables = {n: f for n, f in found.items() if f}
    path = storage.join(joint_run.run_folder, SCENARIOS, COMPARISON)
    storage.write_json(path, earlier(joint_run) | tables)
    return tables


def earlier(joint_run: JointRun) -> dict[str, Any]:
    """The comparisons of all scenarios that were made with the present joint model."""
    found = {}
    for name in joint_run.facts:
        folder = storage.join(joint_run.folder(name), ALONE)
        path, mark = storage.join(folder, COMPARISON), storage.join(folder, MARK)
        if (
            storage.exists(path)
            and storage.read_json(mark)["joint"]["fingerprint"] == joint_run.fingerprint
        ):
            found[name] = storage.read_json(path)
    return found


def compared_with(joint_run: JointRun, name: str, project: Project) -> dict[str, Any]:
    """Whatever a comparison depends on, as a tree."""
    decision = storage.read_json(storage.join(joint_run.folder(name), DECISION))
    return {
        "prepared": joint_run.data(name).fingerprint,
        "joint": {"fingerprint": joint_run.fingerprint},
        "finetune": project.finetune.of(name).model_dump(mode="json"),
        "chosen": decision["chosen"],
        "training": project.dump()["training"],
        "scenarios": {name: {"tasks": task_weights(project, name)}},
    }


def find_comparison(joint_run: JointRun, name: str, project: Project) -> Record | None:
    """The comparison of a scenario that is finished."""
    folder = storage.join(joint_run.folder(name), ALONE)
    made_with = compared_with(joint_run, name, project)
    path = storage.join(folder, COMPARISON)
    find_finished(folder, made_with, job="finetune --compare", run=project.run.name)
    return storage.read_json(path) if storage.exists(path) else None


def alone_project(joint_run: JointRun, name: str, project: Project, rows: int) -> Project:
    """The project of a scenario by itself, with so many rows over all epochs."""
    tree = single(project, name)
    training = tree["training"]
    batch = training["batch_size"]
    if not joint_run.is_new(name):
        run = joint_run.project.run
        plan = make_plan(joint_run.project, joint_run.prepared, run.most_workers)
        batch = plan.quotas[name] * run.most_workers * joint_run.project.training.accumulation
    each = -(-rows // training["epochs"])
    workers = parse_project(tree).run.most_workers
    training |= {"batch_size": max(batch, workers), "accumulation": 1, "rows_per_epoch": each}
    return parse_project(tree)


def budget(joint_run: JointRun, name: str) -> int:
    """Rows of a scenario that joint training and its fine-tuning took."""
    joint = storage.read_json(storage.join(joint_run.run_folder, "joint", DONE))
    decision = storage.read_json(storage.join(joint_run.folder(name), DECISION))
    tuned = decision.get("training", {}).get("rows_seen", {})
    return int(joint["rows_seen"].get(name, 0)) + int(tuned.get(name, 0))


def compare_one(
    joint_run: JointRun, name: str, project: Project, log: Log, sender: Sender
) -> Record:
    """Train a scenario alone and compare its models on test."""
    folder = storage.join(joint_run.folder(name), ALONE)
    data = joint_run.data(name).only([name])
    mark_started(folder, compared_with(joint_run, name, project))
    own = alone_project(joint_run, name, project, max(budget(joint_run, name), 1))
    if not storage.exists(storage.join(folder, "training", DONE)):
        taught = with_alone_teacher(joint_run, name, own, log)
        told = sender.named(f"{name} alone")
        train_model(TrainingRun(own, taught, folder, "training", log=told))
    best = storage.join(folder, "training", BEST)
    models = {"alone": joint_model(own, data.folder, best)}
    before = model_before(joint_run, name, project)
    if before:
        models["joint"] = before
    if storage.exists(storage.join(joint_run.folder(name), "delta")):
        models["finetuned"] = finetuned_model(joint_run, name, project)
    scores, users, labels = {}, np.zeros(0, np.int64), np.zeros((0, 1), np.float32)
    for model, trained_model in models.items():
        users, labels, scores[model] = score_split_by_tasks(trained_model, name, "test")
    decision = storage.read_json(storage.join(joint_run.folder(name), DECISION))
    scored = ScoredRows(users, labels, scores)
    arrays = {"users": users, "labels": labels, **scores}
    storage.write_bytes(storage.join(folder, SCORES), save(arrays))
    found = transfer_table(data.scenarios[name], scored, decision["chosen"])
    storage.write_json(storage.join(folder, COMPARISON), found)
    log(f"{name}: {found['verdict']}")
    return found


def with_alone_teacher(joint_run: JointRun, name: str, own: Project, log: Log) -> Prepared:
    """The scenario's data with the same teacher as in joint training."""
    if joint_run.is_new(name):
        return add_teacher_labels(own, joint_run.data(name), joint_run.folder(name), log)
    found = add_teacher_labels(joint_run.project, joint_run.prepared, joint_run.run_folder, log)
    return found.only([name])


def transfer_table(facts: PreparedScenario, scored: ScoredRows, chosen: str) -> Record:
    """By task the metric of each model and the differences with intervals; and the verdict."""
    pairs = [p for p in PAIRS if set(p) <= set(scored.scores)]
    tasks = [t for i, t in enumerate(facts.tasks) if two_labels(scored.labels[:, i])]
    if not tasks:
        words = "cannot be told: no task has two different labels on test"
        return {"chosen": chosen, "tasks": {}, "scores": {}, "sharing": None, "verdict": words}
    table = {task: task_row(facts, task, scored, pairs) for task in tasks}
    used = "finetuned" if chosen == "finetuned" else "joint"  # of a new one the general head
    gaps = {"-".join(p): score_difference(facts, scored, tasks, p) for p in pairs}
    sharing = score_difference(facts, scored, tasks, (used, "alone"))
    words = "neither gains nor loses surely by sharing"
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
    """Whether a task has two different labels on these rows."""
    known = labels[np.isfinite(labels)]
    return len(known) > 1 and known.min() < known.max()


def task_row(
    facts: PreparedScenario, task: str, scored: ScoredRows, pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """AUC or RMSE of each model on a task's rows, and differences with 95 % intervals."""
    i = facts.tasks.index(task)
    known = np.isfinite(scored.labels[:, i])
    metric = "auc" if facts.kinds[task] == "binary" else "rmse"
    labels, users = scored.labels[known, i].astype(np.float64), scored.users[known]
    own = {m: [s[known, i].astype(np.float64)] for m, s in scored.scores.items()}
    row: dict[str, Any] = {"metric": metric, "rows": int(known.sum())}
    for model, scores in own.items():
        row[model] = metric_of(metric, labels, scores[0])
    for first, second in pairs:
        gap = paired_difference(metric, labels, own[first], own[second], users)
        row[f"{first}-{second}"] = asdict(gap)
    return row


def metric_of(metric: str, labels: np.ndarray, scores: np.ndarray) -> float:
    """AUC or RMSE."""
    of = roc_auc_score if metric == "auc" else root_mean_squared_error
    return float(of(labels, scores))
