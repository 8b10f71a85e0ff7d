"""Prepared samples are those that plain loops over the raw log give."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from mtrec_ray.data import storage
from mtrec_ray.data.end_states import read_states
from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.data.preparing import shuffle
from mtrec_ray.data.shards import read_rows
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.split import SPLITS
from mtrec_ray.stages.prepare import run_prepare
from tests.cluster.logs import (
    CUTS,
    ENCODER,
    FRACTIONS,
    NUM_ITEMS,
    NUM_ROWS,
    NUM_UNSEEN,
    START,
    TAGS,
    Log,
    scenario_tree,
    tag_sets,
)
from tests.cluster.runs import prepare_again, prepared_folder, say_nothing

pytestmark = pytest.mark.cluster

NAMES = ("live", "cut", "folds", "shares", "ordered")
WITH_NEGATIVES = ("cut", "shares")
NO_NEGATIVES = tuple(n for n in NAMES if n not in WITH_NEGATIVES)
FIRST_NEGATIVE = 2**48
DAY = pd.Timedelta(days=1)


def samples(prepared: Prepared, name: str) -> pd.DataFrame:
    """All samples of a scenario, list columns as one column each, sorted by row."""
    parts = []
    for split in SPLITS:
        for arrays in read_rows(prepared.shard_paths(name, split), 10_000, 0, 10**9):
            columns: dict[str, Any] = {
                k: arrays[k] for k in ("row", "user", "person", "item", "time")
            }
            for key in ("history", "history_age", "numeric", "categorical", "labels"):
                columns |= {f"{key}.{i}": c for i, c in enumerate(arrays[key].T)}
            parts.append(pd.DataFrame(columns | {"split": split}))
    return pd.concat(parts).sort_values("row").reset_index(drop=True)


def real(found: pd.DataFrame) -> pd.DataFrame:
    """The samples that are rows of the log, by row number."""
    return found[found["row"] < FIRST_NEGATIVE].set_index("row")


def drawn(found: pd.DataFrame, per_positive: int) -> pd.DataFrame:
    """The sampled negatives, with the row of their positive."""
    rows = found[found["row"] >= FIRST_NEGATIVE]
    return rows.assign(source=(rows["row"] - FIRST_NEGATIVE) // per_positive)


def item_ids(prepared: Prepared, name: str) -> np.ndarray:
    """The id of each catalogue row."""
    path = Path(prepared.folder) / name / "catalogue.parquet"
    return pq.read_table(path).column("item_id").to_numpy()


def seconds(log: Log) -> pd.Series:
    """The time of each usable row in seconds."""
    time = log.rows["time"]
    if pd.api.types.is_numeric_dtype(time):
        return time.astype(np.int64)
    return (time - pd.Timestamp(0)) // pd.Timedelta(seconds=1)


# --- rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_usable_row_is_in_one_split(logs, prepared, name):
    """Each usable row of the log is one sample, the others are none."""
    found = samples(prepared, name)
    assert found["row"].is_unique
    assert list(real(found).index) == list(logs[name].rows.index)


@pytest.mark.parametrize("name", NAMES)
def test_rows_keep_user_item_and_time(logs, prepared, name):
    """A sample has its row's item and time, and a user number that is one user's alone."""
    found, rows = real(samples(prepared, name)), logs[name].rows
    assert list(item_ids(prepared, name)[found["item"]]) == list(rows["item_id"])
    if "time" in rows:
        assert list(found["time"]) == list(seconds(logs[name]) * 1000)
    known = found["user"] > 0
    numbers = pd.DataFrame({"id": rows["user_id"], "number": found["user"]})[known]
    assert (numbers.groupby("id")["number"].nunique() == 1).all()
    assert (numbers.groupby("number")["id"].nunique() == 1).all()
    assert set(numbers["id"]) >= set(rows["user_id"][found["split"] == "train"])
    people = pd.DataFrame({"id": rows["user_id"], "person": found["person"]}).drop_duplicates()
    assert people["id"].is_unique
    assert people["person"].is_unique


def test_shared_users_have_shared_numbers(logs, prepared):
    """Scenarios with the same `users` give a user the same number."""
    numbers = {}
    for name in ("live", "cut"):
        found, rows = real(samples(prepared, name)), logs[name].rows
        numbers[name] = dict(zip(rows["user_id"], found["user"], strict=True))
    common = set(numbers["live"]) & set(numbers["cut"])
    assert len(common) > 10
    assert {u: numbers["live"][u] for u in common} == {u: numbers["cut"][u] for u in common}


@pytest.mark.parametrize("name", ["live", "folds"])
def test_split_by_column(logs, prepared, name):
    """A row is in the split that its column says."""
    assert list(real(samples(prepared, name))["split"]) == list(logs[name].rows["split"])


def test_split_by_time(logs, prepared):
    """Rows before the first cut are training, those from the second on are test."""
    time = logs["cut"].rows["time"]
    wanted = np.select([time < CUTS[0], time < CUTS[1]], ["train", "valid"], "test")
    assert list(real(samples(prepared, "cut"))["split"]) == list(wanted)
    assert (time == CUTS[0]).any()


def test_split_by_fractions_in_time(logs, prepared):
    """A user's rows are split by their place in time; rows of one moment are never parted."""
    rows = logs["ordered"].rows
    found = real(samples(prepared, "ordered"))["split"]
    for _, mine in rows.groupby("user_id"):
        for row, time in mine["time"].items():
            share = (mine["time"] < time).sum() / len(mine)
            cuts = np.cumsum(FRACTIONS)[:2]
            assert found[row] == SPLITS[int((cuts <= share + 1e-9).sum())]
    assert (rows.groupby(["user_id", "time"]).size() > 1).any()


