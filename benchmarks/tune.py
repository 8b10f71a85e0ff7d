"""What does a search find? Own, uniform and chosen weights by scenario, on valid and test.

python -m benchmarks.tune [--project quickstart] [--quick] [--out FILE] [--storage DIR] [--root DIR]

The search of a shipped project file, with the confirmation that the file asks for, by default of
three seeds (real4: two, of 300,000 rows an epoch, which stand for whole runs); the front's plots go
beside the JSON (`tune_PROJECT.json`).
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common import RESULTS, TOP, write_result
from jobs.common import absolute, teller
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.tune import run_tune

SEEDS = 3
# Of the runs that confirm.
BUDGET = {"real4": ("training.rows_per_epoch=300000", "search.confirm_seeds=2")}
QUICK = ("search.trials=4", "search.confirm_seeds=1", "search.epochs=1", "training.epochs=1")


def figures_of(found: dict[str, Any], seconds: float) -> dict[str, float]:
    """Seconds, the front's volume, and gains of chosen over uniform weights."""
    gains = found["confirmed"]["gains"]
    searched = {row["score"]: row for row in found["comparison"] if row["split"] == "in the search"}
    figures = {
        "seconds": seconds,
        "trials": found["trials"],
        "trials_stopped": found["by_status"].get("stopped", 0),
        "trials_failed": found["by_status"].get("failed", 0),
        "front_size": len(found["front"]),
        "hypervolume": found["hypervolume"],
        "gain_in_the_search": float(searched["joint"]["uniform"])
        - float(searched["joint"]["chosen"]),
        "gain_on_test": sum(gains) / len(gains),
        "least_gain_on_test": min(gains),
        "better_on_all_seeds": float(found["confirmed"]["better_on_all_seeds"]),
    }
    for name, variant in found["confirmed"]["variants"].items():
        for split in ("valid", "test"):
            for score, value in variant[split].items():
                figures[f"{name}.{split}.{score}"] = value["mean"]
                figures[f"{name}.{split}.{score}.spread"] = value["spread"]
    return figures


def project_of(name: str, *, quick: bool, root: str) -> Project:
    """A shipped project, with a confirmation."""
    words = [*BUDGET.get(name, ()), *(QUICK if quick else ())]
    words += [f"root={root}"] if root else []
    project = load_project(TOP / "jobs" / f"{name}.yaml", words)
    if project.search.confirm_seeds:
        return project
    return load_project(TOP / "jobs" / f"{name}.yaml", [*words, f"search.confirm_seeds={SEEDS}"])


def keep_plots(found: dict[str, Any], name: str, out: str | None) -> list[str]:
    """Copy the plots beside the result; returns their names."""
    folder = Path(out).parent if out else RESULTS
    names = []
    for plot in sorted((Path(found["folder"]) / "plots").glob("*.png")):
        names.append(f"{name}_{plot.name}")
        shutil.copy(plot, folder / names[-1])
    return names


def main(
    project: Annotated[str, typer.Option(help="quickstart or real4.")] = "quickstart",
    quick: Annotated[bool, typer.Option(help="Four trials, one epoch, one seed.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "",
) -> None:
    """Search, confirm, and write what came out."""
    name = f"tune_{project}"
    asked = project_of(project, quick=quick, root=root)
    started = time.monotonic()
    found = run_tune(asked, absolute(storage or tempfile.mkdtemp()), teller())
    figures = figures_of(found, time.monotonic() - started)
    write_result(
        name, figures, out, table=found["comparison"], chosen=found["chosen"],
        importance=found["importance"], seeds=asked.search.confirm_seeds, quick=quick,
        trial=[
            asked.search.epochs or asked.training.epochs,
            asked.search.rows_per_epoch or asked.training.rows_per_epoch,
        ],
        whole_run=[asked.training.epochs, asked.training.rows_per_epoch],
        plots=keep_plots(found, name, out),
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
