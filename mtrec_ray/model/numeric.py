"""Numeric columns as the network reads them: standardised, as ranks, and in bins.

Letters: N samples, F numeric columns, G some of them, Q quantiles, K bins, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLIP = 4.0


class NumericInputs(nn.Module):
    """Encodes numeric columns in three ways: standardised and clipped, as ranks, and in bins.

    Raw heavy-tailed counts are hard to learn from; ranks in [-1, 1] spread training rows evenly.
    K bins cut the ranks into equal lengths. A column has a learned vector at each knot between
    them, and between knots the vectors are interpolated, so that thresholds are learned as trees
    find them (2203.05556). Nulls are 0 in all encodings. Constants are fitted on training rows; a
    value beyond their range is read as the end of the range, as trees do.
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
        """Returns f32[N, W] for columns f32[N, F]."""
        encodings = self.encodings(values)
        plain = self.plain(encodings)
        if self.bins is None:
            return plain
        rank = encodings[:, len(self.mean) :]
        return plain + self.bins(self.piecewise_linear(rank, values.isfinite()))

    def encodings(self, values: Tensor) -> Tensor:
        """Returns f32[N, 2F] for columns f32[N, F]: standardised columns, then ranks."""
        return encode_numbers(values, self.mean, self.std, self.edges)

    def some_encodings(self, values: Tensor, columns: Tensor) -> Tensor:
        """Returns the encodings f32[N, 2G] of f32[N, G], which are the columns i64[G]."""
        return encode_numbers(values, self.mean[columns], self.std[columns], self.edges[columns])

    def piecewise_linear(self, ranks: Tensor, known: Tensor) -> Tensor:
        """Returns f32[N, F (K + 1)] for ranks f32[N, F]: at each knot 1, falling to 0 at the next.

        `known` bool[N, F] marks values that are not null.
        """
        position = (ranks + 1) * (self.num_bins / 2)
        knots = torch.arange(self.num_bins + 1, device=ranks.device)
        near = (1 - (position.unsqueeze(-1) - knots).abs()).clamp(min=0)
        return (near * known.unsqueeze(-1)).flatten(1)


def encode_numbers(values: Tensor, mean: Tensor, std: Tensor, edges: Tensor) -> Tensor:
    """Returns f32[N, 2F] for columns f32[N, F]: standardised and clipped, then ranks.

    Nulls are 0 in both.
    """
    unknown = ~values.isfinite()
    values = values.clamp(edges[:, 0], edges[:, -1])
    standard = ((values - mean) / std).clamp(-CLIP, CLIP)
    return torch.cat([standard, ranks(values, edges)], 1).masked_fill(
        torch.cat([unknown, unknown], 1), 0.0
    )


def ranks(values: Tensor, edges: Tensor) -> Tensor:
    """Returns the ranks f32[N, F] of values among quantiles f32[F, Q], in [-1, 1].

    Ranks are linear between quantiles. A rank is the mean of those from the left and from the
    right, so that a value that fills several quantiles (a constant, a frequent zero) gets their
    middle.
    """
    columns = values.nan_to_num(0.0).T.contiguous()
    last = edges.shape[1] - 1
    right = torch.searchsorted(edges, columns, right=True).clamp(1, last)
    left = torch.searchsorted(edges, columns, right=False).clamp(1, last)
    low, high = edges.gather(1, right - 1), edges.gather(1, right)
    inside = ((columns - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    rank = torch.where(left == right, right - 1 + inside, (left + right - 1) / 2)
    return (2 * rank / last - 1).T
