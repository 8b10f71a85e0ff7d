"""The trade-off that trials show: Pareto front, hypervolume, and the choice of one point.

Letters: n trials, k scenarios. Scores are losses: 1 for a model that knows only the training mean,
lower is better.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Floats

REFERENCE = 1.0  # a scenario's score of the model that knows only the training means


def pareto_front(points: Floats) -> NDArray[np.bool_]:
    """Returns bool[n]: points [n, k] that no other dominates (nowhere worse, somewhere better)."""
    no_worse = (points[:, None, :] <= points[None, :, :]).all(-1)
    better = (points[:, None, :] < points[None, :, :]).any(-1)
    dominated: NDArray[np.bool_] = np.any(no_worse & better, axis=0)
    return np.logical_not(dominated)


def hypervolume(points: Floats, reference: Floats) -> float:
    """Returns the volume of what points [n, k] dominate below the reference [k].

    Exact, by slices along the last scenario (HSO, While et al. 2006): between two of its values the
    cut is the volume, in one dimension less, of all points that are below it. Dominated points are
    left out of each cut.
    """
    points = points[(points < reference).all(1)]
    points = points[pareto_front(points)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    if points.shape[1] == 2:  # the front falls: each point adds a box below the one before
        first, second = points[np.lexsort(points.T[::-1])].T
        return float(((reference[0] - first) * -np.diff(second, prepend=reference[1])).sum())
    points = points[np.argsort(points[:, -1], kind="stable")]
    depths = np.diff(np.append(points[:, -1], reference[-1]))
    volumes = (
        depth * hypervolume(points[: i + 1, :-1], reference[:-1])
        for i, depth in enumerate(depths)
        if depth > 0
    )
    return float(sum(volumes))


def worst_gains(points: Floats, alone: Floats) -> Floats:
    """Returns f64[n]: the least gain of points [n, k] over the single models' scores [k]."""
    return (1 - points / alone).min(1)


def preferred(points: Floats, preference: Sequence[float]) -> Floats:
    """Returns f64[n]: means of points [n, k], weighted by the preference [k]."""
    return np.average(points, axis=1, weights=preference)
