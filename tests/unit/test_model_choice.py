"""The choice of a model: by its score on all tasks with enough labels, where it is significant."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from mtrec_ray.evaluation.bootstrap import draw_users
from mtrec_ray.evaluation.metrics import binary_metrics, regression_metrics
from mtrec_ray.evaluation.model_choice import (
    ScoredRows,
    choose_model,
    rare_labels,
    resampled_task_score,
    score_difference,
)
from tests.builders import VIDEO

NUM = 1500


def scored(noise_before, noise_after, num=NUM, seed=0):
    """Rows of video whose two models see the labels through more or less noise."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, num // 10, num)
    truth = rng.normal(size=num)
    like = (rng.random(num) < 1 / (1 + np.exp(-2 * truth))).astype("f4")
    stars = (3.5 + truth + 0.3 * rng.normal(size=num)).astype("f4")
    labels = np.stack([like, stars], 1).astype("f4")
    labels[rng.random(labels.shape) < 0.3] = np.nan
    scores = {}
    for name, noise in (("joint", noise_before), ("finetuned", noise_after)):
        seen = truth + noise * rng.normal(size=num)
        scores[name] = np.stack([1 / (1 + np.exp(-2 * seen)), 3.5 + seen], 1).astype("f4")
    return ScoredRows(users, labels, scores)


def test_score_of_all_rows_is_ne():
    """Without resampling the scores are NE and relative RMSE."""
    rows = scored(0.5, 0.5)
    ones = np.ones((1, len(np.unique(rows.users))))
    for i, task in enumerate(VIDEO.tasks):
        known = np.isfinite(rows.labels[:, i])
        label, score = (x[known, i].astype(float) for x in (rows.labels, rows.scores["joint"]))
        if task == "like":
            wanted = binary_metrics(label, score, rows.users[known], base_rate=0.6)["ne"]
        else:
            wanted = regression_metrics(label, score, train_mean=3.5)["relative_rmse"]
        assert resampled_task_score(VIDEO, task, rows, "joint")(ones)[0] == pytest.approx(wanted)


def test_resamples_are_scores_of_the_drawn_rows():
    """A resample's score is that of its users' rows, each as often as its user was drawn."""
    rows = scored(0.5, 0.5, num=200)
    people, code = np.unique(rows.users, return_inverse=True)
    weights = np.concatenate(list(draw_users(len(people), seed=3, resamples=4)))
    found = resampled_task_score(VIDEO, "like", rows, "joint")(weights)
    known = np.isfinite(rows.labels[:, 0])
    for one, value in zip(weights, found, strict=True):
        own = one[code[known]]
        label, score = rows.labels[known, 0], rows.scores["joint"][known, 0].astype(float)
        constant = log_loss(label, np.full(len(label), 0.6), sample_weight=own, labels=[0, 1])
        wanted = log_loss(label, score, sample_weight=own, labels=[0, 1]) / constant
        assert value == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "keep", "chosen"),
    [
        (1.0, 0.2, "certain", "finetuned"),
        (0.2, 1.0, "certain", "joint"),
        (0.5, 0.5, "certain", "joint"),
        (1.0, 0.2, "better", "finetuned"),
        (0.2, 1.0, "better", "joint"),
    ],
)
def test_choice(before, after, keep, chosen):
    """The less noisy model is chosen; between equally noisy ones certainty stays joint."""
    rows = scored(before, after)
    found = choose_model(VIDEO, rows, 50, keep)
    assert found["chosen"] == chosen
    gap = found["difference"]
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert set(found["metrics"]) == {"like", "stars"}
    known = np.isfinite(rows.labels[:, 0])
    first, second = (
        roc_auc_score(rows.labels[known, 0], rows.scores[m][known, 0])
        for m in ("finetuned", "joint")
    )
    assert found["metrics"]["like"]["value"] == pytest.approx(first - second)


def test_tasks_with_few_labels_have_no_say():
    """A task with fewer labels of its rarer kind than asked is left out; without any: joint."""
    rows = scored(1.0, 0.2)
    counts = rare_labels(VIDEO, rows.labels)
    like = rows.labels[np.isfinite(rows.labels[:, 0]), 0]
    assert counts["like"] == min(like.sum(), len(like) - like.sum())
    assert counts["stars"] == np.isfinite(rows.labels[:, 1]).sum()
    between = (counts["like"] + counts["stars"]) // 2
    assert choose_model(VIDEO, rows, between, "certain")["tasks"] == ["stars"]
    found = choose_model(VIDEO, rows, NUM + 1, "certain")
    assert found["chosen"] == "joint"
    assert found["reason"].startswith(f"too few validation labels: at most {counts['stars']} ")


def test_difference_turns_its_sign():
    """First less second is the negative of second less first, interval and all."""
    rows = scored(0.6, 0.4)
    one = score_difference(VIDEO, rows, ["like", "stars"], ("finetuned", "joint"))
    other = score_difference(VIDEO, rows, ["like", "stars"], ("joint", "finetuned"))
    assert one.value == pytest.approx(-other.value)
    assert one.low == pytest.approx(-other.high)
