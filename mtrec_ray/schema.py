"""What a scenario, a task, a model and a run are: frozen and validated; knows no torch, no Ray.

The project file is parsed into `Project`. `jobs/reference.yaml` shows every section and field.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from mtrec_ray.ranges import check_range, rejoin

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SPLITS = ("train", "valid", "test")


def parse_duration(value: object) -> object:
    """Seconds of a duration such as `31d`, `12h` or a plain number of seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\s*([smhdw])", value.strip())
        if not match:
            raise ValueError("allowed: a number with a unit s, m, h, d or w, such as 31d")
        return int(match[1]) * SECONDS[match[2]]
    return value


def check_name(value: str) -> str:
    """The name itself, refused where it could not be a folder or a column prefix."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value):
        raise ValueError("allowed: a letter, then letters, digits, _ or -")
    return value


Duration = Annotated[int, BeforeValidator(parse_duration), Field(ge=0)]
Name = Annotated[str, AfterValidator(check_name)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen section of the project file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Task(Section):
    """A label to predict; `given` names the task without whose positive this one is undefined."""

    kind: Literal["binary", "regression"]
    label: str | None = None
    given: str | None = None
    space: Literal["masked", "entire"] = "masked"
    delay: Duration = 0
    weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _entire_space_needs_a_parent(self) -> Self:
        if self.space == "entire" and (self.given is None or self.kind != "binary"):
            raise ValueError(
                "space: found entire; allowed: masked, or a binary task with given (1804.07931)"
            )
        return self


class Items(Section):
    """The catalogue's Parquet file or folder and what its columns mean.

    Of each value of the columns `statistics` (null: all categorical ones) past counts and rates
    are kept, and of each user's rows with that value.
    """

    path: str
    id: str = "item_id"
    text: str
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    published: str | None = None
    statistics: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _statistics_of_categories(self) -> Self:
        for column in self.statistics or ():
            if column not in self.categorical:
                raise ValueError(
                    f"statistics: found {column!r}; allowed: columns of categorical, "
                    f"{list(self.categorical)}"
                )
        return self

    @property
    def counted(self) -> tuple[str, ...]:
        """Categorical columns whose values have statistics."""
        return self.categorical if self.statistics is None else self.statistics

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns named in braces in the text template."""
        return tuple(dict.fromkeys(re.findall(r"\{(\w+)\}", self.text)))


class Events(Section):
    """The interaction log's Parquet file or folder and what its columns mean."""

    path: str
    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()


class Split(Section):
    """Exactly one of: a column, two global time cuts, or fractions of each user's rows."""

    column: str | None = None
    time: tuple[datetime, datetime] | None = None
    fractions: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None

    @model_validator(mode="after")
    def _exactly_one_way(self) -> Self:
        given = [k for k in ("column", "time", "fractions") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"found {given or 'none'}; allowed: one of column, time, fractions")
        if self.fractions and abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions: found a sum of {sum(self.fractions):g}; allowed: 1")
        if self.time and self.time[0] >= self.time[1]:
            raise ValueError(
                "time: found a first cut that is not before the second; allowed: an earlier one"
            )
        return self


class Negatives(Section):
    """Sampled negatives: `per_positive` for every positive of task `of`."""

    per_positive: PositiveInt = 4
    of: str
    source: Literal["popularity", "uniform"] = Field("uniform", alias="from")


class History(Section):
    """The user's `last` positive items of task `of` (`any`: every row), before the sample."""

    of: str = "any"
    last: Annotated[int, Field(ge=1, le=512)] = 20


def check_workers(value: object) -> object:
    """A number of workers, or the least and the most, as they stand in the file."""
    numbers = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError("allowed: a number above 0, or two of them, the least and the most")
    return value


def none_word(value: object) -> object:
    """None for the word `none`."""
    return None if value == "none" else value


