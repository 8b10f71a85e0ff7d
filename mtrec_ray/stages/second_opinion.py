"""What stands beside the models of an evaluation: fitted once, blended where that is better.

Boosted trees of a scenario lie in `opinions/NAME/`; what each opinion weighs beside the joint
model, a fine-tuned one or the general head lies in a folder of its own there. The sources of
candidates, and what labels say, are fitted anew each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.prepared import PreparedScenario, load_prepared
from mtrec_ray.evaluation.blend import LABELS, Blend, Judged, fit_blend
from mtrec_ray.progress import Log
from mtrec_ray.project.depends_on import Fields
from mtrec_ray.project.project import Project, Run
from mtrec_ray.stages.cluster import result_of, task_of
from mtrec_ray.stages.finetuning.chosen_model import model_kind, version
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.list_inputs import ListInputs
from mtrec_ray.stages.predictions import (
    ModelByScenario,
    OpinionsByFolder,
    SecondOpinion,
    predict_split,
    read_predictions,
    said_of_task,
)
from mtrec_ray.stages.row_labels import fit_row_labels
from mtrec_ray.stages.row_sources import fit_row_sources
from mtrec_ray.stages.run_folder import Record, Stage
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors, pretrained_texts
from mtrec_ray.training.second_opinion import fit_tree_model, stops

MOST_ROWS = 100_000  # of valid, on which a blend is fitted
SAYERS = (  # beginnings of names, and what the terminal calls them
    ("trees", "trees"), ("popularity", "sources of candidates"), (LABELS, "labels of other items")
)  # fmt: skip
FITTING = "_fitting"  # folder of the predictions of valid, while weights are fitted


@dataclass(frozen=True)
class Asked:
    """A model of a scenario that others may stand beside, and the stage of their weights.

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

    def folder_in(self, fitting: str) -> str:
        """Returns the folder of the model's predictions of valid."""
        return storage.join(fitting, model_kind(self.model))


def ensure_opinions(
    joint_run: JointRun,
    models: Mapping[str, ModelByScenario],
    inputs: Mapping[str, ListInputs],
    project: Project,
    log: Log,
) -> OpinionsByFolder:
    """Returns what stands beside each model, by the folder of its predictions and by scenario.

    Empty where the project wants nothing. What was fitted is kept. `inputs`: of the scenarios that
    have sources of candidates.
    """
    if not project.opinions.wanted:
        return {}
    beside = stands_beside(joint_run, next(iter(models.values())), inputs, project, log)
    asked = [
        asked_of(joint_run, folder, name, model, inputs, project)
        for folder, by_name in models.items()
        for name, model in by_name.items()
    ]
    missing = [one for one in asked if one.blends is None]
    if missing:
        log("scoring valid, to weigh what stands beside the network")
        fit_blends(joint_run, missing, beside, project.run)
    found: dict[str, dict[str, SecondOpinion]] = {folder: {} for folder in models}
    for one in asked:
        blends = {task: Blend(**tree) for task, tree in (one.blends or {}).items()}
        found[one.folder][one.name] = replace(beside[one.name], blends=blends)
    return found


def stands_beside(
    joint_run: JointRun,
    models: ModelByScenario,
    inputs: Mapping[str, ListInputs],
    project: Project,
    log: Log,
) -> dict[str, SecondOpinion]:
    """Returns the trees, sources and labels of each scenario, as the project wants."""
    wanted, found = project.opinions, {name: SecondOpinion() for name in models}
    if wanted.trees:
        found = ensure_trees(joint_run, models, project, log)
    sources = fit_row_sources(inputs, project.run) if wanted.sources else {}
    labels = fit_row_labels(models, project.run) if wanted.labels else {}
    return {
        name: replace(own, sources=sources.get(name), labels=labels.get(name))
        for name, own in found.items()
    }


def trees_stage(joint_run: JointRun, name: str) -> Stage:
    """Returns the stage of a scenario's trees."""
    return joint_run.run.opinions.part(name)


def trees_depend_on(joint_run: JointRun, name: str, project: Project) -> Fields:
    """Returns whatever a scenario's trees depend on."""
    return {
        "prepared": joint_run.data(name).fingerprint,
        "encoder": project.model.encoder.source,
        "seed": project.training.seed,
        "trees": project.opinions.model_dump(exclude={"trees", "sources", "labels"}),
    }


def asked_of(
    joint_run: JointRun,
    folder: str,
    name: str,
    model: TrainedModel,
    inputs: Mapping[str, ListInputs],
    project: Project,
) -> Asked:
    """Returns a model of a scenario, with the stage of its weights."""
    made_from = {
        "model": version(joint_run, name, model),
        "precision": model.project.evaluation.precision,
        "opinions": project.opinions.model_dump(),
        "crowd": crowd_of(joint_run, inputs, name) if project.opinions.sources else {},
        "same_people": same_people(joint_run, name) if project.opinions.labels else {},
        **trees_depend_on(joint_run, name, project),
    }
    stage = trees_stage(joint_run, name).part(f"beside-{model_kind(model)}")
    return Asked(folder, name, model, stage, made_from)


