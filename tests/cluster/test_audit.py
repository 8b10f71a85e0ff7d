"""The leakage audit passes on honest data, and fails where a row of the future was planted."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from mtrec_ray.data.columns import fixed_list, matrix
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing import features, values
from mtrec_ray.data.preparing import passes as data_prepare
from mtrec_ray.data.preparing.audit import audit, sampled_rows
from mtrec_ray.data.shards import OUTCOME, Arrays
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.project.split import SPLITS
from mtrec_ray.stages.prepare import run_prepare
from tests.cluster.logs import NUM_ROWS, Log, tag_sets
from tests.cluster.runs import prepared_folder, say_nothing

pytestmark = pytest.mark.cluster

AUDITED = 12  # rows of a split, as the prepare stage asks
TWO_DAYS = pd.Timedelta(days=2)

Edit = tuple[str, str, int, dict[str, float] | list[int]]


def only(project: Project, name: str) -> Project:
    """The project with one of its scenarios."""
    tree = project.dump()
    return parse_project(tree | {"scenarios": {name: tree["scenarios"][name]}})


@pytest.mark.parametrize("name", ["live", "cut", "folds", "shares", "ordered"])
def test_honest_data_passes(project, prepared, name):
    """Not one of 90 audited rows of honest data is refused: timed, frozen, untimed, negatives."""
    split_rows = [len(list(sampled_rows(prepared, name, s, 30))) for s in SPLITS]
    assert split_rows == [30, 30, 30]
    assert audit(only(project, name), prepared, rows_per_split=30) == []


# --- planted rows ----------------------------------------------------------------------------


def audited(prepared: Prepared, name: str, *splits: str) -> Iterator[tuple[str, Arrays]]:
    """The samples that the audit looks at, with their split."""
    for split in splits:
        for sample in sampled_rows(prepared, name, split, AUDITED):
            yield split, sample


def plant(prepared: Prepared, name: str, edit: Edit, folder: Path) -> Prepared:
    """A copy of the prepared data with numbers, history or outcomes of one row changed."""
    split, what, row, values = edit
    copy = replace(prepared, folder=str(folder / "planted"))
    shutil.copytree(Path(prepared.folder) / name, folder / "planted" / name)
    column = {"history": "history", "outcome": OUTCOME}.get(what, "numeric")
    for path in copy.shard_paths(name, split):
        table = pq.read_table(path)
        place = np.flatnonzero(table.column("row").to_numpy() == row)
        cells = matrix(table.column(column)).copy()
        if isinstance(values, dict):
            names = prepared.scenarios[name].numeric_names
            for key, value in values.items():
                cells[place, names.index(key)] = value
        else:
            cells[place] = values
        index = table.column_names.index(column)
        pq.write_table(table.set_column(index, column, fixed_list(cells)), path)
    return copy


def number(prepared: Prepared, name: str, sample: Arrays, column: str) -> float:
    """A numeric column of a sample."""
    return float(sample["numeric"][prepared.scenarios[name].numeric_names.index(column)])


def one_more(prepared: Prepared, name: str, sample: Arrays, column: str) -> float:
    """The log of a count that counts one row more than the sample's does."""
    return float(np.log1p(np.expm1(number(prepared, name, sample, column)) + 1))


def count_edit(name: str, split: str, column: str) -> Callable[[Prepared, Log], Edit]:
    """A count that holds one row more: the sample itself, or one at the same time or later."""

    def make(prepared: Prepared, log: Log) -> Edit:
        for found, sample in audited(prepared, name, split):
            if (more := one_more(prepared, name, sample, column)) > 0:  # not of an item without one
                return found, column, int(sample["row"]), {column: more}
        raise AssertionError("no audited row has such a count")

    return make


def last_moment(prepared: Prepared, log: Log) -> Edit:
    """A time since the user's last row that knows a row of the same moment."""
    column = "user.log_seconds_since_last"
    for split, sample in audited(prepared, "live", *SPLITS):
        if number(prepared, "live", sample, column) > 0:
            return split, column, int(sample["row"]), {column: 0.0}
    raise AssertionError("no audited row has a past")


