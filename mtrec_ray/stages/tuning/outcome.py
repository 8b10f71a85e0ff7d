"""The outcome of a search: its table, its front, the chosen trial, a project file, a page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from mtrec_ray.data import storage
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import value_at, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.report.page import tune_page
from mtrec_ray.report.plots import tune_plots
from mtrec_ray.search.affinity import affinities, as_json, as_matrix
from mtrec_ray.search.importance import importances
from mtrec_ray.search.pareto import REFERENCE, hypervolume, pareto_front, preferred, worst_gains
from mtrec_ray.search.records import Trial
from mtrec_ray.search.simplex import scaled
from mtrec_ray.search.space import space_of, weight_overrides
from mtrec_ray.stages.tuning.runner import score_of

CHOSEN_OWN_WEIGHTS = "chosen, own weights"

RULES = {
    "joint": "the lowest joint validation score",
    "worst_case": "the best worst-case gain over the models of one scenario",
    "preference": "the lowest mean of the scenarios' validation scores by the preference",
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a search.

    Attributes:
        trials: all of them.
        scored: those with finite scores; `points` f64[n, k] are their scores by scenario.
        on_front: bool[n].
        volume: the front's hypervolume below a score of 1 for each scenario.
        chosen, rule: a trial and by which rule.
    """

    trials: list[Trial]
    scored: list[Trial]
    points: np.ndarray
    on_front: np.ndarray
    volume: float
    chosen: Trial
    rule: str

    @property
    def chosen_score(self) -> float:
        """The chosen trial's joint validation score."""
        return score_of(self.chosen)

    def trial(self, name: str) -> Trial | None:
        """Returns a trial by name; `own` for `uniform` where the project's weights are uniform."""
        by_name = {t.name: t for t in self.trials}
        return by_name.get(name) or (by_name.get("own") if name == "uniform" else None)


def outcome_of(project: Project, trials: Sequence[Trial]) -> Outcome:
    """Returns the front of the trials and the chosen one.

    Raises:
        ProjectError: no trial has a score.
    """
    names = list(project.scenarios)
    scored = [
        t
        for t in trials
        if t.status != "failed" and t.best and all(n in t.best["scores"] for n in names)
    ]
    if not scored:
        reasons = sorted({t.reason for t in trials if t.reason})
        raise ProjectError([f"search: found no trial with a score ({'; '.join(reasons)[:300]})"])
    points = np.array([[(t.best or {})["scores"][n] for n in names] for t in scored])
    return Outcome(
        trials=list(trials),
        scored=scored,
        points=points,
        on_front=pareto_front(points),
        volume=hypervolume(points, np.full(len(names), REFERENCE)),
        chosen=scored[int(np.argmin(losses(project, scored, points)))],
        rule=RULES[project.search.choose],
    )


def losses(project: Project, scored: Sequence[Trial], points: np.ndarray) -> np.ndarray:
    """Returns f64[n], the loss that the project's rule minimises."""
    search, names = project.search, list(project.scenarios)
    if search.choose == "preference":
        return preferred(points, [search.preference.get(n, 0.0) for n in names])
    if search.choose == "worst_case":
        by_name = {t.name: t for t in scored}
        lost = [n for n in names if f"only_{n}" not in by_name]
        if lost:
            raise ProjectError([f"search.choose: found no score of the model of {lost} alone"])
        alone = [min(e["scores"][n] for e in by_name[f"only_{n}"].curve) for n in names]
        return -worst_gains(points, np.array(alone))
    return np.array([score_of(t) for t in scored])


def values_of(project: Project, trial: Trial) -> dict[str, Any]:
    """Returns the values by searched field that a trial really had; weights with a mean of 1.

    Those of a failed trial may be values that the schema refuses.
    """
    names = tuple(project.scenarios)

    def had(field: str) -> Any:
        return trial.overrides.get(field, value_at(project, field))

    weights = scaled([had(f"scenarios.{name}.weight") for name in names])
    return weight_overrides(names, weights) | {f: had(f) for f in space_of(project).ranges}


def trial_rows(project: Project, outcome: Outcome) -> list[dict[str, Any]]:
    """Returns a row for each trial: status, values, scores of its best and of its last epoch."""
    front = {t.name for t, on in zip(outcome.scored, outcome.on_front, strict=True) if on}
    rows = []
    for trial in outcome.trials:
        best = trial.best or {}
        last = trial.curve[-1] if trial.curve else {}
        row = {
            "trial": trial.name,
            "status": trial.status,
            "reason": trial.reason,
            "seconds": round(trial.seconds, 2),
            "epochs": trial.epochs,
            "best_epoch": best.get("epoch"),
            "on_front": trial.name in front,
            "chosen": trial.name == outcome.chosen.name,
            **values_of(project, trial),
        }
        for kind, entry in (("", best), ("last.", last)):
            row[f"{kind}joint_score"] = entry.get("joint_score")
            row |= {f"{kind}score.{n}": entry.get("scores", {}).get(n) for n in project.scenarios}
            row |= {
                f"{kind}task.{n}/{t}": entry.get("tasks", {}).get(f"{n}/{t}")
                for n, scenario in project.scenarios.items()
                for t in scenario.tasks
            }
        rows.append(row)
    return rows


def trials_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Returns the rows as Arrow; values that are no numbers or of mixed kinds as JSON texts."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        mixed = (
            any(isinstance(v, list | dict) for v in values)
            or len({type(v) for v in values if v is not None} - {int, float}) > 1
        )
        columns[name] = [json.dumps(v) for v in values] if mixed else values
    return pa.table(columns)


