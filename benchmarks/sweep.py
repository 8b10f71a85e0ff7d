"""What does a search cost, in units of one full training run, and is its choice any good?

python -m benchmarks.sweep [--data quickstart --data real4] [--quick] [--out FILE] [--storage DIR]

One full run of the train stage as jobs.train does it, then searches of 16 trials, each a whole run
of as many epochs and rows, on the same prepared data. `quickstart` is the quickstart's project with
half of its events, searched in three ways; `real4` is `jobs/real4.yaml` without the teacher and
with 150,000 rows an epoch, searched in the last way alone.

plain            trials of Ray Train workers, each with its own outputs of frozen layers, none ended
                 early: what a loop over `train` costs (but rows lie in the object store once);
                 measured for 2 trials, times eight
shared           random trials in warm processes that share rows and frozen outputs, none ended
                 early
shared, stopped  the same, by Optuna, and ASHA ends trials early: the default of the quickstart

`DATA.sweep_over_full_run` is the time of the last over that of the full run. All began in one call,
on the same cores. Idle: the share of all cores' time in which no process ran, sampled by psutil.

What the seconds bought: the choice of `shared, stopped`, and that of as many trials of `shared` as
fit into the same seconds, are trained whole with new seeds; `quality` is the mean of their joint
scores on valid (lower is better), `own` that of the file's own values.
"""

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.common import TOP, write_result
from benchmarks.local import fit, side_by_side
from jobs.common import absolute, teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.stream import training_source
from mtrec_ray.progress import Log
from mtrec_ray.project.load import load_project, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.search.records import Trial
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.in_process import ReportEpoch
from mtrec_ray.stages.prepare import open_prepared, run_prepare
from mtrec_ray.stages.run_folder import RunFolder
from mtrec_ray.stages.train import TrainingRun, train_model
from mtrec_ray.stages.tune import search, with_room
from mtrec_ray.stages.tuning.trial import TrialInputs, train_trial

TRIALS, PLAIN_TRIALS, EPOCHS, SEEDS = 16, 2, 2, 3
DATA = ("quickstart", "real4")
EVENTS = 15_000  # half of the quickstart's
WORDS = {
    "quickstart": [f"sample_world.events={EVENTS}", f"training.epochs={EPOCHS}"],
    "real4": ["training.teacher.share=0", "training.rows_per_epoch=150000"],
}
QUICK = {
    "quickstart": [
        "sample_world.events=6000", "sample_world.users=400", "sample_world.items=80",
        "search.trials=4",
    ],
    "real4": ["training.rows_per_epoch=8000", "search.rows_per_epoch=8000", "search.trials=4"],
}  # fmt: skip
SAMPLE_SECONDS = 0.5
WAYS = {
    "plain": {"scheduler": "none", "num_workers": None, "trials": PLAIN_TRIALS},
    "shared": {"scheduler": "none", "num_workers": 0, "algorithm": "random"},
    "shared, stopped": {"scheduler": "asha", "num_workers": 0},
}
SHARED, LAST = "shared", "shared, stopped"


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
) -> tuple[dict[str, float], list[Trial]]:
    """A search in one of the ways."""
    options = {f"search.{key}": value for key, value in WAYS[way].items()}
    asked = with_overrides(project, {**options, "run.cache_folder": tempfile.mkdtemp()})
    own = files.join(folder, way.replace(", ", "_"))
    with idle_share() as found:
        source = training_source(prepared, project.run.cache, project.run.most_workers)
        shared = TrialInputs(prepared, source, files.join(own, "runs"))
        shares = WAYS[way]["num_workers"] == 0
        trials = search(asked, own, train_trial if shares else alone, shared, log)
    epochs = sum(t.epochs for t in trials)
    failed = sum(t.status == "failed" for t in trials)
    counts = {"trials": float(len(trials)), "epochs": float(epochs), "failed": float(failed)}
    return found | counts, trials


def best_of(trials: Sequence[Trial]) -> Trial:
    """Returns the trial with the lowest joint score."""
    return min((t for t in trials if t.best), key=lambda t: t.best["joint_score"] if t.best else 0)


def train_once(project: Project, prepared: Prepared, path: Path) -> None:
    """Train a whole run in this process; its best joint score on valid goes into a file."""
    curve = fit(project, prepared, splits=()).curve
    path.write_text(json.dumps(min(record["joint_score"] for record in curve)))


