"""What every job shares: options, a project, progress, errors as one line each, and the result."""

import json
import os
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from jobs.terminal import Streams, Terminal
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project

Config = Annotated[str, typer.Option("--config", help="The project file (YAML).")]
Storage = Annotated[
    str, typer.Option("--storage", help="Folder or URI for runs; every node must reach it.")
]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field: section.field=value.")
]

# Whether a job is this process's program, so that it may take the output streams for itself.
PROGRAM: ContextVar[bool] = ContextVar("PROGRAM", default=False)

# What a job leaves in the run's folder, and the job that comes next.
OUTPUTS = {
    "prepare": (("prepared/", "training samples, catalogues, data report"),),
    "train": (("joint/best/", "the joint model"), ("joint/tensorboard/", "its curves")),
    "tune": (
        ("tune/report.html", "all trials and the Pareto front"),
        ("tune/chosen.yaml", "the project with the chosen values"),
    ),
    "finetune": (("scenarios/NAME/", "each scenario's model and decision"),),
    "evaluate": (
        ("evaluation/metrics.json", "all metrics, with intervals"),
        ("evaluation/predictions/", "the predictions (Parquet)"),
    ),
    "recommend": (("recommendations/NAME/", "the best items of each user (Parquet)"),),
    "export": (
        ("export/README.md", "the model card"),
        ("export/manifest.json", "every file, its SHA-256, and how near it is"),
    ),
}
OUTPUTS["pipeline"] = tuple(
    OUTPUTS[job][0] for job in ("tune", "train", "finetune", "evaluate", "recommend")
)
NEXT = {
    "check": ("pipeline", "all of it"),
    "prepare": ("train", "the joint model"),
    "train": ("finetune", "a model for each scenario"),
    "tune": ("train", "the joint model; give it tune/chosen.yaml as --config"),
    "finetune": ("evaluate", "metrics on test"),
    "evaluate": ("recommend", "the best items of every user"),
    "pipeline": ("finetune --compare", "is each scenario better off alone?"),
}


def program(main: Callable[..., object]) -> None:
    """Run a job's function, or the console command, as this process's program."""
    # Ray reads it when it is imported. Its merging of similar lines ("repeated 8x across cluster")
    # would hide most of them.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    PROGRAM.set(True)
    if isinstance(main, typer.Typer):
        main()
    else:
        typer.run(main)


def teller() -> Terminal:
    """Prints lines with the time since the start."""
    return Terminal()


def absolute(path: str) -> str:
    """A storage path that means the same on every node."""
    return path if "://" in path else str(Path(path).absolute())


class Job:
    """A job that runs: its project, its storage, and how it tells a person.

    Attributes:
        name: of the job.
        project: validated.
        storage: a path or URI that means the same on every node.
        log: the reporter that stages take.
    """

    def __init__(
        self, name: str, project: Project, storage: str, log: Terminal, options: Sequence[str]
    ) -> None:
        self.name, self.project, self.storage, self.log = name, project, storage, log
        self.options = options
        self.values: dict[str, object] = {}
        self.tables: list[RenderableType] = []

    @property
    def title(self) -> str:
        """The run's name for a table, which says where the data is generated."""
        generated = " (GENERATED sample world, not real data)" if self.project.sample_world else ""
        return f"{self.project.run.name}{generated}"

    def result(self, *tables: RenderableType, **values: object) -> None:
        """Keep the tables and the values of the job's last line, printed when all is done."""
        self.tables, self.values = list(tables), values

    def finish(self, log_path: Path | None) -> None:
        """Print the tables, where the outputs lie, what to do next, and the JSON line."""
        self.log.close()
        for table in self.tables:
            self.log.print()
            if isinstance(table, Table) and table.title:
                # Rich breaks a title at the width of its table.
                self.log.print(str(table.title), style="bold")
                table.title = None
            self.log.print(table)
        from mtrec_ray.data.storage import strict  # takes a while to import

        line = {"job": self.name, "run": self.project.run.name, **self.values}
        text = json.dumps(strict(line), allow_nan=False)
        if self.name in OUTPUTS or log_path:
            self.log.print()
        if self.name in OUTPUTS:
            self.log.print(f"In {self.storage}/{self.project.run.name}/", style="bold")
            for place, what in OUTPUTS[self.name]:
                self.log.print(f"  {place:<38} {what}")
        if log_path:
            kept = log_path.with_suffix(".json")
            kept.write_text(text + "\n")
            self.log.print(f"  {f'logs/{kept.name}':<38} this result as JSON")
        if self.name in NEXT:
            job, why = NEXT[self.name]
            self.log.print(f"Next ({why}):", style="bold")
            self.log.print(f"  mtrec {job} {shlex.join(self.options)}")
        # In a terminal it would push the tables out of sight; it is in the file beside the log.
        if not (log_path and self.log.console.is_terminal):
            print(text, file=self.log.console.file, flush=True)


