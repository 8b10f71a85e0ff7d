"""The sections `training` and `finetune` of a project file."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from mtrec_ray.project.base import Name, Section, Share, check_workers


class Teacher(Section):
    """Gradient-boosted trees whose predictions are mixed into the labels (`training/teacher.py`).

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
