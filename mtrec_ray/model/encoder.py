"""The pretrained encoder, cut into a frozen lower part and a trainable upper part.

The frozen part's output for a token never changes, so that it is computed once (`frozen_states`)
and training runs the upper layers only.

Letters: u texts of a chunk, L tokens, D width.
"""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtrec_ray.data.tokens import TINY, resolve_source
from mtrec_ray.model.layers import (
    ATTENTION_PROJECTIONS,
    check_slices,
    layers_of,
    num_layers,
    projections,
    slice_layers,
)
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.model import Encoder, Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


def load_backbone(encoder: Encoder, *, with_pooler: bool = False) -> "PreTrainedModel":
    """Returns the pretrained model with its dropout off (slow on CPU, no use in few passes).

    By default it has no pooler, which nothing here uses.
    Attention is `eager` without a GPU: for short texts on a CPU the backward pass of torch's fused
    attention is more than twice as slow.

    Raises:
        ProjectError: the source is no encoder that can be loaded.
    """
    if encoder.source == TINY:
        return tiny_backbone()
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    source = resolve_source(encoder.source)
    try:
        attention = "sdpa" if torch.cuda.is_available() else "eager"
        disable_progress_bar()
        model = AutoModel.from_pretrained(
            source, dtype=torch.float32, attn_implementation=attention
        )
    except (OSError, ImportError, ValueError) as error:
        raise ProjectError([_cannot_load(encoder.source, error)]) from None
    if not with_pooler and getattr(model, "pooler", None) is not None:
        model.pooler = None
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def encoder_problems(model: Model) -> list[str]:
    """Returns a line for each reason why the encoder cannot be loaded, cut or read as asked.

    Its weights are not loaded.
    """
    encoder = model.encoder
    if encoder.source == TINY:
        return []
    try:
        source = resolve_source(encoder.source)
    except ValueError as error:
        return [str(error)]
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        return [_cannot_load(encoder.source, error)]
    if other := _other_kind(config):
        allowed = "a model that reads text alone, an encoder or a decoder"
        return [f"model.encoder.source: found {encoder.source!r}, {other}; allowed: {allowed}"]
    num_trainable, depth = trainable_layers(encoder), config.num_hidden_layers
    if num_trainable > depth:
        return [_too_many_layers(encoder, depth)]
    skeleton = _skeleton(config)
    unknown = _unknown_build(encoder, skeleton) if num_trainable else []
    return unknown + _too_many_tokens(model, num_positions(skeleton))


def _other_kind(config: Any) -> str | None:
    """Returns what a model is that is neither an encoder nor a decoder of text alone."""
    if getattr(config, "is_encoder_decoder", False):
        return f"an encoder with a decoder ({config.model_type})"
    wanted = ("vocab_size", "hidden_size", "num_hidden_layers")
    if not all(isinstance(getattr(config, name, None), int) for name in wanted):
        return f"which is no model of text alone ({config.model_type})"
    return None


def _skeleton(config: Any) -> nn.Module:
    """Returns a model without weights."""
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(config)


def num_positions(model: nn.Module) -> int | None:
    """Returns how many tokens a model has positions for; None where they are not in a table.

    RoBERTa's begin after the place of the padding.
    """
    tables = [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITION_TABLES
    ]
    rows = [t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables]
    most: Any = getattr(model.config, "max_position_embeddings", None)
    return min([*rows, most or rows[0]]) if rows else None


def _too_many_tokens(model: Model, most: int | None) -> list[str]:
    found = {"encoder.max_tokens": model.encoder.max_tokens}
    if model.layout == "pair":
        found["pair_tokens"] = model.pair_tokens
    return [
        f"model.{field}: found {tokens}; allowed: at most {most}, the positions of "
        f"{model.encoder.source}"
        for field, tokens in found.items()
        if most is not None and tokens > most
    ]


def trainable_layers(encoder: Encoder) -> int:
    """Returns how many of the top layers learn with `top_k` and `lora`; 0 with `all` and `none`."""
    return {"top_k": encoder.top_k, "lora": encoder.lora.layers}.get(encoder.trainable, 0)


def _too_many_layers(encoder: Encoder, depth: int) -> str:
    field = "top_k" if encoder.trainable == "top_k" else "lora.layers"
    return (
        f"model.encoder.{field}: found {trainable_layers(encoder)}; allowed: at most {depth}, "
        f"the layers of {encoder.source}"
    )


def _unknown_build(encoder: Encoder, skeleton: nn.Module) -> list[str]:
    try:
        layers_of(skeleton)
        if encoder.trainable == "lora":
            projections(skeleton, encoder.lora.layers, lora_targets(encoder))
    except ProjectError as error:
        return error.problems
    return []


def _cannot_load(source: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160]
    return (
        f"model.encoder.source: found {source!r}, which cannot be loaded ({reason}); allowed: "
        "a hub name, a local folder, or package:NAME/FOLDER"
    )


