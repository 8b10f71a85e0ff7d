"""How good is what a user would build instead, on exactly the prepared rows?

    python -m benchmarks.baselines [--config FILE] [--storage DIR] [--seeds 3] [--quick] [--set ..]

For every scenario and task of a project file, on the samples that `jobs.prepare` made:

    popularity      the item's smoothed past rate (where negatives are sampled: its past count)
    lightgbm        gradient-boosted trees on all prepared statistics and columns
    lightgbm_text   the same with frozen text vectors: cosines of the candidate with the history
                    (mean, maximum, latest) and 32 principal components of the candidate's vector

A model per task, stopped early on valid, measured on test; mean over seeds. Predictions are kept
in the run's folder (`baselines/NAME.npz`), for intervals; what is found there is not fitted again.
"""

import multiprocessing
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightgbm
import numpy as np
import typer
from rich.console import Console

from benchmarks.common import TOP, write_result
from benchmarks.local import prepared_by_process
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.data.shards import Arrays, read_rows
from mtrec_ray.evaluation.metrics import binary_metrics, regression_metrics
from mtrec_ray.progress import Log
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.training.boosted_trees import Columns, Examples, fit_trees

BATCH_ROWS = 65_536
MEASURED = ("valid", "test")
NAMES = ("popularity", "lightgbm", "lightgbm_text")


@dataclass(frozen=True)
class Table:
    """Samples of a split as the trees read them.

    Attributes:
        user: i64[N], hashes. labels: f32[N, T]. popularity: f32[N, T].
        plain: f32[N, F], statistics and columns, the first `num_categorical` of them categories.
        text: f32[N, 35], cosines and principal components.
    """

    user: np.ndarray
    labels: np.ndarray
    popularity: np.ndarray
    plain: np.ndarray
    text: np.ndarray
    num_categorical: int

    def inputs(self, name: str) -> np.ndarray:
        """f32[N, F] of a baseline."""
        return np.concatenate([self.plain, self.text], 1) if name.endswith("text") else self.plain


def tables(
    project: Project, prepared: Prepared, name: str, rows: int | None = None
) -> Iterator[tuple[str, Table]]:
    """The samples of each split of a scenario; of train at least the first `rows`."""
    facts, columns = prepared.scenarios[name], Columns.of(project, prepared, name)
    for split in ("train", "valid", "test"):
        parts = [
            (r["person"], r["labels"], popularity(facts, r), columns.plain(r), columns.text(r))
            for r in first(batches(prepared, name, split), rows if split == "train" else None)
        ]
        found = [np.concatenate(c) for c in zip(*parts, strict=True)]
        yield split, Table(*found, num_categorical=columns.num_categorical)


def batches(prepared: Prepared, name: str, split: str) -> Iterator[Arrays]:
    """All rows of a scenario's split."""
    return read_rows(prepared.shard_paths(name, split), BATCH_ROWS, 0, 10**12)


def popularity(facts: PreparedScenario, rows: Arrays) -> np.ndarray:
    """f32[N, T]: the column that ranks items by popularity for each task."""
    columns = [facts.numeric_names.index(facts.popularity[t]) for t in facts.tasks]
    return rows["numeric"][:, columns]


def first(parts: Iterator[Arrays], rows: int | None) -> Iterator[Arrays]:
    """So many batches that they have `rows` rows (None: all)."""
    taken = 0
    for part in parts:
        yield part
        taken += len(part["person"])
        if rows is not None and taken >= rows:
            return


def fit_one(
    kind: str, train: Table, valid: Table, name: str, task: int, seed: int
) -> lightgbm.Booster:
    """Trees for a task, as many as are best on valid."""
    first, second = (
        Examples(t.inputs(name), t.labels, t.user).of_task(task) for t in (train, valid)
    )
    threads = multiprocessing.cpu_count()
    return fit_trees(kind, first, second, train.num_categorical, seed=seed, num_threads=threads)


def measure(
    kind: str, mean: float, labels: np.ndarray, scores: np.ndarray, users: np.ndarray
) -> dict[str, float]:
    """Metrics of one task's scores on its labelled rows."""
    known = np.isfinite(labels)
    own = labels[known].astype(np.float64), scores[known].astype(np.float64)
    if kind == "binary":
        return binary_metrics(*own, users[known], base_rate=mean)
    return regression_metrics(*own, train_mean=mean)


