"""What came of the items of a history, as the network reads it.

Letters: N samples, H history items, C distinct outcomes of the batch, T tasks, W width,
K similarity kernels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrec_ray.data.outcomes import HIGH, LEVELS, LOW
from mtrec_ray.model.history import similarity_kernels


class OutcomeVectors(NamedTuple):
    """Vectors f32[C, W] of distinct outcomes, and which of them [N, H] each history item has."""

    vectors: Tensor
    place: Tensor


class OutcomeEmbedding(nn.Module):
    """The vector of an outcome: the sum of those of its tasks' levels; zeros while all is unknown.

    A vector that stands beside the item's (2606.15252).
    """

    def __init__(self, num_tasks: int, width: int, std: float) -> None:
        """`std`: of the weights at the start."""
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding(LEVELS, width, padding_idx=0) for _ in range(num_tasks)
        )
        for table in self.tables:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=std)
            with torch.no_grad():
                table.weight[0] = 0

    def forward(self, outcomes: Tensor) -> OutcomeVectors:
        """Returns the vectors of outcomes i64[N, H] (`data/outcomes.py`)."""
        distinct, place = outcomes.unique(return_inverse=True)
        each = [table(level_of(distinct, task)) for task, table in enumerate(self.tables)]
        return OutcomeVectors(torch.stack(each).sum(0), place)


def level_of(outcomes: Tensor, task: int) -> Tensor:
    """Returns i64[..], the level of a task in outcomes i64[..]."""
    return (outcomes >> (2 * task)) & (LEVELS - 1)


def similarity_by_outcome(cosine: Tensor, mask: Tensor, outcomes: Tensor) -> Tensor:
    """Returns f32[N, 8 K]: kernels of cosines [N, H] with items whose outcome is high, and low.

    What resembles items that were passed over is told apart from what resembles those that were
    taken.
    """
    parts = taken_and_passed_over(mask, outcomes)
    return torch.cat([similarity_kernels(cosine, part) for part in parts], 1)


def taken_and_passed_over(mask: Tensor, outcomes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns bool[N, H] twice: items whose outcome of the first task is high, and is low."""
    level = level_of(outcomes, 0)
    return mask & (level == HIGH), mask & (level == LOW)
