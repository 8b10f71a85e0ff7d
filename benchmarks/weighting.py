"""Does a way to weigh losses while training beat fixed weights?

    python -m benchmarks.weighting [--quick] [--seeds 3] [--data real4 --data grocery] [--out FILE]
                                   [--root DATA] [--storage DIR]

The joint model of `jobs/real4.yaml` and of `jobs/grocery.yaml` (fourteen scenarios) with a frozen
encoder and without a teacher, 2 x 75,000 rows, one thread a training; scored on valid (nothing
here looks at test):

    equal           all weights 1
    chosen          the weights of the file, which were chosen on valid (of grocery: equal lambda)
    others          `training.weighting.method`, which starts from `chosen`

Each method has the same small search with the first seed: by scenarios and by tasks, then three
values of its own parameter where it has one; the best joint score on valid is then trained with the
other seeds. Told are the joint score (mean NE over scenarios and tasks, lower is better), the
difference to `chosen` with the same seed, its least and its greatest over the seeds, the same of
the tasks with 1,000 labels of their rarer class (`common`), in how many scenarios a method is
better, and in how many worse, with every seed, and the processor seconds of a training over those
of `chosen`. What is found in the storage is not trained again.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from rich.console import Console

from benchmarks.ablation import scores_of
from benchmarks.common import TOP, write_result
from benchmarks.local import fit, prepared_by_process, side_by_side
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import read_rows
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.project.weighting import Method
from mtrec_ray.report.tables import markdown_table

DATA = ("real4", "grocery")
ROWS, QUICK_ROWS = 75_000, 20_000
EQUAL, CHOSEN = "equal", "chosen"
VALID_ROWS = 65_536  # read at a time
LEAST_LABELS = 1_000  # in valid, of a task's rarer class, for it to be common
# Values of a method's own parameter.
OWN: dict[str, tuple[str, tuple[float, ...]]] = {
    "uncertainty": ("lr", (0.005, 0.025, 0.1)),
    "dwa": ("temperature", (0.5, 2.0, 5.0)),
    "famo": ("lr", (0.005, 0.025, 0.1)),
    "tchebycheff": ("temperature", (0.1, 0.3, 1.0)),
    "gradnorm": ("alpha", (0.5, 1.5, 3.0)),
    "cagrad": ("c", (0.2, 0.4, 0.8)),
}
METHODS = [method for method in get_args(Method) if method != "fixed"]

Options = dict[str, Any]
Setting = tuple[str, Options]


def setting_of(method: str, by: str = "", value: float | None = None) -> Setting:
    """Returns the name and the options of a setting; without a value its own default."""
    if method in (EQUAL, CHOSEN):
        return method, {}
    options, told = {"method": method, "by": by}, ""
    if method in OWN:
        field, values = OWN[method]
        own = values[1] if value is None else value
        options, told = {**options, field: own}, f" {field} {own:g}"
    return f"{method} by {by}{told}", options


def first_settings(method: str) -> list[Setting]:
    """Returns what is tried first: by scenarios and by tasks, with the middle own parameter."""
    if method in (EQUAL, CHOSEN):
        return [setting_of(method)]
    return [setting_of(method, by) for by in ("scenarios", "tasks")]


def more_settings(method: str, best: Setting) -> list[Setting]:
    """Returns what is tried then: the other values of the own parameter, with the better `by`."""
    if method not in OWN:
        return []
    low, _, high = OWN[method][1]
    return [setting_of(method, best[1]["by"], value) for value in (low, high)]


def project_of(
    base: Project, data: str, name: str, options: Options, seed: int, rows: int
) -> Project:
    """The project of a setting."""
    tree = base.dump()
    if name == EQUAL:
        for scenario in tree["scenarios"].values():
            scenario["weight"] = 1.0
            for task in scenario["tasks"].values():
                task["weight"] = 1.0
    tree["run"]["name"] = f"weighting-{data}"
    tree["model"]["encoder"]["trainable"] = "none"
    tree["training"] |= {
        "rows_per_epoch": rows, "epochs": 2, "seed": seed, "teacher": {"share": 0.0},
        "weighting": options,
    }  # fmt: skip
    return Project.model_validate(tree)


def run_one(project: Project, prepared: Prepared, name: str, seed: int, path: Path) -> None:
    """Train one setting with one seed; what it reached goes into a file."""
    began = time.process_time()
    found = fit(project, prepared, splits=())
    seconds = time.process_time() - began  # of the processor, whatever else the machine does
    best = min(found.curve, key=lambda record: record["joint_score"])
    record = {"setting": name, "seed": seed, "seconds": seconds, "valid": best["valid"],
              "score": best["joint_score"], "weights": best.get("loss_weights", {})}  # fmt: skip
    path.write_text(json.dumps(record))
    print(f"{name} seed {seed}: {seconds:.0f} s, {record['score']:.4f}", flush=True)


class Runs:
    """The runs of a data set, in files of a folder."""

    def __init__(
        self, data: str, base: Project, prepared: Prepared, folder: Path, rows: int
    ) -> None:
        self.data, self.base, self.prepared, self.rows = data, base, prepared, rows
        self.folder = folder / f"weighting-{data}-{rows}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, seed: int) -> Path:
        """Where a run is kept."""
        return self.folder / f"{name.replace(' ', '_')}-{seed}.json"

    def train(self, wanted: list[tuple[str, Options, int]]) -> None:
        """Train what is not there yet."""
        left = [(n, o, s) for n, o, s in wanted if not self.path(n, s).exists()]
        calls = [
            (run_one, (project_of(self.base, self.data, n, o, s, self.rows), self.prepared, n, s,
                       self.path(n, s)))
            for n, o, s in left
        ]  # fmt: skip
        side_by_side(calls)

    def read(self, name: str, seed: int) -> dict[str, Any]:
        """Returns what a run reached."""
        return json.loads(self.path(name, seed).read_text())


def common_tasks(prepared: Prepared) -> set[str]:
    """Returns each `scenario.task` with enough labels of its rarer class in valid."""
    found: set[str] = set()
    for name, facts in prepared.scenarios.items():
        paths, number = prepared.shard_paths(name, "valid"), facts.num_rows("valid")
        rows = read_rows(paths, VALID_ROWS, 0, number)
        labels = np.concatenate([batch["labels"] for batch in rows])
        for place, (task, kind) in enumerate(facts.kinds.items()):
            own = labels[:, place]
            own = own[np.isfinite(own)]
            rarer = min((own > 0).sum(), (own <= 0).sum()) if kind == "binary" else len(own)
            if rarer >= LEAST_LABELS:
                found.add(f"{name}.{task}")
    return found


def searched(runs: Runs) -> dict[str, Setting]:
    """Returns the setting of each method with the best joint score of the first seed."""
    tried = {m: first_settings(m) for m in (EQUAL, CHOSEN, *METHODS)}
    best: dict[str, Setting] = {}
    for stage in range(2):
        runs.train([(name, options, 0) for own in tried.values() for name, options in own])
        best = {m: min(own, key=lambda pair: runs.read(pair[0], 0)["score"])
                for m, own in tried.items()}  # fmt: skip
        if not stage:
            tried = {m: [best[m], *more_settings(m, best[m])] for m in tried}
    return best


def measure(
    runs: Runs, seeds: int, common: set[str]
) -> tuple[dict[str, float], list[dict[str, str]], list[dict[str, str]]]:
    """Returns figures, a row for each method, and one for each scenario."""
    best, numbers = searched(runs), range(seeds)
    runs.train([(name, options, seed) for name, options in best.values() for seed in numbers])
    chosen = [runs.read(CHOSEN, seed) for seed in numbers]
    figures, table = {}, []
    of_scenarios: dict[str, dict[str, str]] = {}
    for method, (name, _) in best.items():
        own = [runs.read(name, seed) for seed in numbers]
        change = np.array([a["score"] - b["score"] for a, b in zip(own, chosen, strict=True)])
        of_common = [mean_of(a, common) - mean_of(b, common)
                     for a, b in zip(own, chosen, strict=True)]  # fmt: skip
        cost = np.mean([a["seconds"] / b["seconds"] for a, b in zip(own, chosen, strict=True)])
        pairs = zip(map(by_scenario, own), map(by_scenario, chosen), strict=True)
        changes = [{k: ours[k] - theirs[k] for k in theirs} for ours, theirs in pairs]
        better = sum(all(c[k] < 0 for c in changes) for k in changes[0])
        worse = sum(all(c[k] > 0 for c in changes) for k in changes[0])
        key = f"{runs.data}.{method}"
        figures |= {
            f"{key}.score": float(np.mean([run["score"] for run in own])),
            f"{key}.change": float(change.mean()),
            f"{key}.least": float(change.min()),
            f"{key}.greatest": float(change.max()),
            f"{key}.common": float(np.mean(of_common)),
            f"{key}.better": float(better),
            f"{key}.worse": float(worse),
            f"{key}.cost": float(cost),
        }
        for scenario in changes[0]:
            mean = float(np.mean([c[scenario] for c in changes]))
            figures[f"{key}.{scenario}.change"] = mean
            row = of_scenarios.setdefault(scenario, {"data": runs.data, "scenario": scenario})
            if method != CHOSEN:
                row[method] = f"{1000 * mean:+.1f}"
        table.append(
            {"data": runs.data, "weights": name, "joint score": f"{figures[f'{key}.score']:.4f}"}
            | told_changes(figures, key, is_base=method == CHOSEN)
        )
    return figures, table, list(of_scenarios.values())


def told_changes(figures: dict[str, float], key: str, *, is_base: bool) -> dict[str, str]:
    """Returns the columns of a method that compare it with `chosen`."""
    of = {name.removeprefix(f"{key}."): v for name, v in figures.items() if name.startswith(key)}
    change = f"{of['change']:+.4f} ({of['least']:+.4f} to {of['greatest']:+.4f})"
    return {
        "less chosen": "-" if is_base else change,
        "common tasks": "-" if is_base else f"{of['common']:+.4f}",
        "scenarios better, worse": "-" if is_base else f"{of['better']:.0f}, {of['worse']:.0f}",
        "time": f"{of['cost']:.2f}",
    }


def mean_of(run: dict[str, Any], tasks: set[str]) -> float:
    """Mean NE of some tasks, over scenarios of the mean over their tasks."""
    return float(np.mean(list(by_scenario(run, tasks).values())))


def by_scenario(run: dict[str, Any], tasks: set[str] | None = None) -> dict[str, float]:
    """Mean NE of each scenario's tasks."""
    kept: dict[str, list[float]] = {}
    for key, value in scores_of(run["valid"]).items():
        if tasks is None or key in tasks:
            kept.setdefault(key.split(".")[0], []).append(value)
    return {name: float(np.mean(values)) for name, values in kept.items()}


def main(
    quick: Annotated[bool, typer.Option(help="Few rows, one seed.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data sets.")] = "../shared/data",
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each chosen setting.")] = 3,
    data: Annotated[list[str] | None, typer.Option(help="Data sets; by default both.")] = None,
) -> None:
    """Train with all methods and write their scores on valid."""
    folder = Path(storage or tempfile.mkdtemp()).resolve()
    figures: dict[str, float] = {}
    table: list[dict[str, str]] = []
    scenarios: list[dict[str, str]] = []
    for name in data or DATA:
        place = (TOP / root / name).resolve()
        base = load_project(TOP / "jobs" / f"{name}.yaml", [f"root={place}"])
        rows = QUICK_ROWS if quick else ROWS
        prepared = prepared_by_process(project_of(base, name, CHOSEN, {}, 0, rows), str(folder))
        runs = Runs(name, base, prepared, folder, rows)
        found, lines, rows_of = measure(runs, 1 if quick else seeds, common_tasks(prepared))
        figures, table, scenarios = figures | found, table + lines, scenarios + rows_of
        Console().print(markdown_table(lines), soft_wrap=True)
    write_result("weighting", figures, out, table=table, scenarios=scenarios, quick=quick)


if __name__ == "__main__":
    typer.run(main)
