"""What do columns bring that a project file leaves out until somebody names them?

    python -m benchmarks.features [--quick] [--seeds 3] [--out FILE] [--root DATA] [--storage DIR]

All four scenarios of `jobs/real4.yaml` in one model with a frozen encoder and without a teacher,
300,000 rows, one thread a training, three seeds; scored on valid (nothing here looks at test):

    plain           the columns of `real4.yaml`
    genres          genres of films as several values (they are in the text, too)
    genre rates     and past counts and rates of each genre, and of each user with it
    users           age and country of readers, of the raw set's table of users
    outcomes        histories tell what came of their items
    all rows        and those of films hold all rows, not only what was liked

The tags of the raw set of films are left out: its split is by each user's rows, and a tag that one
user gave tells of later rows of another.

NE is the mean over the tasks of a scenario, lower is better; in brackets the difference to `plain`
with the same seed, its least and its greatest over the seeds. What is found in the storage is not
trained again.
"""

import csv
import gzip
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console

from benchmarks.ablation import scores_of
from benchmarks.common import TOP, write_result
from benchmarks.local import fit, prepared_by_process, side_by_side
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table

ROWS, QUICK_ROWS = 150_000, 30_000
AGES = (5, 100)  # others in the raw set are no ages
TABLES = "tables"  # folder of what is made of raw files

Tree = dict[str, Any]


def genres(tree: Tree, _: Path) -> None:
    """Genres of films as several values."""
    tree["scenarios"]["video"]["items"]["separators"] = {"genres": "|"}


def genre_rates(tree: Tree, folder: Path) -> None:
    """Genres with past counts and rates."""
    genres(tree, folder)
    tree["scenarios"]["video"]["items"]["statistics_of"] = ["genres"]


def users(tree: Tree, folder: Path) -> None:
    """Readers by age and country."""
    tree["users"] = {
        "readers": {
            "path": str(folder / "readers.parquet"), "numeric": ["age"], "categorical": ["country"]
        }
    }  # fmt: skip
    tree["scenarios"]["books"]["users"] = "readers"


def outcomes(tree: Tree, _: Path) -> None:
    """Histories that tell what came of their items."""
    for scenario in tree["scenarios"].values():
        scenario["history"]["outcomes"] = True


def all_rows(tree: Tree, folder: Path) -> None:
    """And films that were not liked are in the history, too."""
    outcomes(tree, folder)
    tree["scenarios"]["video"]["history"]["of"] = "any"


VARIANTS: dict[str, Callable[[Tree, Path], None]] = {
    "plain": lambda tree, folder: None,
    "genres": genres,
    "genre rates": genre_rates,
    "users": users,
    "outcomes": outcomes,
    "all rows": all_rows,
}


def write_readers(raw: Path, path: Path) -> None:
    """Write the raw set's users: id, age where it can be one, and country."""
    with gzip.open(raw, "rt", encoding="latin-1", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";", escapechar="\\"))
    ages = [int(r["Age"]) if r["Age"].isdigit() else -1 for r in rows]
    table = {
        "user_id": [r["User-ID"] for r in rows],
        "age": [age if AGES[0] <= age <= AGES[1] else None for age in ages],
        "country": [r["Location"].rsplit(",", 1)[-1].strip() or None for r in rows],
    }
    pq.write_table(pa.table(table), path)


def project_of(base: Project, name: str, folder: Path, seed: int, *, quick: bool) -> Project:
    """The project of a variant."""
    tree = base.dump()
    VARIANTS[name](tree, folder / TABLES)
    tree["run"]["name"] = "features-" + name.replace(" ", "-")
    tree["model"]["encoder"]["trainable"] = "none"
    tree["training"] |= {
        "rows_per_epoch": QUICK_ROWS if quick else ROWS,
        "epochs": 1 if quick else 2,
        "seed": seed,
        "teacher": {"share": 0.0},
    }
    return Project.model_validate(tree)


