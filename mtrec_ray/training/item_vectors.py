"""Item vectors: each distinct text of a batch is encoded once, frozen layers run once for all.

All catalogues lie one after another; an item's place in them is its base plus its catalogue row.

Letters: n items in all, U distinct items of a batch, N samples, D encoder width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.model.chunks import Chunk, PairLayout, Texts, chunks
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.samples import Samples
from mtrec_ray.training.cached_gradients import CachedGradients
from mtrec_ray.training.collectives import sum_over_ranks, world
from mtrec_ray.training.node_cache import open_rows, texts_hash, weights_hash

# Frozen states are moved to a GPU up to this size; above, each step takes its own from the file.
MAX_DEVICE_BYTES = 4 * 2**30


Autocast = Callable[[], AbstractContextManager[object]]


Batch = Mapping[str, Samples]


class ItemVectors:
    """Text vectors of the catalogues' items, with and without gradients.

    Attributes:
        cache: f32[n, D], the vectors of all items by the weights of the last `refresh`, or of a
            later step that encoded the item.
        states: f32[tokens, D], what the frozen layers make of every token.
        pairs: how history and candidate are laid into one text (layout `pair`).
    """

    def __init__(
        self,
        encoder: TextEncoder,
        catalogues: Mapping[str, Catalogue],
        device: torch.device,
        autocast: Autocast = nullcontext,
        pairs: PairLayout | None = None,
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
        self.pairs = pairs
        self.budget = encoder.options.tokens_per_chunk
        self.states: Tensor | None = None
        self.cache: Tensor | None = None
        self.gathered: CachedGradients | None = None

    @property
    def num_items(self) -> int:
        """Items of all catalogues."""
        return len(self.texts.offsets) - 1

    def places(self, name: str, rows: Tensor) -> NDArray[np.int64]:
        """Returns places of a scenario's catalogue rows."""
        return rows.cpu().numpy() + self.bases[name]

    def of_batch(self, batch: Batch, *, encode: bool) -> dict[str, Tensor]:
        """Returns text vectors by scenario: f32[U, D] of distinct items, or f32[N, D] of pairs.

        With `encode` they carry gradients into the encoder, and the cache takes them in.
        """
        if self.pairs is not None:
            return {name: self._pair_vectors(name, s) for name, s in batch.items()}
        places = np.concatenate([self.places(n, s.items) for n, s in batch.items()])
        vectors = self._encode(places) if encode else self._cached(places)
        sizes = [len(s.items) for s in batch.values()]
        return dict(zip(batch, vectors.split(sizes), strict=True))

    def of_items(self, name: str, items: Tensor) -> Tensor:
        """Returns f32[m, D]: cached vectors of a scenario's catalogue rows i64[m], as constants."""
        assert self.cache is not None
        return self.cache[items + self.bases[name]]

    def _cached(self, places: NDArray[np.int64]) -> Tensor:
        """Returns f32[U, D]: cached vectors, watched where their gradients are gathered."""
        assert self.cache is not None
        vectors = self.cache[torch.from_numpy(places).to(self.device)]
        if self.gathered is not None and torch.is_grad_enabled():
            return self.gathered.watch(places, vectors)
        return vectors

    def _encode(self, places: NDArray[np.int64]) -> Tensor:
        """Returns f32[U, D]: vectors with gradients; the cache takes their values in."""
        vectors = self.run(places)
        if self.cache is not None:
            self.cache[torch.from_numpy(places).to(self.device)] = vectors.detach()
        return vectors

    def _pair_vectors(self, name: str, samples: Samples) -> Tensor:
        """Returns f32[N, D]: the vector of each sample's history and candidate read together."""
        assert self.pairs is not None
        places = self.places(name, samples.items)
        history = samples.history.cpu().numpy()
        texts = self.pairs.texts(
            self.texts,
            places[samples.candidate.cpu().numpy()],
            np.where(history >= 0, places[history.clip(0)], -1),
        )
        rows = np.arange(len(history))
        return self._in_chunks(
            rows, [(c, texts.tokens[c.index]) for c in chunks(texts, rows, self.budget)]
        )

    def run(self, places: NDArray[np.int64]) -> Tensor:
        """Returns f32[U, D]: vectors of some items by the present weights."""
        parts = [(c, self.inputs_of(c)) for c in chunks(self.texts, places, self.budget)]
        return self._in_chunks(places, parts)

    def _in_chunks(self, rows: NDArray[np.int64], parts: list[tuple[Chunk, Tensor]]) -> Tensor:
        if not parts:
            return torch.zeros(0, self.encoder.width, device=self.device)
        vectors = [self._run_chunk(inputs, chunk.mask) for chunk, inputs in parts]
        back = np.argsort(np.concatenate([chunk.places for chunk, _ in parts]), kind="stable")
        assert len(back) == len(rows)
        return torch.cat(vectors)[torch.from_numpy(back).to(self.device)]

    def _run_chunk(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Returns f32[u, D] of a chunk.

        With `rerun` only its vectors are kept, and the backward pass, which by then has their
        gradients, runs it again: the gradient cache of 2101.06983 by torch's own checkpointing.
        """
        inputs, mask = inputs.to(self.device), mask.to(self.device)
        if self.encoder.options.rerun and torch.is_grad_enabled():
            vectors = checkpoint(self.encoder, inputs, mask, use_reentrant=False)
            assert isinstance(vectors, Tensor)
            return vectors.float()
        return self.encoder(inputs, mask).float()

    def inputs_of(self, chunk: Chunk) -> Tensor:
        """Returns the learning layers' input of a chunk: states of the frozen layers, or tokens."""
        if self.states is not None:
            return self.states[chunk.index.to(self.states.device)]
        return self.texts.tokens[chunk.index]

    def _share(self, rank: int, size: int, items: slice | Ints = slice(None)) -> Iterator[Chunk]:
        """Yields chunks of a rank's share of all items, or of some of them."""
        places = np.arange(self.num_items)[items]
        shared = places[np.argsort(self.texts.lengths[places], kind="stable")][rank::size]
        for chunk in chunks(self.texts, shared, self.budget):
            yield Chunk(shared[chunk.places], chunk.index, chunk.mask)

    def compute_frozen(self, folder: Path) -> None:
        """Load the output of the frozen layers from files that the runs of a node share.

        The files of a cut encoder hold the states of all tokens, those of a wholly frozen one the
        vectors of each catalogue. A file that is missing is computed. A resumed run needs this,
        too: its checkpoint holds vectors by the learning layers, not the states that they read.
        """
        encoder = self.encoder
        if encoder.lower is None or self.pairs is not None:
            return
        weights, precision = weights_hash(encoder.lower), self._precision()
        if encoder.is_frozen:
            words = (weights, precision, encoder.options.pooling)
            parts = [self._stored_vectors(folder, name, words) for name in self.bases]
            self.cache = torch.cat(parts).to(self.device)
            return
        key = texts_hash(self.texts, weights, precision)
        shape = (len(self.texts.tokens), encoder.width)
        states = open_rows(folder / f"{key}.f32", shape, self._write_states)
        if states.nbytes <= MAX_DEVICE_BYTES:
            states = states.to(self.device)
        self.states = states

    def _precision(self) -> str:
        """Returns the data type in which the encoder computes here: `fp32`, or that of autocast."""
        with self.autocast():
            if torch.is_autocast_enabled(self.device.type):
                return str(torch.get_autocast_dtype(self.device.type))
        return "fp32"

    def _stored_vectors(self, folder: Path, name: str, words: tuple[str, ...]) -> Tensor:
        """Returns f32[n, D]: vectors of a catalogue's items by a frozen encoder."""
        base, size = self.bases[name], self.sizes[name]
        offsets = self.texts.offsets[base : base + size + 1]
        texts = Texts(self.texts.tokens[offsets[0] : offsets[-1]], offsets - offsets[0])
        equal = texts.equal()

        def fill(vectors: Tensor, rank: int, shares: int) -> None:
            for places, encoded in self.encode_share(rank, shares, base + equal.first):
                rows, counts = equal.rows(places.cpu().numpy() - base)
                vectors[torch.from_numpy(rows)] = encoded.cpu().repeat_interleave(
                    torch.from_numpy(counts), 0
                )

        key = texts_hash(texts, "vectors", *words)
        return open_rows(folder / f"{key}.f32", (size, self.encoder.width), fill)

    @torch.no_grad()
    def _write_states(self, states: Tensor, rank: int, size: int) -> None:
        """Fill a share of the rows of `states`."""
        for chunk in self._share(rank, size):
            mask = chunk.mask
            tokens = self.texts.tokens[chunk.index].to(self.device)
            with self.autocast():
                padded = self.encoder.frozen_states(tokens, mask.to(self.device))
            states[chunk.index[mask]] = padded.cpu()[mask].float()

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the cached vector of every item with the present weights, each rank its share."""
        if self.pairs is not None or (self.cache is not None and self.encoder.is_frozen):
            return
        cache = torch.zeros(self.num_items, self.encoder.width, device=self.device)
        for places, vectors in self.encode_share(*world()):
            cache[places] = vectors
        self.cache = sum_over_ranks(cache)

    def state(self) -> dict[str, Any]:
        """Returns what beside the weights gives the present vectors; every rank must call this.

        Where each rank encodes its own rows the caches differ. Each rank continues with their mean,
        as it would after a restart.
        """
        if self.cache is None or self.encoder.is_frozen:
            return {}
        if self.gathered is not None:
            return {"cache": self.cache.cpu()} | self.gathered.state()
        self.cache = sum_over_ranks(self.cache) / world()[1]
        return {"cache": self.cache.cpu()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state`."""
        if not state:
            return
        self.cache = state["cache"].to(self.device)
        if self.gathered:
            self.gathered.restore(state)

    @torch.no_grad()
    def encode_share(
        self, rank: int, size: int, items: slice | Ints = slice(None)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields places i64[u] and vectors f32[u, D] of a share of all items, or of some."""
        was_training = self.encoder.training
        self.encoder.eval()
        for chunk in self._share(rank, size, items):
            with self.autocast():
                vectors = self._run_chunk(self.inputs_of(chunk), chunk.mask)
            yield torch.from_numpy(chunk.places).to(self.device), vectors
        self.encoder.train(was_training)
