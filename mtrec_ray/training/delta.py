"""A scenario's model from the joint one: what is taken over, what learns, what is stored.

The model of one scenario is the joint model without the parts of the others, which its outputs do
not depend on. What fine-tuning changes is a delta beside the joint weights:

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
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load, save_file
from torch import Tensor, nn

from mtrec_ray.data import storage
from mtrec_ray.model.encoder import shallow
from mtrec_ray.model.recommender import Recommender, is_below, scenario_parameters
from mtrec_ray.model.sharing import StarLayer
from mtrec_ray.project.base import ProjectError
from mtrec_ray.training.checkpoint import WEIGHTS, load_part

OWN, DELTA, ENCODER, SHARED = "own.safetensors", "delta.json", "encoder", "shared"


@dataclass(frozen=True)
class FineTuneStart:
    """Where a scenario's model starts, and what of it learns.

    Attributes:
        base: folder of the joint model's weights.
        name: the scenario.
        mode: lora, head or full.
        rank, alpha: of the low-rank maps; `shared`: whether the shared layers get some.
        is_new: the joint model does not have the scenario.
    """

    base: str
    name: str
    mode: str
    rank: int = 8
    alpha: float = 16.0
    shared: bool = True
    is_new: bool = False
    l2_sp: float = 0.0


def read_base(folder: str) -> tuple[dict[str, Tensor], str]:
    """The weights of a joint model, and their fingerprint."""
    data = storage.read_bytes(storage.join(folder, WEIGHTS))
    return load(data), hashlib.sha256(data).hexdigest()[:16]


def base_fingerprint(folder: str) -> str:
    """16 hex digits of the SHA-256 of a joint model's weights."""
    return bytes_fingerprint(storage.read_bytes(storage.join(folder, WEIGHTS)))


def bytes_fingerprint(*parts: bytes) -> str:
    """16 hex digits of the SHA-256 of some bytes."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def load_joint_weights(model: Recommender, start: FineTuneStart) -> PeftModel | None:
    """Give a scenario's model the joint weights, and let learn what its mode says.

    Except in mode `full` the encoder is that of the joint model already, whatever adapts it at zero
    (its project says so). Returns the wrapper of the shared layers' adapter, where there is one.

    Raises:
        ProjectError: the joint weights belong to another build.
    """
    state, _ = read_base(start.base)
    own = scenario_parameters(model, start.name)
    new = [*own, "general"] if start.is_new else []
    if start.mode == "full":
        load_part(state, model, new)
        if model.general is not None:
            model.general.requires_grad_(False)
        return None
    above = {n: v for n, v in state.items() if not is_below(n, ["encoder"])}
    load_part(above, model, [*new, "encoder"])
    learning = [p for p in model.encoder.parameters() if p.requires_grad]
    wrapper = (
        add_shared_adapter(model, own, start) if start.mode == "lora" and start.shared else None
    )
    learning += [p for n, p in model.named_parameters() if is_below(n, own) or ".lora_" in n]
    model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    return wrapper


def shared_maps(model: Recommender, own: list[str]) -> list[str]:
    """Full names of the linear maps above the encoder that are not a scenario's own.

    Without those of `StarLayer`, which reads their weights and never calls them.
    """
    star = [n for n, m in model.named_modules() if isinstance(m, StarLayer)]
    return [
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and not is_below(n, [*own, *star, "encoder", "general"])
    ]


def add_shared_adapter(
    model: Recommender, own: list[str], start: FineTuneStart
) -> PeftModel | None:
    """Put low-rank maps beside the shared ones, in place."""
    names = shared_maps(model, own)
    if not names:
        return None
    config = LoraConfig(
        r=start.rank,
        lora_alpha=start.alpha,  # pyright: ignore[reportArgumentType]
        target_modules="|".join(re.escape(n) for n in names),
        lora_dropout=0.0,
    )
    above = shallow(model)  # without the encoder, whose own adapter PEFT would switch off
    del above._modules["encoder"]
    found: Any = get_peft_model(above, config, adapter_name=SHARED)
    model._modules.update(above._modules)
    return found


class L2SP:
    """L2-SP (1802.01483): what learns is pulled towards where it started, apart from Adam's step.

    w <- w - lr * strength * (w - w0), as AdamW (1711.05101) pulls towards zero. Of the low-rank
    maps one starts at zero, so that their product is pulled towards none.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        self.strength = strength
        learning = [p for p in model.parameters() if p.requires_grad] if strength else []
        self.starts = {id(p): p.detach().clone() for p in learning}

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull once, with each group's present rate."""
        if not self.strength:
            return
        for group in optimizer.param_groups:
            share = min(group["lr"] * self.strength, 1.0)
            for parameter in group["params"]:
                parameter.lerp_(self.starts[id(parameter)].to(parameter), share)


def save_delta(
    model: Recommender,
    wrapper: PeftModel | None,
    start: FineTuneStart,
    folder: str,
    **facts: object,
) -> dict[str, Any]:
    """Write what fine-tuning made of a model beside the joint weights; returns its facts."""
    own = scenario_parameters(model, start.name)
    state = model.state_dict()
    whole = {n: v for n, v in state.items() if not is_below(n, ["general"])}
    kept = {n: v for n, v in whole.items() if start.mode == "full" or is_below(n, own)}
    with tempfile.TemporaryDirectory() as local:
        path = Path(local)
        plain = {n: v.detach().cpu().contiguous().clone() for n, v in kept.items()}
        save_file(plain, path / OWN)
        adapted: Any = model.encoder.adapted
        if start.mode == "lora" and adapted is not None:
            adapted.save_pretrained(path / ENCODER, save_embedding_layers=False)
        if wrapper is not None:  # in a folder of the adapter's name
            wrapper.save_pretrained(str(path), save_embedding_layers=False)
        for card in path.rglob("README.md"):
            card.unlink()
        files = sorted(f for f in path.rglob("*") if f.is_file())
        found = {
            "base": base_fingerprint(start.base),
            "scenario": start.name,
            "mode": start.mode,
            "bytes": sum(f.stat().st_size for f in files),
            "fingerprint": bytes_fingerprint(*(f.read_bytes() for f in files)),
            **facts,
        }
        storage.remove_folder(folder)
        for file in files:
            storage.write_bytes(
                storage.join(folder, str(file.relative_to(path))), file.read_bytes()
            )
    storage.write_json(storage.join(folder, DELTA), found)
    return found


def read_delta(folder: str, base: str, name: str) -> dict[str, Any]:
    """The facts of a scenario's delta on a base of this fingerprint.

    Raises:
        ProjectError: there is none, it is another scenario's, or it belongs to another base.
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


def apply_delta(model: Recommender, wrapper: PeftModel | None, folder: str) -> None:
    """Read a delta into a model that began (`begin`) as the one that it was saved of."""
    own = load(storage.read_bytes(storage.join(folder, OWN)))
    model.load_state_dict(own, strict=False)
    adapted: Any = model.encoder.adapted
    parts = [(ENCODER, adapted, "default"), (SHARED, wrapper, SHARED)]
    for part, target, adapter in parts:
        where = storage.join(folder, part)
        if target is not None and storage.exists(where):
            weights = load_peft_weights(str(local_adapter(where)), device="cpu")
            set_peft_model_state_dict(target, weights, adapter_name=adapter)


def local_adapter(folder: str) -> Path:
    """The folder of an adapter's files on this node."""
    if "://" not in folder:
        return Path(folder)
    path = Path(tempfile.mkdtemp())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (path / name).write_bytes(storage.read_bytes(storage.join(folder, name)))
    return path