def front_of(project: Project, outcome: Outcome) -> dict[str, Any]:
    """Returns the front: its trials' scores and values, and what its volume refers to."""
    names = list(project.scenarios)
    volumes = {}
    for name in ("own", "uniform"):
        trial = outcome.trial(name)
        if trial in outcome.scored:
            point = outcome.points[[outcome.scored.index(trial)]]
            volumes[name] = hypervolume(point, np.full(len(names), REFERENCE))
    return {
        "scenarios": names,
        "scores": "mean over a scenario's tasks of NE or relative RMSE on valid; lower is better",
        "reference_point": dict.fromkeys(names, REFERENCE),
        "reference_is": "the model that knows only the training means",
        "hypervolume": outcome.volume,
        "hypervolume_of_one_trial": volumes,
        "front": [
            {
                "trial": t.name,
                "scores": dict(zip(names, map(float, point), strict=True)),
                "values": values_of(project, t),
            }
            for t, point, on in zip(outcome.scored, outcome.points, outcome.on_front, strict=True)
            if on
        ],
        "chosen": {
            "trial": outcome.chosen.name,
            "rule": outcome.rule,
            "joint_score": outcome.chosen_score,
            "scores": (outcome.chosen.best or {})["scores"],
            "values": values_of(project, outcome.chosen),
            "overrides": outcome.chosen.overrides,
        },
    }


def chosen_yaml(project: Project, outcome: Outcome) -> str:
    """Returns a project file with the chosen values; without `search`, which was done."""
    tree = with_overrides(project, outcome.chosen.overrides).dump()
    tree.pop("search")
    return (
        f"# Trial {outcome.chosen.name} of the search: {outcome.rule}, "
        f"joint validation score {outcome.chosen_score:.4f}.\n"
        f"# python -m jobs.train --config THIS_FILE --storage STORAGE\n"
        + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    )


def comparison(
    project: Project, outcome: Outcome, confirmed: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Returns scores of own, uniform and chosen values, from the search and the confirmation.

    And of the chosen ones with the project's own weights, which no trial had.
    """
    trials = {n: outcome.trial(n) for n in ("own", "uniform")} | {"chosen": outcome.chosen}
    shown = {n: t for n, t in trials.items() if t and t.best}
    variants = (confirmed or {}).get("variants", {})
    more = {CHOSEN_OWN_WEIGHTS: "own_weights"} if "own_weights" in variants else {}
    rows = []
    for split in ("in the search", *(("valid", "test") if confirmed else ())):
        for score in ("joint", *project.scenarios):
            row = {"score": score, "split": split}
            for name, trial in shown.items():
                if split == "in the search":
                    best = trial.best or {}
                    value = best["joint_score"] if score == "joint" else best["scores"][score]
                    row[name] = f"{value:.4f}"
                else:
                    row[name] = spread_text(variants[name][split].get(score))
            for column, name in more.items():
                told = split != "in the search"
                row[column] = spread_text(variants[name][split].get(score)) if told else "-"
            rows.append(row)
    return rows


def spread_text(spread: dict[str, float] | None) -> str:
    """Returns the mean and half of the spread."""
    return f"{spread['mean']:.4f} ± {spread['spread'] / 2:.4f}" if spread else "-"


def write_outcome(
    project: Project,
    outcome: Outcome,
    confirmed: dict[str, Any] | None,
    advice: Sequence[str],
    folder: str,
) -> dict[str, Any]:
    """Write table, front, project file, plots and page; returns the summary."""
    rows = trial_rows(project, outcome)
    front = front_of(project, outcome)
    fields = list(values_of(project, outcome.chosen))
    weight = importances(
        [{f: row[f] for f in fields} for row in rows],
        [float("nan") if row["joint_score"] is None else row["joint_score"] for row in rows],
    )
    curves = {t.name: [(e["epoch"], e["joint_score"]) for e in t.curve] for t in outcome.trials}
    plots = tune_plots(rows, list(project.scenarios), fields, weight, curves)
    compared = comparison(project, outcome, confirmed)
    storage.write_table(storage.join(folder, "trials.parquet"), trials_table(rows))
    storage.write_json(storage.join(folder, "front.json"), front | {"importance": weight})
    text = chosen_yaml(project, outcome)
    storage.write_bytes(storage.join(folder, "chosen.yaml"), text.encode())
    for name, png in plots.items():
        storage.write_bytes(storage.join(folder, "plots", f"{name}.png"), png)
    affinity = affinities(outcome.trials)
    matrix = as_matrix(affinity, list(project.scenarios)) if affinity else []
    page = tune_page(
        project.run.name, front, rows, compared, advice, plots, matrix, generated(project)
    )
    storage.write_bytes(storage.join(folder, "report.html"), page.encode())
    return {
        "trials": len(rows),
        "by_status": {
            s: sum(r["status"] == s for r in rows) for s in sorted({r["status"] for r in rows})
        },
        "hypervolume": outcome.volume,
        "front": [t["trial"] for t in front["front"]],
        "chosen": front["chosen"],
        "comparison": compared,
        "confirmed": confirmed,
        "importance": weight,
        "affinity": as_json(affinity),
        "advice": list(advice),
        "folder": folder,
    }


def generated(project: Project) -> bool:
    """Returns whether the data is the generated sample world."""
    return project.sample_world is not None
