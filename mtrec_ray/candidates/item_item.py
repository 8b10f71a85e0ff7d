"""Items that the same people took: cosine neighbours, and EASE.

Both read a matrix of who took what, and score an item by the user's own items.

Letters: U users, m items as input, n items as output, B users who ask.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, csr_matrix, vstack

from mtrec_ray.candidates.scores import is_among
from mtrec_ray.data.arrays import Float32s, Floats, Ints

NEIGHBOURS = 100  # of an item
SHRINKAGE = 10.0  # added to a cosine's denominator: few common users prove little
RIDGE = 200.0  # of EASE
EASE_ITEMS = 8192  # at most, the most frequent: its matrix is dense
ITEMS_PER_BLOCK = 2048
PAIRS_PER_BLOCK = 16_384


@dataclass(frozen=True)
class ItemKnn:
    """Each item's nearest neighbours by the cosine of who took them (Sarwar et al., 2001).

    Attributes:
        weights: f32[m, n], sparse.
    """

    weights: csr_array

    @classmethod
    def fit(cls, taken: csr_array) -> "ItemKnn":
        """Returns the neighbours of all columns of `taken` f32[U, m]."""
        columns = csc_array(taken)
        count = np.asarray(columns.sum(0)).ravel()
        parts = []
        for start in range(0, len(count), ITEMS_PER_BLOCK):
            block = np.arange(start, min(start + ITEMS_PER_BLOCK, len(count)))
            common = csr_array(columns[:, block].T @ columns)
            parts.append(nearest(cosines(common, block, count)))
        return cls(csr_array(vstack(parts).T))

    def only(self, output: slice) -> "ItemKnn":
        """Returns what scores some of the items."""
        return ItemKnn(csr_array(csc_array(self.weights)[:, output]))

    def scores(self, taken: csr_array) -> csr_array:
        """Returns f32[B, n] for what users took, f32[B, m]."""
        return csr_array(taken @ self.weights)

    def of_pairs(self, taken: csr_array, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M], the scores of pairs."""
        weights = csr_matrix(self.weights)  # whose single entries are read without a loop
        return sums_over_taken(taken, user, item, lambda own, other: entries(weights, own, other))


def cosines(common: csr_array, block: Ints, count: NDArray[np.float32]) -> csr_array:
    """Returns shrunk cosines f32[b, m] of items from common users, without the items themselves."""
    pairs = common.tocoo()
    row, column = pairs.coords
    norm = np.sqrt(count[block[row]] * count[column]) + SHRINKAGE
    values = np.where(block[row] == column, 0.0, pairs.data / norm).astype(np.float32)
    return csr_array((values, (row, column)), shape=common.shape)


def nearest(similarity: csr_array) -> csr_array:
    """Returns the largest `NEIGHBOURS` entries of each row."""
    pairs = similarity.tocoo()
    row, column = pairs.coords
    values = np.asarray(pairs.data, np.float32)
    order = np.lexsort([-values, row])
    starts = np.searchsorted(row[order], row[order])
    place = np.arange(len(row)) - starts
    kept = order[(place < NEIGHBOURS) & (values[order] > 0)]
    found = values[kept], (row[kept], column[kept])
    return csr_array(found, shape=similarity.shape)


@dataclass(frozen=True)
class Ease:
    """A linear model of each item from the user's other items (1905.03375), in closed form.

    Attributes:
        inputs, outputs: the items that it knows, of m and of n.
        weights: f32[inputs, outputs].
        num_items: n.
    """

    inputs: Ints
    outputs: Ints
    weights: Float32s
    num_items: int

    @classmethod
    def fit(cls, taken: csr_array) -> "Ease":
        """Returns the model of the most frequent columns of `taken` f32[U, m]."""
        columns = csc_array(taken)
        return cls.between(columns, most_frequent(np.diff(columns.indptr), EASE_ITEMS), RIDGE)

    @classmethod
    def between(cls, taken: csc_array, inputs: Ints, ridge: float) -> "Ease":
        """Returns the model of some columns of `taken` f32[U, m]."""
        num_items = len(taken.indptr) - 1
        return cls(inputs, inputs, ease_weights(taken[:, inputs], ridge), num_items)

    def only(self, output: slice) -> "Ease":
        """Returns what scores some of the items."""
        inner = (self.outputs >= output.start) & (self.outputs < output.stop)
        weights = np.ascontiguousarray(self.weights[:, inner])
        size = output.stop - output.start
        return Ease(self.inputs, self.outputs[inner] - output.start, weights, size)

    def scores(self, taken: csr_array) -> Float32s:
        """Returns f32[B, outputs] for what users took, f32[B, m]."""
        return np.asarray(csc_array(taken)[:, self.inputs] @ self.weights, np.float32)

    def of_pairs(self, taken: csr_array, user: Ints, item: Ints) -> Float32s:
        """Returns f32[M], the scores of pairs; 0 for items that it does not know."""
        known, found = is_among(self.outputs, item), np.zeros(len(item), np.float32)
        place = np.searchsorted(self.outputs, item[known])
        of_inputs = csr_array(csc_array(taken)[:, self.inputs])
        found[known] = sums_over_taken(
            of_inputs, user[known], place, lambda own, other: self.weights[own, other]
        )
        return found


def most_frequent(count: Ints | Floats, most: int) -> Ints:
    """Returns the places of the largest counts, sorted; none of those that are 0."""
    frequent = np.argsort(-count, kind="stable")[:most]
    return np.sort(frequent[count[frequent] > 0])


def sums_over_taken(
    taken: csr_array, user: Ints, item: Ints, weights: Callable[[Ints, Ints], Float32s]
) -> Float32s:
    """Returns f32[M]: for each pair the sum of weights from all that the user took to the item.

    `weights` gives f32[.] for items as input and as output; `taken` f32[B, m] multiplies them.
    """
    start, others = (np.asarray(part, np.int64) for part in (taken.indptr, taken.indices))
    found = np.zeros(len(item), np.float32)
    for first in range(0, len(item), PAIRS_PER_BLOCK):
        users, items = user[first : first + PAIRS_PER_BLOCK], item[first : first + PAIRS_PER_BLOCK]
        size = start[users + 1] - start[users]
        pair = np.repeat(np.arange(len(users)), size)
        place = np.arange(len(pair)) - np.repeat(np.cumsum(size) - size - start[users], size)
        values = weights(others[place], items[pair]) * taken.data[place]
        found[first : first + len(users)] = np.bincount(pair, values, len(users))
    return found


def entries(matrix: csr_matrix, row: Ints, column: Ints) -> Float32s:
    """Returns f32[M]: some entries of a sparse matrix."""
    if not len(row):
        return np.zeros(0, np.float32)
    return np.asarray(matrix[row, column], np.float32).ravel()


def ease_weights(taken: csc_array, ridge: float) -> Float32s:
    """Returns f32[m, m]: B of the paper, whose diagonal is 0."""
    gram = (taken.T @ taken).toarray().astype(np.float32)
    if not len(gram):
        return gram
    gram[np.diag_indices_from(gram)] += ridge
    from scipy.linalg import inv

    inverse = inv(gram, overwrite_a=True, check_finite=False)
    weights = -inverse / np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0
    return weights.astype(np.float32)
