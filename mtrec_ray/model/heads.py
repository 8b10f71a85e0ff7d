"""Towers and heads: the layers between the joined inputs and the logits.

Letters: N samples, X input width.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


def tower(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Returns linear layers, each followed by a layer norm, GELU and dropout."""
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
    """Gives a task one logit, from the shared layers' output and the scenario's own columns."""

    def __init__(self, num_inputs: int, num_hidden: int, bias: float, dropout: float) -> None:
        super().__init__()
        self.layers = tower([num_inputs, num_hidden], dropout)
        self.out = nn.Linear(num_hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits f32[N] for inputs f32[N, X]."""
        return self.out(self.layers(inputs)).squeeze(-1)
