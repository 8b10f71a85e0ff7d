"""Joint training on two Ray Train workers: what it writes, counts, refuses, and how it goes on."""

import json
import math
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mtrec_ray.data.shards import read_rows
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.stages import train as train_stage
from mtrec_ray.stages.train import run_train
from tests.cluster.runs import BATCH, EPOCHS, ROWS_PER_EPOCH, changed, numbers, say_nothing

pytestmark = pytest.mark.cluster

STEPS_PER_EPOCH = ROWS_PER_EPOCH // BATCH


class ReachedError(Exception):
    """Training would have started."""


@pytest.fixture
def no_training(monkeypatch):
    """Where a trainer would be built, raise ReachedError."""

    def build_trainer(*_: object, **__: object) -> None:
        raise ReachedError

    monkeypatch.setattr(train_stage, "build_trainer", build_trainer)


# --- what a run leaves -----------------------------------------------------------------------


def test_best_model_is_kept(trained):
    """`joint/best` holds the weights, all finite, of the epoch with the lowest joint score."""
    best = trained.folder / "joint" / "best"
    weights = load_file(best / "model.safetensors")
    assert weights
    assert all(np.isfinite(w).all() for w in weights.values())
    record = json.loads((best / "model.json").read_text())["record"]
    lowest = min(trained.summary["curve"], key=lambda r: r["joint_score"])
    assert record == lowest
    assert trained.summary["best_joint_score"] == lowest["joint_score"]
    assert not (best / "training.pt").exists()


def test_curve_has_finite_numbers(trained):
    """The curve has one record an epoch, and every number in it is finite."""
    curve = trained.summary["curve"]
    assert [record["epoch"] for record in curve] == list(range(1, EPOCHS + 1))
    assert all(math.isfinite(number) for number in numbers(curve))
    losses = {"shop/click", "shop/buy", "video/like", "video/rating"}
    assert {frozenset(record["train_loss"]) for record in curve} == {frozenset(losses)}


def test_curves_for_tensorboard(trained):
    """TensorBoard finds an events file with the validation score of each epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trained.folder / "joint" / "tensorboard"
    assert len(list(folder.glob("events.*"))) == 1
    found = EventAccumulator(str(folder)).Reload().Scalars("valid/joint_score")
    wanted = [(r["step"], pytest.approx(r["joint_score"])) for r in trained.summary["curve"]]
    assert [(scalar.step, scalar.value) for scalar in found] == wanted


def test_validation_sees_every_row_once(trained):
    """The rows of a task's validation are all its labelled rows: no rank drops or repeats one."""
    valid = trained.summary["curve"][-1]["valid"]
    for name, facts in trained.prepared.scenarios.items():
        paths = trained.prepared.shard_paths(name, "valid")
        labels = np.concatenate([a["labels"] for a in read_rows(paths, 10_000, 0, 10**9)])
        for i, task in enumerate(facts.tasks):
            assert valid[f"{name}/{task}/rows"] == np.isfinite(labels[:, i]).sum() > 0


def test_rows_seen_account_for_all_steps(trained):
    """The rows seen are the steps times the batch, and an epoch has the rows that it should."""
    summary = trained.summary
    steps = [STEPS_PER_EPOCH * (i + 1) for i in range(EPOCHS)]
    assert [record["step"] for record in summary["curve"]] == steps
    assert summary["steps"] == steps[-1]
    assert sum(summary["rows_seen"].values()) == summary["steps"] * BATCH
    assert summary["skipped_steps"] == 0
    for name, facts in trained.prepared.scenarios.items():
        assert summary["rows_available"][name] == facts.num_rows("train")


def test_shares_are_reported(trained):
    """Sampling shares follow n^alpha, loss shares lambda; the rows seen have the sampling share."""
    summary, rows = trained.summary, trained.summary["rows_available"]
    roots = {n: r**0.5 for n, r in rows.items()}
    share = {n: r / sum(roots.values()) for n, r in roots.items()}
    assert summary["sampling_share"] == pytest.approx(share, abs=2 / 128)
    seen = {n: r / sum(summary["rows_seen"].values()) for n, r in summary["rows_seen"].items()}
    assert seen == pytest.approx(summary["sampling_share"])
    assert summary["loss_share"] == pytest.approx({"shop": 2 / 3, "video": 1 / 3})
    assert sum(summary["gradient_share"].values()) == pytest.approx(1)
    assert min(summary["gradient_share"].values()) > 0


