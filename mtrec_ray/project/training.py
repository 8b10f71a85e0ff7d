"""The sections `training` and `finetune` of a project file."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from mtrec_ray.project.base import (
    Name,
    Section,
    Share,
    check_validations,
    check_workers_or_none,
)
from mtrec_ray.project.weighting import Weighting


class Teacher(Section):
    """Gradient-boosted trees whose predictions are mixed into the labels.

    The network learns from `(1 - share) label + share prediction`.
    """

    share: Share = Field(
        default=0.0, description="Share of the trees' prediction in a label. 0: no trees."
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        default=3,
        description="Folds of users; trees predict the fold that they were not fitted on.",
    )
    rows: PositiveInt = Field(
        default=500_000, description="Rows that the trees are fitted on, at most."
    )
    rounds: PositiveInt = Field(default=800, description="Trees per task and fold, at most.")
    least_labels: PositiveInt = Field(
        default=1_000, description="A task with fewer labels of its rarer class has no trees."
    )


class Opinions(Section):
    """What is said of a row beside the network, and is blended with its own opinion.

    Task by task, and only where that is better on users of valid who are left out of the fit.
    """

    trees: bool = Field(
        default=True,
        description="Boosted trees on the prepared columns give a second opinion of rows, and of "
        "listed items.",
    )
    sources: bool = Field(
        default=True,
        description="The sources of candidates (neighbours, EASE, popularity, texts; of all "
        "scenarios with the same people) say what they hold of a row.",
    )
    labels: bool = Field(
        default=True,
        description="What the user gave other items (means and neighbours of each task's labels; "
        "of all scenarios with the same people) says of a row.",
    )
    rows: PositiveInt = Field(
        default=300_000, description="Rows of a scenario that the trees are fitted on, at most."
    )
    rounds: PositiveInt = Field(default=800, description="Trees per task, at most.")
    least_labels: PositiveInt = Field(
        default=300, description="A task with fewer labels of its rarer class has no trees."
    )

    @property
    def wanted(self) -> bool:
        """Whether anything stands beside the network."""
        return self.trees or self.sources or self.labels


class Training(Section):
    """Optimisation of the joint model."""

    epochs: PositiveInt = Field(default=3, description="Number of epochs.")
    rows_per_epoch: PositiveInt | None = Field(
        default=None, description="Rows of an epoch over all workers. null: as many as there are."
    )
    batch_size: PositiveInt = Field(
        default=2048, description="Rows per optimizer step over all workers."
    )
    accumulation: PositiveInt = Field(default=1, description="Micro-batches per optimizer step.")
    alpha: Share = Field(
        default=1.0,
        description="A scenario with n rows has a share of each batch proportional to n^alpha.",
    )
    lr: PositiveFloat = Field(default=1e-3, description="Peak learning rate above the encoder.")
    lr_encoder: PositiveFloat = Field(
        default=5e-5, description="Peak learning rate of the encoder."
    )
    weight_decay: NonNegativeFloat = Field(default=0.01, description="Weight decay (AdamW).")
    id_weight_decay: NonNegativeFloat = Field(
        default=0.1, description="Weight decay of the embeddings of users, items and categories."
    )
    warmup: Share = Field(
        default=0.05, description="Share of all steps with a rising learning rate."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape of the learning rate after the warm-up."
    )
    clip_norm: PositiveFloat = Field(default=1.0, description="Largest norm of a step's gradient.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Precision of training. auto: bf16 where the device computes in it.",
    )
    patience: PositiveInt = Field(
        default=3,
        description="Training stops after so many epochs without a better validation score.",
    )
    validations: Annotated[int | list[float], BeforeValidator(check_validations)] = Field(
        default=1,
        description="Validations in an epoch, each followed by a checkpoint; or the epochs after "
        "which they come: [0.25, 0.5, 1, 2].",
    )
    teacher: Teacher = Field(default=Teacher(), description="Boosted trees that soften the labels.")
    max_skipped: Share = Field(
        default=0.01,
        description="Training stops above this share of steps without a finite loss or gradient.",
    )
    weighting: Weighting = Field(
        default=Weighting(),
        description="How the weights of losses move while the joint model trains.",
    )
    seed: NonNegativeInt = Field(default=0, description="Seed of all that is trained.")

    @property
    def validation_epochs(self) -> list[float]:
        """The epochs after which validations come, the last of all among them."""
        if isinstance(self.validations, int):
            each = self.validations
            after = {number / each for number in range(1, self.epochs * each)}
        else:
            after = {epoch for epoch in self.validations if epoch < self.epochs}
        return [int(e) if e == int(e) else e for e in sorted({*after, self.epochs})]


class Adapter(Section):
    """Low-rank maps (2106.09685) that adapt shared layers to a scenario in mode `lora`."""

    rank: PositiveInt = Field(default=8, description="Rank of the maps.")
    alpha: PositiveFloat = Field(
        default=16.0, description="The maps' output is scaled by alpha / rank."
    )
    layers: NonNegativeInt | None = Field(
        default=None,
        description="Top layers of the encoder with maps. null: those that learned in joint "
        "training.",
    )
    targets: tuple[str, ...] | None = Field(
        default=None,
        description="Names of the encoder's linear maps to adapt. null: query and value.",
    )
    shared: bool = Field(
        default=True, description="Adapts the shared linear maps above the encoder, too."
    )


class FineTuning(Section):
    """How one scenario is fine-tuned from the joint model."""

    mode: Literal["lora", "head", "full"] = Field(
        default="lora",
        description="What learns: the scenario's own layers and low-rank maps on shared ones; its "
        "own layers; or all that learned in joint training.",
    )
    lr: PositiveFloat = Field(default=5e-4, description="Peak learning rate above the encoder.")
    lr_new: PositiveFloat = Field(
        default=3e-3,
        description="The same of a scenario that the joint model lacks: its own layers are new.",
    )
    lr_encoder: PositiveFloat = Field(
        default=1e-4, description="Peak learning rate of the encoder."
    )
    epochs: PositiveInt = Field(default=3, description="Number of epochs.")
    patience: PositiveInt = Field(
        default=1,
        description="Training stops after so many epochs without a better validation score.",
    )
    rows_per_epoch: PositiveInt | None = Field(
        default=None, description="Rows of an epoch. null: the scenario's training rows."
    )
    batch_size: PositiveInt | None = Field(
        default=None, description="Rows per optimizer step. null: that of `training`."
    )
    l2_sp: NonNegativeFloat = Field(
        default=0.0,
        description="Strength of the pull towards the joint weights (1802.01483), in place of "
        "weight decay. 0: none.",
    )
    least_labels: PositiveInt = Field(
        default=100,
        description="A task with fewer validation labels of its rarer class has no say in the "
        "choice; a scenario without another task keeps the joint model.",
    )
    lora: Adapter = Field(default=Adapter(), description="Low-rank maps of mode `lora`.")


class Finetune(FineTuning):
    """Fine-tuning of every scenario as written here, or as its own fields in `scenarios` say."""

    num_workers: Annotated[int | tuple[int, int], BeforeValidator(check_workers_or_none)] = Field(
        default=1,
        description="Workers of each scenario's run, or the least and the most. 0: one process "
        "without a group of workers, which takes longer to start than a short run.",
    )
    concurrent: PositiveInt | None = Field(
        default=None, description="Runs at a time. null: as many as the cluster has room for."
    )
    keep: Literal["certain", "better"] = Field(
        default="certain",
        description="The fine-tuned model replaces the joint one when it is significantly better "
        "on valid, or better by any amount.",
    )
    scenarios: dict[Name, FineTuning] = Field(
        default_factory=dict,
        description="A scenario's own fields; what it leaves out is as in this section.",
    )

    @classmethod
    def read(cls, tree: object) -> object:
        """Returns the section; a scenario takes the fields that it leaves out from the section."""
        if not isinstance(tree, dict) or not isinstance(tree.get("scenarios"), dict):
            return tree
        general = {k: v for k, v in tree.items() if k in FineTuning.model_fields}
        filled = {name: filled_in(own, general) for name, own in tree["scenarios"].items()}
        return tree | {"scenarios": filled}

    def of(self, name: str) -> FineTuning:
        """Returns how a scenario is fine-tuned."""
        if name in self.scenarios:
            return self.scenarios[name]
        return FineTuning.model_validate({k: getattr(self, k) for k in FineTuning.model_fields})


def filled_in(own: Any, general: dict[str, Any]) -> Any:
    """Returns a scenario's own fields, with the section's for those and that of lora left out."""
    if not isinstance(own, dict):
        return own
    loras = own.get("lora"), general.get("lora")
    both = all(isinstance(lora, dict) for lora in loras)
    return general | own | ({"lora": {**general["lora"], **own["lora"]}} if both else {})