class Scenario(Section):
    """One recommendation surface: its catalogue, log, split, tasks and loss weight (lambda)."""

    items: Items
    events: Events
    split: Split
    negatives: Annotated[Negatives | None, BeforeValidator(none_word)] = None
    history: History = History()
    tasks: dict[Name, Task] = Field(min_length=1)
    weight: NonNegativeFloat = 1.0
    users: Name | None = None
    statistics: Literal["live", "frozen"] = "live"
    max_unknown_items: Share = 0.01

    @model_validator(mode="after")
    def _tasks_exist(self) -> Self:
        problems = [line for line in self._problems() if line]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """One line for each field that does not fit the others."""
        wanted = {f"tasks.{n}.given": t.given for n, t in self.tasks.items() if t.given}
        if self.history.of != "any":
            wanted["history.of"] = self.history.of
        if self.negatives:
            wanted["negatives.of"] = self.negatives.of
        for field, task in wanted.items():
            if task not in self.tasks or field == f"tasks.{task}.given":
                yield f"{field}: found {task!r}; allowed: another of {sorted(self.tasks)}"
            elif self.tasks[task].kind != "binary":
                yield f"{field}: found that {task!r} is a regression; allowed: a binary task"
            elif field.startswith("tasks.") and self.tasks[task].given:
                yield f"{field}: found that {task!r} is itself conditional; allowed: another"
        if self.events.time is None and self.split.time:
            yield "split.time: found two cuts without events.time; allowed: column or fractions"
        if sum(t.weight for t in self.tasks.values()) <= 0:
            yield "tasks: found that all task weights are 0; allowed: at least one above 0"

    def label_column(self, task: str) -> str:
        """Column of the events that holds the task's label."""
        return self.tasks[task].label or task


