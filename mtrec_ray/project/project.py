"""The whole project file, and its sections `run`, `evaluation`, `recommend` and `sample_world`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from mtrec_ray.project.base import Name, Section, check_workers
from mtrec_ray.project.model import Model
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.search import Search
from mtrec_ray.project.training import Finetune, Training


class Evaluation(Section):
    """Fixed scenario weights of the joint validation score (default uniform); precision of use.

    While a model is trained it is judged on at most `valid_rows` rows of each scenario's valid, the
    first in their pseudo-random order: every rank holds their scores. `precision` is that of
    predictions: int8 quantises the encoder's linear maps (torchao).
    """

    weights: dict[Name, NonNegativeFloat] = Field(default_factory=dict)
    valid_rows: PositiveInt = 2_000_000
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"


class Recommend(Section):
    """Recommending: the `k` best items of a scenario for each user.

    `by` weighs, by scenario, the predictions of its tasks (default: its first binary one); those of
    a task with `given` are multiplied by its parent's. `exclude_seen` leaves items out that the
    user's log has. `pairs_per_block`: users times items that are scored at a time. `judged_users`:
    of the test split at most, with which recall and NDCG over the catalogue are measured.
    """

    k: PositiveInt = 20
    by: dict[Name, dict[Name, NonNegativeFloat]] = Field(default_factory=dict)
    exclude_seen: bool = True
    pairs_per_block: PositiveInt = 16_384
    judged_users: NonNegativeInt = 1_000


class Run(Section):
    """Name (the resume key), workers and resources of the run.

    Training goes on with any number of workers within a pair `num_workers`. Rows are kept in the
    object store for all passes, or streamed (`cache`). A checkpoint is written after every epoch
    and every `checkpoint_steps` steps.
    `cache_folder` lies on each node and holds outputs of frozen layers, for all runs; by default
    it is below the node's folder for temporary files.
    """

    name: Name
    num_workers: Annotated[int | tuple[int, int], BeforeValidator(check_workers)] = 2
    cache: Literal["auto", "object_store", "stream"] = "auto"
    checkpoint_steps: PositiveInt = 1000
    use_gpu: bool = False
    cpus_per_worker: PositiveInt = 1
    cache_folder: str | None = None
    max_failures: int = Field(3, ge=-1)

    @model_validator(mode="after")
    def _least_workers_first(self) -> Self:
        if self.least_workers > self.most_workers:
            raise ValueError(
                f"num_workers: found [{self.least_workers}, {self.most_workers}]; allowed: a "
                "number, or the least and the most"
            )
        return self

    @property
    def least_workers(self) -> int:
        """With so many workers training goes on."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """So many workers at most."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class SampleWorld(Section):
    """Sizes of the generated sample world: users in all, items and events of each scenario.

    A project with this section reads the world's files (`shop/`, `news/`, `video/`) in place of
    those below `root`.
    """

    seed: int = 7
    users: PositiveInt = 1500
    items: PositiveInt = 240
    events: PositiveInt = 30000


class Project(Section):
    """The whole project file. `root` is where relative paths of scenarios start.

    `data_seed` is that of prepared data: splits by fractions, folds, negatives, order of rows. All
    that is trained on them has `training.seed`.
    """

    root: str = "."
    data_seed: NonNegativeInt = 0
    sample_world: SampleWorld | None = None
    scenarios: dict[Name, Scenario] = Field(min_length=1)
    model: Model = Model()
    training: Training = Training()
    search: Search = Search()
    finetune: Finetune = Finetune()
    evaluation: Evaluation = Evaluation()
    recommend: Recommend = Recommend()
    run: Run

    @model_validator(mode="after")
    def _weights_make_sense(self) -> Self:
        if sum(s.weight for s in self.scenarios.values()) <= 0:
            raise ValueError(
                "scenarios: found that all weights are 0; allowed: at least one above 0"
            )
        named = {
            "evaluation.weights": self.evaluation.weights,
            "search.preference": self.search.preference,
            "finetune.scenarios": self.finetune.scenarios,
        }
        problems = [
            f"{field}: found {unknown}; allowed: {sorted(self.scenarios)}"
            for field, weights in named.items()
            if (unknown := sorted(set(weights) - set(self.scenarios)))
        ]
        scored = self.evaluation.weights
        if scored and sum(scored.values()) <= 0:
            problems.append(f"evaluation.weights: found {scored}; allowed: at least one above 0")
        if problems:
            raise ValueError("\n".join(problems))
        self._check_recommend()
        return self

    def _check_recommend(self) -> None:
        """Refuse weights of what is no scenario or task, and those without a sum."""
        for name, weights in self.recommend.by.items():
            tasks = sorted(self.scenarios[name].tasks) if name in self.scenarios else None
            if tasks is None:
                raise ValueError(f"recommend.by: found {name!r}; allowed: {sorted(self.scenarios)}")
            if set(weights) - set(tasks) or sum(weights.values()) <= 0:
                raise ValueError(
                    f"recommend.by.{name}: found {weights}; allowed: weights of {tasks}, one "
                    "of them above 0"
                )

    def path(self, relative: str) -> str:
        """A scenario's path, resolved against `root`; URIs and absolute paths stay as they are."""
        if "://" in relative or Path(relative).is_absolute():
            return relative
        return self.root.rstrip("/") + "/" + relative

    def dump(self) -> dict[str, Any]:
        """The project as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)
