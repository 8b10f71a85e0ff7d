"""Collectives over training ranks that also work where there is one process."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world() -> tuple[int, int]:
    """Rank and number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The values, added up over ranks in place."""
    if world()[1] > 1:
        dist.all_reduce(values)
    return values


def least_over_ranks(values: Tensor) -> Tensor:
    """The least of the values of all ranks, in place."""
    if world()[1] > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN)
    return values


def gather_objects(value: T) -> Sequence[T]:
    """The value of every rank, in the order of ranks, on every rank."""
    _, size = world()
    if size == 1:
        return [value]
    found: list[T] = [value] * size
    dist.all_gather_object(found, value)
    return found


def any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Whether each of the flags is set on any rank, in one collective; every rank calls it."""
    return (sum_over_ranks(torch.tensor(flags, dtype=torch.float32, device=device)) > 0).tolist()