def run_scenario(
    project: Project,
    prepared: Prepared,
    name: str,
    seeds: int,
    folder: str,
    log: Log,
    rows: int | None = None,
) -> dict[str, np.ndarray]:
    """Scores f32[N, T] of valid and test by `SPLIT.BASELINE.SEED`, with users and labels.

    They are kept in a file.
    """
    path = Path(folder) / f"{name}.npz"
    if path.exists():
        return dict(np.load(path))
    facts = prepared.scenarios[name]
    split = dict(tables(project, prepared, name, rows))
    found: dict[str, np.ndarray] = {}
    for part in MEASURED:
        own = split[part]
        values = {"user": own.user, "labels": own.labels, "popularity.0": own.popularity}
        found |= {f"{part}.{k}": v for k, v in values.items()}
    for baseline in NAMES[1:]:
        for seed in range(seeds):
            columns: dict[str, list[np.ndarray]] = {part: [] for part in MEASURED}
            for task, kind in enumerate(facts.kinds.values()):
                booster = fit_one(kind, split["train"], split["valid"], baseline, task, seed)
                for part, scores in columns.items():
                    scores.append(np.asarray(booster.predict(split[part].inputs(baseline))))
                log(f"{name}.{facts.tasks[task]} {baseline} seed {seed}: "
                         f"{booster.best_iteration} trees")  # fmt: skip
            found |= {
                f"{part}.{baseline}.{seed}": np.stack(scores, 1).astype(np.float32)
                for part, scores in columns.items()
            }
    Path(folder).mkdir(parents=True, exist_ok=True)
    np.savez(path, **found)  # pyright: ignore[reportArgumentType]
    return found


def summarise(
    prepared: Prepared, scores: dict[str, dict[str, np.ndarray]], split: str = "test"
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Flat figures `SCENARIO.TASK.BASELINE.METRIC`, means over seeds, and a table row a task."""
    figures: dict[str, float] = {}
    rows = []
    for name, found in scores.items():
        facts = prepared.scenarios[name]
        for i, (task, kind) in enumerate(facts.kinds.items()):
            row = {"scenario": name, "task": task}
            for baseline in NAMES:
                runs = [
                    measure(kind, facts.label_means[task], found[f"{split}.labels"][:, i],
                            v[:, i], found[f"{split}.user"])
                    for k, v in found.items() if k.startswith(f"{split}.{baseline}.")
                ]  # fmt: skip
                mean = {m: float(np.mean([r[m] for r in runs])) for m in runs[0]}
                kept = ("auc", "gauc", "ne") if kind == "binary" else ("rmse",)
                figures |= {f"{name}.{task}.{baseline}.{m}": mean[m] for m in kept}
                row[baseline] = cell(mean)
            rows.append(row)
    return figures, rows


def cell(metrics: dict[str, Any]) -> str:
    """`0.7386 (0.736)`: AUC (GAUC), or an RMSE."""
    if "rmse" in metrics:
        return f"{metrics['rmse']:.4f}"
    return f"{metrics['auc']:.4f} ({metrics['gauc']:.3f})"


def run_baselines(
    project: Project, storage: str, seeds: int, rows: int | None = None
) -> tuple[Prepared, dict[str, dict[str, np.ndarray]]]:
    """The prepared data, and the scores of all baselines on test by scenario.

    `rows`: they are fitted on about so many training rows of a scenario at most.
    """
    prepared = prepared_by_process(project, storage)
    folder, log = files.join(storage, project.run.name, "baselines"), teller()
    return prepared, {
        name: run_scenario(project, prepared, name, seeds, folder, log, rows)
        for name in prepared.scenarios
    }


def main(
    config: Annotated[str, typer.Option(help="The project file.")] = str(
        TOP / "jobs" / "real4.yaml"
    ),
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
    seeds: Annotated[int, typer.Option(help="Fits of each task.")] = 3,
    quick: Annotated[bool, typer.Option(help="One seed.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Fit all baselines and write their figures."""
    project = load_project(config, override or [])
    folder = storage or tempfile.mkdtemp()
    prepared, scores = run_baselines(project, folder, 1 if quick else seeds)
    figures, table = summarise(prepared, scores)
    Console().print("valid:", markdown_table(summarise(prepared, scores, "valid")[1]), "test:")
    Console().print(markdown_table(table), soft_wrap=True)
    write_result("baselines", figures, out, table=table, quick=quick)


if __name__ == "__main__":
    typer.run(main)
