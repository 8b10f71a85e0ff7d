"""The sections `model` and `model.encoder` of a project file."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mtrec_ray.project.base import Section


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
    longest, the others waiting with theirs. `rerun` runs the chunks of texts again in the backward
    pass, so that memory does not grow with their number.
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
        if self.layout == "pair" and encoder.gather:
            raise ValueError(
                "layout: found pair with encoder.gather; allowed: vectors (a pair has no item "
                "vectors that could be cached)"
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
        return self.layout == "vectors" and encoder.trainable != "none" and encoder.every != 1

    @property
    def encoder_every(self) -> int:
        """In every which step the encoder learns: by default 8 where gradients are gathered."""
        return self.encoder.every or (8 if self.gathers else 1)
