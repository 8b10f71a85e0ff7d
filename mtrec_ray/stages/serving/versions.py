"""A version of all scenarios' models that a service answers with: its files, hashed, and handles.

What a version reads from files are numbers and texts: weights and vectors (safetensors), trees
(LightGBM's text), the list model and weights of blends (JSON), prepared data (Parquet, npy).
Nothing is unpickled. The manifest holds the SHA-256 of each file that was trained, and is checked
before models are loaded.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from mtrec_ray.data import storage
from mtrec_ray.model.encoder import quantise_problems
from mtrec_ray.progress import Log
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import Fields, fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.stages.finetuning.chosen_model import (
    chosen_model,
    finetuned_model,
    model_before,
    model_kind,
    version,
    with_use_options,
)
from mtrec_ray.stages.finetuning.joint_run import JointRun, open_joint_run
from mtrec_ray.stages.finetuning.recipe import DELTA_FOLDER
from mtrec_ray.stages.list_inputs import ModelByScenario
from mtrec_ray.stages.list_parts import ListParts, ensure_parts
from mtrec_ray.stages.list_writer import ListMaker
from mtrec_ray.stages.predictions import SecondOpinion
from mtrec_ray.stages.prepare import with_parquet, with_sample_world
from mtrec_ray.stages.run_folder import RunFolder, Stage, with_search_choice
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors, vectors_path
from mtrec_ray.training.checkpoint import FACTS, WEIGHTS

MANIFEST = "files"  # of the stage's record


@dataclass(frozen=True)
class ServedScenario:
    """Handles of what a scenario is served from; it travels.

    Attributes:
        maker: of its lists; None without a binary task.
        fingerprint: its kind, and a hash of weights and data.
    """

    model: TrainedModel
    vectors: ray.ObjectRef
    fingerprint: str
    opinion: SecondOpinion | None
    maker: ListMaker | None


@dataclass(frozen=True)
class OtherModel:
    """A model of a scenario that does not answer, to be compared; it travels."""

    model: TrainedModel
    vectors: ray.ObjectRef


@dataclass(frozen=True)
class ServedVersion:
    """A version of all scenarios' models; it travels.

    Attributes:
        name: of the version. folder: of the run; `files`: SHA-256 by path below it.
        joint: folder of the joint model's prepared data, which says the users that it knows.
        project: names files that can be read.
        others: by scenario the model that was not chosen: the joint, or the fine-tuned one.
    """

    name: str
    folder: str
    project: Project
    scenarios: Mapping[str, ServedScenario]
    joint: str
    files: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, OtherModel] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse files that are others than when the version was made.

        Raises:
            ProjectError: names them.
        """
        refuse(list(changed_files(self.folder, self.files)))


def open_version(project: Project, storage_path: str, log: Log) -> ServedVersion:
    """Returns a version of a finished run; what it lacks beside the models is fitted by Ray tasks.

    Raises:
        ProjectError: no joint model, one that reads pairs, or files that were changed.
    """
    storage.check_writable(storage_path)
    run = RunFolder.of(project, storage_path)
    project = with_search_choice(project, run, log)
    if project.model.layout == "pair":
        refuse(["model.layout: found pair; allowed for serving: vectors (each pair a text)"])
    if project.evaluation.precision == "int8":
        refuse(quantise_problems())
    joint_run = open_joint_run(project, storage_path)
    models = {name: chosen_model(joint_run, name, project) for name in joint_run.facts}
    stage = run.stage("serve", "serve", "version")
    others = other_models(joint_run, models, project)
    made_from = version_depends_on(joint_run, models, others, project)
    files = known_files(stage, made_from)
    if files is not None:
        refuse(list(changed_files(run.path(), files)))
    resolved = with_catalogues(project, models, storage_path, log)
    scenarios = serve_scenarios(joint_run, models, project, resolved, log)
    held = hold(others, scenarios)
    if files is None:
        files = hashes(run.path(), files_of(joint_run, models, others))
        stage.start_anew(made_from)
        stage.finish({MANIFEST: files})
    name = f"{project.run.name}-{fingerprint(files)[:8]}"
    joint = joint_run.prepared.folder
    return ServedVersion(name, run.path(), resolved, scenarios, joint, files, held)


def other_models(
    joint_run: JointRun, models: ModelByScenario, project: Project
) -> dict[str, TrainedModel]:
    """Returns by scenario the model that was not chosen, where there is one that can be used."""
    found = {name: other_model(joint_run, name, model, project) for name, model in models.items()}
    return {name: model for name, model in found.items() if model is not None}


