"""Metrics of impressions against the published scorer's definitions, one impression at a time."""

import gzip
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mtrec_ray.evaluation.impressions import impression_metrics

MIND = Path(__file__).parents[3] / "shared" / "data" / "mind" / "behaviors.tsv.gz"


def published(labels, scores):
    """AUC, MRR, nDCG@5 and nDCG@10 of one impression, as the competition's scorer computes them."""
    order = np.argsort(scores, kind="stable")[::-1]
    ranked = labels[order]
    mrr = (ranked / np.arange(1, len(ranked) + 1)).sum() / ranked.sum()

    def dcg(values, k):
        top = values[:k]
        return ((2.0**top - 1) / np.log2(np.arange(2, len(top) + 2))).sum()

    best = np.sort(labels)[::-1]
    ndcg = [dcg(ranked, k) / dcg(best, k) for k in (5, 10)]
    return [roc_auc_score(labels, scores), mrr, *ndcg]


def assert_as_published(labels, scores, impressions):
    wanted = [
        published(labels[impressions == i], scores[impressions == i])
        for i in np.unique(impressions)
        if 0 < labels[impressions == i].mean() < 1
    ]
    found = impression_metrics(labels, scores, impressions)
    assert found["impressions"] == len(wanted)
    keys = ("auc", "mrr", "ndcg@5", "ndcg@10")
    assert [found[k] for k in keys] == pytest.approx(np.mean(wanted, 0).tolist(), abs=1e-12)


@pytest.mark.parametrize("digits", [1, 6], ids=["ties", "no ties"])
def test_random_impressions(digits):
    """Random labels and scores, with and without ties, some impressions with one label only."""
    rng = np.random.default_rng(digits)
    impressions = np.repeat(rng.permutation(200), rng.integers(1, 30, 200))
    labels = (rng.random(len(impressions)) < 0.2).astype(float)
    assert_as_published(labels, rng.random(len(impressions)).round(digits), impressions)


@pytest.mark.skipif(not MIND.exists(), reason="the MIND sample does not lie beside the project")
def test_the_mind_sample():
    """Clicks elsewhere in the sample rank 2,000 real impressions as the published scorer says."""
    with gzip.open(MIND, "rt") as file:
        lines = list(islice(file, 2000))
    shown = [line.rstrip("\n").split("\t")[4].split() for line in lines]
    clicks = Counter(pair[:-2] for own in shown for pair in own if pair.endswith("-1"))
    impressions = np.repeat(np.arange(len(shown)), [len(own) for own in shown])
    pairs = [pair for own in shown for pair in own]
    labels = np.array([float(pair.endswith("-1")) for pair in pairs])
    scores = np.array([float(clicks[pair[:-2]]) for pair in pairs])
    assert_as_published(labels, scores, impressions)
