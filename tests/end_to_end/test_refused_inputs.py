"""Logs, catalogues and project files as users have them that are refused: by one clear line.

The number before a name is that of a kind of input, as in `test_inputs.py`. What files and project
file show is refused by `check` and by `prepare`; what only rows show by `prepare`.
"""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import yaml

from tests.end_to_end.small_project import (
    CLICK,
    ITEM,
    NUM_ITEMS,
    NUM_ROWS,
    OF_ITEM,
    ROW,
    SECOND,
    SECONDS,
    USER,
    Case,
    Make,
    SmallProject,
    both,
    catalogue,
    changing_users,
    check_refused,
    fields,
    in_files,
    job_here,
    log,
    model,
    params,
    parts,
    small_project,
    users,
)
from tests.end_to_end.test_inputs import CASES as PREPARED
from tests.end_to_end.test_inputs import EIGHTEEN, WITH_STARS, hive

pytestmark = pytest.mark.end_to_end

LATE = np.where(ROW < 210, CLICK, np.nan)  # no label in valid and test
SHOP = r"scenarios\.shop\."
NO_TEXT = r"allowed: column names in braces, such as \{title\}"
NO_ITEM = (rf"{SHOP}events\.item: found 300 of 300 rows \(100\.0%\) whose item",)
FRACTIONS = fields(split={"fractions": [0.8, 0.1, 0.1]})


def encoder_folder(**config) -> Make:
    """An encoder of which there is a configuration only, in a local folder."""

    def make(project: SmallProject) -> None:
        folder = project.folder / "encoder"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        model(encoder={"source": str(folder), "trainable": "none"})(project)

    return make


def twice(key: str) -> Make:
    """A project file in which a key below the scenario's stands a second time."""

    def make(project: SmallProject) -> None:
        text = yaml.safe_dump(project.tree, default_flow_style=False, sort_keys=False)
        lines = text.splitlines()
        place = next(i for i, line in enumerate(lines) if line.strip() == f"{key}:")
        depth = len(lines[place]) - len(lines[place].lstrip())
        rest = enumerate(lines[place + 1 :], place + 1)
        end = next(i for i, x in rest if len(x) - len(x.lstrip()) <= depth)
        project.text = "\n".join([*lines[:end], *lines[place:]])

    return make


def address(uri: str) -> Make:
    """A log at an address."""
    return fields(events={"path": uri})


def other_items(project: SmallProject) -> None:
    """Items that stand twice and differ."""
    project.shop["items"]["path"] = "items"
    second = project.items.set_column(1, "title", pa.array(["another thing"] * NUM_ITEMS))
    project.files |= {"items/a.parquet": project.items, "items/b.parquet": second}


def delta_table(project: SmallProject) -> None:
    """A folder as Delta writes it."""
    in_files("part-0.parquet")(project)
    project.files["ev/_delta_log/0.checkpoint.parquet"] = pa.table({"add": [1]})


def second_scenario(project: SmallProject) -> None:
    """A whole scenario beside one that has no labels in valid."""
    whole = yaml.safe_load(yaml.safe_dump(project.shop))
    whole["events"]["path"] = "whole.parquet"
    project.tree["scenarios"]["video"] = whole
    project.files["whole.parquet"] = project.events
    log(click=LATE)(project)


def lacking(column: str) -> object:
    """The later file of a log without a column."""
    return parts(lambda t: t.drop_columns(column))


def with_column(column: str, values) -> object:
    """The later file of a log with another column."""
    half = NUM_ROWS // 2
    return parts(
        lambda t: t.set_column(t.column_names.index(column), column, pa.array(values[:half]))
    )


ROBERTA = {
    "model_type": "roberta", "vocab_size": 99, "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 514,
    "pad_token_id": 1,
}  # fmt: skip

