"""What the joint model, networks alone and LightGBM say of test rows, each with what stands beside.

See `shared_users.py` for the models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightgbm
import numpy as np
import ray

from benchmarks.local import fit, side_by_side
from benchmarks.ranking import project_of
from benchmarks.real4 import Cell, alone
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.prepared import Prepared, PreparedScenario, load_prepared
from mtrec_ray.evaluation.blend import LABELS, Blend, log_odds
from mtrec_ray.project.depends_on import fingerprint
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.finetuning.chosen_model import chosen_model
from mtrec_ray.stages.finetuning.joint_run import open_joint_run
from mtrec_ray.stages.list_inputs import collect_inputs
from mtrec_ray.stages.predictions import (
    SOURCE,
    predict_split,
    read_predictions,
    said_of_task,
)
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.second_opinion import blends_of, ensure_opinions
from mtrec_ray.stages.train import run_train

RIVALS = ("trees", "lightgbm_here", "lightgbm_all")
MODELS = ("network", "joint", "alone", "alone_all", *RIVALS)
LEFT_OUT = {"trees": ("trees",), "labels": (LABELS,), "sources": (SOURCE,)}  # of joint, by prefix
CROWD = (f"{SOURCE}crowd_", f"{LABELS}crowd_")
PARAMETERS = {
    "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 30,
    "lambda_l2": 1.0, "feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1,
    "verbosity": -1, "seed": 0,
}  # fmt: skip
ROUNDS = 100

Rows = dict[str, np.ndarray]


def with_opinions(project: Project) -> Project:
    """The project, with what stands beside the network by default; lists are not made."""
    tree = project.dump()
    tree["opinions"] = {}
    tree["recommend"] = {"ranking_users": 0}
    return parse_project(tree)


def predict(project: Project, folder: str) -> None:
    """Prepare, train jointly, and write what all opinions say of valid and test."""
    done = files.join(folder, project.run.name, "shared_users", "finished.json")
    made_from = {"project": fingerprint(project.dump())}
    if files.exists(done):
        if files.read_json(done) != made_from:
            raise ValueError(f"{done}: found another project's; allowed: another --storage")
        return
    for stage in (run_prepare, run_train):
        stage(project, folder, teller())
    connect(project.run)
    joint_run = open_joint_run(project, folder)
    models = {name: chosen_model(joint_run, name, project) for name in joint_run.facts}
    inputs = collect_inputs(models, project)
    own = ensure_opinions(joint_run, {"": models}, inputs, project, teller())[""]
    for split in ("valid", "test"):
        target = predictions_of(project, folder, split)
        predict_split({target: models}, project.run, split, {target: own})
    ray.shutdown()
    files.write_json(done, made_from)


def predictions_of(project: Project, folder: str, split: str) -> str:
    """The folder of predictions of a split."""
    return files.join(folder, project.run.name, "shared_users", split)


def fit_alone(cell: Cell, prepared: Prepared, path: str) -> None:
    """Train a scenario by itself, and write its scores f32[N, T] of valid and test."""
    found = fit(cell.project, prepared)
    scores = {split: found.scores[f"{split}.{cell.names[0]}"] for split in ("valid", "test")}
    np.savez(path, **scores)  # pyright: ignore[reportArgumentType]
    print(f"{cell.key}: {found.seconds:.0f} s", flush=True)


def without_elsewhere(prepared: Prepared) -> Prepared:
    """The prepared data, whose scenarios know nothing of what their users took in others."""
    facts = prepared.scenarios.items()
    return replace(prepared, scenarios={n: replace(f, elsewhere=None) for n, f in facts})


def all_alone(
    project: Project, prepared: Prepared, folder: str, names: Sequence[str] = (), kind: str = ""
) -> dict[str, Rows]:
    """Scores of each scenario's own network (of those named), by scenario and split."""
    seed = project.training.seed
    cells = {n: alone(project, prepared, n, seed) for n in names or prepared.scenarios}
    place = files.join(folder, project.run.name, "shared_users")
    paths = {n: files.join(place, f"{n}{kind}.npz") for n in cells}
    missing = [n for n in cells if not Path(paths[n]).exists()]
    side_by_side([(fit_alone, (cells[n], prepared, paths[n])) for n in missing])
    return {name: dict(np.load(path)) for name, path in paths.items()}


@dataclass(frozen=True)
class Scored:
    """A scenario of a run whose test rows are to be scored by all models.

    Attributes:
        predictions: folder of what all opinions say, by split.
        own: its own network's scores f32[N, T] by split.
        own_all: those of the network that reads what its users took in other scenarios.
        path: where the scores by each model go.
        parts: whether joint is scored without its parts, too.
    """

    facts: PreparedScenario
    predictions: Mapping[str, str]
    own: Rows
    own_all: Rows
    path: str
    parts: bool