def test_split_by_fractions_without_time(logs, prepared):
    """Each user's rows fall into the splits by the fractions, rounded up to whole rows."""
    rows = logs["shares"].rows
    found = real(samples(prepared, "shares"))["split"]
    for _, mine in rows.groupby("user_id"):
        sizes = found[mine.index].value_counts()
        ends = [int(np.ceil(len(mine) * c - 1e-6)) for c in np.cumsum(FRACTIONS)]
        assert [sizes.get(s, 0) for s in SPLITS] == list(np.diff([0, *ends]))


# --- labels and columns ----------------------------------------------------------------------


def test_labels(logs, prepared):
    """A label is the log's, and null where the task's parent is not positive."""
    found, rows = real(samples(prepared, "live")), logs["live"].rows
    wanted = {
        "labels.0": rows["click"],
        "labels.1": rows["buy"].where(rows["click"] == 1),
        "labels.2": rows["stars"],
    }
    for column, values in wanted.items():
        np.testing.assert_array_equal(found[column], values.astype(np.float32))
    assert rows["buy"][rows["click"] != 1].notna().any()


def test_event_columns(logs, prepared):
    """A number of the log is kept with its nulls, a category is one code, never the unknown one."""
    found, rows = real(samples(prepared, "live")), logs["live"].rows
    place = prepared.scenarios["live"].numeric_names.index("event.position")
    np.testing.assert_array_equal(found[f"numeric.{place}"], rows["position"].astype(np.float32))
    codes = found["categorical.0"].groupby(rows["device"]).unique()
    assert sorted(code for found in codes for code in found) == [1, 2]


def brute_force(
    rows: pd.DataFrame, row: int, keys: list[str], kind: str, prior: float
) -> dict[str, float]:
    """Statistics of what a row shares with others: one plain filter of the log for each."""
    now = rows.loc[row]
    same = rows[(rows[keys] == now[keys]).all(axis=1)]
    before = same[same["time"] < now["time"]]
    bought = same["buy"].where(same["click"] == 1)[same["time"] < now["time"] - 2 * DAY].dropna()
    since = (now["time"] - before["time"].max()).total_seconds()
    return {
        f"{kind}.log_count": np.log1p(len(before)),
        f"{kind}.log_count_7d": np.log1p((before["time"] >= now["time"] - 7 * DAY).sum()),
        f"{kind}.log_count_30d": np.log1p((before["time"] >= now["time"] - 30 * DAY).sum()),
        f"{kind}.log_seconds_since_last": np.log1p(since),
        f"{kind}.log_known.click": np.log1p(before["click"].notna().sum()),
        f"{kind}.log_known.bought": np.log1p(len(bought)),
        f"{kind}.rate.bought": (bought.sum() + 10 * prior) / (len(bought) + 10),
    }


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["user_id"], "user"),
        (["item_id"], "item"),
        (["brand"], "category.brand"),
        (["user_id", "brand"], "user_category.brand"),
    ],
)
def test_statistics_of_the_past(logs, prepared, keys, kind):
    """Every statistic counts the rows strictly before the sample, labels after their delay."""
    facts, log = prepared.scenarios["live"], logs["live"]
    found = real(samples(prepared, "live"))
    train = log.rows[log.rows["split"] == "train"]
    prior = train["buy"][train["click"] == 1].mean()
    rows = log.rows.join(log.items.set_index("item_id")["brand"], on="item_id")
    wanted = pd.DataFrame(
        {row: brute_force(rows, row, keys, kind, prior) for row in rows.index}
    ).T  # fmt: skip
    if "brand" in keys:  # one without a value has none, and categories have no windows
        wanted = wanted.drop(columns=[c for c in wanted if c.endswith("d")])
        wanted[rows["brand"].isna()] = np.nan
        assert rows["brand"].isna().any()
    for column in wanted:
        place = facts.numeric_names.index(column)
        np.testing.assert_allclose(found[f"numeric.{place}"], wanted[column], atol=2e-5)


