"""Tables of users as they are prepared, and the audit of them: without Ray, the log left out."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.catalogue import TOKENS
from mtrec_ray.data.columns import hash_strings
from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.data.preparing import inputs
from mtrec_ray.data.preparing.audit_profiles import read_audit_profiles
from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.data.preparing.problems import user_problems
from mtrec_ray.data.preparing.profiles import (
    KnownUsers,
    TrainingUsers,
    profile_problems,
    without_profile,
    write_profiles,
)
from mtrec_ray.data.profiles import ProfileFacts, ProfileIndex, load_profiles, profiles_path
from mtrec_ray.data.storage import read_table, write_json, write_table
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import prepared_data_depends_on
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


def prepared_of(root, project: Project, known, stored=None, end_ms=0) -> Prepared:
    """The prepared table of users, with a manifest by hand; `known` are users of training."""
    known = TrainingUsers(known, end_ms)
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
    assert without_profile(TABLE, project.users["people"], TrainingUsers(known)) == 1


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
    known = {"people": TrainingUsers(hashes(["user 100"]))}
    lines = profile_problems(project, {"people": TABLE}, known)
    assert lines == [
        "users.people.id: found ids such as '100', none of which is a user of training; allowed: "
        "the ids that events.user has"
    ]
    known = {"people": TrainingUsers(hashes([139, "x"]))}
    assert not profile_problems(project, {"people": TABLE}, known)


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
    of_users = [x for x in input_problems(project) if not x.startswith("scenarios.")]
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
    return {u: found for u in USERS if (found := profiles.check(u, person(u), 0.0, 0))}


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


# --- tables with times -----------------------------------------------------------------------

DAY = 86_400_000
START = 20_000 * DAY  # 2024-10-04, in ms
CHANGES = [
    (user, START + DAY * number * (1 + user % 3), f"c{(user + number) % 4}", float(number))
    for user in range(100, 140)
    for number in range(3)
]


def changing(unit: str = "ms") -> pa.Table:
    """Three rows of each user, one, two or three days apart, in no order."""
    rows = [CHANGES[i] for i in np.random.default_rng(0).permutation(len(CHANGES))]
    users, times, countries, ages = zip(*rows, strict=True)
    time = pa.array(times, pa.timestamp("ms")).cast(pa.timestamp(unit))
    return pa.table({"user_id": users, "time": time, "country": countries, "age": ages})


def changed(root, table: pa.Table | None = None, **fields) -> Project:
    """A shop whose users have a table with a row for each change."""
    write_users(root, changing() if table is None else table)
    return project_of(root, **{"time": "time"} | fields)


def test_a_table_with_times_is_prepared(tmp_path):
    """By person and time; what training could not see has no part in vocabulary and scales."""
    project = changed(tmp_path)
    end_ms = START + 2 * DAY
    known = hashes(range(100, 130))
    prepared = prepared_of(tmp_path, project, known, end_ms=end_ms)
    table = read_table(profiles_path(prepared.folder, "people"))
    keys = list(zip(*(table.column(c).to_pylist() for c in ("person", "time")), strict=True))
    assert keys == sorted(keys)
    rows = table.to_pylist()
    found = {(int(r["user_id"]), r["time"], r["numeric.age"]) for r in rows}
    assert found == {(user, time, age) for user, time, _, age in CHANGES}
    for row in rows:
        assert row["known"] == (int(row["user_id"]) < 130 and row["time"] < end_ms)
    seen = [r for r in CHANGES if r[0] < 130 and r[1] < end_ms]
    users = {c: len({r[0] for r in seen if r[2] == c}) for c in ("c0", "c1", "c2", "c3")}
    facts = prepared.users["people"]
    assert facts.vocabularies == {"country": sorted(c for c, n in users.items() if n >= 5)}
    assert facts.numeric_mean == pytest.approx([np.mean([r[3] for r in seen])])
    late = TrainingUsers(known, START + 1)
    assert without_profile(inputs.read_users(project, "people"), project.users["people"], late) == 0
    early = TrainingUsers(known, START)
    assert (
        without_profile(inputs.read_users(project, "people"), project.users["people"], early) == 30
    )


def test_a_user_who_changes_often_is_one_user(tmp_path):
    """A value needs five users, not five rows; of several values, too."""
    rows = [(u, START + n, "few" if u < 104 else "many", ["x"]) for u in range(100, 110)
            for n in range(9)]  # fmt: skip
    users, times, countries, tags = zip(*rows, strict=True)
    table = pa.table({"user_id": users, "time": pa.array(times), "country": countries})
    tags = [[*t, "few" if u < 104 else "many"] for u, t in zip(users, tags, strict=True)]
    table = table.append_column("tags", pa.array(tags))
    project = changed(tmp_path, table, numeric=[], lists=["tags"], time_unit="ms")
    facts = prepared_of(tmp_path, project, hashes(users), end_ms=START + DAY).users["people"]
    assert facts.vocabularies == {"country": ["many"]}
    assert facts.several == {"tags": ["x", "many"]}


def test_profiles_are_read_back_with_their_times(tmp_path):
    """As the network reads them; a table without times has none."""
    prepared = prepared_of(tmp_path, changed(tmp_path), hashes(range(100, 130)), end_ms=START + DAY)
    profiles = load_profiles(prepared.folder, "people", prepared.users["people"])
    who = np.array([person("101")] * 4)
    place = profiles.places(who, START + DAY * np.array([0, 1, 4, 9]))
    assert profiles.numeric(place)[1:, 0].tolist() == [0.0, 1.0, 2.0]
    assert place[0] == -1
    write_users(tmp_path, TABLE)
    prepared = prepared_of(tmp_path, project_of(tmp_path), hashes(range(100, 130)))
    assert load_profiles(prepared.folder, "people", prepared.users["people"]).times is None


def test_rows_that_all_came_after_training_are_one_line(tmp_path):
    """Ids are those of the log, but no row of training could see a row of the table."""
    project, end_ms = changed(tmp_path), START
    known = {"people": TrainingUsers(hashes([100, 101]), end_ms)}
    table = {"people": inputs.read_users(project, "people")}
    assert profile_problems(project, table, known) == [
        "users.people.time: found no row of a user of training before 2024-10-04T00:00:00.000Z, "
        "the last row of training; allowed: some rows from before it"
    ]


def with_time(place: int, value) -> pa.Table:
    """The table with another time in one row."""
    times = changing().column("time").to_pylist()
    times[place] = value
    return changing().set_column(1, "time", pa.array(times, pa.timestamp("ms")))


def twice() -> pa.Table:
    """Rows of two users come twice, 400 microseconds apart."""
    table = changing("us")
    again = table.slice(5, 2)
    later = pc.add(again.column("time"), pa.scalar(400, pa.duration("us")))
    return pa.concat_tables([table, again.set_column(1, "time", later)])


@pytest.mark.parametrize(
    ("table", "fields", "line"),
    [
        (with_time(7, None), {}, "found 1 nulls in 120 rows; allowed: a time in every row"),
        (changing(), {"missing": {"time": ["2024-10-04"]}},
         "found 40 nulls in 120 rows; allowed: a time in every row"),
        (with_time(7, -(10**14)), {},
         "found 1 of 120 times such as -1199-02-15 14:13:20.000; allowed: times from 1900 to 2100"),
        (twice(), {}, "found a user twice at the same time (to the millisecond), such as "),
        (changing().set_column(1, "time", pa.array(np.arange(120) + START)), {},
         "found numbers such as 17280000000"),
    ],
)  # fmt: skip
def test_a_wrong_time_is_one_line(tmp_path, table, fields, line):
    """Null, or none that a log may have, in another unit, or two rows of a user at one time."""
    project = changed(tmp_path, table, **fields)
    lines = user_problems(project, {"people": inputs.read_users(project, "people")})
    assert len(lines) == 1
    assert lines[0].startswith("users.people.time: " + line)
    if "numbers such as" in line:
        assert "allowed: users.people.time_unit: ms, or users.people.time_unit (one" in lines[0]
    if "twice" in line:
        assert lines[0].endswith(", 2 in all; allowed: one row of a user at a time")


def test_a_user_may_come_again_at_another_time(tmp_path):
    """A millisecond later is another time; a null id is a fault all the same."""
    project = changed(tmp_path)
    assert user_problems(project, {"people": inputs.read_users(project, "people")}) == []
    ids = pa.array([None, *changing().column("user_id").to_pylist()[1:]])
    table = {"people": changing().set_column(0, "user_id", ids)}
    assert user_problems(project, table) == ["users.people.id: found 1 nulls; allowed: none"]


def test_times_that_cannot_be_are_one_line(tmp_path):
    """A unit without times, a log without time, a column of texts."""
    with pytest.raises(ProjectError) as error:
        project_of(tmp_path, time_unit="ms")
    assert error.value.problems == [
        "users.people.time_unit: found 'ms' without time; allowed: null"
    ]
    shop = scenario_tree({"click": {"kind": "binary"}}, users="people")
    shop["events"].pop("time")
    users = {"people": {"path": "people", "categorical": ["country"], "time": "written"}}
    with pytest.raises(ProjectError) as error:
        parse_project(project_tree({"shop": shop}, users=users))
    assert error.value.problems == [
        "users.people.time: found 'written', and no events.time of scenarios.shop; allowed: null, "
        "or users whose logs all have a time"
    ]
    write_users(tmp_path, TABLE)
    lines = input_problems(project_of(tmp_path, time="job"))
    (line,) = [x for x in lines if x.startswith("users.")]
    assert line.startswith("users.people.time: found column 'job' of ")
    assert line.endswith("with type string; allowed: a time stamp, a date or a number")


def test_data_that_was_prepared_before_there_were_times_stays_valid(tmp_path):
    """What it depends on has no word of them, unless the project has."""
    without = prepared_data_depends_on(project_of(tmp_path))["users"]["people"]
    assert not {"time", "time_unit"} & set(without)
    assert prepared_data_depends_on(changed(tmp_path))["users"]["people"]["time"] == "time"


# --- the audit of profiles with times --------------------------------------------------------


def problems_as_of(project: Project, prepared: Prepared) -> list[str]:
    """What the audit finds wrong at and around every time of the table."""
    users = sorted({str(user) for user, *_ in CHANGES} | {"nobody"})
    profiles = read_audit_profiles(project, prepared, "shop", users)
    assert profiles is not None
    return [
        line
        for user in users
        for day in range(8)
        for moment in (START + DAY * day - 1, START + DAY * day, START + DAY * day + 1)
        for line in profiles.check(user, person(user), float(moment), moment)
    ]


def test_honest_profiles_pass_at_any_time(tmp_path):
    """Also before the first row, and at the very millisecond of a change."""
    project = changed(tmp_path)
    prepared = prepared_of(tmp_path, project, hashes(range(100, 130)), end_ms=START + 7 * DAY)
    assert problems_as_of(project, prepared) == []


def test_a_profile_from_the_future_is_found(tmp_path):
    """A row that was prepared as if it had been written a millisecond before; or a value of it."""
    project = changed(tmp_path)
    prepared = prepared_of(tmp_path, project, hashes(range(100, 130)), end_ms=START + 7 * DAY)
    path = profiles_path(prepared.folder, "people")
    honest = read_table(path).to_pylist()
    place = next(i for i, r in enumerate(honest) if r["user_id"] == "101" and r["numeric.age"] == 1)
    moved = [r | ({"time": r["time"] - 1} if i == place else {}) for i, r in enumerate(honest)]
    write_table(path, pa.Table.from_pylist(moved))
    assert "profile.age: prepared 1.0, in the table 0.0" in problems_as_of(project, prepared)
    valued = [r | ({"numeric.age": 2.0} if i == place else {}) for i, r in enumerate(honest)]
    write_table(path, pa.Table.from_pylist(valued))
    assert set(problems_as_of(project, prepared)) == {"profile.age: prepared 2.0, in the table 1.0"}


def test_a_profile_of_the_same_millisecond_is_found(tmp_path, monkeypatch):
    """Where the model read rows up to its own time, and not before it, the audit would say so."""
    project = changed(tmp_path)
    prepared = prepared_of(tmp_path, project, hashes(range(100, 130)), end_ms=START + 7 * DAY)
    strict = ProfileIndex.places
    monkeypatch.setattr(ProfileIndex, "places", lambda self, p, m: strict(self, p, m + 1))
    assert "profile: prepared one, in the table none" in problems_as_of(project, prepared)
