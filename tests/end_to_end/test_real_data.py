"""The shipped real4 project file, cut down, on two of its real scenarios."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parents[2]
REAL4 = TOP.parent / "shared" / "data" / "real4"

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not REAL4.exists(), reason="real4 does not lie beside the project"),
]


# B0 of BASELINES.md (the item's past rate) by scenario, task and metric, and the gain to reach.
POPULARITY = {
    "news": {("read", "auc"): (0.9281, 0.0)},
    "video": {
        ("like", "auc"): (0.6622, 0.08), ("love", "auc"): (0.6644, 0.08),
        ("rating", "rmse"): (1.0019, -0.05),
    },
}  # fmt: skip
TEST_ROWS = {"news": 11_826, "video": 10_042}


@pytest.mark.parametrize("name", ["news", "video"])
def test_frozen_encoder_beats_popularity_on_real_logs(tmp_path, name):
    """One short epoch over a scenario beats the reference popularity on its main tasks."""
    tree = yaml.safe_load((TOP / "jobs" / "real4.yaml").read_text())
    tree["root"] = str(REAL4)
    tree["scenarios"] = {name: tree["scenarios"][name]}
    tree["model"]["encoder"] |= {"trainable": "none", "max_tokens": 24}
    tree["training"] |= {"epochs": 1, "rows_per_epoch": 40_000, "batch_size": 512, "lr": 2e-3}
    tree["training"]["teacher"] = {"share": 0}
    tree["recommend"] = {"ranking_users": 0}
    config = tmp_path / "real.yaml"
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    output = ""
    for job in ("prepare", "train", "evaluate"):
        command = [sys.executable, "-m", f"jobs.{job}", "--config", str(config)]
        found = subprocess.run(
            [*command, "--storage", str(tmp_path)],
            cwd=TOP,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert found.returncode == 0, found.stderr[-3000:]
        output = found.stdout
    metrics = json.loads(output.splitlines()[-1])["metrics"][name]
    for (task, metric), (reference, least) in POPULARITY[name].items():
        gain = metrics[task][metric] - reference
        assert gain > least if metric == "auc" else gain < least
    assert all(metrics[task]["rows"] == TEST_ROWS[name] for task, _ in POPULARITY[name])
