"""Metrics of lists that were shown: AUC, MRR and NDCG inside each impression, as MIND counts them.

The definitions are those of the MIND competition (Wu et al., ACL 2020): each impression is ranked
by itself, and metrics are means over impressions that have both labels.

Letters: N rows, I impressions, k places.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Floats, Ints
from mtrec_ray.evaluation.metrics import user_aucs

CUTS = (5, 10)


def impression_metrics(
    labels: Floats, scores: Floats, impressions: NDArray[np.integer], cuts: Sequence[int] = CUTS
) -> dict[str, float]:
    """Returns `auc`, `mrr` and `ndcg@k` of labels 0/1 f64[N] and scores f64[N], over impressions.

    MRR is the mean of 1 / rank over an impression's positives. Of equal scores the later row comes
    first, as in the published scorer, which reverses a sort.
    """
    auc, _ = user_aucs(labels, scores, impressions)
    both = np.isfinite(auc)
    rank, code = ranks(scores, impressions)
    positives = np.bincount(code, labels)[both]
    found = {
        "auc": float(auc[both].mean()),
        "mrr": float((np.bincount(code, labels / rank)[both] / positives).mean()),
    }
    for k in cuts:
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
        gain = np.bincount(code, np.where(rank <= k, labels / np.log2(1 + rank), 0.0))[both]
        most = ideal[np.minimum(positives, k).astype(int) - 1]
        found[f"ndcg@{k}"] = float((gain / most).mean())
    return found | {"impressions": float(both.sum())}


def ranks(scores: Floats, impressions: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """Returns i64[N], each row's rank in its impression from 1, and i64[N], impressions from 0."""
    _, code = np.unique(impressions, return_inverse=True)
    order = np.lexsort([-np.arange(len(scores)), -scores, code])
    start = np.searchsorted(code[order], np.arange(code.max(initial=-1) + 1))
    rank = np.empty(len(scores), np.int64)
    rank[order] = np.arange(len(scores)) - start[code[order]] + 1
    return rank, code
