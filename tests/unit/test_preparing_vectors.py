"""Columns of ready vectors as they are read and prepared, without Ray; what is wrong is a line."""

import json
from dataclasses import asdict

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtrec_ray.data import mapped_arrays, vectors
from mtrec_ray.data.catalogue import TOKENS, assemble, load_catalogue
from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.preparing import inputs
from mtrec_ray.data.preparing.audit_profiles import read_audit_profiles
from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.data.preparing.problems import item_problems, user_problems
from mtrec_ray.data.preparing.profiles import (
    KnownUsers,
    TrainingUsers,
    user_vector_problems,
    write_profiles,
)
from mtrec_ray.data.preparing.vectors import (
    incomplete_vectors,
    item_vector_problems,
    write_table_vectors,
)
from mtrec_ray.data.profiles import ProfileFacts, load_profiles
from mtrec_ray.data.storage import read_json, write_bytes, write_json, write_table
from mtrec_ray.model.profiles import Asking, ProfileInputs
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import prepared_data_depends_on
from mtrec_ray.project.load import parse_project
from mtrec_ray.stages.prepare import with_parquet
from tests.builders import project_tree, scenario_tree

NUM = 40
TRAIN = np.arange(NUM) < 30
VALUES = np.random.default_rng(3).integers(-9, 10, (NUM, 4)) + 5
ROWS = [None if i % 7 == 6 else row.tolist() for i, row in enumerate(VALUES)]
GIVEN = np.array([row is not None for row in ROWS])
KINDS = {
    "halves": pa.list_(pa.float16()), "doubles": pa.list_(pa.float64()),
    "fixed": pa.list_(pa.float32(), 4), "fixed_halves": pa.list_(pa.float16(), 4),
    "large": pa.large_list(pa.float32()), "integers": pa.list_(pa.int64()),
    "fixed_integers": pa.list_(pa.int8(), 4), "decimals": pa.list_(pa.decimal128(6, 2)),
}  # fmt: skip


def project_of(root, **fields):
    """A shop with a catalogue in files."""
    items = {"path": "items", "text": "{title}", "vectors": ["image"]} | fields
    tree = scenario_tree({"click": {"kind": "binary"}}, items=items)
    return parse_project(project_tree({"shop": tree}, root=str(root)))


def table_of(image, kind=None) -> pa.Table:
    """Items with vectors."""
    ids = [f"i{i}" for i in range(len(image))]
    return pa.table({"item_id": ids, "title": ids, "image": pa.array(image, kind)})


def write_items(root, *tables) -> None:
    """Files of a catalogue."""
    (root / "items").mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, root / "items" / f"{number}.parquet")


def read_items(project) -> pa.Table:
    """The catalogue, with token ids that say nothing."""
    table = inputs.read_items(project, "shop")
    return table.append_column(TOKENS, pa.array([[1]] * len(table), pa.list_(pa.int32())))


def prepared(root, project, train=TRAIN):
    """The prepared catalogue of a project's files."""
    table, path = read_items(project), str(root / "out" / "catalogue.parquet")
    assert not item_problems(project, {"shop": table})
    out, _ = assemble(table, project.scenarios["shop"], train.astype(int))
    write_table(path, out)
    scales = write_table_vectors(path, table, project.scenarios["shop"].items.vectors, train)
    return load_catalogue(path, vectors=True), scales


def wanted(values=VALUES, given=GIVEN, train=TRAIN) -> np.ndarray:
    """The vectors, standardised by the rows of training, by hand."""
    own = values[given & train].astype(float)
    scale = np.sqrt(((own - own.mean(0)) ** 2).mean())
    return np.where(given[:, None], (values - own.mean(0)) / scale, np.nan)


