"""What users' files may hold: times in units, schemas that change, templates, numbers, splits."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import NO_TIME, ItemLookup
from mtrec_ray.data.columns import matrix, milliseconds
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing import inputs, samples
from mtrec_ray.data.preparing.audit import AuditPast, known_after
from mtrec_ray.data.preparing.audit_log import (
    raw_batches,
    raw_milliseconds,
    raw_numbers,
    read_audit_log,
    users_of_raw_rows,
)
from mtrec_ray.data.preparing.events import Findings, canonical
from mtrec_ray.data.preparing.features import FeatureSpec, NumericColumns
from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.data.preparing.manifest import scales
from mtrec_ray.data.preparing.problems import item_problems, scan_problems
from mtrec_ray.data.preparing.scan import LogSource, Scan, merge_scans, scan_rows
from mtrec_ray.data.tokens import item_texts
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from tests.builders import project_tree, scenario_tree

NUM_ITEMS = 6
START = 1_735_689_600  # 2025-01-01 in seconds
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
CLICK = {"click": {"kind": "binary"}}


def project_of(tasks=CLICK, **fields) -> Project:
    """A project of one scenario."""
    return parse_project(project_tree({"shop": scenario_tree(tasks, **fields)}))


def timed(**events) -> dict:
    """The section of a log with times."""
    return {"path": "events.parquet", "time": "time", **events}


def log_table(num_rows=60, **columns) -> pa.Table:
    """A log without a fault."""
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "user_id": rng.integers(0, 7, num_rows),
            "item_id": rng.integers(0, NUM_ITEMS, num_rows),
            "time": START + 3600 * np.arange(num_rows),
            "split": pa.array([("train", "valid", "test")[i % 3] for i in range(num_rows)]),
            "click": (np.arange(num_rows) // 3 % 2).astype(float),
            **columns,
        }
    )


def scanned(project: Project, table: pa.Table) -> Scan:
    """The scan of a log of one row group."""
    scenario = project.scenarios["shop"]
    lookup = ItemLookup.of(pa.chunked_array([list(range(NUM_ITEMS))]))
    rows, findings = canonical(table, scenario, 0, lookup, 3)
    source = LogSource(scenario, lookup, 3, NUM_ITEMS, np.full(NUM_ITEMS, NO_TIME))
    return scan_rows(rows, findings, source)


def problems(project: Project, table: pa.Table) -> list[str]:
    """The lines about a log."""
    return scan_problems(project, {"shop": scanned(project, table)})


# --- times -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
def test_numbers_that_are_no_seconds_are_refused_by_name(unit, kind):
    """One line names the field, a number that was found, and the unit that it is."""
    time = pa.array((START + np.arange(60)) * UNITS[unit]).cast(kind, safe=False)
    [line] = problems(project_of(), log_table(time=time))
    assert line.startswith("scenarios.shop.events.time: found numbers such as 1735689")
    assert f"scenarios.shop.events.time_unit: {unit}" in line


def test_days_written_as_numbers_are_refused():
    """YYYYMMDD is a day of 1970 as seconds, and no unit makes it one of this century."""
    [line] = problems(project_of(), log_table(time=20250101 + np.arange(60)))
    assert line.startswith("scenarios.shop.events.time: found numbers such as 20250101,")
    assert "a time stamp or a date" in line


@pytest.mark.parametrize("unit", list(UNITS))
@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.dictionary(pa.int32(), pa.int64())])
def test_a_named_unit_is_read_right(unit, kind):
    """In its unit a number is the same millisecond for the preparation and for the audit."""
    project = project_of(events=timed(time_unit=unit))
    time = pa.array((START + 3600 * np.arange(60)) * UNITS[unit])
    time = time.dictionary_encode() if pa.types.is_dictionary(kind) else time.cast(kind, safe=False)
    assert problems(project, log_table(time=time)) == []
    wanted = 1000 * (START + 3600 * np.arange(60))
    column = pa.chunked_array([time])
    np.testing.assert_array_equal(milliseconds(column, unit).to_numpy(), wanted)
    np.testing.assert_array_equal(raw_milliseconds(column, unit), wanted)
    assert scanned(project, log_table(time=time)).last_ms == wanted.max()


@pytest.mark.parametrize("unit", list(UNITS))
def test_parts_of_a_millisecond_are_cut_alike(unit):
    """Bursts below a millisecond are the same moment for the preparation and for the audit."""
    burst = START + 0.0001 * np.arange(50)
    column = pa.chunked_array([burst * UNITS[unit]])
    ours = milliseconds(column, unit).to_numpy()
    np.testing.assert_array_equal(ours, raw_milliseconds(column, unit))
    assert 5 <= len(np.unique(ours)) <= 6


def test_relative_seconds_are_read_where_they_are_meant():
    """Seconds from 0 on are refused, and are read where `time_unit: s` says so."""
    table = log_table(time=3600 * np.arange(60))
    assert len(problems(project_of(), table)) == 1
    assert problems(project_of(events=timed(time_unit="s")), table) == []


@pytest.mark.parametrize("word", ["9999-12-31", "0001-01-01"])
def test_a_time_that_no_log_has_is_dropped_and_counted(word):
    """Year 1 and year 9999 mean that a time is not known: such a row is none of the samples."""
    days = pd.date_range("2025-01-01", periods=60, freq="D").to_list()
    stamps = [*(d.to_pydatetime() for d in days[:-1]), pd.Timestamp(word).to_pydatetime()]
    table = log_table(time=pa.array(stamps, pa.timestamp("us")))
    found = scanned(project_of(), table)
    assert found.findings.counts["impossible time"] == 1
    assert found.split_rows.sum() == 59
    assert found.last_ms == days[-2].value // 10**6
    assert np.isnan(raw_milliseconds(table.column("time"), None)).sum() == 1


def test_times_that_are_mostly_null_are_one_line():
    """A time that could not be read is said of the time, not of the splits that lack rows."""
    time = pa.array([START + i if i < 5 else None for i in range(60)])
    [line] = problems(project_of(), log_table(time=time))
    assert line.startswith("scenarios.shop.events.time: found 55 nulls in 60 rows")


def test_a_log_that_ends_before_1970_ends_then():
    """The end of the data is that of the log, not 1970."""
    days = pd.date_range("1965-01-01", periods=60, freq="D")
    table = log_table(time=pa.array(days.to_list(), pa.timestamp("ms")))
    found = scanned(project_of(), table)
    assert found.last_ms == days[-1].value // 10**6 < 0
    assert merge_scans(found, replace(found, last_ms=found.last_ms - 5)).last_ms == found.last_ms


@pytest.mark.parametrize(("year", "lines"), [(1999, 1), (2010 * 10**6, 0)])
def test_years_are_no_times_of_publication(year, lines):
    """A column of years as `published` is refused, seconds are not."""
    items = {"path": "i", "text": "{title}", "published": "published"}
    table = pa.table({"item_id": [1, 2], "title": ["a", "b"], "published": [year, None]})
    found = item_problems(project_of(items=items), {"shop": table})
    assert len(found) == lines
    assert all(x.startswith("scenarios.shop.items.published: found numbers such as") for x in found)


def test_a_split_by_days_as_numbers_is_refused():
    """`time: [20250101, 20250201]` would be August 1970."""
    for cuts in ([20250101, 20250201], ["20250101", "20250201"]):
        with pytest.raises(
            ProjectError, match=r"^scenarios\.shop\.split\.time: found .*; 20250101 would be"
        ):
            project_of(split={"time": cuts})
    assert project_of(split={"time": ["2025-01-01", "2025-02-01"]}).scenarios["shop"].split.time


# --- delays ----------------------------------------------------------------------------------

FUNNEL = {
    "click": {"kind": "binary"},
    "buy": {"kind": "binary", "delay": "31d"},
    "back": {"kind": "binary", "given": "buy"},
    "late": {"kind": "binary", "given": "click", "delay": "2d"},
}


def test_a_label_is_known_after_its_parents():
    """A task's labels count after the longest delay of it and its parent, also for the audit."""
    scenario = project_of(FUNNEL).scenarios["shop"]
    day = 86_400
    wanted = {"click": 0, "buy": 31 * day, "back": 31 * day, "late": 2 * day}
    assert {t: scenario.label_delay(t) for t in FUNNEL} == wanted
    assert {t: known_after(scenario, t) for t in FUNNEL} == wanted
    none = np.zeros(0, np.uint64)
    spec = FeatureSpec(scenario, (0.1,) * 4, 0, np.zeros(0, np.int64), none, (), 0)
    assert spec.delays_ms == [1000 * wanted[t] for t in FUNNEL]
    same = pd.DataFrame({"time": [0.0]} | {f"label.{task}": [1.0] for task in FUNNEL})
    past = AuditPast(scenario, dict.fromkeys(FUNNEL, 0.5), 1000.0 * 3 * day, 1.0)
    counts = {t: np.expm1(past.statistics("item", same)[f"item.log_known.{t}"]) for t in FUNNEL}
    assert counts == pytest.approx({"click": 1, "buy": 0, "back": 0, "late": 1})


