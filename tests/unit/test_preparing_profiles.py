"""Tables of users as they are prepared, and the audit of them: without Ray, the log left out."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.catalogue import TOKENS
from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.data.preparing import inputs
from mtrec_ray.data.preparing.audit_profiles import read_audit_profiles
from mtrec_ray.data.preparing.problems import user_problems
from mtrec_ray.data.preparing.profiles import (
    KnownUsers,
    profile_problems,
    without_profile,
    write_profiles,
)
from mtrec_ray.data.profiles import ProfileFacts, profiles_path
from mtrec_ray.data.storage import read_table, write_json, write_table
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from tests.builders import project_tree, scenario_tree

NUM = 40
COUNTRY = [None if i == 3 else f"c{i % 3}" if i < 33 else "rare" for i in range(NUM)]
AGE = [0.0 if i == 5 else None if i == 6 else float(i) for i in range(NUM)]
IDS = np.arange(100, 100 + NUM)
TABLE = pa.table({"user_id": IDS, "country": COUNTRY, "age": AGE, "job": ["cook"] * NUM})


def project_of(root, **fields) -> Project:
    """A shop whose users have a table."""
    shop = scenario_tree({"click": {"kind": "binary"}}, users="people")
    users = {"path": "people", "categorical": ["country"], "numeric": ["age"]} | fields
    return parse_project(project_tree({"shop": shop}, root=str(root), users={"people": users}))


def write_users(root, *tables: pa.Table) -> None:
    """Files of a table of users."""
    (root / "people").mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, root / "people" / f"{number}.parquet")


def hashes(ids) -> np.ndarray:
    """Sorted hashes of users of training."""
    return np.sort(hash_strings(pa.array([str(i) for i in ids])))


def prepared_of(root, project: Project, known, stored=None) -> Prepared:
    """The prepared table of users, with a manifest by hand; `known` are users of training."""
    table = inputs.read_users(project, "people")
    none = pa.array([[]] * table.num_rows, pa.list_(pa.int32()))
    tables = {"people": table.append_column(TOKENS, none)}
    facts = write_profiles(project, tables, {"people": known}, stored or {}, str(root / "out"))
    manifest = {"fingerprint": "", "scenarios": {}, "users": facts}
    write_json(str(root / "out" / "manifest.json"), manifest)
    return load_prepared(str(root / "out"))


def test_a_table_is_prepared(tmp_path):
    """Sorted by hash; vocabulary and scales are those of the users of training, 0 is missing."""
    write_users(tmp_path, TABLE.slice(0, 10), TABLE.slice(10))
    known = hashes([*range(100, 130), "nobody"])
    project = project_of(tmp_path, missing={"age": [0]})
    prepared = prepared_of(tmp_path, project, known)
    facts = prepared.users["people"]
    assert facts.vocabularies == {"country": ["c0", "c1", "c2"]}
    ages = [a for a in AGE[:30] if a]
    assert facts.numeric_mean == pytest.approx([np.mean(ages)])
    table = read_table(profiles_path(prepared.folder, "people"))
    assert np.all(np.diff(table.column("person").to_numpy()) > 0)
    rows = {int(row["user_id"]): row for row in table.to_pylist()}
    assert set(rows) == set(IDS.tolist())
    wanted = {100: (1, None), 103: (0, 3.0), 105: (3, None), 106: (1, None), 135: (0, 35.0)}
    for user, (code, age) in wanted.items():
        found = rows[user]["numeric.age"]
        assert rows[user]["categorical.country"] == code
        assert (found == age) if age else np.isnan(found)
        assert rows[user]["known"] == (user < 130)
    assert without_profile(TABLE, project.users["people"], known) == 1


def test_a_model_that_knows_the_users_keeps_its_codes(tmp_path):
    """Of an id space that a model knows the vocabulary is that of the model."""
    write_users(tmp_path, TABLE)
    facts = ProfileFacts({"country": ["c2", "rare"]}, {}, [0.0], [1.0], [[0.0, 1.0]], False)
    known = hashes(range(100, 130))
    stored = {"people": KnownUsers(known, facts)}
    prepared = prepared_of(tmp_path, project_of(tmp_path), known, stored)
    assert prepared.users["people"].vocabularies == facts.vocabularies
    table = read_table(profiles_path(prepared.folder, "people")).to_pylist()
    codes = {int(row["user_id"]): row["categorical.country"] for row in table}
    assert (codes[100], codes[102], codes[135]) == (0, 1, 2)


def test_ids_that_no_log_has_are_one_line(tmp_path):
    """Such as ids with a prefix that the log does not write."""
    write_users(tmp_path, TABLE)
    project = project_of(tmp_path)
    lines = profile_problems(project, {"people": TABLE}, {"people": hashes(["user 100"])})
    assert lines == [
        "users.people.id: found ids such as '100', none of which is a user of training; allowed: "
        "the ids that events.user has"
    ]
    assert not profile_problems(project, {"people": TABLE}, {"people": hashes([139, "x"])})


@pytest.mark.parametrize("other", [{}, {"age": [71.0] * NUM}])
def test_a_user_twice_is_one_line(tmp_path, other):
    """Also where both rows say the same; null ids are another line."""
    twice = TABLE.set_column(2, "age", pa.array(other["age"])) if other else TABLE
    write_users(tmp_path, TABLE, twice.slice(7, 1))
    project = project_of(tmp_path)
    read = {"people": inputs.read_users(project, "people")}
    assert user_problems(project, read) == [
        "users.people.id: found 1 duplicate ids, such as '107'; allowed: none"
    ]
    ids = pa.array([None, *IDS[1:].tolist()])
    null = {"people": TABLE.set_column(0, "user_id", ids)}
    assert user_problems(project, null) == ["users.people.id: found 1 nulls; allowed: none"]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"path": "none"}, "users.people.path: found nothing at "),
        ({"id": "uid"}, "users.people.id: found no column 'uid' in "),
        ({"numeric": ["country"]}, "users.people.numeric: found column 'country' of "),
        ({"text": "{city}"}, "users.people.text: found no column 'city' in "),
        ({"missing": {"job": [""]}}, "users.people.missing: found column 'job', which no field "),
    ],
)
def test_a_wrong_file_or_column_is_one_line(tmp_path, fields, line):
    """The table of users is looked at as catalogues and logs are, before anything is read."""
    write_users(tmp_path, TABLE)
    project = project_of(tmp_path, **fields)
    of_users = [x for x in inputs.input_problems(project) if not x.startswith("scenarios.")]
    assert len(of_users) == 1
    assert of_users[0].startswith(line)


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"categorical": [], "numeric": []}, "users.people: found no column beside the id; "),
        ({"images": ["x"]}, "users.people.images: found an unknown key; allowed: categorical, "),
        (
            {"vectors": ["age"]},
            "users.people.vectors: found 'age', which numeric names, too; allowed: in one of them",
        ),
        ({"text": "cook"}, "users.people.text: found 'cook'; no column name in braces; "),
    ],
)
def test_a_wrong_section_is_one_line(tmp_path, tree, line):
    """Tables without a column, fields that there are not, templates without a name."""
    with pytest.raises(ProjectError) as error:
        project_of(tmp_path, **tree)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(line)


def test_a_table_that_no_scenario_names_is_one_line():
    """It would be read for nothing."""
    shop = scenario_tree({"click": {"kind": "binary"}})
    users = {"people": {"path": "p", "numeric": ["age"]}}
    with pytest.raises(ProjectError, match=r"users.people: found a table that no scenario names"):
        parse_project(project_tree({"shop": shop}, users=users))


def test_a_part_of_a_project_has_the_tables_of_its_scenarios(tmp_path):
    """Others stay behind, so that what a part depends on does not change with them."""
    shop = scenario_tree({"click": {"kind": "binary"}}, users="people")
    users = {"people": {"path": "p", "numeric": ["age"]}}
    news = scenario_tree({"click": {"kind": "binary"}})
    project = parse_project(project_tree({"shop": shop, "news": news}, users=users))
    for part in (project.only, lambda names: project.single(names[0])):
        assert list(part(["shop"]).users) == ["people"]
        assert not part(["news"]).users


# --- the audit -------------------------------------------------------------------------------

USERS = ["100", "101", "103", "105", "106", "135", "nobody"]


def person(user: str) -> int:
    """The hash of a user's id, as rows have it."""
    return int(hash_strings(pa.array([user])).view(np.int64)[0])