def test_category_statistics_without_time(logs, prepared):
    """Counts of an item's category, scaled to all training rows, come from other folds."""
    facts, log = prepared.scenarios["folds"], logs["folds"]
    found = real(samples(prepared, "folds"))
    rows = log.rows.join(log.items.set_index("item_id")["brand"], on="item_id")
    in_train = rows[rows["split"] == "train"].groupby("brand").size()
    counts = np.expm1(found[f"numeric.{facts.numeric_names.index('category.brand.log_count')}"])
    asking = (rows["split"] != "train") & rows["brand"].notna()
    wanted = rows["brand"].map(in_train)
    np.testing.assert_allclose(counts[asking], wanted[asking], rtol=1e-4)
    training = (rows["split"] == "train") & rows["brand"].notna()
    assert (counts[training] / 1.25 < wanted[training] - 0.5).all()
    assert counts[training].mean() == pytest.approx(wanted[training].mean(), rel=0.1)


def together(column: pd.Series) -> float:
    """The number of several values: mean of rates, shortest time since the last, else the most."""
    name = str(column.name)
    if ".rate." in name:
        return column.mean()
    return column.min() if name.endswith("_since_last") else column.max()


@pytest.mark.parametrize("keys", [[], ["user_id"]], ids=["values", "user_values"])
def test_statistics_of_several_values(logs, prepared, keys):
    """Each of an item's different values is counted by itself; then they are taken together."""
    facts, log = prepared.scenarios["live"], logs["live"]
    found = real(samples(prepared, "live"))
    kind, tags = "user_values.words" if keys else "values.words", tag_sets(log.items)
    train = log.rows[log.rows["split"] == "train"]
    prior = train["buy"][train["click"] == 1].mean()
    of_item = log.rows["item_id"].map(tags)
    with_tag = {tag: log.rows.assign(tag=[tag in own for own in of_item]) for tag in TAGS}
    names = [n for n in brute_force(log.rows, 0, ["item_id"], kind, prior) if not n.endswith("d")]
    wanted = {}
    for row, own in of_item.items():
        each = [brute_force(with_tag[tag], row, [*keys, "tag"], kind, prior) for tag in sorted(own)]
        wanted[row] = pd.DataFrame(each, columns=names, dtype=float).apply(together)
    numbers = pd.DataFrame(wanted).T
    assert 0 < numbers.isna().all(axis=1).sum() < len(numbers) / 2
    for column in numbers:
        place = facts.numeric_names.index(column)
        np.testing.assert_allclose(found[f"numeric.{place}"], numbers[column], atol=2e-5)


def test_counts_of_several_values_without_time(logs, prepared):
    """The greatest of the values' counts, scaled to all training rows, from other folds."""
    facts, log = prepared.scenarios["folds"], logs["folds"]
    found = real(samples(prepared, "folds"))
    split, tags = log.rows["split"], log.rows["item_id"].map(tag_sets(log.items))
    in_train = tags[split == "train"].explode().value_counts()
    wanted = tags.map(lambda own: max((in_train[tag] for tag in own), default=np.nan))
    counts = np.expm1(found[f"numeric.{facts.numeric_names.index('values.tags.log_count')}"])
    asking = split != "train"
    np.testing.assert_allclose(counts[asking], wanted[asking], rtol=1e-4)
    training = (split == "train") & wanted.notna()
    assert (counts[training] / 1.25 < wanted[training] - 0.5).all()
    assert counts[training].mean() == pytest.approx(wanted[training].mean(), rel=0.1)


