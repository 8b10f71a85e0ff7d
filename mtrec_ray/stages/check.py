"""The check: is the project sound, and what would a run of it do? Writes nothing, starts no Ray."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from mtrec_ray.data import storage
from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.data.tokens import resolve_source
from mtrec_ray.model.encoder import encoder_problems, quantise_problems
from mtrec_ray.progress import no_log
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.project import Project, Run
from mtrec_ray.search.problems import space_problems
from mtrec_ray.stages.estimate import (
    BYTES_PER_ROW,
    RunEstimate,
    Size,
    estimate_of,
    finished_stages,
    sizes_of,
    stages_of,
    with_world_root,
)
from mtrec_ray.stages.run_folder import RunFolder, with_search_choice
from mtrec_ray.training.batches import quotas
from mtrec_ray.training.weighting import weighting_problems


def run_check(project: Project, storage_path: str) -> dict[str, Any]:
    """Returns what a run would do, for a person and as values.

    Raises:
        ProjectError: everything that would stop a run, all at once.
    """
    refuse(check_problems(project, storage_path))
    sizes = sizes_of(project, storage_path)
    project = with_search_choice(project, RunFolder.of(project, storage_path), no_log)
    done = finished_stages(project, storage_path)
    plan = estimate_of(project, storage_path, sizes, "pipeline")
    todo = stages_of(project, storage_path, "pipeline")
    seconds = plan.seconds
    facts = {
        "to do": ", ".join(s for s in todo if s not in done) or "nothing",
        "done": ", ".join(s for s in todo if s in done) or "nothing",
        "batch": ", ".join(f"{n} {q:,}" for n, q in plan.quotas.items()) + " rows",
        "steps": f"{plan.steps_per_epoch:,} an epoch, {plan.steps:,} in all",
        "workers": workers_and_machine(project.run),
        "memory": memory_text(project, sizes),
        "disk": disk_text(project, sizes),
        "takes": takes_text(plan),
    }
    return {
        "scenarios": {n: {"rows": s.rows, "items": s.items} for n, s in sizes.items()},
        "quotas": plan.quotas,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": plan.steps,
        "minutes": None if seconds is None else round(sum(seconds.values()) / 60, 1),
        "done": done,
        "tables": {"data": [data_row(n, s) for n, s in sizes.items()], "run": facts},
    }


def outline(project: Project, storage_path: str, job: str) -> dict[str, str]:
    """Returns what a job is about to do, by label; empty parts where its inputs cannot be read."""
    facts: dict[str, str] = {}
    try:
        project = with_search_choice(project, RunFolder.of(project, storage_path), no_log)
        sizes = sizes_of(project, storage_path)
        generated = " (GENERATED, not real data)" if project.sample_world else ""
        rows = ", ".join(f"{n} {s.rows:,}" for n, s in sizes.items())
        facts["rows"] = rows + generated
        done, stages = finished_stages(project, storage_path), stages_of(project, storage_path, job)
        facts["to do"] = ", ".join(s for s in stages if s not in done) or "nothing"
        if set(done) & set(stages):
            facts["done"] = ", ".join(s for s in stages if s in done)
        facts["workers"] = workers_and_machine(project.run)
        facts["takes"] = takes_text(estimate_of(project, storage_path, sizes, job))
    except (OSError, ValueError, KeyError, pa.ArrowException):
        pass  # the stage says in its own words what is wrong
    return facts


# --- problems ------------------------------------------------------------------------------------


def check_problems(project: Project, storage_path: str) -> list[str]:
    """Returns a line for each thing that would stop a run."""
    here = with_world_root(project, storage_path)
    problems = [] if here is None else input_problems(here)
    problems += encoder_problems(project.model) + weighting_problems(project.training.weighting)
    problems += storage_problems(storage_path) + resource_problems(project.run)
    if project.search.pipeline_trials:
        problems += space_problems(project)
    if project.evaluation.precision == "int8":
        problems += quantise_problems()
    run = project.run
    try:
        batch = project.training.batch_size // (run.most_workers * project.training.accumulation)
        quotas(dict.fromkeys(project.scenarios, 1), batch, project.training.alpha)
    except ProjectError as error:
        problems += error.problems
    return problems


def storage_problems(path: str) -> list[str]:
    """Returns a line if the storage cannot be written, found out without writing."""
    allowed = "allowed: a folder or URI that every node can write"
    if "://" in path:
        try:
            fs, inner = storage.filesystem(path)
            fs.get_file_info(inner)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:120]
            return [f"--storage: found {path}, which cannot be reached ({reason}); {allowed}"]
        return []
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return []
    what = "no permission" if folder.is_dir() else "is a file"
    return [f"--storage: found {path}, which cannot be written ({folder}: {what}); {allowed}"]


def resource_problems(run: Run) -> list[str]:
    """Returns a line where a run asks for more than this machine or the cluster has."""
    have = cluster_resources(run) if os.environ.get("RAY_ADDRESS") else machine_resources()
    where = "the cluster" if os.environ.get("RAY_ADDRESS") else "this machine"
    problems = []
    if run.use_gpu and have["GPU"] < run.least_workers:
        problems.append(
            f"run.use_gpu: found true for {run.least_workers} workers, and {where} has "
            f"{have['GPU']:g} GPUs; allowed: a GPU for each worker, or false"
        )
    needed = run.least_workers * run.cpus_per_worker
    if where == "the cluster" and have["CPU"] < needed:
        problems.append(
            f"run.num_workers: found {run.least_workers} workers with {run.cpus_per_worker} CPUs, "
            f"and the cluster has {have['CPU']:g} CPUs; allowed: at most as many"
        )
    return problems


def machine_resources() -> dict[str, float]:
    """Returns CPUs and GPUs of this machine."""
    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def cluster_resources(run: Run) -> dict[str, float]:
    """Returns CPUs and GPUs of the running cluster."""
    import ray

    from mtrec_ray.stages.cluster import connect

    connect(run)
    resources = ray.cluster_resources()
    return {kind: float(resources.get(kind, 0.0)) for kind in ("CPU", "GPU")}


# --- words ---------------------------------------------------------------------------------------


def data_row(name: str, size: Size) -> dict[str, str]:
    """Returns a scenario's sizes for a person."""
    splits = {s: f"{size.splits[s]:,}" if size.splits else "?" for s in ("train", "valid", "test")}
    return {"scenario": name, "rows": f"{size.rows:,}", "items": f"{size.items:,}", **splits}


