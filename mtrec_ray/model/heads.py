"""What stands between features and logits: normalised inputs, the shared bottom, the heads.

Letters: N samples, F numeric columns, Q quantiles, X input width.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLIP = 4.0


class NumericInputs(nn.Module):
    """Numeric columns in two readings: standardised and clipped, and as quantile ranks in [-1, 1].

    Heavy-tailed counts are read badly raw; ranks put equal numbers of training rows into equal
    lengths (2203.05556). Nulls become 0 in both. Constants are fitted on training rows.
    """

    mean: Tensor
    std: Tensor
    edges: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], quantiles: Sequence[Sequence[float]]
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        edges = torch.tensor(quantiles, dtype=torch.float32)
        self.register_buffer("edges", edges.reshape(len(mean), -1))

    @property
    def num_outputs(self) -> int:
        """Columns that come out: two for each that goes in."""
        return 2 * len(self.mean)

    def forward(self, values: Tensor) -> Tensor:
        """f32[N, 2F] from f32[N, F]."""
        known = values.isfinite()
        standard = ((values - self.mean) / self.std).clamp(-CLIP, CLIP)
        return torch.cat([standard, self.ranks(values)], 1).masked_fill(
            ~torch.cat([known, known], 1), 0.0
        )

    def ranks(self, values: Tensor) -> Tensor:
        """f32[N, F]: where a value lies among the quantiles, linear in between, in [-1, 1].

        The mean of the ranks from the left and from the right, so that a value that fills
        several quantiles (a constant, a frequent zero) gets their middle.
        """
        columns = values.nan_to_num(0.0).T.contiguous()
        last = self.edges.shape[1] - 1
        right = torch.searchsorted(self.edges, columns, right=True).clamp(1, last)
        left = torch.searchsorted(self.edges, columns, right=False).clamp(1, last)
        low, high = self.edges.gather(1, right - 1), self.edges.gather(1, right)
        inside = ((columns - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        rank = torch.where(left == right, right - 1 + inside, (left + right - 1) / 2)
        return (2 * rank / last - 1).T


def tower(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers with GELU and dropout after each."""
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(sizes):
        layers += [
            nn.Linear(num_in, num_out),
            nn.LayerNorm(num_out),
            nn.GELU(),
            nn.Dropout(dropout),
        ]
    return nn.Sequential(*layers)


class Head(nn.Module):
    """One logit for a scenario's task from the shared layers and the scenario's own columns."""

    def __init__(self, num_inputs: int, num_hidden: int, bias: float, dropout: float) -> None:
        super().__init__()
        self.layers = tower([num_inputs, num_hidden], dropout)
        self.out = nn.Linear(num_hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """f32[N]: logits."""
        return self.out(self.layers(inputs)).squeeze(-1)
