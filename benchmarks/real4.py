"""How does the joint model do on four real scenarios, against what a user would build instead?

    python -m benchmarks.real4 [--quick] [--seeds 3] [--out FILE] [--root real4] [--storage DIR]

With `--quick`: one seed, capped rows, no teacher.
From the raw Parquet: the pipeline of `jobs/real4.yaml` (Ray, two workers) is the joint model's
first seed. On exactly its prepared rows are then fitted, in this order, each kept in the storage:

    popularity, lightgbm, lightgbm_text    `benchmarks/baselines.py`
    joint                                  more seeds, one thread each, without Ray
    alone                                  each scenario by itself, as many steps with as many of
                                           its rows as in the joint model
    no_text, no_statistics                 the joint network without them, frozen encoder

All networks are told alone, without what stands beside them in `evaluate`: `shared_users.py` tells
what that brings. Differences to the best of these have 95 % intervals (paired bootstrap over
users). Beside them stands the best of B0 to B4 of `BASELINES.md` in the data's folder, computed
apart from this project on the same test rows.
"""

import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import typer
from rich.console import Console

from benchmarks.baselines import NAMES, measure, run_baselines
from benchmarks.common import TOP, write_result
from benchmarks.local import fit, side_by_side, variant
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import Prepared, PreparedScenario, load_prepared
from mtrec_ray.evaluation.bootstrap import Interval, paired_difference
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.evaluate import run_evaluate
from mtrec_ray.stages.predictions import read_predictions
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.teacher import add_teacher_labels
from mtrec_ray.stages.train import run_train
from mtrec_ray.training.batches import make_plan

REFERENCES = ("B0", "B1", "B2", "B3", "B4")
QUICK = (
    "training.epochs=2",
    "training.rows_per_epoch=150000",
    "training.teacher.share=0",
)
QUICK_TREE_ROWS = 100_000  # of a scenario
FROZEN = {"trainable": "none"}
WITHOUT = {
    "no_text": {"encoder": FROZEN, "text": False},
    "no_statistics": {"encoder": FROZEN, "statistics": False},
}

Metrics = dict[str, float]
# Test scores f32[N, T] of each seed, by model and scenario.
Scores = dict[str, dict[str, list[np.ndarray]]]


# --- the reference ---------------------------------------------------------------------------


def read_references(path: Path) -> dict[str, dict[str, Metrics]]:
    """Figures of `BASELINES.md`: `{"shop.buy": {"B0": {"auc": .., "gauc": ..}, ..}}`, or `rmse`."""
    found: dict[str, dict[str, Metrics]] = {}
    for line in path.read_text().splitlines():
        cells = [c.strip().strip("*") for c in line.strip().strip("|").split("|")]
        if len(cells) != 7 or not re.match(r"[\d-]", cells[2]) or cells[2].startswith("---"):
            continue
        scenario, task, *values = cells
        scores = {name: parse_cell(v) for name, v in zip(REFERENCES, values, strict=True)}
        found[f"{scenario}.{task}"] = {n: s for n, s in scores.items() if s}
    return found


def parse_cell(text: str) -> Metrics:
    """`0.7242 (0.729)` is AUC (GAUC), `1.0019` an RMSE, `-` nothing."""
    numbers = [float(n) for n in re.findall(r"\d+\.\d+", text)]
    if len(numbers) == 2:
        return {"auc": numbers[0], "gauc": numbers[1]}
    return {"rmse": numbers[0]} if numbers else {}


# --- models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A model to fit: its name, its scenarios, its seed and its project."""

    model: str
    names: tuple[str, ...]
    seed: int
    project: Project

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.model}-{'-'.join(self.names)}-{self.seed}"


def cells(base: Project, prepared: Prepared, seeds: int, *, quick: bool) -> list[Cell]:
    """All models that are fitted without Ray; the quick way leaves `alone` out."""
    everyone = tuple(base.scenarios)
    found: list[Cell] = []
    if not quick:
        found += [
            Cell("joint", everyone, seed, seeded(base, everyone, seed)) for seed in range(1, seeds)
        ]
        found += [alone(base, prepared, n, seed) for seed in range(seeds) for n in everyone]
    for model, fields in WITHOUT.items():
        for seed in range(seeds):
            project = seeded(base, everyone, seed, model=fields)
            found.append(Cell(model, everyone, seed, project))
    return found


