"""Scenarios are fine-tuned side by side, each by itself, and the better model is chosen."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mtrec_ray.data.end_states import items_at_end, seen_pairs, user_parts, users_at_end
from mtrec_ray.data.snapshot import SnapshotColumns, overlay
from mtrec_ray.model.encoder import quantise_problems
from mtrec_ray.model.recommender import predictions
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.project import Project
from mtrec_ray.stages import finetune
from mtrec_ray.stages.evaluate import run_evaluate
from mtrec_ray.stages.finetune import Options, run_finetune
from mtrec_ray.stages.finetuning.chosen_model import (
    base_model,
    chosen_model,
    finetuned_model,
    score_split_by_tasks,
)
from mtrec_ray.stages.finetuning.joint_run import open_joint_run
from mtrec_ray.stages.recommend import run_recommend
from mtrec_ray.stages.train import TrainingRun
from mtrec_ray.stages.trained_model import ensure_vectors, load_with_vectors
from tests.cluster.runs import changed, say_nothing
from tests.cluster.test_resume import finished_epochs, kill_worker, start_job, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]

FIELDS = {
    "epochs": 1, "rows_per_epoch": 2560, "least_labels": 10, "keep": "better",
    "scenarios": {"video": {"mode": "head"}},
}  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """A run whose scenarios were fine-tuned: shop by lora, video by its head."""

    project: Project
    storage: Path
    record: dict[str, Any]
    weights: bytes
    video_before: Any

    @property
    def folder(self) -> Path:
        return self.storage / self.project.run.name


def copied(trained, storage) -> Path:
    """A storage with the trained run."""
    shutil.copytree(trained.folder, storage / trained.project.run.name)
    return storage


@pytest.fixture(scope="module")
def tuned(trained, tmp_path_factory) -> Tuned:
    storage = copied(trained, tmp_path_factory.mktemp("tuned"))
    project = changed(trained.project, finetune=FIELDS, recommend={"k": 5})
    joint_run = open_joint_run(project, str(storage))
    before = score_split_by_tasks(base_model(joint_run), "video", "test")
    weights = Path(joint_run.weights, "model.safetensors").read_bytes()
    shop = run_finetune(project, str(storage), say_nothing, Options(("shop",)))
    assert set(shop["scenarios"]) == {"shop"}
    after = score_split_by_tasks(base_model(joint_run), "video", "test")
    record = run_finetune(project, str(storage), say_nothing)
    return Tuned(project, storage, record, weights, (before, after))


def test_other_scenarios_keep_their_outputs(tuned):
    """After fine-tuning shop the joint weights and video's predictions are the same to the bit."""
    joint = tuned.folder / "joint" / "best" / "model.safetensors"
    assert joint.read_bytes() == tuned.weights
    for first, second in zip(*tuned.video_before, strict=True):
        np.testing.assert_array_equal(first, second)


def test_decisions(tuned):
    """Each scenario has a decision with the interval of the difference, and says why."""
    for name in ("shop", "video"):
        found = json.loads((tuned.folder / "scenarios" / name / "decision.json").read_text())
        assert found == tuned.record["scenarios"][name]
        gap = found["difference"]
        assert gap["low"] <= gap["value"] <= gap["high"]
        assert found["chosen"] == ("finetuned" if gap["value"] < 0 else "joint")
        assert "lower is better" in found["reason"]
    assert tuned.record["scenarios"]["video"]["mode"] == "head"


def test_storage(tuned):
    """Deltas are stored once a scenario, without checkpoints, and are smaller than the base."""
    sizes = tuned.record["storage"]
    assert set(sizes["delta_bytes"]) == {"shop", "video"}
    assert max(sizes["delta_bytes"].values()) < sizes["base_bytes"]
    assert sizes["all_bytes"] < sizes["full_copies_bytes"]
    for name in ("shop", "video"):
        assert not (tuned.folder / "scenarios" / name / "training").exists()
        assert (tuned.folder / "scenarios" / name / "delta" / "own.safetensors").is_file()


def test_fine_tuned_predictions_differ(tuned):
    """The fine-tuned model of shop is another one than the joint model."""
    joint_run = open_joint_run(tuned.project, str(tuned.storage))
    joint = score_split_by_tasks(base_model(joint_run), "shop", "test")
    own = score_split_by_tasks(finetuned_model(joint_run, "shop", tuned.project), "shop", "test")
    np.testing.assert_array_equal(joint[1], own[1])
    assert np.abs(joint[2] - own[2]).max() > 1e-4


