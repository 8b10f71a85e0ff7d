"""A stage that was made with other values is refused in one line that names the fields."""

import pytest

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import differences, prepared_with, trained_with
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.run_folder import find_finished, mark_started, refuse_changes
from tests.builders import two_scenario_project


def changed(field: str, value: object) -> Project:
    """The project of two scenarios with one field changed."""
    tree = two_scenario_project().dump()
    *parents, leaf = field.split(".")
    node = tree
    for part in parents:
        node = node[part]
    assert node[leaf] != value
    node[leaf] = value
    return parse_project(tree)


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
    found = list(
        differences(prepared_with(two_scenario_project()), prepared_with(changed(field, value)))
    )
    assert [f.split(" = ")[0] for f in found] == [field]


@pytest.mark.parametrize(("field", "value"), TRAINS)
def test_what_the_joint_model_depends_on(field, value):
    """Weights, model, training and the joint score are the model's, and not the data's."""
    before, now = two_scenario_project(), changed(field, value)
    assert not list(differences(prepared_with(before), prepared_with(now)))
    (found,) = differences(trained_with(before), trained_with(now))
    assert found.startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("run.num_workers", 7), ("run.cache_folder", "/x"), ("evaluation.precision", "fp32")],
)
def test_what_nothing_depends_on(field, value):
    """Workers, caches and the precision of use may change: data and model stay what they are."""
    before, now = two_scenario_project(), changed(field, value)
    assert prepared_with(before) == prepared_with(now)
    assert trained_with(before) == trained_with(now)


def test_the_line_of_a_refusal():
    """One line: the run, the stage, the first fields and how many more, the way out."""
    before, now = dict.fromkeys("abcdef", 1), dict.fromkeys("abcdef", 2)
    with pytest.raises(ProjectError) as caught:
        refuse_changes(before, now, job="train", run="mine", folder="/runs/mine/joint")
    (line,) = caught.value.problems
    assert line == (
        "run.name: found 'mine', whose train stage was made with a = 1 (now 2), b = 1 (now 2), "
        "c = 1 (now 2), d = 1 (now 2) and 2 more; allowed: the same values, another name, or "
        "delete /runs/mine/joint"
    )


def test_a_folder_belongs_to_what_began_it(tmp_path):
    """Looking leaves no mark; after `begin` other values are refused and the same go on."""
    names = {"job": "train", "run": "mine"}
    folder = str(tmp_path / "joint")
    assert find_finished(folder, {"a": 1}, **names) is None
    assert find_finished(folder, {"a": 2}, **names) is None
    mark_started(folder, {"a": 1})
    assert find_finished(folder, {"a": 1}, **names) is None
    with pytest.raises(ProjectError, match=r"a = 1 \(now 2\)"):
        find_finished(folder, {"a": 2}, **names)
