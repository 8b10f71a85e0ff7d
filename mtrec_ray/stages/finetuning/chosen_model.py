"""Which model scores a scenario: the joint one, a fine-tuned one, or the general head."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import read_rows
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.project.training import Tuned
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.finetuning.recipe import DELTA_FOLDER, scenario_project, start_of
from mtrec_ray.stages.run_folder import MARK
from mtrec_ray.stages.trained_model import (
    TrainedModel,
    ensure_vectors,
    joint_model,
    load_with_vectors,
)
from mtrec_ray.training.delta import DELTA, read_delta
from mtrec_ray.training.validation import score_rows

DECISION, ZERO_SHOT = "decision.json", "zero-shot"


BATCH_ROWS = 16_384


# Persons, labels and predictions of the rows of a split.
ScoredSplit = tuple[np.ndarray, np.ndarray, np.ndarray]


def item_rows(prepared: Prepared, name: str) -> tuple[int, int]:
    """Where a scenario's items lie among those of all."""
    start = 0
    for other, facts in prepared.scenarios.items():
        if other == name:
            return start, start + facts.num_items
        start += facts.num_items
    raise KeyError(name)


def finetuned_model(joint_run: JointRun, name: str, project: Project) -> TrainedModel:
    """A scenario's fine-tuned model for use: the joint weights and its delta.

    Raises:
        ProjectError: there is no delta, or it belongs to another base.
    """
    return finetuned_model_in(
        joint_run, name, project, storage.join(joint_run.folder(name), DELTA_FOLDER)
    )


def finetuned_model_in(
    joint_run: JointRun, name: str, project: Project, delta: str
) -> TrainedModel:
    """A scenario's fine-tuned model for use, whose delta lies in a folder.

    Raises:
        ProjectError: there is no delta, or it belongs to another base.
    """
    facts = read_delta(delta, joint_run.fingerprint, name)
    tuned = Tuned.model_validate(facts["tuned"])
    own = scenario_project(joint_run, name, tuned, project)
    frozen = (own.model.encoder.trainable, project.model.encoder.trainable) == ("none", "none")
    vectors, rows = delta, None
    if frozen and not joint_run.is_new(name):
        vectors, rows = joint_run.joint, item_rows(joint_run.prepared, name)
    tree, data = json.dumps(own.dump()), joint_run.data(name).folder
    return TrainedModel(
        tree, data, joint_run.joint, vectors, start_of(joint_run, name, tuned), delta, rows
    )


def zero_shot_model(joint_run: JointRun, name: str, project: Project) -> TrainedModel:
    """The general head of the joint model for a scenario that it does not have.

    Raises:
        ProjectError: joint training did not maintain one.
    """
    if not joint_run.project.model.general:
        raise ProjectError(
            [
                f"scenario {name}: found model.general: false, so that nothing scores it before it "
                "is fine-tuned; allowed: finetune with enough rows, or train with model.general"
            ]
        )
    tuned = project.finetune.of(name).model_copy(update={"mode": "head"})
    own = scenario_project(joint_run, name, tuned, project)
    folder = storage.join(joint_run.folder(name), f"general-{joint_run.fingerprint}")
    start = start_of(joint_run, name, tuned)
    tree, data = json.dumps(own.dump()), joint_run.data(name).folder
    return TrainedModel(tree, data, joint_run.joint, folder, start, general=True)


def base_model(joint_run: JointRun) -> TrainedModel:
    """The joint model for use."""
    return joint_model(joint_run.project, joint_run.prepared.folder, joint_run.joint)


def model_before(joint_run: JointRun, name: str, project: Project) -> TrainedModel | None:
    """What scores a scenario before fine-tuning: the joint model, of a new one its general head.

    None for a new one where joint training had no general head.
    """
    if not joint_run.is_new(name):
        return base_model(joint_run)
    return zero_shot_model(joint_run, name, project) if joint_run.project.model.general else None