# --- finished and changed --------------------------------------------------------------------


def test_finished_run_is_not_repeated(trained):
    """A second call says that it is done and returns the same summary."""
    told: list[str] = []
    assert run_train(trained.project, str(trained.storage), told.append) == trained.summary
    assert told == ["train: already done"]


def test_number_of_workers_is_no_change(trained):
    """The number of workers does not make a finished run another one."""
    project = changed(trained.project, run={"num_workers": 3})
    assert run_train(project, str(trained.storage), say_nothing) == trained.summary


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"lr": 0.5}},
        {"training": {"seed": 9, "epochs": 5}},
        {"model": {"width": 32}},
        {"evaluation": {"weights": {"shop": 1.0}}},
    ],
)
def test_changed_configuration_is_refused(trained, sections):
    """Another configuration with the same run name is a ProjectError that names the run's field."""
    with pytest.raises(ProjectError, match=r"^run\.name: "):
        run_train(changed(trained.project, **sections), str(trained.storage), say_nothing)
    assert run_train(trained.project, str(trained.storage), say_nothing) == trained.summary


def test_changed_lambda_is_refused(trained):
    """Another loss weight with the same run name is a ProjectError."""
    tree = trained.project.dump()
    tree["scenarios"]["shop"]["weight"] = 1.0
    with pytest.raises(ProjectError, match=r"^run\.name: "):
        run_train(parse_project(tree), str(trained.storage), say_nothing)


# --- mistakes --------------------------------------------------------------------------------


def test_training_needs_prepared_data(trained, tmp_path):
    """Without prepared data the error names the folder and the job to run first."""
    with pytest.raises(ValueError, match=f"{tmp_path}.*run the prepare job first"):
        run_train(trained.project, str(tmp_path), say_nothing)


@pytest.mark.usefixtures("no_training")
def test_data_prepared_otherwise_is_refused(trained, untrained):
    """Data that was prepared with another history is not trained on."""
    tree = trained.project.dump()
    tree["scenarios"]["shop"]["history"]["last"] = 3
    with pytest.raises(ValueError, match=r"run\.name|history|prepared"):
        run_train(parse_project(tree), str(untrained), say_nothing)


MISTAKES = {
    "batch_size": ({"training": {"batch_size": 2}}, r"^training\.batch_size: found 1 .*at least 2"),
    "top_k": (
        {"model": {"encoder": {"trainable": "top_k", "top_k": 40}}},
        r"^model\.encoder\.top_k: found 40; allowed: at most 6",
    ),
    "lora": (
        {"model": {"encoder": {"trainable": "lora", "lora": {"layers": 7}}}},
        r"^model\.encoder\.lora\.layers: found 7; allowed: at most 6",
    ),
}


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping with some of its leaves changed."""
    new = {
        k: merged(tree[k], v) if isinstance(v, dict) and k in tree else v
        for k, v in changes.items()
    }
    return tree | new


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("what", MISTAKES)
def test_mistake_is_refused_before_training(trained, untrained, what):
    """A batch smaller than the scenarios and layers that the encoder lacks are refused first."""
    changes, message = MISTAKES[what]
    project = parse_project(merged(trained.project.dump(), changes))
    with pytest.raises(ValueError, match=message):
        run_train(project, str(untrained), say_nothing)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("what", MISTAKES)
def test_mistake_does_not_spoil_the_run(trained, untrained, what):
    """After a refused mistake the corrected project trains under the same name."""
    project = parse_project(merged(trained.project.dump(), MISTAKES[what][0]))
    with pytest.raises(ValueError, match=r"allowed"):
        run_train(project, str(untrained), say_nothing)
    with pytest.raises(ReachedError):
        run_train(trained.project, str(untrained), say_nothing)
