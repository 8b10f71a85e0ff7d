"""An index of vectors with many numbers: it searches their main components.

Letters: n items, D numbers of a vector, E main components, B queries, k items found.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.candidates.shards import IndexOptions
from mtrec_ray.candidates.vector_index import VectorIndex
from mtrec_ray.data.arrays import Bools, Float32s, Ints

COMPONENTS = 64
EXACT_UP_TO = 50_000  # items that are all scored; above, an index searches them
SAMPLE = 50_000  # vectors by which the components are found


@dataclass(frozen=True)
class SearchIndex:
    """The items that may be found, by the E components f32[D, E] along which they differ most."""

    index: VectorIndex
    components: Float32s | None

    @classmethod
    def of(
        cls, vectors: Float32s, allowed: Bools | None = None, options: IndexOptions | None = None
    ) -> "SearchIndex | None":
        """Returns the index of items f32[n, D]; None for a small catalogue, whose scores are exact.

        `allowed` bool[n]: the items that may be found; by default all.
        """
        options = options or IndexOptions(exact_up_to=EXACT_UP_TO)
        if len(vectors) <= options.exact_up_to:
            return None
        components = main_components(vectors) if vectors.shape[1] > COMPONENTS else None
        own = vectors if components is None else vectors @ components
        return cls(VectorIndex.build(own, allowed, options), components)

    def search(self, queries: Float32s, k: int) -> tuple[Ints, Float32s]:
        """Returns items i64[B, k] (-1: none) and scores f32[B, k] of queries f32[B, D]."""
        own = queries if self.components is None else queries @ self.components
        return self.index.search(own, k)


def main_components(vectors: Float32s) -> Float32s:
    """Returns f32[D, E]: the first eigenvectors of the vectors' second moments."""
    chosen = np.random.default_rng(0).permutation(len(vectors))[:SAMPLE]
    sample = vectors[np.sort(chosen)]
    _, found = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(found[:, -COMPONENTS:], np.float32)