def problems_of(project: Project, prepared: Prepared) -> dict[str, list[str]]:
    """What the audit finds wrong, by user."""
    profiles = read_audit_profiles(project, prepared, "shop", USERS)
    assert profiles is not None
    return {u: found for u in USERS if (found := profiles.check(u, person(u)))}


def test_honest_profiles_pass(tmp_path):
    """Nulls, values that mean missing, rare values, and a user without a profile, too."""
    write_users(tmp_path, TABLE)
    project = project_of(tmp_path, missing={"age": [0]})
    assert not problems_of(project, prepared_of(tmp_path, project, hashes(range(100, 130))))


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("numeric.age", 36.0, "profile.age: prepared 36.0, in the table 35.0"),
        ("categorical.country", 2, "profile.country: prepared 'c1', in the table None"),
        ("user_id", "100", "profile: prepared that of user '100', in the log '135'"),
        ("person", 77, "profile: prepared none, in the table one"),
    ],
)
def test_another_profile_is_found(tmp_path, column, value, line):
    """A value, a code, or an id that is not the user's own."""
    write_users(tmp_path, TABLE)
    project = project_of(tmp_path)
    prepared = prepared_of(tmp_path, project, hashes(range(100, 130)))
    path = profiles_path(prepared.folder, "people")
    rows = read_table(path).to_pylist()
    row = next(r for r in rows if r["user_id"] == "135")
    row[column] = value
    write_table(path, pa.Table.from_pylist(rows))
    assert problems_of(project, prepared)["135"] == [line]


def test_facts_of_a_manifest_are_read_back(tmp_path):
    """What was fitted is the same after a round trip."""
    write_users(tmp_path, TABLE)
    prepared = prepared_of(tmp_path, project_of(tmp_path), hashes(range(100, 130)))
    assert ProfileFacts(**asdict(prepared.users["people"])) == prepared.users["people"]
