"""Public data sets as their owners publish them: small files in their forms, and the real ones."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.project.load import load_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.init import run_init

RAW = Path(__file__).parents[3] / "shared" / "data"
Tables = dict[str, dict[str, pd.DataFrame]]


def init(folder: Path, out: Path) -> tuple[Project, Tables, list[str]]:
    """The project that is written, its tables, what it says, and that it recognised the data."""
    said: list[str] = []
    run_init([str(folder)], str(out), said.append)
    project = load_project(out)
    assert input_problems(project) == []
    tables = {
        name: {
            kind: pq.read_table(project.path(getattr(scenario, kind).path)).to_pandas()
            for kind in ("items", "events")
        }
        for name, scenario in project.scenarios.items()
    }
    return project, tables, said


def write(folder: Path, name: str, lines: list[str], encoding: str = "utf-8") -> None:
    folder.mkdir(exist_ok=True)
    text = ("\n".join(lines) + "\n").encode(encoding)
    path = folder / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)


def rating(separator: str, row: int) -> str:
    values = (1 + row % 7, 1 + row % 3, 1 + row % 5, 900_000_000 + 1_000 * row)
    return separator.join(map(str, values))


# --- small files in the owners' formats ------------------------------------------------------


def movielens_100k(folder: Path) -> None:
    flags = ["0|0|0|1|1" + "|0" * 14, "0|1" + "|0" * 17, "1" + "|0" * 18]
    titles = ["Toy Story (1995)", "Amélie (2001)", "unknown"]
    rows = [
        f"{i + 1}|{t}|01-Jan-1995||http://x|{f}"
        for i, (t, f) in enumerate(zip(titles, flags, strict=True))
    ]
    write(folder, "u.item", rows, "latin-1")
    write(folder, "u.data", [rating("\t", row) for row in range(60)])


def movielens_1m(folder: Path) -> None:
    movies = [
        "1::Toy Story (1995)::Animation|Children's",
        "2::Amélie (2001)::Comedy",
        "3::unknown::Drama",
    ]
    write(folder, "movies.dat", movies, "latin-1")
    write(folder, "ratings.dat", [rating("::", row) for row in range(60)])


def movielens_csv(folder: Path) -> None:
    movies = [
        "1,Toy Story (1995),Animation|Children",
        "2,Amélie (2001),Comedy",
        "3,unknown,(no genres listed)",
    ]
    write(folder, "movies.csv.gz", ["movieId,title,genres", *movies])
    rows = [rating(",", row) for row in range(60)]
    write(folder, "ratings.csv", ["userId,movieId,rating,timestamp", *rows])


@pytest.mark.parametrize(
    "make", [movielens_100k, movielens_1m, movielens_csv], ids=lambda f: f.__name__
)
def test_movielens(tmp_path, make):
    """All sizes give the same films and ratings."""
    make(tmp_path / "data")
    project, tables, said = init(tmp_path / "data", tmp_path / "films.yaml")
    assert "recognised MovieLens" in said
    items, events = tables["movies"]["items"], tables["movies"]["events"]
    assert list(items["title"]) == ["Toy Story", "Amélie", "unknown"]
    assert list(items["year"].fillna(0)) == [1995, 2001, 0]
    assert items["genres"][0].startswith("Animation, Children")
    assert len(events) == 60
    assert ((events["rating"] >= 4) == (events["like"] == 1)).all()
    assert events["time"].min() == pd.Timestamp(900_000_000, unit="s")
    assert list(project.scenarios["movies"].tasks) == ["like", "rating"]


def amazon_2018(folder: Path) -> None:
    products = [{"asin": f"B{i}", "title": f"thing {i}", "brand": "b",
                 "category": ["Books", f"c{i}"], "price": f"$1,{i:03}.50"}
                for i in range(3)]  # fmt: skip
    reviews = [{"reviewerID": f"A{r % 5}", "asin": f"B{r % 4}", "overall": 1.0 + r % 5,
                "unixReviewTime": 1_400_000_000 + r * 86_400} for r in range(40)]  # fmt: skip
    write(folder, "meta_Books.json.gz", [json.dumps(row) for row in products])
    write(folder, "Books_5.json.gz", [json.dumps(row) for row in reviews])


def amazon_2023(folder: Path) -> None:
    products = [{"parent_asin": f"B{i}", "title": f"thing {i}", "store": "b",
                 "categories": ["Books", f"c{i}"], "price": f"1{i:03}.50"}
                for i in range(3)]  # fmt: skip
    reviews = [{"user_id": f"A{r % 5}", "parent_asin": f"B{r % 4}", "asin": f"V{r}",
                "rating": 1.0 + r % 5, "timestamp": 1_400_000_000_000 + r * 86_400_000}
               for r in range(40)]  # fmt: skip
    reviews.append(reviews[0] | {"timestamp": -5})
    write(folder, "meta_Books.jsonl", [json.dumps(row) for row in products])
    write(folder, "Books.jsonl", [json.dumps(row) for row in reviews])


@pytest.mark.parametrize("make", [amazon_2018, amazon_2023], ids=lambda f: f.__name__)
def test_amazon_reviews(tmp_path, make):
    """Both years give the same products and stars; what was left out is counted."""
    make(tmp_path / "data")
    project, tables, said = init(tmp_path / "data", tmp_path / "books.yaml")
    assert any(line.startswith("recognised Amazon Reviews") for line in said)
    items, events = tables["books"]["items"], tables["books"]["events"]
    assert list(items["category"]) == ["c0", "c1", "c2"]
    assert list(items["price"]) == [1000.5, 1001.5, 1002.5]
    assert len(events) == 30  # of 40, ten are of a product without an entry
    assert events["time"].min() == pd.Timestamp(1_400_000_000, unit="s")
    assert ((events["stars"] >= 4) == (events["like"] == 1)).all()
    assert project.scenarios["books"].users == "customers"
    told = (tmp_path / "books.yaml").read_text()
    assert "10 of 40 rows are left out" in told
    assert ("1 reviews without user, stars or time" in told) == (make is amazon_2023)


def test_kuairand(tmp_path):
    """A task for each signal that has positives; the place in the app is known before."""
    signals = "is_click,is_like,is_follow,is_comment,is_forward,long_view"
    head = f"user_id,video_id,date,time_ms,{signals},tab"
    rows = [f"{r % 6},{r % 9},20220408,{1_649_400_000_000 + r * 1000},{r % 2},0,0,0,0,"
            f"{r % 4 // 3},1" for r in range(200)]  # fmt: skip
    write(tmp_path / "data", "log_standard_4_08_to_4_21_1k.csv", [head, *rows])
    videos = [f"{i},{i % 3},NORMAL,{1000 * i},1,{i % 2}" for i in range(9)]
    head = "video_id,author_id,video_type,video_duration,music_type,tag"
    write(tmp_path / "data", "video_features_basic_1k.csv", [head, *videos])
    project, tables, said = init(tmp_path / "data", tmp_path / "video.yaml")
    assert "recognised KuaiRand" in said
    assert list(project.scenarios["video"].tasks) == ["click", "long_view"]
    events = tables["video"]["events"]
    assert events["time"].min() == pd.Timestamp(1_649_400_000, unit="s")
    assert events["click"].sum() == 100
    assert list(tables["video"]["items"]["seconds"]) == list(range(9))


def test_rees46(tmp_path):
    """A row for each user, product and day, and what came of it on that day."""
    product = "product_id,category_id,category_code,brand,price"
    head = f"event_time,event_type,{product},user_id,user_session"
    kinds = ("view", "cart", "purchase")
    rows = [f"2019-10-{1 + r // 30:02} 0{r % 8}:00:00 UTC,{kinds[r % 3]},"
            f"{r % 5},1,home.sofa,acme,{r}.5,{r % 6},s"
            for r in range(300)]  # fmt: skip
    write(tmp_path / "data", "2019-Oct.csv.gz", [head, *rows[:150]])
    write(tmp_path / "data", "2019-Nov.csv.gz", [head, *rows[150:]])
    _, tables, said = init(tmp_path / "data", tmp_path / "shop.yaml")
    assert "recognised REES46" in said
    log = pd.DataFrame({"user": [r % 6 for r in range(300)], "item": [r % 5 for r in range(300)],
                        "day": [r // 30 for r in range(300)],
                        "bought": [r % 3 == 2 for r in range(300)]})  # fmt: skip
    events = tables["shop"]["events"]
    groups = log.groupby(["user", "item", "day"])["bought"].any()
    assert len(events) == len(groups)
    assert events["purchase"].sum() == groups.sum()
    assert tables["shop"]["items"]["category"][0] == "home, sofa"
    assert tables["shop"]["items"]["price"][0] == 0.5  # when it was first seen


def test_ali_ccp(tmp_path):
    """Features are read out of their lists, and users joined to what they saw."""

    def features(pairs: dict[int, int]) -> str:
        return "\x01".join(f"{number}\x02{value}\x031.0" for number, value in pairs.items())

    for half in ("train", "test"):
        shown = [f"{r},{r % 2},0,u{r % 4},5,"
                 + features({205: r % 7, 206: r % 3, 207: 1, 210: 2, 216: 9, 508: 1})
                 for r in range(50)]  # fmt: skip
        people = [f"u{i},2,{features({101: 1000 + i, 121: 3})}" for i in range(4)]
        write(tmp_path / "data", f"sample_skeleton_{half}.csv", shown)
        write(tmp_path / "data", f"common_features_{half}.csv", people)
    _, tables, said = init(tmp_path / "data", tmp_path / "shop.yaml")
    assert "recognised Ali-CCP" in said
    events, items = tables["shop"]["events"], tables["shop"]["items"]
    assert len(events) == 100
    assert set(events["user_id"]) == {"1000", "1001", "1002", "1003"}
    assert events["click"].sum() == 50
    assert len(items) == 7
    assert set(items["brand"]) == {"9"}


# --- the real files --------------------------------------------------------------------------


def of_films(tables: Tables) -> None:
    events = tables["movies"]["events"]
    assert len(events) == 100_004
    assert len(tables["movies"]["items"]) == 9_125
    assert events["like"].mean() == pytest.approx((events["rating"] >= 4).mean())


def of_books(tables: Tables) -> None:
    items, events = tables["books"]["items"], tables["books"]["events"]
    assert len(items) == 271_379
    assert len(events) == 1_031_175
    assert not items["title"].str.contains("&amp;").any()
    assert items["year"].max() <= 2005
    assert events["score"].notna().mean() == pytest.approx(events["explicit"].mean())
    assert set(events["item_id"]) <= set(items["item_id"])


def of_shop(tables: Tables) -> None:
    items, events = tables["shop"]["items"], tables["shop"]["events"]
    raw = pd.read_csv(RAW / "online_retail" / "OnlineRetail.csv.gz", dtype={"StockCode": str})
    sold = raw[raw["CustomerID"].notna() & ~raw["InvoiceNo"].astype(str).str.startswith("C")]
    sold = sold[(sold["Quantity"] > 0) & sold["StockCode"].str.fullmatch("[0-9]{5}[A-Za-z]*")]
    sold["time"] = pd.to_datetime(sold["InvoiceDate"])
    sold = sold.assign(StockCode=sold["StockCode"].str.upper())
    rows = sold.groupby(["CustomerID", "StockCode", "InvoiceNo"]).agg(
        time=("time", "min"), n=("Quantity", "sum")
    )
    early = rows["time"] <= sold["time"].max() - pd.Timedelta(days=31)
    assert len(events) == early.sum()
    assert events["bulk12"].mean() == pytest.approx((rows["n"][early] >= 12).mean())
    assert len(items) == sold["StockCode"].nunique()


def of_articles(tables: Tables) -> None:
    items, events = tables["news"]["items"], tables["news"]["events"]
    raw = pd.read_csv(RAW / "deskdrop" / "users_interactions.csv.gz")
    first = raw.groupby(["personId", "contentId"])["timestamp"].min()
    known = first.index.get_level_values(1).isin(items["item_id"].astype(np.int64))
    assert len(events) == (known & (first <= raw["timestamp"].max() - 31 * 86_400)).sum()
    assert not events.duplicated(["user_id", "item_id"]).any()
    assert 0.05 < events["like"].mean() < 0.3


def of_impressions(tables: Tables) -> None:
    events = tables["news"]["events"]
    raw = pd.read_csv(RAW / "mind" / "behaviors.tsv.gz", sep="\t", header=None)
    shown = raw[4].str.split().explode()
    item = shown.str.rsplit("-", n=1).str[0]
    known = item.isin(tables["news"]["items"]["item_id"])
    assert len(events) == known.sum()
    assert events["click"].sum() == shown[known].str.endswith("-1").sum()
    assert events["time"].dt.year.unique().tolist() == [2019]


REAL: dict[str, tuple[str, Callable[[Tables], None]]] = {
    "movielens": ("MovieLens", of_films),
    "book_crossing": ("Book-Crossing", of_books),
    "online_retail": ("Online Retail", of_shop),
    "deskdrop": ("Deskdrop", of_articles),
    "mind": ("MIND", of_impressions),
}


@pytest.mark.skipif(not RAW.exists(), reason="the raw data does not lie beside the project")
@pytest.mark.parametrize("folder", REAL)
def test_the_real_files(tmp_path, folder):
    """The owners' own files become tables that pandas, reading them by itself, agrees with."""
    name, agree = REAL[folder]
    project, tables, said = init(RAW / folder, tmp_path / "real.yaml")
    assert f"recognised {name}" in said
    agree(tables)
    for scenario_name, scenario in project.scenarios.items():
        events = tables[scenario_name]["events"]
        assert events[[scenario.events.user, scenario.events.item]].notna().all().all()
        assert tables[scenario_name]["items"][scenario.items.id].is_unique
