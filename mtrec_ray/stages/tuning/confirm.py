"""Does the choice hold, and what of it? Whole runs of chosen and other values, scored on test.

By seed: the chosen values, uniform weights, the project's own values, and the chosen ones with the
project's own weights, which tell what the weights brought, and what all else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from mtrec_ray.data import storage
from mtrec_ray.evaluation.metrics import (
    TaskMetrics,
    flat,
    joint_score,
    scenario_scores,
    task_scores,
)
from mtrec_ray.progress import Log
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.search.records import Trial, load_trials
from mtrec_ray.search.space import is_weight
from mtrec_ray.stages.evaluate import measure_predictions
from mtrec_ray.stages.in_process import ReportEpoch
from mtrec_ray.stages.predictions import predict_split
from mtrec_ray.stages.run_folder import BEST
from mtrec_ray.stages.trained_model import joint_model, load_trained
from mtrec_ray.stages.tuning.outcome import Outcome
from mtrec_ray.stages.tuning.runner import Recorder, run_trials
from mtrec_ray.stages.tuning.searcher import Suggester
from mtrec_ray.stages.tuning.trial import TrialInputs, train_trial, workers
from mtrec_ray.training.build import cache_folder
from mtrec_ray.training.validation import validate

VARIANTS = ("chosen", "uniform", "own", "own_weights")
# What is told of the chosen values: the variant that lacks it, and the one that has it.
WORTH = {
    "all": ("own", "chosen"),
    "weights": ("own_weights", "chosen"),
    "other_values": ("own", "own_weights"),
}


def confirm(
    project: Project, outcome: Outcome, folder: str, shared: TrialInputs, log: Log
) -> dict[str, Any] | None:
    """Train each variant with `search.confirm_seeds` seeds as the train stage would, score on test.

    None without seeds. Runs that are there are not repeated.
    """
    if not project.search.confirm_seeds:
        return None
    records = storage.join(folder, "confirm")
    runs = planned_runs(project, outcome, load_trials(records))
    waiting = [t for t in runs.values() if not t.ended]
    here = project.search.num_workers == 0
    if waiting:
        log(f"confirming on test: {len(waiting)} whole runs")
        run_trials(
            with_overrides(project, workers(project)),
            Suggester(waiting, None, unexpected),
            None,
            Recorder(runs, records, shared.folder, len(runs), log, keep=True),
            num=len(waiting), train=train_and_test if here else train_trial, shared=shared,
        )  # fmt: skip
    for run in runs.values():
        if run.status == "finished" and "test" not in run.result:
            own = with_overrides(project, run.overrides)
            run.result["test"] = scores_on_test(own, shared, run.name)
            run.save(records)
    record = confirmed(outcome, list(runs.values()))
    storage.write_json(storage.join(folder, "confirm.json"), record)
    return record


def unexpected(point: Mapping[str, Any]) -> Trial:
    """Refuse to suggest a run beside those that wait."""
    raise AssertionError(point)


def planned_runs(project: Project, outcome: Outcome, kept: Mapping[str, Trial]) -> dict[str, Trial]:
    """Returns a run for each variant's trial and seed; a trial that is both is run once."""
    runs = {}
    for trial in variants(outcome).values():
        for seed in range(project.search.confirm_seeds):
            name = f"{trial.name}-seed{seed}"
            overrides = {**trial.overrides, "training.seed": project.training.seed + seed}
            runs[name] = kept.get(name) or Trial(name, overrides)
    return runs


def variants(outcome: Outcome) -> dict[str, Trial]:
    """Returns the trials to compare.

    `own_weights` has the chosen values but for the weights of the scenarios, where the search
    chose both: it tells what each brought.
    """
    trials = {"chosen": outcome.chosen, **{n: outcome.trial(n) for n in ("uniform", "own")}}
    others = {f: v for f, v in outcome.chosen.overrides.items() if not is_weight(f)}
    if 0 < len(others) < len(outcome.chosen.overrides):
        trials["own_weights"] = Trial("own_weights", others)
    return {name: trial for name, trial in trials.items() if trial}


