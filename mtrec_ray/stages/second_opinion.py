"""Boosted trees beside the models of an evaluation: fitted once, blended where that is better.

The trees of a scenario lie in `trees/NAME/`; what they weigh beside the joint model, a fine-tuned
one or the general head lies in a folder of its own there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.prepared import PreparedScenario, load_prepared
from mtrec_ray.evaluation.blend import Blend, Judged, fit_blend
from mtrec_ray.progress import Log
from mtrec_ray.project.depends_on import Fields
from mtrec_ray.project.project import Project, Run
from mtrec_ray.stages.cluster import result_of, task_of
from mtrec_ray.stages.finetuning.chosen_model import model_kind, version
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.predictions import (
    ModelByScenario,
    Opinions,
    SecondOpinion,
    predict_split,
    read_predictions,
)
from mtrec_ray.stages.run_folder import Record, Stage
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors, pretrained_texts
from mtrec_ray.training.second_opinion import fit_tree_model, stops

FITTING = "fitting"  # folder of the predictions of valid, while weights are fitted


@dataclass(frozen=True)
class Asked:
    """A model of a scenario that trees may stand beside, and the stage of their weights.

    Attributes:
        folder: of the model's predictions.
    """

    folder: str
    name: str
    model: TrainedModel
    stage: Stage
    made_from: Fields

    @property
    def blends(self) -> Record | None:
        """The weights by task, where they were fitted for this very model."""
        return self.stage.current(self.made_from)


def ensure_opinions(
    joint_run: JointRun, models: Mapping[str, ModelByScenario], project: Project, log: Log
) -> Opinions:
    """Returns the trees beside each model, by the folder of its predictions and by scenario.

    Empty where the project wants none. What was fitted is kept.
    """
    if not project.trees.blend:
        return {}
    trees = ensure_trees(joint_run, next(iter(models.values())), project, log)
    asked = [
        asked_of(joint_run, folder, name, model, project)
        for folder, by_name in models.items()
        for name, model in by_name.items()
    ]
    missing = [one for one in asked if one.blends is None]
    if missing:
        log("scoring valid, to weigh the trees beside the network")
        fit_blends(joint_run, missing, trees, project.run)
    found: dict[str, dict[str, SecondOpinion]] = {folder: {} for folder in models}
    for one in asked:
        blends = {task: Blend(**tree) for task, tree in (one.blends or {}).items()}
        found[one.folder][one.name] = replace(trees[one.name], blends=blends)
    chosen = found[next(iter(models))]
    log(summary(joint_run.facts, chosen))
    return found


def trees_stage(joint_run: JointRun, name: str) -> Stage:
    """Returns the stage of a scenario's trees."""
    return joint_run.run.trees.part(name)


def trees_depend_on(joint_run: JointRun, name: str, project: Project) -> Fields:
    """Returns whatever a scenario's trees depend on."""
    return {
        "prepared": joint_run.data(name).fingerprint,
        "encoder": project.model.encoder.source,
        "seed": project.training.seed,
        "trees": project.trees.model_dump(exclude={"blend"}),
    }


def asked_of(
    joint_run: JointRun, folder: str, name: str, model: TrainedModel, project: Project
) -> Asked:
    """Returns a model of a scenario, with the stage of its weights."""
    stage = trees_stage(joint_run, name).part(f"beside-{model_kind(model)}")
    made_from = {
        "model": version(joint_run, name, model),
        "precision": model.project.evaluation.precision,
        **trees_depend_on(joint_run, name, project),
    }
    return Asked(folder, name, model, stage, made_from)


def ensure_trees(
    joint_run: JointRun, models: ModelByScenario, project: Project, log: Log
) -> dict[str, SecondOpinion]:
    """Returns each scenario's trees, fitted side by side where they are not there yet."""
    distinct = dict.fromkeys(models.values())
    vectors = {model: ray.put(ensure_vectors(model)) for model in distinct}
    read = task_of(pretrained_texts, project.run)
    fit = task_of(fit_scenario_trees, project.run, gpu=False)
    found, waiting = {}, {}
    for name, model in models.items():
        stage, made_from = trees_stage(joint_run, name), trees_depend_on(joint_run, name, project)
        texts = read.remote(model, vectors[model], project, name)
        found[name] = SecondOpinion(stage.folder, texts)
        if stage.current(made_from) is None:
            stage.start_anew(made_from)
            prepared = joint_run.data(name).folder
            waiting[fit.remote(project, prepared, name, texts, stage.folder)] = name
    if waiting:
        log(f"fitting boosted trees beside the network: {', '.join(waiting.values())}")
    while waiting:
        ready, _ = ray.wait(list(waiting))
        name = waiting.pop(ready[0])
        trees_stage(joint_run, name).finish(result_of(ready[0]))
    return found


def fit_scenario_trees(
    project: Project, prepared: str, name: str, texts: Float32s, folder: str
) -> dict[str, int]:
    """Writes a scenario's trees, in a Ray task; returns how many each task has."""
    model = fit_tree_model(
        load_prepared(prepared), name, texts, project.trees, project.training.seed,
        project.run.cpus_per_worker,
    )  # fmt: skip
    model.save(folder)
    return {task: trees.best_iteration for task, trees in model.boosters.items()}


def fit_blends(
    joint_run: JointRun, asked: Sequence[Asked], trees: Mapping[str, SecondOpinion], run: Run
) -> None:
    """Fits the weights of each model and its trees on the half of valid that is for it."""
    fitting = joint_run.run.trees.part(FITTING).folder
    storage.remove_folder(fitting)
    models: dict[str, dict[str, TrainedModel]] = {}
    for one in asked:
        models.setdefault(storage.join(fitting, model_kind(one.model)), {})[one.name] = one.model
    opinions = {folder: {name: trees[name] for name in own} for folder, own in models.items()}
    predict_split(models, run, "valid", opinions)
    for one in asked:
        folder = storage.join(fitting, model_kind(one.model))
        one.stage.start_anew(one.made_from)
        one.stage.finish(blends_of(folder, joint_run.facts[one.name]))
    storage.remove_folder(fitting)


def blends_of(folder: str, facts: PreparedScenario) -> Record:
    """Returns by task the weights that pay, as plain values, from predictions of valid."""
    rows = read_predictions(folder, facts.name, len(facts.tasks))
    found = {}
    for i, (task, kind) in enumerate(facts.kinds.items()):
        label, trees = rows["label"][:, i], rows["trees"][:, i]
        kept = np.isfinite(label) & np.isfinite(trees) & ~stops(rows["person"])
        if not kept.any():
            continue
        values = (rows[key][kept, i].astype(np.float64) for key in ("network", "trees", "label"))
        blend = fit_blend(kind, Judged(*values, user=rows["person"][kept]))
        if blend is not None and blend.pays:
            found[task] = asdict(blend)
    return found


def summary(facts: Mapping[str, PreparedScenario], opinions: Mapping[str, SecondOpinion]) -> str:
    """Returns a line that says where trees have a say."""
    tasks = {name: own.blends for name, own in opinions.items() if own.blends}
    num = sum(len(blends) for blends in tasks.values())
    total = sum(len(facts[name].tasks) for name in opinions)
    named = "; ".join(f"{name} {', '.join(blends)}" for name, blends in tasks.items())
    return f"trees beside the network in {num} of {total} tasks" + (f": {named}" if named else "")
