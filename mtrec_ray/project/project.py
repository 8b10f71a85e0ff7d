"""The whole project file, and its sections `run`, `evaluation`, `recommend` and `sample_world`."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from mtrec_ray.project.assortment import Explore, Filter
from mtrec_ray.project.base import (
    Name,
    Section,
    Share,
    check_workers,
    split_query,
    with_options,
)
from mtrec_ray.project.history import with_elsewhere
from mtrec_ray.project.model import Model
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.search import Search
from mtrec_ray.project.serve import Serve
from mtrec_ray.project.training import Finetune, Opinions, Training
from mtrec_ray.project.users import Users

Named = TypeVar("Named")


# Fields of `recommend` that hold something for each scenario.
BY_SCENARIO = ("by", "filters", "at_most_per")


class Evaluation(Section):
    """The joint validation score, and the precision of predictions."""

    weights: dict[Name, NonNegativeFloat] = Field(
        default_factory=dict,
        description="Weights of the scenarios in the joint validation score. Empty: all equal.",
    )
    valid_rows: PositiveInt = Field(
        default=2_000_000,
        description="Rows of each scenario's valid that score a model in training, at most: the "
        "first in their pseudo-random order.",
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        default="auto",
        description="Precision of predictions. int8 quantises the encoder's linear maps (torchao).",
    )


class Recommend(Section):
    """The best items of a scenario for each user."""

    k: PositiveInt = Field(default=20, description="Items recommended to a user.")
    by: dict[Name, dict[Name, NonNegativeFloat]] = Field(
        default_factory=dict,
        description="Weights of the tasks' predictions in the score, by scenario; a task with "
        "`given` counts times those above it. Empty: the first binary task.",
    )
    exclude_seen: bool = Field(
        default=True, description="Leaves out items of which the user has a row."
    )
    filters: dict[Name, tuple[Filter, ...]] = Field(
        default_factory=dict, description="Rules that items pass to be recommended, by scenario."
    )
    at_most_per: dict[Name, dict[str, PositiveInt]] = Field(
        default_factory=dict,
        description="Items of a list that share a value of a column of the catalogue, at most, by "
        "scenario and column; without a value: any number.",
    )
    diversity: Share = Field(
        default=0.0,
        description="Weight of being unlike the items above (MMR), against the score. 0: none.",
    )
    explore: Explore = Field(default=Explore(), description="Chance in the list.")
    pairs_per_block: PositiveInt = Field(
        default=16_384, description="Users times items that are scored at a time."
    )
    shortlist: PositiveInt = Field(
        default=400,
        description="Candidates of a user, at most, that the network scores and orders.",
    )
    fit_users: PositiveInt = Field(
        default=2_000,
        description="Users of each scenario's valid, at most, on whose choices the order of "
        "candidates is fitted.",
    )
    ranking_users: NonNegativeInt = Field(
        default=1_000,
        description="Users of test, at most, for recall and NDCG over the catalogue. 0: none.",
    )


class Run(Section):
    """Name, workers and resources of a run."""

    name: Name = Field(description="With the storage the key of the run, by which it resumes.")
    num_workers: Annotated[int | tuple[int, int], BeforeValidator(check_workers)] = Field(
        default=2, description="Workers of training. Two numbers: any number between them."
    )
    cache: Literal["auto", "object_store", "stream"] = Field(
        default="auto",
        description="Training rows stay in the object store, or are streamed. auto: they stay when "
        "they fit 0.3 of it.",
    )
    checkpoint_steps: PositiveInt = Field(
        default=1000, description="Steps between checkpoints; each epoch ends with one, too."
    )
    use_gpu: bool = Field(default=False, description="Each worker has a GPU.")
    cpus_per_worker: PositiveInt = Field(default=1, description="CPUs of a worker.")
    cache_folder: str | None = Field(
        default=None,
        description="Folder on each node for outputs of frozen layers. null: below the node's "
        "folder for temporary files.",
    )
    max_failures: int = Field(
        default=3, ge=-1, description="Restarts from the last checkpoint. -1: any number."
    )

    def check_order(self) -> Iterator[str]:
        """Yields a line for a least number of workers above the most."""
        if self.least_workers > self.most_workers:
            yield (
                f"num_workers: found [{self.least_workers}, {self.most_workers}]; allowed: a "
                "number, or the least and the most"
            )

    @property
    def least_workers(self) -> int:
        """The number of workers that training needs."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The number of workers that training uses, at most."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def workers_text(self) -> str:
        """Returns the number of workers for a person: `2`, or `2 to 4`."""
        least, most = self.least_workers, self.most_workers
        return str(most) if least == most else f"{least} to {most}"


