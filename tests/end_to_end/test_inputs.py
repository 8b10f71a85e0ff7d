"""Logs and catalogues as users have them that prepare: what is dropped or ignored is told.

The number before a name is that of a kind of input; the kinds that are refused, too, have their
cases in `test_refused_inputs.py`.
"""

import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.columns import matrix
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.preparing.audit import audit
from mtrec_ray.data.tokens import load_tokenizer
from mtrec_ray.project.load import load_project
from tests.end_to_end.small_project import (
    CLICK,
    ENCODER,
    ITEM,
    NUM_ITEMS,
    NUM_ROWS,
    NUM_USERS,
    OF_ITEM,
    ROW,
    SECOND,
    SECONDS,
    SPLIT,
    STARS,
    START,
    USER,
    Case,
    SmallProject,
    both,
    catalogue,
    changing_users,
    check_prepared,
    fields,
    in_files,
    job_here,
    log,
    params,
    parts,
    small_project,
    users,
)

pytestmark = pytest.mark.end_to_end

WITH_STARS = fields(tasks={"stars": {"kind": "regression"}})
TITLES = [f"thing number {i}" for i in ITEM]
BYTES = [title.encode() for title in TITLES]
IDS = [f"i{i}" for i in OF_ITEM]
EIGHTEEN = np.arange(NUM_ROWS) % 17 == 0  # 18 rows
UUIDS = [uuid.UUID(int=u + 2**100) for u in range(20)]
FIXED = pa.array([UUIDS[u].bytes for u in USER], pa.binary(16))


def numeric(values, **events) -> object:
    """A numeric column of the log."""
    return both(log(ctr=values), fields(events={"numeric": ["ctr"], **events}))


def priced(price) -> object:
    """A numeric column of the catalogue."""
    return both(catalogue(price=price), fields(items={"numeric": ["price"]}))


def rated(stars, **events) -> object:
    """Another column of labels of a regression."""
    return both(WITH_STARS, log(stars=stars), fields(events=events))


def timed(time, unit=None) -> object:
    """Other times."""
    return both(log(time=time), fields(events={"time_unit": unit}))


def encoded_title(project: SmallProject) -> None:
    """The text of the first item is its title."""
    tokens = project.read("catalogue.parquet").column("tokens")[0].as_py()
    text = load_tokenizer(ENCODER).decode(tokens, skip_special_tokens=True)
    assert text == "thing number 0"


def users_are(*names: str):
    """A check that the states of users are of these users."""

    def check(project: SmallProject) -> None:
        found = set(project.read("state/users").column("user_id").to_pylist())
        assert set(names) <= found
        assert len(found) == 20

    return check


def with_left_overs(project: SmallProject) -> None:
    """A folder with what jobs and editors leave behind."""
    in_files("part-0.parquet")(project)
    for name in ("_temporary/0/part-0.parquet", ".ipynb_checkpoints/part-0-checkpoint.parquet"):
        project.files[f"ev/{name}"] = project.events


def hive(key: str, values) -> object:
    """A log in a folder for each value of a key, which stands in no file."""

    def make(project: SmallProject) -> None:
        whole = project.events
        project.shop["events"]["path"] = "ev"
        for value in sorted(set(values)):
            rows = whole.filter(pa.array([v == value for v in values]))
            kept = rows.drop_columns(key) if key in rows.column_names else rows
            project.files[f"ev/{key}={value}/part-0.parquet"] = kept

    return make


def items_twice(project: SmallProject) -> None:
    """Each item twice, in two files."""
    project.shop["items"]["path"] = "items"
    project.files |= {"items/a.parquet": project.items, "items/b.parquet": project.items}


def first_stamps(*words: str) -> list[np.datetime64]:
    """The log's times, the first of them replaced."""
    times = SECONDS.astype("datetime64[s]")
    times[: len(words)] = [np.datetime64(w) for w in words]
    return pa.array(times.astype("datetime64[s]").tolist(), pa.timestamp("us"))