@pytest.mark.parametrize(("name", "only"), [("live", "click"), ("ordered", None)])
def test_history(logs, prepared, name, only):
    """A history holds the user's latest positives strictly before the sample, newest first."""
    rows, ids = logs[name].rows, item_ids(prepared, name)
    found = real(samples(prepared, name))
    histories = found[[f"history.{i}" for i in range(5)]]
    for row, now in rows.iterrows():
        past = rows[(rows["user_id"] == now["user_id"]) & (rows["time"] < now["time"])]
        past = past[past[only] == 1] if only else past
        mine = [ids[i] for i in histories.loc[row] if i >= 0]
        assert len(mine) == min(len(past), 5)
        times = past.sort_values("time", ascending=False)["time"].head(5)
        for item, time in zip(mine, times, strict=True):
            assert item in set(past["item_id"][past["time"] == time])


# --- negatives -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "per_positive"), [("cut", 2), ("shares", 3)])
def test_negatives_belong_to_positives(logs, prepared, name, per_positive):
    """A negative has the user, time and split of a positive of the log, and label 0."""
    found = samples(prepared, name)
    negatives, rows = drawn(found, per_positive), real(found)
    positives = logs[name].rows.query("click == 1").index
    assert set(negatives["source"]) <= set(positives)
    assert negatives.groupby("source").size().max() == per_positive
    assert 0.2 * per_positive * len(positives) < len(negatives)
    sources = rows.loc[negatives["source"]]
    for column in ("user", "time", "split"):
        assert list(negatives[column]) == list(sources[column])
    assert (negatives["labels.0"] == 0).all()


@pytest.mark.parametrize(("name", "per_positive"), [("cut", 2), ("shares", 3)])
def test_negatives_are_new_to_the_user(logs, prepared, name, per_positive):
    """No user gets an item as a negative that the log has with him in this split or an earlier."""
    rows, found = logs[name].rows, samples(prepared, name)
    negatives = drawn(found, per_positive)
    code = real(found)["split"].map(SPLITS.index)
    first = code.groupby([rows["user_id"], rows["item_id"]]).min()
    users = rows["user_id"].loc[negatives["source"]]
    pairs = list(zip(users, item_ids(prepared, name)[negatives["item"]], strict=True))
    split = negatives["split"].map(SPLITS.index).tolist()
    assert pairs
    assert not [p for p, s in zip(pairs, split, strict=True) if first.get(p, 9) <= s]
    later = [p for p, s in zip(pairs, split, strict=True) if s < first.get(p, 9) < 9]
    assert later, "later splits must not shape the samples of earlier ones"


def test_negatives_were_published(logs, prepared):
    """No negative was published after its sample's time."""
    log = logs["cut"]
    negatives = drawn(samples(prepared, "cut"), 2)
    published = log.items.set_index("item_id")["published"]
    times = pd.to_datetime(negatives["time"], unit="ms").to_numpy()
    born = published.loc[item_ids(prepared, "cut")[negatives["item"]]].to_numpy()
    assert not (born > times).any()
    assert (born == born).any()
    assert (published.to_numpy() > times.min()).any()


@pytest.mark.parametrize("name", NO_NEGATIVES)
def test_no_negatives_unless_asked(prepared, name):
    """Without `negatives` no sample is drawn."""
    assert (samples(prepared, name)["row"] < NUM_ROWS).all()


def test_negatives_by_popularity(prepared):
    """By popularity, items without a training row are never drawn; uniformly, they are."""
    for name, per_positive, expected in (("cut", 2, False), ("shares", 3, True)):
        items = drawn(samples(prepared, name), per_positive)["item"]
        assert (items >= NUM_ITEMS - NUM_UNSEEN).any() == expected


