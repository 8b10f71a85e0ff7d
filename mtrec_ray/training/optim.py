"""AdamW with groups for encoder, ids, weights and biases; the learning rate over steps."""

import math
from typing import Any

import torch
from torch import nn

from mtrec_ray.model.recommender import Recommender
from mtrec_ray.project.training import Training

Schedule = torch.optim.lr_scheduler.LambdaLR


def build_optimizer(model: Recommender, options: Training) -> torch.optim.AdamW:
    """AdamW (1711.05101): encoder and the rest have their own rate, ids their own decay.

    Biases, norms and single vectors are not decayed.
    """
    ids = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    encoder = {id(p) for p in model.encoder.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        rate = options.lr_encoder if id(parameter) in encoder else options.lr
        decay = options.weight_decay if parameter.ndim > 1 else 0.0
        if id(parameter) in ids - encoder:
            decay = options.id_weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [{"params": p, "lr": r, "weight_decay": d} for (r, d), p in groups.items()]
    return torch.optim.AdamW(settings, betas=(0.9, 0.98), fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, options: Training, num_steps: int) -> Schedule:
    """Linear warm-up over a share of the steps, then cosine or linear decay to 1 %, or none."""
    warmup = max(int(options.warmup * num_steps), 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min((step - warmup) / max(num_steps - warmup, 1), 1.0)
        match options.schedule:
            case "cosine":
                return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
            case "linear":
                return 1 - 0.99 * done
            case _:
                return 1.0

    return Schedule(optimizer, factor)


def restore(optimizer: torch.optim.Optimizer, schedule: Schedule, state: dict[str, Any]) -> None:
    """Go on from a checkpoint's `optimizer` and `schedule`, at the rates and decays of this run.

    They are those of the checkpoint's run but where a run goes on from another one.
    """
    rates = list(schedule.base_lrs)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    schedule.base_lrs = rates
    factor = schedule.lr_lambdas[0](schedule.last_epoch)
    for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
        group |= {"initial_lr": rate, "lr": rate * factor, "weight_decay": decay}