def tiny_backbone(seed: int = 0) -> "PreTrainedModel":
    """Returns a random BERT of two narrow layers, for unit tests only."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertModel(config, add_pooling_layer=False)


def lora_targets(encoder: Encoder) -> Sequence[str]:
    """Returns the short names of the linear maps that LoRA adapts."""
    return encoder.lora.targets or ATTENTION_PROJECTIONS


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """Returns one vector f32[u, D] a text from states f32[u, L, D] and their mask.

    The mask bool[u, L] pads on the right.
    """
    if how == "cls":
        return states[:, 0]
    if how == "last":
        last = mask.sum(1).clamp(min=1) - 1
        return states[torch.arange(len(states), device=states.device), last]
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def quantise_problems() -> list[str]:
    """Returns an error line if int8 is not available."""
    if importlib.util.find_spec("torchao"):
        return []
    return [
        "evaluation.precision: found int8, for which torchao is not installed; "
        "allowed: auto, fp32, bf16, or pip install 'mtrec-ray[int8]'"
    ]


def quantise(encoder: "TextEncoder") -> None:
    """Turn the linear maps of an encoder, frozen ones included, to int8, for inference only.

    Weights are scaled by output channel, activations by token at run time.
    """
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )

    for part in (encoder.lower, encoder.upper):
        if part is not None:
            quantize_(part, Int8DynamicActivationInt8WeightConfig())


class TextEncoder(nn.Module):
    """Turns texts into vectors. Only the trainable upper part is registered as a submodule.

    The frozen lower part (and in mode `none` the whole encoder) is kept out of `parameters()` and
    `state_dict()`: it never changes, and checkpoints name it by its source.
    """

    lower: nn.Module | None
    upper: nn.Module | None
    adapted: nn.Module | None

    def __init__(
        self,
        options: Encoder,
        backbone: "PreTrainedModel | None" = None,
        width: int | None = None,
    ) -> None:
        """Cut the encoder by `options.trainable`.

        With a width D, the encoder is not loaded: the vectors of all texts are known already.

        Raises:
            ProjectError: more trainable layers than the encoder has, or an encoder that cannot be
                cut (`layers.check_slices`).
        """
        super().__init__()
        self.options, self.adapted = options, None
        self.is_loaded = width is None
        if width is not None:
            self.width, self.upper = width, None
            object.__setattr__(self, "lower", None)
            return
        model = backbone if backbone is not None else load_backbone(options)
        model.config.use_cache = False  # a slice has layers whose number its cache does not know
        self.width = int(model.config.hidden_size)
        lower, upper = self._cut(model)
        self.upper = upper
        object.__setattr__(self, "lower", lower)
        if lower is not None:
            lower.requires_grad_(False)
        if options.trainable == "lora":
            object.__setattr__(self, "adapted", self._adapt(model))
        if options.compile and upper is not None:
            upper.compile(dynamic=True)

    def _cut(self, model: "PreTrainedModel") -> tuple[nn.Module | None, nn.Module | None]:
        options = self.options
        if options.trainable == "all":
            return None, model
        if options.trainable == "none":
            return model, None
        top, depth = trainable_layers(options), num_layers(model)
        if top > depth:
            raise ProjectError([_too_many_layers(options, depth)])
        model.requires_grad_(options.trainable == "top_k")
        if top == depth:
            return None, model
        model.requires_grad_(False)
        lower = slice_layers(model, 0, depth - top)
        upper = slice_layers(model, depth - top, depth)
        check_slices(model, lower, upper, options.max_tokens, options.trainable)
        upper.requires_grad_(options.trainable == "top_k")
        return lower, upper

    def _adapt(self, model: "PreTrainedModel") -> nn.Module:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.options.lora.rank,
            lora_alpha=self.options.lora.alpha,  # pyright: ignore[reportArgumentType]
            target_modules=projections(model, self.options.lora.layers, lora_targets(self.options)),
            lora_dropout=0.0,
        )
        return get_peft_model(model, config)

    def _apply(self, fn: Any, recurse: bool = True) -> "TextEncoder":
        """Move the frozen part along with the rest (`to`, `cuda`)."""
        super()._apply(fn, recurse)
        if self.lower is not None:
            self.lower._apply(fn)
        return self

    @property
    def is_frozen(self) -> bool:
        """Whether no part of the encoder learns."""
        return self.upper is None

    @torch.no_grad()
    def frozen_states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns the frozen part's output f32[u, L, D] for token ids i64[u, L]."""
        assert self.lower is not None
        return self.lower(input_ids=tokens, attention_mask=mask.long()).last_hidden_state

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Returns text vectors f32[u, D] for token ids i64[u, L] or frozen states f32[u, L, D]."""
        if inputs.dtype.is_floating_point:
            states = inputs
            if self.upper is not None:
                states = self.upper(
                    inputs_embeds=inputs, attention_mask=mask.long()
                ).last_hidden_state
        elif self.lower is None:
            assert self.upper is not None
            states = self.upper(input_ids=inputs, attention_mask=mask.long()).last_hidden_state
        else:
            return self(self.frozen_states(inputs, mask), mask)
        return pool(states, mask, self.options.pooling)
