"""The prepare stage: samples, catalogues and states from a project's logs, audited."""

from typing import Any

from mtrec_ray.config import ProjectError, fingerprint
from mtrec_ray.data import storage
from mtrec_ray.data.audit import audit
from mtrec_ray.data.inputs import input_fingerprint, input_problems
from mtrec_ray.data.prepare import Say, prepare
from mtrec_ray.data.synthetic import write_sample_world
from mtrec_ray.model.encoder import check_encoder
from mtrec_ray.schema import Project
from mtrec_ray.stages.cluster import connect


def prepared_folder(project: Project, storage_path: str) -> str:
    """Where a run's prepared data lies."""
    return storage.join(storage_path, project.run.name, "prepared")


def prepare_fingerprint(project: Project) -> str:
    """Changes with whatever the prepared data depends on, and with nothing else."""
    scenarios = {
        name: scenario.model_dump(mode="json", exclude={"weight"})
        for name, scenario in project.scenarios.items()
    }
    for scenario in scenarios.values():
        for task in scenario["tasks"].values():
            task.pop("weight")
    encoder = project.model.encoder
    return fingerprint(
        scenarios,
        encoder.source,
        encoder.max_tokens,
        project.training.seed,
        input_fingerprint(project),
    )


def with_sample_world(project: Project, storage_path: str, say: Say) -> Project:
    """The project itself, or one whose root is the generated sample world that it asks for.

    The world lies in the storage, which every node reaches, once for each seed and size.
    """
    world = project.sample_world
    if world is None:
        return project
    root = storage.join(storage_path, f"sample_world-{fingerprint(world.model_dump())}")
    marker = storage.join(root, "sample_world.json")
    if not storage.exists(marker):
        say(f"writing the GENERATED sample world (not real data) to {root}")
        write_sample_world(
            root, seed=world.seed, users=world.users, items=world.items, events=world.events
        )
        storage.write_json(marker, world.model_dump())
    return project.model_copy(update={"root": root})


def run_prepare(project: Project, storage_path: str, say: Say) -> dict[str, Any]:
    """Prepare a project's data, or find it prepared; returns the data report.

    Raises:
        ProjectError: unusable inputs, a changed configuration, or a failed leakage audit.
    """
    storage.check_writable(storage_path)
    project = with_sample_world(project, storage_path, say)
    problems = input_problems(project)
    if problems:
        raise ProjectError(problems)
    check_encoder(project.model.encoder)
    folder = prepared_folder(project, storage_path)
    mark = prepare_fingerprint(project)
    finished = storage.join(folder, "manifest.json")
    if storage.exists(finished):
        tree = storage.read_json(finished)
        if tree["fingerprint"] == mark:
            say("prepare: already done")
            return tree["report"]
        raise ProjectError(
            [
                f"run.name: found {project.run.name!r}, whose prepared data was made with another "
                "configuration or other inputs; allowed: the same ones, another name, or delete "
                f"{folder}"
            ]
        )
    connect(project.run)
    storage.remove_folder(folder)
    manifest = prepare(project, folder, say)
    check_leakage(project, folder, mark, manifest, say)
    storage.remove_folder(storage.join(folder, "work"))
    return manifest["report"]


def check_leakage(
    project: Project, folder: str, mark: str, manifest: dict[str, Any], say: Say
) -> None:
    """Audit the prepared data; the manifest is written only where the audit passes."""
    from mtrec_ray.data.shards import Prepared, parse_scenario

    say("leakage audit")
    scenarios = {n: parse_scenario(s) for n, s in manifest["scenarios"].items()}
    problems = audit(project, Prepared(folder, mark, scenarios))
    if problems:
        storage.remove_folder(folder)
        raise ProjectError([f"leakage audit: {line}" for line in problems[:20]])
    manifest["report"]["audit"] = {"passed": True, "rows_per_split": 12}
    storage.write_json(storage.join(folder, "manifest.json"), {"fingerprint": mark, **manifest})
