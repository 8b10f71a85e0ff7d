"""`mtrec init`: files as tools write them become a project file that says what was guessed."""

import gzip
import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.progress import no_log
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import load_project
from mtrec_ray.sources.columns import says, words_of
from mtrec_ray.sources.files import groups_of, skeleton, splits_of
from mtrec_ray.stages.init import default_out, run_init

USERS, ITEMS, ROWS = 30, 40, 600


def items_frame() -> pd.DataFrame:
    number = np.arange(ITEMS)
    return pd.DataFrame(
        {
            "product_id": [f"p{i:03}" for i in number],
            "title": [f"a thing to buy, number {i}" for i in number],
            "brand": [f"brand {i % 5}" for i in number],
            "price": number + 0.5,
            "url": [f"https://shop/{i}" for i in number],
            "num_reviews": number * 3,
        }
    )


def log_frame(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    seconds = 1_700_000_000 + np.arange(ROWS) * 5_000
    return pd.DataFrame(
        {
            "user_id": [f"u{i}" for i in rng.integers(0, USERS, ROWS)],
            "product_id": [f"p{i:03}" for i in rng.integers(0, ITEMS, ROWS)],
            "timestamp": pd.to_datetime(seconds, unit="s"),
            "click": (rng.random(ROWS) < 0.4).astype(int),
            "device": [["phone", "web"][i % 2] for i in range(ROWS)],
        }
    )


def init(folder: Path, *paths: Path, out: str = "mine.yaml") -> dict:
    """The scenarios of the project file that is written, which the check of files accepts."""
    target = folder / out
    run_init([str(p) for p in paths or (folder / "data",)], str(target), no_log)
    project = load_project(target)
    assert input_problems(project) == []
    tree = project.dump()["scenarios"]
    for name, scenario in project.scenarios.items():
        for kind in ("items", "events"):
            tree[name][kind]["rows"] = rows_of(project.path(getattr(scenario, kind).path))
    return tree


def rows_of(path: str) -> pd.DataFrame:
    return pq.read_table(path).to_pandas()


def data_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def by_pandas_csv(folder: Path) -> None:
    items_frame().to_csv(folder / "products.csv")  # with its unnamed index
    log_frame().to_csv(folder / "events.csv.gz")


def by_pandas_parquet(folder: Path) -> None:
    items_frame().set_index("product_id", drop=False).to_parquet(folder / "products.parquet")
    log_frame().to_parquet(folder / "events.parquet")


def by_polars(folder: Path) -> None:
    """Large strings, dictionaries and microseconds with a zone."""
    items = pa.Table.from_pandas(items_frame(), preserve_index=False)
    brand = items.column("brand").dictionary_encode()
    items = items.set_column(2, "brand", brand)
    pq.write_table(items, folder / "products.parquet")
    log = pa.Table.from_pandas(log_frame(), preserve_index=False)
    kinds = {"user_id": pa.large_string(), "timestamp": pa.timestamp("us", "UTC")}
    fields = [pa.field(f.name, kinds.get(f.name, f.type)) for f in log.schema]
    pq.write_table(log.cast(pa.schema(fields)), folder / "events.parquet")


def by_duckdb(folder: Path) -> None:
    items, log = items_frame(), log_frame()
    with duckdb.connect() as connection:
        connection.register("items", items)
        connection.register("log", log)
        for name, ending in (("items", "products"), ("log", "events")):
            target = folder / f"{ending}.parquet"
            connection.execute(f"COPY {name} TO '{target}' (FORMAT parquet, COMPRESSION zstd)")


def by_spark(folder: Path) -> None:
    """Folders of parts with a mark of success, checksums, and days as partitions."""
    items = folder / "products.parquet"
    items.mkdir()
    unique = "6a1f5c5e-1111-4222-8333-0123456789ab-c000.snappy.parquet"
    items_frame().to_parquet(items / f"part-00000-{unique}", index=False)
    log = log_frame()
    for i, part in enumerate(np.array_split(np.arange(ROWS), 3)):
        day = folder / "events" / f"day=2024-01-0{i + 1}"
        day.mkdir(parents=True)
        log.iloc[part].to_parquet(day / f"part-00000-{unique}", index=False)
        (day / f".part-00000-{unique}.crc").write_bytes(b"crc")
    (folder / "events" / "_SUCCESS").touch()


def by_json_lines(folder: Path) -> None:
    items_frame().to_json(folder / "products.jsonl", orient="records", lines=True)
    log_frame().to_json(folder / "events.jsonl.gz", orient="records", lines=True, date_format="iso")


def in_latin_1(folder: Path) -> None:
    items = items_frame().assign(title=[f"café nº {i}" for i in range(ITEMS)])
    items.to_csv(folder / "products.csv", index=False, sep=";", encoding="latin-1")
    log_frame().to_csv(folder / "events.csv", index=False, sep="\t")


TOOLS = [
    by_pandas_csv, by_pandas_parquet, by_polars, by_duckdb, by_spark, by_json_lines, in_latin_1,
]  # fmt: skip


@pytest.mark.parametrize("write", TOOLS, ids=lambda f: f.__name__)
def test_files_of_any_tool(tmp_path, write):
    """Catalogue, log, ids, time, label, text and split are found, whatever tool wrote the files."""
    write(data_folder(tmp_path))
    [(_, scenario)] = init(tmp_path).items()
    assert scenario["items"]["id"] == scenario["events"]["item"] == "product_id"
    assert scenario["items"]["text"].startswith("{title}")
    assert scenario["items"]["categorical"] == ["brand"]
    assert scenario["items"]["numeric"] == ["price"]  # the number of reviews tells the future
    assert (scenario["events"]["user"], scenario["events"]["time"]) == ("user_id", "timestamp")
    assert list(scenario["tasks"]) == ["click"]
    assert scenario["split"]["time"] is not None
    rows, wanted = scenario["events"]["rows"], log_frame()
    assert len(rows) == ROWS
    assert sorted(rows["product_id"]) == sorted(wanted["product_id"])
    assert rows["click"].sum() == wanted["click"].sum()
    titles = scenario["items"]["rows"]["title"]
    assert len(titles) == ITEMS
    assert write is not in_latin_1 or titles.str.startswith("café nº ").all()


def test_parquet_that_needs_no_change_stays_where_it_is(tmp_path):
    """No second copy is written of files that can be read as they are."""
    by_duckdb(data_folder(tmp_path))
    run_init([str(tmp_path / "data")], str(tmp_path / "mine.yaml"), no_log)
    assert not (tmp_path / "mine-data").exists()


def test_names_with_zeros_before_them_stay_text(tmp_path):
    """`00007` is no number: it would not be found in a catalogue that holds text."""
    folder = data_folder(tmp_path)
    items, log = items_frame(), log_frame()
    for frame in (items, log):
        frame["product_id"] = [f"{int(p[1:]):05}" for p in frame["product_id"]]
    items.to_parquet(folder / "products.parquet", index=False)
    log.to_csv(folder / "events.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert set(scenario["events"]["rows"]["product_id"]) <= set(items["product_id"])


def test_ratings_become_two_tasks(tmp_path):
    """Stars are a regression, and a like from the number on that parts the rows best."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    stars = np.random.default_rng(1).integers(1, 6, ROWS)
    log_frame().drop(columns="click").assign(stars=stars).to_csv(folder / "log.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert {n: t["kind"] for n, t in scenario["tasks"].items()} == {
        "like": "binary",
        "stars": "regression",
    }
    rows = scenario["events"]["rows"]
    label = scenario["tasks"]["like"]["label"]
    assert label["column"] == "stars"
    assert 0.3 < (rows["stars"] >= label["at_least"]).mean() < 0.7


def test_a_log_of_what_happened_gets_negatives(tmp_path):
    """Without a label each row is a positive, and items are drawn against it."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    log_frame().drop(columns="click").to_csv(folder / "log.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert scenario["negatives"]["of"] == "take"
    assert scenario["tasks"]["take"]["label"]["always"] == 1


def test_types_of_events_become_tasks(tmp_path):
    """A row for each user, item and day, at its first event, with a task for each type."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    log = log_frame().drop(columns="click")
    log["event_type"] = np.random.default_rng(2).choice(
        ["view", "cart", "buy"], ROWS, p=[0.6, 0.2, 0.2]
    )
    log.to_csv(folder / "log.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert set(scenario["tasks"]) == {"view", "cart", "buy"}
    rows = scenario["events"]["rows"]
    days = log.assign(day=log["timestamp"].dt.date).groupby(["user_id", "product_id", "day"])
    assert len(rows) == days.ngroups
    assert rows["buy"].sum() == days["event_type"].agg(lambda t: "buy" in set(t)).sum()
    assert set(rows["timestamp"]) == set(days["timestamp"].min())


def test_a_log_without_a_catalogue(tmp_path):
    """What the log says of its items is the catalogue; what differs from row to row is not."""
    folder = data_folder(tmp_path)
    merged = log_frame().merge(items_frame(), on="product_id").drop(columns=["url", "num_reviews"])
    merged.to_csv(folder / "log.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    items = scenario["items"]["rows"]
    assert items["product_id"].is_unique
    assert {"title", "brand", "price"} <= set(items.columns)
    assert "device" not in items.columns


def test_scenarios_of_one_folder(tmp_path):
    """Files of several scenarios are told apart by their names, and common people are told of."""
    folder = data_folder(tmp_path)
    for seed, name in enumerate(("shop", "video")):
        items, log = items_frame(), log_frame(seed)
        for frame in (items, log):
            frame["product_id"] = name + frame["product_id"]
        items.to_parquet(folder / f"{name}_items.parquet", index=False)
        log.to_parquet(folder / f"{name}_events.parquet", index=False)
    assert set(init(tmp_path)) == {"shop", "video"}
    told = (tmp_path / "mine.yaml").read_text().replace("#", "").split()
    assert "100% of the user ids stand in other scenarios, too" in " ".join(told)


def test_files_of_train_valid_and_test(tmp_path):
    """The names of three files are the split."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    parts = {"train": slice(0, 400), "val": slice(400, 500), "test": slice(500, ROWS)}
    for name, rows in parts.items():
        log_frame().iloc[rows].to_csv(folder / f"log_{name}.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert scenario["split"]["column"] == "split"
    counts = scenario["events"]["rows"]["split"].value_counts().to_dict()
    assert counts == {"train": 400, "valid": 100, "test": 100}


def test_a_conditional_task(tmp_path):
    """A label that is known only where another is 1 is conditional on it."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    log = log_frame()
    bought = np.random.default_rng(3).integers(0, 2, ROWS).astype(float)
    log.assign(buy=np.where(log["click"] == 1, bought, np.nan)).to_csv(folder / "log.csv")
    [(_, scenario)] = init(tmp_path).items()
    assert scenario["tasks"]["buy"]["given"] == "click"


def test_new_people_are_split_by_fractions(tmp_path):
    """Where hardly a test row would be of a user that training knows, the split is each user's."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    log_frame().assign(user_id=[f"u{i // 8}" for i in range(ROWS)]).to_csv(folder / "log.csv")
    [(_, scenario)] = init(tmp_path).items()
    assert scenario["split"]["fractions"] is not None


def refused(*arguments: str) -> list[str]:
    with pytest.raises(ProjectError) as caught:
        run_init(list(arguments[:-1]), arguments[-1], no_log)
    return caught.value.problems


def test_what_cannot_be_read_is_one_line(tmp_path):
    """Paths that are not there, files that are no tables, logs without users: a line each."""
    out = str(tmp_path / "mine.yaml")
    [line] = refused(str(tmp_path / "nothing"), out)
    assert line.startswith("PATH: found nothing at")
    folder = data_folder(tmp_path)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    [line] = refused(str(folder), out)
    assert line.startswith("PATH: found picture.png in")
    items_frame().to_csv(folder / "products.csv", index=False)
    [line] = refused(str(folder), out)
    assert line.startswith("PATH: found no log of users and items (products.csv: product_id")
    (folder / "broken.parquet").write_bytes(b"PAR1 and no more")
    [line] = refused(str(folder), out)
    assert "broken.parquet: " in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]  # nothing half-written


def test_a_project_file_that_is_there_is_kept(tmp_path):
    """Nothing is overwritten; a name that is no YAML, and a folder that is not there, are told."""
    by_duckdb(data_folder(tmp_path))
    data = str(tmp_path / "data")
    run_init([data], str(tmp_path / "mine.yaml"), no_log)
    [line] = refused(data, str(tmp_path / "mine.yaml"))
    assert line.startswith("--out: found")
    assert "which is there" in line
    assert "ends with .yaml" in refused(data, str(tmp_path / "mine.txt"))[0]
    assert "found no folder" in refused(data, str(tmp_path / "gone" / "mine.yaml"))[0]
    assert "which cannot be written" in refused(data, "/proc/mine.yaml")[0]


@pytest.mark.parametrize(
    ("stem", "wanted"),
    [
        ("part-00000-6a1f5c5e-1111-4222-8333-0123456789ab-c000.snappy", "part c snappy"),
        ("2019-Oct", ""),
        ("log_train", "log"),
        ("shop_events_2024_01", "shop events"),
        ("events.valid", "events"),
    ],
)
def test_what_parts_of_a_table_have_in_common(stem, wanted):
    """Numbers, months, ids and splits are no part of a table's name."""
    assert skeleton(stem) == wanted


def test_words_of_names():
    """Names are words whatever their spelling."""
    assert words_of("userId") == words_of("User-ID") == words_of("user_id") == ["user", "id"]
    assert says("movieId", ("movie",))
    assert says("ASIN", ("asin",))
    assert says("customerid", ("customer",))
    assert not says("rating", ("rat",))


def test_default_name(tmp_path):
    """The project file has the name of the data."""
    assert default_out(["/data/ml-latest-small"]) == "ml-latest-small.yaml"
    assert default_out([str(tmp_path / "my log.csv")]) == "my_log.yaml"


def test_two_splits_are_no_split(tmp_path):
    """Without a file of valid the names of files say no split."""
    folder = data_folder(tmp_path)
    for name in ("train", "test"):
        log_frame().to_csv(folder / f"log_{name}.csv", index=False)
    [group], _ = groups_of([str(folder)])
    assert splits_of(group.files) == {}


def test_the_result_of_the_job(tmp_path, capsys):
    """The job prints what it wrote, what comes next, and its result as JSON."""
    from jobs.init import main

    by_pandas_csv(data_folder(tmp_path))
    main([str(tmp_path / "data")], str(tmp_path / "mine.yaml"))
    out = capsys.readouterr().out
    assert "mtrec check --config" in out
    assert json.loads(out.splitlines()[-1])["config"] == str(tmp_path / "mine.yaml")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "gone")], str(tmp_path / "other.yaml"))
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("init: PATH: found nothing")