def assert_prepared(found, expected=None):
    np.testing.assert_allclose(found, wanted() if expected is None else expected, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_every_kind_of_number_are_vectors(tmp_path, kind):
    """Of fixed and of free size, over files of unequal kinds; null rows have none."""
    table = table_of(ROWS, KINDS[kind])
    write_items(tmp_path, table.slice(0, 11), table.slice(11).select([2, 1, 0]))
    project = project_of(tmp_path)
    assert not [line for line in input_problems(project) if ".items" in line]
    catalogue, scales = prepared(tmp_path, project)
    assert_prepared(catalogue.vectors[0])
    assert (catalogue.vectors[0].dtype, catalogue.num_items) == (np.float16, NUM)
    np.testing.assert_allclose(scales["image"].mean, VALUES[GIVEN & TRAIN].mean(0))


def test_files_may_hold_other_kinds_of_numbers(tmp_path):
    """Lists of halves in one file and of integers of a fixed size in the next are one column."""
    first, second = table_of(ROWS, KINDS["halves"]), table_of(ROWS, KINDS["fixed_integers"])
    write_items(tmp_path, first.slice(0, 20), second.slice(20))
    assert not [line for line in input_problems(project_of(tmp_path)) if ".items" in line]
    assert_prepared(prepared(tmp_path, project_of(tmp_path))[0].vectors[0])


def test_arrays_of_json_lines_are_vectors(tmp_path):
    """Whole numbers and others beside each other, and null."""
    rows = [{"item_id": f"i{i}", "title": "x", "image": row} for i, row in enumerate(ROWS)]
    rows[0]["image"] = [float(x) + 0.25 for x in VALUES[0]]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    project = project_of(tmp_path, path="items.jsonl")
    readable = with_parquet(project, str(tmp_path), lambda _: None, [("shop", "items")])
    catalogue, _ = prepared(tmp_path, readable)
    values = VALUES.astype(float)
    values[0] += 0.25
    assert_prepared(catalogue.vectors[0], wanted(values))


def test_the_order_of_the_file_changes_no_vector(tmp_path):
    """Rows in another order have the same vectors, also over many blocks of few rows."""
    order = np.random.default_rng(1).permutation(NUM)
    write_items(tmp_path, table_of(ROWS).take(order))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK_ROWS", 3)
        catalogue, _ = prepared(tmp_path, project_of(tmp_path), TRAIN[order])
    assert_prepared(catalogue.vectors[0], wanted()[order])


def test_a_vector_with_a_number_that_is_not_finite_is_missing(tmp_path):
    """Null, NaN, infinity and a number beyond 32 bits; all of it is counted."""
    rows = [list(map(float, row)) if row else None for row in ROWS]
    odd = [None, np.nan, np.inf, 1e300]
    for place, value in enumerate(odd):
        rows[place][place % 4] = value
    write_items(tmp_path, table_of(rows, pa.list_(pa.float64())))
    project = project_of(tmp_path)
    catalogue, _ = prepared(tmp_path, project)
    given = GIVEN & (np.arange(NUM) >= len(odd))
    assert_prepared(catalogue.vectors[0], wanted(given=given))
    words = "vector of image with a null, NaN or infinite number"
    assert incomplete_vectors(read_items(project), ["image"]) == {words: len(odd)}


def test_a_vector_may_say_that_there_is_none(tmp_path):
    """By values that mean missing in all of its numbers; one of them among others is a number."""
    rows = [*ROWS[:5], [0, 0, 0, 0], None, [-1, 0, 0, -1], [0, 2, 0, -1], [0, 0, 0, 0.5]]
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float16(), 4)):
        table = table_of(rows, kind)
        write_items(tmp_path, table.slice(0, 6), table.slice(6))
        read = inputs.read_items(project_of(tmp_path, missing={"image": [-1, 0]}), "shop")
        assert read.column("image").to_pylist() == [*rows[:5], None, None, None, *rows[8:]]