def score_scenario(one: Scored) -> None:
    """Write the scores f32[N, T] of test rows by each model."""
    facts = one.facts
    rows = {
        s: read_predictions(p, facts.name, len(facts.tasks)) for s, p in one.predictions.items()
    }
    found = scores_of_test(facts, rows, one.own, one.own_all, parts=one.parts)
    np.savez(one.path, **found)  # pyright: ignore[reportArgumentType]
    print(f"{one.path}: scored", flush=True)


def scores_of_test(
    facts: PreparedScenario, rows: Mapping[str, Rows], own: Rows, own_all: Rows, *, parts: bool
) -> Rows:
    """Scores f32[N, T] of test rows by each model; `rows`, `own` and `own_all` by split."""
    here, alone_in = without(rows, CROWD), {s: {"network": own[s]} for s in rows}
    all_in = {s: {"network": own_all[s]} for s in rows}
    networks = {"joint": rows, "alone": {s: here[s] | alone_in[s] for s in rows}}
    if any(key.startswith(CROWD) for key in rows["test"]):
        networks["alone_all"] = {s: rows[s] | all_in[s] for s in rows}
    if parts:
        networks |= {f"without_{w}": without(rows, keys) for w, keys in LEFT_OUT.items()}
    found = {n: blended(facts, split["valid"], split["test"]) for n, split in networks.items()}
    rivals = {"lightgbm_here": here, "lightgbm_all": rows}
    found |= {n: boosted(facts, split["valid"], split["test"]) for n, split in rivals.items()}
    found.setdefault("alone_all", found["alone"])
    return found | {name: rows["test"][name] for name in ("network", "trees")}


def without(rows: Mapping[str, Rows], prefixes: tuple[str, ...]) -> dict[str, Rows]:
    """Predictions by split without some columns."""
    return {s: {k: v for k, v in r.items() if not k.startswith(prefixes)} for s, r in rows.items()}


def blended(facts: PreparedScenario, valid: Rows, test: Rows) -> Float32s:
    """Scores of test, with the blends that pay on valid."""
    score = test["network"].copy()
    for task, blend in blends_of(valid, facts).items():
        i = facts.tasks.index(task)
        score[:, i] = Blend(**blend).of(said_of_task(test, i))
    return score


def boosted(facts: PreparedScenario, valid: Rows, test: Rows) -> Float32s:
    """Scores of test by LightGBM on what trees, labels and sources say, fitted on valid."""
    score = np.full_like(test["network"], np.nan)
    for i, kind in enumerate(facts.kinds.values()):
        label = valid["label"][:, i]
        known = np.isfinite(label)
        if known.any() and label[known].min() < label[known].max():
            objective = {"objective": "binary" if kind == "binary" else "regression"}
            data = lightgbm.Dataset(columns_of(valid, i, kind)[known], label[known])
            trees = lightgbm.train(PARAMETERS | objective, data, ROUNDS)
            score[:, i] = np.asarray(trees.predict(columns_of(test, i, kind)))
    return score


def columns_of(rows: Rows, task: int, kind: str) -> np.ndarray:
    """What the second LightGBM reads: the first one's trees, labels and sources."""
    said = said_of_task(rows, task)
    del said["network"]
    if "trees" in said and kind == "binary":
        said["trees"] = np.where(np.isfinite(said["trees"]), log_odds(said["trees"]), np.nan)
    return np.stack(list(said.values()), 1)


def runs_of(
    data: str, root: Path, folder: str, seeds: Sequence[int], *, quick: bool
) -> tuple[Prepared, dict[str, list[Rows]], dict[str, Rows]]:
    """The prepared data, and by scenario the scores of test of each seed, and its rows."""
    runs: dict[str, list[Rows]] = {}
    test: dict[str, Rows] = {}
    prepared_path = files.join(folder, f"{data}-0", "prepared")
    for seed in seeds:
        project = with_opinions(project_of(data, root / data, seed, quick=quick))
        target = Path(folder, project.run.name, "prepared")
        if seed and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(prepared_path, target_is_directory=True)
        predict(project, folder)
        prepared = load_prepared(prepared_path)
        own = all_alone(project, without_elsewhere(prepared), folder)
        knowing = any(facts.elsewhere for facts in prepared.scenarios.values())
        own_all = all_alone(project, prepared, folder, kind=".all") if knowing else own
        said = {split: predictions_of(project, folder, split) for split in ("valid", "test")}
        paths = {n: predictions_of(project, folder, f"scores-{n}.npz") for n in prepared.scenarios}
        wanted = [
            Scored(facts, said, own[name], own_all[name], paths[name], parts=seed == 0)
            for name, facts in prepared.scenarios.items()
            if not Path(paths[name]).exists()
        ]
        side_by_side([(score_scenario, (one,)) for one in wanted])
        for name, facts in prepared.scenarios.items():
            runs.setdefault(name, []).append(dict(np.load(paths[name])))
            test[name] = read_predictions(said["test"], name, len(facts.tasks))
    return load_prepared(prepared_path), runs, test
