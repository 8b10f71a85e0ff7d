"""What does Ray Train cost over plain `torchrun`?

    python -m benchmarks.ray_cost [--quick] [--out FILE]

The same training loop on the same prepared rows in the same order, ranks of one thread each over
gloo: started by `torchrun`, with the rows in each rank's memory, and by the train job, with the
rows in the object store. In turns, three times each. The fastest epoch of all rounds counts: what
else a machine does makes epochs slower, never faster. With one rank, and with two: on two cores
these leave none to Ray's own processes.

    RANKS.ray_over_torchrun    rows/s of the fastest epoch, Ray over torchrun; without RANKS: of two
    RANKS.ray_over_torchrun_median    the same of the medians of all epochs but the first
    RANKS.ray_start_s, RANKS.torchrun_start_s    from the command to the first step
    RANKS.ray_cores            CPU seconds a second, after the first epoch, of Ray's processes that
                               do not train: raylet, control store, dashboard, log monitor, actors
    same_losses                1 if both ended with the same losses, to 1e-5
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
import typer
import yaml

from benchmarks.common import TOP, write_result
from benchmarks.local import LocalContext, prepared_by_process
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.project.load import load_project, parse_project, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.training import loop

Summary = dict[str, Any]

RANKS = (1, 2)
ROUNDS, EPOCHS = 3, 5
SAMPLE_SECONDS = 1.0
FULL = {"users": 2_000, "items": 1_000, "events": 20_000}
QUICK = {"users": 1_000, "items": 300, "events": 10_000}


def project_of(sizes: dict[str, int]) -> Project:
    """The quickstart's project with a larger world; the encoder is frozen."""
    tree = load_project(TOP / "jobs" / "quickstart.yaml").dump()
    tree["sample_world"] |= sizes
    tree["model"]["encoder"] |= {"trainable": "none"}
    tree["training"] |= {"epochs": EPOCHS}
    tree["run"] |= {"name": "cost", "cache": "object_store"}
    return parse_project(tree)


def by_torchrun(config: Path, prepared: str, out: Path, ranks: int) -> Summary:
    """Train by torchrun: its summary, and the seconds until its first step."""
    words = ["--nproc-per-node", str(ranks), "-m", "benchmarks.ray_cost", "rank"]
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, str(config), prepared, str(out)],
        cwd=TOP, env=os.environ | {"PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}, check=True,
        capture_output=True,
    )  # fmt: skip
    found = json.loads(out.read_text())
    return found | {"start_s": found["speed"][0]["started"] - began}


def rank(config: Path, prepared: str, out: Path) -> None:
    """What each rank of torchrun runs."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rows = load_prepared(prepared)
    summary = loop.train(load_project(config), rows, LocalContext(rows))
    if dist.get_rank() == 0:
        out.write_text(json.dumps({k: summary[k] for k in ("speed", "curve")}))
    dist.destroy_process_group()


def by_ray(config: Path, storage: Path, prepared: str, name: str) -> Summary:
    """Train by the train job: its summary, seconds until its first step, cores that Ray takes."""
    project = yaml.safe_load(config.read_text())
    project["run"]["name"] = name
    own = storage / f"{name}.yaml"
    own.write_text(yaml.safe_dump(project))
    folder = storage / name
    folder.mkdir()
    (folder / "prepared").symlink_to(prepared)
    began = time.time()
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", "--config", str(own), "--storage", str(storage)],
        cwd=TOP, env=os.environ | {"PYTHONPATH": str(TOP)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    used: list[tuple[float, float]] = []
    while job.poll() is None:
        used.append((time.time(), ray_seconds(psutil.Process(job.pid))))
        time.sleep(SAMPLE_SECONDS)
    if job.returncode:
        assert job.stderr is not None
        raise RuntimeError(job.stderr.read().decode()[-3000:])
    found = json.loads((folder / "joint" / "finished.json").read_text())
    second, last = found["speed"][1], found["speed"][-1]
    return found | {
        "start_s": found["speed"][0]["started"] - began,
        "cores": slope(used, second["started"], last["started"] + last["seconds"]),
    }


def ray_seconds(job: psutil.Process) -> float:
    """CPU seconds so far of all processes below the job that do not train."""
    total = 0.0
    for process in job.children(recursive=True):
        try:
            if "RayTrainWorker" not in " ".join(process.cmdline()):
                total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def slope(used: list[tuple[float, float]], start: float, end: float) -> float:
    """CPU seconds a second between two times; processes that ended in between are not counted."""
    inside = [(t, s) for t, s in used if start <= t <= end]
    steps = [(b[0] - a[0], max(b[1] - a[1], 0.0)) for a, b in itertools.pairwise(inside)]
    return sum(s for _, s in steps) / max(sum(t for t, _ in steps), 1e-9)


def speeds_of(summaries: Sequence[Summary]) -> list[float]:
    """Rows/s of all epochs but the first, which warms up."""
    return [epoch["rows_per_s"] for s in summaries for epoch in s["speed"][1:]]


def losses(summary: Summary) -> list[float]:
    """The training losses of every epoch."""
    return [v for record in summary["curve"] for v in record["train_loss"].values()]


def measure(storage: Path, project: Project) -> dict[str, float]:
    """Both ways, in turns, with one rank and with two."""
    prepared = prepared_by_process(project, str(storage)).folder
    figures: dict[str, float] = {}
    same = True
    for ranks in RANKS:
        config = storage / f"ranks-{ranks}.yaml"
        tree = with_overrides(project, {"run.num_workers": ranks}).dump()
        config.write_text(yaml.safe_dump(tree))
        rounds: list[dict[str, Summary]] = []
        for number in range(ROUNDS):
            rounds.append(
                {
                    "torchrun": by_torchrun(config, prepared, storage / "rank.json", ranks),
                    "ray": by_ray(config, storage, prepared, f"ray-{ranks}-{number}"),
                }
            )
            same &= np.allclose(*(losses(s) for s in rounds[-1].values()), rtol=1e-5)
            told = {n: (speeds_of([s]), s["start_s"]) for n, s in rounds[-1].items()}
            print(ranks, told, rounds[-1]["ray"]["cores"], flush=True)
        found: dict[str, float] = {}
        for name in ("ray", "torchrun"):
            own = [r[name] for r in rounds]
            found[f"{name}_rows_per_s"] = max(speeds_of(own))
            found[f"{name}_median_rows_per_s"] = float(np.median(speeds_of(own)))
            found[f"{name}_start_s"] = float(np.median([s["start_s"] for s in own]))
        found["ray_over_torchrun"] = found["ray_rows_per_s"] / found["torchrun_rows_per_s"]
        found["ray_over_torchrun_median"] = (
            found["ray_median_rows_per_s"] / found["torchrun_median_rows_per_s"]
        )
        found["ray_cores"] = float(np.median([r["ray"]["cores"] for r in rounds]))
        figures |= {f"{ranks}.{key}": value for key, value in found.items()}
    headline = {"ray_over_torchrun": figures[f"{RANKS[-1]}.ray_over_torchrun"]}
    return headline | figures | {"same_losses": float(same)}


app = typer.Typer()


@app.command("rank", hidden=True)
def rank_command(config: Path, prepared: str, out: Path) -> None:
    """Run by torchrun."""
    rank(config, prepared, out)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    quick: Annotated[bool, typer.Option(help="Fewer rows.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Train both ways and compare."""
    if context.invoked_subcommand:
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), project_of(QUICK if quick else FULL))
    write_result("ray_cost", figures, out)


if __name__ == "__main__":
    app()