def test_nothing_is_done_twice(tuned):
    """The same call again says that it is done."""
    told: list[str] = []
    again = run_finetune(tuned.project, str(tuned.storage), told.append)
    assert told == ["finetune: already done"]
    assert again == tuned.record


def test_unknown_scenario(tuned):
    """A scenario that the project does not have: one clear line."""
    with pytest.raises(ProjectError, match=r"--scenario: found 'books'; allowed: shop, video") as e:
        run_finetune(tuned.project, str(tuned.storage), say_nothing, Options(("books",)))
    assert len(e.value.problems) == 1


def test_other_options_are_refused(tuned):
    """A scenario that was fine-tuned with other options is refused in one line."""
    project = changed(tuned.project, finetune=FIELDS | {"lr": 0.01})
    with pytest.raises(ProjectError, match=r"finetune stage was made with finetune\.lr") as e:
        run_finetune(project, str(tuned.storage), say_nothing)
    assert len(e.value.problems) == 1


def test_changed_base_is_refused(tuned, tmp_path):
    """Joint weights that have changed since are told in one line, by finetune and by whatever uses
    the adapter."""
    shutil.copytree(tuned.folder, tmp_path / tuned.project.run.name)
    path = tmp_path / tuned.project.run.name / "joint" / "best" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"joint\.fingerprint = .* \(now ") as caught:
        run_finetune(tuned.project, str(tmp_path), say_nothing)
    assert len(str(caught.value).splitlines()) == 1
    joint_run = open_joint_run(tuned.project, str(tmp_path))
    with pytest.raises(ValueError, match=r"scenario shop: .*from other joint weights") as caught:
        finetuned_model(joint_run, "shop", tuned.project)
    assert len(str(caught.value).splitlines()) == 1


def test_adapter_of_another_scenario_is_refused(tuned, tmp_path):
    """The delta of shop in the place of video's is told in one line."""
    shutil.copytree(tuned.folder, tmp_path / tuned.project.run.name)
    scenarios = tmp_path / tuned.project.run.name / "scenarios"
    shutil.rmtree(scenarios / "video" / "delta")
    shutil.copytree(scenarios / "shop" / "delta", scenarios / "video" / "delta")
    joint_run = open_joint_run(tuned.project, str(tmp_path))
    with pytest.raises(ValueError, match=r"scenario video: found the model of shop"):
        finetuned_model(joint_run, "video", tuned.project)


def test_too_few_labels_stay_joint(trained, tmp_path):
    """Without enough validation labels a scenario stays joint, says so, and is not trained."""
    storage = copied(trained, tmp_path)
    project = changed(trained.project, finetune=FIELDS | {"least_labels": 10**6, "scenarios": {}})
    told: list[str] = []
    found = run_finetune(project, str(storage), told.append)["scenarios"]
    for name in ("shop", "video"):
        assert found[name]["chosen"] == "joint"
        assert found[name]["reason"].startswith("too few validation labels: at most ")
        assert any(line.startswith(f"{name}: joint (too few") for line in told)
        assert not (storage / project.run.name / "scenarios" / name / "delta").exists()


def test_one_failure_leaves_the_others_alone(trained, tmp_path, monkeypatch):
    """A run that fails is told; the other is finished, and a second call does the rest."""
    storage = copied(trained, tmp_path)
    project = changed(trained.project, finetune=FIELDS)
    real = finetune.train_model

    def fails_for_video(training: TrainingRun) -> dict[str, Any]:
        if "video" in training.project.scenarios:
            raise RuntimeError("a node\nburned down")
        return real(training)

    monkeypatch.setattr(finetune, "train_model", fails_for_video)
    told: list[str] = []
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed: video \(burned down\)"):
        run_finetune(project, str(storage), told.append)
    assert "warning: video: failed, the others go on: burned down" in told
    scenarios = storage / project.run.name / "scenarios"
    assert (scenarios / "shop" / "decision.json").is_file()
    assert not (scenarios / "video" / "decision.json").exists()
    monkeypatch.setattr(finetune, "train_model", real)
    told.clear()
    assert set(run_finetune(project, str(storage), told.append)["scenarios"]) == {"shop", "video"}
    assert {"finetune: video", "1 runs, 1 at a time"} <= set(told)