def test_text_that_says_its_form(tmp_path):
    """Decimal commas, UTF-16, and compression that the name does not tell are read."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False, sep=";", decimal=",")
    log_frame().to_csv(folder / "events.csv", index=False, encoding="utf-16")
    [(_, scenario)] = init(tmp_path).items()
    assert scenario["items"]["numeric"] == ["price"]
    assert scenario["items"]["rows"]["price"].sum() == items_frame()["price"].sum()
    packed = gzip.compress(log_frame().to_csv(index=False).encode())
    (folder / "events.csv").write_bytes(packed)
    [(_, scenario)] = init(tmp_path, out="packed.yaml").items()
    assert len(scenario["events"]["rows"]) == ROWS


def test_a_broken_file_is_no_traceback(tmp_path):
    """A file that says .gz and is not, is read as it is, or refused in a line without SQL."""
    folder = data_folder(tmp_path)
    log_frame().to_csv(folder / "events.csv")
    (folder / "events.csv").rename(folder / "events.csv.gz")
    [(_, scenario)] = init(tmp_path).items()
    assert len(scenario["events"]["rows"]) == ROWS
    (folder / "events.csv.gz").write_bytes(b"\x1f\x8b\x08 and no more")
    [line] = refused(str(folder), str(tmp_path / "other.yaml"))
    assert "events.csv.gz: " in line
    assert "LINE" not in line


def test_words_that_answer_are_labels(tmp_path):
    """Y and N, true and false, 1 and -1 are labels; what 0 and 1 say of the device is none."""
    folder = data_folder(tmp_path)
    items_frame().to_parquet(folder / "products.parquet", index=False)
    log = log_frame().assign(is_mobile=np.arange(ROWS) % 2)
    clicked = log["click"] == 1
    log["bought"], log["kept"] = np.where(clicked, "Y", "N"), np.where(clicked, "True", "False")
    log["click"] = np.where(clicked, 1, -1)
    log.to_parquet(folder / "events.parquet", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert set(scenario["tasks"]) == {"click", "bought", "kept"}
    rows = scenario["events"]["rows"]
    assert rows["click"].sum() == rows["bought"].sum() == rows["kept"].sum() == clicked.sum()


def test_words_of_a_split(tmp_path):
    """A column of train, validation and test is the split."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    words = np.repeat(["train", "validation", "test"], [400, 100, 100])
    log_frame().assign(part=words).to_csv(folder / "events.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert scenario["split"]["column"] == "part"
    assert set(scenario["events"]["rows"]["part"]) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("forms", "unit"),
    [
        ({"timestamp": "%m/%d/%Y %H:%M"}, "min"),
        ({"timestamp": "%m/%d/%y %H:%M"}, "min"),
        ({"timestamp": "%d.%m.%Y"}, "D"),
        ({"timestamp": "%Y%m%d"}, "D"),
        ({"timestamp": "%Y-%m-%d %H:%M:%S UTC"}, "s"),
        ({"date": "%Y-%m-%d", "time": "%H:%M:%S"}, "s"),
    ],
)
def test_times_as_text(tmp_path, forms, unit):
    """Times in the usual forms, whole numbers of days, and a date beside a time of day are read."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    log = log_frame()
    moments = log.pop("timestamp")
    for name, form in forms.items():
        log[name] = moments.dt.strftime(form)
    log.to_csv(folder / "events.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    times = pd.to_datetime(scenario["events"]["rows"][scenario["events"]["time"]])
    assert sorted(times) == sorted(moments.dt.floor(unit))


@pytest.mark.parametrize("form", ["{:06}", "{}.0"])
def test_numbers_that_differ_in_zeros(tmp_path, form):
    """Numbers with zeros around them in one of two tables are the same ids."""
    folder = data_folder(tmp_path)
    items, log = items_frame(), log_frame()
    items["product_id"] = [form.format(int(p[1:]) + 100) for p in items["product_id"]]
    log["product_id"] = [int(p[1:]) + 100 for p in log["product_id"]]
    items.to_parquet(folder / "products.parquet", index=False)
    log.to_parquet(folder / "events.parquet", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert "{title}" in scenario["items"]["text"]
    assert set(scenario["events"]["rows"]["product_id"]) <= set(
        scenario["items"]["rows"]["product_id"]
    )


def test_a_catalogue_that_repeats_its_items(tmp_path):
    """Each item has one row, the rest is counted; what is not used is told."""
    folder = data_folder(tmp_path)
    items = items_frame().assign(ean=np.arange(ITEMS) * 7, updated_at="2024-05-01")
    pd.concat([items, items.assign(price=1)]).to_csv(folder / "products.csv", index=False)
    log_frame().to_csv(folder / "events.csv", index=False)
    log_frame(1).head(300).to_csv(folder / "returns.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert len(scenario["items"]["rows"]) == ITEMS
    assert scenario["items"]["numeric"] == ["price"]  # the ean is a name
    told = " ".join((tmp_path / "mine.yaml").read_text().replace("#", "").split())
    assert "40 rows repeat an item" in told
    assert "not used of the catalogue: url, ean, updated_at" in told
    assert scenario["items"]["published"] is None
    assert "returns.csv is not used" in told


def test_names_in_another_language(tmp_path):
    """Users, items, times and titles are found by the usual words of other languages."""
    folder = data_folder(tmp_path)
    names = {"user_id": "usuario", "product_id": "artículo", "timestamp": "fecha"}
    names |= {"title": "título del artículo", "brand": "marca"}
    items_frame().rename(columns=names).to_csv(folder / "artículos.csv", index=False)
    log_frame().rename(columns=names).to_csv(folder / "eventos.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert scenario["events"]["user"] == "usuario"
    assert (scenario["events"]["item"], scenario["events"]["time"]) == ("artículo", "fecha")
    assert scenario["items"]["text"] == "{título del artículo}. {marca}"


def kinds_of_events(folder: Path, *names: str) -> pd.DataFrame:
    """A catalogue, and a log for each name: the second has a fifth of the rows of the first."""
    items_frame().to_csv(folder / "products.csv", index=False)
    log = log_frame().drop(columns="click")
    for place, name in enumerate(names):
        log.iloc[:: 5**place].to_csv(folder / f"{name}.csv", index=False)
    return log


def test_a_file_for_each_kind_of_event(tmp_path):
    """They are one log with a label for each, negatives are drawn, and counts are told."""
    log = kinds_of_events(data_folder(tmp_path), "shop_clicks", "shop_purchases")
    [(_, scenario)] = init(tmp_path).items()
    assert list(scenario["tasks"]) == ["clicks", "purchases"]
    rows = scenario["events"]["rows"]
    days = log.assign(day=log["timestamp"].dt.date).groupby(["user_id", "product_id", "day"])
    assert rows["clicks"].sum() == days.ngroups
    assert 0.15 * ROWS < rows["purchases"].sum() <= 0.2 * ROWS
    assert scenario["negatives"]["of"] == "clicks"
    told = " ".join((tmp_path / "mine.yaml").read_text().replace("#", "").split())
    assert "shop_clicks.csv (600 rows) and shop_purchases.csv (120 rows) have the same" in told


def test_what_was_only_shown_is_a_negative(tmp_path):
    """Impressions without a click are its negatives; a user may have bought once."""
    folder = data_folder(tmp_path)
    log = kinds_of_events(folder, "impressions", "clicks")
    log.drop_duplicates("user_id").to_csv(folder / "orders.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert list(scenario["tasks"]) == ["clicks", "orders"]
    assert scenario["negatives"] is None
    assert set(scenario["events"]["rows"]["clicks"]) == {0, 1}


def test_days_of_events_are_one_log(tmp_path):
    """Files of which only a day's date differs are parts of one log."""
    folder = data_folder(tmp_path)
    items_frame().to_csv(folder / "products.csv", index=False)
    for day, part in enumerate(np.array_split(np.arange(ROWS), 3)):
        log_frame().iloc[part].to_csv(folder / f"events_2024-01-0{day + 1}.csv", index=False)
    [(_, scenario)] = init(tmp_path).items()
    assert len(scenario["events"]["rows"]) == ROWS


@pytest.mark.parametrize(
    ("names", "change", "line"),
    [
        (("web", "app"), {}, "PATH: found app.csv and web.csv, logs of the same items, and no"),
        (("web_clicks", "app_clicks"), {}, "PATH: found app_clicks.csv and web_clicks.csv, logs"),
        (
            ("clicks", "orders"), {"timestamp": "ordered_at"},
            "PATH: found timestamp (TIMESTAMP) in clicks.csv, ordered_at (TIMESTAMP) in orders",
        ),
    ],
)  # fmt: skip
def test_logs_that_nothing_tells_apart(tmp_path, names, change, line):
    """Parts of one log or kinds of events, times of two names: one line, and nothing written."""
    folder = data_folder(tmp_path)
    log = kinds_of_events(folder, *names)
    log.iloc[::5].rename(columns=change).to_csv(folder / f"{names[1]}.csv", index=False)
    [found] = refused(str(folder), str(tmp_path / "mine.yaml"))
    assert found.startswith(line)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
