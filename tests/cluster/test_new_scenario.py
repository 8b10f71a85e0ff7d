"""A new scenario joins a finished joint model by the project file; the others do not change."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.end_states import read_states, stored_users
from mtrec_ray.data.shards import read_rows
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.evaluate import run_evaluate
from mtrec_ray.stages.finetune import Options, run_finetune
from mtrec_ray.stages.finetuning.chosen_model import (
    base_model,
    score_split_by_tasks,
    zero_shot_model,
)
from mtrec_ray.stages.finetuning.joint_run import open_joint_run
from mtrec_ray.stages.recommend import run_recommend
from tests.cluster.logs import scenario_tree
from tests.cluster.runs import say_nothing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]


def with_news(project: Project, **finetune: Any) -> Project:
    """The project with a third scenario of the same world, whose users it shares.

    It sees what they took in the others.
    """
    tree = project.dump()
    tree["scenarios"]["news"] = scenario_tree(
        "news",
        split={"time": ["2025-03-12", "2025-03-22"]},
        history={"of": "click", "last": 5, "elsewhere": 6},
        users="people",
    )
    fields = {"epochs": 1, "rows_per_epoch": 1280, "least_labels": 10, "keep": "better"}
    return parse_project(tree | {"finetune": fields | finetune, "recommend": {"k": 5}})


@dataclass(frozen=True)
class Joined:
    """A run that news has joined, and its predictions of the others before and after."""

    project: Project
    storage: Path
    record: dict[str, Any]
    outputs: dict[str, tuple[Any, Any]]

    @property
    def folder(self) -> Path:
        return self.storage / self.project.run.name


@pytest.fixture(scope="module")
def joined(trained, tmp_path_factory) -> Joined:
    storage = tmp_path_factory.mktemp("joined")
    shutil.copytree(trained.folder, storage / trained.project.run.name)
    project = with_news(trained.project)
    before = others(trained.project, storage)
    points = ("0", "64", "all", "99999")
    record = run_finetune(project, str(storage), say_nothing, Options(("news",), shots=points))
    after = others(project, storage)
    return Joined(project, storage, record, {n: (before[n], after[n]) for n in before})


def others(project, storage):
    """The joint model's predictions of the scenarios that it has."""
    joint_run = open_joint_run(project, str(storage))
    return {n: score_split_by_tasks(base_model(joint_run), n, "test")[2] for n in ("shop", "video")}


@pytest.mark.parametrize("name", ["shop", "video"])
def test_other_outputs_are_the_same_bits(joined, name):
    """After news has joined, the predictions of the others are the same to the bit."""
    before, after = joined.outputs[name]
    np.testing.assert_array_equal(before, after)


def test_it_has_a_decision(joined):
    """The new scenario has a model of its own, or the general head's."""
    decision = joined.record["scenarios"]["news"]
    assert decision["chosen"] in ("finetuned", "zero-shot")
    assert decision["bytes"] > 0


def test_users_keep_their_numbers(joined):
    """News's users have the numbers that the joint model knows them by; others are unknown."""
    joint_run = open_joint_run(joined.project, str(joined.storage))
    known = stored_users(joint_run.prepared, "people")
    assert len(known) + 1 == joint_run.prepared.scenarios["shop"].num_users
    state = read_states(joint_run.data("news"), "news", "users")
    assert state is not None
    hashes = hash_strings(state.column("user_id"))
    numbers = state.column("user").to_numpy()
    assert (numbers > 0).sum() > 20
    for value, number in zip(hashes, numbers, strict=True):
        assert (number > 0) == (value in known)
        assert number == 0 or known[number - 1] == value


def test_it_sees_what_its_users_took_in_the_others(joined):
    """Rows of both, of which the joint model has no part; their own data sees nothing of it."""
    joint_run = open_joint_run(joined.project, str(joined.storage))
    assert all(facts.elsewhere is None for facts in joint_run.prepared.scenarios.values())
    timeline = joint_run.data("news").timeline("news")
    assert timeline.facts.scenarios == ["shop", "video", "news"]
    assert set(timeline.facts.origins(timeline.item)) == {0, 1}
    assert len(timeline.texts) == sum(timeline.facts.num_items.values())
    rows = next(read_rows(joint_run.data("news").shard_paths("news", "test"), 999, 0, 999))
    taken = timeline.taken(rows["person"], rows["time"]).items
    assert (taken >= 0).any(1).mean() > 0.5


def test_it_learns_a_side_of_its_own(joined):
    """What reads other scenarios' items is stored with its own layers, and has moved."""
    path = joined.folder / "scenarios" / "news" / "delta" / "own.safetensors"
    weights = load_file(path)
    assert weights["elsewhere.news.similarity.weight"].any()


