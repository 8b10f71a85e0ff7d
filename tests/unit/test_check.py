"""The check says what a run would do, all mistakes at once, and writes nothing."""

import json
from pathlib import Path

import pytest
import ray

from jobs.check import main
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import load_project
from mtrec_ray.stages.check import run_check, storage_problems
from mtrec_ray.stages.estimate import estimate_of, finished_stages, sizes_of

TOP = Path(__file__).parents[2]
QUICKSTART = TOP / "jobs/quickstart.yaml"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """No cluster of the caller's."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_check_of_the_quickstart(tmp_path, capsys, monkeypatch):
    """Rows, batches and steps are those that the run has; no file is written and no Ray started."""
    starts: list[bool] = []
    monkeypatch.setattr(ray, "init", lambda *_, **__: starts.append(True))
    main(config=str(QUICKSTART), storage=str(tmp_path / "runs"), override=["training.epochs=3"])
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert line["scenarios"]["shop"] == {"rows": 30000, "items": 240}
    assert sum(line["quotas"].values()) == 1024
    assert line["steps"] == 3 * line["steps_per_epoch"]
    assert line["steps_per_epoch"] == -(-3 * 24000 // 1024)
    assert line["minutes"] > 0
    assert not list(tmp_path.iterdir())
    assert not starts
    assert max(map(len, out.splitlines()[:-3])) <= 80


def test_all_problems_at_once(tmp_path):
    """Files, encoder, batch, storage and GPUs that are missing are lines of one error."""
    (tmp_path / "file").write_text("no folder")
    sets = (
        "sample_world=null", "model.encoder.source=package:no_such/model", "run.use_gpu=true",
        "training.batch_size=2",
    )  # fmt: skip
    project = load_project(QUICKSTART, sets)
    with pytest.raises(ProjectError) as caught:
        run_check(project, str(tmp_path / "file" / "below"))
    fields = {line.split(":")[0] for line in caught.value.problems}
    assert fields == {
        *(f"scenarios.{n}.{k}.path" for n in project.scenarios for k in ("items", "events")),
        "model.encoder.source", "training.batch_size", "run.use_gpu", "--storage",
    }  # fmt: skip


def test_storage_that_is_not_there_yet(tmp_path):
    """A folder that could be made is no problem, and is not made."""
    assert storage_problems(str(tmp_path / "a" / "b")) == []
    assert not list(tmp_path.iterdir())


def test_an_unknown_speed_is_not_guessed(tmp_path):
    """For a model that no run in the storage has, and a larger encoder, the time is unknown."""
    project = load_project(QUICKSTART, ["model.encoder.trainable=all"])
    sizes = sizes_of(project, str(tmp_path))
    assert estimate_of(project, str(tmp_path), sizes, "train").seconds is None


def test_a_measured_speed_is_used(tmp_path):
    """The time is by the speed of a run in the storage with the same model, half as long at two."""
    project = load_project(QUICKSTART, ["model.encoder.trainable=all"])
    sizes = sizes_of(project, str(tmp_path))
    seconds = []
    for rate in (100.0, 200.0):
        folder = tmp_path / "before" / "joint"
        (folder / "best").mkdir(parents=True, exist_ok=True)
        (folder / "finished.json").write_text(json.dumps({"speed": [{"rows_per_s": rate}]}))
        (folder / "best" / "model.json").write_text(json.dumps({"project": project.dump()}))
        plan = estimate_of(project, str(tmp_path), sizes, "train")
        assert plan.seconds is not None
        assert "quickstart" in plan.basis
        seconds.append(plan.seconds["train"])
    assert seconds[0] > 1.8 * seconds[1]


def test_finished_stages(tmp_path):
    """A stage is done when its mark is there, of fine-tuning those of all scenarios."""
    project = load_project(QUICKSTART)
    assert finished_stages(project, str(tmp_path)) == []
    for file in ("prepared/finished.json", "scenarios/shop/finished.json"):
        path = tmp_path / "quickstart" / file
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    assert finished_stages(project, str(tmp_path)) == ["prepare"]