def test_equal_vectors_have_scale_one(tmp_path):
    """A column that says nothing divides by nothing."""
    write_items(tmp_path, table_of([[0.1, 0.7]] * NUM))
    catalogue, scales = prepared(tmp_path, project_of(tmp_path))
    assert scales["image"].scale == 1
    np.testing.assert_allclose(catalogue.vectors[0], 0, atol=1e-6)


def test_long_vectors_that_differ_are_no_copies(tmp_path):
    """Rows of one id are copies where each number is equal, also in the middle of long ones."""
    image = np.zeros((4, 3000), np.float32)
    image[1, 1500] = 1
    table = table_of(list(image)).set_column(0, "item_id", pa.array(["a", "a", "b", "b"]))
    write_items(tmp_path, table.set_column(1, "title", pa.array(["x"] * 4)))
    read = inputs.read_items(project_of(tmp_path), "shop")
    assert read.column("item_id").to_pylist() == ["a", "a", "b"]


def test_vectors_are_mapped(tmp_path):
    """They are not read until they are used, and are not written back."""
    write_items(tmp_path, table_of(ROWS))
    catalogue, _ = prepared(tmp_path, project_of(tmp_path))
    assert isinstance(catalogue.vectors[0], np.memmap)
    file = tmp_path / "out" / "catalogue.vectors.0.npy"
    before = file.read_bytes()
    catalogue.vectors[0][:] = 0
    assert file.read_bytes() == before
    assert not load_catalogue(str(tmp_path / "out" / "catalogue.parquet")).vectors


def test_vectors_of_a_remote_storage_are_copied_once(tmp_path, monkeypatch):
    """To a folder of this node; another version of the file is another copy, old ones go."""
    monkeypatch.setattr(mapped_arrays, "arrays_folder", lambda: tmp_path / "arrays")
    path, copies = "memory://vectors/a.npy", tmp_path / "arrays"
    for number in (3, 4):
        array = np.arange(number, dtype=np.float16)
        vectors.write_vectors(
            path, pa.chunked_array([pa.array([array.tolist()], pa.large_list(pa.float32()))]),
            vectors.VectorScale([0.0] * number, 1.0),
        )  # fmt: skip
        for _ in range(2):
            np.testing.assert_array_equal(mapped_arrays.map_array(path), array[None])
        assert len(list(copies.glob("*.npy"))) == number - 2
    monkeypatch.setattr(mapped_arrays, "MAX_BYTES", 300)
    write_bytes(path, fsspec.filesystem("memory").cat("/vectors/a.npy") + b"\0")
    mapped_arrays.map_array(path)
    assert len(list(copies.glob("*.npy"))) == 2


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (
            [[1.0, 2], [3.0, 4, 5], [1.0, 1]],
            "vectors of lengths 2 (such as that of 'i0'), 3 (such as that of 'i1'); allowed: one "
            "length",
        ),
        (
            [[1.0, 2], None, [], []],
            "2 vectors of length 0, such as that of 'i2'; allowed: numbers, or null where there is "
            "none",
        ),
    ],
)
def test_lengths_that_cannot_be_are_one_line(tmp_path, image, line):
    """Lengths that differ, and empty vectors, with an id, in catalogues and tables of users."""
    write_items(tmp_path, table_of(image))
    project = project_of(tmp_path)
    found = f"found column 'image' with {line}"
    read = inputs.read_items(project, "shop")
    assert item_problems(project, {"shop": read}) == [f"scenarios.shop.items.vectors: {found}"]
    people = users_project(tmp_path, path="items", id="item_id")
    read = {"people": inputs.read_users(people, "people")}
    assert user_problems(people, read) == [f"users.people.vectors: {found}"]


