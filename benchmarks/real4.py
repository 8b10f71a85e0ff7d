"""How does the joint model do on four real scenarios, against what a user would build instead?

    python -m benchmarks.real4 [--quick] [--out FILE] [--root real4]

Runs the pipeline of `jobs/real4.yaml` and puts its test metrics beside the reference baselines of
`BASELINES.md` in the data's folder (computed once, apart from this project):

    B0  smoothed past rate of the item                 B3  B1 with frozen MiniLM features
    B1  LightGBM on past counts and rates              B4  B2 with frozen MiniLM features
    B2  network on statistics and ids, no text
"""

import re
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.common import TOP, write_result
from jobs.common import teller
from mtrec_ray.config import load_project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.pipeline import run_pipeline

BASELINES = ("B0", "B1", "B2", "B3", "B4")
QUICK = ("training.epochs=2", "training.rows_per_epoch=100000")

Scores = dict[str, float]


def read_baselines(path: Path) -> dict[str, dict[str, Scores]]:
    """Figures of `BASELINES.md`: `{"shop.buy": {"B0": {"auc": .., "gauc": ..}, ..}}`, or `rmse`."""
    found: dict[str, dict[str, Scores]] = {}
    for line in path.read_text().splitlines():
        cells = [c.strip().strip("*") for c in line.strip().strip("|").split("|")]
        if len(cells) != 7 or not re.match(r"[\d-]", cells[2]) or cells[2].startswith("---"):
            continue
        scenario, task, *values = cells
        scores = {name: parse_cell(v) for name, v in zip(BASELINES, values, strict=True)}
        found[f"{scenario}.{task}"] = {n: s for n, s in scores.items() if s}
    return found


def parse_cell(text: str) -> Scores:
    """`0.7242 (0.729)` is AUC (GAUC), `1.0019` an RMSE, `-` nothing."""
    numbers = [float(n) for n in re.findall(r"\d+\.\d+", text)]
    if len(numbers) == 2:
        return {"auc": numbers[0], "gauc": numbers[1]}
    return {"rmse": numbers[0]} if numbers else {}


def best(scores: dict[str, Scores], metric: str) -> float:
    """The best baseline by a metric."""
    values = [s[metric] for s in scores.values()]
    return min(values) if metric == "rmse" else max(values)


def compare(
    metrics: dict[str, dict[str, Scores]], baselines: dict[str, dict[str, Scores]]
) -> tuple[Scores, list[dict[str, str]]]:
    """Flat figures, and a table row a task with the joint model beside the baselines."""
    figures: Scores = {}
    rows: list[dict[str, str]] = []
    for scenario, tasks in metrics.items():
        for task, found in tasks.items():
            key = f"{scenario}.{task}"
            main = "rmse" if "rmse" in found else "auc"
            for metric in ("auc", "gauc", "ne", "rmse", "popularity_auc", "mean_rmse"):
                if metric in found:
                    figures[f"{key}.{metric}"] = found[metric]
            figures[f"{key}.best_baseline"] = best(baselines[key], main)
            rows.append(table_row(scenario, task, found, baselines[key], main))
    figures["tasks_total"] = len(rows)
    figures["tasks_ahead"] = sum(row["joint"].startswith("**") for row in rows)
    figures["tasks_ahead_of_b0"] = sum(
        ahead(found, baselines[f"{s}.{t}"]["B0"])
        for s, tasks in metrics.items()
        for t, found in tasks.items()
    )
    return figures, rows


def ahead(found: Scores, other: Scores) -> bool:
    """Whether a model is better than another by RMSE or AUC."""
    if "rmse" in other:
        return found["rmse"] < other["rmse"]
    return found["auc"] > other["auc"]


def table_row(
    scenario: str, task: str, found: Scores, baselines: dict[str, Scores], main: str
) -> dict[str, str]:
    """AUC (GAUC) or RMSE of the joint model and the baselines; bold where ahead of the best."""
    joint = cell(found)
    top = best(baselines, main)
    wins = found[main] < top if main == "rmse" else found[main] > top
    row = {"scenario": scenario, "task": task, "joint": f"**{joint}**" if wins else joint}
    return row | {name: cell(baselines.get(name, {})) for name in BASELINES}


def cell(scores: Scores) -> str:
    """`0.7386 (0.736)`, `0.8869` or `-`."""
    if "rmse" in scores:
        return f"{scores['rmse']:.4f}"
    return f"{scores['auc']:.4f} ({scores['gauc']:.3f})" if scores else "-"


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rows: ends in 10 minutes.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "",
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
    override: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Run the pipeline on real4 and write the comparison."""
    words = [*(QUICK if quick else ()), *([f"root={root}"] if root else ()), *(override or [])]
    project = load_project(TOP / "jobs" / "real4.yaml", words)
    baselines = read_baselines(Path(project.root) / "BASELINES.md")
    started = time.monotonic()
    found: dict[str, Any] = run_pipeline(project, storage or tempfile.mkdtemp(), teller())
    figures, rows = compare(found["metrics"], baselines)
    figures |= {"joint_score": found["joint_score"], "seconds": time.monotonic() - started}
    Console().print(markdown_table(rows), soft_wrap=True)
    write_result("real4", figures, out, table=rows, quick=quick)


if __name__ == "__main__":
    typer.run(main)
