"""A stage that was made with other values is refused in one line that names the fields."""

from typing import Any

import pytest

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import (
    differences,
    joint_model_depends_on,
    prepared_data_depends_on,
)
from mtrec_ray.project.load import value_at, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.stages.evaluate import evaluation_depends_on
from mtrec_ray.stages.run_folder import RunFolder, Stage, keep_search_choice, with_search_choice
from tests.builders import two_scenario_project


def changed(field: str, value: object) -> Project:
    """The project of two scenarios with one field changed."""
    project = two_scenario_project()
    assert value_at(project, field) != value
    return with_overrides(project, {field: value})


def test_differences_name_fields_and_values():
    """Each leaf that differs, is new or is gone is named with both values, and no other."""
    before = {"a": {"b": 1, "c": "x"}, "d": [1, 2], "e": 5}
    now = {"a": {"b": 2, "c": "x"}, "d": [1, 3], "f": None, "g": 6}
    assert list(differences(before, now)) == [
        "a.b = 1 (now 2)",
        "d = [1, 2] (now [1, 3])",
        "e = 5 (now null)",
        "g = null (now 6)",
    ]


PREPARES = [
    ("scenarios.shop.history.last", 7),
    ("scenarios.shop.tasks.click.delay", 60),
    ("model.encoder.max_tokens", 32),
    ("data_seed", 5),
]
TRAINS = [
    ("training.seed", 5),
    ("scenarios.shop.weight", 9.0),
    ("scenarios.video.tasks.stars.weight", 9.0),
    ("model.width", 128),
    ("training.lr", 0.5),
    ("evaluation.weights", {"shop": 1.0}),
    ("evaluation.valid_rows", 9),
]


@pytest.mark.parametrize(("field", "value"), PREPARES)
def test_what_prepared_data_depends_on(field, value):
    """A field that prepared data depends on changes what it was made with, and is named."""
    before, now = two_scenario_project(), changed(field, value)
    found = list(differences(prepared_data_depends_on(before), prepared_data_depends_on(now)))
    assert [f.split(" = ")[0] for f in found] == [field]


@pytest.mark.parametrize(("field", "value"), TRAINS)
def test_what_the_joint_model_depends_on(field, value):
    """Weights, model, training and the joint score are the model's, and not the data's."""
    before, now = two_scenario_project(), changed(field, value)
    assert not list(differences(prepared_data_depends_on(before), prepared_data_depends_on(now)))
    (found,) = differences(
        joint_model_depends_on(before, "data"), joint_model_depends_on(now, "data")
    )
    assert found.startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("run.num_workers", 7), ("run.cache_folder", "/x"), ("evaluation.precision", "fp32")],
)
def test_what_nothing_depends_on(field, value):
    """Workers, caches and the precision of use may change: data and model stay what they are."""
    before, now = two_scenario_project(), changed(field, value)
    assert prepared_data_depends_on(before) == prepared_data_depends_on(now)
    assert joint_model_depends_on(before, "data") == joint_model_depends_on(now, "data")


@pytest.mark.parametrize(
    ("field", "value", "is_other"),
    [
        ("recommend.pairs_per_block", 64, False),
        ("run.num_workers", 7, False),
        ("recommend.k", 3, True),
        ("recommend.exclude_seen", False, True),
        ("evaluation.precision", "fp32", True),
    ],
)
def test_what_an_evaluation_depends_on(field, value, is_other):
    """The size of blocks changes no metric, so that it makes no other evaluation; k does."""
    joint_run: Any = None  # looked at for models only, and there are none
    before, now = two_scenario_project(), changed(field, value)
    found = [evaluation_depends_on(joint_run, {}, project) for project in (before, now)]
    assert (found[0] != found[1]) == is_other


def test_the_line_of_a_refusal():
    """One line: the run, the stage, the first fields and how many more, the way out."""
    before, now = dict.fromkeys("abcdef", 1), dict.fromkeys("abcdef", 2)
    with pytest.raises(ProjectError) as caught:
        Stage("/runs/mine/joint", "train", "mine").refuse_changes(before, now)
    (line,) = caught.value.problems
    assert line == (
        "run.name: found 'mine', whose train stage was made with a = 1 (now 2), b = 1 (now 2), "
        "c = 1 (now 2), d = 1 (now 2) and 2 more; allowed: the same values, another name, or "
        "delete /runs/mine/joint"
    )


def test_a_folder_belongs_to_what_started_it(tmp_path):
    """Looking leaves no mark; after the start other values are refused and the same go on."""
    stage = Stage(str(tmp_path / "joint"), "train", "mine")
    assert stage.finished({"a": 1}) is None
    assert stage.finished({"a": 2}) is None
    stage.start({"a": 1})
    assert stage.finished({"a": 1}) is None
    with pytest.raises(ProjectError, match=r"a = 1 \(now 2\)"):
        stage.finished({"a": 2})
    assert stage.finish({"steps": 3}) == stage.finished({"a": 1}) == stage.result == {"steps": 3}


