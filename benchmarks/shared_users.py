"""What is a person's behaviour in other scenarios worth, and what are shared weights worth?

    python -m benchmarks.shared_users [--quick] [--seeds 3] [--data grocery --data anime]
                                      [--root DATA] [--storage DIR] [--out FILE]

Two data sets whose scenarios have the same people, `jobs/grocery.yaml` and `jobs/anime.yaml`; test
rows, everything fitted on train and valid. By task:

    network      the joint network by itself
    joint        the joint network, with what stands beside it by default: boosted trees, and the
                 sources of candidates, which know what a person took in all scenarios
    alone        a network of this scenario only (the joint model's steps, each with its rows of
                 the scenario), with trees and the sources of this scenario
    alone_all    the same network, with trees and the sources of all scenarios
    lightgbm_here, lightgbm_all
                 no network: boosted trees on the prepared columns, whose log odds and the sources
                 of this scenario (of all) are the columns of a second LightGBM, fitted on valid

So `alone_all` less `alone` is what shared information brings, `joint` less `alone_all` what shared
weights bring. Differences have 95 % intervals (paired bootstrap over users). Slices: rows of people
that train knows in the scenario, only in others, or not at all; of known and of new items.

With `--quick`: one seed, one epoch. An interrupted run goes on.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import lightgbm
import numpy as np
import ray
import typer
from rich.console import Console

from benchmarks.common import TOP, write_result
from benchmarks.local import fit, side_by_side
from benchmarks.ranking import project_of
from benchmarks.real4 import Cell, alone
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.arrays import Bools, Float32s
from mtrec_ray.data.prepared import Prepared, PreparedScenario, load_prepared
from mtrec_ray.data.shards import read_columns
from mtrec_ray.evaluation.blend import LABELS, Blend, log_odds
from mtrec_ray.evaluation.bootstrap import paired_difference
from mtrec_ray.evaluation.metrics import rmse, roc_auc
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.finetuning.chosen_model import chosen_model
from mtrec_ray.stages.finetuning.joint_run import open_joint_run
from mtrec_ray.stages.list_inputs import collect_inputs
from mtrec_ray.stages.predictions import (
    SOURCE,
    predict_split,
    read_predictions,
    said_of_task,
)
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.second_opinion import blends_of, ensure_opinions
from mtrec_ray.stages.train import run_train

DATA = ("grocery", "anime")
MODELS = ("network", "joint", "alone", "alone_all", "lightgbm_here", "lightgbm_all")
LEAST_POSITIVES = 200  # of test, of a scenario that the goal speaks of
CROWD = (f"{SOURCE}crowd_", f"{LABELS}crowd_")
PARAMETERS = {
    "objective": "binary", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 30,
    "lambda_l2": 1.0, "feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1,
    "verbosity": -1, "seed": 0,
}  # fmt: skip
ROUNDS = 100

Rows = dict[str, np.ndarray]


# --- models ----------------------------------------------------------------------------------


def with_opinions(project: Project) -> Project:
    """The project, with what stands beside the network by default; lists are not made."""
    tree = project.dump()
    tree["opinions"] = {}
    tree["recommend"] = {"ranking_users": 0}
    return parse_project(tree)


def predict(project: Project, folder: str) -> None:
    """Prepare, train jointly, and write what all opinions say of valid and test."""
    done = files.join(folder, project.run.name, "shared_users", "finished.json")
    if files.exists(done):
        return
    for stage in (run_prepare, run_train):
        stage(project, folder, teller())
    connect(project.run)
    joint_run = open_joint_run(project, folder)
    models = {name: chosen_model(joint_run, name, project) for name in joint_run.facts}
    inputs = collect_inputs(models, project)
    own = ensure_opinions(joint_run, {"": models}, inputs, project, teller())[""]
    for split in ("valid", "test"):
        target = predictions_of(project, folder, split)
        predict_split({target: models}, project.run, split, {target: own})
    ray.shutdown()
    files.write_json(done, {})


def predictions_of(project: Project, folder: str, split: str) -> str:
    """The folder of predictions of a split."""
    return files.join(folder, project.run.name, "shared_users", split)


def fit_alone(cell: Cell, prepared: Prepared, path: str) -> None:
    """Train a scenario by itself, and write its scores f32[N, T] of valid and test."""
    found = fit(cell.project, prepared)
    scores = {split: found.scores[f"{split}.{cell.names[0]}"] for split in ("valid", "test")}
    np.savez(path, **scores)  # pyright: ignore[reportArgumentType]
    print(f"{cell.key}: {found.seconds:.0f} s", flush=True)


def all_alone(project: Project, prepared: Prepared, folder: str) -> dict[str, Rows]:
    """Scores of each scenario's own network, by scenario and split."""
    seed = project.training.seed
    cells = {name: alone(project, prepared, name, seed) for name in prepared.scenarios}
    paths = {n: files.join(folder, project.run.name, "shared_users", f"{n}.npz") for n in cells}
    missing = [n for n in cells if not Path(paths[n]).exists()]
    side_by_side([(fit_alone, (cells[n], prepared, paths[n])) for n in missing])
    return {name: dict(np.load(path)) for name, path in paths.items()}


