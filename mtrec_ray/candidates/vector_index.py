"""The nearest items by inner product: exact for a small catalogue, in lists for a large one.

A catalogue is cut into shards, which are built side by side and searched one after another. The
vectors of a shard lie in inverted lists, whose centres the shards can share. How many lists a
search looks into is chosen by the measured recall.

Letters: n items of the catalogue, m of a shard, E numbers of a vector, L lists, B queries, k items
found.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from mtrec_ray.candidates import inverted_lists
from mtrec_ray.candidates.exact_product import best_of
from mtrec_ray.candidates.shards import (
    IndexOptions,
    Shard,
    build_shard,
    read_shard,
    shared_centres,
    slices,
    write_shard,
)
from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.project.base import ProjectError

RECORD = "index.json"
SAMPLE = 1000  # queries by which recall is measured, at most
SAME_SCORE = 1e-5  # two inner products differ by no more: rounding
TRIALS, TRIAL_K = 250, 100  # queries by which the number of lists is chosen, and items of each
FIRST_PROBES = 8
NOISE = 0.1  # of a query that is made from an item, in standard deviations of the vectors


@dataclass(frozen=True)
class Measured:
    """What a search looks into, and what it found of a sample.

    Attributes:
        probes: lists of each shard that are searched; 0: there are no lists.
        recall: share of the exact 100 best that are found so; None: not measured.
    """

    probes: int = FIRST_PROBES
    recall: float | None = None


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
class VectorIndex:
    """Items of a catalogue, of which the best for a query are found."""

    shards: Sequence[Shard]
    made_from: MadeFrom
    options: IndexOptions = field(default_factory=IndexOptions)
    measured: Measured = Measured()

    @classmethod
    def build(
        cls,
        vectors: Float32s,
        allowed: Bools | None = None,
        options: IndexOptions | None = None,
        model: str = "",
        queries: Float32s | None = None,
    ) -> "VectorIndex":
        """Returns the index of vectors f32[n, E], of the items that `allowed` bool[n] marks.

        Its recall is measured on queries f32[B, E]; without them, on items with a little noise.
        """
        options = options or IndexOptions()
        mask = np.ones(len(vectors), bool) if allowed is None else allowed
        made_from = MadeFrom.of(model, *vectors.shape, allowed=mask)
        return cls(build_shards(vectors, mask, options), made_from, options).measure(queries)

    def measure(self, queries: Float32s | None = None) -> "VectorIndex":
        """Returns the index that searches as few lists as `options.recall` allows."""
        most = max((len(shard.centres) for shard in self.shards), default=0)
        if not most:
            return replace(self, measured=Measured(0, 1.0))
        if queries is None or not len(queries):
            queries = trial_queries(self.shards)
        sample = sampled(queries, TRIALS)
        _, wanted = self.exact().search(sample, TRIAL_K)
        measured = Measured()
        for probes in doubled(most):
            index = replace(self, measured=Measured(probes))
            share = share_as_good(wanted, index.search(sample, TRIAL_K)[1])
            measured = Measured(probes, share)
            if share >= self.options.recall:
                break
        return replace(self, measured=measured)

    def exact(self) -> "VectorIndex":
        """Returns the index that scores all items."""
        shards = [shard.without_lists() for shard in self.shards]
        return VectorIndex(shards, self.made_from, self.options, Measured(0, 1.0))

    def search(self, queries: Float32s, k: int) -> tuple[Ints, Float32s]:
        """Returns items i64[B, k] and inner products f32[B, k] of queries f32[B, E], best first.

        Where there are fewer than k, the item is -1 and the score minus infinity.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        with inverted_lists.threads(self.options.threads):
            found = [shard.best(queries, k, self.measured.probes) for shard in self.shards]
        items, scores = (np.concatenate(part, 1) for part in zip(*found, strict=True))
        return best_of(items, scores, k)

    def recall(self, queries: Float32s, k: int, seed: int = 0) -> float:
        """Returns the share of the exact k best that are found, over a sample of queries f32[B, E].

        An item that is as near stands for another. 1 without an item to find.
        """
        sample = sampled(queries, SAMPLE, seed)
        return share_as_good(self.exact().search(sample, k)[1], self.search(sample, k)[1])

    def save(self, folder: str) -> None:
        """Write the index in place of whatever is in the folder."""
        storage.remove_folder(folder)
        for number, shard in enumerate(self.shards):
            write_shard(folder, number, shard)
        self.write_record(folder)

    def write_record(self, folder: str) -> None:
        """Write what the index is; it comes last, so that a folder with a record is whole."""
        record = {"shards": len(self.shards)}
        record |= {n: asdict(getattr(self, n)) for n in ("made_from", "options", "measured")}
        storage.write_json(storage.join(folder, RECORD), record)

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
        options, measured = IndexOptions(**record["options"]), Measured(**record["measured"])
        return cls(shards, made_from, options, measured)


