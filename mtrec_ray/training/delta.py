"""A scenario's model made of the joint one: what it takes over, what learns, what is stored.

The model of one scenario is the joint model without the parts of the other scenarios, on which its
outputs do not depend. What fine-tuning changes is stored as a delta beside the joint weights:

    own.safetensors      the scenario's own layers; mode `full`: all that the joint model stores
    encoder/             PEFT adapter of the plain encoder
    shared/              PEFT adapter of the maps above the encoder that scenarios share
    delta.json           mode, sizes, and the fingerprint of the joint weights
"""

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from mtrec_ray.data import storage
from mtrec_ray.model.layers import shallow
from mtrec_ray.model.recommender import Recommender, is_below, scenario_parameters
from mtrec_ray.model.sharing import StarLayer
from mtrec_ray.project.base import ProjectError
from mtrec_ray.training.checkpoint import WEIGHTS, load_part

if TYPE_CHECKING:
    from peft import PeftModel

OWN, DELTA, ENCODER, SHARED = "own.safetensors", "delta.json", "encoder", "shared"
ADAPTER = "adapter_model.safetensors"  # PEFT's file of weights


@dataclass(frozen=True)
class FineTuneStart:
    """Where a scenario's model starts, and what of it learns.

    Attributes:
        base: folder of the joint model's weights.
        name: the scenario.
        mode: lora, head or full.
        rank, alpha: of the low-rank maps; `shared`: whether shared layers get such maps.
        is_new: whether the joint model lacks the scenario.
        from_general: whether its main task starts from what the general head says.
        l2_sp: strength of the pull towards the joint weights.
    """

    base: str
    name: str
    mode: str
    rank: int = 8
    alpha: float = 16.0
    shared: bool = True
    is_new: bool = False
    from_general: bool = False
    l2_sp: float = 0.0


def read_base(folder: str) -> tuple[dict[str, Tensor], str]:
    """Returns the weights of a joint model, and their fingerprint."""
    data = storage.read_bytes(storage.join(folder, WEIGHTS))
    return load(data), hashlib.sha256(data).hexdigest()[:16]


def base_fingerprint(folder: str) -> str:
    """Returns 16 hex digits of the SHA-256 of a joint model's weights."""
    return bytes_fingerprint(storage.read_bytes(storage.join(folder, WEIGHTS)))


def bytes_fingerprint(*parts: bytes) -> str:
    """Returns 16 hex digits of the SHA-256 of some bytes."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def load_joint_weights(model: Recommender, start: FineTuneStart) -> "PeftModel | None":
    """Load the joint weights into a scenario's model, and set which parameters learn.

    Except in mode `full` the encoder is not loaded: the model's project names the joint model's
    exported encoder, and its adapter starts at zero. Returns the wrapper of the shared layers'
    adapter, where there is one.

    Raises:
        ProjectError: the joint weights belong to another build.
    """
    state, _ = read_base(start.base)
    model.starts_from_general = start.from_general
    layers = scenario_parameters(model, start.name)
    new = [*layers, "general", "retrieval"] if start.is_new else []
    if start.mode == "full":
        load_part(state, model, new)
        if model.general is not None:
            model.general.requires_grad_(False)
        return None
    above = {n: v for n, v in state.items() if not is_below(n, ["encoder"])}
    load_part(above, model, [*new, "encoder"])
    learning = [p for p in model.encoder.parameters() if p.requires_grad]
    wrapper = (
        add_shared_adapter(model, layers, start) if start.mode == "lora" and start.shared else None
    )
    learning += [p for n, p in model.named_parameters() if is_below(n, layers) or ".lora_" in n]
    model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    return wrapper


def shared_maps(model: Recommender, scenario_layers: list[str]) -> list[str]:
    """Returns full names of the linear maps above the encoder that scenarios share.

    Without those of `StarLayer`, which reads their weights and never calls them.
    """
    star = [n for n, m in model.named_modules() if isinstance(m, StarLayer)]
    others = [*scenario_layers, *star, "encoder", "general", "retrieval"]
    return [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not is_below(n, others)
    ]


def add_shared_adapter(
    model: Recommender, scenario_layers: list[str], start: FineTuneStart
) -> "PeftModel | None":
    """Add low-rank maps beside the shared ones, in place; returns None without shared ones."""
    names = shared_maps(model, scenario_layers)
    if not names:
        return None
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=start.rank,
        lora_alpha=start.alpha,  # pyright: ignore[reportArgumentType]
        target_modules="|".join(re.escape(n) for n in names),
        lora_dropout=0.0,
    )
    above = shallow(model)  # without the encoder, whose own adapter PEFT would switch off
    del above._modules["encoder"]
    wrapper: Any = get_peft_model(above, config, adapter_name=SHARED)
    model._modules.update(above._modules)
    return wrapper


class L2SP:
    """L2-SP (1802.01483): pulls the parameters that learn towards where they started.

    w <- w - lr * strength * (w - w0), apart from Adam's step, as AdamW (1711.05101) pulls towards
    zero. One of two low-rank maps starts at zero, so that their product is pulled towards zero.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        self.strength = strength
        learning = [p for p in model.parameters() if p.requires_grad] if strength else []
        self.starts = {id(p): p.detach().clone() for p in learning}

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull once, with the present learning rate of each group."""
        if not self.strength:
            return
        for group in optimizer.param_groups:
            share = min(group["lr"] * self.strength, 1.0)
            for parameter in group["params"]:
                parameter.lerp_(self.starts[id(parameter)].to(parameter), share)


def save_delta(
    model: Recommender,
    wrapper: "PeftModel | None",
    start: FineTuneStart,
    folder: str,
    **facts: object,
) -> dict[str, Any]:
    """Write what fine-tuning changed, beside the joint weights; returns the delta's facts."""
    with tempfile.TemporaryDirectory() as local:
        path = Path(local)
        write_changes(model, wrapper, start, path)
        files = sorted(f for f in path.rglob("*") if f.is_file())
        delta = {
            "base": base_fingerprint(start.base),
            "scenario": start.name,
            "mode": start.mode,
            "from_general": start.from_general,
            "bytes": sum(f.stat().st_size for f in files),
            "fingerprint": bytes_fingerprint(*(f.read_bytes() for f in files)),
            **facts,
        }
        storage.remove_folder(folder)
        for file in files:
            target = storage.join(folder, str(file.relative_to(path)))
            storage.write_bytes(target, file.read_bytes())
    storage.write_json(storage.join(folder, DELTA), delta)
    return delta


