"""How good ranked lists are: for each user, and as a whole.

Letters: B users, k places of a list, n items.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Floats, Ints
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.evaluation.bootstrap import Interval, evaluate_resamples, interval

POPULAR_SHARE = 0.1  # of the items: the popular ones, where lists are looked at for their bias


def main_task(prepared: Prepared, name: str, by: dict[str, float]) -> str | None:
    """Returns the binary task whose positives lists are measured by: the heaviest in `by`.

    The first binary task where `by` weighs none; None without a binary task.
    """
    facts = prepared.scenarios[name]
    binary = [t for t, kind in facts.kinds.items() if kind == "binary"]
    wanted = [t for t in sorted(by, key=lambda t: -by[t]) if t in binary and by[t] > 0]
    return (wanted or binary or [None])[0]


def user_metrics(best: Ints, positives: Sequence[Ints]) -> dict[str, Floats]:
    """Returns f64[B] by metric, of the ranked items i64[B, k] (-1: none).

    recall: share of a user's positives among the k. NDCG (Jarvelin and Kekalainen, 2002): the sum
    of 1 / log2(1 + rank) over the hits, over its largest value. MRR: 1 / rank of the first hit.
    """
    k = best.shape[1]
    gains = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gains)
    hits = np.array([np.isin(row, wanted) for row, wanted in zip(best, positives, strict=True)])
    hits = hits.reshape(best.shape)
    sizes = np.array([len(wanted) for wanted in positives])
    first = np.where(hits.any(1), hits.argmax(1), np.inf)
    return {
        "recall": hits.sum(1) / sizes,
        "ndcg": (hits @ gains) / ideal[np.minimum(sizes, k) - 1],
        "mrr": 1 / (1 + first),
    }


def ranking_metrics(best: Ints, positives: Sequence[Ints]) -> dict[str, float]:
    """Returns recall, NDCG and MRR at k of the ranked items i64[B, k] (-1: none), over users."""
    return {key: float(values.mean()) for key, values in user_metrics(best, positives).items()}


def gain(first: Floats, second: Floats, seed: int = 0) -> Interval:
    """Returns the mean of first less second, f64[B] each, with its interval over users."""
    return mean_interval(first - second, seed)


def mean_interval(values: Floats, seed: int = 0) -> Interval:
    """Returns the mean of values of users f64[B], with its interval by resampled users."""

    def mean(weights: Floats) -> Floats:
        return (weights @ values) / weights.sum(1)

    whole, resampled = evaluate_resamples(mean, len(values), seed)
    return interval(resampled, whole)


def list_statistics(
    best: Ints, popularity: Floats, known: NDArray[np.bool_], vectors: NDArray[np.float32]
) -> dict[str, float]:
    """Returns what lists i64[B, k] (-1: none) are like as a whole.

    coverage: share of the items that are on some list. gini: of how often items are listed; 1: all
    on one. novelty: mean of -log2 of an item's share of the positives. diversity: one less the mean
    cosine of two items of a list. new_items: share of places with items that training does not
    know. popular_items: share with items of the most popular tenth.

    `popularity` f64[n]: positives of training; `vectors` f32[n, D]: unit vectors of texts.
    """
    listed = best[best >= 0]
    times = np.sort(np.bincount(listed, minlength=len(popularity)))
    place = np.arange(1, len(times) + 1)
    share = (popularity + 1) / (popularity.sum() + len(popularity))
    return {
        "coverage": float((times > 0).mean()),
        "gini": float(((2 * place - len(times) - 1) * times).sum() / (len(times) * times.sum())),
        "novelty": float(-np.log2(share[listed]).mean()),
        "diversity": diversity(best, vectors),
        "new_items": float((~known[listed]).mean()),
        "popular_items": popular_share(listed, popularity),
    }


def popular_share(items: Ints, popularity: Floats) -> float:
    """Returns the share of items i64[m] that are of the tenth with the highest f64[n]."""
    popular = np.zeros(len(popularity), bool)
    most = max(int(POPULAR_SHARE * len(popularity)), 1)
    popular[np.argsort(-popularity, kind="stable")[:most]] = True
    return float(popular[items].mean())


def diversity(best: Ints, vectors: NDArray[np.float32]) -> float:
    """Returns one less the mean cosine of two items of a list; NaN without a list of two."""
    means = []
    for items in best:
        own = vectors[items[items >= 0]]
        if len(own) > 1:
            pairs = len(own) * (len(own) - 1)
            means.append(((own.sum(0) ** 2).sum() - (own**2).sum()) / pairs)
    return float(1 - np.mean(means)) if means else float("nan")


def cold_recall(best: Ints, positives: Sequence[Ints], known: NDArray[np.bool_]) -> float:
    """Returns the mean recall of positives that training does not know; NaN without any."""
    found = [
        np.isin(cold, items).mean()
        for items, wanted in zip(best, positives, strict=True)
        if len(cold := wanted[~known[wanted]])
    ]
    return float(np.mean(found)) if found else float("nan")
