"""What does a search cost, in units of one full training run? And how long do CPUs idle in it?

python -m benchmarks.sweep [--epochs 2] [--quick] [--out FILE] [--storage DIR]

The quickstart's project with half of its events: one full run of the train stage as jobs.train does
it, then searches of 16 trials, each a whole run of as many epochs and rows, on the same prepared
data, in three ways. (With 2 epochs, as the quickstart trains, ASHA can end a trial only once.)

plain            trials of Ray Train workers, each with its own outputs of frozen layers, none ended
                 early: what a loop over `train` costs (but rows lie in the object store once);
                 measured for 4 trials, times four
shared           trials in warm processes that share rows and frozen outputs, none ended early
shared, stopped  the same, ASHA ends trials early: the default of the quickstart

`sweep_over_full_run` is the time of the last over that of the full run. All began in one call, on
the same cores. Idle: the share of all cores' time in which no process ran, sampled by psutil.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import psutil
import typer

from benchmarks.common import TOP, write_result
from jobs.common import absolute, teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.stream import training_source
from mtrec_ray.progress import Log
from mtrec_ray.project.load import load_project, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.in_process import ReportEpoch
from mtrec_ray.stages.prepare import open_prepared, run_prepare
from mtrec_ray.stages.run_folder import RunFolder
from mtrec_ray.stages.train import TrainingRun, train_model
from mtrec_ray.stages.tune import search, with_room
from mtrec_ray.stages.tuning.trial import TrialInputs, train_trial

TRIALS, PLAIN_TRIALS, EPOCHS = 16, 4, 2
EVENTS = 15_000  # half of the quickstart's
QUICK = (
    "sample_world.events=6000", "sample_world.users=400", "sample_world.items=80",
    "search.trials=4",
)  # fmt: skip
SAMPLE_SECONDS = 0.5
WAYS = {
    "plain": {"scheduler": "none", "num_workers": None},
    "shared": {"scheduler": "none", "num_workers": 0},
    "shared, stopped": {"scheduler": "asha", "num_workers": 0},
}
LAST = "shared, stopped"


@contextmanager
def idle_share() -> Iterator[dict[str, float]]:
    """The mean idle share of all cores and the seconds of the block, when it has ended."""
    found: dict[str, float] = {}
    samples: list[float] = []
    done = threading.Event()

    def watch() -> None:
        psutil.cpu_percent()
        while not done.wait(SAMPLE_SECONDS):
            samples.append(1 - psutil.cpu_percent() / 100)

    watcher = threading.Thread(target=watch, daemon=True)
    started = time.monotonic()
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found["seconds"] = time.monotonic() - started
        found["idle"] = sum(samples) / max(len(samples), 1)


def alone(project: Project, name: str, shared: TrialInputs, tell: ReportEpoch) -> dict[str, Any]:
    """Train a trial that computes the outputs of frozen layers for itself."""
    own = with_overrides(project, {"run.cache_folder": tempfile.mkdtemp()})
    return train_trial(own, name, shared, tell)


def full_run(project: Project, prepared: Prepared, folder: str) -> dict[str, float]:
    """One run of the train stage with its own frozen outputs."""
    own = with_overrides(project, {"run.cache_folder": tempfile.mkdtemp()})
    with idle_share() as found:
        train_model(TrainingRun(own, prepared, folder, "full"))
    return found


def sweep(
    project: Project, prepared: Prepared, folder: str, way: str, log: Log
) -> dict[str, float]:
    """A search in one of the ways."""
    options = {f"search.{key}": value for key, value in WAYS[way].items()}
    if way == "plain":
        options["search.trials"] = min(PLAIN_TRIALS, project.search.trials)
    asked = with_overrides(project, {**options, "run.cache_folder": tempfile.mkdtemp()})
    own = files.join(folder, way.replace(", ", "_"))
    with idle_share() as found:
        source = training_source(prepared, project.run.cache, project.run.most_workers)
        shared = TrialInputs(prepared, source, files.join(own, "runs"))
        shares = WAYS[way]["num_workers"] == 0
        trials = search(asked, own, train_trial if shares else alone, shared, log)
    epochs = sum(t.epochs for t in trials)
    failed = sum(t.status == "failed" for t in trials)
    return found | {"trials": float(len(trials)), "epochs": float(epochs), "failed": float(failed)}


def main(
    epochs: Annotated[int, typer.Option(help="Of the full run and of trials.")] = EPOCHS,
    quick: Annotated[bool, typer.Option(help="Four short trials.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the runs.")] = "",
) -> None:
    """Measure one full run and the searches."""
    words = [f"search.trials={TRIALS}", f"sample_world.events={EVENTS}"]
    words += [f"training.epochs={epochs}"]
    project = load_project(TOP / "jobs" / "quickstart.yaml", [*words, *(QUICK if quick else ())])
    log, place = teller(), absolute(storage or tempfile.mkdtemp())
    room = with_room(project)
    run_prepare(room, place, log)
    connect(room.run)
    prepared = open_prepared(project, RunFolder.of(project, place))
    folder = files.join(place, "sweep")
    full = full_run(project, prepared, folder)
    figures = {"full_run.seconds": full["seconds"], "full_run.idle": full["idle"]}
    table = []
    for way in WAYS:
        log(f"way: {way}")
        found = sweep(project, prepared, folder, way, log)
        times = project.search.trials / found["trials"]
        over = found["seconds"] * times / full["seconds"]
        figures |= {f"{way}.{key}": value for key, value in found.items()}
        figures[f"{way}.over_full_run"] = over
        table.append(
            {
                f"search of {project.search.trials} trials": way,
                "full runs": f"{over:.1f}",
                "epochs trained": f"{found['epochs'] * times:.0f}",
                "CPUs idle": f"{found['idle']:.0%}",
            }
        )
    figures["sweep_over_full_run"] = figures[f"{LAST}.over_full_run"]
    name = "sweep" if epochs == EPOCHS else f"sweep_{epochs}_epochs"
    write_result(name, figures, out, table=table, epochs=epochs, quick=quick)


if __name__ == "__main__":
    typer.run(main)