# --- files -----------------------------------------------------------------------------------


def write_parts(root: Path, second: pa.Table, kind="events") -> Project:
    """A project whose log (or catalogue) is a folder of two files, the second as given."""
    items = pa.table({"item_id": list(range(NUM_ITEMS)), "title": ["t"] * NUM_ITEMS})
    first = {"events": log_table(), "items": items}
    for name, table in first.items():
        (root / name).mkdir()
        pq.write_table(table, root / name / "a.parquet")
    pq.write_table(second, root / kind / "b.parquet")
    tree = scenario_tree(
        CLICK, items={"path": "items", "text": "{title}"}, events=timed(path="events")
    )
    return parse_project(project_tree({"shop": tree}, root=str(root)))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda t: t.drop_columns("click"), "tasks.click"),
        (lambda t: t.rename_columns({"user_id": "user"}), "events.user"),
        (lambda t: t.set_column(4, "click", pa.array(["yes"] * 60)), "tasks.click"),
        (lambda t: t.set_column(2, "time", pa.array(["Monday"] * 60)), "events.time"),
        (lambda t: t.drop_columns("split"), "split.column"),
    ],
)
def test_a_later_file_with_another_schema_is_one_line(tmp_path, change, field):
    """The line names the field, the column and the file, which is the second."""
    [line] = input_problems(write_parts(tmp_path, change(log_table())))
    assert line.startswith(f"scenarios.shop.{field}: found ")
    assert str(tmp_path / "events" / "b.parquet") in line


