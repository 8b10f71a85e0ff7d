"""Which model scores a scenario: the joint one, a fine-tuned one, or the general head."""

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
from mtrec_ray.project.training import FineTuning
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.finetuning.recipe import DELTA_FOLDER, scenario_project, start_of
from mtrec_ray.stages.trained_model import (
    TrainedModel,
    ensure_vectors,
    joint_model,
    load_with_vectors,
)
from mtrec_ray.training.delta import DELTA, read_delta
from mtrec_ray.training.validation import SCORING_BATCH_ROWS, score_rows

ZERO_SHOT = "zero-shot"


# Persons, labels and predictions of the rows of a split.
ScoredSplit = tuple[np.ndarray, np.ndarray, np.ndarray]


def item_rows(prepared: Prepared, name: str) -> tuple[int, int]:
    """Returns where a scenario's items lie among those of all."""
    start = 0
    for other, facts in prepared.scenarios.items():
        if other == name:
            return start, start + facts.num_items
        start += facts.num_items
    raise KeyError(name)


def finetuned_model(joint_run: JointRun, name: str, project: Project) -> TrainedModel:
    """Returns a scenario's fine-tuned model for use: the joint weights and its delta.

    Raises:
        ProjectError: there is no delta, or it belongs to another base.
    """
    return finetuned_model_in(
        joint_run, name, project, storage.join(joint_run.folder(name), DELTA_FOLDER)
    )


def finetuned_model_in(
    joint_run: JointRun, name: str, project: Project, delta: str
) -> TrainedModel:
    """Returns a scenario's fine-tuned model for use, whose delta lies in a folder.

    Raises:
        ProjectError: there is no delta, or it belongs to another base.
    """
    facts = read_delta(delta, joint_run.fingerprint, name)
    tuned = FineTuning.model_validate(facts["tuned"])
    own = scenario_project(joint_run, name, tuned, project)
    frozen = (own.model.encoder.trainable, project.model.encoder.trainable) == ("none", "none")
    shared = frozen and not joint_run.is_new(name)  # its items have the joint model's vectors
    start = replace(start_of(joint_run, name, tuned), from_general=facts.get("from_general", False))
    return TrainedModel(
        project=own,
        prepared=joint_run.data(name).folder,
        weights=joint_run.weights,
        vectors=joint_run.weights if shared else delta,
        start=start,
        delta=delta,
        rows=item_rows(joint_run.prepared, name) if shared else None,
    )


def zero_shot_model(joint_run: JointRun, name: str, project: Project) -> TrainedModel:
    """Returns the general head of the joint model for a scenario that it does not have.

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
    return TrainedModel(
        project=scenario_project(joint_run, name, tuned, project),
        prepared=joint_run.data(name).folder,
        weights=joint_run.weights,
        vectors=storage.join(joint_run.folder(name), f"general-{joint_run.fingerprint}"),
        start=start_of(joint_run, name, tuned),
        general=True,
    )


def base_model(joint_run: JointRun) -> TrainedModel:
    """Returns the joint model for use."""
    return joint_model(joint_run.project, joint_run.prepared.folder, joint_run.weights)


def model_before(joint_run: JointRun, name: str, project: Project) -> TrainedModel | None:
    """Returns the model before fine-tuning: the joint one, for a new scenario its general head.

    None for a new one where joint training had no general head.
    """
    if not joint_run.is_new(name):
        return base_model(joint_run)
    return zero_shot_model(joint_run, name, project) if joint_run.project.model.general else None


def chosen_model(joint_run: JointRun, name: str, project: Project) -> TrainedModel:
    """Returns the model of a scenario that fine-tuning chose; without a decision the joint one.

    Raises:
        ProjectError: it was chosen for other joint weights.
    """
    stage = joint_run.stage(name)
    decision, chosen = stage.result, ZERO_SHOT if joint_run.is_new(name) else "joint"
    if decision is not None:
        chosen, base = decision["chosen"], (stage.made_from or {})["joint"]["fingerprint"]
        if base != joint_run.fingerprint:
            raise ProjectError(
                [
                    f"scenario {name}: found a model in {stage.folder} that was chosen for other "
                    f"joint weights ({base}, these are {joint_run.fingerprint}); allowed: delete "
                    "it, and fine-tune again"
                ]
            )
    if chosen == "finetuned":
        return with_use_options(finetuned_model(joint_run, name, project), project)
    if chosen == ZERO_SHOT:
        return with_use_options(zero_shot_model(joint_run, name, project), project)
    return joint_for_use(joint_run, project)


def version(joint_run: JointRun, name: str, trained_model: TrainedModel) -> str:
    """Returns which model it is: its kind, and a hash of its weights and of the scenario's data."""
    own = storage.read_json(storage.join(trained_model.delta, DELTA)) if trained_model.delta else {}
    data = joint_run.data(name).fingerprint
    return f"{model_kind(trained_model)} {fingerprint(own, joint_run.fingerprint, data)}"


def model_kind(trained_model: TrainedModel) -> str:
    """Returns `finetuned`, `zero-shot` or `joint`."""
    if trained_model.general:
        return ZERO_SHOT
    return "finetuned" if trained_model.delta else "joint"


def joint_for_use(joint_run: JointRun, project: Project) -> TrainedModel:
    """Returns the joint model with the options of use of `project`."""
    return with_use_options(base_model(joint_run), project)


def with_use_options(trained_model: TrainedModel, project: Project) -> TrainedModel:
    """Returns a model with the workers, the precision and the blends of a project."""
    own = trained_model.project
    precision = {"precision": project.evaluation.precision}
    options = {
        "run": project.run,
        "evaluation": own.evaluation.model_copy(update=precision),
        "recommend": project.only(own.scenarios).recommend,
    }
    return replace(trained_model, project=own.model_copy(update=options))


def score_split_by_tasks(trained_model: TrainedModel, name: str, split: str) -> ScoredSplit:
    """Returns a split's persons i64[N], labels f32[N, T], predictions f32[N, P], by Ray tasks."""
    facts, run = trained_model.open_prepared().scenarios[name], trained_model.project.run
    shards = facts.shards[split]
    vectors = ray.put(ensure_vectors(trained_model))
    task = task_of(score_shards, run)
    size = min(run.most_workers, len(shards))
    cuts = [(len(shards) * i // size, len(shards) * (i + 1) // size) for i in range(size)]
    parts = [
        task.remote(trained_model, vectors, name, [(s.path, s.rows) for s in shards[a:b]])
        for a, b in cuts
    ]
    scored: list[ScoredSplit] = ray.get(parts)
    users, labels, scores = (np.concatenate(x) for x in zip(*scored, strict=True))
    return users, labels, scores


def score_shards(
    trained_model: TrainedModel, vectors: np.ndarray, name: str, shards: Sequence[tuple[str, int]]
) -> ScoredSplit:
    """Returns persons, labels and predictions of some shards, in a Ray task."""
    model, item_vectors = load_with_vectors(trained_model, vectors)
    parts = [
        (arrays["person"], arrays["labels"], scores)
        for path, rows in shards
        for arrays, scores in score_rows(
            model, item_vectors, name,
            read_rows([storage.join(trained_model.prepared, path)], SCORING_BATCH_ROWS, 0, rows),
        )
    ]  # fmt: skip
    users, labels, scores = (np.concatenate(x) for x in zip(*parts, strict=True))
    return users, labels, scores
