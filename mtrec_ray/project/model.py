"""The sections `model` and `model.encoder` of a project file."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from mtrec_ray.project.base import Section


class Lora(Section):
    """LoRA (2106.09685) in the encoder's top layers, for `trainable: lora`."""

    rank: PositiveInt = Field(default=8, description="Rank of the maps.")
    alpha: PositiveFloat = Field(
        default=16.0, description="The maps' output is scaled by alpha / rank."
    )
    layers: PositiveInt = Field(default=2, description="Top layers of the encoder with maps.")
    targets: tuple[str, ...] | None = Field(
        default=None, description="Names of the linear maps to adapt. null: query and value."
    )


class Encoder(Section):
    """Where the pretrained encoder comes from, which part of it learns, and in which steps."""

    source: str = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="Model on the Hugging Face hub, local folder, or `package:NAME/FOLDER` in an "
        "installed package.",
    )
    pooling: Literal["mean", "cls", "last"] = Field(
        default="mean", description="Token vectors that make the text's vector; decoders take last."
    )
    max_tokens: Annotated[int, Field(ge=4, le=8192)] = Field(
        default=64, description="Tokens of an item's text, at most; the rest is cut off."
    )
    trainable: Literal["all", "top_k", "lora", "none"] = Field(
        default="top_k", description="Which part learns: all, the top_k layers, LoRA, or none."
    )
    top_k: PositiveInt = Field(
        default=1, description="Top layers that learn with `trainable: top_k`."
    )
    lora: Lora = Field(default=Lora(), description="Low-rank maps of `trainable: lora`.")
    every: PositiveInt | None = Field(
        default=None,
        description="The encoder learns in every k-th step. null: 8 with `gather`, else 1.",
    )
    gather: bool | None = Field(
        default=None,
        description="The encoder learns from the gradients that cached item vectors got in all k "
        "steps. false: from that step's rows; null: true where possible.",
    )
    gather_items: PositiveInt | None = Field(
        default=2048,
        description="Items that the encoder learns from at a time, those with the largest "
        "gradients first; the others wait. null: all.",
    )
    rerun: bool = Field(
        default=False,
        description="Runs texts again in the backward pass, so that memory is bounded.",
    )
    compile: bool = Field(
        default=False, description="Compiles the layers that learn (torch.compile)."
    )
    tokens_per_chunk: PositiveInt = Field(
        default=8192,
        description="Tokens that the encoder takes at a time, of texts of similar length.",
    )


class Retrieval(Section):
    """Vectors of users and of items, whose cosines find the candidates that are then ranked."""

    enabled: bool = Field(
        default=True,
        description="Vectors that find candidates learn beside the ranking heads. Always off with "
        "`layout: pair`.",
    )
    width: PositiveInt = Field(default=64, description="Size of the vectors.")
    temperature: Annotated[float, Field(ge=0.01, le=1)] = Field(
        default=0.1, description="Cosines are divided by it in the softmax over candidates."
    )
    negatives: PositiveInt = Field(
        default=1024,
        description="Items of each catalogue that a step draws beside the positives of its batch.",
    )
    item_ids: bool = Field(
        default=True, description="The vectors of items have an embedding of each item."
    )


class Model(Section):
    """What the model reads, and the layers above the encoder."""

    encoder: Encoder = Field(default=Encoder(), description="The pretrained text encoder.")
    layout: Literal["vectors", "pair"] = Field(
        default="vectors",
        description="vectors encodes each item's text alone; pair encodes history and candidate "
        "together (cross encoder), at many times the cost.",
    )
    pair_tokens: Annotated[int, Field(ge=8, le=8192)] = Field(
        default=128, description="Tokens of the text of a pair, at most."
    )
    width: PositiveInt = Field(default=64, description="Size of the vectors of items and users.")
    bins: NonNegativeInt = Field(
        default=16,
        description="Bins with equal numbers of training rows, in which each numeric column is "
        "read, too. 0: none.",
    )
    attention_heads: PositiveInt = Field(
        default=4, description="Attention heads over the history; they divide the width."
    )
    sharing: Literal["bottom", "mmoe", "ple", "star", "pepnet"] = Field(
        default="bottom", description="What scenarios and tasks share between inputs and heads."
    )
    experts: PositiveInt = Field(default=4, description="Shared experts of mmoe and ple.")
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(256, 128), description="Sizes of the shared layers."
    )
    head_hidden: PositiveInt = Field(default=64, description="Size of each task's hidden layer.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of activations set to 0 in training."
    )
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.3, description="Share of user and item ids made unknown in training."
    )
    user_ids: bool = Field(
        default=False, description="The model has an embedding of each user of training."
    )
    item_ids: bool = Field(default=False, description="The model has an embedding of each item.")
    statistics: bool = Field(
        default=True,
        description="The model reads past counts, rates and times. false: the log's columns.",
    )
    text: bool = Field(
        default=True, description="The model reads texts. false requires `encoder.trainable: none`."
    )
    history: bool = Field(default=True, description="The model reads the user's history.")
    general: bool = Field(
        default=True,
        description="A head beside the model learns the main task of any scenario, for scenarios "
        "to come; it does not change the model.",
    )

    retrieval: Retrieval = Field(
        default=Retrieval(), description="Vectors that find candidates for the ranking."
    )

    def check_width(self) -> Iterator[str]:
        """Yields a line for a width that the attention heads do not divide."""
        if self.width % self.attention_heads:
            yield (
                f"width: found {self.width}; allowed: a multiple of attention_heads, "
                f"{self.attention_heads}"
            )

    def check_text(self) -> Iterator[str]:
        """Yields a line for a model without texts that needs them."""
        if not self.text and (self.layout == "pair" or self.encoder.trainable != "none"):
            yield (
                "text: found false with an encoder that learns or layout pair; allowed: true, or "
                "encoder.trainable none"
            )

    def check_retrieval(self) -> Iterator[str]:
        """Yields a line for retrieval that could not tell items apart."""
        if self.retrieves and not self.text and not self.retrieval.item_ids:
            yield (
                "retrieval.item_ids: found false with model.text false; allowed: true, or "
                "retrieval.enabled false"
            )

    def check_layout(self) -> Iterator[str]:
        """Yields a line for pairs with an option that needs cached item vectors."""
        encoder = self.encoder
        if self.layout == "pair" and encoder.gather:
            yield (
                "layout: found pair with encoder.gather; allowed: vectors (a pair has no item "
                "vectors that could be cached)"
            )

    def check_gather(self) -> Iterator[str]:
        """Yields a line for a frozen encoder that is to learn from gathered gradients."""
        if self.encoder.gather and self.encoder.trainable == "none":
            yield "encoder.gather: found true for trainable: none; allowed: false"

    @property
    def retrieves(self) -> bool:
        """Whether retrieval vectors learn; pairs have no item vectors to make them of."""
        return self.retrieval.enabled and self.layout == "vectors"

    @property
    def gathers(self) -> bool:
        """Whether the encoder learns from gathered gradients of cached item vectors."""
        encoder = self.encoder
        if encoder.gather is not None:
            return encoder.gather
        return self.layout == "vectors" and encoder.trainable != "none" and encoder.every != 1

    @property
    def encoder_every(self) -> int:
        """The encoder learns in every step of this number: by default 8 with gathered gradients."""
        return self.encoder.every or (8 if self.gathers else 1)
