"""The evaluate stage: predictions of the test split as Parquet, and metrics of them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.evaluation.blend import Blend
from mtrec_ray.evaluation.bootstrap import metric_interval
from mtrec_ray.evaluation.metrics import (
    MAIN_METRIC,
    TaskMetrics,
    error,
    joint_score,
    reliability,
    roc_auc,
    said_of,
    task_metrics,
)
from mtrec_ray.model.encoder import quantise_problems
from mtrec_ray.progress import Log, begin_stage
from mtrec_ray.project.base import refuse
from mtrec_ray.project.depends_on import Fields
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.finetuning.chosen_model import chosen_model, joint_for_use, version
from mtrec_ray.stages.finetuning.joint_run import JointRun, open_joint_run
from mtrec_ray.stages.list_inputs import ListInputs, collect_inputs
from mtrec_ray.stages.list_model import ensure_list_model
from mtrec_ray.stages.lists import measure_lists
from mtrec_ray.stages.predictions import ModelByScenario, predict_split, read_predictions
from mtrec_ray.stages.run_folder import Record, RunFolder, with_search_choice
from mtrec_ray.stages.second_opinion import ensure_opinions, summary

PREDICTIONS, JOINT_PREDICTIONS = "predictions", "joint_predictions"
# Metrics that the network has alone, too.
OF_NETWORK = ("auc", "gauc", "ne", "rmse", "poisson_deviance", "rmsle")


def measure_predictions(folder: str, facts: PreparedScenario) -> TaskMetrics:
    """Returns metrics of each task, and those of the item's past rate as `popularity_*`.

    Where others stand beside the network, its metrics alone are `network_*`.
    """
    rows = read_predictions(folder, facts.name, len(facts.tasks))
    metrics = task_metrics(facts, rows["person"], rows["label"], rows["score"])
    for i, (task, kind) in enumerate(facts.kinds.items()):
        if task not in metrics:
            continue
        known = np.isfinite(rows["label"][:, i])
        label, popular = rows["label"][known, i], rows["popularity"][known, i]
        if kind == "multiclass":
            continue  # a past rate is a mean gain, and no probability of a class
        if kind != "binary":
            metrics[task][f"popularity_{MAIN_METRIC[kind]}"] = error(kind, label, popular)
        elif 0 < label.mean() < 1:
            metrics[task]["popularity_auc"] = roc_auc(label, popular)
    if "network" in rows:
        alone = task_metrics(facts, rows["person"], rows["label"], rows["network"])
        for task, own in metrics.items():
            own |= {f"network_{m}": v for m, v in alone[task].items() if m in OF_NETWORK}
    return metrics


def details(folder: str, facts: PreparedScenario, known_items: np.ndarray) -> dict[str, Any]:
    """Returns intervals, slices and reliability of each task.

    `intervals`: 95 % by resampled users. `slices`: rows of users and items that training knows
    (warm), of new users, of new items. `reliability`: ten bins of equal size.
    """
    predicted = read_predictions(folder, facts.name, len(facts.tasks))
    users, is_new_user = predicted["person"], predicted["user"] == 0
    is_new_item = ~known_items[predicted["item"]]
    warm = ~is_new_user & ~is_new_item
    slices = {"warm": warm, "new users": is_new_user, "new items": is_new_item}
    result: dict[str, dict[str, Any]] = {"intervals": {}, "slices": {}, "reliability": {}}
    for i, (task, kind) in enumerate(facts.kinds.items()):
        label = predicted["label"][:, i].astype(np.float64)
        score = said_of(facts, task, predicted["score"])
        known = np.isfinite(label)
        if not known.any():
            continue
        result["intervals"][task] = {
            metric: [interval.low, interval.high]
            for metric in (("auc", "gauc") if kind == "binary" else (MAIN_METRIC[kind],))
            for interval in [metric_interval(metric, label[known], score[known], users[known])]
        }
        result["slices"][task] = {
            name: task_metrics(
                facts, users[rows], predicted["label"][rows], predicted["score"][rows]
            )[task]
            for name, rows in slices.items()
            if (rows & known).any()
        }
        if kind == "binary":
            result["reliability"][task] = reliability(label[known], score[known])
    return result


def run_evaluate(project: Project, storage_path: str, log: Log) -> Record:
    """Predict and measure on test: each scenario's chosen model, and the joint one beside it.

    Returns `metrics` of the chosen models and, of the joint one, `joint_metrics`; the same where
    nothing was fine-tuned. An evaluation of other models or with other options is repeated.
    """
    storage.check_writable(storage_path)
    run = RunFolder.of(project, storage_path)
    project = with_search_choice(project, run, log)
    joint_run = open_joint_run(project, storage_path)
    models = {name: chosen_model(joint_run, name, project) for name in joint_run.facts}
    made_from = evaluation_depends_on(joint_run, models, project)
    finished = run.evaluate.current(made_from)
    if finished:
        begin_stage(log, "evaluate: already done")
        return finished
    if project.evaluation.precision == "int8":
        refuse(quantise_problems())
    run.evaluate.start_anew(made_from)
    rows = sum(facts.num_rows("test") for facts in joint_run.facts.values())
    begin_stage(log, f"evaluate: scoring {rows:,} test rows")
    connect(project.run)
    folder = run.evaluate.folder
    record = measure_models(joint_run, models, folder, project, log)
    record["models"] = made_from["models"]
    storage.write_json(storage.join(folder, "metrics.json"), record)
    return run.evaluate.finish(record)


def evaluation_depends_on(joint_run: JointRun, models: ModelByScenario, project: Project) -> Fields:
    """Returns whatever an evaluation depends on; not the size of its blocks."""
    recommend = project.recommend.model_dump(mode="json", exclude={"pairs_per_block"})
    return {
        "models": {name: version(joint_run, name, model) for name, model in models.items()},
        "evaluation": project.evaluation.model_dump(mode="json"),
        "recommend": recommend,
        "opinions": project.opinions.model_dump(mode="json"),
    }


def measure_models(
    joint_run: JointRun, models: ModelByScenario, folder: str, project: Project, log: Log
) -> dict[str, Any]:
    """Predict by each scenario's model, and by the joint one where it is another; measure both."""
    scenarios = joint_run.facts
    predictions, joint = (storage.join(folder, name) for name in (PREDICTIONS, JOINT_PREDICTIONS))
    storage.remove_folder(predictions)
    storage.remove_folder(joint)
    tuned = [n for n, model in models.items() if model.delta and not joint_run.is_new(n)]
    asked = {predictions: models}
    if tuned:
        asked[joint] = dict.fromkeys(tuned, joint_for_use(joint_run, project))
    ranked = project.model.layout != "pair" and project.recommend.ranking_users > 0
    inputs = collect_inputs(models, project) if ranked or project.opinions.sources else {}
    opinions = ensure_opinions(joint_run, asked, inputs, project, log)
    for line in summary(scenarios, opinions.get(predictions, {})):
        log(line)
    log("predicting the rows of test")
    predict_split(asked, project.run, opinions=opinions)
    metrics = {n: measure_predictions(predictions, f) for n, f in scenarios.items()}
    blends = {
        name: {task: told_of(blend) for task, blend in own.blends.items()}
        for name, own in opinions.get(predictions, {}).items()
    }
    old = joint_run.prepared.scenarios
    joint_metrics = {
        n: measure_predictions(joint, f) if n in tuned else metrics[n] for n, f in old.items()
    }
    weights = project.evaluation.weights or None
    more = {
        name: details(predictions, facts, joint_run.data(name).catalogue(name).known)
        for name, facts in scenarios.items()
    }
    ranking = rank(joint_run, models, inputs, project, log) if ranked else {}
    return {
        "metrics": metrics,
        "joint_metrics": joint_metrics,
        "blends": blends,
        "ranking": ranking,
        "score": joint_score(metrics, weights),
        "joint_score": joint_score(joint_metrics, weights),
        "details": more,
    }


def told_of(blend: Blend) -> dict[str, Any]:
    """Returns what an evaluation tells of a blend: not its trees, but whether it has any."""
    return asdict(blend) | {"boosted": bool(blend.boosted)}


def rank(
    joint_run: JointRun,
    models: ModelByScenario,
    inputs: Mapping[str, ListInputs],
    project: Project,
    log: Log,
) -> dict[str, Any]:
    """Returns how good lists over the catalogue are."""
    model = ensure_list_model(joint_run, models, inputs, project, log)
    log("recall and NDCG of lists over the catalogue")
    return measure_lists(inputs, model, project)
