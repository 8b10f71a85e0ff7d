"""Does joint training pay, scenario by scenario, and what is it worth to one that comes later?

    python -m benchmarks.joining [--quick] [--seeds 3] [--out FILE] [--root real4] [--storage DIR]

Two tables on the four scenarios of `jobs/real4.yaml`, test rows, everything chosen on valid:

    three ways    joint, fine-tuned, alone (same budget): means over seeds, differences with 95 %
                  intervals (paired bootstrap over users, the mean over seeds of each resample)
    leave one out joint training on three scenarios; the fourth joins with 0 (general head), 64,
                  1,024 and all of its rows, against training alone with as many, both for two
                  epochs; first seed, and no teacher, which would have seen all rows

Training takes fewer rows than the project file asks for (`BUDGET`). What is found in the
storage is not trained again.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.numpy import load_file

from benchmarks.common import TOP, write_result
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import PreparedScenario, load_prepared
from mtrec_ray.evaluation.bootstrap import Interval, metric_interval, paired_difference
from mtrec_ray.project.load import load_project, parse_project, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.finetune import Options, run_finetune
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.train import run_train

MODELS = ("joint", "finetuned", "alone")
SHOTS = ("0", "64", "1024", "all")
BUDGET = ("training.rows_per_epoch=300000", "finetune.rows_per_epoch=60000")
QUICK = ("training.rows_per_epoch=100000", "training.epochs=1", "training.teacher.share=0")

Scores = dict[str, list[np.ndarray]]  # by model, of each seed: f32[N, T]


def named(project: Project, name: str, seed: int) -> Project:
    """The project as another run with another seed of training."""
    tree = project.dump()
    tree["run"]["name"] = name
    tree["training"]["seed"] = seed
    return parse_project(tree)


def share_data(storage: str, first: str, other: str) -> None:
    """Have a run's prepared data and teacher in another run: of another seed of training alone."""
    for folder in ("prepared", "teacher"):
        source, target = (Path(storage, name, folder) for name in (first, other))
        if source.exists() and not target.exists():
            shutil.copytree(source, target)


# --- three ways ------------------------------------------------------------------------------


def three_ways(base: Project, storage: str, seeds: int) -> tuple[dict[str, Scores], dict[str, Any]]:
    """Test scores of all models and seeds, and users and labels, by scenario."""
    scores: dict[str, Scores] = {name: {m: [] for m in MODELS} for name in base.scenarios}
    rows: dict[str, Any] = {}
    for seed in range(seeds):
        project = named(base, f"three-{seed}", seed)
        share_data(storage, "three-0", project.run.name)
        run_prepare(project, storage, teller())
        run_train(project, storage, teller())
        run_finetune(project, storage, teller(), Options(compare=True))
        for name, own in scores.items():
            folder = Path(storage, project.run.name, "scenarios", name, "alone")
            found = load_file(folder / "scores.safetensors")
            rows[name] = (found["users"], found["labels"])
            for model in MODELS:  # of one that was not fine-tuned: the joint model
                own[model].append(found[model] if model in found else found["joint"])
    return scores, rows


def compare_task(
    facts: PreparedScenario, task: str, scores: Scores, rows: tuple[np.ndarray, np.ndarray]
) -> tuple[dict[str, float], dict[str, Interval]]:
    """A task's metric by model, means over seeds, and the differences of each two."""
    i = facts.tasks.index(task)
    users, labels = rows
    known = np.isfinite(labels[:, i])
    metric = "auc" if facts.kinds[task] == "binary" else "rmse"
    label = labels[known, i].astype(np.float64)
    own = {m: [s[known, i].astype(np.float64) for s in runs] for m, runs in scores.items()}
    values = {
        m: float(np.mean([metric_interval(metric, label, s, users[known]).value for s in runs]))
        for m, runs in own.items()
    }
    pairs = (("finetuned", "joint"), ("finetuned", "alone"), ("joint", "alone"))
    gaps = {
        f"{a}-{b}": paired_difference(metric, label, own[a], own[b], users[known]) for a, b in pairs
    }
    return values, gaps


def three_way_table(
    facts: dict[str, PreparedScenario], scores: dict[str, Scores], rows: dict[str, Any]
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Figures and the table of all tasks."""
    figures, table = {}, []
    for name, own in facts.items():
        for task in own.tasks:
            values, gaps = compare_task(own, task, scores[name], rows[name])
            row = {"task": f"{name}.{task}"} | {m: f"{v:.4f}" for m, v in values.items()}
            figures |= {f"{name}.{task}.{m}": v for m, v in values.items()}
            for pair, gap in gaps.items():
                star = " *" if gap.excludes_zero else ""
                row[pair] = f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]{star}"
                ends = (("gap", gap.value), ("low", gap.low), ("high", gap.high))
                figures |= {f"{name}.{task}.{pair}.{word}": v for word, v in ends}
            table.append(row)
    return figures, table


# --- leave one out ---------------------------------------------------------------------------


def leave_out(base: Project, storage: str, name: str) -> dict[str, Any]:
    """The learning curve of a scenario that joins a joint model of the others."""
    run = {"run.name": f"without-{name}", "training.teacher.share": 0.0, "finetune.epochs": 2}
    whole = with_overrides(base, run)
    others = whole.only([n for n in whole.scenarios if n != name])
    run_prepare(others, storage, teller())
    run_train(others, storage, teller())
    found = run_finetune(whole, storage, teller(), Options((name,), shots=SHOTS))
    return found["shots"][name]


def curve_rows(name: str, curve: dict[str, Any]) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Figures and table rows of a learning curve: AUC or RMSE, joined and alone."""
    figures, rows = {}, []
    tasks = dict.fromkeys(t for point in curve.values() for t in point)
    for task in tasks:
        row = {"task": f"{name}.{task}"}
        for shots in SHOTS:
            for how in ("joined", "alone"):
                point = curve.get(f"{shots} rows, {how}", {}).get(task, {})
                value = point.get("auc", point.get("rmse"))
                row[f"{shots}, {how}"] = "-" if value is None else f"{value:.4f}"
                if value is not None:
                    figures[f"{name}.{task}.{how}_{shots}"] = value
        rows.append(row)
    return figures, rows


def main(
    quick: Annotated[bool, typer.Option(help="One seed, few rows, two scenarios.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds of the three ways.")] = 3,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "",
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
) -> None:
    """Train what both tables need and write them."""
    words = [*BUDGET, *(QUICK if quick else ()), *([f"root={root}"] if root else ())]
    base = load_project(TOP / "jobs" / "real4.yaml", words)
    if quick:
        base = base.only(["shop", "video"])
    folder, seeds = storage or tempfile.mkdtemp(), 1 if quick else seeds
    scores, rows = three_ways(base, folder, seeds)
    facts = load_prepared(files.join(folder, "three-0", "prepared")).scenarios
    figures, table = three_way_table(facts, scores, rows)
    print(markdown_table(table))
    curves: list[dict[str, str]] = []
    for name in ["video"] if quick else base.scenarios:
        own, lines = curve_rows(name, leave_out(base, folder, name))
        figures |= own
        curves += lines
    print(markdown_table(curves))
    write_result(
        "joining", figures, out, three_ways=table, curves=curves, seeds=seeds, quick=quick,
        rows_per_epoch=base.training.rows_per_epoch,
        finetune_rows_per_epoch=base.finetune.rows_per_epoch,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
