"""Prepared data on disk: the manifest.

prepared/manifest.json              what was prepared: tasks, columns, shards, fitted numbers
prepared/NAME/catalogue.parquet     items, and catalogue.vectors.0.npy, ...: their vectors
prepared/profiles.NAME.parquet      a table of users, profiles.NAME.texts.parquet its texts, and
                                    profiles.NAME.vectors.0.npy, ... its vectors
prepared/NAME/elsewhere.*.npy       what its users took in other scenarios (`elsewhere.py`), and
                                    elsewhere.SPACE.texts.npy vectors of all of their items
prepared/NAME/SPLIT/*.parquet       samples, in a fixed pseudo-random order
prepared/NAME/state/{items,users}/  features at the end of the data, for recommending
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import Catalogue, load_catalogue
from mtrec_ray.data.elsewhere import ElsewhereFacts, Timeline, load_timeline
from mtrec_ray.data.profiles import ProfileFacts, Profiles, load_profiles
from mtrec_ray.data.shards import TrainShard
from mtrec_ray.project.base import ProjectError

MANIFEST = "manifest.json"

# Facts of a scenario that a manifest may leave out.
OPTIONAL = {"several_sizes", "several_widths", "history_outcomes", "classes", "elsewhere"}


@dataclass(frozen=True)
class Shard:
    """A Parquet file of samples."""

    path: str
    rows: int


@dataclass(frozen=True)
class TeacherLabels:
    """Where a teacher's predictions lie, `NAME/*.parquet`, and their share in the training labels.

    `training/teacher_labels.py` mixes them into the labels of a batch.
    """

    folder: str
    share: float


@dataclass(frozen=True)
class Classes:
    """The classes of a multiclass task, in their order.

    Attributes:
        values: as the project file has them.
        gains: the number of each, whose expectation is the task's one number.
        rates: the share of each in the training labels, by the weights of their rows.
    """

    values: list[bool | int | float | str]
    gains: list[float]
    rates: list[float]


@dataclass(frozen=True)
class PreparedScenario:
    """What was prepared for one scenario.

    A task has a logit and a prediction; a multiclass task has a logit for each class, and, after
    the predictions of all tasks, a probability for each class.

    Attributes:
        kinds: binary, regression, count, duration or multiclass, by task.
        classes: of multiclass tasks, whose labels are numbers of classes.
        given: the parent task, by conditional task, which may be conditional itself; `entire` those
            trained over the whole space.
        label_means, label_stds: over training rows, by task; of a multiclass task those of gains.
        label_log_means, label_log_stds: the same of log(1 + y), of durations.
        numeric_names: of the numeric columns of a row.
        numeric_mean, numeric_std, numeric_quantiles: fitted on training rows; [F], [F], [F, Q].
        item_numeric_mean, item_numeric_std, item_numeric_quantiles: the same of the catalogue's
            numeric columns; [M], [M], [M, Q].
        item_category_sizes, category_sizes: vocabulary sizes with the unknown one.
        several_sizes: the same of the log's columns with several values; `several_widths`: how many
            codes of each a row has at most. A manifest without any does not name them.
        user_space: the id space of the users; `num_users`: its training users plus one.
        popularity: by task, the numeric column that ranks items by their past.
        end_ms: the end of the data, the moment just after the last row.
        history_outcomes: whether histories tell what came of their items (`outcomes.py`); a
            manifest names it where they do.
        elsewhere: what it asks of other scenarios of its users; None for nothing.
    """

    name: str
    kinds: dict[str, str]
    given: dict[str, str]
    entire: list[str]
    history_last: int
    label_means: dict[str, float]
    label_stds: dict[str, float]
    numeric_names: list[str]
    numeric_mean: list[float]
    numeric_std: list[float]
    numeric_quantiles: list[list[float]]
    item_numeric_mean: list[float]
    item_numeric_std: list[float]
    item_numeric_quantiles: list[list[float]]
    item_category_sizes: list[int]
    category_sizes: list[int]
    user_space: str
    num_users: int
    num_items: int
    popularity: dict[str, str]
    end_ms: int
    shards: dict[str, list[Shard]]
    label_log_means: dict[str, float] = field(default_factory=dict)
    label_log_stds: dict[str, float] = field(default_factory=dict)
    several_sizes: list[int] = field(default_factory=list)
    several_widths: list[int] = field(default_factory=list)
    history_outcomes: bool = False
    classes: dict[str, Classes] = field(default_factory=dict)
    elsewhere: ElsewhereFacts | None = None

    @property
    def tasks(self) -> list[str]:
        """Task names in the order of the label columns."""
        return list(self.kinds)

    @property
    def logit_tasks(self) -> list[str]:
        """The task of each logit, in their order."""
        return [task for task in self.kinds for _ in range(self.num_logits(task))]

    @property
    def num_predictions(self) -> int:
        """P: one a task, and one a class of each multiclass task."""
        return len(self.kinds) + sum(len(one.gains) for one in self.classes.values())

    def num_logits(self, task: str) -> int:
        """Returns how many logits a task has."""
        return len(self.classes[task].gains) if task in self.classes else 1

    def logits_of(self, task: str) -> slice:
        """Returns where the logits of a task stand."""
        start = self.logit_tasks.index(task)
        return slice(start, start + self.num_logits(task))

    def probabilities_of(self, task: str) -> slice:
        """Returns where the probabilities of a multiclass task's classes stand in predictions."""
        start = len(self.kinds)
        for other in self.kinds:
            if other == task:
                break
            start += len(self.classes[other].gains) if other in self.classes else 0
        return slice(start, start + len(self.classes[task].gains))

    def base_prediction(self, task: str) -> float:
        """Returns what a model says that knows the labels of training alone: their mean.

        Of a duration, the mean on its logarithmic scale; of a multiclass task, the mean gain.
        """
        if self.kinds[task] == "duration":
            return math.expm1(self.label_log_means[task])
        return self.label_means[task]

    def dispersion(self, task: str) -> float:
        """Returns the variance of a count's training labels over their mean; Poisson's is 1."""
        return max(self.label_stds[task] ** 2 / max(self.label_means[task], 1e-6), 1e-6)

    def chain(self, task: str) -> list[str]:
        """Returns a task and all tasks above it, of which each is the parent of the one before."""
        return chain_of(self.given, task)

    @property
    def main(self) -> str | None:
        """The scenario's main task: its first binary one."""
        return next((t for t, kind in self.kinds.items() if kind == "binary"), None)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory: 1 for an age, 8 for each of three scalars, 4 for all else."""
        four = len(self.numeric_names) + len(self.category_sizes) + len(self.kinds) + 2
        four += sum(self.several_widths)
        of_history = 9 if self.history_outcomes else 5
        return of_history * self.history_last + 4 * four + 8 * 3

    def num_rows(self, split: str) -> int:
        """Returns the number of samples of a split."""
        return sum(s.rows for s in self.shards[split])


def chain_of(given: Mapping[str, str], task: str) -> list[str]:
    """Returns a task and all tasks above it, by their parents."""
    chain = [task]
    while chain[-1] in given:
        chain.append(given[chain[-1]])
    return chain


@dataclass(frozen=True)
class Prepared:
    """The prepared data of a run; `fingerprint` tells it from any other.

    Attributes:
        users: what was fitted on tables of users, by id space.
    """

    folder: str
    fingerprint: str
    scenarios: dict[str, PreparedScenario]
    teacher_labels: "TeacherLabels | None" = None
    users: dict[str, ProfileFacts] = field(default_factory=dict)

    def only(self, names: Collection[str]) -> "Prepared":
        """Returns the prepared data of some of the scenarios."""
        return replace(self, scenarios={n: f for n, f in self.scenarios.items() if n in names})

    def first(self, num_rows: int) -> "Prepared":
        """Returns the same data with only the first `num_rows` training rows of each scenario."""
        scenarios = {}
        for name, facts in self.scenarios.items():
            left, cut = num_rows, []
            for shard in facts.shards["train"]:
                if left > 0:
                    cut.append(Shard(shard.path, min(shard.rows, left)))
                left -= shard.rows
            scenarios[name] = replace(facts, shards=facts.shards | {"train": cut})
        return replace(self, scenarios=scenarios)

    def train_shards(self, name: str) -> list[TrainShard]:
        """Returns a scenario's training shards, with the predictions of a teacher, if any."""
        paths = self.shard_paths(name, "train")
        if self.teacher_labels is None:
            return [TrainShard(path) for path in paths]
        folder = storage.join(self.teacher_labels.folder, name)
        return [TrainShard(p, storage.join(folder, storage.name_of(p))) for p in paths]

    def catalogue(self, name: str) -> Catalogue:
        """Returns the catalogue of a scenario, read from disk."""
        return load_catalogue(storage.join(self.folder, name, "catalogue.parquet"), vectors=True)

    def profiles(self, name: str) -> Profiles | None:
        """Returns the profiles of a scenario's users, read from disk; None without a table."""
        space = self.scenarios[name].user_space
        return load_profiles(self.folder, space, self.users[space]) if space in self.users else None

    def timeline(self, name: str) -> Timeline | None:
        """Returns what a scenario's users took in others, mapped from disk; None if not asked."""
        facts = self.scenarios[name]
        if facts.elsewhere is None:
            return None
        return load_timeline(self.folder, name, facts.user_space, facts.elsewhere)

    def shard_paths(self, name: str, split: str) -> list[str]:
        """Returns full paths of a split's shards."""
        return [storage.join(self.folder, s.path) for s in self.scenarios[name].shards[split]]