def late_rows(project: SmallProject) -> None:
    """A list of structs in the log, which no field names."""
    shown = [[{"item": f"i{i}", "place": i}] * (i % 3) for i in ROW]
    log(impressions=shown)(project)


def weighted_mean(weights) -> float:
    """The mean of the training labels, by the weights of their rows."""
    return round(float(np.average(CLICK[:210], weights=weights[:210])), 4)


def weights_are(weights):
    """A check that each training row has the weight of its row of the log."""

    def check(project: SmallProject) -> None:
        rows = project.read("train")
        found = rows.column("weight").to_numpy()
        np.testing.assert_allclose(found, weights[rows.column("row").to_numpy()])

    return check


def logarithms_of_seconds(project: SmallProject) -> None:
    """Means and deviations of a duration's logarithms are those of its training labels."""
    manifest = json.loads((project.prepared / "manifest.json").read_text())
    facts = manifest["scenarios"]["shop"]
    known = (ROW < 210) & ~EIGHTEEN & (CLICK == 1)
    logs = np.log1p(30.5 * (ROW % 3))[known]
    assert facts["label_log_means"] == {"seconds": pytest.approx(logs.mean(), rel=1e-6)}
    assert facts["label_log_stds"] == {"seconds": pytest.approx(logs.std(), rel=1e-6)}