def chosen_model(joint_run: JointRun, name: str, project: Project) -> TrainedModel:
    """The model of a scenario that fine-tuning chose; without a decision the joint one.

    Raises:
        ProjectError: it was chosen for other joint weights.
    """
    folder = joint_run.folder(name)
    path = storage.join(folder, DECISION)
    chosen = ZERO_SHOT if joint_run.is_new(name) else "joint"
    if storage.exists(path):
        chosen = storage.read_json(path)["chosen"]
        base = storage.read_json(storage.join(folder, MARK))["joint"]["fingerprint"]
        if base != joint_run.fingerprint:
            raise ProjectError(
                [
                    f"scenario {name}: found a model in {folder} that was chosen for other joint "
                    f"weights ({base}, these are {joint_run.fingerprint}); allowed: delete it, and "
                    "fine-tune again"
                ]
            )
    if chosen == "finetuned":
        return with_use_options(finetuned_model(joint_run, name, project), project)
    if chosen == ZERO_SHOT:
        return with_use_options(zero_shot_model(joint_run, name, project), project)
    return joint_for_use(joint_run, project)


def version(joint_run: JointRun, name: str, trained_model: TrainedModel) -> str:
    """Which model it is: its kind, and a hash of its weights and of the scenario's data."""
    own = storage.read_json(storage.join(trained_model.delta, DELTA)) if trained_model.delta else {}
    data = joint_run.data(name).fingerprint
    return f"{model_kind(trained_model)} {fingerprint(own, joint_run.fingerprint, data)}"


def model_kind(trained_model: TrainedModel) -> str:
    """`finetuned`, `zero-shot` or `joint`."""
    if trained_model.general:
        return ZERO_SHOT
    return "finetuned" if trained_model.delta else "joint"


def joint_for_use(joint_run: JointRun, project: Project) -> TrainedModel:
    """The joint model with the options of use of `project`."""
    return with_use_options(base_model(joint_run), project)


def with_use_options(trained_model: TrainedModel, project: Project) -> TrainedModel:
    """A model with the workers, the precision and the blends of a project."""
    tree, use = json.loads(trained_model.project), project.dump()
    tree["run"] = use["run"]
    tree["evaluation"]["precision"] = use["evaluation"]["precision"]
    by = {n: w for n, w in use["recommend"]["by"].items() if n in tree["scenarios"]}
    tree["recommend"] = use["recommend"] | {"by": by}
    return replace(trained_model, project=json.dumps(tree))


def score_split_by_tasks(trained_model: TrainedModel, name: str, split: str) -> ScoredSplit:
    """Persons i64[N], labels f32[N, T] and predictions f32[N, T] of a split, by Ray tasks."""
    facts, run = trained_model.open_prepared().scenarios[name], trained_model.parsed.run
    shards = facts.shards[split]
    vectors = ray.put(ensure_vectors(trained_model))
    task = task_of(score_shards, run)
    size = min(run.most_workers, len(shards))
    cuts = [(len(shards) * i // size, len(shards) * (i + 1) // size) for i in range(size)]
    parts = [
        task.remote(trained_model, vectors, name, [(s.path, s.rows) for s in shards[a:b]])
        for a, b in cuts
    ]
    found: list[ScoredSplit] = ray.get(parts)
    users, labels, scores = (np.concatenate(x) for x in zip(*found, strict=True))
    return users, labels, scores


def score_shards(
    trained_model: TrainedModel, vectors: np.ndarray, name: str, shards: Sequence[tuple[str, int]]
) -> ScoredSplit:
    """Persons, labels and predictions of some shards, in a Ray task."""
    model, found = load_with_vectors(trained_model, vectors)
    parts = [
        (arrays["person"], arrays["labels"], scores)
        for path, rows in shards
        for arrays, scores in score_rows(
            model, found, name,
            read_rows([storage.join(trained_model.prepared, path)], BATCH_ROWS, 0, rows),
        )
    ]  # fmt: skip
    users, labels, scores = (np.concatenate(x) for x in zip(*parts, strict=True))
    return users, labels, scores
