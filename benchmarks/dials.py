"""When is one model for all scenarios better than one for each?

    python -m benchmarks.dials [--quick] [--seeds 3] [--storage DIR] [--out FILE]

The generated world of `jobs/quickstart.yaml`, smaller, with two scenarios of 8,000 events and a
small one, `news`, that begins late: the fewer days before train ends, the fewer rows are there to
learn from; valid and test are the same days in all scenarios. Two dials make a surface: the share
of users who are the same people in all scenarios, and the days of the small scenario. At every
point the joint model and the small scenario alone are trained, each with what stands beside it by
default; `joint less alone` is the difference of their test AUC of `news.click`. Two more rows turn
the other dials: taste that the text does not tell (`in_text: 0`), and users whose taste is another
one in each scenario (`conflict: 1`).

A seed is another world and another training; frozen encoder. Means over seeds, with the standard
error of the mean. With `--quick`: one seed, two points. An interrupted run goes on.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.axes import Axes
from rich.console import Console

from benchmarks.beside import (
    Scored,
    all_alone,
    predict,
    predictions_of,
    score_scenario,
    without_elsewhere,
)
from benchmarks.common import RESULTS, TOP, write_result
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.evaluation.metrics import roc_auc
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.plots import png
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.predictions import read_predictions

SMALL = "news"
COMMON = (0.0, 0.5, 1.0)
DAYS = (20.75, 22.0, 30.0)  # of the small scenario; valid and test are the last 20
MORE = {
    "nothing in the text": {"common_users": 1.0, "in_text": 0.0},
    "other tastes": {"common_users": 1.0, "conflict": 1.0},
}
WORDS = (
    "sample_world.users=500", "sample_world.items=160", "sample_world.events=8000",
    "sample_world.small_events=4000", "model.encoder.trainable=none", "recommend.ranking_users=0",
    "scenarios.video.split.fractions=null", "scenarios.video.split.time=[2025-03-12,2025-03-22]",
)  # fmt: skip
MODELS = ("network", "joint", "alone", "alone_all", "trees")

Figures = dict[str, float]


def project_of(dials: Mapping[str, float], days: float, seed: int) -> Project:
    """The project of a point of the surface."""
    name = "-".join(f"{dial}_{value:g}" for dial, value in dials.items())
    words = [
        *WORDS, f"sample_world.small_days={days}",
        f"sample_world.seed={seed + 7}", f"training.seed={seed}",
        "run.name=" + f"{name}-days_{days:g}-{seed}".replace(".", "_"),
        *(f"sample_world.{dial}={value}" for dial, value in dials.items()),
    ]  # fmt: skip
    return load_project(TOP / "jobs" / "quickstart.yaml", words)


def measure(project: Project, folder: str) -> Figures:
    """Test AUC of the small scenario's first task by model, and its rows of train and test."""
    predict(project, folder)
    prepared = load_prepared(files.join(folder, project.run.name, "prepared"))
    facts = prepared.scenarios[SMALL]
    own = all_alone(project, without_elsewhere(prepared), folder, (SMALL,))[SMALL]
    path = predictions_of(project, folder, f"scores-{SMALL}.npz")
    said = {split: predictions_of(project, folder, split) for split in ("valid", "test")}
    if not Path(path).exists():
        score_scenario(Scored(facts, said, own, own, path, parts=False))
    scores = dict(np.load(path))
    label = read_predictions(said["test"], SMALL, len(facts.tasks))["label"][:, 0]
    told = [m for m in MODELS if np.isfinite(scores[m][:, 0]).all()]
    rows = {split: float(facts.num_rows(split)) for split in ("train", "test")}
    return {m: roc_auc(label, scores[m][:, 0]) for m in told} | rows


def point(dials: Mapping[str, float], days: float, folder: str, seeds: int) -> Figures:
    """Means over seeds at a point, and joint less alone with its standard error."""
    runs = [measure(project_of(dials, days, seed), folder) for seed in range(seeds)]
    told = [what for what in runs[0] if all(what in run for run in runs)]
    found = {what: float(np.mean([run[what] for run in runs])) for what in told}
    gains = [run["joint"] - run["alone"] for run in runs]
    error = float(np.std(gains, ddof=1) / np.sqrt(seeds)) if seeds > 1 else float("nan")
    return found | {"gain": float(np.mean(gains))} | ({"error": error} if seeds > 1 else {})


def cell(found: Figures) -> str:
    """`+0.0123 ± 0.0045 (0.8123, 400 rows)`: joint less alone, joint's AUC, rows of train."""
    error = f" ± {found['error']:.4f}" if "error" in found else ""
    return f"{found['gain']:+.4f}{error} ({found['joint']:.4f}, {found['train']:,.0f} rows)"


def draw(ax: Axes, gains: np.ndarray, rows: Sequence[float]) -> None:
    """The surface of joint less alone, by rows and by common users."""
    most = float(np.abs(gains).max())
    image = ax.imshow(gains, cmap="RdBu", vmin=-most, vmax=most, origin="lower", aspect="auto")
    ax.set_xticks(range(len(rows)), [f"{num:,.0f}" for num in rows])
    ax.set_yticks(range(len(COMMON)), [f"{share:.0%}" for share in COMMON])
    ax.set_xlabel("training rows of the small scenario")
    ax.set_ylabel("users who are the same people everywhere")
    ax.set_title("test AUC, joint less alone")
    for (row, column), gain in np.ndenumerate(gains):
        colour = "white" if abs(gain) > most / 2 else "black"
        ax.text(column, row, f"{gain:+.3f}", ha="center", va="center", color=colour)
    ax.figure.colorbar(image, ax=ax)


def plot(figures: Figures) -> bytes:
    """The surface as PNG."""
    keys = [[f"common {share:g}.{days:g}" for days in DAYS] for share in COMMON]
    gains = np.array([[figures[f"{key}.gain"] for key in row] for row in keys])
    rows = [figures[f"{key}.train"] for key in keys[0]]
    return png(lambda ax: draw(ax, gains, rows), (6.0, 4.5))


def main(
    quick: Annotated[bool, typer.Option(help="One seed, two points.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    seeds: Annotated[int, typer.Option(help="Worlds at each point.")] = 3,
) -> None:
    """Train at each point of the surface, and draw it."""
    folder = str(Path(storage or tempfile.mkdtemp()).resolve())
    common, days, seeds = (COMMON[1:2], DAYS[1:], 1) if quick else (COMMON, DAYS, seeds)
    worlds = {f"common {share:g}": {"common_users": share} for share in common}
    worlds |= {} if quick else MORE
    figures: Figures = {}
    table: list[dict[str, Any]] = []
    for told, dials in worlds.items():
        row = {"world": told}
        for length in days:
            found = point(dials, length, folder, seeds)
            figures |= {f"{told}.{length:g}.{key}": value for key, value in found.items()}
            row[f"{length:g} days"] = cell(found)
        table.append(row)
    Console().print(markdown_table(table), soft_wrap=True)
    if not quick and out is None:
        (RESULTS / "dials.png").write_bytes(plot(figures))
    write_result("dials", figures, out, table=table, seeds=seeds, quick=quick)


if __name__ == "__main__":
    typer.run(main)