INFINITE = {"ignored_numbers": {"number of ctr that is infinite": 18}}
INFINITE_STARS = {"ignored_labels": {"label of stars that is infinite": 18}}
BURST = SECONDS[ROW // 5 * 5]
DAYS = [str(np.datetime64(int(s), "s"))[:10] for s in SECONDS]
DEVICE = [("a", "b")[i % 2] for i in ROW]
BUY = fields(tasks={"buy": {"kind": "binary", "given": "click"}})
SESSION = [f"s{i}" for i in ROW]

CASES = {
    "1 infinite number of the log": Case(
        numeric(np.where(EIGHTEEN, np.inf, 0.5 * ROW)), report=INFINITE,
        told=(r"18 values ignored \(number of ctr that is infinite\)",),
    ),
    "1 infinite number of an item": Case(
        priced(np.where(ITEM == 3, -np.inf, ITEM)), long=True,
        report={"ignored_item_values": {"number of price that is infinite": 1}},
    ),
    "1 number beyond 32 bits": Case(
        priced(np.where(ITEM == 3, 1.7e308, ITEM)), long=True,
        report={"ignored_item_values": {"number of price that is infinite": 1}},
    ),
    "1 number of the log beyond 32 bits": Case(
        numeric(np.where(EIGHTEEN, -1e300, 0.5)), report=INFINITE, long=True
    ),
    "2 logarithm of 0 as label": Case(
        rated(np.where(EIGHTEEN, -np.inf, STARS)), report=INFINITE_STARS,
        told=(r"18 values ignored \(label of stars that is infinite\)",),
    ),
    "2 infinite label": Case(
        rated(np.where(EIGHTEEN, np.inf, STARS)), report=INFINITE_STARS, long=True
    ),
    "2 label beyond 32 bits": Case(
        rated(np.where(EIGHTEEN, 1e300, STARS)), report=INFINITE_STARS, long=True
    ),
    "3 bursts below a millisecond": Case(timed(BURST + 0.0001 * (ROW % 5))),
    "3 bursts in microseconds": Case(
        timed(pa.array(BURST * 10**6 + 100 * (ROW % 5), pa.timestamp("us"))), long=True
    ),
    "3 bursts as milliseconds with a fraction": Case(
        timed(BURST * 1000 + 0.1 * (ROW % 5), "ms"), long=True
    ),
    "4 later file with times of another type": Case(
        parts(lambda t: put_seconds(t)), report={"rows_in_log": NUM_ROWS}
    ),
    "7 title as bytes": Case(catalogue(title=BYTES), check=encoded_title),
    "7 title as bytes in a dictionary": Case(
        catalogue(title=pa.array(BYTES).dictionary_encode()), check=encoded_title, long=True
    ),
    "7 splits, categories and ids as bytes": Case(
        both(
            log(
                split=[word.encode() for word in SPLIT],
                item_id=[i.encode() for i in IDS],
            ),
            catalogue(brand=[b"caf\xe9", b"a"] * (NUM_ITEMS // 2)),
            fields(items={"categorical": ["brand"]}),
        ),
        report={"known_values": {"brand": 2}}, long=True,
    ),
    "8 UUIDs as users": Case(log(user_id=FIXED), check=users_are(str(UUIDS[0]))),
    "8 UUIDs by their own type": Case(
        log(user_id=pa.ExtensionArray.from_storage(pa.uuid(), FIXED)),
        check=users_are(str(UUIDS[0])), long=True,
    ),
    "8 users that are no UTF-8": Case(
        log(user_id=[b"\xe9%d" % u for u in USER]), check=users_are("e930"), long=True
    ),
    "8 items by UUID in the log, by text in the catalogue": Case(
        both(
            log(item_id=pa.array([UUIDS[i].bytes for i in OF_ITEM], pa.binary(16))),
            catalogue(item_id=[str(UUIDS[i]) for i in ITEM]),
        ),
        report={"items_in_train": NUM_ITEMS}, long=True,
    ),
    "9 milliseconds by name": Case(timed(SECONDS * 1000, "ms"), long=True),
    "10 year 9999": Case(
        log(time=first_stamps("9999-12-31")), report={"dropped": {"impossible time": 1}},
        told=(r"1 rows dropped \(impossible time\)",),
    ),
    "10 years 1 and 9999": Case(
        log(time=first_stamps("9999-12-31", "0001-01-01")),
        report={"dropped": {"impossible time": 2}}, long=True,
    ),
    "10 a day far in the future": Case(
        log(time=first_stamps("2099-12-31")), report={"rows_by_year": {"2025": 299, "2099": 1}},
        told=(r"1 rows are of 2099, far from the others in time",), long=True,
    ),
    "10 item that was published in the year 9999": Case(
        both(
            catalogue(published=pa.array([-(10**10), 253_402_214_400, *[START] * 10], SECOND)),
            fields(items={"published": "published"}),
        ),
        report={"ignored_item_values": {"time of publication that is impossible": 2}},
        check=lambda p: published_unknown(p, 2), long=True,
    ),
    "11 left-over and hidden files": Case(with_left_overs, report={"rows_in_log": NUM_ROWS}),
    "11 checksums and marks of success": Case(
        both(
            in_files("a.parquet"),
            lambda p: p.files.update(dict.fromkeys(["ev/_SUCCESS", "ev/.a.crc"], p.events)),
        ),
        report={"rows_in_log": NUM_ROWS}, long=True,
    ),
    "12 NaN as user": Case(
        log(user_id=np.where(ROW % 3 == 0, np.nan, USER)), report={"dropped": {"null user": 100}},
        told=(r"100 rows dropped \(null user\)",),
    ),
    "12 nobody's rows": Case(
        log(user_id=np.where(ROW % 2 == 0, "", USER.astype(str))),
        report={"largest_user": {"user": "", "rows": 150}},
        told=(r"50% of the rows are of the user '' \(see events\.missing\)",), long=True,
    ),
    "12 nobody's rows by name": Case(
        both(
            log(user_id=np.where(ROW % 3 == 0, -1, USER)),
            fields(events={"missing": {"user_id": -1}}),
        ),
        report={
            "dropped": {"null user": 100},
            "missing_values": {"value of user_id that means missing": 100},
        },
        told=(r"100 values read as null \(value of user_id that means missing\)",), long=True,
    ),
    "13 no label in test": Case(
        log(click=np.where(ROW < 255, CLICK, np.nan)),
        told=(r"no label of click in test, where it has no score",), long=True,
    ),
    "13 one of two tasks without a label in valid": Case(
        rated(np.where(ROW < 210, STARS, np.nan)),
        told=(r"no label of stars in valid, where it has no score",),
    ),
    "17 column with a blank in its name": Case(
        both(catalogue(**{"product name": TITLES}), fields(items={"text": "{product name}"})),
        check=encoded_title,
    ),
    "18 the project's own names in the log": Case(
        both(
            log(event_categorical=SESSION, part=ROW, statistics=ROW, labels=ROW),
            fields(events={"categorical": ["event_categorical"], "numeric": ["part", "labels"]}),
        ),
    ),
    "18 the project's own names in the catalogue": Case(
        both(
            catalogue(tokens=ITEM, index=ITEM, known=ITEM),
            fields(items={"numeric": ["tokens", "known"], "categorical": ["index"]}),
        ),
        long=True,
    ),
    "18 the project's own names as tasks": Case(
        fields(
            tasks={
                "time": {"kind": "regression", "label": "stars"},
                "user": {"kind": "binary", "label": "click"},
                "split": {"kind": "regression", "label": "stars", "given": "user"},
            },
            history={"of": "user"},
        ),
        long=True,
    ),
    "18 the project's own names as labels and users": Case(
        both(
            log(row=CLICK, sampled=[f"u{u}" for u in USER]),
            fields(
                events={"user": "sampled"}, tasks={"click": {"kind": "binary", "label": "row"}}
            ),
        ),
        long=True,
    ),
    "19 files without an ending": Case(
        in_files("000000_0", "000001_0"), report={"rows_in_log": NUM_ROWS}
    ),
    "19 files with another ending": Case(
        in_files("a.pq", "b.parq"), report={"rows_in_log": NUM_ROWS}, long=True
    ),
    "20 the split in the path": Case(
        hive("split", SPLIT),
        report={"samples": {"train": 210, "valid": 45, "test": 45}},
    ),
    "20 the day in the path": Case(
        both(
            hive("time", DAYS), fields(split={"time": ["2025-01-09", "2025-01-11"]})
        ),
        report={"samples": {"train": 200, "valid": 50, "test": 50}}, long=True,
    ),
    "20 a category in the path": Case(
        both(hive("device", DEVICE), fields(events={"categorical": ["device"]})),
        report={"known_values": {"device": 2}}, long=True,
    ),
    "21 some times are null": Case(
        log(time=pa.array(SECONDS, SECOND, mask=ROW % 5 == 0)),
        report={"dropped": {"null time": 60}}, told=(r"60 rows dropped \(null time\)",),
    ),
    "22 ratings of -1": Case(
        rated(np.where(ROW % 3 == 0, -1, STARS)),
        report={"train_label_ranges.stars": [-1.0, 5.0]}, long=True,
    ),
    "22 ratings of -1 by name": Case(
        rated(np.where(ROW % 3 == 0, -1, STARS), missing={"stars": [-1]}),
        report={
            "train_label_ranges.stars": [1.0, 5.0],
            "missing_values": {"value of stars that means missing": 100},
        },
    ),
    "22 numbers of -999 by name": Case(
        numeric(np.where(EIGHTEEN, -999.0, 0.5), missing={"ctr": [-999, "none"]}),
        report={"missing_values": {"value of ctr that means missing": 18}}, long=True,
    ),
    "22 prices of 0 by name": Case(
        both(priced(np.where(ITEM == 3, 0, ITEM + 1.0)), fields(items={"missing": {"price": 0}})),
        check=lambda p: one_null(p, "numeric.price"), long=True,
    ),
    "23 items twice": Case(
        items_twice, report={"merged_items": NUM_ITEMS, "items": NUM_ITEMS},
        told=(r"12 rows of the catalogue are copies of another, and merged",),
    ),
    "23 items that differ in what nobody named": Case(
        both(
            lambda p: setattr(p, "items", pa.concat_tables([p.items] * 3)),
            lambda p: catalogue(seen=np.arange(3 * NUM_ITEMS))(p),
        ),
        report={"merged_items": 2 * NUM_ITEMS, "items": NUM_ITEMS}, long=True,
    ),
    "23 items with statistics twice": Case(
        both(
            catalogue(brand=["a", None] * 6, price=np.where(ITEM == 3, np.nan, ITEM)),
            fields(items={"categorical": ["brand"], "numeric": ["price"]}),
            items_twice,
        ),
        report={"merged_items": NUM_ITEMS}, long=True,
    ),
    "24 positives alone, with negatives": Case(
        both(log(click=np.ones(NUM_ROWS)), fields(negatives={"of": "click", "per_positive": 2})),
        long=True,
    ),
    "25 a category with a value a row": Case(
        both(log(session=SESSION), fields(events={"categorical": ["session"]})),
        report={"known_values": {"session": 0}},
        told=(r"no value of session has 5 training rows, so that it says nothing",),
    ),
    "25 a category with one rare value": Case(
        both(
            log(device=np.where(ROW < 4, "rare", np.where(ROW % 2, "a", "b"))),
            fields(events={"categorical": ["device"]}),
        ),
        report={"known_values": {"device": 2}}, long=True,
    ),
    "25 a category of the catalogue with a value an item": Case(
        both(
            log(item_id=[f"i{i}" for i in np.where(ROW < 290, ROW % 2, ROW % NUM_ITEMS)]),
            catalogue(sku=[f"k{i}" for i in ITEM]),
            fields(items={"categorical": ["sku"]}),
        ),
        report={"known_values": {"sku": 2}}, long=True,
    ),
    "26 training rows after those of test": Case(
        fields(split={"fractions": [0.8, 0.1, 0.1]}),
        told=(r"\d+\.\d% of the training rows are later than the first row of test",),
    ),
    "26 a split at random": Case(
        log(split=[("train", "valid", "test")[i % 3] for i in ROW]),
        report={"train_after_test": 0.99},
        told=(r"99\.0% of the training rows are later than the first row of test",), long=True,
    ),
    "26 a split by time": Case(
        fields(split={"time": ["2025-01-09", "2025-01-11"]}), report={"train_after_test": 0.0},
        long=True,
    ),
    "27 lists that nobody named": Case(late_rows),
    "27 vectors that nobody named": Case(log(vector=[[0.5] * 768] * NUM_ROWS), long=True),
    "27 lists of the catalogue that nobody named": Case(
        catalogue(images=[[b"x" * 99] * 3] * NUM_ITEMS), long=True
    ),
    "28 many small files": Case(
        in_files(*(f"{i:03}.parquet" for i in range(60))), report={"rows_in_log": NUM_ROWS},
        long=True,
    ),
    "28 many folders": Case(
        in_files(*(f"d{i // 5}/h{i}/p.parquet" for i in range(30))),
        report={"rows_in_log": NUM_ROWS},
    ),
    "28 a file without rows among others": Case(
        in_files("a.parquet", "b.parquet", "c.parquet", rows=150),
        report={"rows_in_log": NUM_ROWS}, long=True,
    ),
    "29 names that Hive escapes, below a URI": Case(
        both(
            in_files("ts=2024-01-01%2000%3A00/p.parquet"),
            lambda p: p.tree.update(root=p.folder.as_uri()),
        ),
        report={"rows_in_log": NUM_ROWS},
    ),
    "30 child of 0 below a parent of 0": Case(
        both(log(buy=CLICK * (ROW % 2)), BUY),
        report={"ignored_labels": {"label of buy without a positive click": (CLICK == 0).sum()}},
    ),
    "30 child of null below a parent of 0": Case(
        both(
            log(buy=np.where(CLICK == 1, ROW % 2, np.nan)),
            BUY,
        ),
        report={"ignored_labels": {}}, long=True,
    ),
    "30 child over the entire space": Case(
        both(
            log(buy=CLICK * (ROW % 2)),
            fields(tasks={"buy": {"kind": "binary", "given": "click", "space": "entire"}}),
        ),
        long=True,
    ),
    "7 columns in types that few functions know": Case(
        both(
            log(user_id=pa.array([f"u{u}" for u in USER], pa.string_view())),
            catalogue(
                item_id=pa.array([f"i{i}" for i in ITEM], pa.string_view()),
                price=pa.array((ITEM % 3).astype(np.float16)),
            ),
            fields(items={"categorical": ["price"], "missing": {"item_id": "x", "price": 0}}),
            items_twice,
        ),
        report={"merged_items": NUM_ITEMS}, long=True,
    ),
    "32 events of one column as labels": Case(
        both(
            log(event=[("view", "buy", None)[i % 3] for i in ROW]),
            fields(
                tasks={
                    "view": {"kind": "binary", "label": {"column": "event", "equals": "view"}},
                    "click": {"kind": "binary", "label": {"column": "event", "equals": ["buy"]}},
                }
            ),
        ),
        report={"train_label_means": {"view": 0.5, "click": 0.5}},
    ),
    "32 one of three values as classes": Case(
        both(
            log(event=[("skip", "like", "love", None)[i % 4] for i in ROW]),
            fields(
                tasks={
                    "click": {"kind": "binary"},
                    "event": {
                        "kind": "multiclass", "classes": ["skip", "like", "love"], "delay": "1d",
                        "gains": {"love": 3, "like": 1},
                    },
                },
                history={"of": "any", "outcomes": True},
            ),
        ),
        report={
            "train_classes.event": {"skip": 53, "like": 53, "love": 52},
            "train_label_means.event": round((53 + 3 * 52) / 158, 4),
        },
    ),
    "32 stars from four on as labels": Case(
        fields(tasks={"click": {"kind": "binary", "label": {"column": "stars", "at_least": 4}}}),
        report={"train_label_means.click": round(float((STARS[:210] >= 4).mean()), 4)}, long=True,
    ),
    "32 every row a positive": Case(
        fields(
            tasks={"click": {"kind": "binary", "label": 1}},
            negatives={"of": "click", "per_positive": 2},
        ),
        report={"train_label_ranges.click": [0.0, 1.0]},
    ),
    "33 rows with weights": Case(
        both(log(trust=1 + CLICK), fields(events={"weight_column": "trust"})),
        report={"train_label_means.click": weighted_mean(1 + CLICK)}, check=weights_are(1 + CLICK),
    ),
    "33 rows of a logged policy": Case(
        both(
            log(p=np.where(ROW % 2, 0.5, 0.01), trust=ROW % 3 + 1),
            fields(events={"weight_column": "trust", "propensity": {"column": "p", "clip": 20}}),
        ),
        check=weights_are(np.where(ROW % 2, 2, 20) * (ROW % 3 + 1)),
    ),
    "33 weights with sampled negatives, split by fractions": Case(
        both(
            log(trust=1 + CLICK),
            fields(
                events={"weight_column": "trust"}, split={"fractions": [0.8, 0.1, 0.1]},
                negatives={"of": "click", "per_positive": 2},
            ),
        ),
        long=True,
    ),
    "34 a chain of three, its last over the entire space": Case(
        both(
            log(cart=CLICK * (ROW % 2), buy=CLICK * (ROW % 2) * (ROW % 3 > 0)),
            fields(
                tasks={
                    "cart": {"kind": "binary", "given": "click", "delay": "1d"},
                    "buy": {"kind": "binary", "given": "cart", "space": "entire"},
                }
            ),
        ),
        report={"train_label_ranges.buy": [0.0, 1.0]},
    ),
    "34 a chain below its children": Case(
        both(
            log(cart=ROW % 3 > 0, buy=ROW % 2),
            lambda p: p.shop.update(
                tasks={
                    "buy": {"kind": "binary", "given": "cart"},
                    "cart": {"kind": "binary", "given": "click"},
                    "click": {"kind": "binary"},
                }
            ),
        ),
        report={"labels.train.buy": int((CLICK[:210] * (ROW[:210] % 3 > 0)).sum())}, long=True,
    ),
    "35 counts": Case(
        both(log(visits=ROW % 7), fields(tasks={"visits": {"kind": "count"}})),
        report={"train_label_ranges.visits": [0.0, 6.0], "train_label_means.visits": 3.0},
    ),
    "35 durations": Case(
        both(
            log(seconds=np.where(EIGHTEEN, np.nan, 30.5 * (ROW % 3))),
            fields(tasks={"seconds": {"kind": "duration", "given": "click"}}),
        ),
        report={"train_label_ranges.seconds": [0.0, 61.0]}, check=logarithms_of_seconds, long=True,
    ),
    "31 several values, and users with a table": Case(
        both(
            catalogue(
                tags=pa.array([["a", f"b{i % 2}"] if i else None for i in ITEM]),
                genres=[" x|y|" if i % 2 else None for i in ITEM],
            ),
            fields(
                items={
                    "lists": ["tags"], "separators": {"genres": "|"},
                    "statistics_of": ["tags", "genres"],
                }
            ),
            users(country=["c"] * 10, age=[*range(9), -1], interests=[["p", "q"]] * 10),
        ),
        report={
            "users_without_profile": NUM_USERS - 10,
            "known_values": {"tags": 3, "genres": 2},
        },
        told=(r"shop: 50\.0% of the users of training have no profile \(10\)",),
        check=lambda p: profiles_are(p, ["a", "b0", "b1"]),
    ),
    "31 several values in the log, rewritten": Case(
        both(
            log(
                tags=pa.array([["a", f"b{r % 2}", "a"] if r % 3 else None for r in ROW]),
                query=[f"red shoes {'' if CLICK[r] else r}" for r in ROW],
            ),
            fields(
                events={"lists": ["tags"], "separators": {"query": " "}},
                split={"fractions": [0.6, 0.2, 0.2]}, negatives={"of": "click"},
            ),
        ),
        report={"known_values": {"tags": 3, "query": 2}},
        check=lambda p: values_of_rows_are(p),
    ),
    "31 users whose profiles change": Case(
        changing_users(-1, 4, 11.5),
        report={"users_without_profile": NUM_USERS - 10},
        check=lambda p: profiles_of_training(p),
    ),
    "27 ready vectors": Case(
        both(
            catalogue(image=[None, [np.inf, 1.0, 2.0], *np.eye(12, 3)[2:].tolist()]),
            fields(items={"vectors": ["image"]}),
            users(country=["c"] * 20, age=range(20), interests=np.eye(20, 5).tolist()),
            lambda p: p.tree["users"]["people"].update(lists=[], vectors=["interests"]),
        ),
        told=(r"shop: 1 values ignored \(vector of image with a null, NaN or infinite number\)",),
        check=lambda p: vectors_are_there(p, [False, False, *[True] * 10]),
    ),
    "31 tags in titles": Case(catalogue(title=["A &amp; B <b>"] * NUM_ITEMS)),
    "31 emoji, right to left, and NUL in titles": Case(
        catalogue(title=["\U0001f600 \u202eabc\u202c \x00 x"] * NUM_ITEMS), long=True
    ),
    "31 titles of blanks": Case(catalogue(title=["", "  ", None] * (NUM_ITEMS // 3)), long=True),
}  # fmt: skip


def put_seconds(table: pa.Table) -> pa.Table:
    """Times as plain seconds."""
    seconds = table.column("time").cast(pa.int64())
    return table.set_column(table.column_names.index("time"), "time", seconds)


def published_unknown(project: SmallProject, number: int) -> None:
    """Some times of publication are unknown."""
    published = project.read("catalogue.parquet").column("published").to_numpy()
    assert (published == np.iinfo(np.int64).min).sum() == number


def one_null(project: SmallProject, column: str) -> None:
    """One value of a column of the catalogue is unknown."""
    assert np.isnan(project.read("catalogue.parquet").column(column).to_numpy()).sum() == 1


def profiles_are(project: SmallProject, values: list[str]) -> None:
    """Items have the codes of their values, and users those of their table, sorted by hash."""
    catalogue = project.read("catalogue.parquet")
    found = catalogue.column("several.tags").to_pylist()
    assert {len(codes) for codes in found[1:]} == {2}
    assert found[0] == []
    assert {code for codes in found for code in codes} == set(range(1, len(values) + 1))
    people = pq.read_table(project.prepared / "profiles.people.parquet")
    assert people.column("several.interests").to_pylist() == [[1, 2]] * 10
    assert all(len(tokens) > 2 for tokens in people.column("tokens").to_pylist())
    texts = matrix(pq.read_table(project.prepared / "profiles.people.texts.parquet").column(0))
    assert texts.shape == (10, 384)
    assert np.isfinite(texts).all()
    assert np.isnan(people.column("numeric.age").to_numpy()).sum() == 1


def values_of_rows_are(project: SmallProject) -> None:
    """Rows, and the negatives drawn for them, have the codes of the log's row."""
    shards = pa.concat_tables([project.read(s) for s in ("train", "valid", "test")])
    facts = load_prepared(str(project.prepared)).scenarios["shop"]
    assert (facts.several_sizes, facts.several_widths) == ([4, 3], [2, 3])
    number = shards.column("row").to_numpy()
    source = np.where(number >= 2**48, (number - 2**48) // 4, number)
    assert (number >= 2**48).any()
    codes = matrix(shards.column("several"))
    assert ((codes[:, :2] > 0).sum(1) == np.where(source % 3, 2, 0)).all()
    assert (codes[:, 2:] == [1, 2, 0]).all()
    b = np.where(source % 2, codes[source % 2 == 1, 1].max(), codes[source % 2 == 0, 1].max())
    assert (codes[:, 1] == np.where(source % 3, b, 0)).all()


def profiles_of_training(project: SmallProject) -> None:
    """All rows are prepared; those that training could see make the vocabulary.

    The audit of the data fails where samples see the last rows some days before they were written.
    """
    path = project.prepared / "profiles.people.parquet"
    people = pq.read_table(path)
    assert people.num_rows == 30
    words = people.column("categorical.country").to_numpy()
    known = people.column("known").to_numpy()
    assert known.sum() == 20
    assert set(words[known]) == {1, 2}
    assert set(words[~known]) == {0}
    whole, data = (
        load_project(project.folder / "project.yaml"),
        load_prepared(str(project.prepared)),
    )
    assert audit(whole, data, rows_per_split=30) == []
    time = people.column("time").to_numpy()
    early = pa.array(np.where(known, time, (START + 5 * 86_400) * 1000))
    pq.write_table(people.set_column(people.column_names.index("time"), "time", early), path)
    found = audit(whole, data, rows_per_split=30)
    assert len(found) > 10
    assert all("profile.the time of the row: " in f or "profile.country: " in f for f in found)


def vectors_are_there(project: SmallProject, known: list[bool]) -> None:
    """Items and users have vectors beside their tables, NaN where there is none."""
    items = np.load(project.prepared / "shop" / "catalogue.vectors.0.npy")
    people = np.load(project.prepared / "profiles.people.vectors.0.npy")
    assert (items.shape, people.shape) == ((12, 3), (20, 5))
    assert np.isfinite(items).all(1).tolist() == known
    assert np.isfinite(people).all()


@pytest.mark.usefixtures("session_ray")
@pytest.mark.parametrize("case", params(CASES))
def test_an_input_that_prepares(tmp_path, capsys, case):
    """Data is prepared and audited, its numbers are finite, and what was left out is told."""
    project = small_project(tmp_path)
    case.make(project)
    check_prepared(project, case, job_here(project, "prepare", capsys))
