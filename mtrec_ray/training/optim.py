"""AdamW with groups for encoder, ids, weights and biases; the learning rate over steps."""

import math
from typing import Any

import torch
from torch import nn

from mtrec_ray.model.recommender import Recommender
from mtrec_ray.project.training import Training

Schedule = torch.optim.lr_scheduler.LambdaLR


def build_optimizer(model: Recommender, options: Training) -> torch.optim.AdamW:
    """Returns AdamW (1711.05101): encoder and the rest have their own rate, ids their own decay.

    Biases, norms and single vectors are not decayed. The groups depend on the model alone and not
    on rates and decays, so that a run with other ones can load their state.
    """
    rates = {"encoder": options.lr_encoder, "ids": options.lr, "rest": options.lr}
    decays = {"ids": options.id_weight_decay}
    settings = [
        {
            "name": f"{part}.{kind}",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": decays.get(part, options.weight_decay if kind == "matrix" else 0.0),
        }
        for (part, kind), parameters in parameter_groups(model).items()
    ]
    return torch.optim.AdamW(settings, betas=(0.9, 0.98), fused=True)


def parameter_groups(model: Recommender) -> dict[tuple[str, str], list[nn.Parameter]]:
    """Returns what learns, by part (`encoder`, `ids`, `rest`) and kind (`matrix`, `vector`)."""
    encoder = {id(p) for p in model.encoder.parameters()}
    ids = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            outer = "ids" if id(parameter) in ids else "rest"
            part = "encoder" if id(parameter) in encoder else outer
            kind = "matrix" if parameter.ndim > 1 else "vector"
            groups.setdefault((part, kind), []).append(parameter)
    return groups


def build_schedule(optimizer: torch.optim.Optimizer, options: Training, num_steps: int) -> Schedule:
    """Returns linear warm-up over a share of the steps, then cosine or linear decay or none."""
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
    """Load a checkpoint's `optimizer` and `schedule`, but keep this run's rates and decays.

    They differ from the checkpoint's where a trial goes on from another one's checkpoint.
    """
    rates = list(schedule.base_lrs)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    schedule.base_lrs = rates
    factor = schedule.lr_lambdas[0](schedule.last_epoch)
    for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
        group |= {"initial_lr": rate, "lr": rate * factor, "weight_decay": decay}


def build_optimization(
    model: Recommender, options: Training, num_steps: int, state: dict[str, Any] | None
) -> tuple[torch.optim.AdamW, Schedule]:
    """Returns the optimizer and its schedule, at their start or restored from a state."""
    optimizer = build_optimizer(model, options)
    schedule = build_schedule(optimizer, options, num_steps)
    if state is not None:
        restore(optimizer, schedule, state)
    return optimizer, schedule