def test_catalogue_files_that_cannot_be_joined_are_one_line(tmp_path):
    """Ids that are numbers in one file and text in another are refused."""
    second = pa.table({"item_id": ["x"], "title": ["t"]})
    [line] = input_problems(write_parts(tmp_path, second, "items"))
    assert line.startswith("scenarios.shop.items.id: found column 'item_id' of ")
    assert "b.parquet" in line


def test_a_later_file_that_is_broken_is_named(tmp_path):
    """The first files of a folder may be whole; the line names the one that is not."""
    project = write_parts(tmp_path, log_table())
    (tmp_path / "events" / "b.parquet").write_bytes(b"PAR1 and no more")
    [line] = input_problems(project)
    assert line.startswith(f"scenarios.shop.events.path: {tmp_path}/events/b.parquet is not a")


def test_a_footer_is_read_once_while_its_file_stays(tmp_path, monkeypatch):
    """Asking again reads nothing; a file that was written anew is read anew."""
    project = write_parts(tmp_path, log_table())
    read: list[str] = []
    honest = storage.read_footer
    monkeypatch.setattr(storage, "read_footer", lambda p: read.append(p) or honest(p))
    assert input_problems(project) == []
    assert len(read) == 3
    assert len(inputs.log_fragments(project)) == 2
    assert len(read) == 3
    pq.write_table(log_table(90), tmp_path / "events" / "b.parquet")
    assert sum(f.num_rows for f in inputs.log_fragments(project)) == 150
    assert len(read) == 4


def test_only_named_columns_of_a_log_are_read(tmp_path, monkeypatch):
    """A wide column that no field names is not read, by the preparation or by the audit."""
    wide = log_table(vectors=pa.array([[0.0] * 9] * 60))
    project = write_parts(tmp_path, wide)
    second = inputs.log_fragments(project)[1]
    table = inputs.read_log(second, project.scenarios["shop"])
    named = ["click", "item_id", "split", "time", "user_id"]
    assert sorted(table.column_names) == named
    read: list[list[str]] = []
    honest = storage.read_row_group
    monkeypatch.setattr(
        storage, "read_row_group", lambda p, n, c: read.append(list(c)) or honest(p, n, c)
    )
    path = str(tmp_path / "events")
    assert len(list(raw_batches(path, project.scenarios["shop"], {"1"}, set()))) == 2
    assert users_of_raw_rows(path, project.scenarios["shop"], {0})
    assert read == [named, named, ["user_id"]]