def test_no_vector_in_training_is_one_line(tmp_path):
    """Items of training have none, or only such as have a number that is not finite."""
    rows = [row if i >= 30 else [np.nan] * 4 for i, row in enumerate(ROWS)]
    for image in (rows, [None] * NUM):
        write_items(tmp_path, table_of(image, KINDS["doubles"]))
        project = project_of(tmp_path)
        tables = {"shop": read_items(project)}
        assert item_vector_problems(project, tables, {"shop": TRAIN.astype(int)}) == [
            "scenarios.shop.items.vectors: found column 'image' without a vector of an item that "
            "training knows; allowed: lists of finite numbers, of one of them at least"
        ]
    rows[3] = ROWS[3]
    write_items(tmp_path, table_of(rows, KINDS["doubles"]))
    tables = {"shop": read_items(project)}
    assert not item_vector_problems(project, tables, {"shop": TRAIN.astype(int)})


@pytest.mark.parametrize("image", [["a"], [1.5], [["a"]], [[[1.0]]], [[True]]])
def test_a_column_of_another_kind_is_one_line(tmp_path, image):
    """Texts, numbers, and lists of texts, of lists and of booleans."""
    write_items(tmp_path, table_of(image))
    (line,) = (x for x in input_problems(project_of(tmp_path)) if ".items" in x)
    assert line.startswith("scenarios.shop.items.vectors: found column 'image' of ")
    assert line.endswith("allowed: a list of numbers")


def test_a_column_that_is_not_there_is_one_line(tmp_path):
    """As of any other field."""
    write_items(tmp_path, table_of(ROWS))
    (line,) = (x for x in input_problems(project_of(tmp_path, vectors=["sound"])) if ".items" in x)
    assert line.startswith("scenarios.shop.items.vectors: found no column 'sound' in ")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"categorical": ["image"]}, "categorical"), ({"numeric": ["image"]}, "numeric"),
        ({"lists": ["image"]}, "lists"), ({"separators": {"image": "|"}}, "separators"),
        ({"text": "{image}"}, "text"), ({"id": "image"}, "id"), ({"published": "image"},
        "published"),
    ],
)  # fmt: skip
def test_a_column_of_two_fields_is_one_line(fields, field):
    """A vector is nothing else."""
    with pytest.raises(ProjectError) as error:
        project_of("", **fields)
    assert error.value.problems == [
        f"scenarios.shop.items.vectors: found 'image', which {field} names, too; allowed: in one "
        "of them"
    ]


# --- users -----------------------------------------------------------------------------------


def users_project(root, **fields):
    """A shop whose users have a table with vectors alone."""
    shop = scenario_tree({"click": {"kind": "binary"}}, users="people")
    users = {"path": "people.parquet", "vectors": ["image"]} | fields
    return parse_project(project_tree({"shop": shop}, root=str(root), users={"people": users}))


def prepared_users(root, image, stored=None):
    """Profiles of a table of users of whom training knows the first 30, and their table's place."""
    ids = [f"u{i}" for i in range(len(image))]
    table = pa.table({"user_id": ids, "image": pa.array(image, pa.list_(pa.float32()))})
    pq.write_table(table, root / "people.parquet")
    known = TrainingUsers(np.sort(hash_strings(pa.array(ids[:30]))))
    found = written_users(root, users_project(root), known, stored or {})
    if isinstance(found, list):
        return found
    return *found, hash_strings(pa.array(ids)).view(np.int64)


def written_users(root, project, known, stored):
    """What was fitted on the table that lies there, and the profiles; lines of what is wrong."""
    tables = {"people": inputs.read_users(project, "people")}
    lines = user_vector_problems(project, tables, {"people": known}, stored)
    if lines:
        return lines
    none = pa.array([[]] * tables["people"].num_rows, pa.list_(pa.int32()))
    tables = {"people": tables["people"].append_column(TOKENS, none)}
    facts = write_profiles(project, tables, {"people": known}, stored, str(root / "out"))
    manifest = {"fingerprint": "", "scenarios": {}, "users": facts}
    write_json(str(root / "out" / "manifest.json"), manifest)
    folder = load_prepared(str(root / "out"))
    profiles = load_profiles(folder.folder, "people", folder.users["people"])
    return folder.users["people"], profiles