def scores_of_test(facts: PreparedScenario, rows: Mapping[str, Rows], own: Rows) -> Rows:
    """Scores f32[N, T] of test rows by each model; `rows` and `own` by split."""
    here = {s: {k: v for k, v in r.items() if not k.startswith(CROWD)} for s, r in rows.items()}
    networks = {
        "joint": rows,
        "alone": {split: here[split] | {"network": own[split]} for split in here},
        "alone_all": {split: rows[split] | {"network": own[split]} for split in rows},
    }
    found = {
        name: blended(facts, split["valid"], split["test"]) for name, split in networks.items()
    }
    rivals = {"lightgbm_here": here, "lightgbm_all": rows}
    found |= {n: boosted(facts, split["valid"], split["test"]) for n, split in rivals.items()}
    return found | {"network": rows["test"]["network"]}


def blended(facts: PreparedScenario, valid: Rows, test: Rows) -> Float32s:
    """Scores of test, with the blends that pay on valid."""
    score = test["network"].copy()
    for task, blend in blends_of(valid, facts).items():
        i = facts.tasks.index(task)
        score[:, i] = Blend(**blend).of(said_of_task(test, i))
    return score


def boosted(facts: PreparedScenario, valid: Rows, test: Rows) -> Float32s:
    """Scores of test by LightGBM on what trees and sources say, fitted on valid; NaN without."""
    score = np.full_like(test["network"], np.nan)
    for i, kind in enumerate(facts.kinds.values()):
        label = valid["label"][:, i]
        known = np.isfinite(label)
        if kind == "binary" and known.any() and 0 < label[known].mean() < 1:
            data = lightgbm.Dataset(columns_of(valid, i)[known], label[known])
            trees = lightgbm.train(PARAMETERS, data, ROUNDS)
            score[:, i] = np.asarray(trees.predict(columns_of(test, i)))
    return score


def columns_of(rows: Rows, task: int) -> np.ndarray:
    """What the second LightGBM reads: log odds of the first one's trees, and the sources."""
    said = said_of_task(rows, task)
    del said["network"]
    if "trees" in said:
        said["trees"] = np.where(np.isfinite(said["trees"]), log_odds(said["trees"]), np.nan)
    return np.stack(list(said.values()), 1)


# --- the table -------------------------------------------------------------------------------


def measure(kind: str, label: np.ndarray, score: np.ndarray) -> float:
    """AUC, or RMSE; NaN where there is none."""
    if kind == "regression":
        return rmse(label, score)
    if not len(label) or label.min() == label.max() or not np.isfinite(score).all():
        return float("nan")
    return roc_auc(label, score)


def slices_of(prepared: Prepared, name: str, test: Rows) -> dict[str, Bools]:
    """Which test rows are of people and of items that train knows where."""
    space = prepared.scenarios[name].user_space
    crowd = [n for n, facts in prepared.scenarios.items() if facts.user_space == space]
    persons = {n: column_of_train(prepared, n, "person") for n in crowd}
    here = np.isin(test["person"], persons[name])
    elsewhere = np.isin(test["person"], np.concatenate(list(persons.values())))
    known = np.isin(test["item"], column_of_train(prepared, name, "item"))
    return {
        "known_here": here, "only_elsewhere": elsewhere & ~here, "new_people": ~elsewhere,
        "known_items": known, "new_items": ~known,
    }  # fmt: skip


def column_of_train(prepared: Prepared, name: str, column: str) -> np.ndarray:
    """The distinct values of a column of training rows."""
    parts = read_columns(prepared.shard_paths(name, "train"), (column,))
    return np.unique(np.concatenate([part[column] for part in parts]))


def compare_task(
    facts: PreparedScenario, task: str, runs: Sequence[Rows], test: Rows, slices: dict[str, Bools]
) -> dict[str, float]:
    """Means over seeds of a task by model and slice, and differences with their intervals."""
    i, kind = facts.tasks.index(task), facts.kinds[task]
    known = np.isfinite(test["label"][:, i])
    label, person = test["label"][known, i].astype(np.float64), test["person"][known]
    scores = {m: [run[m][known, i].astype(np.float64) for run in runs] for m in MODELS}
    found = {m: float(np.mean([measure(kind, label, s) for s in scores[m]])) for m in MODELS}
    found["rows"] = float(len(label))
    if kind == "binary":
        found["positives"] = float(label.sum())
        for part, rows in slices.items():
            some = rows[known]
            of_part = {
                m: float(np.mean([measure(kind, label[some], s[some]) for s in scores[m]]))
                for m in MODELS
            }
            found |= {f"{part}.{m}": v for m, v in of_part.items() if np.isfinite(v)}
            found[f"{part}.rows"] = float(some.sum())
    metric = "auc" if kind == "binary" else "rmse"
    for other in MODELS[2:]:
        if np.isfinite(found[other]) and (kind == "regression" or 0 < label.mean() < 1):
            gap = paired_difference(metric, label, scores["joint"], scores[other], person)
            found |= {f"less_{other}_low": gap.low, f"less_{other}_high": gap.high}
    return {key: value for key, value in found.items() if np.isfinite(value)}