# --- templates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["an item", "", "{0}", "{}", "{ a}", "{title", "title}", "{title:.20}", "{title!r}",
             "{title.x}", "{title[0]}", "{title} {0}"],
)  # fmt: skip
def test_a_template_without_plain_column_names_is_refused(text):
    """One line names the field, says what is wrong, and shows what is allowed."""
    with pytest.raises(ProjectError) as caught:
        project_of(items={"path": "i", "text": text})
    [line] = caught.value.problems
    assert line.startswith("scenarios.shop.items.text: ")
    assert "allowed: column names in braces, such as {title}" in line


def test_braces_of_a_template_can_be_written():
    """Doubled braces are text, not columns; bytes are read as UTF-8."""
    text = "{{x}} {title} {the price}"
    items = project_of(items={"path": "i", "text": text}).scenarios["shop"].items
    assert items.text_columns == ("title", "the price")
    table = pa.table({"title": pa.array(["caf\u00e9".encode(), None]), "the price": [1, 2]})
    assert item_texts(table, items) == ["{x} caf\u00e9 1", "{x} 2"]


# --- numbers and ids -------------------------------------------------------------------------


def test_numbers_that_are_not_finite_count_as_null():
    """An infinite number of a log is null and counted, and spoils no scale of its column."""
    project = project_of(events=timed(numeric=["ctr"]))
    ctr = np.where(np.arange(60) % 10 == 0, np.inf, 0.5)
    ctr[1] = 1.7e308  # infinite in 32 bits
    lookup = ItemLookup.of(pa.chunked_array([list(range(NUM_ITEMS))]))
    rows, findings = canonical(log_table(ctr=ctr), project.scenarios["shop"], 0, lookup, 1)
    values = matrix(rows.column("event_numeric"))
    assert np.isnan(values).sum() == findings.counts["number of ctr that is infinite"] == 7
    assert scales(values.astype(float))["mean"] == [0.5]


def test_infinite_labels_are_unknown_to_the_audit_too():
    """A label that is not finite in 32 bits is no label."""
    column = pa.chunked_array([[1.0, -math.inf, 1e300, None, 0.5]])
    np.testing.assert_array_equal(raw_numbers(column), [1.0, np.nan, np.nan, np.nan, 0.5])


def test_nan_is_no_user():
    """Rows whose user is NaN are dropped as those without a user are, and are not one user."""
    users = np.where(np.arange(60) < 20, np.nan, np.arange(60.0) % 7)
    found = scanned(project_of(), log_table(user_id=users))
    assert found.findings.counts["null user"] == 20
    assert found.split_rows.sum() == 40


def test_unknown_items_hide_what_follows_from_them():
    """Where no item is known the line about that stands alone."""
    [line] = problems(project_of(), log_table(item_id=900 + np.arange(60)))
    assert line.startswith("scenarios.shop.events.item: found 60 of 60 rows")


def test_a_log_of_positives_is_told_of_negatives():
    """A log whose labels are all 1 names `negatives`; before they are drawn it is no mistake."""
    table = log_table(click=np.ones(60))
    [line] = problems(project_of(), table)
    assert "found only the label 1 in train" in line
    assert "negatives: {of: click}" in line
    project = project_of(negatives={"of": "click"})
    assert scan_problems(project, {"shop": scanned(project, table)}, expanded=False) == []


def test_a_user_with_too_many_rows_is_refused(monkeypatch):
    """A user whose rows one task could not hold is one line, from a sample of the rows, too."""
    users = np.where(np.arange(60) < 40, 9, np.arange(60) % 7)
    found = scanned(project_of(), log_table(user_id=users))
    assert scan_problems(project_of(), {"shop": found}) == []
    monkeypatch.setattr("mtrec_ray.data.preparing.problems.MAX_ROWS_PER_USER", 39)
    [line] = scan_problems(project_of(), {"shop": found})
    assert line.startswith("scenarios.shop.events.user: found 40 rows of the user '9', which")
    [line] = scan_problems(project_of(), {"shop": replace(found, one_in=3)})
    assert "found about 120 rows of the user '9'" in line