class SampleWorld(Section):
    """Sizes of the generated sample world (`shop/`, `news/`, `video/`)."""

    seed: int = Field(default=7, description="Seed of the world.")
    users: PositiveInt = Field(default=1500, description="Users of each scenario.")
    items: PositiveInt = Field(default=240, description="Items of each scenario.")
    events: PositiveInt = Field(default=30000, description="Events of each scenario.")
    common_users: Share = Field(
        default=1.0, description="Share of users who are the same people in all scenarios."
    )
    small_events: PositiveInt | None = Field(
        default=None, description="Events of `news`. null: as many as the other scenarios have."
    )
    small_days: PositiveFloat | None = Field(
        default=None,
        description="Days before the end at which `news` begins. null: with the others.",
    )
    in_text: Share = Field(
        default=1.0, description="Share of taste that lies in the text of the items."
    )
    conflict: Share = Field(
        default=0.0, description="Share of users whose taste differs from scenario to scenario."
    )


class Project(Section):
    """The whole project file."""

    root: str = Field(
        default=".",
        description="Folder or URI where the scenarios' relative paths start; relative to this "
        "file's folder.",
    )
    storage_options: dict[str, dict[str, JsonValue]] = Field(
        default={},
        description="Options of file systems by a URI's protocol, such as `{sftp: {port: 22}}`; "
        "`${NAME}` is a variable of the environment. Names are those of pyarrow's URIs, else of "
        "fsspec.",
    )
    data_seed: NonNegativeInt = Field(
        default=0,
        description="Seed of prepared data: splits by fractions, folds, negatives, row order.",
    )
    sample_world: SampleWorld | None = Field(
        default=None,
        description="Reads a generated world in place of files. null: the files below root.",
    )
    users: dict[Name, Users] = Field(
        default_factory=dict,
        description="Tables of users, by the name that `users` of their scenarios has.",
    )
    scenarios: dict[Name, Scenario] = Field(min_length=1, description="Scenarios by name.")
    model: Model = Field(default=Model(), description="The network.")
    training: Training = Field(default=Training(), description="Optimisation of the joint model.")
    opinions: Opinions = Field(
        default=Opinions(), description="What stands beside the network in an evaluation."
    )
    search: Search = Field(default=Search(), description="What the tune stage tries.")
    finetune: Finetune = Field(default=Finetune(), description="Fine-tuning of each scenario.")
    evaluation: Evaluation = Field(default=Evaluation(), description="Scores and predictions.")
    recommend: Recommend = Field(default=Recommend(), description="Recommendations.")
    serve: Serve = Field(default=Serve(), description="The service that answers requests.")
    run: Run = Field(description="Name, workers and resources.")

    @classmethod
    def read(cls, tree: object) -> object:
        """Returns the fields, with histories across scenarios where scenarios share their users."""
        if isinstance(tree, dict) and isinstance(tree.get("scenarios"), dict):
            return {**tree, "scenarios": with_elsewhere(tree["scenarios"])}
        return tree

    def unused_options(self) -> Iterator[str]:
        """Yields a line for options of a protocol that no path has.

        No check of the section, because a part of the project keeps the options of the whole.
        """
        paths = [part.path for s in self.scenarios.values() for part in (s.items, s.events)]
        paths += [users.path for users in self.users.values()]
        used = {protocol_of(self.plain_path(path)) for path in paths}
        for protocol in sorted(self.storage_options.keys() - used):
            found = ", ".join(sorted(used - {""})) or "none, as all paths are local"
            yield f"storage_options: found {protocol!r}; allowed: protocols of paths ({found})"

    def single_weights(self) -> Iterator[str]:
        """Yields a line for moving weights of one loss alone; no check of the section, as above."""
        learned = [s for s in self.scenarios.values() if s.weight > 0]
        tasks = [task for s in learned for task in s.tasks.values() if task.weight > 0]
        yield from self.training.weighting.single(len(learned), len(tasks))

    def lonely_histories(self) -> Iterator[str]:
        """Yields a line for histories elsewhere of people who are nowhere else; as above."""
        named = [scenario.users for scenario in self.scenarios.values()]
        for name, scenario in self.scenarios.items():
            if scenario.history.elsewhere and named.count(scenario.users or "") < 2:
                users = f"the users {scenario.users!r}" if scenario.users else "users"
                yield (
                    f"scenarios.{name}.history.elsewhere: found {scenario.history.elsewhere}, and "
                    f"{users} of its own; allowed: 0, or `users` with a name that another scenario "
                    "has, too"
                )

    def check_users(self) -> Iterator[str]:
        """Yields a line for each table of users that no scenario names."""
        named = {scenario.users for scenario in self.scenarios.values()}
        for name in self.users:
            if name not in named:
                yield (
                    f"users.{name}: found a table that no scenario names; allowed: "
                    f"scenarios.NAME.users: {name}"
                )

    def check_times_of_users(self) -> Iterator[str]:
        """Yields a line for each scenario without time whose users have profiles of some time."""
        for name, scenario in self.scenarios.items():
            table = self.users.get(scenario.users or "")
            if table and table.time and not scenario.events.time:
                yield (
                    f"users.{scenario.users}.time: found {table.time!r}, and no events.time of "
                    f"scenarios.{name}; allowed: null, or users whose logs all have a time"
                )

    def check_weights(self) -> Iterator[str]:
        """Yields a line for scenarios that all weigh nothing."""
        if sum(s.weight for s in self.scenarios.values()) <= 0:
            yield "scenarios: found that all weights are 0; allowed: at least one above 0"

    def check_evaluation(self) -> Iterator[str]:
        """Yields a line for weights of scores of what is no scenario."""
        weights = self.evaluation.weights
        yield from self._unknown_scenarios("evaluation.weights", weights)
        if weights and sum(weights.values()) <= 0:
            yield f"evaluation.weights: found {weights}; allowed: at least one above 0"

    def check_search(self) -> Iterator[str]:
        """Yields a line for a preference for what is no scenario."""
        yield from self._unknown_scenarios("search.preference", self.search.preference)

    def check_finetune(self) -> Iterator[str]:
        """Yields a line for fine-tuning of what is no scenario."""
        yield from self._unknown_scenarios("finetune.scenarios", self.finetune.scenarios)

    def check_recommend(self) -> Iterator[str]:
        """Yields a line for weights of what is no scenario or task, and those without a sum."""
        yield from self._unknown_scenarios("recommend.by", self.recommend.by)
        for name, weights in self.recommend.by.items():
            tasks = sorted(self.scenarios[name].tasks) if name in self.scenarios else None
            if tasks and (set(weights) - set(tasks) or sum(weights.values()) <= 0):
                yield (
                    f"recommend.by.{name}: found {weights}; allowed: weights of {tasks}, one "
                    "of them above 0"
                )

    def check_shortlist(self) -> Iterator[str]:
        """Yields a line for lists that are longer than what they are chosen from."""
        k, shortlist = self.recommend.k, self.recommend.shortlist
        if shortlist < k:
            yield f"recommend.shortlist: found {shortlist}; allowed: at least recommend.k, {k}"

    def check_assortment(self) -> Iterator[str]:
        """Yields a line for rules on lists of what is no scenario."""
        yield from self._unknown_scenarios("recommend.filters", self.recommend.filters)
        yield from self._unknown_scenarios("recommend.at_most_per", self.recommend.at_most_per)

    def _unknown_scenarios(self, field: str, names: Iterable[str]) -> Iterator[str]:
        unknown = sorted(set(names) - set(self.scenarios))
        if unknown:
            yield f"{field}: found {unknown}; allowed: {sorted(self.scenarios)}"

    def only(self, names: Collection[str]) -> Self:
        """Returns the project of some of its scenarios, in its own order.

        Loss weights that are all 0 (of scenarios kept out of joint training) become 1, and weights
        of the score that are all 0 equal.
        """
        kept = of_names(self.scenarios, names)
        if not any(scenario.weight for scenario in kept.values()):
            kept = {n: s.model_copy(update={"weight": 1.0}) for n, s in kept.items()}
        evaluation, finetune, recommend = self.evaluation, self.finetune, self.recommend
        weights = of_names(evaluation.weights, kept)
        scored = {"weights": weights if any(weights.values()) else {}}
        tuned = {"scenarios": of_names(finetune.scenarios, kept)}
        lists = {key: of_names(getattr(recommend, key), kept) for key in BY_SCENARIO}
        return self.model_copy(
            update={
                "scenarios": kept,
                "users": self._users_of(kept),
                "evaluation": evaluation.model_copy(update=scored),
                "finetune": finetune.model_copy(update=tuned),
                "recommend": recommend.model_copy(update=lists),
                "search": self.search.only(kept),
            }
        )

    def single(self, name: str) -> Self:
        """Returns the project of one scenario by itself, as fine-tuning trains it."""
        workers = {"num_workers": self.finetune.num_workers or 1}
        kept = {name: self.scenarios[name].model_copy(update={"weight": 1.0})}
        return self.model_copy(
            update={
                "scenarios": kept,
                "users": self._users_of(kept),
                "evaluation": self.evaluation.model_copy(update={"weights": {}}),
                "run": self.run.model_copy(update=workers),
                "finetune": Finetune(),
                "recommend": Recommend(),
                "search": Search(),
            }
        )

    def _users_of(self, scenarios: Mapping[str, Scenario]) -> dict[str, Users]:
        """Returns the tables of users that some scenarios name."""
        return of_names(self.users, [s.users for s in scenarios.values() if s.users])

    def plain_path(self, relative: str) -> str:
        """Returns a scenario's path below `root`; URIs and absolute paths stay as they are.

        The query of a URI (its endpoint, its region) stays last.
        """
        if "://" in relative or Path(relative).is_absolute():
            return relative
        root, query = split_query(self.root)
        return f"{root.rstrip('/')}/{relative}{query}"

    def path(self, relative: str) -> str:
        """Returns `plain_path`, which of a URI tells the options of its file system, too."""
        path = self.plain_path(relative)
        return with_options(path, self.storage_options.get(protocol_of(path), {}))

    def dump(self) -> dict[str, Any]:
        """Returns the project as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)


def protocol_of(path: str) -> str:
    """Returns the protocol of a URI; an empty text of a local path."""
    return path.split("://")[0] if "://" in path else ""


def of_names(values: Mapping[str, Named], names: Collection[str]) -> dict[str, Named]:
    """Returns the values of some names."""
    return {name: value for name, value in values.items() if name in names}