IN_THE_FILES = {
    "27 ready vectors as texts": Case(
        both(catalogue(image=["0.1, 0.2"] * NUM_ITEMS), fields(items={"vectors": ["image"]})),
        (rf"{SHOP}items\.vectors: found column 'image' of .* type string; allowed: a list of num",),
    ),
    "4 later file without a label": Case(
        lacking("click"),
        (rf"{SHOP}tasks\.click: found no column 'click' in .*/ev/b\.parquet; allowed: .*",),
    ),
    "4 later file without a category": Case(
        both(
            log(device=["a"] * NUM_ROWS),
            fields(events={"categorical": ["device"]}),
            lacking("device"),
        ),
        (rf"{SHOP}events\.categorical: found no column 'device' in .*/ev/b\.parquet",),
    ),
    "4 later file with another name of a column": Case(
        parts(lambda t: t.rename_columns({"user_id": "uid"})),
        (rf"{SHOP}events\.user: found no column 'user_id' in .*/ev/b\.parquet; allowed: uid,",),
    ),
    "4 later file with words as labels": Case(
        with_column("click", ["yes", "no"] * NUM_ROWS),
        (rf"{SHOP}tasks\.click: found column 'click' of .*/ev/b\.parquet with type string",),
    ),
    "4 later file with words as times": Case(
        with_column("time", ["Monday"] * NUM_ROWS),
        (rf"{SHOP}events\.time: found column 'time' of .*/ev/b\.parquet with type string",),
    ),
    "9 days as numbers in a split": Case(
        fields(split={"time": [20250101, 20250201]}),
        (rf"{SHOP}split\.time: found .*; 20250101 would be read as seconds; allowed: dates",),
    ),
    "11 folder of a Delta table": Case(
        delta_table,
        (rf"{SHOP}events\.path: found a table of Delta at .*/ev.*; allowed: ",),
    ),
    "11 folder of an Iceberg table": Case(
        both(
            in_files("data/a.parquet"),
            lambda p: p.files.update({"ev/metadata/v1.metadata.json": p.events}),
        ),
        (rf"{SHOP}events\.path: found a table of Iceberg at .*/ev.*; allowed: ",),
    ),
    "11 folder of a Hudi table": Case(
        both(
            in_files("a.parquet"),
            lambda p: p.files.update({"ev/.hoodie/hoodie.properties": p.events}),
        ),
        (rf"{SHOP}events\.path: found nothing at .*/ev \(tables of Hudi, .*\); allowed: P",),
    ),
    "14 more tokens than positions": Case(
        both(model(encoder={"max_tokens": 1024}), catalogue(title=["word " * 2000] * NUM_ITEMS)),
        (r"model\.encoder\.max_tokens: found 1024; allowed: at most 512, the positions of pack",),
    ),
    "14 more tokens of a pair than positions": Case(
        model(layout="pair", pair_tokens=1024, retrieval={"enabled": False}),
        (r"model\.pair_tokens: found 1024; allowed: at most 512, the positions of package:",),
    ),
    "14 positions behind the padding": Case(
        both(encoder_folder(**ROBERTA), model(encoder={"max_tokens": 513})),
        (r"model\.encoder\.max_tokens: found 513; allowed: at most 512, the positions of /",),
    ),
    "15 model of text and pictures": Case(
        encoder_folder(model_type="clip"),
        (r"model\.encoder\.source: found .*, which is no model of text alone \(clip\); allowed",),
    ),
    "15 encoder with a decoder": Case(
        encoder_folder(model_type="t5"),
        (r"model\.encoder\.source: found .*, an encoder with a decoder \(t5\); allowed",),
    ),
    "15 model of pictures": Case(
        encoder_folder(model_type="vit"),
        (r"model\.encoder\.source: found .*, which is no model of text alone \(vit\); allowed",),
    ),
    "15 another encoder with a decoder": Case(
        both(encoder_folder(model_type="bart"), model(encoder={"trainable": "top_k"})),
        (r"model\.encoder\.source: found .*, an encoder with a decoder \(bart\); allowed",),
    ),
    "16 scenario twice": Case(
        twice("shop"), (r".*project\.yaml: line \d+: found the key shop for a second time",)
    ),
    "16 task twice": Case(
        twice("click"), (r".*project\.yaml: line \d+: found the key click for a second time",)
    ),
    "16 section twice": Case(
        twice("items"), (r".*project\.yaml: line \d+: found the key items for a second time",)
    ),
    "17 text with a form": Case(
        fields(items={"text": "{title:.20}"}),
        (rf"{SHOP}items\.text: found .*; {{title:\.20}} is no column name; {NO_TEXT}",),
    ),
    "17 text with one brace": Case(
        fields(items={"text": "{title"}), (rf"{SHOP}items\.text: found .*; {NO_TEXT}",)
    ),
    "17 text without a column": Case(
        fields(items={"text": "an item"}),
        (rf"{SHOP}items\.text: found 'an item'; no column name in braces; {NO_TEXT}",),
    ),
    "17 no text": Case(
        fields(items={"text": ""}),
        (rf"{SHOP}items\.text: found ''; no column name in braces; {NO_TEXT}",),
    ),
    "19 files of another format": Case(
        in_files("a.orc"),
        (rf"{SHOP}events\.path: found nothing at .*/ev \(1 files, none .* \*\.parquet\); allow",),
    ),
    "20 words in the path as times": Case(
        hive("time", ["today" if i % 2 else "yesterday" for i in ROW]),
        (rf"{SHOP}events\.time: found column 'time' of .* and 1 more files with type string",),
    ),
    "22 missing values of a column that nobody named": Case(
        fields(events={"missing": {"price": [-1]}}),
        (rf"{SHOP}events\.missing: found column 'price', which no field names; allowed: user_id",),
    ),
    "32 events in no column of the log": Case(
        fields(tasks={"click": {"kind": "binary", "label": {"column": "event", "equals": "buy"}}}),
        (rf"{SHOP}tasks\.click\.label\.equals: found no column 'event' in .*; allowed: user_id,",),
    ),
    "32 words that are at least a number": Case(
        fields(tasks={"click": {"kind": "binary", "label": {"column": "split", "at_least": 1}}}),
        (rf"{SHOP}tasks\.click\.label\.at_least: found column 'split' of .* with type string",),
    ),
    "33 words as weights": Case(
        fields(events={"weight_column": "split"}),
        (rf"{SHOP}events\.weight_column: found column 'split' of .* with type string; allowed: a",),
    ),
    "33 a clip below 1": Case(
        fields(events={"propensity": {"column": "click", "clip": 0.5}}),
        (rf"{SHOP}events\.propensity\.clip: found 0\.5; allowed: input should be greater than",),
    ),
    "34 tasks that rest on each other": Case(
        fields(
            tasks={
                "click": {"kind": "binary", "given": "back"},
                "buy": {"kind": "binary", "given": "click", "label": "click"},
                "back": {"kind": "binary", "given": "buy", "label": "click"},
            }
        ),
        (rf"{SHOP}tasks\.back\.given: found a cycle, back given buy given click given back; al",),
    ),
    "29 an address without a network": Case(
        address("hf://datasets/no-such-user/no-such-data/log.parquet"),
        (rf"{SHOP}events\.path: found (nothing at )?hf://.*; allowed: Parquet",),
    ),
    "29 an address where nobody listens": Case(
        address("http://localhost:1/log.parquet"),
        (rf"{SHOP}events\.path: found nothing at http://localhost:1/log.*; allowed: Parquet",),
    ),
    "29 an address of no file system": Case(
        address("foo://log.parquet"),
        (rf"{SHOP}events\.path: found foo://log\.parquet, which .* not known: foo\); allowed: P",),
    ),
    "29 options of a protocol that no path has": Case(
        lambda p: p.tree.update(storage_options={"sftp": {"port": 22}}),
        (r"storage_options: found 'sftp'; allowed: protocols of paths \(none, as all paths are",),
    ),
    "29 options without their variable": Case(
        both(
            address("memory://log.parquet"),
            lambda p: p.tree.update(storage_options={"memory": {"key": "${NO_SUCH_NAME}"}}),
        ),
        (r"storage_options: found \${NO_SUCH_NAME}, which is not set; allowed: a variable of ",),
    ),
    "29 an address of a file system that is not known": Case(
        address("dbfs://log"),
        (rf"{SHOP}events\.path: found dbfs://log, which cannot be reached .*; allowed: Parquet",),
    ),
}  # fmt: skip