@contextmanager
def open_job(
    name: str, config: str, storage: str, overrides: list[str] | None, *, keeps_log: bool = True
) -> Iterator[Job]:
    """A job's project and reporter; at the end its tables and its result are printed.

    A user's mistake is one line each on stderr and exit code 2; a fault of ours, in a program,
    its traceback and exit code 1. A Ray that was there before is left.
    """
    streams = Streams() if PROGRAM.get() else None
    terminal = Terminal(streams.out if streams else None, ticks=streams is not None)
    joined, code = ray_runs(), 0
    try:
        project = load_project(config, overrides or ())
        options = ["--config", config, "--storage", storage]
        options += [word for override in overrides or () for word in ("--set", override)]
        job = Job(name, project, absolute(storage), terminal, options)
        log_path = keep_log(streams, job) if streams and keeps_log else None
        if streams:
            warnings.showwarning = shown_warning(terminal, warnings.showwarning)
        if keeps_log:
            show_header(job, config, log_path)
        yield job
        end_ray(joined)
        job.finish(log_path)
    except BaseException as error:
        end_ray(joined)
        terminal.close()
        problems = problems_of(error)
        if problems is None and (streams is None or isinstance(error, SystemExit)):
            raise
        code = say_error(name, error, problems, streams)
    finally:
        terminal.close()
        if streams:
            if code == 2 or not keeps_log:
                streams.discard()
            streams.restore()
    if code:
        raise SystemExit(code)


def say_error(
    name: str, error: BaseException, problems: list[str] | None, streams: Streams | None
) -> int:
    """Print why a job ended; returns its exit code."""
    err = streams.err if streams else sys.stderr
    if problems is not None:
        for line in problems:
            print(f"{name}: {line}", file=err, flush=True)
        return 2
    where = f"; the log is {streams.path}" if streams else ""
    if isinstance(error, KeyboardInterrupt):
        print(f"{name}: interrupted; the same command goes on{where}", file=err, flush=True)
        return 130
    lines = "".join(traceback.format_exception(error))
    print(lines, file=sys.stderr, flush=True)
    print(f"{lines}{name}: failed{where}", file=err, flush=True)
    return 1


def problems_of(error: BaseException) -> list[str] | None:
    """The lines of a user's mistake; None for any other error.

    A mistake that a Ray task finds arrives as the cause of a RayTaskError, which is an instance of
    the cause's class whatever that is: a ValueError of NumPy is a ValueError, and no mistake of the
    user.
    """
    found: BaseException | None = error
    while found is not None:
        cause = getattr(found, "cause", None)  # of a RayTaskError
        if isinstance(found, ProjectError):
            return list(found.problems)
        found = cause if isinstance(cause, BaseException) else found.__cause__
    return None


def keep_log(streams: Streams, job: Job) -> Path:
    """Where the job's log lies: in the run's folder, or in the folder for temporary files."""
    now = datetime.now().astimezone()
    name = f"{job.name}-{now:%Y%m%d-%H%M%S}.log"
    run = job.project.run.name
    folder = Path(tempfile.gettempdir()) / "mtrec-logs" / run
    if "://" not in job.storage:
        folder = Path(job.storage) / run / "logs"
    try:
        return streams.keep_in(folder, name)
    except OSError:  # the stage says why the storage cannot be written
        return streams.path


def show_header(job: Job, config: str, log_path: Path | None) -> None:
    """Say what will be done, with what, and roughly for how long."""
    job.log.print(f"mtrec {job.name}: run {job.project.run.name}, {config}", style="bold")
    show_facts(job.log, {"storage": f"{job.storage}/{job.project.run.name}"})
    if log_path:
        show_facts(job.log, {"log": str(log_path)})
    from mtrec_ray.stages.check import outline  # takes seconds to import

    show_facts(job.log, outline(job.project, job.storage, job.name))


def show_facts(log: Terminal, facts: Mapping[str, str]) -> None:
    """Print labels and texts."""
    for label, text in facts.items():
        log.print(f"  {label:<8} {text}")


def shown_warning(terminal: Terminal, default: Callable[..., None]) -> Callable[..., None]:
    """Shows warnings of this package to the person; all others go where they went."""
    ours = str(Path(__file__).parents[1] / "mtrec_ray")

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any
    ) -> None:
        if issubclass(category, UserWarning) and filename.startswith(ours):
            terminal.warn(" ".join(str(message).split()))
        else:
            default(message, category, filename, lineno, *more)

    return show


def ray_runs() -> bool:
    """Whether this process is connected to a Ray; does not import it."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def end_ray(joined: bool) -> None:
    """End the Ray that the stage started: nothing of it comes after the job's result."""
    if not joined and ray_runs():
        sys.modules["ray"].shutdown()
