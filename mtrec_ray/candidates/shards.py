"""Shards of an index: slices of a catalogue, which any process builds and writes.

The vectors of a shard lie in inverted lists, whose centres the shards can share; or all are scored.

Letters: m items of a shard, E numbers of a vector, L lists, B queries, k found.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mtrec_ray.candidates import inverted_lists
from mtrec_ray.candidates.exact_product import exact_best
from mtrec_ray.candidates.inverted_lists import Searched
from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools, Float32s, Int32s, Ints

PARTS = ("items", "vectors", "centres", "lists")  # of a shard


@dataclass(frozen=True)
class IndexOptions:
    """How items are found.

    Attributes:
        exact_up_to: items up to which all are scored; above, a few lists.
        shard_items: items of a shard, at most; a search takes longer in many small ones.
        recall: share of the exact 100 best that a search must find on average.
        threads: of building and of searching lists; 0: one a core. With more than one, a process
            that is forked after a search hangs in its own.
    """

    exact_up_to: int = 200_000
    shard_items: int = 1_000_000
    recall: float = 0.98
    threads: int = 1


@dataclass(frozen=True)
class Shard:
    """Some items of an index, as it travels between processes.

    Attributes:
        items: i64[m], their numbers.
        vectors: f32[m, E].
        centres: f32[L, E] of the lists; without any, all vectors are scored.
        lists: i32[m], the list of each vector.
    """

    items: Ints
    vectors: Float32s
    centres: Float32s
    lists: Int32s

    @cached_property
    def index(self) -> Searched:
        """The lists, filled once."""
        return inverted_lists.filled(self.vectors, self.centres, self.lists.astype(np.int64))

    def __getstate__(self) -> list[np.ndarray]:
        """Lists that were filled stay behind."""
        return [getattr(self, name) for name in PARTS]

    def __setstate__(self, state: list[np.ndarray]) -> None:
        """Takes the fields as `__getstate__` gives them."""
        for name, value in zip(PARTS, state, strict=True):
            object.__setattr__(self, name, value)

    def without_lists(self) -> "Shard":
        """Returns the shard of which all vectors are scored."""
        return Shard(self.items, self.vectors, self.centres[:0], self.lists)

    def best(self, queries: Float32s, k: int, probes: int) -> tuple[Ints, Float32s]:
        """Returns items i64[B, k] (-1: none) and scores f32[B, k], those of the best first."""
        places, scores = self.best_places(queries, k, probes)
        items = np.full(places.shape, -1)
        items[places >= 0] = self.items[places[places >= 0]]
        return items, scores

    def best_places(self, queries: Float32s, k: int, probes: int) -> tuple[Ints, Float32s]:
        """Returns what `best` does, with places from 0 to m - 1 in place of items."""
        if not len(self.centres):
            return exact_best(queries, self.vectors, k)
        probes = min(max(probes, 1), len(self.centres))
        return inverted_lists.best_in_lists(self.index, queries, k, probes)


def build_shard(
    vectors: Float32s,
    start: int = 0,
    allowed: Bools | None = None,
    options: IndexOptions | None = None,
    *,
    exact: bool = False,
    centres: Float32s | None = None,
) -> Shard:
    """Returns the shard of a slice of a catalogue, vectors f32[m, E] of the items from `start` on.

    Items that `allowed` bool[m] does not mark are left out. An exact shard has no lists. Centres
    f32[L, E] are those that `shared_centres` gives; without them the shard trains its own.
    """
    options = options or IndexOptions()
    kept = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    own = np.ascontiguousarray(vectors[kept], np.float32)
    if exact or not len(own):
        return Shard(kept + start, own, own[:0], np.zeros(len(own), np.int32))
    return in_lists(kept + start, own, centres, options)


def in_lists(
    items: Ints, vectors: Float32s, centres: Float32s | None, options: IndexOptions
) -> Shard:
    """Returns the shard of items i64[m] whose vectors f32[m, E] lie in lists."""
    if centres is None:
        centres = shared_centres(vectors, len(vectors), options)
    with inverted_lists.threads(options.threads):
        lists = inverted_lists.lists_of(vectors, centres)
    return Shard(items, vectors, centres, lists.astype(np.int32))


def shared_centres(sample: Float32s, shard_items: int, options: IndexOptions) -> Float32s:
    """Returns centres f32[L, E] for shards of so many items, by a sample f32[m, E] of them all."""
    number = inverted_lists.num_lists(min(shard_items, len(sample)))
    with inverted_lists.threads(options.threads):
        return inverted_lists.train_centres(sample, number)


def slices(num_items: int, size: int) -> Iterator[slice]:
    """Yields a catalogue's slices of at most `size` items, of about equal length."""
    number = max(-(-num_items // size), 1)
    edges = [num_items * i // number for i in range(number + 1)]
    yield from (slice(a, b) for a, b in itertools.pairwise(edges))


def array_bytes(values: np.ndarray) -> bytes:
    """Returns an array as a file of numpy."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def write_shard(folder: str, number: int, shard: Shard) -> None:
    """Write a shard below the folder of an index; any process may write any of them."""
    for name in PARTS:
        storage.write_bytes(shard_file(folder, number, name), array_bytes(getattr(shard, name)))


def shard_file(folder: str, number: int, name: str) -> str:
    """Returns the path of a part of a shard."""
    return storage.join(folder, f"shard-{number:05}.{name}.npy")


def read_shard(folder: str, number: int) -> Shard:
    """Returns a shard that `write_shard` wrote."""
    parts = [storage.read_bytes(shard_file(folder, number, name)) for name in PARTS]
    return Shard(*(np.load(io.BytesIO(part), allow_pickle=False) for part in parts))
