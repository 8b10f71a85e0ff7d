"""What does the quickstart give? Its test metrics beside item popularity, and its time.

python -m benchmarks.quickstart [--out FILE]
"""

import tempfile
import time
from typing import Annotated, Any

import typer

from benchmarks.common import TOP, write_result
from jobs.common import teller
from mtrec_ray.project.load import load_project
from mtrec_ray.stages.pipeline import run_pipeline


def table_row(scenario: str, task: str, found: dict[str, float]) -> dict[str, str]:
    """AUC and NE beside the item's past rate, or RMSE beside the training mean."""
    main, other = ("rmse", "mean_rmse") if "rmse" in found else ("auc", "popularity_auc")
    return {
        "scenario": scenario,
        "task": task,
        "metric": main.upper(),
        "chosen model": f"{found[main]:.4f}",
        "item rate (regression: mean)": f"{found[other]:.4f}",
        "test rows": f"{found['rows']:,.0f}",
    }


def main(
    quick: Annotated[bool, typer.Option(help="One epoch.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Run the quickstart and write its metrics."""
    overrides = ["training.epochs=1"] if quick else []
    project = load_project(TOP / "jobs" / "quickstart.yaml", overrides)
    started = time.monotonic()
    found: dict[str, Any] = run_pipeline(project, tempfile.mkdtemp(), teller())
    figures = {"seconds": time.monotonic() - started, "joint_score": found["joint_score"]}
    rows = []
    for scenario, tasks in found["metrics"].items():
        for task, values in tasks.items():
            rows.append(table_row(scenario, task, values))
            for metric in ("auc", "popularity_auc", "gauc", "rmse", "mean_rmse", "ne"):
                if metric in values:
                    figures[f"{scenario}.{task}.{metric}"] = values[metric]
    for scenario, values in found["ranking"].items():
        for metric, gain in values["gain"].items():
            for model, key in (("list", "model"), ("popularity",) * 2, ("rival", gain["rival"])):
                figures[f"{scenario}.{metric}.{model}"] = values[key][metric]
            figures[f"{scenario}.{metric}.gain_low"] = gain["low"]
            figures[f"{scenario}.{metric}.gain_high"] = gain["high"]
    write_result("quickstart", figures, out, table=rows, quick=quick)


if __name__ == "__main__":
    typer.run(main)