def label_within_delay(prepared: Prepared, log: Log) -> Edit:
    """A rate that knows labels of the last two days, whose delay has not passed."""
    prior = prepared.scenarios["live"].label_means["bought"]
    bought = log.rows["buy"].where(log.rows["click"] == 1)
    for split, sample in audited(prepared, "live", *SPLITS):
        now = log.rows.loc[int(sample["row"])]
        same = (log.rows["item_id"] == now["item_id"]) & (log.rows["time"] < now["time"])
        early = bought[same].dropna()
        if (log.rows["time"][early.index] >= now["time"] - TWO_DAYS).any():
            rate = (early.sum() + 10 * prior) / (len(early) + 10)
            return split, "item.rate.bought", int(sample["row"]), {"item.rate.bought": rate}
    raise AssertionError("no audited row has a label within its delay")


def history_edit(later: bool) -> Callable[[Prepared, Log], Edit]:
    """A history whose newest item is the sample's own (at its own time) or one from later."""

    def make(prepared: Prepared, log: Log) -> Edit:
        code = {item: i for i, item in enumerate(log.items["item_id"])}
        for split, sample in audited(prepared, "live", *SPLITS):
            row, now = int(sample["row"]), log.rows.loc[int(sample["row"])]
            mine = log.rows[(log.rows["user_id"] == now["user_id"]) & (log.rows["click"] == 1)]
            past = set(mine["item_id"][mine["time"] < now["time"]])
            wrong = mine[mine["time"] > now["time"]] if later else mine[mine.index == row]
            new = [code[item] for item in wrong["item_id"] if item not in past]
            history = sample["history"].tolist()
            if new and history[0] >= 0:
                return split, "history", row, [new[0], *history[1:]]
        raise AssertionError("no audited row can take such an item")

    return make


def longer_history(prepared: Prepared, log: Log) -> Edit:
    """A history that holds the sample's own item beside all earlier ones."""
    for split, sample in audited(prepared, "ordered", *SPLITS):
        history = sample["history"].tolist()
        if history[-1] < 0:
            longer = [int(sample["item"]), *history[:-1]]
            return split, "history", int(sample["row"]), longer
    raise AssertionError("all audited histories are full")


def outcome_within_delay(prepared: Prepared, log: Log) -> Edit:
    """A history that tells of an item whether it was bought, before the two days have passed."""
    code = {item: i for i, item in enumerate(log.items["item_id"])}
    for split, sample in audited(prepared, "live", *SPLITS):
        now = log.rows.loc[int(sample["row"])]
        mine = log.rows[(log.rows["user_id"] == now["user_id"]) & log.rows["buy"].notna()]
        recent = mine[(mine["time"] < now["time"]) & (mine["time"] >= now["time"] - TWO_DAYS)]
        once = ~mine["item_id"].duplicated(keep=False)
        for item in recent["item_id"][(recent["click"] == 1) & once[recent.index]]:
            place = sample["history"].tolist().index(code[item])
            outcomes = sample[OUTCOME].copy()
            outcomes[place] |= 3 << 2  # bought: the second task, its highest level
            return split, "outcome", int(sample["row"]), outcomes.tolist()
    raise AssertionError("no audited row has an item within its delay")


def not_frozen(prepared: Prepared, log: Log) -> Edit:
    """Frozen statistics that count validation and test rows before the sample."""
    split_of = {
        int(row): split
        for split in SPLITS
        for path in prepared.shard_paths("cut", split)
        for row in pq.read_table(path, columns=["row"]).column(0).to_pylist()
    }
    rows = log.rows.assign(split=[split_of[row] for row in log.rows.index])
    for split, sample in audited(prepared, "cut", "test"):
        if sample["row"] >= NUM_ROWS:
            continue
        now = rows.loc[int(sample["row"])]
        before = rows[(rows["user_id"] == now["user_id"]) & (rows["time"] < now["time"])]
        if (before["split"] != "train").any():
            wrong = {"user.log_count": float(np.log1p(len(before)))}
            return split, "user.log_count", int(sample["row"]), wrong
    raise AssertionError("no audited row has a validation row in its past")


def own_fold(prepared: Prepared, log: Log) -> Edit:
    """A rate over all training rows of the user, the sample and its fold among them."""
    prior = prepared.scenarios["folds"].label_means["click"]
    column = "user.rate.click"
    for split, sample in audited(prepared, "folds", "train"):
        now = log.rows.loc[int(sample["row"])]
        mine = log.rows[(log.rows["user_id"] == now["user_id"]) & (log.rows["split"] == "train")]
        rate = (mine["click"].sum() + 10 * prior) / (len(mine) + 10)
        if abs(rate - number(prepared, "folds", sample, column)) > 0.005:
            return split, column, int(sample["row"]), {column: rate}
    raise AssertionError("no audited row's fold changes its rate")


