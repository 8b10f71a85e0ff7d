"""What do bf16 and int8 cost in AUC, and bring in speed, when a trained model predicts?

    python -m benchmarks.inference [--quick] [--out FILE] [--root real4] [--storage DIR]

The joint model of `jobs/real4.yaml` (trained first, or found in the storage) encodes all item texts
and scores all rows of valid in fp32, bf16 and int8 (torchao: the encoder's linear maps), in one
process. Figures: texts/s and rows/s of each, over those of fp32, and the change of every AUC.
"""

import multiprocessing
import tempfile
import time
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.common import TOP, write_result
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.evaluation.metrics import flat
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.training.validation import validate

PRECISIONS = ("fp32", "bf16", "int8")
QUICK = ("training.epochs=1", "training.rows_per_epoch=65536")


def train_here(project: Project, storage: str) -> None:
    """Prepare and train in this process."""
    from mtrec_ray.stages.prepare import run_prepare
    from mtrec_ray.stages.train import run_train

    run_prepare(project, storage, teller())
    run_train(project, storage, teller())


def measure(project: Project, storage: str, precision: str) -> dict[str, float]:
    """Speeds and valid metrics in a precision."""
    from mtrec_ray.stages.trained_model import load_trained

    tree = project.dump()
    tree["evaluation"]["precision"] = precision
    tree["run"]["cpus_per_worker"] = multiprocessing.cpu_count()
    run = files.join(storage, project.run.name)
    prepared = load_prepared(files.join(run, "prepared"))
    model, vectors = load_trained(
        parse_project(tree), prepared.folder, files.join(run, "joint", "best")
    )
    started = time.monotonic()
    vectors.refresh()
    encoded = time.monotonic()
    metrics = flat(validate(model, vectors, prepared, "valid"))
    scored = time.monotonic()
    rows = sum(f.num_rows("valid") for f in prepared.scenarios.values())
    wanted = {k: v for k, v in metrics.items() if k.endswith(("/auc", "/rmse"))}
    speeds = {
        "texts_per_s": vectors.num_items / (encoded - started),
        "rows_per_s": rows / (scored - encoded),
    }
    return speeds | wanted


def main(
    quick: Annotated[bool, typer.Option(help="A short training: ends in 5 minutes.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "",
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
) -> None:
    """Measure all precisions and write the result."""
    words = [*(QUICK if quick else ()), *([f"root={root}"] if root else ())]
    project = load_project(TOP / "jobs" / "real4.yaml", words)
    folder = storage or tempfile.mkdtemp()
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        pool.apply(train_here, (project, folder))
        found = {p: pool.apply(measure, (project, folder, p)) for p in PRECISIONS}
    base, figures, table = found["fp32"], {}, []
    for precision, values in found.items():
        figures |= {f"{precision}.{k.replace('/', '.')}": v for k, v in values.items()}
        change = {k: v - base[k] for k, v in values.items() if k.endswith(("auc", "rmse"))}
        largest = max(change, key=lambda k: abs(change[k]))
        figures[f"{precision}.largest_change"] = abs(change[largest])
        for speed in ("texts_per_s", "rows_per_s"):
            figures[f"{precision}.{speed}_over_fp32"] = values[speed] / base[speed]
        table.append(
            {
                "precision": precision,
                "texts/s": f"{values['texts_per_s']:,.0f}",
                "over fp32": f"{values['texts_per_s'] / base['texts_per_s']:.2f} x",
                "rows/s": f"{values['rows_per_s']:,.0f}",
                "largest change": f"{change[largest]:+.5f} ({largest})",
            }
        )
    Console().print(markdown_table(table), soft_wrap=True)
    write_result("inference", figures, out, table=table, quick=quick)


if __name__ == "__main__":
    typer.run(main)
