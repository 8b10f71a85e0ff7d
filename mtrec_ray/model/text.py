"""Distinct texts in chunks of near-equal length, cut by a token budget.

Letters: U distinct texts, L tokens of the longest text of a chunk, D width of the encoder.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrec_ray.data.catalogue import Catalogue


@dataclass(frozen=True)
class Texts:
    """Texts laid one after another, on the CPU.

    Attributes:
        tokens: i64[sum of lengths].
        offsets: i64[n + 1].
    """

    tokens: Tensor
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, catalogue: Catalogue) -> "Texts":
        """The texts of a catalogue."""
        return cls(torch.from_numpy(catalogue.tokens.astype(np.int64)), catalogue.offsets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """i64[n]: tokens of each text."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Chunk:
    """Some texts of near-equal length.

    Attributes:
        places: i64[u], which of the asked texts these are.
        index: i64[u, L], positions in `Texts.tokens` (0 where padded).
        mask: bool[u, L], False where padded.
    """

    places: NDArray[np.int64]
    index: Tensor
    mask: Tensor


def chunks(texts: Texts, rows: NDArray[np.int64], token_budget: int) -> Iterator[Chunk]:
    """The texts of `rows` in chunks of at most `token_budget` padded tokens, longest first.

    A chunk ends where its next text is shorter than 3/4 of its longest, too: padding is never
    more than a quarter of a chunk, and mostly under 5 %.
    """
    lengths = np.maximum(texts.lengths[rows], 1)  # an empty text takes a padded place
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        stop = min(start + max(token_budget // longest, 1), len(order))
        ordered = lengths[order[start:stop]]
        stop = start + int(np.searchsorted(-ordered, -0.75 * longest, side="right"))
        places = order[start:stop]
        yield _chunk(texts, rows, places, longest)
        start = stop


def _chunk(texts: Texts, rows: NDArray[np.int64], places: NDArray[np.int64], longest: int) -> Chunk:
    step = np.arange(longest)
    mask = step < texts.lengths[rows[places]][:, None]
    index = np.where(mask, texts.offsets[rows[places]][:, None] + step, 0)
    return Chunk(places, torch.from_numpy(index), torch.from_numpy(mask))
