"""What scenarios are fine-tuned on: a finished joint model, its data, and joined scenarios."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mtrec_ray.data.prepared import Prepared, PreparedScenario, load_prepared
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.depends_on import joint_model_depends_on
from mtrec_ray.project.project import Project
from mtrec_ray.stages.finetuning.new_scenario import open_new_scenario
from mtrec_ray.stages.prepare import open_prepared
from mtrec_ray.stages.run_folder import RunFolder, Stage
from mtrec_ray.training.delta import base_fingerprint


@dataclass(frozen=True)
class JointRun:
    """What scenarios are fine-tuned on.

    Attributes:
        project: of the joint model; `prepared`: its data.
        run: where everything of the run lies.
        fingerprint: of the joint model's weights.
        joined: data of the scenarios that joined later.
    """

    project: Project
    prepared: Prepared
    run: RunFolder
    fingerprint: str
    joined: dict[str, Prepared] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """The folder of the joint model's weights."""
        return self.run.best_joint_model

    @property
    def facts(self) -> dict[str, PreparedScenario]:
        """All scenarios, those that joined after the others."""
        more = {n: p.scenarios[n] for n, p in self.joined.items()}
        return self.prepared.scenarios | more

    @property
    def encoder(self) -> str:
        """The source of the joint model's encoder."""
        options = self.project.model.encoder
        return options.source if options.trainable == "none" else self.run.path("joint", "encoder")

    def data(self, name: str) -> Prepared:
        """Returns the prepared data that holds a scenario."""
        return self.joined.get(name, self.prepared)

    def is_new(self, name: str) -> bool:
        """Returns whether the joint model does not have the scenario."""
        return name not in self.prepared.scenarios

    def stage(self, name: str) -> Stage:
        """Returns the stage of a scenario's own model."""
        return self.run.finetune(name)

    def folder(self, name: str) -> str:
        """Returns where a scenario's own model lies."""
        return self.stage(name).folder


def open_joint_run(whole: Project, storage_path: str) -> JointRun:
    """Returns the finished joint model of a run, and the scenarios that joined it.

    Raises:
        ProjectError: there is none, or it was made from other values than the project has.
    """
    run = RunFolder.of(whole, storage_path)
    stored = load_prepared(run.prepare.folder).scenarios
    new = [name for name in whole.scenarios if name not in stored]
    project = whole.only(stored) if new else whole
    prepared = open_prepared(project, run)
    if not run.train.finished(joint_model_depends_on(project, prepared.fingerprint)):
        raise ProjectError(
            [f"joint model: found none in {run.train.folder}; allowed: run the train job first"]
        )
    opened = {name: open_new_scenario(whole, run, name) for name in new}
    joined = {name: data for name, data in opened.items() if data is not None}
    return JointRun(project, prepared, run, base_fingerprint(run.best_joint_model), joined)


def check_names(names: Sequence[str], project: Project) -> list[str]:
    """Returns the named scenarios, by default all.

    Raises:
        ProjectError: one that the project does not have.
    """
    unknown = [n for n in names if n not in project.scenarios]
    refuse([f"--scenario: found {n!r}; allowed: {', '.join(project.scenarios)}" for n in unknown])
    return list(dict.fromkeys(names)) or list(project.scenarios)


def check_data(names: Sequence[str], joint_run: JointRun) -> list[str]:
    """Returns the scenarios themselves, all of which have prepared data.

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
