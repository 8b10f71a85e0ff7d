"""Distinct texts in chunks of near-equal length, cut by a token budget; and texts of pairs.

Letters: U distinct texts, L tokens of the longest text of a chunk, D width of the encoder,
N samples, H history items.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.columns import hash_ints


@dataclass(frozen=True)
class Texts:
    """The token ids of texts, one text after another, on the CPU.

    Attributes:
        tokens: i64[sum of lengths].
        offsets: i64[n + 1].
    """

    tokens: Tensor
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, catalogue: Catalogue) -> "Texts":
        """Returns the texts of a catalogue."""
        return cls(torch.from_numpy(catalogue.tokens.astype(np.int64)), catalogue.offsets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """i64[n]: tokens of each text."""
        return np.diff(self.offsets)

    def equal(self) -> "EqualTexts":
        """Returns which texts are equal, by hashes of their tokens."""
        numbers = self.tokens.numpy()
        place = np.arange(len(numbers)) - np.repeat(self.offsets[:-1], self.lengths)
        mixed = hash_ints(hash_ints(numbers, 0).view(np.int64) + place, 1)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        keys = sums[self.offsets[1:]] - sums[self.offsets[:-1]]
        _, first, number = np.unique(keys, return_index=True, return_inverse=True)
        return EqualTexts(first, number)


@dataclass(frozen=True)
class EqualTexts:
    """Groups of equal texts.

    Attributes:
        first: the first text of each group.
        number: i64[n], each text's group.
    """

    first: NDArray[np.int64]
    number: NDArray[np.int64]

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """i64[n]: the texts, group after group."""
        return np.argsort(self.number, kind="stable")

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each group starts in that order, and the end."""
        return np.searchsorted(self.number[self.order], np.arange(len(self.first) + 1))

    def rows(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns all texts that equal some, one group after another, and the groups' sizes."""
        groups = self.number[texts]
        sizes = self.starts[groups + 1] - self.starts[groups]
        shift = np.repeat(self.starts[groups] - np.cumsum(sizes) + sizes, sizes)
        return self.order[np.arange(sizes.sum()) + shift], sizes


@dataclass(frozen=True)
class Chunk:
    """Some texts of near-equal length.

    Attributes:
        places: i64[u], the positions of these texts among the requested ones.
        index: i64[u, L], positions in `Texts.tokens` (0 where padded).
        mask: bool[u, L], False where padded.
    """

    places: NDArray[np.int64]
    index: Tensor
    mask: Tensor


def chunks(texts: Texts, rows: NDArray[np.int64], token_budget: int) -> Iterator[Chunk]:
    """Yields the texts of `rows` in chunks of at most `token_budget` padded tokens, longest first.

    A chunk also ends before a text that is shorter than 0.9 of its longest: padding is never more
    than a tenth of a chunk, and under 5 % of all tokens.
    """
    lengths = np.maximum(texts.lengths[rows], 1)  # an empty text is one padded token
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        stop = min(start + max(token_budget // longest, 1), len(order))
        ordered = lengths[order[start:stop]]
        stop = start + int(np.searchsorted(-ordered, -0.9 * longest, side="right"))
        places = order[start:stop]
        yield _chunk(texts, rows, places, longest)
        start = stop


def _chunk(texts: Texts, rows: NDArray[np.int64], places: NDArray[np.int64], longest: int) -> Chunk:
    step = np.arange(longest)
    mask = step < texts.lengths[rows[places]][:, None]
    index = np.where(mask, texts.offsets[rows[places]][:, None] + step, 0)
    return Chunk(places, torch.from_numpy(index), torch.from_numpy(mask))


@dataclass(frozen=True)
class PairLayout:
    """History and candidate in one sequence: `prefix history suffix candidate suffix`.

    Attributes:
        prefix, suffix: special tokens that the tokenizer puts around a text.
        max_tokens: of a sequence. The candidate comes first, then the latest history items.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    max_tokens: int

    def texts(
        self, items: Texts, candidate: NDArray[np.int64], history: NDArray[np.int64]
    ) -> Texts:
        """Returns one sequence for each sample.

        `candidate` i64[N] and `history` i64[N, H] (latest first, -1 none) are rows of `items`.
        """
        num, before, after = len(candidate), len(self.prefix), len(self.suffix)
        end = len(items.tokens)
        tokens = torch.cat([items.tokens, torch.tensor([*self.prefix, *self.suffix])])
        start, length = items.offsets[:-1] + before, items.lengths - before - after
        length = np.maximum(length, 0)
        room = self.max_tokens - before - 2 * after
        candidate_tokens = np.minimum(length[candidate], room)[:, None]
        wanted = np.where(history >= 0, length[history.clip(0)], 0)
        left = room - candidate_tokens - (np.cumsum(wanted, 1) - wanted)
        history_tokens = np.clip(left, 0, wanted)
        full = np.full((num, 1), 1)
        starts = [end * full, start[history.clip(0)], (end + before) * full]
        starts += [start[candidate][:, None], (end + before) * full]
        lengths = [before * full, history_tokens, after * full, candidate_tokens, after * full]
        return _joined(tokens, np.concatenate(starts, 1), np.concatenate(lengths, 1))


def _joined(tokens: Tensor, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Texts:
    """Returns N texts, each of which joins S segments of `tokens`.

    `starts` and `lengths` are i64[N, S].
    """
    flat = lengths.ravel()
    ends = np.cumsum(flat)
    index = np.arange(ends[-1]) + np.repeat(starts.ravel() - (ends - flat), flat)
    offsets = np.concatenate([[0], np.cumsum(lengths.sum(1))])
    return Texts(tokens[torch.from_numpy(index)], offsets)
