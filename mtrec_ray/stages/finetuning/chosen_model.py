"""Which model scores a scenario: the joint one, a fine-tuned one, or the general head."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import read_rows
from mtrec_ray.project.depends_on import fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.project.training import Tuned
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.finetuning.joint_run import Ground
from mtrec_ray.stages.finetuning.recipe import DELTA_FOLDER, scenario_project, start_of
from mtrec_ray.stages.run_folder import MARK
from mtrec_ray.stages.trained_model import Served, ensure_vectors, joint_model, load_with_vectors
from mtrec_ray.training.delta import DELTA, read_delta
from mtrec_ray.training.validation import score_rows

DECISION, ZERO_SHOT = "decision.json", "zero-shot"


BATCH_ROWS = 16_384


# Persons, labels and predictions of the rows of a split.
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def item_rows(prepared: Prepared, name: str) -> tuple[int, int]:
    """Where a scenario's items lie among those of all."""
    start = 0
    for other, facts in prepared.scenarios.items():
        if other == name:
            return start, start + facts.num_items
        start += facts.num_items
    raise KeyError(name)


def tuned_model(ground: Ground, name: str, project: Project) -> Served:
    """A scenario's fine-tuned model for use: the joint weights and its delta.

    Raises:
        ValueError: there is no delta, or it belongs to another base.
    """
    return tuned_in(ground, name, project, storage.join(ground.folder(name), DELTA_FOLDER))


def tuned_in(ground: Ground, name: str, project: Project, delta: str) -> Served:
    """A scenario's fine-tuned model for use, whose delta lies in a folder.

    Raises:
        ValueError: there is no delta, or it belongs to another base.
    """
    facts = read_delta(delta, ground.fingerprint, name)
    tuned = Tuned.model_validate(facts["tuned"])
    own = scenario_project(ground, name, tuned, project)
    frozen = (own.model.encoder.trainable, project.model.encoder.trainable) == ("none", "none")
    vectors, rows = delta, None
    if frozen and not ground.is_new(name):
        vectors, rows = ground.joint, item_rows(ground.prepared, name)
    tree, data = json.dumps(own.dump()), ground.data(name).folder
    return Served(tree, data, ground.joint, vectors, start_of(ground, name, tuned), delta, rows)


def zero_shot_model(ground: Ground, name: str, project: Project) -> Served:
    """The general head of the joint model for a scenario that it does not have.

    Raises:
        ValueError: joint training did not maintain one.
    """
    if not ground.project.model.general:
        raise ValueError(
            f"scenario {name}: found model.general: false, so that nothing scores it before it "
            "is fine-tuned; allowed: finetune with enough rows, or train with model.general"
        )
    tuned = project.finetune.of(name).model_copy(update={"mode": "head"})
    own = scenario_project(ground, name, tuned, project)
    folder = storage.join(ground.folder(name), f"general-{ground.fingerprint}")
    start = start_of(ground, name, tuned)
    tree, data = json.dumps(own.dump()), ground.data(name).folder
    return Served(tree, data, ground.joint, folder, start, general=True)


def base_model(ground: Ground) -> Served:
    """The joint model for use."""
    return joint_model(ground.project, ground.prepared.folder, ground.joint)


def model_before(ground: Ground, name: str, project: Project) -> Served | None:
    """What scores a scenario before fine-tuning: the joint model, of a new one its general head.

    None for a new one where joint training had no general head.
    """
    if not ground.is_new(name):
        return base_model(ground)
    return zero_shot_model(ground, name, project) if ground.project.model.general else None


def chosen_model(ground: Ground, name: str, project: Project) -> Served:
    """The model of a scenario that fine-tuning chose; without a decision the joint one.

    Raises:
        ValueError: it was chosen for other joint weights.
    """
    folder = ground.folder(name)
    path = storage.join(folder, DECISION)
    chosen = ZERO_SHOT if ground.is_new(name) else "joint"
    if storage.exists(path):
        chosen = storage.read_json(path)["chosen"]
        base = storage.read_json(storage.join(folder, MARK))["joint"]["fingerprint"]
        if base != ground.fingerprint:
            raise ValueError(
                f"scenario {name}: found a model in {folder} that was chosen for other joint "
                f"weights ({base}, these are {ground.fingerprint}); allowed: delete it, and "
                "fine-tune again"
            )
    if chosen == "finetuned":
        return for_use(tuned_model(ground, name, project), project)
    if chosen == ZERO_SHOT:
        return for_use(zero_shot_model(ground, name, project), project)
    return joint_for_use(ground, project)


def version(ground: Ground, name: str, served: Served) -> str:
    """Which model it is: its kind, and a hash of its weights and of the scenario's data."""
    own = storage.read_json(storage.join(served.delta, DELTA)) if served.delta else {}
    data = ground.data(name).fingerprint
    return f"{kind_of(served)} {fingerprint(own, ground.fingerprint, data)}"


def kind_of(served: Served) -> str:
    """`finetuned`, `zero-shot` or `joint`."""
    if served.general:
        return ZERO_SHOT
    return "finetuned" if served.delta else "joint"


def joint_for_use(ground: Ground, project: Project) -> Served:
    """The joint model with the options of use of `project`."""
    return for_use(base_model(ground), project)


def for_use(served: Served, project: Project) -> Served:
    """A model with the workers, the precision and the blends of a project."""
    tree, use = json.loads(served.project), project.dump()
    tree["run"] = use["run"]
    tree["evaluation"]["precision"] = use["evaluation"]["precision"]
    by = {n: w for n, w in use["recommend"]["by"].items() if n in tree["scenarios"]}
    tree["recommend"] = use["recommend"] | {"by": by}
    return replace(served, project=json.dumps(tree))


def score_rows_of(served: Served, name: str, split: str) -> Rows:
    """Persons i64[N], labels f32[N, T] and predictions f32[N, T] of a split, by Ray tasks."""
    facts, run = served.open_prepared().scenarios[name], served.parsed.run
    shards = facts.shards[split]
    vectors = ray.put(ensure_vectors(served))
    task = task_of(score_shards, run)
    size = min(run.most_workers, len(shards))
    cuts = [(len(shards) * i // size, len(shards) * (i + 1) // size) for i in range(size)]
    parts = [
        task.remote(served, vectors, name, [(s.path, s.rows) for s in shards[a:b]]) for a, b in cuts
    ]
    found: list[Rows] = ray.get(parts)
    users, labels, scores = (np.concatenate(x) for x in zip(*found, strict=True))
    return users, labels, scores


def score_shards(
    served: Served, vectors: np.ndarray, name: str, shards: Sequence[tuple[str, int]]
) -> Rows:
    """Persons, labels and predictions of some shards, in a Ray task."""
    model, found = load_with_vectors(served, vectors)
    parts = [
        (arrays["person"], arrays["labels"], scores)
        for path, rows in shards
        for arrays, scores in score_rows(
            model, found, name,
            read_rows([storage.join(served.prepared, path)], BATCH_ROWS, 0, rows),
        )
    ]  # fmt: skip
    users, labels, scores = (np.concatenate(x) for x in zip(*parts, strict=True))
    return users, labels, scores