def test_killed_run_resumes(trained, tmp_path):
    """A worker is killed after epoch 1: the run goes on at epoch 2, and ends with a decision."""
    storage = copied(trained, tmp_path)
    fields = FIELDS | {"epochs": 3, "rows_per_epoch": 51_200, "patience": 9}
    project = changed(trained.project, finetune=fields)
    (tmp_path / "project.yaml").write_text(yaml.safe_dump(project.dump()))
    output, folder = tmp_path / "out.txt", storage / project.run.name / "scenarios" / "shop"
    job = start_job(
        tmp_path / "project.yaml", storage, output, job="finetune", more=("--scenario", "shop")
    )
    try:
        wait_until(lambda: finished_epochs(folder / "training") == 1, job, output)
        kill_worker(storage)
        assert job.wait(200) == 0, output.read_text()
    finally:
        job.kill()
        job.wait()
    text = output.read_text()
    assert text.count("epoch 1: joint validation score") == 1
    assert text.count("40 item texts encoded") == 2
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["training"]["epochs"] == 3


# --- what comes after ------------------------------------------------------------------------


def test_evaluation_has_both_models(tuned):
    """`metrics` are those of the chosen models, `joint_metrics` of the joint one beside them."""
    found = run_evaluate(tuned.project, str(tuned.storage), say_nothing)
    for name, decision in tuned.record["scenarios"].items():
        same = found["metrics"][name] == found["joint_metrics"][name]
        assert same == (decision["chosen"] == "joint")
        assert found["models"][name].startswith(decision["chosen"])
    ranking = found["ranking"]["shop"]
    for model in ("model", "popularity", "item_knn", "ease", "neighbours"):
        assert 0 <= ranking[model]["recall"] <= 1
        assert 0 <= ranking[model]["ndcg"] <= 1
    assert ranking["users"] > 10
    assert ranking["items"] == 40


def test_comparison(tuned):
    """Joint, fine-tuned and alone stand side by side, their differences with intervals."""
    found = run_finetune(tuned.project, str(tuned.storage), say_nothing, Options(compare=True))
    tables = found["comparison"]
    assert tables == json.loads((tuned.folder / "scenarios" / "comparison.json").read_text())
    metrics = run_evaluate(tuned.project, str(tuned.storage), say_nothing)["joint_metrics"]
    for name, table in tables.items():
        assert any(w in table["verdict"] for w in ("gains", "harmed", "no certain"))
        for task, row in table["tasks"].items():
            assert row["joint"] == pytest.approx(metrics[name][task][row["metric"]], rel=1e-4)
            assert row["alone"] != row["joint"] != row["finetuned"]
            for pair in ("finetuned-joint", "finetuned-alone", "joint-alone"):
                first, second = pair.split("-")
                assert row[pair]["value"] == pytest.approx(row[first] - row[second])
                assert row[pair]["low"] <= row[pair]["value"] <= row[pair]["high"]
    told: list[str] = []
    run_finetune(tuned.project, str(tuned.storage), told.append, Options(compare=True))
    assert not [line for line in told if "alone" in line]


def without_opinions(tuned):
    """The project, whose predictions are the network's own."""
    return changed(tuned.project, opinions={"trees": False, "sources": False, "labels": False})


@pytest.fixture(scope="module")
def recommended(tuned):
    """What was recommended to all users, with the network's own predictions."""
    found = run_recommend(without_opinions(tuned), str(tuned.storage), say_nothing)
    return found["scenarios"], {
        name: pq.read_table(tuned.folder / "recommendations" / name).to_pandas()
        for name in ("shop", "video")
    }


def brute_force(tuned, name, part):
    """Predictions of every user of a partition with every item, each pair a sample by itself."""
    joint_run = open_joint_run(tuned.project, str(tuned.storage))
    served = chosen_model(joint_run, name, tuned.project)
    model, vectors = load_with_vectors(served, ensure_vectors(served))
    layout = SnapshotColumns(joint_run.prepared, name, tuned.project.scenarios[name])
    users, items = users_at_end(layout, part), items_at_end(layout)
    user, item = (x.ravel() for x in np.indices((len(users), len(items.ids))))
    arrays = {
        "item": item, "user": users.user[user], "person": users.person[user],
        "time": users.moment[user], "history": users.history[user],
        "history_age": users.ages[user],
        "numeric": overlay(items.numeric[item], users.numeric[user]),
        "categorical": np.zeros((len(user), 0), np.int32),
        "labels": np.zeros((len(user), 2), np.float32),
    }  # fmt: skip
    samples = Samples.of(arrays)
    with torch.no_grad():
        text = vectors.of_batch({name: samples}, encode=False)[name]
        found = predictions(model.facts[name], model.score(name, samples, text))
    scores = found.view(len(users), len(items.ids), -1).numpy()
    return users, items, scores, seen_pairs(joint_run.prepared, name, part=part)