# --- negatives -------------------------------------------------------------------------------


def drawn_pairs(project: Project, table: pa.Table) -> list[tuple[int, int]]:
    """Row of the positive and item of each drawn negative."""
    scenario = project.scenarios["shop"]
    lookup = ItemLookup.of(pa.chunked_array([list(range(NUM_ITEMS))]))
    rows, _ = canonical(table, scenario, 0, lookup, 1)
    published, weights = np.full(NUM_ITEMS, NO_TIME), np.ones(NUM_ITEMS)
    out = samples.add_negatives(rows, scenario, weights, published, 0)
    out = out.filter(pa.array(out.column("row").to_numpy() >= samples.FIRST_NEGATIVE))
    source = samples.source_rows(out.column("row").to_numpy(), scenario)
    return list(zip(source.tolist(), out.column("item").to_pylist(), strict=True))


def test_negatives_do_not_know_later_splits():
    """A user's item of test may be a negative of his training row; one of training never is."""
    project = project_of(negatives={"of": "click", "per_positive": 60})
    table = pa.table(
        {
            "user_id": [1, 1, 1, 1],
            "item_id": [0, 1, 2, 3],
            "time": START + np.array([0, 10, 20, 30]),
            "split": ["train", "train", "valid", "test"],
            "click": [1.0, 0.0, 1.0, 1.0],
        }
    )
    found = drawn_pairs(project, table)
    assert {item for row, item in found if row == 0} == {2, 3, 4, 5}
    assert {item for row, item in found if row == 2} == {3, 4, 5}
    assert {item for row, item in found if row == 3} == {4, 5}


def test_popularity_counts_training_rows_only():
    """Before the split by fractions every row counts, after it an item of test rows has none."""
    project = project_of(
        split={"fractions": [0.5, 0.25, 0.25]}, negatives={"of": "click", "from": "popularity"}
    )
    scenario = project.scenarios["shop"]
    columns = {"user_id": [1, 1, 1, 1], "item_id": [0, 1, 2, 3], "click": [1.0, 0.0, 1.0, 1.0]}
    table = pa.table(columns | {"time": START + np.arange(4)})
    lookup = ItemLookup.of(pa.chunked_array([list(range(NUM_ITEMS))]))
    source = LogSource(scenario, lookup, 1, NUM_ITEMS, np.full(NUM_ITEMS, NO_TIME))
    rows, findings = canonical(table, scenario, 0, lookup, 1)
    whole = scan_rows(rows, findings, source)
    split = scan_rows(samples.split_by_fractions(rows, scenario, 0), Findings(), source)
    assert whole.item_rows.tolist() == [1, 1, 1, 1, 0, 0]
    weights = samples.negative_weights(scenario, split.item_rows)
    assert weights.tolist() == [1, 1, 0, 0, 0, 0]


# --- the audit's log -------------------------------------------------------------------------


def test_the_audit_reads_rows_of_the_samples_users_and_items(tmp_path):
    """Its log holds all rows of a sample's user and item, under the numbers of the whole log."""
    project = write_parts(tmp_path, log_table())
    catalogue = pa.table({"item_id": [str(i) for i in range(NUM_ITEMS)], "train_rows": [1] * 6})
    storage.write_table(str(tmp_path / "p" / "shop" / "catalogue.parquet"), catalogue)
    raw = pd.concat([log_table().to_pandas()] * 2, ignore_index=True)
    sample = {"row": np.int64(70), "item": np.int32(raw["item_id"][70])}
    log = read_audit_log(project, Prepared(str(tmp_path / "p"), "", {}), "shop", [sample])
    same = (raw["user_id"] == raw["user_id"][70]) | (raw["item_id"] == raw["item_id"][70])
    assert list(log.rows.index) == list(raw.index[same])
    assert 0 < same.sum() < len(raw)
    assert list(log.rows["user"]) == list(raw["user_id"][same].astype(str))
    assert list(log.rows["time"]) == list(1000 * raw["time"][same])