def own_fold_of_a_value(prepared: Prepared, log: Log) -> Edit:
    """A rate that is the mean of the values' rates over all training rows, the own fold's too."""
    prior, column = prepared.scenarios["folds"].label_means["click"], "values.tags.rate.click"
    tags = log.rows["item_id"].map(tag_sets(log.items))
    train = log.rows["split"] == "train"
    for split, sample in audited(prepared, "folds", "train"):
        rates = []
        for tag in tags[int(sample["row"])]:
            mine = log.rows["click"][train & tags.map(lambda own, tag=tag: tag in own)]
            rates.append((mine.sum() + 10 * prior) / (len(mine) + 10))
        if rates and abs(np.mean(rates) - number(prepared, "folds", sample, column)) > 0.005:
            return split, column, int(sample["row"]), {column: float(np.mean(rates))}
    raise AssertionError("no audited row's fold changes the rate of its values")


def own_item(prepared: Prepared, log: Log) -> Edit:
    """A history without time that holds the sample's own item, which no other row has."""
    for split, sample in audited(prepared, "folds", "train"):
        now = log.rows.loc[int(sample["row"])]
        mine = log.rows[log.rows["user_id"] == now["user_id"]]
        if (mine["item_id"] == now["item_id"]).sum() == 1 and sample["history"][0] >= 0:
            wrong = [int(sample["item"]), *sample["history"][1:].tolist()]
            return split, "history", int(sample["row"]), wrong
    raise AssertionError("no audited row has an item of its own")


def own_positive(prepared: Prepared, log: Log) -> Edit:
    """A drawn negative whose user's count holds the fold of its positive."""
    column = "user.log_count"
    for split, sample in audited(prepared, "shares", "train"):
        if sample["row"] >= NUM_ROWS:
            wrong = {column: one_more(prepared, "shares", sample, column)}
            return split, column, int(sample["row"]), wrong
    raise AssertionError("no audited row is a drawn negative")


PLANTS: dict[str, tuple[str, Callable[[Prepared, Log], Edit]]] = {
    "user count": ("live", count_edit("live", "test", "user.log_count")),
    "item count of a week": ("live", count_edit("live", "valid", "item.log_count_7d")),
    "training count": ("live", count_edit("live", "train", "item.log_known.click")),
    "count of values": ("live", count_edit("live", "test", "values.words.log_count")),
    "count of the user with values": (
        "live",
        count_edit("live", "valid", "user_values.words.log_known.click"),
    ),
    "frozen count of values": ("cut", count_edit("cut", "test", "values.tags.log_count")),
    "own fold of a value": ("folds", own_fold_of_a_value),
    "plain seconds": ("ordered", count_edit("ordered", "test", "user.log_count")),
    "moment of the last row": ("live", last_moment),
    "label within its delay": ("live", label_within_delay),
    "equal-time item": ("live", history_edit(later=False)),
    "later item": ("live", history_edit(later=True)),
    "outcome within its delay": ("live", outcome_within_delay),
    "own item beside the others": ("ordered", longer_history),
    "frozen statistics not frozen": ("cut", not_frozen),
    "own fold": ("folds", own_fold),
    "own item without time": ("folds", own_item),
    "negative counts its positive": ("shares", own_positive),
}


@pytest.mark.parametrize("what", PLANTS)
def test_planted_row_is_found(logs, project, prepared, tmp_path, what):
    """A row that a sample must not know fails the audit, which names scenario, row and column."""
    name, make = PLANTS[what]
    edit = make(prepared, logs[name])
    split, column, row, _ = edit
    found = audit(only(project, name), plant(prepared, name, edit, tmp_path))
    assert found
    for line in found:
        assert line.startswith(f"scenarios.{name} ({split} row {row}): {column}")


def test_row_of_another_item_is_found(project, prepared, tmp_path):
    """A sample whose item is not the log's fails the audit."""
    copy = replace(prepared, folder=str(tmp_path))
    shutil.copytree(Path(prepared.folder) / "folds", tmp_path / "folds")
    for path in copy.shard_paths("folds", "test"):
        table = pq.read_table(path)
        items = (table.column("item").to_numpy() + 1) % prepared.scenarios["folds"].num_items
        index = table.column_names.index("item")
        pq.write_table(table.set_column(index, "item", pa.array(items.astype(np.int32))), path)
    found = audit(only(project, "folds"), copy)
    assert len([line for line in found if ": item: prepared" in line]) == AUDITED


