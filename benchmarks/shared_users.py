"""Is joint training better than training alone, and better than LightGBM on the same columns?

    python -m benchmarks.shared_users [--quick] [--seeds 3] [--data real4 --data grocery ..]
                                      [--root DATA] [--storage DIR] [--out FOLDER]

Two data sets whose scenarios have the same people, `jobs/grocery.yaml` and `jobs/anime.yaml`, and
one whose scenarios have not, `jobs/real4.yaml` (two epochs of 400,000 rows, no teacher). Test rows,
everything fitted on train and valid. By task:

    network      the joint network by itself
    joint        the joint network, with what stands beside it by default: boosted trees, labels of
                 other items, and the sources of candidates, which know what a person took and gave
                 in all scenarios
    alone        a network of this scenario only (the joint model's steps, each with its rows of
                 the scenario), with trees, labels and sources of this scenario
    alone_all    the same network that reads what people took in other scenarios, too
                 (`history.elsewhere`), with labels and sources of all scenarios
    trees        no network: LightGBM on the prepared columns and on texts, fitted on train
    lightgbm_here, lightgbm_all
                 no network: those trees' log odds, the labels and the sources of this scenario (of
                 all) are the columns of a second LightGBM, fitted on valid

So `alone_all` less `alone` is what shared information brings, `joint` less `alone_all` what shared
weights bring. Of the first seed it is told, too, what joint has without trees, labels or sources.
The rival of a task is the best of the last three on test; of real4 there are the reference
baselines B0 to B4, too, which were computed apart from this project. Differences have 95 %
intervals (paired bootstrap over users). Slices: rows of people that train knows in the scenario,
only in others, or not at all; of known and of new items.

With `--quick`: one seed, one epoch. An interrupted run goes on. Each data set has a result of its
own, `shared_users_DATA.json`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from benchmarks.beside import LEFT_OUT, MODELS, RIVALS, Rows, runs_of
from benchmarks.common import TOP, write_result
from benchmarks.real4 import read_references
from mtrec_ray.data.arrays import Bools
from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.data.shards import read_columns
from mtrec_ray.evaluation.bootstrap import Interval, paired_difference
from mtrec_ray.evaluation.metrics import grouped_auc, rmse, roc_auc
from mtrec_ray.report.tables import markdown_table

DATA = ("real4", "grocery", "anime")
LEAST_POSITIVES = 200  # of test, of a scenario that the goal speaks of


def measure(kind: str, label: np.ndarray, score: np.ndarray) -> float:
    """AUC, or RMSE; NaN where there is none."""
    if kind == "regression":
        return rmse(label, score)
    if not len(label) or label.min() == label.max() or not np.isfinite(score).all():
        return float("nan")
    return roc_auc(label, score)


def slices_of(prepared: Prepared, name: str, test: Rows) -> dict[str, Bools]:
    """Which test rows are of people and of items that train knows where."""
    space = prepared.scenarios[name].user_space
    crowd = [n for n, facts in prepared.scenarios.items() if facts.user_space == space]
    persons = {n: column_of_train(prepared, n, "person") for n in crowd}
    here = np.isin(test["person"], persons[name])
    elsewhere = np.isin(test["person"], np.concatenate(list(persons.values())))
    known = np.isin(test["item"], column_of_train(prepared, name, "item"))
    return {
        "known_here": here, "only_elsewhere": elsewhere & ~here, "new_people": ~elsewhere,
        "known_items": known, "new_items": ~known,
    }  # fmt: skip


def column_of_train(prepared: Prepared, name: str, column: str) -> np.ndarray:
    """The distinct values of a column of training rows."""
    parts = read_columns(prepared.shard_paths(name, "train"), (column,))
    return np.unique(np.concatenate([part[column] for part in parts]))


@dataclass(frozen=True)
class Compared:
    """A task's labelled test rows, and what each model says of them, seed by seed."""

    kind: str
    label: np.ndarray
    person: np.ndarray
    scores: Mapping[str, list[np.ndarray]]

    @classmethod
    def of(cls, facts: PreparedScenario, task: str, runs: Sequence[Rows], test: Rows) -> "Compared":
        """The rows of a task that have a label."""
        i = facts.tasks.index(task)
        known = np.isfinite(test["label"][:, i])
        scores = {
            m: [run[m][known, i].astype(np.float64) for run in runs if m in run]
            for m in (*MODELS, *(f"without_{what}" for what in LEFT_OUT))
        }
        label = test["label"][known, i].astype(np.float64)
        return cls(facts.kinds[task], label, test["person"][known], scores)

    @property
    def metric(self) -> str:
        """The main one."""
        return "auc" if self.kind == "binary" else "rmse"

    def mean(self, model: str, rows: Bools | slice = slice(None)) -> float:
        """Mean over seeds of the main metric; NaN where there is none."""
        runs = [measure(self.kind, self.label[rows], s[rows]) for s in self.scores[model]]
        return float(np.mean(runs))

    def gauc(self, model: str) -> float:
        """Mean over seeds of the users' AUC."""
        runs = [grouped_auc(self.label, s, self.person)[0] for s in self.scores[model]]
        return float(np.mean(runs))

    def interval(self, other: str) -> Interval:
        """Joint less another."""
        first, second = self.scores["joint"], self.scores[other]
        return paired_difference(self.metric, self.label, first, second, self.person)