def test_columns_stand_where_their_names_say():
    """Each group of columns is the slice of its names, and the groups cover all columns."""
    items = {"path": "i", "text": "{t}", "categorical": ["a", "b"], "published": "p"}
    scenario = project_of(items=items, events=timed(numeric=["x"])).scenarios["shop"]
    columns = NumericColumns.of(scenario)
    covered = [i for place in columns.places.values() for i in range(len(columns.names))[place]]
    assert covered == list(range(len(columns.names)))
    for group in ("item", "category.a", "category.b", "user", "user_category.b"):
        names = columns.names[columns.places[group]]
        assert names
        assert all(name.startswith(f"{group}.") for name in names)
    assert columns.names[columns.num_of_items] == "user.log_count"


def test_a_column_of_two_fields_fits_both(tmp_path):
    """A time that is also a numeric column is refused by the field that it does not fit."""
    pq.write_table(pa.table({"item_id": ["a"], "title": ["b"]}), tmp_path / "items.parquet")
    log = {"user_id": ["u"], "item_id": ["a"], "split": ["train"], "click": [1]}
    time = pa.array([START], pa.timestamp("s"))
    pq.write_table(pa.table(log | {"time": time}), tmp_path / "events.parquet")
    project = project_of(events=timed(numeric=["time"])).model_copy(update={"root": str(tmp_path)})
    assert [line.split(" with")[0] for line in input_problems(project)] == [
        f"scenarios.shop.events.numeric: found column 'time' of {tmp_path}/events.parquet"
    ]


def test_the_greatest_number_is_no_time():
    """All bits set mean unknown: the number does not wrap round to a moment of 1969."""
    column = pa.chunked_array([pa.array([2**64 - 1], pa.uint64())])
    for unit in UNITS:
        assert abs(milliseconds(column, unit)[0].as_py()) > 10**13
        assert np.isnan(raw_milliseconds(column, unit)).all()


def test_cuts_with_and_without_a_zone_are_compared():
    """A cut without a zone is UTC, in its order, too."""
    cuts = ["2025-01-08T12:00:00+02:00", "2025-01-10"]
    assert project_of(split={"time": cuts}).scenarios["shop"].split.time
    with pytest.raises(ProjectError, match="first cut that is not before the second"):
        project_of(split={"time": ["2025-01-08T12:00:00+02:00", "2025-01-08T09:00:00"]})


def test_uuids_in_a_text_are_their_digits():
    """Bytes of a UUID are no text in UTF-8."""
    table = pa.table({"key": pa.array([bytes(16)], pa.binary(16))})
    items = project_of(items={"path": "x", "text": "{key}"}).scenarios["shop"].items
    assert item_texts(table, items) == ["00000000-0000-0000-0000-000000000000"]


def test_files_whose_numbers_fit_no_type_are_refused(tmp_path):
    """Large unsigned ids beside signed ones have no type in common."""
    for name, ids in (("a", pa.array([2**63], pa.uint64())), ("b", pa.array([1], pa.int64()))):
        (tmp_path / "items").mkdir(exist_ok=True)
        table = pa.table({"item_id": ids, "title": ["x"]})
        pq.write_table(table, tmp_path / "items" / f"{name}.parquet")
    project = project_of(items={"path": str(tmp_path / "items"), "text": "{title}"})
    with pytest.raises(ProjectError, match=r"shop\.items.path: found files with numbers that do"):
        inputs.read_items(project, "shop")


def test_what_is_null_anyway_is_no_missing_value():
    """NaN is null without a name, and a stored project could not hold it."""
    with pytest.raises(ProjectError, match=r"price: found .*; allowed: texts and finite numbers"):
        project_of(items={"path": "x", "text": "{title}", "missing": {"price": math.nan}})


@pytest.mark.parametrize(
    ("field", "section"),
    [
        ("events.time", {"events": timed() | {"time": ""}}),
        ("items.published", {"items": {"path": "x", "text": "{title}", "published": ""}}),
        ("split.column", {"split": {"column": ""}}),
        ("tasks.click.label", {"tasks": {"click": {"kind": "binary", "label": ""}}}),
    ],
)
def test_an_empty_name_is_no_column(field, section):
    """It would be read as no column in one place, and looked up in another."""
    with pytest.raises(
        ProjectError, match=f"scenarios.shop.{field}: found ''; allowed: the name of a"
    ):
        project_of(**section)
