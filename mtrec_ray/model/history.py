"""The user's history as a candidate sees it: attention (1706.06978), and cosines of texts.

Letters: N samples, H history items, U distinct items of the batch, W width, D width of texts,
A attention heads, B users, m candidates of each, K similarity kernels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# Vectors f32[C, W], and which of them [N, H] is beside each item of a history.
Beside = tuple[Tensor, Tensor]


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
        self,
        candidate: Tensor,
        items: Tensor,
        history: Tensor,
        ages: Tensor,
        mask: Tensor,
        beside: Beside | None = None,
    ) -> Tensor:
        """Returns f32[N, W] for candidates [N, W] and histories of distinct items [U, W].

        `history` (rows of `items`), age buckets `ages` and `mask` are [N, H]. Keys and values are
        those of distinct items, so that an item in many histories is projected once. `beside` is
        added to the items.
        """
        keys, values = self._keys_and_values(items, history, beside)
        scores = torch.einsum("nad,nhad->nha", self._queries(candidate), keys)
        scores = scores + self.age_key(ages.clamp(max=NUM_AGES - 1))
        known = mask.unsqueeze(-1)
        weights = masked_softmax(scores, known, 1).to(values.dtype)
        return torch.einsum("nha,nhad->nad", weights * known, values).flatten(1)

    def cross(
        self,
        candidates: Tensor,
        items: Tensor,
        history: Tensor,
        ages: Tensor,
        mask: Tensor,
        beside: Beside | None = None,
    ) -> Tensor:
        """Returns f32[B, m, W] for B histories, each with candidates of its own [B, m, W].

        Equal to `forward` of all pairs, but histories [B, H] are gathered once instead of m times,
        and scores and sums are products of matrices.
        """
        keys, values = self._keys_and_values(items, history, beside)
        queries = self._queries(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])
        scores = torch.einsum("bmad,bhad->bmha", queries, keys)
        scores = scores + self.age_key(ages.clamp(max=NUM_AGES - 1)).unsqueeze(1)
        known = mask.unsqueeze(1).unsqueeze(-1)
        weights = masked_softmax(scores, known, 2).to(values.dtype)
        return torch.einsum("bmha,bhad->bmad", weights * known, values).flatten(2)

    def _queries(self, candidates: Tensor) -> Tensor:
        """Returns f32[N, A, W / A] for candidates [N, W] and A heads."""
        size = candidates.shape[1] // self.num_heads
        return self.query(candidates).view(-1, self.num_heads, size) / size**0.5

    def _keys_and_values(
        self, items: Tensor, history: Tensor, beside: Beside | None
    ) -> tuple[Tensor, Tensor]:
        """Returns keys and values, each f32[N, H, A, W / A], of histories of items [U, W]."""
        projected = torch.cat([self.key(items), self.value(items)], 1)
        gathered = F.embedding(history, projected)
        if beside is not None:
            vectors, place = beside
            parts = [self.key(vectors) - self.key.bias, self.value(vectors) - self.value.bias]
            gathered = gathered + F.embedding(place, torch.cat(parts, 1))
        keys, values = gathered.view(*history.shape, 2, self.num_heads, -1).unbind(2)
        return keys, values


def masked_softmax(scores: Tensor, known: Tensor, dim: int) -> Tensor:
    """Returns the softmax f32 over one dimension, almost 0 where `known` is False."""
    return scores.masked_fill(~known, -1e4).float().softmax(dim)


def similarity_summary(cosine: Tensor, mask: Tensor) -> Tensor:
    """Returns mean, maximum and latest f32[N, 3] of cosines [N, H] in the mask; 0 without any."""
    cosine = cosine.masked_fill(~mask, 0.0)
    mean = cosine.sum(1) / mask.sum(1).clamp(min=1)
    maximum = cosine.masked_fill(~mask, -1.0).amax(1).masked_fill(~mask.any(1), 0.0)
    return torch.stack([mean, maximum, cosine[:, 0]], 1)


def similarity_kernels(cosine: Tensor, mask: Tensor) -> Tensor:
    """Returns f32[N, 4 K] for cosines [N, H]: how many history items are how similar.

    Kernel pooling (1706.06613): the mean over the history of each of K Gaussian kernels of the
    cosine, and each kernel of the mean, maximum and latest cosine; zeros without a history.
    """
    pooled = gaussian_kernels(cosine) * mask.unsqueeze(-1)
    pooled = pooled.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    summary = gaussian_kernels(similarity_summary(cosine, mask)) * mask.any(1).view(-1, 1, 1)
    return torch.cat([pooled, summary.flatten(1)], 1)


def gaussian_kernels(cosine: Tensor) -> Tensor:
    """Returns f32[.., K] for cosines [..]: 1 at a kernel's centre, falling off with its width."""
    centres = torch.linspace(KERNEL_LOW, 1.0, NUM_KERNELS, device=cosine.device)
    width = (1.0 - KERNEL_LOW) / (NUM_KERNELS - 1)
    return torch.exp(-0.5 * ((cosine.unsqueeze(-1) - centres) / width) ** 2)


def cosines(vectors: Tensor, candidate: Tensor, history: Tensor) -> Tensor:
    """Returns the cosines f32[N, H] of each candidate with its history, rows of vectors [U, D].

    Vectors are cast to the precision of autocast before they are gathered, because gathering takes
    most of the time. (All products of distinct items instead were slower on a CPU.)
    """
    unit = in_autocast(F.normalize(vectors.float(), dim=-1))
    return torch.einsum("nd,nhd->nh", unit[candidate], unit[history]).float()


def in_autocast(values: Tensor) -> Tensor:
    """Returns values in the precision of autocast; without it as they are."""
    if torch.is_autocast_enabled(values.device.type):
        return values.to(torch.get_autocast_dtype(values.device.type))
    return values
