"""The model card says what is there, and nothing of what is not."""

import pytest

from mtrec_ray.report.card import NO_EVALUATION, card_page
from tests.builders import FACTS, two_scenario_project

NEAR = {"rows": 9, "largest_difference": 0.125, "smallest_cosine": 0.98}
FILE = {"model.onnx": {"bytes": 2_000_000, "sha256": "0"}}
PARTS = {
    "encoder/onnx-int8": {"files": FILE, "parity": NEAR},
    "scenarios/video/ranking": {"absent": "it reads other scenarios"},
}
MODELS = {"shop": "finetuned", "video": "joint"}


def evaluation():
    """Metrics by hand: shop's click has a blend beside the network, and new users a slice."""
    click = {"auc": 0.71, "network_auc": 0.64, "rows": 1234.0}
    metrics = {
        "shop": {"click": click, "buy": {"auc": 0.6, "rows": 50.0}},
        "video": {"stars": {"rmse": 1.25, "rows": 70.0}},
    }
    shop = {
        "intervals": {"click": {"auc": [0.69, 0.73]}},
        "slices": {"click": {"new users": {"auc": 0.55, "rows": 21.0}}},
    }
    return {"metrics": metrics, "details": {"shop": shop, "video": {"intervals": {}, "slices": {}}}}


def card(found=None, parts=PARTS):
    return card_page(two_scenario_project(), FACTS, MODELS, parts, found)


def test_metrics_with_intervals_and_slices():
    """A task's row has its main metric, its interval, the network's own metric and its rows."""
    text = card(evaluation())
    assert "| shop | click | auc | 0.7100 | 0.6900 to 0.7300 | 0.6400 | 1,234 |" in text
    assert "| shop | buy | auc | 0.6000 | - to - | 0.6000 | 50 |" in text
    assert "| video | stars | rmse | 1.2500 | - to - | 1.2500 | 70 |" in text
    assert "| shop | click | new users | auc | 0.5500 | 21 |" in text
    assert "| video | like |" not in text
    assert NO_EVALUATION not in text


def test_without_an_evaluation_there_is_no_metric():
    """The card says that nothing was evaluated, and shows no number as if it had been."""
    text = card()
    assert NO_EVALUATION in text
    for word in ("auc", "rmse", "95 %", "slices of the rows"):
        assert word not in text.partition("## Files")[0]


def test_files_and_what_is_not_exported():
    """Each part stands with how near it is; one that cannot be exported says why."""
    text = card()
    assert "| `encoder/onnx-int8` | `model.onnx` | 2.0 | 9 | 0.12 | 0.980000 |" in text
    assert "- `scenarios/video/ranking`: it reads other scenarios" in text
    assert "shop finetuned, video joint" in text


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("encoder/onnx", "- Vectors of texts (`onnx`)"),
        ("scenarios/shop/vectors", "- Search (`vectors`)"),
        ("scenarios/shop/user", "- Candidates (`user`)"),
        ("scenarios/shop/ranking", "- Ranking (`ranking`)"),
    ],
)
def test_intended_use_is_of_what_is_there(place, words):
    """A use is named where its files are exported, and only there."""
    uses = ("- Vectors of texts", "- Search", "- Candidates", "- Ranking")
    text = card(parts={place: {"files": FILE, "parity": NEAR}})
    assert words in text
    assert sum(use in text for use in uses) == 1
