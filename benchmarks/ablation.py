"""What does each part of the joint model bring? The same rows and steps without it, or instead.

    python -m benchmarks.ablation [--quick] [--out FILE] [--root real4] [--storage DIR]

All four scenarios of `jobs/real4.yaml` in one model, two seeds, one thread a training; scored on
valid (nothing here looks at test). Two bases with budgets of their own, because an encoder that
learns costs more:

    frozen          the model of `real4.yaml` with a frozen encoder, 300,000 rows; then without
                    text, history, statistics, bins; with ids of users and items; only the first
                    task of each scenario; equal weights of scenarios and tasks; no teacher; mmoe,
                    ple, star, pepnet in place of the shared bottom
    frozen, short   the same with 80,000 rows; then its top layer, LoRA on two layers, or all
                    layers of the encoder learn

NE (log-loss over that of the training rate; of a regression: RMSE over that of the mean) is the
mean over the tasks of a scenario, lower is better. What is found in the storage is not trained
again.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.common import TOP, write_result
from benchmarks.local import fit, prepared_by_process, side_by_side, variant
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.evaluation.metrics import task_score
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table

SEEDS = 2
ROWS, SHORT_ROWS, QUICK_ROWS = 150_000, 40_000, 30_000
FROZEN = {"trainable": "none"}
# What of `model` each variant changes; two of them change weights of the loss.
VARIANTS: dict[str, dict[str, Any]] = {
    "frozen": {"encoder": FROZEN},
    "no text": {"encoder": FROZEN, "text": False},
    "no history": {"encoder": FROZEN, "history": False},
    "no statistics": {"encoder": FROZEN, "statistics": False},
    "no bins": {"encoder": FROZEN, "bins": 0},
    "with ids": {"encoder": FROZEN, "user_ids": True, "item_ids": True},
    "first task only": {"encoder": FROZEN},
    "equal weights": {"encoder": FROZEN},
    "no teacher": {"encoder": FROZEN},
    "mmoe": {"encoder": FROZEN, "sharing": "mmoe"},
    "ple": {"encoder": FROZEN, "sharing": "ple", "experts": 2},
    "star": {"encoder": FROZEN, "sharing": "star"},
    "pepnet": {"encoder": FROZEN, "sharing": "pepnet"},
    "frozen, short": {"encoder": FROZEN},
    "top_1": {"encoder": {"trainable": "top_k", "top_k": 1}},
    "lora": {"encoder": {"trainable": "lora"}},
    "all layers": {"encoder": {"trainable": "all"}},
}
SHORT = ("frozen, short", "top_1", "lora", "all layers")
BASES = dict.fromkeys(VARIANTS, "frozen") | dict.fromkeys(SHORT, "frozen, short")


def project_of(base: Project, name: str, seed: int, *, quick: bool) -> Project:
    """The project of a variant."""
    rows = QUICK_ROWS if quick else SHORT_ROWS if name in SHORT else ROWS
    training: dict[str, Any] = {"rows_per_epoch": rows, "epochs": 1 if quick else 2, "seed": seed}
    if name == "no teacher":
        training["teacher"] = {"share": 0.0}
    project = variant(base, list(base.scenarios), model=VARIANTS[name], training=training)
    tree = project.dump()
    for scenario in tree["scenarios"].values():
        for i, task in enumerate(scenario["tasks"].values()):
            if name == "equal weights" or (name == "first task only" and i):
                task["weight"] = float(name == "equal weights")
        if name == "equal weights":
            scenario["weight"] = 1.0
    return Project.model_validate(tree)


def run_one(
    base: Project, prepared: Prepared, name: str, seed: int, quick: bool, path: Path
) -> None:
    """Train one variant with one seed; what it reached goes into a file."""
    found = fit(project_of(base, name, seed, quick=quick), prepared, splits=())
    best = min(found.curve, key=lambda record: record["joint_score"])
    kept = {k: best[k] for k in ("valid", "gate_use", "gradient_cosine")}
    record = {"variant": name, "seed": seed, "seconds": found.seconds, **kept}
    path.write_text(json.dumps(record))
    print(f"{name} seed {seed}: {found.seconds:.0f} s, "
          f"joint score {best['joint_score']:.4f}", flush=True)  # fmt: skip


def scores_of(valid: dict[str, float]) -> dict[str, float]:
    """The task score of each `scenario.task`."""
    tasks: dict[str, dict[str, float]] = {}
    for key, value in valid.items():
        scenario, task, metric = key.split("/")
        tasks.setdefault(f"{scenario}.{task}", {})[metric] = value
    return {name: task_score(metrics) for name, metrics in tasks.items()}


def summarise(found: list[dict[str, Any]]) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Figures `VARIANT.SCENARIO.ne`, and a row a variant with the difference to its base."""
    figures: dict[str, float] = {}
    means: dict[str, dict[str, float]] = {}
    table = []
    for name in [v for v in VARIANTS if any(f["variant"] == v for f in found)]:
        runs = [scores_of(f["valid"]) for f in found if f["variant"] == name]
        first_only = name == "first task only"
        scenarios = list(dict.fromkeys(key.split(".")[0] for key in runs[0]))
        mean: dict[str, float] = {}
        row = {"model": name}
        for scenario in scenarios:
            keys = [k for k in runs[0] if k.startswith(f"{scenario}.")]
            shown = keys[:1] if first_only else keys
            values = [float(np.mean([run[k] for k in shown])) for run in runs]
            mean[scenario] = float(np.mean(values))
            base = means.get(BASES[name], {})
            if first_only:
                base_runs = [scores_of(f["valid"]) for f in found if f["variant"] == "frozen"]
                base = base | {scenario: float(np.mean([r[keys[0]] for r in base_runs]))}
            spread = max(values) - min(values)
            figures |= {
                f"{name}.{scenario}.ne": mean[scenario],
                f"{name}.{scenario}.spread": spread,
            }
            change = f" ({mean[scenario] - base[scenario]:+.4f})" if scenario in base else ""
            row[scenario] = f"{mean[scenario]:.4f}{change}"
        means[name] = mean
        seconds = float(np.mean([f["seconds"] for f in found if f["variant"] == name]))
        figures[f"{name}.seconds"] = seconds
        table.append(row | {"seconds": f"{seconds:.0f}"})
    return figures, table


def main(
    quick: Annotated[bool, typer.Option(help="Few rows, one seed: ends in 10 minutes.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "",
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
) -> None:
    """Train all variants and write their scores on valid."""
    base = load_project(TOP / "jobs" / "real4.yaml", [f"root={root}"] if root else [])
    folder = storage or tempfile.mkdtemp()
    prepared = prepared_by_process(base, folder, teach=True)
    kept = Path(folder) / ("ablation-quick" if quick else "ablation")
    kept.mkdir(parents=True, exist_ok=True)
    calls = []
    for seed in range(1 if quick else SEEDS):
        for name in VARIANTS:
            path = kept / f"{name.replace(' ', '_')}-{seed}.json"
            if not path.exists():
                calls.append((run_one, (base, prepared, name, seed, quick, path)))
    side_by_side(calls)
    found = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
    figures, table = summarise(found)
    Console().print(markdown_table(table), soft_wrap=True)
    gates = {f"{f['variant']}.{f['seed']}": f["gate_use"] for f in found if f["gate_use"]}
    cosines = {f"{f['variant']}.{f['seed']}": f["gradient_cosine"] for f in found}
    write_result(
        "ablation", figures, out, table=table, gate_use=gates, gradient_cosine=cosines, quick=quick
    )


if __name__ == "__main__":
    typer.run(main)
