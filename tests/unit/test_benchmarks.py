"""Benchmarks: what their tables say of known scores."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import ablation, inference, prepare, quality_speed, real4
from mtrec_ray.data.columns import matrix
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing import features
from mtrec_ray.data.preparing.inputs import log_fragments, read_items
from mtrec_ray.data.preparing.prepare import spec_of
from mtrec_ray.data.preparing.scan import read_canonical, scan_rows, source_of
from tests.builders import SHOP, VIDEO

LINES = """
| scenario | task | B0 | B1 | B2 | B3 | B4 |
| --- | --- | --- | --- | --- | --- | --- |
| shop | click | 0.7242 (0.729) | 0.5386 (0.736) | 0.6354 (0.732) | **0.6468 (0.744)** | - |
| video | stars | 1.0019 | 0.8869 | 0.8915 | **0.8835** | 0.8870 |
"""


@pytest.fixture
def references(tmp_path):
    """Figures of a file like BASELINES.md."""
    path = tmp_path / "BASELINES.md"
    path.write_text(LINES)
    return real4.read_references(path)


def test_references_are_read(references):
    """AUC with GAUC in brackets, RMSE alone, and nothing for a dash."""
    assert references["shop.click"]["B3"] == {"auc": 0.6468, "gauc": 0.744}
    assert references["video.stars"]["B0"] == {"rmse": 1.0019}
    assert set(references["shop.click"]) == {"B0", "B1", "B2", "B3"}


def scored(rng, labels, noise):
    """Scores that follow the labels, with noise."""
    return (np.nan_to_num(labels, nan=0.5) + noise * rng.normal(size=labels.shape)).astype("f4")


def test_comparison_of_known_scores(references):
    """The less noisy model is ahead, in bold, with an interval that excludes zero."""
    rng = np.random.default_rng(0)
    shop = replace(SHOP, kinds={"click": "binary"})
    video = replace(VIDEO, kinds={"stars": "regression"})
    prepared = Prepared("", "", {"shop": shop, "video": video})
    rows = {
        "shop": (rng.integers(0, 50, 2000), rng.integers(0, 2, (2000, 1)).astype("f4")),
        "video": (rng.integers(0, 50, 2000), rng.normal(3, 1, (2000, 1)).astype("f4")),
    }
    noise = {"joint": 0.5, "lightgbm": 1.0, "alone": 0.4}
    scores = {
        model: {name: [scored(rng, labels, own)] for name, (_, labels) in rows.items()}
        for model, own in noise.items()
    }
    for model in (*real4.WITHOUT, *real4.NAMES):
        scores.setdefault(model, scores["lightgbm"])
    figures, table = real4.compare(prepared, scores, rows, references)
    assert figures["tasks_total"] == figures["tasks_ahead"] == 2
    assert figures["tasks_ahead_of_alone"] == 0
    assert figures["shop.click.best_baseline"] == pytest.approx(
        max(0.7242, figures["shop.click.lightgbm.auc"])
    )
    assert figures["shop.click.gap_low"] > 0
    assert figures["video.stars.gap_high"] < 0
    assert figures["shop.click.alone_high"] < 0
    assert all(row["joint"].startswith("**") for row in table)
    figures, table = real4.compare(prepared, {"joint": scores["joint"]}, rows, references)
    assert figures["tasks_ahead"] == figures["tasks_ahead_of_reference"] == 2
    assert set(table[0]) == {"task", "joint", "B0-B4"}


def test_ablation_compares_with_its_base():
    """A variant's cell has its score and the difference to its base."""
    found = [
        {"variant": v, "seconds": 1.0, "valid": {"shop/click/ne": ne, "shop/buy/ne": ne + 0.2}}
        for v, ne in (("frozen", 0.5), ("frozen", 0.6), ("no text", 0.7), ("first task only", 0.4))
    ]
    figures, table = ablation.summarise(found)
    rows = {row["model"]: row["shop"] for row in table}
    assert rows == {
        "frozen": "0.6500", "no text": "0.8000 (+0.1500)", "first task only": "0.4000 (-0.1500)"
    }  # fmt: skip
    assert figures["frozen.shop.spread"] == pytest.approx(0.1)


def test_seconds_to_an_auc():
    """Linear between the points, never where the AUC is not reached, never for a coin's AUC."""
    curve = quality_speed.Curve("shop", "x", 0, [10.0, 20.0], [1, 2], [0.6, 0.7])
    assert quality_speed.seconds_to(curve, 0.55) == pytest.approx(5)
    assert quality_speed.seconds_to(curve, 0.65) == pytest.approx(15)
    assert quality_speed.seconds_to(curve, 0.71) == float("inf")
    assert quality_speed.seconds_to(curve, 0.49) == float("inf")


def test_the_script_by_hand_computes_the_columns_of_prepare(tmp_path):
    """All numbers and histories of a small log are those of the partition functions."""
    pytest.importorskip("polars", reason="an extra: benchmarks")
    prepare.write_log(tmp_path, 3_000)
    project = prepare.project_of(tmp_path)
    scenario = project.scenarios["shop"]
    items = read_items(project, "shop")
    source = source_of(project, "shop", items)
    table, findings = read_canonical(log_fragments(project)[0], source)
    scan = scan_rows(table, findings, source)
    spec = spec_of(project, "shop", scan, scan.users, items)
    table, _ = features.category_features(table, spec, "brand")
    table, _ = features.item_features(table, spec)
    rows = features.user_features(table, spec)[0].sort_by("row")
    prepare.by_hand_here(str(tmp_path), dict(zip(spec.tasks, spec.priors, strict=True)))
    names = features.numeric_names(scenario)
    wanted = prepare.by_hand_columns(tmp_path / "by_hand.parquet", names)
    numbers = np.stack([wanted[name] for name in names], 1)
    np.testing.assert_allclose(matrix(rows.column("numeric")), numbers, rtol=1e-6, atol=1e-6)
    assert np.isfinite(numbers).mean() > 0.5
    for name in ("history", "history_age"):
        np.testing.assert_array_equal(matrix(rows.column(name)), wanted[name])
    assert (wanted["history"] >= 0).any()


def test_precisions_are_compared_with_fp32():
    """Speeds over those of fp32, and the largest change of a metric, whichever sign it has."""
    speeds = {"texts_per_s": 100.0, "rows_per_s": 50.0}
    found = {
        "fp32": {**speeds, "shop/click/auc": 0.7, "video/stars/rmse": 0.9},
        "onnx-int8": {"texts_per_s": 250.0, "rows_per_s": 50.0, "shop/click/auc": 0.69,
                      "video/stars/rmse": 0.905},
    }  # fmt: skip
    figures, table = inference.compared(found)
    assert figures["onnx-int8.texts_per_s_over_fp32"] == 2.5
    assert figures["onnx-int8.largest_change"] == pytest.approx(0.01)
    assert figures["fp32.largest_change"] == 0
    assert table[1]["largest change"] == "-0.01000 (shop/click/auc)"
    assert table[1]["precision"] == "ONNX int8"


def test_what_lacks_a_library_is_left_out(monkeypatch, capsys):
    """And told, by its name."""
    there = inference.importlib.util.find_spec
    monkeypatch.setattr(
        inference.importlib.util, "find_spec", lambda name: name != "openvino" and there("numpy")
    )
    assert inference.installed() == ["fp32", "bf16", "int8", "onnx", "onnx-int8"]
    assert "openvino-int8 is left out: found no openvino" in capsys.readouterr().err
