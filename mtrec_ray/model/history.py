"""The user's interest in a candidate: attention of the candidate over the history (1706.06978).

Letters: N samples, H history items, U distinct items of the batch, W width, D width of texts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

NUM_AGES = 64


NUM_KERNELS, KERNEL_LOW = 13, -0.2


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

    def forward(
        self, candidate: Tensor, items: Tensor, places: Tensor, ages: Tensor, mask: Tensor
    ) -> Tensor:
        """f32[N, W] from candidates [N, W], distinct items [U, W] and the history's places in them.

        `places`, age buckets `ages` and `mask` are [N, H]. Keys and values are those of distinct
        items, so that an item in many histories is projected once.
        """
        n, h = places.shape
        heads, each = self.num_heads, items.shape[1] // self.num_heads
        pairs = torch.cat([self.key(items), self.value(items)], 1)
        keys, values = F.embedding(places, pairs).view(n, h, 2, heads, each).unbind(2)
        query = self.query(candidate).view(n, heads, each) / each**0.5
        scores = torch.einsum("nad,nhad->nha", query, keys)
        scores = scores + self.age_key(ages.clamp(max=NUM_AGES - 1))
        scores = scores.masked_fill(~mask.unsqueeze(-1), -1e4)
        weights = scores.float().softmax(1).to(values.dtype) * mask.unsqueeze(-1)
        return torch.einsum("nha,nhad->nad", weights, values).reshape(n, heads * each)

    def cross(
        self, candidates: Tensor, items: Tensor, places: Tensor, ages: Tensor, mask: Tensor
    ) -> Tensor:
        """f32[B, n, W] of B histories with every one of n candidates [n, W], as matrix products.

        `items` [U, W] are those that `places`, `ages` and `mask` [B, H] speak of. Equal to
        `forward` of all pairs, whose histories are gathered once instead of n times.
        """
        n, (b, h) = len(candidates), places.shape
        heads, each = self.num_heads, items.shape[1] // self.num_heads
        pairs = torch.cat([self.key(items), self.value(items)], 1)
        keys, values = F.embedding(places, pairs).view(b, h, 2, heads, each).unbind(2)
        query = self.query(candidates).view(n, heads, each) / each**0.5
        scores = torch.einsum("nad,bhad->bnha", query, keys)
        scores = scores + self.age_key(ages.clamp(max=NUM_AGES - 1)).unsqueeze(1)
        known = mask.view(b, 1, h, 1)
        weights = scores.masked_fill(~known, -1e4).float().softmax(2).to(values.dtype) * known
        return torch.einsum("bnha,bhad->bnad", weights, values).reshape(b, n, heads * each)


def similarity_summary(cosine: Tensor, mask: Tensor) -> Tensor:
    """f32[N, 3]: mean, maximum and latest of cosines [N, H] where the mask has them, else 0."""
    cosine = cosine.masked_fill(~mask, 0.0)
    count = mask.sum(1).clamp(min=1)
    best = cosine.masked_fill(~mask, -1.0).amax(1).masked_fill(~mask.any(1), 0.0)
    return torch.stack([cosine.sum(1) / count, best, cosine[:, 0]], 1)


def similarity_kernels(cosine: Tensor, mask: Tensor) -> Tensor:
    """f32[N, 4 K]: how much of a history is how like the candidate, by K Gaussian kernels.

    Kernel pooling (1706.06613): the mean over the history of each kernel of the cosine, and each
    kernel of the mean, the maximum and the latest; zeros where there is no history.
    """
    centres = torch.linspace(KERNEL_LOW, 1.0, NUM_KERNELS, device=cosine.device)
    width = (1.0 - KERNEL_LOW) / (NUM_KERNELS - 1)
    each = torch.exp(-0.5 * ((cosine.unsqueeze(-1) - centres) / width) ** 2)
    each = each * mask.unsqueeze(-1)
    pooled = each.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    whole = torch.exp(
        -0.5 * ((similarity_summary(cosine, mask).unsqueeze(-1) - centres) / width) ** 2
    )
    whole = whole * mask.any(1).view(-1, 1, 1)
    return torch.cat([pooled, whole.flatten(1)], 1)


def cosines(vectors: Tensor, candidate: Tensor, places: Tensor) -> Tensor:
    """f32[N, H]: cosine of each candidate with its history.

    Vectors are taken to the precision of autocast before they are gathered: gathering is what
    this costs. (All products of distinct items instead, once tried, were slower on a CPU.)
    """
    unit = F.normalize(vectors.float(), dim=-1)
    if torch.is_autocast_enabled(unit.device.type):
        unit = unit.to(torch.get_autocast_dtype(unit.device.type))
    return torch.einsum("nd,nhd->nh", unit[candidate], unit[places]).float()