def test_a_stage_that_is_done_anew_forgets_what_was_made_from_something_else(tmp_path):
    """The same values go on with what is there; others empty the folder."""
    stage = Stage(str(tmp_path / "shop"), "recommend", "mine", prefix="_")
    stage.start_anew({"k": 5})
    (tmp_path / "shop" / "part.parquet").touch()
    stage.start_anew({"k": 5})
    assert (tmp_path / "shop" / "part.parquet").exists()
    stage.finish({"rows": 1})
    assert stage.current({"k": 5}) == {"rows": 1}
    assert stage.current({"k": 6}) is None
    stage.start_anew({"k": 6})
    assert not (tmp_path / "shop" / "part.parquet").exists()
    assert stage.result is None


# --- what the pipeline's search chose --------------------------------------------------------


@pytest.fixture
def searched(tmp_path) -> tuple[Project, RunFolder]:
    """A project whose pipeline searched, and chose another learning rate and weight."""
    project = changed("search.pipeline_trials", 3)
    run = RunFolder.of(project, str(tmp_path))
    chosen = {"trial": "t003", "overrides": {"training.lr": 0.005, "scenarios.shop.weight": 2.5}}
    keep_search_choice(project, run, chosen)
    return project, run


def test_other_jobs_take_what_the_search_chose(searched):
    """The project's own values give way to the choice, and the job says so."""
    project, run = searched
    lines: list[str] = []
    found = with_search_choice(project, run, lines.append)
    assert (found.training.lr, found.scenarios["shop"].weight) == (0.005, 2.5)
    assert with_search_choice(found, run, lines.append) == found  # told once
    assert lines == [
        "with the search's choice (trial t003): training.lr 0.005, scenarios.shop.weight 2.5"
    ]


def test_a_user_s_own_value_is_never_replaced_in_silence(searched):
    """A value that is neither the project's at the search nor the chosen one is refused by name."""
    project, run = searched
    own = with_overrides(project, {"training.lr": 0.0007})
    with pytest.raises(ProjectError) as caught:
        with_search_choice(own, run, print)
    (line,) = caught.value.problems
    assert line.startswith(
        "training.lr: found 0.0007, but this run's search chose 0.005 in place of 0.001; allowed: "
    )


def test_a_chosen_list_is_known_again(tmp_path):
    """A field that is a list: chosen, the job goes on with it; another list is refused."""
    project = changed("search.pipeline_trials", 3)
    run = RunFolder.of(project, str(tmp_path))
    keep_search_choice(project, run, {"trial": "t001", "overrides": {"model.hidden": [24, 12]}})
    found = with_search_choice(project, run, lambda _: None)
    assert found.model.hidden == (24, 12)
    assert with_search_choice(found, run, lambda _: None) == found
    with pytest.raises(ProjectError, match=r"^model\.hidden: found \[9, 9\]"):
        with_search_choice(with_overrides(project, {"model.hidden": [9, 9]}), run, print)


# --- parts of a project ----------------------------------------------------------------------


def test_only_some_scenarios():
    """What names scenarios is cut with them, and nothing else changes."""
    sections = {
        "evaluation.weights": {"shop": 1.0, "video": 2.0},
        "recommend.by": {"shop": {"click": 1.0}, "video": {"like": 1.0}},
        "finetune.scenarios": {"video": {"epochs": 9}},
        "search.choose": "preference",
        "search.preference": {"shop": 1.0},
    }
    project = with_overrides(two_scenario_project(), sections)
    part = project.only(["video"])
    assert list(part.scenarios) == ["video"]
    assert part.evaluation.weights == {"video": 2.0}
    assert list(part.recommend.by) == ["video"]
    assert part.finetune.of("video").epochs == 9
    assert (part.search.choose, part.search.preference) == ("joint", {})
    assert project.only(["shop"]).search.preference == {"shop": 1.0}
    same = ("model", "training", "run", "root", "data_seed")
    assert all(getattr(part, name) == getattr(project, name) for name in same)
    assert with_overrides(part, {}) == part  # the schema allows it
    assert project.only(["video", "shop"]) == project


def test_a_part_keeps_the_options_of_the_whole():
    """Options of a protocol that only another scenario has are no mistake of a part."""
    project = with_overrides(
        two_scenario_project(),
        {"storage_options.sftp": {"port": 22}, "scenarios.shop.items.path": "sftp://host/items"},
    )
    assert list(project.unused_options()) == []
    part = project.only(["video"])
    assert with_overrides(part, {}) == part


def test_a_scenario_kept_out_of_joint_training_can_be_taken_alone():
    """A loss weight of 0 becomes 1 where no other scenario is left."""
    project = changed("scenarios.video.weight", 0.0)
    assert project.only(["video"]).scenarios["video"].weight == 1.0
    assert project.only(["shop", "video"]).scenarios["video"].weight == 0.0
    assert project.single("video").scenarios["video"].weight == 1.0


def test_a_scenario_without_a_weight_in_the_score_can_be_taken_alone():
    """Weights of the score that are all 0 where no other scenario is left become equal ones."""
    project = changed("evaluation.weights", {"shop": 1.0, "video": 0.0})
    assert project.only(["video"]).evaluation.weights == {}
    assert project.only(["shop"]).evaluation.weights == {"shop": 1.0}