def run_one(project: Project, prepared: Prepared, name: str, seed: int, path: Path) -> None:
    """Train one variant with one seed; what it reached goes into a file."""
    found = fit(project, prepared, splits=())
    best = min(found.curve, key=lambda record: record["joint_score"])
    path.write_text(json.dumps({"variant": name, "seed": seed, "valid": best["valid"]}))
    print(f"{name} seed {seed}: {found.seconds:.0f} s, "
          f"joint score {best['joint_score']:.4f}", flush=True)  # fmt: skip


def by_scenario(valid: Mapping[str, float]) -> dict[str, float]:
    """Mean NE of each scenario, and AUC and GAUC of each of its binary tasks."""
    scores = scores_of(dict(valid))
    names = list(dict.fromkeys(key.split(".")[0] for key in scores))
    found = {
        f"{name}.ne": float(np.mean([v for k, v in scores.items() if k.startswith(f"{name}.")]))
        for name in names
    }
    for key, value in valid.items():
        scenario, task, metric = key.split("/")
        if metric in ("auc", "gauc"):
            found[f"{scenario}.{task}.{metric}"] = value
    return found


def summarise(runs: list[dict[str, Any]]) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Figures `VARIANT.SCENARIO.ne`, differences to plain with their ends, and a table."""
    by_seed = {(r["variant"], r["seed"]): by_scenario(r["valid"]) for r in runs}
    seeds = sorted({seed for _, seed in by_seed})
    figures: dict[str, float] = {}
    table = []
    for name in VARIANTS:
        own = [by_seed[name, seed] for seed in seeds]
        plain = [by_seed["plain", seed] for seed in seeds]
        row = {"columns": name}
        for key in own[0]:
            change = np.array([a[key] - b[key] for a, b in zip(own, plain, strict=True)])
            figures[f"{name}.{key}"] = float(np.mean([o[key] for o in own]))
            if name != "plain":
                figures |= {
                    f"{name}.{key}.change": float(change.mean()),
                    f"{name}.{key}.least": float(change.min()),
                    f"{name}.{key}.greatest": float(change.max()),
                }
            if key.endswith(".ne"):
                row[key.removesuffix(".ne")] = cell(figures, f"{name}.{key}")
        table.append(row)
    return figures, table


def cell(figures: Mapping[str, float], key: str) -> str:
    """A mean, and its difference to plain from the least to the greatest."""
    if f"{key}.change" not in figures:
        return f"{figures[key]:.4f}"
    low, high = (figures[f"{key}.{end}"] for end in ("least", "greatest"))
    return f"{figures[key]:.4f} ({low:+.4f} to {high:+.4f})"


def main(
    quick: Annotated[bool, typer.Option(help="Few rows, one seed.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data sets.")] = "../shared/data",
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 3,
) -> None:
    """Train all variants and write their scores on valid."""
    data, folder = (TOP / root).resolve(), Path(storage or tempfile.mkdtemp()).resolve()
    base = load_project(TOP / "jobs" / "real4.yaml", [f"root={data / 'real4'}"])
    kept = folder / ("features-quick" if quick else "features")
    for made in (kept, folder / TABLES):
        made.mkdir(parents=True, exist_ok=True)
    write_readers(data / "book_crossing" / "BX-Users.csv.gz", folder / TABLES / "readers.parquet")
    calls = []
    for name in VARIANTS:
        numbers = range(1 if quick else seeds)
        paths = {s: kept / f"{name.replace(' ', '_')}-{s}.json" for s in numbers}
        if left := {s: path for s, path in paths.items() if not path.exists()}:
            projects = {s: project_of(base, name, folder, s, quick=quick) for s in left}
            prepared = prepared_by_process(projects[min(left)], str(folder))
            calls += [(run_one, (projects[s], prepared, name, s, p)) for s, p in left.items()]
    side_by_side(calls)
    runs = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
    figures, table = summarise(runs)
    Console().print(markdown_table(table), soft_wrap=True)
    write_result("features", figures, out, table=table, quick=quick)


if __name__ == "__main__":
    typer.run(main)