def seeded(base: Project, names: tuple[str, ...], seed: int, **sections: Any) -> Project:
    """The project of some scenarios with another seed of training."""
    training = {"seed": seed} | sections.pop("training", {})
    return variant(base, names, training=training, **sections)


def alone(base: Project, prepared: Prepared, name: str, seed: int) -> Cell:
    """One scenario by itself: the joint model's steps, each with its rows of that scenario."""
    plan = make_plan(base, prepared, 1)
    rows = plan.quotas[name]
    training = {"batch_size": rows, "rows_per_epoch": rows * plan.steps_per_epoch}
    return Cell("alone", (name,), seed, seeded(base, (name,), seed, training=training))


def run_cell(cell: Cell, prepared: Prepared, folder: str) -> None:
    """Fit a model; its test scores, curve and time go into files."""
    found = fit(cell.project, prepared, splits=("test",))
    np.savez(Path(folder) / f"{cell.key}.npz", **found.scores)  # pyright: ignore[reportArgumentType]
    record = {"seconds": found.seconds, "curve": found.curve}
    (Path(folder) / f"{cell.key}.json").write_text(json.dumps(record))
    print(f"{cell.key}: {found.seconds:.0f} s", flush=True)


def all_scores(
    base: Project, prepared: Prepared, run: str, storage: str, seeds: int, *, quick: bool
) -> tuple[Scores, dict[str, Any]]:
    """Test scores of every model, and the persons and labels of test by scenario."""
    scores: Scores = {"joint": {}}
    rows = {}
    predictions = files.join(run, "evaluation", "predictions")
    for name, facts in prepared.scenarios.items():
        predicted = read_predictions(predictions, name, len(facts.tasks))
        scores["joint"][name] = [predicted.get("network", predicted["score"])]
        rows[name] = (predicted["person"], predicted["label"])
    if not seeds:
        return scores, rows
    _, trees = run_baselines(base, storage, seeds, QUICK_TREE_ROWS if quick else None)
    scores |= {name: {} for name in ("alone", *WITHOUT, *NAMES)}
    for name, found in trees.items():
        if not np.array_equal(found["test.user"], rows[name][0]):
            raise RuntimeError(f"{name}: predictions and prepared rows are not in one order")
        for model in NAMES:
            own = [v for k, v in sorted(found.items()) if k.startswith(f"test.{model}.")]
            scores[model][name] = own
    folder = files.join(run, "cells")
    Path(folder).mkdir(parents=True, exist_ok=True)
    wanted = cells(base, prepared, seeds, quick=quick)
    missing = [c for c in wanted if not (Path(folder) / f"{c.key}.json").exists()]
    side_by_side([(run_cell, (c, prepared, folder)) for c in missing])
    for cell in wanted:
        with np.load(Path(folder) / f"{cell.key}.npz") as found:
            for name in cell.names:
                scores[cell.model].setdefault(name, []).append(found[f"test.{name}"])
    return scores, rows


# --- the table -------------------------------------------------------------------------------


def mean_metrics(
    facts: PreparedScenario, task: str, runs: list[np.ndarray], rows: tuple[np.ndarray, np.ndarray]
) -> Metrics:
    """Means over seeds of a task's metrics, and the spread of the main one."""
    i, kind = facts.tasks.index(task), facts.kinds[task]
    found = [
        measure(kind, facts.label_means[task], rows[1][:, i], run[:, i], rows[0]) for run in runs
    ]
    mean = {m: float(np.mean([f[m] for f in found])) for m in found[0]}
    main = "auc" if kind == "binary" else "rmse"
    return mean | {"spread": float(np.ptp([f[main] for f in found]))}


