"""Fine-tuning k scenarios side by side: how long, over k times one? And what is stored?

    python -m benchmarks.fanout [--quick] [--k 4] [--out FILE] [--storage DIR]

One joint model of k scenarios (the sample world's, again and again under other names) on a local
Ray with a logical CPU for each run's worker. Each scenario is fine-tuned by itself, one after
another, and then all of them side by side, after a first run that starts Ray's processes for both.
`parallel_over_serial` is the wall time of the second way over that of the first. On few cores the
runs share them: what is gained is the waiting of one run (starting workers, storing, deciding)
behind the computing of another; k machines would gain the rest.
"""

import os
import tempfile
import time
from typing import Annotated, Any

import ray
import typer

from benchmarks.common import TOP, write_result
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.finetune import Options, run_finetune
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.train import run_train


def copies(base: Project, k: int, *, quick: bool) -> Project:
    """A project of k scenarios, copies of those of another under names of their own."""
    tree = base.dump()
    names = list(tree["scenarios"])
    tree["scenarios"] = {
        f"{names[i % len(names)]}_{i}": tree["scenarios"][names[i % len(names)]] for i in range(k)
    }
    tree["training"] |= {"epochs": 1, "rows_per_epoch": 20_000}
    rows = 20_000 if quick else 100_000
    tree["finetune"] |= {"epochs": 2, "patience": 2, "rows_per_epoch": rows, "num_workers": 1}
    tree["run"] |= {"name": "fanout", "num_workers": max(k - 2, 1)}  # a local Ray has two CPUs more
    return parse_project(tree)


def timed(project: Project, storage: str, names: tuple[str, ...]) -> tuple[float, dict[str, Any]]:
    """Seconds of fine-tuning some scenarios anew, and the record."""
    for name in names:
        files.remove_folder(files.join(storage, project.run.name, "scenarios", name))
    started = time.monotonic()
    found = run_finetune(project, storage, teller(), Options(names))
    return time.monotonic() - started, found


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rows: ends in 5 minutes.")] = False,
    k: Annotated[int, typer.Option(help="Scenarios.")] = 4,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
) -> None:
    """Measure both ways and write the result."""
    base = load_project(TOP / "jobs" / "quickstart.yaml")
    project = copies(base, k, quick=quick)
    folder = storage or tempfile.mkdtemp()
    run_prepare(project, folder, teller())
    run_train(project, folder, teller())
    names = tuple(project.scenarios)
    timed(project, folder, names[:1])
    each = {name: timed(project, folder, (name,))[0] for name in names}
    parallel, found = timed(project, folder, names)
    ray.shutdown()
    sizes = found["storage"]
    deltas = sizes["delta_bytes"]
    figures = {
        "k": k,
        "cores": os.cpu_count() or 1,
        "serial_seconds": sum(each.values()),
        "parallel_seconds": parallel,
        "parallel_over_serial": parallel / sum(each.values()),
        "base_megabytes": sizes["base_bytes"] / 1e6,
        "encoder_megabytes": sizes["encoder_bytes"] / 1e6,
        "delta_megabytes": sum(deltas.values()) / max(len(deltas), 1) / 1e6,
        "stored_over_full_copies": sizes["all_bytes"] / max(sizes["full_copies_bytes"], 1),
    }
    table = [
        {"scenario": n, "seconds alone": f"{s:.0f}", "delta KB": f"{deltas.get(n, 0) / 1e3:,.0f}"}
        for n, s in each.items()
    ]
    print(markdown_table(table))
    write_result("fanout", figures, out, table=table, quick=quick)


if __name__ == "__main__":
    typer.run(main)
