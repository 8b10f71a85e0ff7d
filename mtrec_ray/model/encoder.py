"""The pretrained encoder, cut into a frozen lower part and a trainable upper part.

The frozen part's output for a token never changes, so that it is computed once (`frozen_states`)
and training runs the upper layers only.

Letters: u texts of a chunk, L tokens, D width.
"""

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from mtrec_ray.data.tokens import TINY, resolve_source
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.model import Encoder

ATTENTION_PROJECTIONS = ["query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "Wqkv"]


class Passthrough(nn.Module):
    """Hands on the embeddings that it is given: stands in for an embedding layer."""

    def forward(
        self,
        input_ids: object = None,
        inputs_embeds: Tensor | None = None,
        *_: object,
        **__: object,
    ) -> Tensor:
        """The embeddings themselves, by keyword or (DistilBERT) second by position."""
        assert inputs_embeds is not None
        return inputs_embeds


def load_backbone(encoder: Encoder, *, with_pooler: bool = False) -> PreTrainedModel:
    """The pretrained model, its dropout off (slow on CPU, no use in few passes).

    By default without its pooler, which nothing here uses.
    Attention is `eager` without a GPU: for short texts on a CPU the backward pass of torch's fused
    attention is more than twice as slow.

    Raises:
        ProjectError: the source is no encoder that can be loaded.
    """
    if encoder.source == TINY:
        return tiny_backbone()
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


def encoder_problems(encoder: Encoder) -> list[str]:
    """A line if the encoder cannot be loaded or cut as asked; its weights are not loaded."""
    if encoder.source == TINY:
        return []
    try:
        source = resolve_source(encoder.source)
    except ValueError as error:
        return [str(error)]
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        return [_cannot_load(encoder.source, error)]
    wanted = {"top_k": encoder.top_k, "lora": encoder.lora.layers}.get(encoder.trainable, 0)
    depth = config.num_hidden_layers
    if wanted <= depth:
        return _unknown_build(encoder, config) if wanted else []
    field = "top_k" if encoder.trainable == "top_k" else "lora.layers"
    return [
        f"model.encoder.{field}: found {wanted}; allowed: at most {depth}, "
        f"the layers of {encoder.source}"
    ]


def _unknown_build(encoder: Encoder, config: Any) -> list[str]:
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    try:
        layers_of(skeleton)
        if encoder.trainable == "lora":
            projections(skeleton, encoder.lora.layers, lora_targets(encoder))
    except ValueError as error:
        return [str(error)]
    return []


def _cannot_load(source: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160]
    return (
        f"model.encoder.source: found {source!r}, which cannot be loaded ({reason}); allowed: "
        "a hub name, a local folder, or package:NAME/FOLDER"
    )


def tiny_backbone(seed: int = 0) -> PreTrainedModel:
    """A random BERT of two narrow layers, for unit tests only."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertModel(config, add_pooling_layer=False)


def layers_of(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the list of layers, and the list's name in it.

    Raises:
        ProjectError: a model of another build; only `trainable: all` and `none` work with it.
    """
    for holder_name, name in (("encoder", "layer"), ("transformer", "layer"), ("", "layers")):
        holder = getattr(model, holder_name, None) if holder_name else model
        if holder is not None and isinstance(getattr(holder, name, None), nn.ModuleList):
            return holder, name
    raise ProjectError(
        [
            f"model.encoder.trainable: found a {type(model).__name__}, whose layers are not known; "
            "allowed: all, none"
        ]
    )


def num_layers(model: nn.Module) -> int:
    """Number of transformer layers."""
    holder, name = layers_of(model)
    return len(getattr(holder, name))


def slice_layers(model: nn.Module, start: int, stop: int) -> nn.Module:
    """A model that shares the layers start..stop (and their weights) of another.

    A slice that starts above 0 takes the states below it as `inputs_embeds`; a slice that stops
    below the top leaves the final norm out.
    """
    part = shallow(model)
    holder, name = layers_of(model)
    own_holder = part if holder is model else shallow(holder)
    own_holder._modules[name] = nn.ModuleList(list(getattr(holder, name))[start:stop])
    if own_holder is not part:
        part._modules[next(k for k, v in model._modules.items() if v is holder)] = own_holder
    if start > 0 and "embeddings" in part._modules:
        part._modules["embeddings"] = Passthrough()
    if start > 0 and "embed_tokens" in part._modules:
        part._modules["embed_tokens"] = nn.Identity()
    for norm in ("norm", "final_norm"):
        if stop < num_layers(model) and norm in part._modules:
            part._modules[norm] = nn.Identity()
    config: Any = copy.copy(model.config)
    config.num_hidden_layers = stop - start
    part.config = config
    return part


def lora_targets(encoder: Encoder) -> Sequence[str]:
    """Names of the linear maps that LoRA adapts."""
    return encoder.lora.targets or ATTENTION_PROJECTIONS


def projections(
    model: nn.Module, top: int, names: Sequence[str] = ATTENTION_PROJECTIONS
) -> list[str]:
    """Full names of the projections of some names in the top layers.

    Raises:
        ProjectError: a model of another build, without projections of a known name.
    """
    holder, name = layers_of(model)
    layers = getattr(holder, name)
    found = []
    for full, module in model.named_modules():
        inside = any(module is m for layer in layers[-top:] for m in layer.modules())
        if inside and full.rsplit(".", 1)[-1] in names:
            found.append(full)
    if not found:
        raise ProjectError(
            [
                f"model.encoder.lora.targets: found {', '.join(names)}, of which a "
                f"{type(model).__name__} has none; allowed: {', '.join(linear_names(layers[-1]))}"
            ]
        )
    return found


def linear_names(layer: nn.Module) -> list[str]:
    """Names of the linear maps of a layer."""
    found = (n for n, m in layer.named_modules() if isinstance(m, nn.Linear))
    return list(dict.fromkeys(n.rsplit(".", 1)[-1] for n in found))


def shallow(module: nn.Module) -> nn.Module:
    """A copy of a module that shares its children but not its list of children."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """f32[u, D]: one vector a text from states [u, L, D] and mask [u, L] (right padding)."""
    if how == "cls":
        return states[:, 0]
    if how == "last":
        last = mask.sum(1).clamp(min=1) - 1
        return states[torch.arange(len(states), device=states.device), last]
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def quantise_problems() -> list[str]:
    """A line where int8 is not to be had."""
    if importlib.util.find_spec("torchao"):
        return []
    return [
        "evaluation.precision: found int8, for which torchao is not installed; "
        "allowed: auto, fp32, bf16, or pip install 'mtrec-ray[int8]'"
    ]


def quantise(encoder: "TextEncoder") -> None:
    """Turn the linear maps of an encoder, frozen ones included, to int8, for use only.

    Weights by output channel, activations by token as they come.
    """
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )

    for part in (encoder.lower, encoder.upper):
        if part is not None:
            quantize_(part, Int8DynamicActivationInt8WeightConfig())


class TextEncoder(nn.Module):
    """Texts to vectors. Only the trainable upper part is registered as a submodule.

    The frozen lower part (and in mode `none` the whole encoder) is kept out of `parameters()` and
    `state_dict()`: it never changes, and checkpoints name it by its source.
    """

    lower: nn.Module | None
    upper: nn.Module | None
    adapted: nn.Module | None

    def __init__(self, options: Encoder, backbone: PreTrainedModel | None = None) -> None:
        """Cut the encoder by `options.trainable`.

        Raises:
            ProjectError: more trainable layers than the encoder has.
        """
        super().__init__()
        model = backbone if backbone is not None else load_backbone(options)
        model.config.use_cache = False  # a slice has layers whose number its cache does not know
        self.options = options
        self.width = int(model.config.hidden_size)
        self.adapted = None
        lower, upper = self._cut(model)
        self.upper = upper
        object.__setattr__(self, "lower", lower)
        if lower is not None:
            lower.requires_grad_(False)
        if options.trainable == "lora":
            object.__setattr__(self, "adapted", self._adapt(model))
        if options.compile and upper is not None:
            upper.compile(dynamic=True)

    def _cut(self, model: PreTrainedModel) -> tuple[nn.Module | None, nn.Module | None]:
        options = self.options
        if options.trainable == "all":
            return None, model
        if options.trainable == "none":
            return model, None
        top = options.top_k if options.trainable == "top_k" else options.lora.layers
        depth = num_layers(model)
        if top > depth:
            raise ProjectError(
                [f"model.encoder: found {top} trainable layers; allowed: at most {depth}"]
            )
        model.requires_grad_(options.trainable == "top_k")
        if top == depth:
            return None, model
        model.requires_grad_(False)
        upper = slice_layers(model, depth - top, depth)
        upper.requires_grad_(options.trainable == "top_k")
        return slice_layers(model, 0, depth - top), upper

    def _adapt(self, model: PreTrainedModel) -> nn.Module:
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
        """f32[u, L, D]: output of the frozen part for token ids [u, L]."""
        assert self.lower is not None
        return self.lower(input_ids=tokens, attention_mask=mask.long()).last_hidden_state

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """f32[u, D]: text vectors from token ids i64[u, L] or the frozen part's [u, L, D]."""
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