def load_prepared(folder: str) -> Prepared:
    """Returns the manifest of a prepared folder.

    Raises:
        ProjectError: the folder is not finished.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        raise ProjectError(
            [f"prepared data: found none in {folder}; allowed: run the prepare job first"]
        )
    tree = storage.read_json(path)
    scenarios = {n: parse_scenario(s) for n, s in tree["scenarios"].items()}
    return Prepared(folder, tree["fingerprint"], scenarios, users=parse_users(tree))


def parse_users(tree: dict[str, Any]) -> dict[str, ProfileFacts]:
    """Returns what a manifest says of tables of users; nothing where there are none."""
    return {space: ProfileFacts(**facts) for space, facts in tree.get("users", {}).items()}


def parse_scenario(tree: dict[str, Any]) -> PreparedScenario:
    """Returns a scenario of the manifest.

    Raises:
        ProjectError: a manifest that an earlier version wrote.
    """
    missing = sorted({f.name for f in fields(PreparedScenario)} - set(tree) - OPTIONAL)
    if missing:
        raise ProjectError(
            [
                f"prepared data: found no {', '.join(missing)} in the manifest of "
                f"{tree.get('name')}, which an earlier version wrote; allowed: prepare again "
                "under another run.name"
            ]
        )
    shards = {split: [Shard(**s) for s in files] for split, files in tree["shards"].items()}
    classes = {task: Classes(**facts) for task, facts in tree.get("classes", {}).items()}
    asked = tree.get("elsewhere")
    elsewhere = ElsewhereFacts(**asked) if asked else None
    return PreparedScenario(
        **{**tree, "shards": shards, "classes": classes, "elsewhere": elsewhere}
    )