def test_popularity_is_of_training_rows_under_fractions(tmp_path):
    """An item that only test rows have is never drawn by popularity, whoever the user is."""
    rows = [(user, place) for user in range(12) for place in range(20)]
    (tmp_path / "drawn").mkdir()
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(25)], "title": "a thing"})
    items.to_parquet(tmp_path / "drawn" / "items.parquet")
    events = pd.DataFrame(
        {
            "user_id": [f"u{user}" for user, _ in rows],
            "item_id": [f"i{24 if p == 19 and u < 6 else (7 * u + p) % 24}" for u, p in rows],
            "time": [START + DAY * place for _, place in rows],
            "click": [float((user + place) % 2) for user, place in rows],
        }
    )
    events.to_parquet(tmp_path / "drawn" / "events.parquet")
    tree = scenario_tree(
        "drawn",
        split={"fractions": list(FRACTIONS)},
        negatives={"per_positive": 20, "of": "click", "from": "popularity"},
    )
    encoder = {"source": ENCODER, "max_tokens": 16}
    project = parse_project(
        {"root": str(tmp_path), "scenarios": {"drawn": tree}, "model": {"encoder": encoder}}
        | {"run": {"name": "drawn"}}
    )
    run_prepare(project, str(tmp_path), say_nothing)
    found = load_prepared(prepared_folder(project, str(tmp_path)))
    ids = item_ids(found, "drawn")[drawn(samples(found, "drawn"), 20)["item"]]
    assert len(ids) > 200
    assert "i24" not in set(ids)


# --- report ----------------------------------------------------------------------------------


def test_report_counts(logs, project, logs_storage):
    """The report counts rows, rows dropped and why, duplicates, labels, users and items."""
    log = logs["live"]
    report = run_prepare(project, str(logs_storage), say_nothing)["live"]
    train = log.rows[log.rows["split"] == "train"]
    assert report["rows_in_log"] == NUM_ROWS
    assert report["dropped"] == {
        "null user": 3,
        "null item": 2,
        "null time": 4,
        "unknown item": 5,
    }
    assert report["samples"] == log.rows["split"].value_counts().to_dict()
    assert report["duplicates"] == log.rows.duplicated(["user_id", "item_id", "time"]).sum()
    assert report["duplicates"] >= 8
    outside = log.events["buy"].notna() & (log.events["click"] != 1)
    assert report["ignored_labels"] == {"label of bought without a positive click": outside.sum()}
    assert report["items"] == NUM_ITEMS
    assert report["items_in_train"] == train["item_id"].nunique()
    assert report["users_in_train"] == train["user_id"].nunique()
    bought = train["buy"].where(train["click"] == 1)
    labels = {"click": train["click"], "bought": bought, "stars": train["stars"]}
    assert report["train_labels"] == {t: v.notna().sum() for t, v in labels.items()}
    assert report["train_label_means"] == pytest.approx(
        {t: v.mean() for t, v in labels.items()}, abs=1e-4
    )


@pytest.mark.parametrize("name", WITH_NEGATIVES)
def test_report_counts_samples_with_negatives(prepared, project, logs_storage, name):
    """Samples count drawn negatives, rows of the log do not."""
    report = run_prepare(project, str(logs_storage), say_nothing)[name]
    assert report["rows_in_log"] == NUM_ROWS
    assert report["samples"] == samples(prepared, name)["split"].value_counts().to_dict()
    assert report["duplicates"] < NUM_ROWS / 2


def test_report_says_that_time_is_missing(project, logs_storage):
    """A scenario without time is noted in the report, one with time is not."""
    report = run_prepare(project, str(logs_storage), say_nothing)
    assert {n for n in NAMES if "no time" in report[n].get("note", "")} == {"folds", "shares"}


# --- the same rows, again --------------------------------------------------------------------


def test_same_seed_same_files(project, logs_storage, pieces):
    """A second preparation, of small row groups, writes the same files, to the last byte."""
    other, folder = pieces
    folders = [
        Path(prepared_folder(p, str(f))) for p, f in ((project, logs_storage), (other, folder))
    ]
    names = [sorted(p.relative_to(f) for p in f.rglob("*.parquet")) for f in folders]
    assert names[0] == names[1]
    assert not [
        n for n in names[0] if (folders[0] / n).read_bytes() != (folders[1] / n).read_bytes()
    ]
    for name in NAMES:
        for root, groups in ((project.root, 1), (other.root, 7)):
            file = pq.ParquetFile(Path(root) / name / "events.parquet")
            assert file.num_row_groups == groups


@pytest.mark.parametrize("name", NAMES)
def test_partitions_give_the_same_samples(prepared, whole, name):
    """Several partitions give the samples that one gives.

    Drawn negatives depend on the partition, and with them the fitted prior of the rates.
    """
    project, folder = whole
    one = load_prepared(prepared_folder(project, str(folder)))
    assert len(one.shard_paths(name, "train")) == 1 < len(prepared.shard_paths(name, "train"))
    first, second = (real(samples(p, name)) for p in (one, prepared))
    if name in WITH_NEGATIVES:
        same = ["user", "item", "time", "split", "labels.0", *(f"history.{i}" for i in range(5))]
        first, second = first[same], second[same]
    pd.testing.assert_frame_equal(first, second)