def other_model(
    joint_run: JointRun, name: str, chosen: TrainedModel, project: Project
) -> TrainedModel | None:
    """Returns the model that was not chosen: the one before fine-tuning, or the fine-tuned one."""
    if model_kind(chosen) == "finetuned":
        before = model_before(joint_run, name, project)
        return None if before is None else with_use_options(before, project)
    if not storage.exists(storage.join(joint_run.folder(name), DELTA_FOLDER)):
        return None
    try:
        return with_use_options(finetuned_model(joint_run, name, project), project)
    except ProjectError:  # of other joint weights
        return None


def hold(
    others: Mapping[str, TrainedModel], scenarios: Mapping[str, ServedScenario]
) -> dict[str, OtherModel]:
    """Returns handles of models; those that answer in another scenario have theirs already."""
    held = {own.model: own.vectors for own in scenarios.values()}
    for model in others.values():
        if model not in held:
            held[model] = ray.put(ensure_vectors(model))
    return {name: OtherModel(model, held[model]) for name, model in others.items()}


def with_catalogues(project: Project, names: Iterable[str], storage_path: str, log: Log) -> Project:
    """Returns the project whose catalogues can be read, as far as they are there."""
    own = with_sample_world(project, storage_path, log)
    for name in names:
        try:
            own = with_parquet(own, storage_path, log, [(name, "items")])
        except (ProjectError, FileNotFoundError):
            log(f"{name}: the catalogue file cannot be read; requests may not have filters")
    return own


def serve_scenarios(
    joint_run: JointRun, models: ModelByScenario, project: Project, resolved: Project, log: Log
) -> dict[str, ServedScenario]:
    """Returns the handles of each scenario, ready to be opened."""
    parts = ensure_parts(joint_run, models, project, log)
    held = {own.model: own.vectors for own in parts.inputs.values()}
    for model in models.values():
        if model not in held:
            held[model] = ray.put(ensure_vectors(model))
    found = {
        name: served(joint_run, name, model, held[model], parts, resolved)
        for name, model in models.items()
    }
    for own in found.values():
        if own.maker is not None:
            own.maker.wait()
    return found


def served(
    joint_run: JointRun,
    name: str,
    model: TrainedModel,
    vectors: ray.ObjectRef,
    parts: ListParts,
    project: Project,
) -> ServedScenario:
    """Returns the handles of a scenario."""
    maker = parts.maker(name, project) if name in parts.inputs else None
    return ServedScenario(
        model, vectors, version(joint_run, name, model), parts.opinion(name), maker
    )


# --- the manifest ------------------------------------------------------------------------------


def version_depends_on(
    joint_run: JointRun, models: ModelByScenario, others: ModelByScenario, project: Project
) -> Fields:
    """Returns what a version's files depend on."""
    options = project.recommend
    return {
        "models": {name: version(joint_run, name, model) for name, model in models.items()},
        "others": {name: version(joint_run, name, model) for name, model in others.items()},
        "recommend": options.model_dump(
            mode="json", include={"by", "exclude_seen", "fit_users", "shortlist"}
        ),
        "precision": project.evaluation.precision,
        "opinions": project.opinions.model_dump(mode="json"),
    }


def known_files(stage: Stage, made_from: Fields) -> Mapping[str, str] | None:
    """Returns the manifest of a version that was made before; None where there is none of it."""
    record: Any = stage.current(made_from)
    return None if record is None else record[MANIFEST]


def files_of(joint_run: JointRun, models: ModelByScenario, others: ModelByScenario) -> list[str]:
    """Returns the paths of all files that were trained or fitted, below the run's folder."""
    run = joint_run.run
    paths = [storage.join(joint_run.weights, name) for name in (WEIGHTS, FACTS)]
    every = [*models.values(), *others.values()]
    paths += [path for path in map(vectors_path, every) if storage.exists(path)]
    folders = [run.lists.folder, *(run.opinions.part(name).folder for name in models)]
    folders += [model.delta for model in every if model.delta]
    if joint_run.encoder.startswith(run.path()):
        folders.append(joint_run.encoder)
    for folder in folders:
        paths += storage.files(folder) if storage.exists(folder) else []
    for name, model in models.items():
        if model_kind(model) == "finetuned":
            paths.append(storage.join(joint_run.folder(name), "finished.json"))
    return sorted({path for path in paths if storage.exists(path)})


def hashes(folder: str, paths: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of files by their paths below a folder."""
    start = len(folder) + 1
    return {path[start:]: hash_of(path) for path in paths}


def hash_of(path: str) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(storage.read_bytes(path)).hexdigest()


def changed_files(folder: str, files: Mapping[str, str]) -> Iterable[str]:
    """Yields a line for each file that is missing, or has other bytes than the manifest says."""
    for path, wanted in files.items():
        whole = storage.join(folder, path)
        found = hash_of(whole) if storage.exists(whole) else "no file"
        if found != wanted:
            yield (
                f"version: found {found[:16]} for {whole}, not the {wanted[:16]} of its manifest; "
                f"allowed: the file as it was, or delete {storage.join(folder, 'serve', 'version')}"
            )