def test_zero_shot_knows_something(joined):
    """Before any training the general head ranks news better than a coin does."""
    joint_run = open_joint_run(joined.project, str(joined.storage))
    served = zero_shot_model(joint_run, "news", joined.project)
    _, labels, scores = score_split_by_tasks(served, "news", "test")
    known = np.isfinite(labels[:, 0])
    positive, negative = (scores[known & (labels[:, 0] == x), 0] for x in (1, 0))
    auc = (positive[:, None] > negative[None]).mean()
    assert auc > 0.52


def test_learning_curve(joined):
    """With no row there is the general head alone; with 64 a joined model and one alone.

    More rows than there are is one run with all of them.
    """
    curve = joined.record["shots"]["news"]
    assert set(curve) == {"0 rows, joined"} | {
        f"{rows} rows, {how}" for rows in ("64", "all", "99999") for how in ("joined", "alone")
    }
    for point in curve.values():
        assert 0 <= point["click"]["auc"] <= 1
    assert curve["99999 rows, alone"] == curve["all rows, alone"]
    folders = list((joined.folder / "scenarios" / "news" / "shots").iterdir())
    assert len(folders) == 4
    epochs = {
        len(json.loads((f / "training" / "finished.json").read_text())["curve"]) for f in folders
    }
    assert epochs == {1}


def test_a_learning_curve_is_of_a_new_scenario(joined):
    """Of one that the joint model has: one clear line."""
    with pytest.raises(ProjectError, match=r"--shots: found no new scenario among shop; allowed"):
        run_finetune(
            joined.project, str(joined.storage), say_nothing, Options(("shop",), shots=("0",))
        )


def test_other_task_weights_are_another_model(joined):
    """A joined scenario that was fine-tuned with other weights of its tasks is not taken."""
    tree = joined.project.dump()
    tree["scenarios"]["news"]["tasks"]["click"]["weight"] = 0.3
    with pytest.raises(ProjectError, match=r"finetune stage was made with scenarios\.news\.tasks"):
        run_finetune(parse_project(tree), str(joined.storage), say_nothing, Options(("news",)))


def test_a_choice_for_other_weights(joined, tmp_path):
    """A decision for other joint weights is refused where the model is used."""
    shutil.copytree(joined.folder, tmp_path / joined.project.run.name)
    mark = tmp_path / joined.project.run.name / "scenarios" / "news" / "started.json"
    made_with = json.loads(mark.read_text())
    made_with["joint"]["fingerprint"] = "0123456789abcdef"
    mark.write_text(json.dumps(made_with))
    with pytest.raises(ValueError, match=r"scenario news: .*other joint weights \(0123456789abcd"):
        run_recommend(joined.project, str(tmp_path), say_nothing, ("news",))


def test_it_is_evaluated_and_recommended(joined):
    """Evaluation and recommendations hold the new scenario; joint metrics do not."""
    found = run_evaluate(joined.project, str(joined.storage), say_nothing)
    assert set(found["metrics"]) == {"shop", "video", "news"}
    assert set(found["joint_metrics"]) == {"shop", "video"}
    run_recommend(joined.project, str(joined.storage), say_nothing, ("news",))
    table = pq.read_table(joined.folder / "recommendations" / "news").to_pandas()
    assert table.groupby("user").size().max() == 5


def test_too_few_labels_are_scored_generally(joined, tmp_path):
    """A new scenario with too few labels is scored by the general head, and says so."""
    shutil.copytree(joined.folder, tmp_path / joined.project.run.name)
    folder = tmp_path / joined.project.run.name / "scenarios" / "news"
    for file in ("started.json", "finished.json", "decision.json"):
        (folder / file).unlink()
    shutil.rmtree(folder / "delta")
    project = with_news(joined.project, least_labels=10**6)
    found = run_finetune(project, str(tmp_path), say_nothing, Options(("news",)))
    assert found["scenarios"]["news"]["chosen"] == "zero-shot"
    assert "too few validation labels" in found["scenarios"]["news"]["reason"]
    served = run_recommend(project, str(tmp_path), say_nothing, ("news",))
    assert served["scenarios"]["news"]["model"] == "zero-shot"


def test_unknown_user_space_is_refused(joined, tmp_path):
    """Users of a space that the joint model does not have: one clear line."""
    tree = joined.project.dump()
    tree["scenarios"]["news"]["users"] = "strangers"
    shutil.copytree(joined.folder, tmp_path / joined.project.run.name)
    shutil.rmtree(tmp_path / joined.project.run.name / "scenarios")
    with pytest.raises(ProjectError, match=r"news\.users: found 'strangers'.*allowed: null, peop"):
        run_finetune(parse_project(tree), str(tmp_path), say_nothing, Options(("news",)))


def test_not_prepared_is_told(trained, joined):
    """Recommending in a scenario that has not joined names the command."""
    with pytest.raises(ProjectError, match=r"scenarios\.news: .*finetune --scenario news"):
        run_recommend(with_news(trained.project), str(trained.storage), say_nothing, ("news",))
