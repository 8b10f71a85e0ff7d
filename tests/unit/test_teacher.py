"""The teacher: no row's prediction rests on its user's labels; mixed labels are what they say."""

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.prepared import TeacherLabels, load_prepared
from mtrec_ray.data.shards import TEACHER, read_cut, to_arrays
from mtrec_ray.project.load import parse_project
from mtrec_ray.training import teacher
from mtrec_ray.training.batches import BatchComposer
from mtrec_ray.training.teacher_labels import mix_labels, with_teacher_labels
from tests.builders import (
    FACTS,
    make_catalogues,
    make_rows,
    pick,
    small_model,
    take,
    two_scenario_project,
    write_prepared,
)

NUM_ROWS = 400


def project_of(**teacher):
    """A project with a small teacher."""
    tree = two_scenario_project().dump() | {"model": small_model("none").model_dump(mode="json")}
    tree["training"]["teacher"] = {"rounds": 5, "share": 0.25, "least_labels": 20, **teacher}
    return parse_project(tree)


@pytest.fixture
def project():
    """A project whose teacher needs few labels."""
    return project_of()


def write(folder, change=None):
    """Prepared rows in two shards; `change` alters the arrays of shop."""
    rng = np.random.default_rng(2)
    shards = {}
    for name, facts in FACTS.items():
        rows = make_rows(rng, facts, NUM_ROWS)
        rows["person"] = np.arange(NUM_ROWS) % 40
        rows["labels"][:, 0] = rows["numeric"][:, 0] > 0
        if change and name == "shop":
            change(rows)
        train = [take(rows, slice(0, 250)), take(rows, slice(250, None))]
        shards[name] = {"train": train, "valid": [make_rows(rng, facts, 100)]}
    return write_prepared(folder, make_catalogues(), shards)


def taught(project, prepared, folder):
    """The teacher's predictions of shop's rows."""
    teacher.fit_teacher(project, prepared, "shop", str(folder))
    tables = [pq.read_table(folder / "shop" / f"part-{i:05}.parquet") for i in range(2)]
    return np.concatenate([np.stack(t.column(TEACHER).to_numpy()) for t in tables])


def test_no_prediction_rests_on_labels_of_its_user(project, tmp_path):
    """Turning all labels of a user changes predictions of others, and none of its own."""

    def turn(rows):
        mine = rows["person"] == 7
        rows["labels"][mine] = 1 - rows["labels"][mine]

    before = taught(project, write(tmp_path / "a"), tmp_path / "ta")
    after = taught(project, write(tmp_path / "b", turn), tmp_path / "tb")
    mine = np.arange(NUM_ROWS) % 40 == 7
    np.testing.assert_array_equal(before[mine], after[mine])
    assert not np.array_equal(before[~mine], after[~mine], equal_nan=True)


def test_predictions_are_of_labelled_rows(project, tmp_path):
    """They follow the labels that the columns explain, and are null where there is no label."""
    prepared = write(tmp_path / "a")
    found = taught(project, prepared, tmp_path / "t")
    labels = np.concatenate([np.stack(s.read().column("labels").to_numpy())
                             for s in prepared.train_shards("shop")])  # fmt: skip
    np.testing.assert_array_equal(np.isnan(found), np.isnan(labels))
    known = np.isfinite(labels[:, 0])
    assert (
        found[known & (labels[:, 0] == 1), 0].mean() > found[known & (labels[:, 0] == 0), 0].mean()
    )


def test_batches_have_mixed_labels(project, tmp_path):
    """A share of the prediction, rest label; but a parent over the entire space stays 0 or 1."""
    prepared = load_prepared(write(tmp_path / "a").folder)
    found = taught(project, prepared, tmp_path / "t")
    plain = to_arrays(prepared.train_shards("shop")[1].read())
    with_teacher = replace(prepared, teacher_labels=TeacherLabels(str(tmp_path / "t"), 0.25))
    shard = with_teacher.train_shards("shop")[1]
    rows = to_arrays(shard.read())
    np.testing.assert_array_equal(rows["labels"], plain["labels"])
    mixed = with_teacher_labels(FACTS["shop"], rows, 0.25)
    assert set(mixed) == set(plain)
    before, after = plain["labels"], mixed["labels"]
    np.testing.assert_array_equal(after[:, 0], before[:, 0])  # click, the parent of buy
    known = np.isfinite(found[250:, 1])
    wanted = (0.75 * before + 0.25 * found[250:])[known, 1]
    np.testing.assert_array_equal(after[known, 1], wanted)
    part = with_teacher_labels(FACTS["shop"], to_arrays(shard.read(20, 33)), 0.25)
    np.testing.assert_array_equal(part["labels"], after[20:33])


def test_the_composer_mixes_labels(project, tmp_path):
    """The labels of a composed batch are those of whole shards mixed before the rows are cut."""
    prepared = load_prepared(write(tmp_path / "a").folder)
    for name in FACTS:
        teacher.fit_teacher(project, prepared, name, str(tmp_path / "t"))
    prepared = replace(prepared, teacher_labels=TeacherLabels(str(tmp_path / "t"), 0.25))
    shards = {n: [to_arrays(s.read()) for s in prepared.train_shards(n)] for n in FACTS}
    composer = BatchComposer(prepared, {"shop": 70, "video": 30}, 0, (0, 1))
    composer.open(lambda plans: {n: map(partial(pick, shards[n]), p.slices)
                                 for n, p in plans.items()}, 3)  # fmt: skip
    mixed_before = {}
    for name, facts in FACTS.items():
        parts = [with_teacher_labels(facts, rows, 0.25) for rows in shards[name]]
        rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        mixed_before[name] = dict(zip(rows["row"].tolist(), rows["labels"], strict=True))
    plain = 0
    for _ in range(3):
        for name, rows in composer.next_batch().items():
            wanted = np.stack([mixed_before[name][row] for row in rows["row"].tolist()])
            np.testing.assert_array_equal(rows["labels"], wanted)
            assert TEACHER not in rows
            plain += np.isin(rows["labels"], [0, 1]).all()
    assert not plain


def test_few_labels_have_no_teacher(tmp_path):
    """A task with fewer labels of the rarer kind than the least keeps its labels."""
    project = project_of(least_labels=10_000)
    assert np.isnan(taught(project, write(tmp_path / "a"), tmp_path / "t")).all()


def test_mixing():
    """Labels without a prediction, unknown ones and hard tasks stay."""
    labels = np.array([[1.0, 0.0], [0.0, np.nan], [1.0, 1.0]])
    predicted = np.array([[0.5, 0.5], [np.nan, 0.5], [0.0, 0.0]])
    found = mix_labels(labels, predicted, 0.5, np.array([True, False]))
    np.testing.assert_array_equal(found, [[0.75, 0.0], [0.0, np.nan], [0.5, 1.0]])


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 4), (4, 11), (0, None), (9, 11), (5, 5)])
def test_cuts_of_files(tmp_path, start, stop):
    """Rows start..stop whatever the row groups."""
    import pyarrow as pa

    pq.write_table(pa.table({"a": list(range(11))}), tmp_path / "x.parquet", row_group_size=4)
    found = read_cut(str(tmp_path / "x.parquet"), start, stop)
    assert found.column("a").to_pylist() == list(range(11))[start:stop]