def crowd_of(
    joint_run: JointRun, inputs: Mapping[str, ListInputs], name: str
) -> dict[str, list[str]]:
    """Returns the data and the task of each scenario whose rows a scenario's sources rest on."""
    members = inputs[name].texts if name in inputs else ()
    return {member: [joint_run.data(member).fingerprint, inputs[member].task] for member in members}


def same_people(joint_run: JointRun, name: str) -> dict[str, str]:
    """Returns the data of each scenario whose labels a scenario's label sources rest on."""
    space = joint_run.facts[name].user_space
    members = [other for other, facts in joint_run.facts.items() if facts.user_space == space]
    return {member: joint_run.data(member).fingerprint for member in members}


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
        load_prepared(prepared), name, texts, project.opinions, project.training.seed,
        project.run.cpus_per_worker,
    )  # fmt: skip
    model.save(folder)
    return {task: trees.best_iteration for task, trees in model.boosters.items()}


def fit_blends(
    joint_run: JointRun, asked: Sequence[Asked], beside: Mapping[str, SecondOpinion], run: Run
) -> None:
    """Fits the weights of each model and what stands beside it on valid."""
    fitting = joint_run.run.opinions.part(FITTING).folder
    storage.remove_folder(fitting)
    models: dict[str, dict[str, TrainedModel]] = {}
    for one in asked:
        models.setdefault(one.folder_in(fitting), {})[one.name] = one.model
    opinions = {folder: {name: beside[name] for name in own} for folder, own in models.items()}
    predict_split(models, run, "valid", opinions)
    fit = task_of(blends_of_folder, run, gpu=False)
    fits = [fit.remote(one.folder_in(fitting), joint_run.facts[one.name]) for one in asked]
    for one, ref in zip(asked, fits, strict=True):
        one.stage.start_anew(one.made_from)
        one.stage.finish(result_of(ref))
    storage.remove_folder(fitting)


def blends_of_folder(folder: str, facts: PreparedScenario) -> Record:
    """Returns the blends that predictions of valid say are best; in a Ray task."""
    return blends_of(read_predictions(folder, facts.name, len(facts.tasks)), facts)


def blends_of(rows: Mapping[str, np.ndarray], facts: PreparedScenario) -> Record:
    """Returns by task the blend that pays, as plain values; `rows`: predictions of valid.

    A multiclass task has none: the probabilities of its classes are the network's. Users who said
    how many trees are best do not judge what a task that has trees gains by them. Of more than
    100,000 labelled rows those of some users are taken.
    """
    found = {}
    for i, (task, kind) in enumerate(facts.kinds.items()):
        if kind == "multiclass":
            continue
        said, label = said_of_task(rows, i), rows["label"][:, i].astype(np.float64)
        known, judges = np.isfinite(label), np.ones(len(label), bool)
        if not np.isfinite(said.get("trees", label)).any():
            said.pop("trees", None)
        elif "trees" in said:
            judges = ~stops(rows["person"])
        known &= of_some_users(rows["person"], known, MOST_ROWS)
        judged = Judged(said, label, rows["person"]).take(known)
        blend = fit_blend(kind, judged, judges[known])
        if blend is not None:
            found[task] = asdict(blend)
    return found


def of_some_users(user: Ints, known: Bools, most: int) -> Bools:
    """Returns bool[N]: rows of users by chance, so many that about `most` of their rows are known.

    All rows where no more are known.
    """
    draw = hash_ints(user.astype(np.int64), 13)
    if known.sum() <= most:
        return np.ones(len(user), bool)
    return draw <= np.sort(draw[known])[most - 1]


def has_say(what: str, blend: Blend) -> bool:
    """Returns whether an opinion, or a score whose name begins so, changes what a blend says."""
    weights = [weight for name, weight in blend.weights.items() if name.startswith(what)]
    return bool(weights) and (bool(blend.boosted) or any(weights))


def summary(
    facts: Mapping[str, PreparedScenario], opinions: Mapping[str, SecondOpinion]
) -> list[str]:
    """Returns lines that say which tasks are blended; none where nothing stands beside."""
    if not opinions:
        return []
    total = sum(len(facts[name].tasks) for name in opinions)
    lines = []
    for what, told in SAYERS:
        tasks = {
            name: [task for task, blend in own.blends.items() if has_say(what, blend)]
            for name, own in opinions.items()
        }
        named = [f"{name} {', '.join(some)}" for name, some in tasks.items() if some]
        line = f"{told} beside the network in {sum(map(len, tasks.values()))} of {total} tasks"
        lines.append(f"{line}: {'; '.join(named)}" if named else line)
    return lines