def compare_task(
    one: Compared, slices: Mapping[str, Bools], references: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Means over seeds of a task by model and slice, and differences with their intervals."""
    found = {m: one.mean(m) for m in one.scores} | {"rows": float(len(one.label))}
    found["joint_first"] = measure(one.kind, one.label, one.scores["joint"][0])
    if one.kind == "binary":
        found["positives"] = float(one.label.sum())
        for part, rows in slices.items():
            found |= {f"{part}.{m}": one.mean(m, rows) for m in MODELS}
            found[f"{part}.rows"] = float(rows.sum())
    found = {key: value for key, value in found.items() if np.isfinite(value)}
    told = [m for m in MODELS if m in found and m not in ("network", "joint")]
    gaps = {m: one.interval(m) for m in told}
    for other, gap in gaps.items():
        found |= {f"less_{other}_low": gap.low, f"less_{other}_high": gap.high}
    if one.kind == "binary" and told:
        found |= {f"{m}.gauc": one.gauc(m) for m in ("network", "joint", *told)}
    if rivals := [m for m in told if m in RIVALS]:
        best = (max if one.kind == "binary" else min)(rivals, key=lambda m: found[m])
        found |= {"rival": found[best], "rival_number": float(RIVALS.index(best))}
        found |= {f"less_rival_{end}": found[f"less_{best}_{end}"] for end in ("low", "high")}
    if values := [v[one.metric] for v in references.values() if one.metric in v]:
        found["reference"] = max(values) if one.kind == "binary" else min(values)
    return found


def row_of(key: str, found: Mapping[str, float]) -> dict[str, str]:
    """A row of the table."""
    row = {"task": key, "test rows": f"{found['rows']:,.0f}"}
    row |= {m: cell(found, m) for m in MODELS}
    if "reference" in found:
        row["B0-B4"] = f"{found['reference']:.4f}"
    for other in ("alone", "rival"):
        low, high = (found.get(f"less_{other}_{end}") for end in ("low", "high"))
        told = "-" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
        row[f"joint less {other}"] = told
    return row


def cell(found: Mapping[str, float], model: str) -> str:
    """`0.7386 (0.736)`, AUC and GAUC, or `0.8869`, RMSE."""
    if model not in found:
        return "-"
    gauc = found.get(f"{model}.gauc", float("nan"))
    return f"{found[model]:.4f} ({gauc:.3f})" if np.isfinite(gauc) else f"{found[model]:.4f}"


def macro(figures: Mapping[str, float], mains: Mapping[str, str]) -> dict[str, float]:
    """Means over scenarios with enough positives, of all and of the half with fewer rows."""
    large = [k for k in mains.values() if figures.get(f"{k}.positives", 0) >= LEAST_POSITIVES]
    by_size = sorted(large, key=lambda key: figures[f"{key}.rows"])
    found = {"scenarios": float(len(large))}
    for what, keys in (("all", by_size), ("small_half", by_size[: len(by_size) // 2])):
        for m in MODELS if keys else ():
            found[f"{what}.{m}"] = float(np.mean([figures[f"{k}.{m}"] for k in keys]))
    for m in MODELS:
        parts = [figures.get(f"{k}.only_elsewhere.{m}") for k in mains.values()]
        rows = [figures.get(f"{k}.only_elsewhere.rows", 0) for k in mains.values()]
        both = [(p, n) for p, n in zip(parts, rows, strict=True) if p is not None]
        if both:
            values, weights = zip(*both, strict=True)
            found[f"only_elsewhere.{m}"] = float(np.average(values, weights=weights))
    left_out = [f"without_{what}" for what in LEFT_OUT]
    for m in (*left_out, "joint_first") if large else ():
        found[f"all.{m}"] = float(np.mean([figures[f"{k}.{m}"] for k in large]))
    for other in MODELS[2:]:
        wins = [figures[f"{k}.joint"] > figures[f"{k}.{other}"] for k in large]
        found[f"scenarios_ahead_of_{other}"] = float(sum(wins))
    return found


def tally(figures: Mapping[str, float], kinds: Mapping[str, str]) -> dict[str, float]:
    """On how many tasks joint is ahead of the rival, of references and of alone; surely or not."""
    told = [key for key in kinds if f"{key}.rival" in figures]
    found = {"tasks": float(len(told))}
    for other in ("rival", "alone", "reference"):
        signs = [(key, 1 if kinds[key] == "binary" else -1) for key in told]
        known = [(k, s) for k, s in signs if f"{k}.{other}" in figures]
        wins = [s * (figures[f"{k}.joint"] - figures[f"{k}.{other}"]) > 0 for k, s in known]
        found[f"tasks_ahead_of_{other}"] = float(sum(wins))
        if other == "reference":
            continue
        ends = [
            sorted(s * figures[f"{k}.less_{other}_{end}"] for end in ("low", "high"))
            for k, s in known
        ]
        found[f"tasks_surely_ahead_of_{other}"] = float(sum(low > 0 for low, _ in ends))
        found[f"tasks_surely_behind_{other}"] = float(sum(high < 0 for _, high in ends))
    return found


def measure_data(
    data: str, root: Path, folder: str, seeds: Sequence[int], *, quick: bool
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Figures and rows of the table of one data set."""
    prepared, runs, test = runs_of(data, root, folder, seeds, quick=quick)
    page = root / data / "BASELINES.md"
    references = read_references(page) if page.exists() else {}
    figures, table, mains, kinds = {}, [], {}, {}
    for name, facts in prepared.scenarios.items():
        slices = slices_of(prepared, name, test[name])
        mains[name] = f"{name}.{facts.tasks[0]}"
        for i, (task, kind) in enumerate(facts.kinds.items()):
            key, known = f"{name}.{task}", np.isfinite(test[name]["label"][:, i])
            one = Compared.of(facts, task, runs[name], test[name])
            parts = {part: rows[known] for part, rows in slices.items()}
            found = compare_task(one, parts, references.get(key, {}))
            figures |= {f"{key}.{what}": value for what, value in found.items()}
            table.append({"data": data} | row_of(key, found))
            kinds[key] = kind
    whole = macro(figures, mains) | tally(figures, kinds)
    figures |= {f"{data}.{key}": value for key, value in whole.items()}
    return figures, table


def main(
    quick: Annotated[bool, typer.Option(help="One seed, one epoch.")] = False,
    out: Annotated[str | None, typer.Option(help="Folder where the JSON of each goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data sets.")] = "../shared/data",
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each data set.")] = 3,
    data: Annotated[list[str] | None, typer.Option(help="Data sets; by default all.")] = None,
) -> None:
    """Train jointly and alone where scenarios have the same people, and compare."""
    folder, base = str(Path(storage or tempfile.mkdtemp()).resolve()), (TOP / root).resolve()
    numbers = range(1 if quick else seeds)
    for own in data or DATA:
        figures, table = measure_data(own, base, folder, numbers, quick=quick)
        Console().print(markdown_table(table), soft_wrap=True)
        name = f"shared_users_{own}"
        place = str(Path(out, f"{name}.json")) if out else None
        write_result(name, figures, place, table=table, seeds=len(numbers), quick=quick)


if __name__ == "__main__":
    typer.run(main)