def row_of(key: str, found: Mapping[str, float]) -> dict[str, str]:
    """A row of the table."""
    row = {"task": key, "test rows": f"{found['rows']:,.0f}"}
    row |= {m: f"{found[m]:.4f}" if m in found else "-" for m in MODELS}
    for other in ("alone", "lightgbm_all"):
        low, high = (found.get(f"less_{other}_{end}") for end in ("low", "high"))
        told = "-" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
        row[f"joint less {other}"] = told
    return row


def macro(figures: Mapping[str, float], mains: Mapping[str, str]) -> dict[str, float]:
    """Means over scenarios with enough positives, of all and of the half with fewer rows."""
    large = [k for k in mains.values() if figures.get(f"{k}.positives", 0) >= LEAST_POSITIVES]
    by_size = sorted(large, key=lambda key: figures[f"{key}.rows"])
    found = {"scenarios": float(len(large))}
    for what, keys in (("all", by_size), ("small_half", by_size[: len(by_size) // 2])):
        for m in MODELS if keys else ():
            found[f"{what}.{m}"] = float(np.mean([figures[f"{k}.{m}"] for k in keys]))
    for m in MODELS:
        parts = [figures.get(f"{k}.only_elsewhere.{m}") for k in mains.values()]
        rows = [figures.get(f"{k}.only_elsewhere.rows", 0) for k in mains.values()]
        both = [(p, n) for p, n in zip(parts, rows, strict=True) if p is not None]
        if both:
            values, weights = zip(*both, strict=True)
            found[f"only_elsewhere.{m}"] = float(np.average(values, weights=weights))
    for other in MODELS[2:]:
        wins = [figures[f"{k}.joint"] > figures[f"{k}.{other}"] for k in large]
        found[f"scenarios_ahead_of_{other}"] = float(sum(wins))
    return found


def measure_data(
    data: str, root: Path, folder: str, seeds: Sequence[int], *, quick: bool
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Figures and rows of the table of one data set."""
    runs: dict[str, list[Rows]] = {}
    test: dict[str, Rows] = {}
    for seed in seeds:
        project = with_opinions(project_of(data, root / data, seed, quick=quick))
        prepared_path = files.join(folder, f"{data}-0", "prepared")
        target = Path(folder, project.run.name, "prepared")
        if seed and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(prepared_path, target_is_directory=True)
        predict(project, folder)
        prepared = load_prepared(prepared_path)
        own = all_alone(project, prepared, folder)
        for name, facts in prepared.scenarios.items():
            rows = {
                s: read_predictions(predictions_of(project, folder, s), name, len(facts.tasks))
                for s in ("valid", "test")
            }
            runs.setdefault(name, []).append(scores_of_test(facts, rows, own[name]))
            test[name] = rows["test"]
    prepared = load_prepared(files.join(folder, f"{data}-0", "prepared"))
    figures, table, mains = {}, [], {}
    for name, facts in prepared.scenarios.items():
        slices = slices_of(prepared, name, test[name])
        mains[name] = f"{name}.{facts.tasks[0]}"
        for task in facts.tasks:
            found = compare_task(facts, task, runs[name], test[name], slices)
            figures |= {f"{name}.{task}.{key}": value for key, value in found.items()}
            table.append(row_of(f"{name}.{task}", found))
    figures |= {f"{data}.{key}": value for key, value in macro(figures, mains).items()}
    return figures, table


def main(
    quick: Annotated[bool, typer.Option(help="One seed, one epoch.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data sets.")] = "../shared/data",
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each data set.")] = 3,
    data: Annotated[list[str] | None, typer.Option(help="Data sets; by default both.")] = None,
) -> None:
    """Train jointly and alone where scenarios have the same people, and compare."""
    folder, base = str(Path(storage or tempfile.mkdtemp()).resolve()), (TOP / root).resolve()
    figures: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    numbers = range(1 if quick else seeds)
    for own in data or DATA:
        found, rows = measure_data(own, base, folder, numbers, quick=quick)
        figures, table = figures | found, table + rows
    Console().print(markdown_table(table), soft_wrap=True)
    write_result("shared_users", figures, out, table=table, seeds=len(numbers), quick=quick)


if __name__ == "__main__":
    typer.run(main)
