"""Which scenarios pull the shared layers in one direction, and which against each other.

Each finished trial has told, at every validation, the cosine of the gradients of each two scenarios
at the first weight that all share (`training/step.py`). Above 0 a step for one scenario lowers the
loss of the other, below 0 it raises it (2001.06782, 2109.04617).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mtrec_ray.search.records import Trial

LEAST_TRIALS = 3  # of fewer nothing is said
LEAST_COSINE = 0.05  # a smaller one moves nothing, however sure it is


@dataclass(frozen=True)
class Affinity:
    """The mean cosine of two scenarios' gradients over trials, and its 95 % interval."""

    mean: float
    low: float
    high: float


def affinities(trials: Sequence[Trial]) -> dict[str, Affinity]:
    """Returns the affinity of each pair, by `first/second`; none of fewer than three trials."""
    told = [t.result["gradient_cosine"] for t in trials if t.result.get("gradient_cosine")]
    if len(told) < LEAST_TRIALS:
        return {}
    return {pair: mean_of([one[pair] for one in told if pair in one]) for pair in told[0]}


def mean_of(values: Sequence[float]) -> Affinity:
    """Returns the mean of at least one value, and twice its standard error to either side."""
    mean = float(np.mean(values))
    error = 2 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.inf
    return Affinity(mean, mean - error, mean + error)


def as_matrix(found: Mapping[str, Affinity], names: Sequence[str]) -> list[dict[str, str]]:
    """Returns a table: a row and a column for each scenario, with the mean cosines."""

    def cell(a: str, b: str) -> str:
        own = found.get(f"{a}/{b}") or found.get(f"{b}/{a}")
        return f"{own.mean:+.2f}" if own else ""

    return [{"scenario": a} | {b: cell(a, b) for b in names} for a in names]


def advice_of(found: Mapping[str, Affinity]) -> list[str]:
    """Returns lines about pairs that surely conflict or agree, the most certain first."""
    if not found:
        return []
    against = sorted(
        (a.mean, pair, a) for pair, a in found.items() if a.high < 0 and a.mean < -LEAST_COSINE
    )
    along = sorted(
        ((-a.mean, pair, a) for pair, a in found.items() if a.low > 0 and a.mean > LEAST_COSINE)
    )
    lines = []
    if against:
        told = "; ".join(pair_text(pair, own) for _, pair, own in against[:5])
        lines.append(f"scenarios whose gradients conflict at the shared layers: {told}")
    if along:
        told = "; ".join(pair_text(pair, own) for _, pair, own in along[:5])
        lines.append(f"scenarios that help each other there: {told}")
    if not lines:
        lines.append("no two scenarios surely conflict or help each other at the shared layers")
    return lines


def pair_text(pair: str, own: Affinity) -> str:
    """Returns `shop and news (-0.12 [-0.20, -0.04])`."""
    return f"{pair.replace('/', ' and ')} ({own.mean:+.2f} [{own.low:+.2f}, {own.high:+.2f}])"


def as_json(found: Mapping[str, Affinity]) -> dict[str, dict[str, float]]:
    """Returns the affinities as plain values."""
    return {pair: asdict(own) for pair, own in found.items()}
