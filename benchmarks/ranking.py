"""Are the lists better than what a user would build instead?

    python -m benchmarks.ranking [--quick] [--seeds 3] [--data real4 --data grocery --data anime]
                                 [--root DATA] [--storage DIR] [--out FILE]

From the raw Parquet of each data set: prepare, joint training (two epochs, frozen encoder, no
teacher; of real4 two epochs of 400,000 rows), and `evaluate`, which ranks the whole catalogue for
users of test at the moment of their first test row.
Rivals are fitted on train and valid, and see what happened up to that moment: popularity, that of
the last 1, 7 and 30 days, the newest first, item-to-item cosines, EASE, neighbours by frozen text.
The best of them on test, apart for recall and NDCG, is the one that is beside the list.

With `--quick`: one seed, one epoch. Seeds are those of training; an interrupted run goes on.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import typer
import yaml
from rich.console import Console

from benchmarks.common import TOP, write_result
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.evaluate import run_evaluate
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.train import run_train

DATA = ("real4", "grocery", "anime")
METRICS = ("recall", "ndcg")
ROWS_PER_EPOCH = 400_000  # of real4, whose two epochs would be 2.3 million rows


def project_of(data: str, root: Path, seed: int, *, quick: bool) -> Project:
    """Returns the project of a data set, with a seed of training."""
    tree = yaml.safe_load((TOP / "jobs" / f"{data}.yaml").read_text()) | {"root": str(root)}
    tree.pop("search", None)
    if data == "real4":
        tree["training"] |= {"teacher": {"share": 0}, "rows_per_epoch": ROWS_PER_EPOCH}
    tree["run"] = {"name": f"{data}-{seed}", "num_workers": 2}
    tree["opinions"] = {"trees": False, "sources": False, "labels": False}
    tree["training"] |= {"seed": seed} | ({"epochs": 1} if quick else {})
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(tree, file, sort_keys=False)  # the first task is the main one
        file.flush()
        return load_project(file.name, [])


def run_once(project: Project, folder: str, prepared: str | None) -> dict[str, Any]:
    """Prepare (or take what was prepared), train and evaluate; returns the evaluation."""
    target = Path(folder, project.run.name, "prepared")
    if prepared and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(prepared, target_is_directory=True)
    for stage in (run_prepare, run_train):
        stage(project, folder, teller())
    return run_evaluate(project, folder, teller())


def figures_of(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns a scenario's means over seeds, and the widest interval of the gain over seeds."""
    ranking = [run["ranking"][name] for run in runs]
    found = {}
    for metric in METRICS:
        gains = [r["gain"][metric] for r in ranking]
        found |= {
            f"{name}.{metric}": mean(r["model"][metric] for r in ranking),
            f"{name}.rival_{metric}": mean(
                r[g["rival"]][metric] for r, g in zip(ranking, gains, strict=True)
            ),
            f"{name}.{metric}_gain_low": min(g["low"] for g in gains),
            f"{name}.{metric}_gain_high": max(g["high"] for g in gains),
            f"{name}.{metric}_network": mean(r["network"][metric] for r in ranking),
        }
    cold = [r["cold_recall"] for r in ranking if r["cold_recall"] is not None]
    task = ranking[0]["task"]
    metrics = [run["metrics"][name][task] for run in runs]
    found |= {f"{name}.{key}": mean(m[key] for m in metrics) for key in ("auc", "gauc")}
    found |= {f"{name}.{key}": float(ranking[0][key]) for key in ("users", "items")}
    return found | ({f"{name}.cold_recall": mean(cold)} if cold and np.isfinite(cold).all() else {})


def mean(values: Any) -> float:
    """Returns the mean of some numbers."""
    return float(np.mean(list(values)))


def row_of(name: str, figures: Mapping[str, float], first: Mapping[str, Any]) -> dict[str, str]:
    """Returns a scenario's row of the table."""
    row = {"scenario": name, "users": f"{first['users']:,}", "items": f"{first['items']:,}"}
    for metric, head in (("recall", "recall@20"), ("ndcg", "NDCG@20")):
        ours, rival = figures[f"{name}.{metric}"], figures[f"{name}.rival_{metric}"]
        low, high = figures[f"{name}.{metric}_gain_low"], figures[f"{name}.{metric}_gain_high"]
        row[head] = f"**{ours:.4f}**" if ours > rival else f"{ours:.4f}"
        row[f"best rival ({head})"] = f"{rival:.4f} {first['gain'][metric]['rival']}"
        row[f"{head} gained"] = f"{ours - rival:+.4f} [{low:+.4f}, {high:+.4f}]"
    cold = figures.get(f"{name}.cold_recall")
    row["recall of new items"] = "-" if cold is None else f"{cold:.4f}"
    return row


def counts(figures: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Returns in how many scenarios the list is ahead: in both metrics, in each, and surely."""
    ahead = {m: [figures[f"{n}.{m}"] > figures[f"{n}.rival_{m}"] for n in names] for m in METRICS}
    sure = {m: [figures[f"{n}.{m}_gain_low"] > 0 for n in names] for m in METRICS}
    both = [all(found) for found in zip(*ahead.values(), strict=True)]
    return {
        "scenarios_ahead": float(sum(both)),
        **{f"scenarios_ahead_{m}": float(sum(ahead[m])) for m in METRICS},
        **{f"scenarios_surely_ahead_{m}": float(sum(sure[m])) for m in METRICS},
    }


def main(
    quick: Annotated[bool, typer.Option(help="One seed, one epoch.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data sets.")] = "../shared/data",
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each data set.")] = 3,
    data: Annotated[list[str] | None, typer.Option(help="Data sets; by default all.")] = None,
) -> None:
    """Make lists for users of test in every scenario, and compare them with the best rival's."""
    folder, base = str(Path(storage or tempfile.mkdtemp()).resolve()), (TOP / root).resolve()
    figures: dict[str, float] = {}
    table, numbers = [], range(1 if quick else seeds)
    for own in data or DATA:
        runs: list[dict[str, Any]] = []
        for seed in numbers:
            project = project_of(own, base / own, seed, quick=quick)
            prepared = files.join(folder, f"{own}-0", "prepared") if seed else None
            runs.append(json.loads(json.dumps(run_once(project, folder, prepared))))
        ray.shutdown()
        for name, first in runs[0]["ranking"].items():
            figures |= figures_of(name, runs)
            table.append(row_of(name, figures, first))
    figures |= {"scenarios": float(len(table)), **counts(figures, [r["scenario"] for r in table])}
    Console().print(markdown_table(table), soft_wrap=True)
    write_result("ranking", figures, out, table=table, seeds=len(numbers), quick=quick)


if __name__ == "__main__":
    typer.run(main)