IN_THE_ROWS = {
    "27 ready vectors of two lengths": Case(
        both(
            catalogue(image=[[1.0] * (3 + (i == 5)) for i in range(NUM_ITEMS)]),
            fields(items={"vectors": ["image"]}),
        ),
        (
            rf"{SHOP}items\.vectors: found column 'image' with vectors of lengths 3 \(such as that "
            r"of 'i0'\), 4 \(such as that of 'i5'\); allowed: one length",
        ),
    ),
    "27 no ready vector": Case(
        both(
            catalogue(image=pa.nulls(NUM_ITEMS, pa.list_(pa.float32(), 4))),
            fields(items={"vectors": ["image"]}),
        ),
        (rf"{SHOP}items\.vectors: found column 'image' without a vector of an item that .*",),
    ),
    "5 ids that differ, with fractions": Case(
        both(log(item_id=OF_ITEM), catalogue(item_id=[f"{i:05}" for i in ITEM]), FRACTIONS),
        NO_ITEM,
    ),
    "5 ids that differ, with negatives": Case(
        both(log(item_id=[f"I{i}" for i in OF_ITEM]), fields(negatives={"of": "click"})), NO_ITEM
    ),
    "5 ids that differ": Case(log(item_id=[f"i{i}.0" for i in OF_ITEM]), NO_ITEM),
    "6 no row in train, popularity": Case(
        fields(
            split={"time": ["2020-01-01", "2020-02-01"]},
            negatives={"of": "click", "from": "popularity"},
        ),
        (rf"{SHOP}split: found no rows in train; allow", rf"{SHOP}split: found no rows in valid"),
    ),
    "6 no row in train, uniform": Case(
        both(log(split=["valid", "test"] * (NUM_ROWS // 2)), fields(negatives={"of": "click"})),
        (rf"{SHOP}split: found no rows in train; allowed: at least one",),
    ),
    "6 no row in train": Case(
        log(split=["valid", "test"] * (NUM_ROWS // 2)),
        (rf"{SHOP}split: found no rows in train; allowed: at least one",),
    ),
    "9 milliseconds": Case(
        log(time=SECONDS * 1000),
        (rf"{SHOP}events\.time: found numbers such as 17\d+, .*allowed: .*time_unit: ms",),
    ),
    "9 microseconds": Case(
        log(time=SECONDS * 10**6),
        (rf"{SHOP}events\.time: found numbers such as 17\d+, .*allowed: .*time_unit: us",),
    ),
    "9 nanoseconds": Case(
        log(time=SECONDS * 10**9),
        (rf"{SHOP}events\.time: found numbers such as 17\d+, .*allowed: .*time_unit: ns",),
    ),
    "9 days as numbers": Case(
        log(time=20250101 + ROW * 12 // NUM_ROWS),
        (rf"{SHOP}events\.time: found numbers such as 202501\d\d, .*allowed: a time stamp",),
    ),
    "9 years of publication": Case(
        both(catalogue(published=[1999] * NUM_ITEMS), fields(items={"published": "published"})),
        (rf"{SHOP}items\.published: found numbers such as 1999, .*allowed: a time stamp",),
    ),
    "10 no possible time": Case(
        log(time=pa.array([-(10**11)] * NUM_ROWS, pa.timestamp("s"))),
        (rf"{SHOP}events\.time: found 300 of 300 times such as .*; allowed: times from 1900",),
    ),
    "12 mostly no users": Case(
        log(user_id=np.where(ROW % 6, np.nan, USER)),
        (rf"{SHOP}events\.user: found 250 nulls in 300 rows; allowed: one in most of them",),
    ),
    "12 no items": Case(
        log(item_id=pa.nulls(NUM_ROWS, pa.string())),
        (rf"{SHOP}events\.item: found 300 nulls in 300 rows; allowed: one in most of them",),
    ),
    "13 no label in valid": Case(
        log(click=LATE),
        (rf"{SHOP}tasks\.click: found no labels in valid; allowed: labels of a task, by which",),
    ),
    "13 no label in valid of one of two scenarios": Case(
        second_scenario,
        (rf"{SHOP}tasks\.click: found no labels in valid; allowed: labels of a task, by which",),
    ),
    "13 no label in valid of two tasks": Case(
        both(WITH_STARS, log(click=LATE, stars=LATE)),
        (rf"{SHOP}tasks\.click: found no labels in valid", rf"{SHOP}tasks\.stars: found no labels"),
    ),
    "21 mostly no times": Case(
        log(time=pa.array(SECONDS, SECOND, mask=ROW >= 49)),
        (rf"{SHOP}events\.time: found 251 nulls in 300 rows; allowed: a time in most of them",),
    ),
    "21 no times": Case(
        log(time=pa.nulls(NUM_ROWS, pa.timestamp("s"))),
        (rf"{SHOP}events\.time: found 300 nulls in 300 rows; allowed: a time in most of them",),
    ),
    "22 clicks of -1": Case(
        log(click=np.where(CLICK == 1, 1, -1)),
        (rf"{SHOP}tasks\.click: found \d+ labels of a binary task .*such as -1\.0; allowed: 0",),
    ),
    "23 items twice that differ": Case(
        other_items, (rf"{SHOP}items\.id: found 12 duplicate ids, such as 'i\d+'; allowed: none",)
    ),
    "23 a user twice in his table": Case(
        users(user_id=["u1", "u2", "u1"], country=["c"] * 3, age=[1] * 3, interests=[["p"]] * 3),
        (r"users\.people\.id: found 1 duplicate ids, such as 'u1'; allowed: none",),
    ),
    "23 a user twice at the same time": Case(
        changing_users(1, 2, 1),
        (r"users\.people\.time: found a user twice at the same time \(to the millisecond\), such",),
    ),
    "12 profiles from after training": Case(
        changing_users(9, 11),
        (r"users\.people\.time: found no row of a user of training before 2025-01-09T",),
    ),
    "12 times of users in another unit": Case(
        changing_users(1, 2, time_unit=None),
        (r"users\.people\.time: found numbers such as 17\d+, .*: users\.people\.time_unit: ms",),
    ),
    "12 a table of other users": Case(
        users(user_id=[1, 2], country=["c"] * 2, age=[1] * 2, interests=[["p"]] * 2),
        (r"users\.people\.id: found ids such as '1', none of which is a user of training; allo",),
    ),
    "24 positives alone": Case(
        log(click=np.ones(NUM_ROWS)),
        (rf"{SHOP}tasks\.click: found only the label 1 in train; .*or negatives: \{{of: click\}}",),
    ),
    "32 an event that no row is": Case(
        fields(tasks={"click": {"kind": "binary", "label": {"column": "stars", "equals": "buy"}}}),
        (rf"{SHOP}tasks\.click: found only the label 0 in train; allowed: two values or more",),
    ),
    "32 a value that is no class": Case(
        fields(tasks={"stars": {"kind": "multiclass", "classes": [1, 2, 3, 4]}}),
        (rf"{SHOP}tasks\.stars: found \d+ labels .* no class, such as 5; allowed: 1, 2, 3, 4, ",),
    ),
    "32 classes that training has not": Case(
        fields(tasks={"stars": {"kind": "multiclass", "classes": [0, 1, 2, 3, 4, 5, 6]}}),
        (rf"{SHOP}tasks\.stars\.classes: found no row of 0, 6 in train; allowed: classes that",),
    ),
    "32 classes of lists": Case(
        both(
            log(seen=[["a"]] * NUM_ROWS),
            fields(tasks={"seen": {"kind": "multiclass", "classes": ["a", "b"]}}),
        ),
        (rf"{SHOP}tasks\.seen\.classes: found column 'seen' .* type list.*; allowed: text, a num",),
    ),
    "33 a weight below 0": Case(
        both(log(trust=np.where(ROW == 7, -1, 1)), fields(events={"weight_column": "trust"})),
        (rf"{SHOP}events\.weight_column: found 1 of 300 rows with .* as -1\.0; allowed: a number",),
    ),
    "33 no weight": Case(
        both(log(trust=np.where(EIGHTEEN, np.nan, 1)), fields(events={"weight_column": "trust"})),
        (rf"{SHOP}events\.weight_column: found 18 of 300 rows with .* as nan; allowed: a number",),
    ),
    "33 weights of 0 alone": Case(
        both(log(trust=[0] * NUM_ROWS), fields(events={"weight_column": "trust"})),
        (rf"{SHOP}events\.weight_column: found only weights of 0 in the training rows with a lab",),
    ),
    "33 a probability of 0": Case(
        both(log(p=np.where(ROW == 7, 0, 1.0)), fields(events={"propensity": {"column": "p"}})),
        (rf"{SHOP}events\.propensity\.column: found 1 of 300 rows with .* as 0\.0; allowed: a pr",),
    ),
    "33 a probability above 1": Case(
        both(log(p=[2] * NUM_ROWS), fields(events={"propensity": {"column": "p"}})),
        (rf"{SHOP}events\.propensity\.column: found 300 of 300 rows with .* as 2\.0; allowed: a",),
    ),
    "35 a negative duration": Case(
        both(log(seconds=ROW - 1.5), fields(tasks={"seconds": {"kind": "duration"}})),
        (rf"{SHOP}tasks\.seconds: found 2 labels of a duration task that are .* as -1\.5; a",),
    ),
    "35 half a visit": Case(
        both(log(visits=ROW / 2), fields(tasks={"visits": {"kind": "count"}})),
        (rf"{SHOP}tasks\.visits: found 150 labels of a count task that are .* as 0\.5; allowed:",),
    ),
    "24 positives alone, split by fractions": Case(
        both(log(click=np.ones(NUM_ROWS)), FRACTIONS),
        (rf"{SHOP}tasks\.click: found only the label 1 in train; .*or negatives: \{{of: click\}}",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("job", ["check", "prepare"])
@pytest.mark.parametrize("case", params(IN_THE_FILES))
def test_an_input_that_files_show(tmp_path, capsys, case, job):
    """The check and the preparation refuse it with the same lines, before anything is made."""
    project = small_project(tmp_path)
    case.make(project)
    check_refused(project, case, job, job_here(project, job, capsys))


@pytest.mark.usefixtures("session_ray")
@pytest.mark.parametrize("case", params(IN_THE_ROWS))
def test_an_input_that_rows_show(tmp_path, capsys, case):
    """The preparation refuses it, and leaves nothing half written."""
    project = small_project(tmp_path)
    case.make(project)
    check_refused(project, case, "prepare", job_here(project, "prepare", capsys))


def test_each_kind_has_three_inputs():
    """Of each of the 35 kinds there are three inputs or more."""
    names = [*PREPARED, *IN_THE_FILES, *IN_THE_ROWS]
    found = Counter(int(name.split()[0]) for name in names)
    assert sorted(found) == list(range(1, 36))
    assert [kind for kind, number in found.items() if number < 3] == []
