"""What a user took in other scenarios of the same people, as a candidate sees it.

As the scenario's own history does (`history.py`), but with items of other catalogues: all texts are
read by the pretrained encoder as it is, and a scenario that is trained alone needs no catalogue of
another. Each scenario has a side of its own, which another model of it need not know.

Letters: N users who ask, C candidates of each, E items elsewhere, n items of all catalogues, U
distinct ones of a batch, D width of texts, W width, K similarity kernels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrec_ray.data.elsewhere import Timeline
from mtrec_ray.model.history import (
    NUM_KERNELS,
    HistoryAttention,
    in_autocast,
    similarity_kernels,
)
from mtrec_ray.model.profiles import Asking
from mtrec_ray.project.model import Model

# Texts are moved to a GPU up to this size; above, each step takes its own from the file.
MAX_DEVICE_BYTES = 2 * 2**30


class Met(NamedTuple):
    """What is added to users and to columns, each f32[.., W]; zeros without any item elsewhere."""

    user: Tensor
    columns: Tensor


class Elsewhere(nn.Module):
    """Attention of candidates over items taken elsewhere, and kernels of the cosines of texts.

    The timeline and the texts are no buffers: a checkpoint does not hold them, and DDP, which
    writes the buffers of its ranks, would give each a copy of what they map from one file.
    """

    def __init__(self, name: str, timeline: Timeline, options: Model) -> None:
        """`name`: the scenario that asks."""
        super().__init__()
        width = options.width
        self.timeline, self.options = timeline, options
        self.base = timeline.facts.base(name)
        self.texts = torch.from_numpy(timeline.texts)
        self.project = nn.Linear(self.texts.shape[1], width)
        self.origins = nn.Parameter(torch.zeros(len(timeline.facts.scenarios), width))
        self.norm = nn.LayerNorm(width)
        self.attention = HistoryAttention(width, options.attention_heads)
        self.similarity = nn.Linear(4 * NUM_KERNELS, width, bias=False)
        nn.init.zeros_(self.similarity.weight)

    def of_samples(self, asking: Asking, candidate: Tensor, item: Tensor) -> Met:
        """Returns f32[N, W] each, of a candidate f32[N, W] of each user, catalogue rows i64[N]."""
        user, columns = self(asking, candidate.unsqueeze(1), item.unsqueeze(1))
        return Met(user.squeeze(1), columns.squeeze(1))

    def forward(
        self, asking: Asking, candidates: Tensor, items: Tensor, texts: Tensor | None = None
    ) -> Met:
        """Returns f32[N, C, W] each, of candidates f32[N, C, W], catalogue rows i64[N, C].

        With `texts` f32[n', D], of length 1, `items` are rows of these, not of the catalogue.
        """
        taken, ages = self.taken(asking)
        seen = (taken >= 0) & self.options.history
        rows = items + self.base if texts is None else items[:, :0]
        both = torch.cat([rows, taken.clamp(min=0)], 1)
        distinct, place = both.unique(return_inverse=True)
        candidate, met = place.split([rows.shape[1], taken.shape[1]], 1)
        text = self.texts_of(distinct)
        vectors = self.represented(distinct, text)
        user = self.attention.cross(candidates, vectors, met, ages, seen)
        unit = in_autocast(text)  # before it is gathered, as in `cosines`
        own = unit[candidate] if texts is None else in_autocast(self.as_seen(texts))[items]
        cosine = torch.einsum("ncd,ned->nce", own, unit[met]).float().flatten(0, 1)
        kernels = similarity_kernels(cosine, seen.repeat_interleave(items.shape[1], 0))
        return Met(user, self.similarity(kernels).view(*items.shape, -1))

    def represented(self, items: Tensor, texts: Tensor) -> Tensor:
        """Returns f32[U, W], items i64[U] with their texts f32[U, D] as candidates see them."""
        return self.norm(self.project(texts) + self.origins[self.origin_of(items)])

    def of_vectors(
        self,
        candidate: Tensor,
        own: Tensor,
        items: Tensor,
        texts: Tensor,
        ages: Tensor,
        seen: Tensor,
    ) -> Met:
        """Returns f32[N, W] each, of candidates f32[N, W] with texts `own` f32[N, D].

        `items` f32[N, E, W] are those of `represented`, with their texts [N, E, D], ages and masks
        [N, E].
        """
        place = torch.arange(seen.numel(), device=seen.device).view(seen.shape)
        user = self.attention(candidate, items.flatten(0, 1), place, ages, seen)
        cosine = torch.einsum("nd,ned->ne", self.as_seen(own), self.as_seen(texts))
        return Met(user, self.similarity(similarity_kernels(cosine, seen)))

    def taken(self, asking: Asking) -> tuple[Tensor, Tensor]:
        """Returns items i64[N, E] that persons took elsewhere, -1 where there is none, and ages."""
        found = asking.elsewhere
        if found is None:
            person, moment = (values.cpu().numpy() for values in asking[:2])
            found = self.timeline.taken(person, moment)
        items, ages = (torch.from_numpy(values).to(asking.person.device) for values in found)
        return items, ages

    def texts_of(self, items: Tensor) -> Tensor:
        """Returns f32[U, D], texts of items i64[U] as they are seen: zeros with `text: false`."""
        if self.texts.device != items.device and self.texts.nbytes <= MAX_DEVICE_BYTES:
            self.texts = self.texts.to(items.device)
        found = self.texts[items.to(self.texts.device)].to(items.device).float()
        return self.as_seen(found)

    def as_seen(self, texts: Tensor) -> Tensor:
        """Returns texts as the model sees them: zeros with `text: false`."""
        return texts if self.options.text else torch.zeros_like(texts)

    def origin_of(self, items: Tensor) -> Tensor:
        """Returns i64[U], the number of the scenario of each item."""
        bases = torch.from_numpy(self.timeline.facts.bases).to(items.device)
        return torch.searchsorted(bases, items, right=True) - 1


def elsewhere_of(timelines: Mapping[str, Timeline], options: Model) -> nn.ModuleDict:
    """Returns the sides of the scenarios that have a timeline."""
    return nn.ModuleDict({name: Elsewhere(name, own, options) for name, own in timelines.items()})