def difference(
    facts: PreparedScenario, task: str, scores: Scores, other: str, rows: tuple[np.ndarray, ...],
    metric: str,
) -> Interval:  # fmt: skip
    """Joint model less another, with its interval."""
    i = facts.tasks.index(task)
    persons, labels = rows
    known = np.isfinite(labels[:, i])
    first, second = (
        [run[known, i].astype(np.float64) for run in scores[model][facts.name]]
        for model in ("joint", other)
    )
    label = labels[known, i].astype(np.float64)
    return paired_difference(metric, label, first, second, persons[known])


def gradient_cosines(run: str, seeds: int, *, quick: bool) -> dict[str, list[dict[str, float]]]:
    """By seed of the joint model, epoch by epoch: cosines of the scenarios' gradients."""
    curves = {"0": files.read_json(files.join(run, "joint", "finished.json"))["curve"]}
    for seed in range(1, 1 if quick else seeds):
        found = list(Path(run, "cells").glob(f"joint-*-{seed}.json"))
        curves[str(seed)] = json.loads(found[0].read_text())["curve"]
    return {seed: [r["gradient_cosine"] for r in curve] for seed, curve in curves.items()}


def slices(run: str) -> list[dict[str, str]]:
    """AUC or RMSE of the first seed on rows of known and of new users and items, with the rows."""
    record = files.read_json(files.join(run, "evaluation", "metrics.json"))
    table = []
    for name, tasks in record["metrics"].items():
        for task, whole in tasks.items():
            main = "auc" if "auc" in whole else "rmse"
            row = {"task": f"{name}.{task}", "all": f"{whole[main]:.4f}"}
            parts = record["details"][name]["slices"][task]
            for part in ("warm", "new users", "new items"):
                metrics = parts.get(part, {})
                known = metrics.get(main) is not None  # null: no two labels
                row[part] = f"{metrics[main]:.4f} ({metrics['rows']:,.0f})" if known else "-"
            if "ne" in whole:
                row |= {
                    "NE": f"{whole['ne']:.4f}",
                    "predicted / actual": f"{whole['calibration']:.3f}",
                }
            table.append(row | {k: "-" for k in ("NE", "predicted / actual") if k not in row})
    return table


class Spent:
    """Seconds of this call and of those that it goes on with, kept in the storage."""

    def __init__(self, folder: str) -> None:
        self.path, self.started = files.join(folder, "seconds.json"), time.monotonic()
        self.before = files.read_json(self.path) if files.exists(self.path) else {}

    def note(self, part: str) -> float:
        """Add what was spent since the last note to a part; returns the sum of all parts."""
        now = time.monotonic()
        self.before[part] = self.before.get(part, 0.0) + now - self.started
        self.started = now
        files.write_json(self.path, self.before)
        return sum(self.before.values())


def better(metric: str, first: float, second: float) -> bool:
    """Whether the first value is the better one, to the four digits that references have."""
    first, second = round(first, 4), round(second, 4)
    return first < second if metric == "rmse" else first > second


def best_of(metric: str, values: dict[str, Metrics]) -> str:
    """The name of the best."""
    return (min if metric == "rmse" else max)(values, key=lambda name: values[name][metric])


