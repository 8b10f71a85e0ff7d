"""What is a joint model worth to a scenario that comes later, whose people it knows elsewhere?

    python -m benchmarks.newcomer [--quick] [--name personal_care --name household ..]
                                  [--root DATA] [--storage DIR] [--out FILE]

From `jobs/grocery.yaml`: joint training on thirteen departments; the fourteenth joins with 0 of its
rows (the general head), 64, 1,024 and all. Counts and histories of its rows are live: what is few
are the rows that are learned from. Test AUC of each task, beside

    popularity    the item's past count, which needs no learning
    alone         the same network of this scenario only, from as many rows, two epochs like joined
    trees         LightGBM on the same columns and texts, from as many rows, stopped on valid
    evaluated     from all rows: what `evaluate` says, with trees, labels and sources beside it

One seed. With `--quick`: one department, one epoch. An interrupted run goes on.
"""

import tempfile
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.common import TOP, write_result
from benchmarks.joining import SHOTS, leave_out
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import read_columns
from mtrec_ray.evaluation.metrics import roc_auc
from mtrec_ray.project.load import load_project, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.evaluate import run_evaluate
from mtrec_ray.stages.finetuning.joint_run import JointRun, open_joint_run
from mtrec_ray.training.boosted_trees import (
    MIN_DATA_IN_LEAF,
    Columns,
    Examples,
    examples,
    fit_trees,
    num_rarer_labels,
)

NAMES = ("personal_care", "household", "babies")
EVERYTHING = 10**9
LEAST_POSITIVES = 200  # of test, as in `shared_users.py`


def open_run(base: Project, storage: str, name: str) -> JointRun:
    """The joint model without a scenario, and that scenario's data."""
    tree = base.dump()
    tree["run"]["name"] = f"without-{name}"
    return open_joint_run(Project.model_validate(tree), storage)


def trees_by_shots(project: Project, prepared: Prepared, name: str) -> dict[str, dict[str, float]]:
    """Test AUC of LightGBM by number of rows and task; none of a task whose rows have one label."""
    columns = Columns.of(project, prepared, name)
    train, valid, test = (
        examples(prepared, columns, name, split, EVERYTHING) for split in ("train", "valid", "test")
    )
    found: dict[str, dict[str, float]] = {}
    for shots in SHOTS[1:]:
        rows = len(train.user) if shots == "all" else int(shots)
        found[shots] = trees_of(prepared, name, (first(train, rows), valid, test), columns)
    return found


def first(rows: Examples, num: int) -> Examples:
    """So many rows, drawn over all shards; whose order is random."""
    place = np.random.default_rng(0).permutation(len(rows.user))[:num]
    return Examples(rows.inputs[place], rows.labels[place], rows.user[place])


def trees_of(
    prepared: Prepared, name: str, splits: tuple[Examples, Examples, Examples], columns: Columns
) -> dict[str, float]:
    """Test AUC by task, of trees that are fitted on the first split and stopped on the second."""
    train, valid, test = splits
    found = {}
    for i, (task, kind) in enumerate(prepared.scenarios[name].kinds.items()):
        if min(num_rarer_labels(kind, part.of_task(i)[1]) for part in splits):
            trees = fit_trees(
                kind, train.of_task(i), valid.of_task(i), columns.num_categorical,
                seed=0, num_threads=2, min_data_in_leaf=least_rows(len(train.of_task(i)[1])),
            )  # fmt: skip
            inputs, label = test.of_task(i)
            found[task] = roc_auc(label, np.asarray(trees.predict(inputs)))
    return found


def least_rows(num: int) -> int:
    """Rows of a leaf at least: few where there are few rows, or no tree would split."""
    return min(MIN_DATA_IN_LEAF, max(num // 20, 2))


def popularity_of(prepared: Prepared, name: str) -> dict[str, float]:
    """Test AUC by task of the column that ranks items by popularity."""
    facts, found = prepared.scenarios[name], {}
    parts = list(read_columns(prepared.shard_paths(name, "test"), ("labels", "numeric")))
    labels, numeric = (np.concatenate([p[k] for p in parts]) for k in ("labels", "numeric"))
    for i, task in enumerate(facts.tasks):
        known = np.isfinite(labels[:, i])
        label = labels[known, i]
        if known.any() and 0 < label.mean() < 1:
            score = numeric[known, facts.numeric_names.index(facts.popularity[task])]
            found[task] = roc_auc(label, np.nan_to_num(score))
            found[f"{task}.positives"] = float(label.sum())
    return found


def measure(base: Project, storage: str, name: str) -> dict[str, dict[str, float]]:
    """Test AUC of a scenario that joins: by model and number of rows, by task."""
    curve = leave_out(base, storage, name)
    joint_run = open_run(base, storage, name)
    prepared = joint_run.data(name)
    found = {"popularity": popularity_of(prepared, name)}
    for label, tasks in curve.items():
        shots, _, way = label.partition(" rows, ")
        found[f"{shots}.{way}"] = {task: m["auc"] for task, m in tasks.items() if "auc" in m}
    found["all.evaluated"] = evaluated(base, storage, name)
    trees = trees_by_shots(base, prepared, name)
    return found | {f"{shots}.trees": own for shots, own in trees.items()}


def evaluated(base: Project, storage: str, name: str) -> dict[str, float]:
    """Test AUC by task of the predictions that a user gets of the scenario that joined."""
    words = {"run.name": f"without-{name}", "training.teacher.share": 0.0, "finetune.epochs": 2}
    words |= {"recommend.ranking_users": 0}
    found = run_evaluate(with_overrides(base, words), storage, teller())
    return {task: m["auc"] for task, m in found["metrics"][name].items() if "auc" in m}


def row_of(name: str, task: str, found: dict[str, dict[str, float]]) -> dict[str, str]:
    """A row of the table."""
    ways = ["popularity", "0.joined"]
    ways += [f"{shots}.{way}" for shots in SHOTS[1:] for way in ("joined", "alone", "trees")]
    ways.append("all.evaluated")
    row = {"task": f"{name}.{task}"}
    for way in ways:
        value = found.get(way, {}).get(task)
        row[way.replace(".", ", ")] = "-" if value is None else f"{value:.4f}"
    return row


def main(
    quick: Annotated[bool, typer.Option(help="One department, one epoch.")] = False,
    name: Annotated[list[str] | None, typer.Option(help="Departments that come later.")] = None,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "../shared/data/grocery",
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
) -> None:
    """Leave departments out, let them join, and compare."""
    words = [f"root={(TOP / root).resolve()}", *(["training.epochs=1"] if quick else [])]
    base = load_project(TOP / "jobs" / "grocery.yaml", words)
    folder = files.join(storage or tempfile.mkdtemp())
    figures: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    for one in name or (NAMES[:1] if quick else NAMES):
        found = measure(base, folder, one)
        for task in base.scenarios[one].tasks:
            if found["popularity"].get(f"{task}.positives", 0) >= LEAST_POSITIVES:
                table.append(row_of(one, task, found))
                figures |= {f"{one}.{task}.{w}": v[task] for w, v in found.items() if task in v}
    Console().print(markdown_table(table), soft_wrap=True)
    write_result("newcomer", figures, out, table=table, quick=quick)


if __name__ == "__main__":
    typer.run(main)
