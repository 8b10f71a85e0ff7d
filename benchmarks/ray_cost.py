"""What does Ray Train cost over plain `torchrun`?

    python -m benchmarks.ray_cost [--quick] [--out FILE]

The same training loop on the same prepared rows in the same order, two ranks over gloo with one
thread each: started by `torchrun`, with the rows in each rank's memory, and by the train job, with
the rows in the object store. In turns, three times each; medians.

    ray_over_torchrun          rows/s of the last epoch, Ray over torchrun
    ray_start_s, torchrun_start_s    from the command to the first step
    same_losses                1 if both ended with the same losses, to 1e-5
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer
import yaml

from benchmarks.common import TOP, write_result
from benchmarks.local import Host, prepared_by_process
from mtrec_ray.config import load_project, parse_project
from mtrec_ray.data.shards import load_prepared
from mtrec_ray.learning import loop
from mtrec_ray.schema import Project

ROUNDS, EPOCHS = 3, 3
FULL = {"users": 5_000, "items": 1_000, "events": 50_000}
QUICK = {"users": 2_000, "items": 300, "events": 20_000}


def project_of(sizes: dict[str, int]) -> Project:
    """The quickstart's project with a larger world; the encoder is frozen."""
    tree = load_project(TOP / "jobs" / "quickstart.yaml").dump()
    tree["sample_world"] |= sizes
    tree["model"]["encoder"] |= {"trainable": "none"}
    tree["training"] |= {"epochs": EPOCHS}
    tree["run"] |= {"name": "cost", "cache": "object_store"}
    return parse_project(tree)


def by_torchrun(config: Path, prepared: str, out: Path) -> dict[str, Any]:
    """Train by torchrun: its summary, and the seconds until its first step."""
    words = ["--nproc-per-node", "2", "-m", "benchmarks.ray_cost", "rank"]
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
    summary = loop.train(load_project(config), rows, Host(rows))
    if dist.get_rank() == 0:
        out.write_text(json.dumps({k: summary[k] for k in ("speed", "curve")}))
    dist.destroy_process_group()


def by_ray(config: Path, storage: Path, prepared: str, number: int) -> dict[str, Any]:
    """Train by the train job: its summary, and the seconds until its first step."""
    project = yaml.safe_load(config.read_text())
    project["run"]["name"] = f"ray-{number}"
    own = storage / f"ray-{number}.yaml"
    own.write_text(yaml.safe_dump(project))
    folder = storage / project["run"]["name"]
    folder.mkdir()
    (folder / "prepared").symlink_to(prepared)
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "jobs.train", "--config", str(own), "--storage", str(storage)],
        cwd=TOP, env=os.environ | {"PYTHONPATH": str(TOP)}, check=True, capture_output=True,
    )  # fmt: skip
    found = json.loads((folder / "joint" / "done.json").read_text())
    return found | {"start_s": found["speed"][0]["started"] - began}


def losses(summary: dict[str, Any]) -> list[float]:
    """The training losses of every epoch."""
    return [v for record in summary["curve"] for v in record["train_loss"].values()]


def measure(storage: Path, project: Project) -> dict[str, float]:
    """Both ways, in turns."""
    prepared = prepared_by_process(project, str(storage)).folder
    config = storage / "project.yaml"
    config.write_text(yaml.safe_dump(project.dump()))
    speeds: dict[str, list[float]] = {"ray": [], "torchrun": []}
    starts: dict[str, list[float]] = {"ray": [], "torchrun": []}
    same = True
    for number in range(ROUNDS):
        found = {
            "torchrun": by_torchrun(config, prepared, storage / "rank.json"),
            "ray": by_ray(config, storage, prepared, number),
        }
        same &= np.allclose(losses(found["ray"]), losses(found["torchrun"]), rtol=1e-5)
        for name, summary in found.items():
            speeds[name].append(summary["speed"][-1]["rows_per_s"])
            starts[name].append(summary["start_s"])
        print(speeds, starts, flush=True)
    figures = {f"{name}_rows_per_s": float(np.median(v)) for name, v in speeds.items()}
    figures |= {f"{name}_start_s": float(np.median(v)) for name, v in starts.items()}
    figures["ray_over_torchrun"] = figures["ray_rows_per_s"] / figures["torchrun_rows_per_s"]
    return figures | {"same_losses": float(same)}


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