def build_shards(vectors: Float32s, allowed: Bools, options: IndexOptions) -> list[Shard]:
    """Returns the shards of vectors f32[n, E], of the items that `allowed` bool[n] marks."""
    kept = np.flatnonzero(allowed)
    exact = len(kept) <= options.exact_up_to
    parts = list(slices(len(vectors), max(len(vectors), 1) if exact else options.shard_items))
    centres = None
    if not exact and len(kept):
        most = inverted_lists.POINTS_PER_LIST * inverted_lists.num_lists(options.shard_items)
        sample = vectors[np.sort(np.random.default_rng(0).permutation(kept)[:most])]
        centres = shared_centres(sample, -(-len(kept) // len(parts)), options)
    return [
        build_shard(vectors[p], p.start, allowed[p], options, exact=exact, centres=centres)
        for p in parts
    ]


def doubled(most: int) -> Iterator[int]:
    """Yields numbers of lists to look into, each twice the one before, up to all."""
    number = FIRST_PROBES
    while number < most:
        yield number
        number *= 2
    yield most


def sampled(queries: Float32s, most: int, seed: int = 0) -> Float32s:
    """Returns at most so many of queries f32[B, E], by chance."""
    chosen = np.random.default_rng(seed).permutation(len(queries))[:most]
    return np.ascontiguousarray(queries[chosen], np.float32)


def trial_queries(shards: Sequence[Shard]) -> Float32s:
    """Returns queries f32[B, E]: items of all shards by chance, with a little noise."""
    ends = np.cumsum([len(shard.items) for shard in shards])
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, ends[-1], TRIALS)
    owners = np.searchsorted(ends, chosen, side="right")
    rows = [shards[s].vectors[c - ends[s]] for s, c in zip(owners, chosen, strict=True)]
    near = np.stack(rows)
    noise = NOISE * near.std(0) * rng.normal(size=near.shape)
    return (near + noise).astype(np.float32)


def share_found(wanted: Ints, found: Ints) -> float:
    """Returns the share of items i64[B, k] (-1: none) that are found; 1 if none are wanted."""
    hits = [np.isin(w[w >= 0], f).sum() for w, f in zip(wanted, found, strict=True)]
    number = int((wanted >= 0).sum())
    return float(np.sum(hits)) / number if number else 1.0


def share_as_good(wanted: Float32s, found: Float32s) -> float:
    """Returns the share of the k best that are found, by scores f32[B, k] (minus infinity: none).

    What is found counts where it is no worse than the last of the best. Of items with equal texts
    any is as good as another: a search that named items would have to look into all lists for those
    that chance put among the k best.
    """
    exists = np.isfinite(wanted)
    last = np.where(exists, wanted, np.inf).min(1, initial=np.inf, keepdims=True)
    number = int(exists.sum())
    return float((found >= last - SAME_SCORE).sum()) / number if number else 1.0


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


def write_record(
    folder: str,
    shards: int,
    made_from: MadeFrom,
    options: IndexOptions,
    queries: Float32s | None = None,
) -> VectorIndex:
    """Measure the shards that were written, on queries f32[B, E] if given, and write the record."""
    parts = [read_shard(folder, number) for number in range(shards)]
    index = VectorIndex(parts, made_from, options).measure(queries)
    index.write_record(folder)
    return index