def train_and_test(
    project: Project, name: str, shared: TrialInputs, tell: ReportEpoch
) -> dict[str, Any]:
    """Train a run in this process; its result holds the scores of its best model on test."""
    summary = train_trial(project, name, shared, tell)
    model, vectors = load_trained(
        project, shared.prepared.folder, storage.join(shared.folder, name, BEST)
    )
    vectors.compute_frozen(cache_folder(project))
    vectors.refresh()
    metrics = validate(model, vectors, shared.prepared, "test")
    return summary | {"test": scores_of(project, metrics)}


def scores_on_test(project: Project, shared: TrialInputs, name: str) -> dict[str, Any]:
    """Returns a run's best model's scores on test, predicted by workers as in evaluate.

    On the driver: what a trial starts has to fit into the resources that Tune set aside for it.
    """
    prepared, folder = shared.prepared, storage.join(shared.folder, name, "predictions")
    trained_model = joint_model(project, prepared.folder, storage.join(shared.folder, name, BEST))
    predict_split({folder: dict.fromkeys(prepared.scenarios, trained_model)}, project.run)
    metrics = {n: measure_predictions(folder, facts) for n, facts in prepared.scenarios.items()}
    return scores_of(project, metrics)


def scores_of(project: Project, metrics: Mapping[str, TaskMetrics]) -> dict[str, Any]:
    """Returns joint score, and scores by scenario and task."""
    return {
        "joint_score": joint_score(metrics, project.evaluation.weights or None),
        "scores": scenario_scores(flat(metrics)),
        "tasks": task_scores(flat(metrics)),
    }


def confirmed(outcome: Outcome, runs: Sequence[Trial]) -> dict[str, Any]:
    """Returns by variant and split each score's mean and spread (maximum - minimum) over seeds.

    `gains`: uniform less chosen, on test, of each seed that both have; above 0 the chosen weights
    are better. `better_on_all_seeds` is false where a run failed.
    """
    record: dict[str, Any] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {"valid": {}, "test": {}}
    for name, trial in variants(outcome).items():
        seeds = [r for r in runs if r.name.rpartition("-seed")[0] == trial.name]
        done = [r for r in seeds if r.status == "finished" and r.best and "test" in r.result]
        failed = {r.name: r.reason for r in seeds if r not in done}
        valid = [r.best for r in done if r.best]
        test = [r.result["test"] for r in done]
        for split, told in (("valid", valid), ("test", test)):
            scores[split][name] = {
                r.name.rpartition("-seed")[2]: one["joint_score"]
                for r, one in zip(done, told, strict=True)
            }
        record[name] = {
            "trial": trial.name,
            "seeds": len(done),
            "failed": failed,
            "valid": spreads(valid),
            "test": spreads(test),
        }
    gains = gains_of(scores["test"], "uniform", "chosen")
    complete = not record["uniform"]["failed"] and not record["chosen"]["failed"]
    return {
        "variants": record,
        "gains": gains,
        "better_on_all_seeds": complete and bool(gains) and min(gains) > 0,
        "worth": worth_of(scores),
    }


def gains_of(scores: Mapping[str, Mapping[str, float]], without: str, having: str) -> list[float]:
    """Returns a variant's joint score less another's, of each seed that both have."""
    first, second = scores.get(without, {}), scores.get(having, {})
    return [first[seed] - second[seed] for seed in first if seed in second]


def worth_of(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns by what is told of the chosen values, and split, the gain and its 95 % interval.

    Above 0 they are better. Joint scores by split, variant and seed.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what, pair in WORTH.items():
        gains = {split: gains_of(own, *pair) for split, own in scores.items()}
        if all(gains.values()):
            found[what] = {split: interval_of(values) for split, values in gains.items()}
    return found


def interval_of(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean of at least one number, and its 95 % interval by Student's t.

    That of one number is the number itself.
    """
    mean, num = float(np.mean(values)), len(values)
    half = 0.0
    if num > 1:
        half = float(t.ppf(0.975, num - 1) * np.std(values, ddof=1) / num**0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half, "runs": num}


def spreads(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns the mean and spread of the joint score and of each scenario's."""
    if not entries:
        return {}
    series = {"joint": [e["joint_score"] for e in entries]}
    series |= {n: [e["scores"][n] for e in entries] for n in entries[0]["scores"]}
    return {
        name: {"mean": float(np.mean(values)), "spread": float(np.ptp(values))}
        for name, values in series.items()
    }
