"""Every path of a run, and what each stage was made from.

A stage's folder holds `started.json`, what the stage is being made from, and `finished.json`, what
it returned. A stage that is finished is not repeated; another configuration is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.progress import Log
from mtrec_ray.project.base import ProjectError, shorten
from mtrec_ray.project.depends_on import Fields, differences
from mtrec_ray.project.load import value_at, with_overrides
from mtrec_ray.project.project import Project

BEST = "best"  # of a model's folder: the weights of its best epoch
SHOWN_FIELDS = 4

Record = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """The folder of a stage, and the record of what it was made from.

    Attributes:
        job, run: as error lines name them.
        prefix: of both files; readers of Parquet pass over names that begin with an underscore.
    """

    folder: str
    job: str
    run: str
    prefix: str = ""

    @property
    def _started(self) -> str:
        return storage.join(self.folder, f"{self.prefix}started.json")

    @property
    def _finished(self) -> str:
        return storage.join(self.folder, f"{self.prefix}finished.json")

    @property
    def made_from(self) -> Fields | None:
        """What the stage is made from; None before it starts."""
        return storage.read_json(self._started) if storage.exists(self._started) else None

    @property
    def result(self) -> Record | None:
        """What the stage returned, whatever it was made from; None before it is finished."""
        return storage.read_json(self._finished) if storage.exists(self._finished) else None

    @property
    def is_finished(self) -> bool:
        """Whether the stage has returned, whatever it was made from."""
        return storage.exists(self._finished)

    def finished(self, made_from: Fields) -> Record | None:
        """Returns what the stage returned, or None where it is still to be done.

        Raises:
            ProjectError: the folder was made from something else.
        """
        before = self.made_from
        if before is not None:
            self.refuse_changes(before, made_from)
        return self.result

    def refuse_changes(self, before: Fields, now: Fields) -> None:
        """Refuses to go on with what was made from something else.

        Raises:
            ProjectError: names the fields, what they were and what they are.
        """
        changes = list(differences(before, now))
        if not changes:
            return
        rest = len(changes) - SHOWN_FIELDS
        more = f" and {rest} more" if rest > 0 else ""
        raise ProjectError(
            [
                f"run.name: found {self.run!r}, whose {self.job} stage was made with "
                f"{', '.join(changes[:SHOWN_FIELDS])}{more}; "
                f"allowed: the same values, another name, or delete {self.folder}"
            ]
        )

    def current(self, made_from: Fields) -> Record | None:
        """Returns what the stage returned; None where that was made from something else."""
        return self.result if self.made_from == made_from else None

    def start(self, made_from: Fields) -> None:
        """Notes what the stage is being made from; from now on its folder belongs to that."""
        storage.write_json(self._started, made_from)

    def start_anew(self, made_from: Fields) -> None:
        """Starts, or goes on; empties the folder first where it was made from something else."""
        if self.made_from != made_from:
            storage.remove_folder(self.folder)
            self.start(made_from)

    def part(self, name: str) -> "Stage":
        """Returns the stage of a part of this one, in a folder of its own."""
        return replace(self, folder=storage.join(self.folder, name))

    def finish(self, result: Record) -> Record:
        """Notes that the stage is finished; returns its result."""
        storage.write_json(self._finished, result)
        return result


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies: below the storage, under the run's name."""

    storage: str
    name: str

    @classmethod
    def of(cls, project: Project, storage_path: str) -> "RunFolder":
        """Returns the folder of a project's run."""
        return cls(storage_path, project.run.name)

    def path(self, *parts: str) -> str:
        """Returns a path below the run's folder."""
        return storage.join(self.storage, self.name, *parts)

    def stage(self, job: str, *parts: str, prefix: str = "") -> Stage:
        """Returns the stage of a job whose folder lies at a path below the run's."""
        return Stage(self.path(*parts), job, self.name, prefix)

    @property
    def prepare(self) -> Stage:
        """Prepared data."""
        return self.stage("prepare", "prepared")

    @property
    def train(self) -> Stage:
        """The joint model."""
        return self.stage("train", "joint")

    @property
    def best_joint_model(self) -> str:
        """The folder of the joint model's best weights."""
        return self.path("joint", BEST)

    @property
    def tune(self) -> Stage:
        """The search."""
        return self.stage("tune", "tune")

    @property
    def opinions(self) -> Stage:
        """Boosted trees beside the network, and what each opinion weighs."""
        return self.stage("evaluate", "opinions")

    @property
    def lists(self) -> Stage:
        """The model that orders the candidates of lists."""
        return self.stage("lists", "lists")

    @property
    def evaluate(self) -> Stage:
        """The evaluation."""
        return self.stage("evaluate", "evaluation")

    @property
    def scenarios(self) -> str:
        """The folder of the scenarios' own models."""
        return self.path("scenarios")

    def finetune(self, scenario: str) -> Stage:
        """Returns the stage of a scenario's own model."""
        return self.stage("finetune", "scenarios", scenario)

    def prepare_new(self, scenario: str) -> Stage:
        """Returns the stage of the data of a scenario that joins a finished joint model."""
        return self.stage("prepare", "scenarios", scenario, "prepared")

    def recommend(self, scenario: str, *, listed: bool = False) -> Stage:
        """Returns the stage of a scenario's recommendations, to all users or to listed ones."""
        folder = "recommendations_listed" if listed else "recommendations"
        return self.stage("recommend", folder, scenario, prefix="_")

    @property
    def search_choice(self) -> str:
        """The file of what the pipeline's search chose, for the run's other jobs."""
        return self.path("search_choice.json")


# --- what the pipeline's search chose --------------------------------------------------------


def keep_search_choice(project: Project, run: RunFolder, chosen: Mapping[str, Any]) -> None:
    """Keeps a search's chosen trial for all jobs of the run, with the values that it replaces."""
    overrides = chosen["overrides"]
    kept = {
        "trial": chosen["trial"],
        "overrides": overrides,
        "replaces": {field: value_at(project, field) for field in overrides},
    }
    storage.write_json(run.search_choice, kept)


def with_search_choice(project: Project, run: RunFolder, log: Log) -> Project:
    """Returns the project with the values that its pipeline chose; itself where it chose none.

    Values that the project does not have yet are told.

    Raises:
        ProjectError: the project has another value than the one that the choice replaces.
    """
    if not project.search.pipeline_trials or not storage.exists(run.search_choice):
        return project
    choice = storage.read_json(run.search_choice)
    problems = [
        f"{field}: found {shorten(value_at(project, field))}, but this run's search chose "
        f"{shorten(value)} in place of {shorten(choice['replaces'][field])}; allowed: one of these "
        f"two, another run.name, or delete {run.search_choice}"
        for field, value in choice["overrides"].items()
        if value_at(project, field) not in (value, choice["replaces"][field])
    ]
    if problems:
        raise ProjectError(problems)
    overrides = choice["overrides"]
    if any(value_at(project, field) != value for field, value in overrides.items()):
        values = ", ".join(f"{field} {in_short(value)}" for field, value in overrides.items())
        log(f"with the search's choice (trial {choice['trial']}): {values}")
    return with_overrides(project, overrides)


def in_short(value: Any) -> str:
    """Returns a value for a line of progress; a number with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else shorten(value)
