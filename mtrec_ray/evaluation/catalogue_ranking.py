"""How good ranked lists are: recall and NDCG over the catalogue."""

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.prepared import Prepared


def main_task(prepared: Prepared, name: str, by: dict[str, float]) -> str | None:
    """Returns the binary task whose positives lists are measured by: the heaviest in `by`.

    The first binary task where `by` weighs none; None without a binary task.
    """
    facts = prepared.scenarios[name]
    binary = [t for t, kind in facts.kinds.items() if kind == "binary"]
    wanted = [t for t in sorted(by, key=lambda t: -by[t]) if t in binary and by[t] > 0]
    return (wanted or binary or [None])[0]


def ranking_metrics(
    best: NDArray[np.int64], positives: list[NDArray[np.int64]]
) -> dict[str, float]:
    """Returns recall and NDCG at k of the ranked items i64[B, k] (-1: none); means over users.

    recall: share of a user's positives among the k. NDCG (Jarvelin and Kekalainen, 2002): the sum
    of 1 / log2(1 + rank) over the hits, over its largest value.
    """
    k = best.shape[1]
    gains = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gains)
    recall, ndcg = [], []
    for ranked, wanted in zip(best, positives, strict=True):
        hits = np.isin(ranked, wanted)
        recall.append(hits.sum() / len(wanted))
        ndcg.append((hits * gains).sum() / ideal[min(len(wanted), k) - 1])
    return {"recall": float(np.mean(recall)), "ndcg": float(np.mean(ndcg))}


def top(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Returns i64[B, k]: the columns of each row's highest scores f64[B, n]; -1 for -inf."""
    k = min(k, scores.shape[1])
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.isfinite(np.take_along_axis(scores, best, 1)), best, -1)


def neighbours(vectors: NDArray[np.float32], history: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns f64[B, n]: cosines of all items with the mean of each history; 0 without one."""
    known = (history >= 0)[..., None]
    mean = (vectors[history.clip(0)] * known).sum(1) / np.maximum(known.sum(1), 1)
    return (mean @ vectors.T).astype(np.float64)
