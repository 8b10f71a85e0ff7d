"""The user's interest in a candidate: attention of the candidate over the history (1706.06978).

Letters: N samples, H history items, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

NUM_AGES = 64


class HistoryAttention(nn.Module):
    """Multi-head attention with the candidate as query; a history without items gives zeros."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.age_key = nn.Embedding(NUM_AGES, num_heads)
        nn.init.zeros_(self.age_key.weight)

    def forward(self, candidate: Tensor, history: Tensor, ages: Tensor, mask: Tensor) -> Tensor:
        """f32[N, W] from candidate [N, W], history [N, H, W], age buckets [N, H], mask [N, H]."""
        n, h, width = history.shape
        split = (n, h, self.num_heads, width // self.num_heads)
        query = self.query(candidate).view(n, self.num_heads, split[-1])
        scores = torch.einsum("nad,nhad->nha", query, self.key(history).view(split))
        scores = scores / split[-1] ** 0.5 + self.age_key(ages.clamp(max=NUM_AGES - 1))
        scores = scores.masked_fill(~mask.unsqueeze(-1), -1e4)
        weights = scores.float().softmax(1).to(history.dtype) * mask.unsqueeze(-1)
        mixed = torch.einsum("nha,nhad->nad", weights, self.value(history).view(split))
        return mixed.reshape(n, width)


def similarities(candidate: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    """f32[N, 3]: cosine of the candidate's text with the history's: mean, maximum, latest.

    Text vectors [N, D] and [N, H, D]; zeros where there is no history.
    """
    unit = F.normalize(candidate.float(), dim=-1).unsqueeze(1)
    cosine = (unit * F.normalize(history.float(), dim=-1)).sum(-1).masked_fill(~mask, 0.0)
    count = mask.sum(1).clamp(min=1)
    best = cosine.masked_fill(~mask, -1.0).amax(1).masked_fill(~mask.any(1), 0.0)
    return torch.stack([cosine.sum(1) / count, best, cosine[:, 0]], 1)