class Lora(Section):
    """LoRA (2106.09685) on projections of the top `layers` layers; default query and value."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    layers: PositiveInt = 2
    targets: tuple[str, ...] | None = None


class Encoder(Section):
    """Where the pretrained encoder comes from, which part of it learns, and in which steps.

    The encoder learns in every k-th step (`every`; null: 8 with `gather`, else 1) from that step's
    rows, or (`gather`; null: where that is possible) from the gradients that its cached vectors got
    in all k steps: of all items that were met, or of the `gather_items` whose gradients are the
    longest, the others waiting with theirs. In a step with its own rows, candidates and a share of
    the history items (`history_share`) carry gradients into it; the others come from the cache, but
    none that is older than `max_age` such steps. `rerun` runs the chunks of texts again in the
    backward pass, so that memory does not grow with their number.
    """

    source: str = "sentence-transformers/all-MiniLM-L6-v2"
    pooling: Literal["mean", "cls", "last"] = "mean"
    max_tokens: Annotated[int, Field(ge=4, le=8192)] = 64
    trainable: Literal["all", "top_k", "lora", "none"] = "top_k"
    top_k: PositiveInt = 1
    lora: Lora = Lora()
    every: PositiveInt | None = None
    gather: bool | None = None
    gather_items: PositiveInt | None = 2048
    history_share: Share = 1.0
    max_age: PositiveInt | None = None
    rerun: bool = False
    compile: bool = False
    tokens_per_chunk: PositiveInt = 8192


class Model(Section):
    """What the encoder reads, and sizes of the layers above it.

    Layout `vectors`: each item's text on its own. `pair`: the history and the candidate in one
    sequence of at most `pair_tokens` tokens, a cross encoder, at many times the cost.
    Without `text`, `history` or `statistics` the model does not see them; with `user_ids` and
    `item_ids` it has an embedding of each, which brought nothing (`benchmarks/ablation.py`).
    With `general` a head for the main task of any scenario learns beside the model, which it does
    not change (`model/general.py`): it scores scenarios that the model has not.
    What scenarios and tasks share between inputs and heads is `sharing` (`model/sharing.py`);
    `experts` is the number of shared experts of mmoe and ple. Each numeric column is read in `bins`
    bins of equal numbers of training rows, too, linear in between (0: not).
    """

    encoder: Encoder = Encoder()
    layout: Literal["vectors", "pair"] = "vectors"
    pair_tokens: Annotated[int, Field(ge=8, le=8192)] = 128
    width: PositiveInt = 64
    bins: NonNegativeInt = 16
    attention_heads: PositiveInt = 4
    sharing: Literal["bottom", "mmoe", "ple", "star", "pepnet"] = "bottom"
    experts: PositiveInt = 4
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (256, 128)
    head_hidden: PositiveInt = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    user_ids: bool = False
    item_ids: bool = False
    statistics: bool = True
    text: bool = True
    history: bool = True
    general: bool = True

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.attention_heads:
            raise ValueError(
                f"width: found {self.width}; allowed: a multiple of attention_heads, "
                f"{self.attention_heads}"
            )
        encoder = self.encoder
        if not self.text and (self.layout == "pair" or encoder.trainable != "none"):
            raise ValueError(
                "text: found false with an encoder that learns or layout pair; allowed: true, or "
                "encoder.trainable none"
            )
        if self.layout == "pair" and (encoder.gather or encoder.history_share < 1):
            raise ValueError(
                "layout: found pair with encoder.gather or encoder.history_share; allowed: vectors "
                "(a pair has no item vectors that could be cached)"
            )
        if encoder.gather and encoder.trainable == "none":
            raise ValueError("encoder.gather: found true for trainable: none; allowed: false")
        return self

    @property
    def gathers(self) -> bool:
        """Whether the encoder learns from gathered gradients of cached item vectors."""
        encoder = self.encoder
        if encoder.gather is not None:
            return encoder.gather
        possible = self.layout == "vectors" and encoder.history_share == 1
        return possible and encoder.trainable != "none" and encoder.every != 1

    @property
    def encoder_every(self) -> int:
        """In every which step the encoder learns: by default 8 where gradients are gathered."""
        return self.encoder.every or (8 if self.gathers else 1)


class Teacher(Section):
    """Gradient-boosted trees whose predictions are mixed into the labels (`learning/trees.py`).

    The network learns from `(1 - share) label + share prediction` (0: there is no teacher). The
    trees are fitted on at most `rows` rows, in `folds` folds of users, with at most `rounds` trees
    each; not for tasks with fewer than `least_labels` labels of the rarer kind: there the network
    knows more.
    """

    share: Share = 0.0
    folds: Annotated[int, Field(ge=2)] = 3
    rows: PositiveInt = 500_000
    rounds: PositiveInt = 800
    least_labels: PositiveInt = 1_000


class Training(Section):
    """Optimisation; `batch_size` is the global number of rows of an optimizer step.

    A step whose loss or gradient is not finite is skipped; above the share `max_skipped` of all
    steps the run stops.
    """

    epochs: PositiveInt = 3
    rows_per_epoch: PositiveInt | None = None
    batch_size: PositiveInt = 2048
    accumulation: PositiveInt = 1
    alpha: Share = 1.0
    lr: PositiveFloat = 1e-3
    lr_encoder: PositiveFloat = 5e-5
    weight_decay: NonNegativeFloat = 0.01
    id_weight_decay: NonNegativeFloat = 0.1
    warmup: Share = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: PositiveFloat = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    patience: PositiveInt = 3
    teacher: Teacher = Teacher()
    max_skipped: Share = 0.01
    seed: NonNegativeInt = 0


class Evaluation(Section):
    """Fixed scenario weights of the joint validation score (default uniform); precision of use.

    While a model is trained it is judged on at most `valid_rows` rows of each scenario's valid, the
    first in their pseudo-random order: every rank holds their scores. `precision` is that of
    predictions: int8 quantises the encoder's linear maps (torchao).
    """

    weights: dict[Name, NonNegativeFloat] = Field(default_factory=dict)
    valid_rows: PositiveInt = 2_000_000
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"


SearchedFields = dict[str, Annotated[str, BeforeValidator(check_range)]]


class Search(Section):
    """What the tune stage searches, with what, and how it chooses from what it found.

    `fields`: ranges of fields of this file, which may stand among the other keys of this section,
    too (`training.lr: loguniform(1e-4, 1e-2)`); null: both learning rates, within a factor of 5.
    `scenario_weights`: the scenarios' weights, uniform over the simplex (`learning/simplex.py`);
    in `grid` all its points in steps of 1 / `grid_steps`. `objectives`: one for each scenario, or
    the joint score. `asha` ends those trials early that are not among the better half after
    `grace` epochs, twice as many, and so on; with `pbt` those of the worse quarter go on every
    `grace` epochs from one of the better quarter, with values near its. Trials have `epochs` and
    `rows_per_epoch` in place of training's, and `num_workers` (null: the run's; 0: a trial is one
    process, which goes on with the next trial and has nothing to start), so many at a time
    (`concurrent`; null: as the cluster has room for). `choose` is the lowest joint score, the best
    worst-case gain over models of one scenario, which are trained, too, or the lowest mean of the
    scores by `preference`. `confirm_seeds`: so many whole runs each of the chosen and of uniform
    weights, scored on test. `pipeline_trials`: a short search that the pipeline makes, without a
    confirmation, to train with what it chose (0: none); the tune stage goes on with it.
    """

    trials: PositiveInt = 16
    algorithm: Literal["optuna", "random", "grid"] = "optuna"
    objectives: Literal["scenarios", "joint"] = "scenarios"
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    grace: PositiveInt = 1
    scenario_weights: bool = True
    grid_steps: PositiveInt = 4
    fields: SearchedFields | None = None
    epochs: PositiveInt | None = None
    rows_per_epoch: PositiveInt | None = None
    num_workers: NonNegativeInt | None = None
    concurrent: PositiveInt | None = None
    choose: Literal["joint", "worst_case", "preference"] = "joint"
    preference: dict[Name, NonNegativeFloat] = Field(default_factory=dict)
    confirm_seeds: NonNegativeInt = 0
    pipeline_trials: NonNegativeInt = 0
    seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _fields_among_the_keys(cls, tree: object) -> object:
        if not isinstance(tree, dict):
            return tree
        tree = rejoin(tree)
        inner = tree.get("fields")
        fields = rejoin(inner) if isinstance(inner, dict) else inner
        dotted = {k: tree.pop(k) for k in list(tree) if "." in str(k)}
        if dotted and (fields is None or isinstance(fields, dict)):
            fields = {**(fields or {}), **dotted}
        return tree if fields is None else tree | {"fields": fields}

    @model_validator(mode="after")
    def _preference_is_chosen(self) -> Self:
        given = sum(self.preference.values()) > 0
        if given != (self.choose == "preference"):
            raise ValueError(
                f"preference: found {self.preference or 'none'} with choose: {self.choose}; "
                "allowed: numbers above 0 by scenario, with choose: preference"
            )
        return self


class Adapter(Section):
    """What adapts to a scenario in mode `lora`, beside its own layers: low-rank maps (2106.09685).

    On the query and value (`targets`) of the encoder's top `layers` layers (null: as many as
    learned in joint training, none where the encoder was frozen), and with `shared` on the linear
    maps that all scenarios share above the encoder.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    layers: NonNegativeInt | None = None
    targets: tuple[str, ...] | None = None
    shared: bool = True


