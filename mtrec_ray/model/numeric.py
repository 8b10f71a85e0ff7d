"""Numeric columns as the network reads them: standardised, as ranks, and in bins.

Letters: N samples, F numeric columns, Q quantiles, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLIP = 4.0


class NumericInputs(nn.Module):
    """Numeric columns in three readings: standardised and clipped, quantile ranks, and bins.

    Heavy-tailed counts are read badly raw; ranks in [-1, 1] put equal numbers of training rows into
    equal lengths. Between the knots of K bins of equal lengths of rank a learned vector of the
    column is interpolated, so that thresholds are learned as trees find them (2203.05556).
    Nulls are 0 in all. Constants are fitted on training rows; beyond their range a value is read as
    its end, as trees do.
    """

    mean: Tensor
    std: Tensor
    edges: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        quantiles: Sequence[Sequence[float]],
        width: int,
        num_bins: int = 0,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        edges = torch.tensor(quantiles, dtype=torch.float32)
        self.register_buffer("edges", edges.reshape(len(mean), len(quantiles[0]) if mean else 0))
        self.plain = nn.Linear(2 * len(mean), width)
        self.num_bins = num_bins
        self.bins = nn.Linear(len(mean) * (num_bins + 1), width, bias=False) if num_bins else None
        if self.bins is not None:
            nn.init.normal_(self.bins.weight, std=0.01)

    def forward(self, values: Tensor) -> Tensor:
        """f32[N, W] from f32[N, F]."""
        encodings = self.encodings(values)
        found = self.plain(encodings)
        if self.bins is None:
            return found
        return found + self.bins(
            self.piecewise_linear(encodings[:, len(self.mean) :], values.isfinite())
        )

    def encodings(self, values: Tensor) -> Tensor:
        """f32[N, 2F]: standardised columns, then ranks."""
        return read_numbers(values, self.mean, self.std, self.edges)

    def some_encodings(self, values: Tensor, columns: Tensor) -> Tensor:
        """f32[N, 2G]: the same of some columns, by their places i64[G]."""
        return read_numbers(values, self.mean[columns], self.std[columns], self.edges[columns])

    def piecewise_linear(self, ranks: Tensor, known: Tensor) -> Tensor:
        """f32[N, F (K + 1)]: nearness of ranks f32[N, F] to each knot: 1 there, 0 at the next."""
        place = (ranks + 1) * (self.num_bins / 2)
        knots = torch.arange(self.num_bins + 1, device=ranks.device)
        near = (1 - (place.unsqueeze(-1) - knots).abs()).clamp(min=0)
        return (near * known.unsqueeze(-1)).flatten(1)

    def ranks(self, values: Tensor) -> Tensor:
        """f32[N, F]: the ranks alone."""
        return ranks(values, self.edges)


def read_numbers(values: Tensor, mean: Tensor, std: Tensor, edges: Tensor) -> Tensor:
    """f32[N, 2F]: columns f32[N, F] standardised and clipped, then their ranks; 0 for null."""
    unknown = ~values.isfinite()
    values = values.clamp(edges[:, 0], edges[:, -1])
    standard = ((values - mean) / std).clamp(-CLIP, CLIP)
    return torch.cat([standard, ranks(values, edges)], 1).masked_fill(
        torch.cat([unknown, unknown], 1), 0.0
    )


def ranks(values: Tensor, edges: Tensor) -> Tensor:
    """f32[N, F]: where a value lies among the quantiles f32[F, Q], linear between, in [-1, 1].

    The mean of the ranks from the left and from the right, so that a value that fills several
    quantiles (a constant, a frequent zero) gets their middle.
    """
    columns = values.nan_to_num(0.0).T.contiguous()
    last = edges.shape[1] - 1
    right = torch.searchsorted(edges, columns, right=True).clamp(1, last)
    left = torch.searchsorted(edges, columns, right=False).clamp(1, last)
    low, high = edges.gather(1, right - 1), edges.gather(1, right)
    inside = ((columns - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    rank = torch.where(left == right, right - 1 + inside, (left + right - 1) / 2)
    return (2 * rank / last - 1).T
