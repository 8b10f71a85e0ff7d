"""Cuts an encoder between its layers, into slices that share their weights with the whole.

Letters: u texts, L tokens, D width.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtrec_ray.project.base import ProjectError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_PROJECTIONS = ["query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "Wqkv"]

# All fields of a config that a forward pass of transformers 5.24 reads by a layer's number. A slice
# counts its layers from 0, and would take the rotary base and the mask of other layers.
PER_LAYER_FIELDS = ("layer_types", "layers_block_type", "layer_rope_theta")
CHECK_TOKENS = 64


class Passthrough(nn.Module):
    """Stands in for an embedding layer and returns the embeddings that it is given."""

    def forward(
        self,
        input_ids: object = None,
        inputs_embeds: Tensor | None = None,
        *_: object,
        **__: object,
    ) -> Tensor:
        """Returns `inputs_embeds`, given by keyword or (DistilBERT) as the second argument."""
        assert inputs_embeds is not None
        return inputs_embeds


def layers_of(model: nn.Module) -> tuple[nn.Module, str]:
    """Returns the module that holds the list of layers, and the list's name in it.

    Raises:
        ProjectError: the layers are not found; such a model works with `trainable: all` and `none`.
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
    """Returns the number of transformer layers."""
    holder, name = layers_of(model)
    return len(getattr(holder, name))


def slice_layers(model: nn.Module, start: int, stop: int) -> nn.Module:
    """Returns a model of the layers start..stop of another, which shares their weights.

    A slice that starts above 0 takes the states below it as `inputs_embeds`; a slice that stops
    below the top has no final norm.
    """
    part = shallow(model)
    holder, name = layers_of(model)
    sliced_holder = part if holder is model else shallow(holder)
    sliced_holder._modules[name] = nn.ModuleList(list(getattr(holder, name))[start:stop])
    if sliced_holder is not part:
        part._modules[next(k for k, v in model._modules.items() if v is holder)] = sliced_holder
    if start > 0 and "embeddings" in part._modules:
        part._modules["embeddings"] = Passthrough()
    if start > 0 and "embed_tokens" in part._modules:
        part._modules["embed_tokens"] = nn.Identity()
    for norm in ("norm", "final_norm"):
        if stop < num_layers(model) and norm in part._modules:
            part._modules[norm] = nn.Identity()
    part.config = slice_config(model.config, start, stop)
    return part


def slice_config(config: Any, start: int, stop: int) -> Any:
    """Returns a copy of a model's config that describes the layers start..stop alone."""
    part = copy.copy(config)
    part.num_hidden_layers = stop - start
    for field in PER_LAYER_FIELDS:
        values = vars(config).get(field)
        if isinstance(values, list | tuple):
            setattr(part, field, values[start:stop])
    return part


@torch.no_grad()
def check_slices(
    model: "PreTrainedModel", lower: nn.Module, upper: nn.Module, max_tokens: int, trainable: str
) -> None:
    """Run one text through a model and through its two slices, one after the other.

    The text has `max_tokens` tokens, at most 64.

    Raises:
        ProjectError: the last states differ by more than 1e-4 of the largest.
    """
    num_tokens = min(max_tokens, CHECK_TOKENS)
    tokens = (torch.arange(num_tokens) % model.config.vocab_size).unsqueeze(0)
    mask, was_training = torch.ones_like(tokens), model.training
    for part in (model, lower, upper):
        part.eval()
    whole = model(input_ids=tokens, attention_mask=mask).last_hidden_state
    states = lower(input_ids=tokens, attention_mask=mask).last_hidden_state
    states = upper(inputs_embeds=states, attention_mask=mask).last_hidden_state
    for part in (model, lower, upper):
        part.train(was_training)
    difference = ((states - whole).abs().max() / whole.abs().max()).item()
    if not difference <= 1e-4:  # NaN is a difference, too
        raise ProjectError(
            [
                f"model.encoder.trainable: found {trainable} for a {type(model).__name__}, whose "
                f"layers, run in two parts, give other vectors (by {difference:.1g} of the "
                "largest); allowed: all, none"
            ]
        )


def projections(
    model: nn.Module, top: int, names: Sequence[str] = ATTENTION_PROJECTIONS
) -> list[str]:
    """Returns the full names of the linear maps of the given short names in the top layers.

    Raises:
        ProjectError: the top layers have no map of these names.
    """
    holder, name = layers_of(model)
    layers = getattr(holder, name)
    matches = []
    for full, module in model.named_modules():
        inside = any(module is m for layer in layers[-top:] for m in layer.modules())
        if inside and full.rsplit(".", 1)[-1] in names:
            matches.append(full)
    if not matches:
        raise ProjectError(
            [
                f"model.encoder.lora.targets: found {', '.join(names)}, of which a "
                f"{type(model).__name__} has none; allowed: {', '.join(linear_names(layers[-1]))}"
            ]
        )
    return matches


def linear_names(layer: nn.Module) -> list[str]:
    """Returns the short names of a layer's linear maps, each once."""
    full_names = (n for n, m in layer.named_modules() if isinstance(m, nn.Linear))
    return list(dict.fromkeys(n.rsplit(".", 1)[-1] for n in full_names))


def shallow(module: nn.Module) -> nn.Module:
    """Returns a copy of a module that shares children and buffers, but not the lists of them."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin._buffers = dict(module._buffers)
    return twin