def test_vectors_of_users_follow_their_persons(tmp_path):
    """They lie in the order of the table, and what was fitted comes back from the manifest."""
    facts, profiles, persons = prepared_users(tmp_path, ROWS)
    assert_prepared(profiles.table.vectors[0][profiles.places(persons, persons)])
    assert ProfileFacts(**asdict(facts)) == facts
    np.testing.assert_allclose(facts.vector_means["image"], VALUES[GIVEN & TRAIN].mean(0))


def test_a_model_that_knows_the_users_keeps_its_scale(tmp_path):
    """Of an id space that a model knows; vectors of another length are one line, none are fine."""
    facts = ProfileFacts({}, {}, [], [], [], False, {"image": [1.0] * 4}, {"image": 2.0})
    stored = {"people": KnownUsers(np.zeros(0, np.uint64), facts)}
    _, profiles, persons = prepared_users(tmp_path, ROWS, stored)
    expected = np.where(GIVEN[:, None], (VALUES - 1) / 2, np.nan)
    assert_prepared(profiles.table.vectors[0][profiles.places(persons, persons)], expected)
    _, profiles, _ = prepared_users(tmp_path, [None] * 5, stored)
    assert profiles.table.vectors[0].shape == (5, 4)
    assert prepared_users(tmp_path, [[1.0, 2.0]] * 3, stored) == [
        "users.people.vectors: found column 'image' with vectors of length 2; allowed: 4, as the "
        "joint model knows them"
    ]


def test_no_vector_of_a_user_of_training_is_one_line(tmp_path):
    """As of items."""
    (line,) = prepared_users(tmp_path, [None] * 30 + ROWS[30:])
    assert line.startswith("users.people.vectors: found column 'image' without a vector of a user ")


def problems_of(root, users, **fields) -> dict[str, list[str]]:
    """What the audit finds wrong in the table of users that `prepared_users` wrote, by user."""
    folder = load_prepared(str(root / "out"))
    profiles = read_audit_profiles(users_project(root, **fields), folder, "shop", users)
    assert profiles is not None
    persons = hash_strings(pa.array(users)).view(np.int64)
    found = {u: profiles.check(u, int(p), 0, 0) for u, p in zip(users, persons, strict=True)}
    return {user: lines for user, lines in found.items() if lines}


def test_the_audit_finds_the_vector_of_another(tmp_path):
    """Honest ones pass, also missing and odd ones; one that is another's is a line."""
    rows = [*ROWS]
    rows[2] = [np.nan, 1, 2, 3]
    rows[3] = [1e8, 0, 0, 0]
    _, profiles, persons = prepared_users(tmp_path, rows)
    users = ["u0", "u2", "u3", "u6", "u35", "nobody"]
    assert not problems_of(tmp_path, users, missing={"image": ["none", 17]})
    path = tmp_path / "out" / "profiles.people.vectors.0.npy"
    stored = np.load(path)
    places = profiles.places(persons, persons)
    stored[places[[0, 6]]] = stored[places[[6, 0]]]
    np.save(path, stored)
    found = problems_of(tmp_path, users)
    assert set(found) == {"u0", "u6"}
    assert found["u0"][0].startswith("profile.image: prepared None, in the table [")
    assert found["u6"][0].endswith("], in the table None")


