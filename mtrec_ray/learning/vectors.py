"""Item vectors: each distinct text of a batch encoded once, frozen layers computed once for all.

All catalogues lie one after another; an item's place in them is its base plus its catalogue row.

Letters: n items in all, D encoder width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.learning.ranks import sum_over_ranks, world
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.text import Chunk, Texts, chunks

# Frozen states are kept in memory up to this size; above, the frozen layers run at every use.
MAX_STATE_BYTES = 4 * 2**30

Autocast = Callable[[], AbstractContextManager[object]]


class ItemVectors:
    """Text vectors of the catalogues' items, with and without gradients."""

    def __init__(
        self,
        encoder: TextEncoder,
        catalogues: Mapping[str, Catalogue],
        device: torch.device,
        autocast: Autocast = nullcontext,
    ) -> None:
        parts = [c.lengths for c in catalogues.values()]
        lengths = np.concatenate(parts)
        tokens = np.concatenate([c.tokens for c in catalogues.values()]).astype(np.int64)
        self.texts = Texts(torch.from_numpy(tokens), np.concatenate([[0], np.cumsum(lengths)]))
        bases = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
        self.bases = dict(zip(catalogues, bases.tolist(), strict=False))
        self.sizes = {name: c.num_items for name, c in catalogues.items()}
        self.encoder = encoder
        self.autocast = autocast
        self.device = device
        self.budget = encoder.options.tokens_per_chunk
        self.states: Tensor | None = None
        self.cache: Tensor | None = None

    @property
    def num_items(self) -> int:
        """Items of all catalogues."""
        return len(self.texts.offsets) - 1

    def places(self, items: Mapping[str, Tensor]) -> np.ndarray:
        """i64[U]: places of the items of several scenarios, one scenario after another."""
        found = [rows.cpu().numpy() + self.bases[name] for name, rows in items.items()]
        return np.concatenate(found)

    def split(self, items: Mapping[str, Tensor], vectors: Tensor) -> dict[str, Tensor]:
        """The vectors of several scenarios by scenario."""
        sizes = [len(rows) for rows in items.values()]
        return dict(zip(items, vectors.split(sizes), strict=True))

    def encode(self, items: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """f32[U, D] by scenario, with gradients into the encoder; the cache takes them in."""
        places = self.places(items)
        vectors = self._run(places)
        if self.cache is not None:
            self.cache[torch.from_numpy(places).to(self.device)] = vectors.detach().float()
        return self.split(items, vectors)

    def cached(self, items: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """f32[U, D] by scenario from the last `refresh`, without gradients."""
        assert self.cache is not None
        places = torch.from_numpy(self.places(items)).to(self.device)
        return self.split(items, self.cache[places])

    def _run(self, places: np.ndarray) -> Tensor:
        vectors, order = [], []
        for chunk in chunks(self.texts, places, self.budget):
            vectors.append(self.encoder(self._inputs(chunk), chunk.mask.to(self.device)))
            order.append(chunk.places)
        back = np.argsort(np.concatenate(order), kind="stable")
        return torch.cat(vectors)[torch.from_numpy(back).to(self.device)]

    def _inputs(self, chunk: Chunk) -> Tensor:
        if self.states is not None:
            return self.states[chunk.index.to(self.device)]
        return self.texts.tokens[chunk.index].to(self.device)

    def _share(self, rank: int, size: int) -> Iterator[Chunk]:
        """Chunks of a rank's share of all items."""
        own = np.argsort(self.texts.lengths, kind="stable")[rank::size]
        for chunk in chunks(self.texts, own, self.budget):
            yield Chunk(own[chunk.places], chunk.index, chunk.mask)

    @torch.no_grad()
    def compute_frozen(self) -> None:
        """Run the frozen layers once over all items, each rank its share (of a cut encoder)."""
        num_tokens = len(self.texts.tokens)
        if self.encoder.lower is None or self.encoder.is_frozen:
            return
        if num_tokens * self.encoder.width * 4 > MAX_STATE_BYTES:
            return
        states = torch.zeros(num_tokens, self.encoder.width, device=self.device)
        for chunk in self._share(*world()):
            tokens = self.texts.tokens[chunk.index].to(self.device)
            mask = chunk.mask.to(self.device)
            with self.autocast():
                found = self.encoder.frozen_states(tokens, mask)
            states[chunk.index.to(self.device)[mask]] = found[mask].float()
        self.states = sum_over_ranks(states)

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the cached vector of every item with the present weights, each rank its share."""
        if self.cache is not None and self.encoder.is_frozen:
            return
        cache = torch.zeros(self.num_items, self.encoder.width, device=self.device)
        for places, vectors in self.encode_share(*world()):
            cache[places] = vectors
        self.cache = sum_over_ranks(cache)

    @torch.no_grad()
    def encode_share(self, rank: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Places i64[u] and vectors f32[u, D] of a share of all items, chunk by chunk."""
        was_training = self.encoder.training
        self.encoder.eval()
        for chunk in self._share(rank, size):
            with self.autocast():
                found = self.encoder(self._inputs(chunk), chunk.mask.to(self.device))
            yield torch.from_numpy(chunk.places).to(self.device), found.float()
        self.encoder.train(was_training)
