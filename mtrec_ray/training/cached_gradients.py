"""Gradients at cached item vectors, added up over steps, and the encoder's step from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrec_ray.model.chunks import chunks
from mtrec_ray.training.collectives import gather_objects, sum_over_ranks, world

if TYPE_CHECKING:
    from mtrec_ray.training.item_vectors import ItemVectors


class CachedGradients:
    """Gradients that cached item vectors get over some steps, and the encoder's step from them.

    The layers above learn in every step from the cache. Their backward pass leaves gradients at the
    vectors, which are summed over steps; then one pass over the items that were met, shared among
    the ranks, backpropagates the sums into the encoder, however many samples there were. Cached
    vectors are at most that many steps older than the encoder's weights.

    Attributes:
        sums: f32[n, D], this rank's gradients, summed over steps; the mean over ranks counts.
        met: f32[n], 1 for items that this rank met.
        num_steps: how many steps are in the sums.
    """

    def __init__(self, vectors: "ItemVectors") -> None:
        self.vectors = vectors
        self.sums = torch.zeros(vectors.num_items, vectors.encoder.width, device=vectors.device)
        self.met = torch.zeros(vectors.num_items, device=vectors.device)
        self.num_steps = 0
        self._watched: list[tuple[Tensor, Tensor]] = []

    def state(self) -> dict[str, Any]:
        """Returns what every rank has gathered; every rank must call this."""
        met = self.met.nonzero().squeeze(1)
        parts = gather_objects((met.cpu(), self.sums[met].cpu()))
        return {
            "gathered_items": [items for items, _ in parts],
            "gathered_sums": [sums for _, sums in parts],
            "gathered_steps": self.num_steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state`: each rank by its own sums, another number of ranks by the mean.

        (The mean would be right for the same number, too, but would round differently.)
        """
        parts = list(zip(state["gathered_items"], state["gathered_sums"], strict=True))
        rank, size = world()
        shares = [parts[rank]] if size == len(parts) else parts
        for items, sums in shares:
            places = items.to(self.sums.device)
            self.sums.index_add_(0, places, sums.to(self.sums) / len(shares))
            self.met[places] = 1
        self.num_steps = state["gathered_steps"]

    def watch(self, places: NDArray[np.int64], vectors: Tensor) -> Tensor:
        """Returns the vectors as a leaf of the graph, whose gradient `collect` adds to the sums."""
        leaf = vectors.detach().requires_grad_()
        self._watched.append((torch.from_numpy(places).to(leaf.device), leaf))
        return leaf

    def is_finite(self) -> bool:
        """Returns whether the gradients that a step left at the watched vectors are finite."""
        return all(
            bool(torch.isfinite(leaf.grad.sum()))
            for _, leaf in self._watched
            if leaf.grad is not None
        )

    def forget(self) -> None:
        """Drop the gradients of the present step, which then never reach the encoder."""
        self._watched.clear()

    def collect(self) -> None:
        """Add the gradients that a step left at the watched vectors to the sums."""
        for places, leaf in self._watched:
            if leaf.grad is not None:
                self.sums.index_add_(0, places, leaf.grad)
                self.met[places] = 1
        self._watched.clear()
        self.num_steps += 1

    def backward(self) -> None:
        """Set the encoder's gradient, that of the mean loss of the steps since the last call.

        With `gather_items` only so many items with the longest gradients are encoded; the sums of
        the others are carried into the next call, as in gradient compression (1712.01887).
        """
        size = world()[1]
        met = sum_over_ranks(self.met).nonzero().squeeze(1)
        total = sum_over_ranks(self.sums[met])
        chosen = self._chosen(total)
        self._encode(met[chosen], total[chosen] / (size * self.num_steps))
        self.sums[met] = total.masked_fill(chosen.unsqueeze(1), 0) / size
        self.met[met[chosen]] = 0
        self.num_steps = 0
        for parameter in (p for p in self.vectors.encoder.parameters() if p.requires_grad):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            sum_over_ranks(parameter.grad)

    def _chosen(self, total: Tensor) -> Tensor:
        """Returns bool[m]: which met items are encoded, from their summed gradients f32[m, D]."""
        limit = self.vectors.encoder.options.gather_items
        if limit is None or limit >= len(total):
            return torch.ones(len(total), dtype=torch.bool, device=total.device)
        chosen = torch.zeros(len(total), dtype=torch.bool, device=total.device)
        chosen[total.norm(dim=1).topk(limit).indices] = True
        return chosen

    def _encode(self, places: Tensor, gradients: Tensor) -> None:
        """Encode this rank's share of the items, and backpropagate their gradients f32[m, D]."""
        vectors, (rank, size) = self.vectors, world()
        assert vectors.cache is not None
        items = places.cpu().numpy()
        shared = np.argsort(vectors.texts.lengths[items], kind="stable")[rank::size]
        fresh = torch.zeros_like(gradients)
        for chunk in chunks(vectors.texts, items[shared], vectors.budget):
            rows = torch.from_numpy(shared[chunk.places]).to(gradients.device)
            with vectors.autocast():
                encoded = vectors.encoder(
                    vectors.inputs_of(chunk).to(vectors.device), chunk.mask.to(vectors.device)
                ).float()
            encoded.backward(gradients[rows])
            fresh[rows] = encoded.detach()
        vectors.cache[places] = sum_over_ranks(fresh)