def changing_users(root):
    """Profiles of 36 users with three rows each, in no order, written at 0, 1000 and 2000 ms.

    Training ended at 1,500 ms and knows the first 30; a third of the rows has no vector. Also the
    vectors f32[36, 3, 2], NaN where there is none, and the users' hashes.
    """
    rng = np.random.default_rng(3)
    vectors = rng.normal([3.0, -1.0], 2.0, (36, 3, 2)).astype(np.float32)
    vectors[rng.random((36, 3)) < 1 / 3] = np.nan
    rows = [(f"u{u}", 1000 * k, vectors[u, k].tolist()) for u in range(36) for k in range(3)]
    ids, times, image = zip(*(rows[i] for i in rng.permutation(len(rows))), strict=True)
    image = pa.array([None if np.isnan(v).any() else v for v in image], pa.list_(pa.float32()))
    pq.write_table(pa.table({"user_id": ids, "at": times, "image": image}), root / "people.parquet")
    hashes = hash_strings(pa.array([f"u{u}" for u in range(36)]))
    known = TrainingUsers(np.sort(hashes[:30]), 1500)
    facts, profiles = written_users(root, users_project(root, **CHANGING), known, {})
    return facts, profiles, vectors, hashes.view(np.int64)


CHANGING = {"time": "at", "time_unit": "ms"}


def test_vectors_of_users_are_those_that_held(tmp_path):
    """Of the last row strictly before the moment, as the model finds it; scaled by what training
    could see."""
    facts, profiles, vectors, persons = changing_users(tmp_path)
    seen = vectors[:30, :2].reshape(-1, 2)
    mean = np.nanmean(seen, 0)
    np.testing.assert_allclose(facts.vector_means["image"], mean, rtol=1e-5)
    scaled = (vectors - mean) / facts.vector_scales["image"]
    inputs_of = ProfileInputs(profiles, 4, 0, 1.0)
    inputs_of.absent.data.fill_(7.0)
    (own,) = inputs_of.vectors
    own.absent.data.fill_(5.0)
    for moment, row in ((0, -1), (1, 0), (1000, 0), (1001, 1), (2000, 1), (2001, 2)):
        moments = np.full(36, moment)
        found = inputs_of(Asking(torch.tensor(persons), torch.tensor(moments))).detach().numpy()
        if row < 0:
            assert (found == 7.0).all()
            continue
        stored = profiles.table.vectors[0][profiles.places(persons, moments)]
        np.testing.assert_allclose(stored, scaled[:, row], atol=2e-3)
        expected = scaled[:, row] @ own.project.weight.detach().numpy().T
        expected = np.where(np.isnan(expected), 5.0, expected)
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_the_audit_finds_the_vector_of_another_time(tmp_path):
    """Two rows of a user whose vectors are exchanged: a line at each moment that sees one."""
    _, profiles, vectors, persons = changing_users(tmp_path)
    user = int(np.isfinite(vectors[:, :2, 0]).all(1).argmax())
    folder = load_prepared(str(tmp_path / "out"))

    def lines(moment):
        project = users_project(tmp_path, **CHANGING)
        own = read_audit_profiles(project, folder, "shop", [f"u{user}"])
        return own.check(f"u{user}", int(persons[user]), moment, moment)

    assert not [line for moment in (0, 1, 1000, 1001, 2001) for line in lines(moment)]
    path = tmp_path / "out" / "profiles.people.vectors.0.npy"
    stored = np.load(path)
    places = profiles.places(persons[[user, user]], np.array([1, 1001]))
    stored[places] = stored[places[::-1]]
    np.save(path, stored)
    for moment in (1, 1000, 1001):
        (line,) = lines(moment)
        assert line.startswith("profile.image: prepared [")
    assert not lines(0)
    assert not lines(2001)


def test_without_vectors_nothing_is_written_anew(tmp_path):
    """What prepared data depends on, and its manifest, are those of before there were vectors."""
    fields = prepared_data_depends_on(project_of(tmp_path, vectors=[]))
    assert "vectors" not in fields["scenarios"]["shop"]["items"]
    fields = prepared_data_depends_on(project_of(tmp_path))
    assert fields["scenarios"]["shop"]["items"]["vectors"] == ["image"]
    prepared_users(tmp_path, ROWS)
    facts = read_json(str(tmp_path / "out" / "manifest.json"))["users"]["people"]
    assert {"vector_means", "vector_scales"} <= set(facts)
