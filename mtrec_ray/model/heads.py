"""Towers and heads: the layers between the joined inputs and the logits.

Letters: N samples, X input width, C logits of a task: one for each class of a multiclass task.
"""

import itertools
from collections.abc import Sequence

import torch
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
    """Gives a task its logits, from the shared layers' output and the scenario's own columns."""

    def __init__(
        self, num_inputs: int, num_hidden: int, biases: Sequence[float], dropout: float
    ) -> None:
        """`biases`: what the logits start at, one each."""
        super().__init__()
        self.layers = tower([num_inputs, num_hidden], dropout)
        self.out = nn.Linear(num_hidden, len(biases))
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor(biases))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits f32[N, C] for inputs f32[N, X]."""
        return self.out(self.layers(inputs))