class Tuned(Section):
    """How a scenario is fine-tuned from the joint model.

    `lora`: the scenario's own layers, and low-rank changes of shared ones. `head`: its own layers.
    `full`: whatever learned in joint training. `l2_sp` pulls what learns towards the joint weights
    (1802.01483), in place of weight decay. With fewer validation labels of the rarer kind than
    `least_labels` a task has no say in the choice of the model; a scenario without such a task
    stays joint.
    """

    mode: Literal["lora", "head", "full"] = "lora"
    lr: PositiveFloat = 5e-4
    lr_encoder: PositiveFloat = 1e-4
    epochs: PositiveInt = 3
    patience: PositiveInt = 1
    rows_per_epoch: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    l2_sp: NonNegativeFloat = 0.0
    least_labels: PositiveInt = 100
    lora: Adapter = Adapter()


class Finetune(Tuned):
    """Fine-tuning: of every scenario as written here, or as its own fields in `scenarios` say.

    Each scenario is a run of `num_workers` workers; as many run at a time (`concurrent`) as the
    cluster has CPUs and GPUs for (null). The fine-tuned model is kept where it is better than the
    joint one on validation data, for `certain` (the interval of the difference excludes zero) or by
    any amount (`better`).
    """

    num_workers: Annotated[int | tuple[int, int], BeforeValidator(check_workers)] = 1
    concurrent: PositiveInt | None = None
    keep: Literal["certain", "better"] = "certain"
    scenarios: dict[Name, Tuned] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_scenarios(cls, tree: Any) -> Any:
        """Have a scenario's fields that are not written from the section itself."""
        if not isinstance(tree, dict) or not isinstance(tree.get("scenarios"), dict):
            return tree
        general = {k: v for k, v in tree.items() if k in Tuned.model_fields}
        lora = general.get("lora")
        filled = {}
        for name, own in tree["scenarios"].items():
            filled[name] = general | own if isinstance(own, dict) else own
            if isinstance(own, dict) and isinstance(own.get("lora"), dict):
                filled[name]["lora"] = (lora if isinstance(lora, dict) else {}) | own["lora"]
        return tree | {"scenarios": filled}

    def of(self, name: str) -> Tuned:
        """How a scenario is fine-tuned."""
        if name in self.scenarios:
            return self.scenarios[name]
        return Tuned.model_validate({k: getattr(self, k) for k in Tuned.model_fields})


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
