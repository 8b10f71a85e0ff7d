"""The nearest items by inner product: exact for a small catalogue, by a graph for a large one.

The graphs are HNSW (Malkov and Yashunin, 1603.09320) of usearch. A catalogue is cut into shards
with a graph each, which are built side by side and searched one after another. What a graph finds
is scored again in full precision, so that scores are exact and shards can be merged.

Letters: n items of the catalogue, m of a shard, E numbers of a vector, B queries, k items found.
"""

import hashlib
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
from usearch.index import BatchMatches, Index, Matches

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.project.base import ProjectError

RECORD = "index.json"
SCORES_PER_BLOCK = 2**22  # of the exact product, at a time
VECTORS_PER_BLOCK = 2**15  # that are scored again, at a time
SAMPLE = 1000  # queries by which recall is measured, at most


@dataclass(frozen=True)
class IndexOptions:
    """How items are found.

    A graph loses the items of a cluster that is larger than its number of neighbours: of 100,000
    clustered vectors, graphs of 50,000 find 0.99 of the 100 best, one graph 0.91.

    Attributes:
        exact_up_to: items up to which all are scored; above, graphs are searched.
        shard_items: items of a graph, at most.
        dtype: of the vectors in a graph.
        connectivity, expansion_add: neighbours of an item in a graph, and how many are looked at
            for them.
        expansion_search: items that a search in a graph looks at, at least.
        threads: of building and searching; 0: one a core.
    """

    exact_up_to: int = 200_000
    shard_items: int = 50_000
    dtype: str = "bf16"
    connectivity: int = 32
    expansion_add: int = 128
    expansion_search: int = 200
    threads: int = 1


@dataclass(frozen=True)
class MadeFrom:
    """What an index was built from.

    Attributes:
        model: fingerprint of the model that made the vectors.
        num_items: n.
        width: E.
        allowed: hash of the items that may be found.
    """

    model: str
    num_items: int
    width: int
    allowed: str

    @classmethod
    def of(cls, model: str, num_items: int, width: int, allowed: Bools | None = None) -> "MadeFrom":
        """Returns what an index of a model's vectors f32[n, E] is built from."""
        mask = np.ones(num_items, bool) if allowed is None else allowed
        digest = hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
        return cls(model, num_items, width, digest[:16])


@dataclass(frozen=True)
class Shard:
    """Some items of an index, as it travels between processes.

    Attributes:
        items: i64[m], their numbers.
        vectors: f32[m, E].
        graph: a graph over the places 0 to m - 1 as usearch writes it; empty: all are scored.
    """

    items: Ints
    vectors: Float32s
    graph: bytes = field(repr=False)

    @cached_property
    def index(self) -> Index:
        """The graph, read once."""
        index = Index.restore(self.graph)
        assert index is not None
        return index

    def __getstate__(self) -> tuple[Ints, Float32s, bytes]:
        """A graph that was read stays behind."""
        return self.items, self.vectors, self.graph

    def __setstate__(self, state: tuple[Ints, Float32s, bytes]) -> None:
        """Takes the fields as `__getstate__` gives them."""
        for name, value in zip(("items", "vectors", "graph"), state, strict=True):
            object.__setattr__(self, name, value)

    def best(self, queries: Float32s, k: int, options: IndexOptions) -> tuple[Ints, Float32s]:
        """Returns places i64[B, k] (-1: none) and scores f32[B, k], those of the best first."""
        if not self.graph:
            return exact_best(queries, self.vectors, k)
        self.index.expansion_search = max(options.expansion_search, k)
        count = min(k, len(self.items))
        found = self.index.search(queries, count, threads=options.threads)
        places = places_of(found, len(queries), count)
        return best_of(places, pair_scores(queries, self.vectors, places), k)


def build_shard(
    vectors: Float32s,
    start: int = 0,
    allowed: Bools | None = None,
    options: IndexOptions | None = None,
    *,
    exact: bool = False,
) -> Shard:
    """Returns the shard of a slice of a catalogue, vectors f32[m, E] of the items from `start` on.

    Items that `allowed` bool[m] does not mark are left out. An exact shard has no graph.
    """
    options = options or IndexOptions()
    kept = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    own = np.ascontiguousarray(vectors[kept], np.float32)
    graph = b"" if exact or not len(own) else build_graph(own, options)
    return Shard(kept + start, own, graph)


