"""What every job shares: options, progress, errors as one clear line, the last line as JSON."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from rich.console import Console

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import metrics_table, ranking_table

Config = Annotated[str, typer.Option("--config", help="The project file (YAML).")]
Storage = Annotated[
    str, typer.Option("--storage", help="Folder or URI for runs; every node must reach it.")
]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field: section.field=value.")
]

Stage = Callable[[Project, str, Callable[[str], None]], dict[str, Any]]


def teller() -> Callable[[str], None]:
    """Prints a line with the seconds since the start."""
    console, started = Console(stderr=False, highlight=False), time.monotonic()

    def log(text: str) -> None:
        console.print(f"[{time.monotonic() - started:6.0f} s] {text}", markup=False, soft_wrap=True)

    return log


def absolute(path: str) -> str:
    """A storage path that means the same on every node."""
    return path if "://" in path else str(Path(path).absolute())


def run_job(
    name: str, stage: Stage, config: str, storage: str, overrides: list[str] | None
) -> tuple[Project, dict[str, Any]]:
    """Run a stage on a project file.

    A user's mistake (ValueError) is one line each on stderr and exit code 2. A Ray that the stage
    connected to is left: what its workers printed comes before the job's result, not after it.
    """
    connected = ray.is_initialized()
    try:
        project = load_project(config, overrides or ())
        return project, stage(project, absolute(storage), teller())
    except ProjectError as error:
        for line in error.problems:
            print(f"{name}: {line}", file=sys.stderr)
    except ValueError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    finally:
        if not connected:
            ray.shutdown()
    raise SystemExit(2)


def show(project: Project, metrics: dict[str, Any]) -> None:
    """Print the table of test metrics."""
    title = f"{project.run.name}: test"
    if project.sample_world:
        title += " (GENERATED sample world, not real data)"
    Console(width=150).print(metrics_table(title, metrics))


def show_ranking(project: Project, ranking: dict[str, Any]) -> None:
    """Print the table of recall and NDCG over the catalogue."""
    if ranking:
        title = f"{project.run.name}: test users, the whole catalogue"
        Console(width=150).print(ranking_table(title, ranking))


def plain(value: Any) -> Any:
    """Plain JSON values; a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def last_line(job: str, project: Project, **values: object) -> None:
    """Print the job's result as one JSON line."""
    line = {"job": job, "run": project.run.name, **values}
    print(json.dumps(plain(line), allow_nan=False), flush=True)
