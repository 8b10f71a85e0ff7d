"""When is one model for all scenarios better than one for each?

    python -m benchmarks.dials [--quick] [--seeds 3] [--storage DIR] [--out FILE]

The generated world of `jobs/quickstart.yaml`, smaller, with two large scenarios (8,000 events) and
a small one, `news` (4,000, of which few are learned from: the others judge). Two dials make a
surface: the share of users who are the same people in all scenarios, and the training rows of the
small scenario. At every point the joint model and the small scenario alone are trained, each with
what stands beside it by default; `joint less alone` is the difference of their test AUC of
`news.click`. Two more rows turn the other dials: taste that the text does not tell (`in_text: 0`),
and users whose taste differs from scenario to scenario (`conflict: 1`).

A seed is another world and another training; frozen encoder. Means over seeds, with the standard
error of the mean. With `--quick`: one seed, two points. An interrupted run goes on.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.axes import Axes
from rich.console import Console

from benchmarks.beside import Scored, all_alone, predict, predictions_of, score_scenario
from benchmarks.common import RESULTS, TOP, write_result
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.evaluation.metrics import roc_auc
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.plots import png
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.predictions import read_predictions

SMALL, EVENTS = "news", 4000
COMMON = (0.0, 0.5, 1.0)
ROWS = (120, 400, 1600)
MORE: Mapping[str, Mapping[str, float]] = {
    "nothing in the text": {"common_users": 1.0, "in_text": 0.0},
    "other tastes": {"common_users": 1.0, "conflict": 1.0},
}
WORDS = (
    "sample_world.users=500", "sample_world.items=160", "sample_world.events=8000",
    f"sample_world.small_events={EVENTS}", "model.encoder.trainable=none",
    "recommend.ranking_users=0", "scenarios.news.split.time=null",
)  # fmt: skip
MODELS = ("network", "joint", "alone", "alone_all", "trees")

Figures = dict[str, float]


def project_of(dials: Mapping[str, float], rows: int, seed: int, *, name: str) -> Project:
    """The project of a point of the surface."""
    share = rows / EVENTS
    words = [
        *WORDS, f"scenarios.news.split.fractions=[{share},0.2,{0.8 - share}]",
        f"sample_world.seed={seed + 7}", f"training.seed={seed}", f"run.name={name}-{rows}-{seed}",
        *(f"sample_world.{dial}={value}" for dial, value in dials.items()),
    ]  # fmt: skip
    return load_project(TOP / "jobs" / "quickstart.yaml", words)


def measure(project: Project, folder: str) -> Figures:
    """Test AUC of the small scenario's first task by model."""
    predict(project, folder)
    prepared = load_prepared(files.join(folder, project.run.name, "prepared"))
    facts = prepared.scenarios[SMALL]
    own = all_alone(project, prepared, folder, (SMALL,))[SMALL]
    path = predictions_of(project, folder, f"scores-{SMALL}.npz")
    said = {split: predictions_of(project, folder, split) for split in ("valid", "test")}
    if not Path(path).exists():
        score_scenario(Scored(facts, said, own, path, parts=False))
    scores = dict(np.load(path))
    label = read_predictions(said["test"], SMALL, len(facts.tasks))["label"][:, 0]
    return {
        m: roc_auc(label, scores[m][:, 0]) for m in MODELS if np.isfinite(scores[m][:, 0]).all()
    }


def point(dials: Mapping[str, float], rows: int, folder: str, seeds: int, name: str) -> Figures:
    """Means over seeds at a point, and joint less alone with its standard error."""
    runs = [measure(project_of(dials, rows, s, name=name), folder) for s in range(seeds)]
    told = [m for m in MODELS if all(m in run for run in runs)]
    found = {m: float(np.mean([run[m] for run in runs])) for m in told}
    gains = [run["joint"] - run["alone"] for run in runs]
    error = float(np.std(gains, ddof=1) / np.sqrt(seeds)) if seeds > 1 else float("nan")
    return found | {"gain": float(np.mean(gains))} | ({"error": error} if seeds > 1 else {})


def cell(found: Figures) -> str:
    """`+0.0123 ± 0.0045 (0.8123)`: joint less alone, and joint's AUC."""
    error = f" ± {found['error']:.4f}" if "error" in found else ""
    return f"{found['gain']:+.4f}{error} ({found['joint']:.4f})"


def draw(ax: Axes, gains: np.ndarray) -> None:
    """The surface of joint less alone, by rows and by common users."""
    most = float(np.abs(gains).max())
    image = ax.imshow(gains, cmap="RdBu", vmin=-most, vmax=most, origin="lower", aspect="auto")
    ax.set_xticks(range(len(ROWS)), [f"{rows:,}" for rows in ROWS])
    ax.set_yticks(range(len(COMMON)), [f"{share:.0%}" for share in COMMON])
    ax.set_xlabel("training rows of the small scenario")
    ax.set_ylabel("users who are the same people everywhere")
    ax.set_title("test AUC, joint less alone")
    for (row, column), gain in np.ndenumerate(gains):
        ax.text(column, row, f"{gain:+.3f}", ha="center", va="center")
    ax.figure.colorbar(image, ax=ax)


def main(
    quick: Annotated[bool, typer.Option(help="One seed, two points.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    seeds: Annotated[int, typer.Option(help="Worlds at each point.")] = 3,
) -> None:
    """Train at each point of the surface, and draw it."""
    folder = str(Path(storage or tempfile.mkdtemp()).resolve())
    common, rows, seeds = (COMMON[1:2], ROWS[1:], 1) if quick else (COMMON, ROWS, seeds)
    worlds = {f"common {s:g}": {"common_users": s} for s in common} | ({} if quick else MORE)
    figures: Figures = {}
    table: list[dict[str, Any]] = []
    for number, (told, dials) in enumerate(worlds.items()):
        row = {"world": told}
        for size in rows:
            found = point(dials, size, folder, seeds, f"world{number}")
            figures |= {f"{told}.{size}.{key}": value for key, value in found.items()}
            row[f"{size:,} rows"] = cell(found)
        table.append(row)
    Console().print(markdown_table(table), soft_wrap=True)
    if not quick and out is None:
        gains = [[figures[f"common {s:g}.{n}.gain"] for n in ROWS] for s in COMMON]
        (RESULTS / "dials.png").write_bytes(png(lambda ax: draw(ax, np.array(gains)), (6.0, 4.5)))
    write_result("dials", figures, out, table=table, seeds=seeds, quick=quick)


if __name__ == "__main__":
    typer.run(main)