@pytest.mark.parametrize("what", ["label of click", "weight"])
def test_a_label_or_a_weight_of_another_row_is_found(project, prepared, tmp_path, what):
    """A sample whose own label, or whose weight, is not that of its row of the log fails."""
    copy = replace(prepared, folder=str(tmp_path))
    shutil.copytree(Path(prepared.folder) / "ordered", tmp_path / "ordered")
    for path in copy.shard_paths("ordered", "test"):
        table = pq.read_table(path)
        if what == "weight":
            wrong = table.append_column("weight", pa.array(np.full(table.num_rows, 2, np.float32)))
        else:
            labels = fixed_list(1 - matrix(table.column("labels")))
            wrong = table.set_column(table.column_names.index("labels"), "labels", labels)
        pq.write_table(wrong, path)
    found = audit(only(project, "ordered"), copy)
    assert len(found) == AUDITED
    for line in found:
        assert f"): {what}: prepared" in line


# --- a preparation that leaks ----------------------------------------------------------------


def equal_times_leak(where: str) -> Callable[..., object]:
    """The features of users, or of values, with rows of the sample's own moment in its past.

    A closure, which travels to Ray's workers by value; it leaves their modules as they were.
    """

    def leaking(*args: object) -> object:
        import numpy as np

        from mtrec_ray.data.preparing import features, statistics, values

        def end(self, delay_ms=0):
            cutoff = self.past.codes_of(self.key, self.time - delay_ms)
            return np.searchsorted(self.past.codes, cutoff, side="right")

        honest = statistics.Questions.end
        statistics.Questions.end = end
        try:
            if where == "user_features":
                return features.user_features(*args)
            return values.value_features(*args)
        finally:
            statistics.Questions.end = honest

    return leaking


def own_fold_leak() -> Callable[..., object]:
    """The features of users with the sample's own fold (the sample too) in its statistics."""

    def user_features(table: pa.Table, layout: object) -> object:
        import numpy as np

        from mtrec_ray.data.preparing import features, statistics

        def all_folds(rows, fold, priors, sums, dtype):
            whole, own = sums
            return honest(rows, fold, priors, (whole, np.zeros_like(own)), dtype)

        honest = statistics.fold_statistics
        statistics.fold_statistics = all_folds
        try:
            return features.user_features(table, layout)
        finally:
            statistics.fold_statistics = honest

    return user_features


@pytest.mark.parametrize(
    ("name", "where", "leak"),
    [
        ("live", "user_features", equal_times_leak("user_features")),
        ("folds", "user_features", own_fold_leak()),
        ("live", "value_features", equal_times_leak("value_features")),
    ],
)
def test_leaking_preparation_is_refused(project, tmp_path, monkeypatch, name, where, leak):
    """A preparation that leaks ends in a ProjectError and leaves no prepared folder behind."""
    module = features if where == "user_features" else values
    parts = {k: v for k, v in vars(module).items() if not k.startswith("__")}
    leaking = SimpleNamespace(**parts | {where: leak})
    monkeypatch.setattr(data_prepare, module.__name__.rsplit(".", 1)[-1], leaking)
    cloudpickle.register_pickle_by_value(data_prepare)  # so that workers get the patched module
    try:
        with pytest.raises(ProjectError) as caught:
            run_prepare(only(project, name), str(tmp_path), say_nothing)
    finally:
        cloudpickle.unregister_pickle_by_value(data_prepare)
    assert len(caught.value.problems) >= AUDITED
    for line in caught.value.problems:
        assert line.startswith(f"leakage audit: scenarios.{name} (")
        assert where == "user_features" or "): values.words." in line
    assert not Path(prepared_folder(project, str(tmp_path))).exists()


def test_honest_preparation_passes_its_audit(project, tmp_path):
    """After a leak the same workers prepare the same scenario, and its report says: audited."""
    run_prepare(only(project, "live"), str(tmp_path), say_nothing)
    assert (Path(prepared_folder(project, str(tmp_path))) / "manifest.json").is_file()


def test_report_names_the_audit(project, logs_storage):
    """The data report says that the audit passed, and on how many rows of each split."""
    report = run_prepare(project, str(logs_storage), say_nothing)
    assert report["audit"] == {"passed": True, "rows_per_split": AUDITED}