def workers_and_machine(run: Run) -> str:
    """Returns `2 on CPU; a local Ray on 2 cores`."""
    workers = f"{run.workers_text} on {'GPU' if run.use_gpu else 'CPU'}"
    if os.environ.get("RAY_ADDRESS"):
        return f"{workers}, on the running cluster"
    return f"{workers}, a local Ray on {os.cpu_count()} cores"


def takes_text(plan: RunEstimate) -> str:
    """Returns `roughly 4 minutes (by ...)`."""
    if plan.seconds is None:
        return f"unknown: {plan.basis}"
    minutes = sum(plan.seconds.values()) / 60
    if not plan.seconds:
        return "no time"
    length = "a minute" if minutes < 1.5 else f"{minutes:,.0f} minutes"
    if minutes > 120:
        length = f"{minutes / 60:,.0f} hours"
    return f"roughly {length} ({plan.basis})"


def memory_text(project: Project, sizes: Mapping[str, Size]) -> str:
    """Returns the size of training rows, tokens and frozen states, and this machine's memory."""
    rows = sum(s.train for s in sizes.values()) * BYTES_PER_ROW
    items = sum(s.items for s in sizes.values())
    tokens = items * project.model.encoder.max_tokens
    how = {"auto": "in the object store, streamed where they do not fit", "stream": "streamed"}
    return (
        f"{bytes_text(rows)} of training rows "
        f"({how.get(project.run.cache, 'in the object store')}); at most {bytes_text(tokens * 4)} "
        f"of tokens; {project.run.most_workers} workers of roughly 1.5 GB; this machine has "
        f"{bytes_text(psutil.virtual_memory().total)}"
    )


def disk_text(project: Project, sizes: Mapping[str, Size]) -> str:
    """Returns rough sizes of prepared data and of outputs of frozen layers in a node's cache."""
    encoder = project.model.encoder
    rows = sum(s.rows for s in sizes.values()) * BYTES_PER_ROW // 2
    states = sum(s.items for s in sizes.values()) * hidden_size(encoder.source) * 4
    if encoder.trainable in ("top_k", "lora"):
        states *= encoder.max_tokens
    frozen = 0 if encoder.trainable == "all" else states
    return (
        f"roughly {bytes_text(rows + 50e6)} in the storage, at most {bytes_text(frozen)} of frozen "
        "states in each node's cache"
    )


def hidden_size(source: str) -> int:
    """Returns the width of an encoder's states, without loading its weights."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(resolve_source(source)).hidden_size)


def bytes_text(value: float) -> str:
    """Returns `1.4 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.0f} bytes"
