"""Collectives over training ranks that also work where there is one process."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Gathered = TypeVar("Gathered")


def world() -> tuple[int, int]:
    """Returns the rank and number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Returns the values, summed over ranks in place; they must lie on the context's device.

    (NCCL, which Ray Train takes with GPUs, refuses tensors on the CPU.)
    """
    if world()[1] > 1:
        dist.all_reduce(values)
    return values


def gather_objects(value: Gathered) -> Sequence[Gathered]:
    """Returns the value of every rank, in the order of ranks, on every rank."""
    _, size = world()
    if size == 1:
        return [value]
    values: list[Gathered] = [value] * size
    dist.all_gather_object(values, value)
    return values


def any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Returns whether each flag is set on any rank, in one collective; every rank calls it."""
    return (sum_over_ranks(torch.tensor(flags, dtype=torch.float32, device=device)) > 0).tolist()


def gather_rows(values: Tensor) -> Tensor:
    """Returns the rows [sum of M, ..] of every rank's values [M, ..], in the order of ranks."""
    _, size = world()
    if size == 1:
        return values
    counts = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(values)], device=values.device))
    most = max(int(count) for count in counts)
    padded = values.new_zeros(most, *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.zeros_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])
