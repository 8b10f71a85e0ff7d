"""Does memory grow with the size of the data?

    python -m benchmarks.memory [--quick] [--out FILE]

The training rows of a generated world, once, four and sixteen times (as files of their own), are
streamed through training by two Ray Train workers. Every run takes as many steps: one pass of the
largest data, sixteen of the smallest, so that what differs is the size of the data alone. The
object store has a fixed budget that is smaller than the largest. Peak resident memory (RSS, MB) of
every kind of process:

    SIZE.workers.peak_rss_mb    the largest training worker
    SIZE.readers.peak_rss_mb    the largest process of Ray's tasks
    SIZE.driver.peak_rss_mb     the job itself
    SIZE.peak_rss_mb            the largest of all
    SIZE.*.peak_private_mb      the same without shared pages (object store, libraries)
    growth, growth_private      largest over smallest of the three sizes
    SIZE.drift                  peak of the largest worker in the last quarter of the run's seconds
                                over that in the second: does memory grow with the steps?
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
import yaml

from benchmarks.common import TOP, write_result
from benchmarks.local import prepared_by_process
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.project.load import load_project, parse_project, with_overrides
from mtrec_ray.project.project import Project

SIZES = (1, 4, 16)
STORE_MB = 80  # near the least that Ray takes; the largest data do not fit
FULL = {"users": 1_500, "items": 1_000, "events": 10_000}
QUICK = {"users": 1_000, "items": 300, "events": 4_000}
EVERY = 0.25  # seconds between two looks at the processes

Peaks = dict[str, float]


def project_of(sizes: dict[str, int]) -> Project:
    """The quickstart's project with a larger world and a small model over a frozen encoder."""
    tree = load_project(TOP / "jobs" / "quickstart.yaml").dump()
    tree["sample_world"] |= sizes
    tree["model"]["encoder"] |= {"trainable": "none"}
    tree["training"] |= {"epochs": 1}
    tree["run"] |= {"name": "memory", "cache": "stream"}
    return parse_project(tree)


def repeat(source: Path, target: Path, times: int) -> int:
    """Prepared data with every training shard so many times, as files; returns training rows."""
    shutil.copytree(source, target)
    path = target / "manifest.json"
    manifest = json.loads(path.read_text())
    rows = 0
    for scenario in manifest["scenarios"].values():
        shards = []
        for shard in scenario["shards"]["train"]:
            for k in range(times):
                copy = shard["path"].replace(".parquet", f"-{k}.parquet")
                shutil.copy(source / shard["path"], target / copy)
                shards.append(shard | {"path": copy})
                rows += shard["rows"]
        scenario["shards"]["train"] = shards
    path.write_text(json.dumps(manifest))
    return rows


def kind_of(process: psutil.Process, driver: int) -> str | None:
    """Which figure a process counts for."""
    if process.pid == driver:
        return "driver"
    title = " ".join(process.cmdline())
    if "RayTrainWorker" in title:
        return "workers"
    return "readers" if title.startswith("ray::") else None


def look(peaks: Peaks, driver: int, parent: psutil.Process) -> float:
    """Raise the peaks to what the processes use now; returns the largest worker's RSS, MB."""
    largest = 0.0
    for process in [psutil.Process(driver), *parent.children(recursive=True)]:
        try:
            kind, used = kind_of(process, driver), process.memory_info()
        except psutil.Error:
            continue
        if kind:
            for word, value in (("rss", used.rss), ("private", used.rss - used.shared)):
                key = f"{kind}.peak_{word}_mb"
                peaks[key] = max(peaks.get(key, 0.0), value / 2**20)
        if kind == "workers":
            largest = max(largest, used.rss / 2**20)
    return largest


def drift(sizes: list[float]) -> float:
    """Peak of the last quarter over that of the second, of what a worker used over time."""
    quarter = max(len(sizes) // 4, 1)
    return max(sizes[-quarter:]) / max(sizes[quarter : 2 * quarter], default=1.0)


def watched(project: Project, storage: Path) -> tuple[Peaks, dict[str, Any]]:
    """Peaks of a train job on a Ray of its own, and its last line."""
    config = storage / "project.yaml"
    config.write_text(yaml.safe_dump(project.dump()))
    script = (
        "import ray, sys; from mtrec_ray.stages.cluster import local_environment\n"
        "with local_environment():\n"
        f"    ray.init(address='local', num_cpus=4, object_store_memory={STORE_MB * 2**20},\n"
        "             include_dashboard=True, dashboard_host='127.0.0.1')\n"
        "sys.argv = ['train', *sys.argv[1:]]\n"
        "import typer; from jobs.train import main; typer.run(main)\n"
    )
    out = storage / "out.txt"
    with out.open("wb") as stream:
        job = subprocess.Popen(
            [sys.executable, "-c", script, "--config", str(config), "--storage", str(storage)],
            cwd=TOP, stdout=stream, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(TOP)},
        )  # fmt: skip
    peaks: Peaks = {}
    sizes: list[float] = []
    parent = psutil.Process(job.pid)
    while job.poll() is None:
        sizes.append(look(peaks, job.pid, parent))
        time.sleep(EVERY)
    peaks["drift"] = drift([c for c in sizes if c])
    if job.returncode:
        raise RuntimeError(out.read_text()[-3000:])
    return peaks, json.loads(out.read_text().splitlines()[-1])


def measure(folder: Path, base: Project, times: int, prepared: Prepared) -> Peaks:
    """Figures of one size."""
    storage = folder / str(times)
    trained = max(SIZES) * sum(f.num_rows("train") for f in prepared.scenarios.values())
    project = with_overrides(base, {"training.rows_per_epoch": trained})
    rows = repeat(Path(prepared.folder), storage / project.run.name / "prepared", times)
    peaks, line = watched(project, storage)
    found = dict(peaks)
    for word in ("rss", "private"):
        own = [v for k, v in peaks.items() if k.endswith(f"peak_{word}_mb")]
        found[f"peak_{word}_mb"] = max(own)
    found["rows"] = rows
    found["rows_seen"] = sum(line["rows_seen"].values())
    found["rows_per_s"] = line["speed"][-1]["rows_per_s"]
    shutil.rmtree(storage)
    print(times, found, flush=True)
    return {f"{times}x.{key}": value for key, value in found.items()}


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rows.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Train on three sizes of data and watch the processes."""
    project = project_of(QUICK if quick else FULL)
    figures: Peaks = {"store_mb": STORE_MB}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepared_by_process(project, name)
        size = sum(f.num_rows("train") * f.row_bytes for f in prepared.scenarios.values())
        for times in SIZES:
            figures[f"{times}x.rows_mb"] = times * size / 2**20
            figures |= measure(folder, project, times, prepared)
    for key, word in (("growth", "rss"), ("growth_private", "private")):
        peaks = [figures[f"{times}x.peak_{word}_mb"] for times in SIZES]
        figures[key] = max(peaks) / min(peaks)
    write_result("memory", figures, out)


if __name__ == "__main__":
    typer.run(main)