def compare(
    prepared: Prepared, scores: Scores, rows: dict[str, Any], references: dict[str, Any]
) -> tuple[Metrics, list[dict[str, str]]]:
    """Flat figures, and a table row a task."""
    figures: Metrics = {}
    table = []
    ahead = dict.fromkeys(("tasks_ahead", "tasks_ahead_gauc", "tasks_ahead_of_reference",
                           "tasks_ahead_of_alone"), 0)  # fmt: skip
    for name, facts in prepared.scenarios.items():
        for task, kind in facts.kinds.items():
            key, main = f"{name}.{task}", "auc" if kind == "binary" else "rmse"
            found = {
                model: mean_metrics(facts, task, by_name[name], rows[name])
                for model, by_name in scores.items()
                if name in by_name
            }
            joint = found["joint"]
            own = {m: v for m, v in found.items() if m not in ("joint", "alone")}
            reference = references.get(key, {})
            rivals = own | reference
            top = best_of(main, rivals)
            figures |= {f"{key}.{m}": joint[m] for m in ("auc", "gauc", "ne", "rmse") if m in joint}
            figures |= {
                f"{key}.spread": joint["spread"], f"{key}.best_baseline": rivals[top][main],
            }  # fmt: skip
            for model, metrics in found.items():
                if model != "joint":
                    figures[f"{key}.{model}.{main}"] = metrics[main]
            wins = better(main, joint[main], rivals[top][main])
            ahead["tasks_ahead"] += wins
            if kind == "binary":
                best_gauc = max(v["gauc"] for v in rivals.values())
                figures[f"{key}.best_baseline_gauc"] = best_gauc
                ahead["tasks_ahead_gauc"] += joint["gauc"] > best_gauc
            if reference:
                best_reference = reference[best_of(main, reference)][main]
                figures[f"{key}.best_reference"] = best_reference
                ahead["tasks_ahead_of_reference"] += better(main, joint[main], best_reference)
            row = {"task": key, "joint": f"**{cell(joint)}**" if wins else cell(joint)}
            if len(scores["joint"][name]) > 1:
                row["± spread"] = f"{joint['spread']:.4f}"
            row |= {model: cell(own[model]) for model in own}
            row["B0-B4"] = cell(reference[best_of(main, reference)]) if reference else "-"
            if own:
                rival = best_of(main, own)
                gap = difference(facts, task, scores, rival, rows[name], main)
                figures |= {f"{key}.gap_low": gap.low, f"{key}.gap_high": gap.high}
                row["joint less best of ours"] = (
                    f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] {rival}"
                )
            if "alone" in found:
                shared = difference(facts, task, scores, "alone", rows[name], main)
                figures |= {f"{key}.alone_low": shared.low, f"{key}.alone_high": shared.high}
                ahead["tasks_ahead_of_alone"] += better(main, joint[main], found["alone"][main])
                row["alone"] = cell(found["alone"])
                row["joint less alone"] = (
                    f"{shared.value:+.4f} [{shared.low:+.4f}, {shared.high:+.4f}]"
                )
            table.append(row)
    return figures | ahead | {"tasks_total": len(table)}, table


def cell(metrics: Metrics) -> str:
    """`0.7386 (0.736)`, AUC and GAUC, or `0.8869`, RMSE."""
    if "rmse" in metrics:
        return f"{metrics['rmse']:.4f}"
    return f"{metrics['auc']:.4f} ({metrics['gauc']:.3f})"


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rows, one seed: ends in 10 minutes.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "",
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
    seeds: Annotated[int, typer.Option(help="Fits of each model; 0: the joint one alone.")] = 3,
    override: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Fit all models on real4 and write the comparison."""
    words = [
        "recommend.ranking_users=0",
        *(QUICK if quick else ()),
        *([f"root={root}"] if root else ()),
        *(override or []),
    ]
    project = load_project(TOP / "jobs" / "real4.yaml", words)
    references = read_references(Path(project.root) / "BASELINES.md")
    folder = storage or tempfile.mkdtemp()
    spent = Spent(folder)
    try:
        for stage in (run_prepare, run_train, run_evaluate):  # the joint model alone
            stage(project, folder, teller())
    finally:
        ray.shutdown()  # or its processes would take a part of the cores from what follows
        spent.note("pipeline")
    pipeline_seconds = spent.before["pipeline"]
    run = files.join(folder, project.run.name)
    prepared = load_prepared(files.join(run, "prepared"))
    prepared = add_teacher_labels(project, prepared, run, teller())  # found finished
    try:
        found = all_scores(project, prepared, run, folder, 1 if quick else seeds, quick=quick)
    finally:
        spent.note("models")
    scores, rows = found
    figures, table = compare(prepared, scores, rows, references)
    seconds = spent.note("table")
    figures |= {"pipeline_seconds": pipeline_seconds, "seconds": seconds}
    Console().print(markdown_table(table), soft_wrap=True)
    cosines = gradient_cosines(run, seeds, quick=quick)
    write_result(
        "real4", figures, out, table=table, slices=slices(run), gradient_cosine=cosines,
        seeds=seeds, quick=quick,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