def write_changes(
    model: Recommender, wrapper: "PeftModel | None", start: FineTuneStart, path: Path
) -> None:
    """Write the weights and adapters that fine-tuning changed to a local folder."""
    layers = scenario_parameters(model, start.name)
    changed = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
        if not is_below(name, ["general"]) and (start.mode == "full" or is_below(name, layers))
    }
    save_file(changed, path / OWN)
    adapted: Any = model.encoder.adapted
    if start.mode == "lora" and adapted is not None:
        adapted.save_pretrained(path / ENCODER, save_embedding_layers=False)
    if wrapper is not None:  # PEFT puts it into a folder of the adapter's name
        wrapper.save_pretrained(str(path), save_embedding_layers=False)
    for card in path.rglob("README.md"):
        card.unlink()


def read_delta(folder: str, base: str, name: str) -> dict[str, Any]:
    """Returns the facts of a scenario's delta on a base of this fingerprint.

    Raises:
        ProjectError: there is no delta, or it belongs to another scenario or base.
    """
    path = storage.join(folder, DELTA)
    if not storage.exists(path):
        raise ProjectError(
            [f"scenario {name}: found no fine-tuned model in {folder}; run finetune"]
        )
    facts = storage.read_json(path)
    if facts["scenario"] != name:
        raise ProjectError(
            [
                f"scenario {name}: found the model of {facts['scenario']} in {folder}; "
                f"allowed: that of {name}"
            ]
        )
    if facts["base"] != base:
        raise ProjectError(
            [
                f"scenario {name}: found a model in {folder} that was fine-tuned from other joint "
                f"weights ({facts['base']}, these are {base}); allowed: its own, or fine-tune again"
            ]
        )
    return facts


def apply_delta(model: Recommender, wrapper: "PeftModel | None", folder: str) -> None:
    """Load a delta into a model that was made by `load_joint_weights` from the same start."""
    weights = load(storage.read_bytes(storage.join(folder, OWN)))
    model.load_state_dict(weights, strict=False)
    if wrapper is None and model.encoder.adapted is None:
        return
    from peft import load_peft_weights, set_peft_model_state_dict

    adapted: Any = model.encoder.adapted
    parts = [(ENCODER, adapted, "default"), (SHARED, wrapper, SHARED)]
    for part, target, adapter in parts:
        where = storage.join(folder, part)
        if target is not None and storage.exists(where):
            weights = load_peft_weights(str(local_adapter(where)), device="cpu")
            set_peft_model_state_dict(target, weights, adapter_name=adapter)


@torch.no_grad()
def merge_delta(model: Recommender, start: FineTuneStart, folder: str) -> None:
    """Load a delta into a model whose vectors are known, its low-rank maps added to their weights.

    The model was made by `load_joint_weights` without shared maps. It scores as one of
    `apply_delta`, without PEFT, whose import takes seconds of every worker.
    """
    model.load_state_dict(load(storage.read_bytes(storage.join(folder, OWN))), strict=False)
    path = storage.join(folder, SHARED, ADAPTER)
    if start.mode != "lora" or not storage.exists(path):
        return
    maps, down, up = load(storage.read_bytes(path)), ".lora_A.weight", ".lora_B.weight"
    for key in (key for key in maps if key.endswith(down)):
        name = key.removesuffix(down)
        module = model.get_submodule(name.removeprefix("base_model.model."))
        change = maps[name + up] @ maps[key]
        module.weight.add_((start.alpha / start.rank) * change.to(module.weight))  # pyright: ignore[reportArgumentType, reportCallIssue]


def local_adapter(folder: str) -> Path:
    """Returns the folder of an adapter's files on this node."""
    if "://" not in folder:
        return Path(folder)
    path = Path(tempfile.mkdtemp())
    for name in ("adapter_config.json", ADAPTER):
        (path / name).write_bytes(storage.read_bytes(storage.join(folder, name)))
    return path