@pytest.mark.parametrize("name", ["shop", "video"])
def test_recommendations_hold_the_models_predictions(tuned, recommended, name):
    """Every user has five unseen items, each once, with the predictions of the pair by itself."""
    table = recommended[1][name]
    assert recommended[0][name]["users"] == table["user"].nunique()
    joint_run = open_joint_run(tuned.project, str(tuned.storage))
    tasks = joint_run.facts[name].kinds
    for part in user_parts(joint_run.prepared, name):
        users, items, predicted, (persons, seen) = brute_force(tuned, name, part)
        for i, user in enumerate(users.ids):
            met = np.isin(np.arange(len(items.ids)), seen[persons == users.person[i]])
            mine = table[table["user"] == user].sort_values("rank")
            assert mine["rank"].tolist() == list(range(1, min(5, (~met).sum()) + 1))
            assert (np.diff(mine["score"]) <= 0).all()
            chosen = [int(np.flatnonzero(items.ids == x)[0]) for x in mine["item"]]
            assert len(set(chosen)) == len(chosen)
            assert not met[chosen].any()
            for place, (task, kind) in enumerate(tasks.items()):
                word = "probability" if kind == "binary" else "prediction"
                wanted = predicted[i, chosen, place]
                np.testing.assert_allclose(mine[f"{word}.{task}"], wanted, rtol=1e-4, atol=1e-5)
            assert mine["new_item"].tolist() == (~items.in_training[chosen]).tolist()


def test_interrupted_recommendations_go_on(tuned, recommended, tmp_path):
    """What is there is kept, what is missing is made; with other options all is made anew."""
    name = tuned.project.run.name
    shutil.copytree(tuned.folder, tmp_path / name)
    folder = tmp_path / name / "recommendations" / "shop"
    files = sorted(folder.glob("*.parquet"))
    before = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in files}
    files[0].unlink()
    (folder / "_finished.json").unlink()
    project = without_opinions(tuned)
    found = run_recommend(project, str(tmp_path), say_nothing, ("shop",))["scenarios"]["shop"]
    assert (found["users"], found["rows"]) == tuple(
        recommended[0]["shop"][k] for k in ("users", "rows")
    )
    assert {f.name: f.read_bytes() for f in files} == {n: data for n, (_, data) in before.items()}
    assert all(f.stat().st_mtime_ns == before[f.name][0] for f in files[1:])
    other = changed(project, recommend={"k": 3})
    run_recommend(other, str(tmp_path), say_nothing, ("shop",))
    assert pq.read_table(folder).to_pandas()["rank"].max() == 3


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"finetune": FIELDS | {"batch_size": 1, "num_workers": 2}},
            r"finetune\.batch_size: found 1 for shop, whose run has 2 workers; allowed: at least 2",
        ),
        ({"evaluation": {"precision": "int8"}}, r"evaluation\.precision: found int8, .*torchao"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(trained, tmp_path, fields, line):
    """Batches smaller than the workers, a precision that is not to be had: one clear line."""
    if "evaluation" in fields and not quantise_problems():
        pytest.skip("torchao is installed")
    storage = copied(trained, tmp_path)
    with pytest.raises(ProjectError, match=line):
        run_finetune(changed(trained.project, **fields), str(storage), say_nothing)
    assert not (storage / trained.project.run.name / "scenarios").exists()


def test_a_folder_is_no_list_of_users(tuned):
    """One clear line."""
    with pytest.raises(ValueError, match=r"--users: found no file .*allowed: Parquet"):
        run_recommend(tuned.project, str(tuned.storage), say_nothing, (), str(tuned.storage))


def test_listed_users(tuned, tmp_path):
    """Listed users alone are served; one whom the log does not have is served and marked."""
    known = pd.read_parquet(tuned.project.path("shop/events.parquet"))["user_id"].iloc[0]
    (tmp_path / "users.txt").write_text(f"{known}\nsomebody new\n")
    storage = tmp_path / "runs"
    shutil.copytree(tuned.folder, storage / tuned.project.run.name)
    run_recommend(tuned.project, str(storage), say_nothing, ("shop",), str(tmp_path / "users.txt"))
    folder = storage / tuned.project.run.name / "recommendations_listed" / "shop"
    table = pq.read_table(folder).to_pandas()
    assert set(table["user"]) == {known, "somebody new"}
    new = table[table["user"] == "somebody new"]
    assert new["new_user"].all()
    assert len(new) == 5
    with pytest.raises(ValueError, match=r"--users: found no file"):
        run_recommend(tuned.project, str(storage), say_nothing, ("shop",), "/nowhere.txt")
