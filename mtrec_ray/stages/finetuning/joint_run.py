"""What scenarios are fine-tuned on: a finished joint model, its data, and who joined it later."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, PreparedScenario, load_prepared
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.project import Project
from mtrec_ray.stages.finetuning.new_scenario import open_joined, restricted
from mtrec_ray.stages.prepare import open_prepared
from mtrec_ray.stages.run_folder import find_finished
from mtrec_ray.stages.train import BEST, joint_made_with
from mtrec_ray.training.delta import base_fingerprint

SCENARIOS, ENCODER_FOLDER = "scenarios", "encoder"


@dataclass(frozen=True)
class JointRun:
    """What scenarios are fine-tuned on.

    Attributes:
        project: of the joint model; `prepared`: its data.
        run_folder: of the run; `joint`: folder of the joint model's weights.
        fingerprint: of these weights.
        joined: data of the scenarios that joined later.
    """

    project: Project
    prepared: Prepared
    run_folder: str
    joint: str
    fingerprint: str
    joined: dict[str, Prepared] = field(default_factory=dict)

    def data(self, name: str) -> Prepared:
        """The prepared data that holds a scenario."""
        return self.joined.get(name, self.prepared)

    def is_new(self, name: str) -> bool:
        """Whether the joint model does not have the scenario."""
        return name not in self.prepared.scenarios

    @property
    def facts(self) -> dict[str, PreparedScenario]:
        """All scenarios, those that joined after the others."""
        more = {n: p.scenarios[n] for n, p in self.joined.items()}
        return self.prepared.scenarios | more

    def folder(self, name: str) -> str:
        """Where a scenario's model lies."""
        return storage.join(self.run_folder, SCENARIOS, name)

    @property
    def encoder(self) -> str:
        """The source of the joint model's encoder."""
        options = self.project.model.encoder
        if options.trainable == "none":
            return options.source
        return storage.join(self.run_folder, "joint", ENCODER_FOLDER)


def open_joint_run(project: Project, storage_path: str) -> JointRun:
    """The finished joint model of a run.

    Raises:
        ProjectError: there is none, or it was made with other values than the project has.
    """
    run_folder = storage.join(storage_path, project.run.name)
    stored = load_prepared(storage.join(run_folder, "prepared")).scenarios
    new = [n for n in project.scenarios if n not in stored]
    if new:
        whole, project = project, restricted(project, [n for n in project.scenarios if n in stored])
    else:
        whole = project
    prepared = open_prepared(project, storage_path)
    joint = storage.join(run_folder, "joint")
    made_with = joint_made_with(project, prepared)
    if not find_finished(joint, made_with, job="train", run=project.run.name):
        raise ProjectError([f"joint model: found none in {joint}; run the train job first"])
    best = storage.join(joint, BEST)
    opened = {n: open_joined(whole, run_folder, n) for n in new}
    joined = {n: p for n, p in opened.items() if p is not None}
    return JointRun(project, prepared, run_folder, best, base_fingerprint(best), joined)


def check_names(names: Sequence[str], project: Project) -> list[str]:
    """The named scenarios, by default all.

    Raises:
        ProjectError: one that the project does not have.
    """
    unknown = [n for n in names if n not in project.scenarios]
    refuse([f"--scenario: found {n!r}; allowed: {', '.join(project.scenarios)}" for n in unknown])
    return list(dict.fromkeys(names)) or list(project.scenarios)


def with_data(names: Sequence[str], joint_run: JointRun) -> list[str]:
    """The scenarios themselves.

    Raises:
        ProjectError: one that is new and has not been prepared.
    """
    missing = [n for n in names if n not in joint_run.facts]
    refuse(
        [
            f"scenarios.{n}: found no prepared data of it, and the joint model does not have it; "
            f"allowed: {', '.join(joint_run.facts)}, or first finetune --scenario {n}"
            for n in missing
        ]
    )
    return list(names)