def quality(
    project: Project, prepared: Prepared, overrides: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Returns the mean joint score on valid of whole runs with new seeds, by name of the values."""
    folder = Path(tempfile.mkdtemp())
    own = with_overrides(project, {"run.cache_folder": tempfile.mkdtemp()})
    paths = {name: [folder / f"{name}{s}" for s in range(SEEDS)] for name in overrides}
    calls = [
        (train_once, (with_overrides(own, {**values, "training.seed": 100 + s}), prepared, path))
        for name, values in overrides.items()
        for s, path in enumerate(paths[name])
    ]
    side_by_side(calls)
    read = {name: [json.loads(p.read_text()) for p in of_name] for name, of_name in paths.items()}
    return {name: sum(scores) / len(scores) for name, scores in read.items()}


def measure(
    project: Project, prepared: Prepared, folder: str, ways: Sequence[str], log: Log
) -> tuple[dict[str, float], list[dict[str, str]], dict[str, list[Trial]]]:
    """Measure one full run and the searches."""
    full = full_run(project, prepared, folder)
    figures = {"full_run.seconds": full["seconds"], "full_run.idle": full["idle"]}
    table, trials = [], {}
    for way in ways:
        log(f"way: {way}")
        found, trials[way] = sweep(project, prepared, folder, way, log)
        times = project.search.trials / found["trials"]
        over = found["seconds"] * times / full["seconds"]
        figures |= {f"{way}.{key}": value for key, value in found.items()}
        figures[f"{way}.over_full_run"] = over
        table.append(
            {
                "data": project.run.name,
                f"search of {project.search.trials} trials": way,
                "full runs": f"{over:.1f}",
                "epochs trained": f"{found['epochs'] * times:.1f}",
                "CPUs idle": f"{found['idle']:.0%}",
            }
        )
    figures["sweep_over_full_run"] = figures[f"{LAST}.over_full_run"]
    return figures, table, trials


def with_same_seconds(trials: dict[str, list[Trial]], figures: dict[str, float]) -> list[Trial]:
    """Returns as many of the first random trials as fit into the seconds of the other search."""
    share = figures[f"{LAST}.seconds"] / figures[f"{SHARED}.seconds"]
    return trials[SHARED][: max(round(share * len(trials[SHARED])), 1)]


def main(
    data: Annotated[list[str] | None, typer.Option(help="Data sets; by default both.")] = None,
    quick: Annotated[bool, typer.Option(help="Four short trials.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the runs.")] = "",
    root: Annotated[str, typer.Option(help="Folder of the real data.")] = "../shared/data",
) -> None:
    """Measure one full run and the searches, and what they choose."""
    log, place = teller(), absolute(storage or tempfile.mkdtemp())
    figures: dict[str, float] = {}
    table: list[dict[str, str]] = []
    for name in data or DATA:
        words = [f"search.trials={TRIALS}", *WORDS[name], *(QUICK[name] if quick else ())]
        own_root = [] if name == "quickstart" else [f"root={(TOP / root / name).resolve()}"]
        project = load_project(TOP / "jobs" / f"{name}.yaml", [*words, *own_root])
        room = with_room(project)
        run_prepare(room, place, log)
        connect(room.run)
        prepared = open_prepared(project, RunFolder.of(project, place))
        ways = list(WAYS) if name == "quickstart" else [LAST]
        found, lines, trials = measure(
            project, prepared, files.join(place, "sweep", name), ways, log
        )
        if SHARED in trials:
            random = with_same_seconds(trials, found)
            found["random.trials"] = float(len(random))
            values = {"own": {}, "random": best_of(random).overrides,
                      "stopped": best_of(trials[LAST]).overrides}  # fmt: skip
            scores = quality(project, prepared, values)
            found |= {f"{key}.quality": score for key, score in scores.items()}
        figures |= {f"{name}.{key}": value for key, value in found.items()}
        table += lines
    figures["sweep_over_full_run"] = max(figures[f"{n}.sweep_over_full_run"] for n in data or DATA)
    write_result("sweep", figures, out, table=table, epochs=EPOCHS, quick=quick)


if __name__ == "__main__":
    typer.run(main)
