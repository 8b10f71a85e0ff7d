"""Points of the simplex of loss weights: uniform from independent uniform numbers, and a lattice.

Letters: k scenarios; u [k] in (0, 1); lambda [k], weights with mean 1 (only their ratios count).

Weights lambda_i = -log u_i of independent uniform u_i are exponential numbers, which, divided by
their sum, are uniform on the simplex (Dirichlet(1, ..., 1)): every mix of scenarios is as likely as
any other, and no scenario is special. Independent uniform lambda_i are not: they crowd the middle,
and their corners are almost never met. The map can be inverted, so that a given point, such as the
user's own weights, can be the first one of a search.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

# u stays so far from 0 and 1, where the logarithm is infinite or the weight 0.
MARGIN = 1e-6


DIGITS = 6


def weights_of(u: Sequence[float]) -> list[float]:
    """Returns lambda [k] of u [k]: -log u_i, scaled to a mean of 1, to six digits."""
    raw = [-math.log(min(max(value, MARGIN), 1 - MARGIN)) for value in u]
    return scaled(raw)


def numbers_of(weights: Sequence[float]) -> list[float]:
    """Returns one u [k] with these weights, a weight of 0 being the least that there is."""
    return [min(max(math.exp(-w), MARGIN), 1 - MARGIN) for w in scaled(weights)]


def scaled(weights: Sequence[float]) -> list[float]:
    """Returns the same weights with a mean of 1, to six significant digits."""
    total = sum(weights)
    return [float(f"{w * len(weights) / total:.{DIGITS}g}") for w in weights]


def lattice(size: int, steps: int) -> Iterator[list[float]]:
    """Yields all lambda [size] in steps of 1 / `steps` of the sum, the corners included."""
    for cuts in itertools.combinations(range(steps + size - 1), size - 1):
        ends = [-1, *cuts, steps + size - 1]
        yield scaled([b - a - 1 for a, b in itertools.pairwise(ends)])