def test_hot_items_and_values_give_the_same_samples(logs, whole, tmp_path_factory):
    """Items and values whose rows lie in many partitions give what one partition gives.

    To the last bit, and of each the one state at the end; drawn negatives depend on partitions.
    """
    size = 40
    for log in logs.values():
        assert (log.rows["item_id"].value_counts() > size).any()
        brand = log.items.set_index("item_id")["brand"]
        assert log.rows["item_id"].map(brand).value_counts().max() > 5 * size
    many = prepare_again(tmp_path_factory, logs, 97, size)
    first, second = (load_prepared(prepared_folder(p, str(f))) for p, f in (whole, many))
    for name in NO_NEGATIVES:
        pd.testing.assert_frame_equal(samples(first, name), samples(second, name), check_exact=True)
    of_values = [("live", "values.words"), ("folds", "values.tags")]
    of_brands = [("live", "category.brand"), ("folds", "category.brand")]
    for name, kind in (*of_brands, *of_values, ("live", "items")):
        key = "item" if kind == "items" else "category"
        states = [read_states(prepared, name, kind) for prepared in (first, second)]
        one, other = (state.sort_by(key) for state in states if state)
        assert one.equals(other)
    assert len(list((Path(second.folder) / "live" / "state" / "values.words").iterdir())) > 1


def test_a_partition_without_rows_does_not_stop_a_shuffle():
    """Work that adds a column adds none where a partition has no rows, as where values are few."""

    def read():
        yield pa.table({"number": np.arange(10)})

    def square(index, table, known):
        return table.append_column("square", pc.power(table["number"], 2))

    def total(index, table):
        return sum(table["square"].to_pylist())

    pieces = shuffle.begin([read], lambda table: np.zeros(table.num_rows, np.int64), 2)
    pieces = shuffle.go_on(pieces, square, lambda table: table["number"].to_numpy() % 2, 2, {})
    evens, odds = ray.get(shuffle.end(pieces, total))
    assert (evens, odds) == (120, 165)


@pytest.mark.parametrize("fixture", ["pieces", "whole"])
def test_pieces_give_the_same_report(project, logs_storage, fixture, request):
    """Rows, dropped rows, duplicates and labels are counted alike, whatever the pieces."""
    other, folder = request.getfixturevalue(fixture)
    found = run_prepare(project, str(logs_storage), say_nothing)
    again = run_prepare(other, str(folder), say_nothing)
    assert {n: found[n] for n in NO_NEGATIVES} == {n: again[n] for n in NO_NEGATIVES}
    for name in WITH_NEGATIVES:
        for key in ("rows_in_log", "duplicates", "dropped", "items"):
            assert found[name][key] == again[name][key]


# --- finished runs ---------------------------------------------------------------------------


def test_prepared_data_is_found_again(project, logs_storage):
    """A finished preparation is not repeated, and loss weights are no part of it."""
    told: list[str] = []
    scenarios = {n: {**s, "weight": 7.0} for n, s in project.dump()["scenarios"].items()}
    heavier = parse_project(project.dump() | {"scenarios": scenarios})
    manifest = Path(prepared_folder(project, str(logs_storage))) / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert run_prepare(heavier, str(logs_storage), told.append)["live"]
    assert told == ["prepare: already done"]
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.parametrize("section", ["training", "scenarios", "model"])
def test_changed_configuration_is_refused(project, logs_storage, section):
    """A run's name with another seed, history or encoder is refused, and the data stays."""
    tree = project.dump()
    match section:
        case "training":
            tree["data_seed"] = 5
        case "scenarios":
            tree["scenarios"]["live"]["history"]["last"] = 6
        case "model":
            tree["model"]["encoder"]["max_tokens"] = 17
    with pytest.raises(ProjectError, match=r"^run\.name: found 'logs'"):
        run_prepare(parse_project(tree), str(logs_storage), say_nothing)
    assert storage.exists(prepared_folder(project, str(logs_storage)) + "/manifest.json")


def test_changed_input_is_refused(pieces):
    """A run's name whose input files were written anew is refused."""
    project, folder = pieces
    path = Path(project.path("live/events.parquet"))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    try:
        with pytest.raises(ProjectError, match=r"^run\.name"):
            run_prepare(project, str(folder), say_nothing)
    finally:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
