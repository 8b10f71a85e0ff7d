"""The teacher's trees by Ray tasks, and training on labels that they were mixed into."""

import json

import numpy as np
import pytest

from mtrec_ray.data.shards import TEACHER, read_cut
from mtrec_ray.project.base import ProjectError
from mtrec_ray.stages import teacher as teacher_stage
from mtrec_ray.stages.teacher import add_teacher_labels
from tests.cluster.runs import changed, say_nothing

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def taught(trained, tmp_path_factory):
    """The sample world with a teacher, its prepared data, and the run's folder."""
    teacher = {"share": 0.5, "rounds": 20, "least_labels": 30}
    project = changed(trained.project, training={"teacher": teacher})
    folder = tmp_path_factory.mktemp("taught")
    return project, add_teacher_labels(project, trained.prepared, str(folder), say_nothing), folder


def test_every_shard_is_taught(taught):
    """Each training shard has a file of as many rows, with predictions of labelled rows."""
    _, prepared, folder = taught
    for name, facts in prepared.scenarios.items():
        for shard in prepared.train_shards(name):
            found = np.stack(read_cut(shard.teacher_path).column(TEACHER).to_numpy())
            labels = np.stack(read_cut(shard.path).column("labels").to_numpy())
            assert found.shape == labels.shape == (len(labels), len(facts.tasks))
            assert not np.isfinite(found[np.isnan(labels)]).any()
        trees = json.loads((folder / "teacher" / name / "finished.json").read_text())
        assert trees
        assert set(trees) <= set(facts.tasks)


def test_finished_is_not_repeated(taught, trained, monkeypatch):
    """A second call fits nothing; another teacher under the same name is refused."""
    project, prepared, folder = taught
    monkeypatch.setattr(teacher_stage, "connect", None)
    again = add_teacher_labels(project, trained.prepared, str(folder), say_nothing)
    assert again.teacher_labels == prepared.teacher_labels
    other = changed(
        trained.project, training={"teacher": {"share": 0.5, "rounds": 21, "least_labels": 30}}
    )
    with pytest.raises(ProjectError, match=r"^run\.name: .*rounds = 20 \(now 21\)"):
        add_teacher_labels(other, trained.prepared, str(folder), say_nothing)


def test_another_share_needs_no_new_trees(taught, trained, monkeypatch):
    """The share is applied where labels are read."""
    monkeypatch.setattr(teacher_stage, "connect", None)
    _, _, folder = taught
    teacher = {"rounds": 20, "least_labels": 30, "share": 0.25}
    project = changed(trained.project, training={"teacher": teacher})
    found = add_teacher_labels(project, trained.prepared, str(folder), say_nothing)
    assert found.teacher_labels.share == 0.25