def build_graph(vectors: Float32s, options: IndexOptions) -> bytes:
    """Returns a graph over vectors f32[m, E] as usearch writes it."""
    index = Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype=options.dtype,
        connectivity=options.connectivity,
        expansion_add=options.expansion_add,
        enable_key_lookups=False,
    )
    index.add(np.arange(len(vectors)), vectors, threads=options.threads)
    graph = index.save()
    assert graph is not None
    return bytes(graph)


def slices(num_items: int, size: int) -> Iterator[slice]:
    """Yields a catalogue's slices of at most `size` items, of about equal length."""
    number = max(-(-num_items // size), 1)
    edges = [num_items * i // number for i in range(number + 1)]
    yield from (slice(a, b) for a, b in itertools.pairwise(edges))


@dataclass(frozen=True)
class VectorIndex:
    """Items of a catalogue, of which the best for a query are found."""

    shards: Sequence[Shard]
    made_from: MadeFrom
    options: IndexOptions = IndexOptions()

    @classmethod
    def build(
        cls,
        vectors: Float32s,
        allowed: Bools | None = None,
        options: IndexOptions | None = None,
        model: str = "",
    ) -> "VectorIndex":
        """Returns the index of vectors f32[n, E], of the items that `allowed` bool[n] marks."""
        options = options or IndexOptions()
        mask = np.ones(len(vectors), bool) if allowed is None else allowed
        exact = int(mask.sum()) <= options.exact_up_to
        size = max(len(vectors), 1) if exact else options.shard_items
        shards = [
            build_shard(vectors[part], part.start, mask[part], options, exact=exact)
            for part in slices(len(vectors), size)
        ]
        return cls(shards, MadeFrom.of(model, *vectors.shape, allowed=mask), options)

    def search(self, queries: Float32s, k: int) -> tuple[Ints, Float32s]:
        """Returns items i64[B, k] and inner products f32[B, k] of queries f32[B, E], best first.

        Where there are fewer than k, the item is -1 and the score minus infinity.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        found = [(shard, *shard.best(queries, k, self.options)) for shard in self.shards]
        items = [np.where(p < 0, -1, np.append(s.items, -1)[p]) for s, p, _ in found]
        return best_of(np.concatenate(items, 1), np.concatenate([s for *_, s in found], 1), k)

    def recall(self, queries: Float32s, k: int, seed: int = 0) -> float:
        """Returns the share of the exact k best that are found, over a sample of queries f32[B, E].

        1 without an item to find.
        """
        chosen = np.random.default_rng(seed).permutation(len(queries))[:SAMPLE]
        sample = np.ascontiguousarray(queries[chosen], np.float32)
        found, _ = self.search(sample, k)
        every = VectorIndex([Shard(s.items, s.vectors, b"") for s in self.shards], self.made_from)
        wanted, _ = every.search(sample, k)
        hits = [np.isin(w[w >= 0], f).sum() for w, f in zip(wanted, found, strict=True)]
        return float(np.sum(hits) / max((wanted >= 0).sum(), 1)) if (wanted >= 0).any() else 1.0

    def save(self, folder: str) -> None:
        """Write the index in place of whatever is in the folder."""
        storage.remove_folder(folder)
        for number, shard in enumerate(self.shards):
            write_shard(folder, number, shard)
        write_record(folder, len(self.shards), self.made_from, self.options)

    @classmethod
    def load(cls, folder: str, made_from: MadeFrom) -> "VectorIndex":
        """Returns the index of a folder.

        Raises:
            ProjectError: there is none, or it was built from something else.
        """
        path = storage.join(folder, RECORD)
        if not storage.exists(path):
            raise ProjectError([f"index of items: found none in {folder}; allowed: build it first"])
        record = storage.read_json(path)
        check_made_from(record["made_from"], made_from, folder)
        shards = [read_shard(folder, number) for number in range(record["shards"])]
        return cls(shards, made_from, IndexOptions(**record["options"]))


def check_made_from(found: dict[str, object], wanted: MadeFrom, folder: str) -> None:
    """Refuse an index of another model, or of other items, by the first field that differs.

    Raises:
        ProjectError: the field, with both values.
    """
    for name, value in asdict(wanted).items():
        if found.get(name) != value:
            raise ProjectError(
                [
                    f"index of items: found one of {name} {found.get(name)!r} in {folder}; "
                    f"allowed: of {name} {value!r}, build it again"
                ]
            )


def array_bytes(values: np.ndarray) -> bytes:
    """Returns an array as a file of numpy."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def write_shard(folder: str, number: int, shard: Shard) -> None:
    """Write a shard below the folder of an index; any process may write any of them."""
    storage.write_bytes(shard_file(folder, number, "items.npy"), array_bytes(shard.items))
    storage.write_bytes(shard_file(folder, number, "vectors.npy"), array_bytes(shard.vectors))
    storage.write_bytes(shard_file(folder, number, "graph"), shard.graph)


def write_record(folder: str, shards: int, made_from: MadeFrom, options: IndexOptions) -> None:
    """Write what an index is; it comes last, so that a folder with a record is whole."""
    record = {"made_from": asdict(made_from), "options": asdict(options), "shards": shards}
    storage.write_json(storage.join(folder, RECORD), record)


def shard_file(folder: str, number: int, end: str) -> str:
    """Returns the path of a file of a shard."""
    return storage.join(folder, f"shard-{number:05}.{end}")


def read_shard(folder: str, number: int) -> Shard:
    """Returns a shard that `write_shard` wrote."""
    ends = ("items.npy", "vectors.npy", "graph")
    parts = [storage.read_bytes(shard_file(folder, number, end)) for end in ends]
    items, vectors = (np.load(io.BytesIO(part), allow_pickle=False) for part in parts[:2])
    return Shard(items, vectors, parts[2])


def places_of(found: Matches | BatchMatches, num_queries: int, count: int) -> Ints:
    """Returns i64[B, count]: what usearch found, -1 where it found fewer."""
    places = np.full((num_queries, count), -1)
    if isinstance(found, Matches):  # of one query
        places[0, : len(found.keys)] = found.keys
        return places
    there = np.arange(count) < np.asarray(found.counts)[:, None]
    return np.where(there, found.keys.astype(np.int64), -1)


def pair_scores(queries: Float32s, vectors: Float32s, places: Ints) -> Float32s:
    """Returns f32[B, c]: inner products of queries with their own places i64[B, c]; -inf for -1."""
    scores = np.full(places.shape, -np.inf, np.float32)
    step = max(VECTORS_PER_BLOCK // max(places.shape[1], 1), 1)
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        own = vectors[np.maximum(places[block], 0)]
        scores[block] = (own @ queries[block, :, None])[..., 0]
    return np.where(places < 0, np.float32(-np.inf), scores)


def exact_best(queries: Float32s, vectors: Float32s, k: int) -> tuple[Ints, Float32s]:
    """Returns places i64[B, k] (-1: none) and scores f32[B, k] of the best of vectors f32[m, E].

    A block of queries is scored with a block of vectors at a time.
    """
    rows = 256
    found = [exact_block(queries[a : a + rows], vectors, k) for a in range(0, len(queries), rows)]
    if not found:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    places, scores = (np.concatenate(part) for part in zip(*found, strict=True))
    return places, scores


def exact_block(queries: Float32s, vectors: Float32s, k: int) -> tuple[Ints, Float32s]:
    """Returns what `exact_best` does, of few queries."""
    step = max(SCORES_PER_BLOCK // max(len(queries), 1), k)
    places = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(vectors), step):
        block = queries @ vectors[start : start + step].T
        numbers = np.arange(start, start + block.shape[1])
        own, values = best_of(np.broadcast_to(numbers, block.shape), block, k)
        places, scores = best_of(
            np.concatenate([places, own], 1), np.concatenate([scores, values], 1), k
        )
    return places, scores


def best_of(items: Ints, scores: Float32s, k: int) -> tuple[Ints, Float32s]:
    """Returns the k best of items i64[B, c] and scores f32[B, c], best first; padded with -1."""
    if scores.shape[1] > k:
        kept = np.argpartition(scores, scores.shape[1] - k, 1)[:, -k:]
        items, scores = np.take_along_axis(items, kept, 1), np.take_along_axis(scores, kept, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    items, scores = np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)
    short = ((0, 0), (0, k - scores.shape[1]))
    items = np.pad(items, short, constant_values=-1)
    return items.astype(np.int64), np.pad(scores, short, constant_values=-np.inf)
