"""Ali-CCP: clicks and purchases after a search (Ma et al. 2018). Numbers alone, without time."""

from pathlib import Path

from mtrec_ray.data.tables import Tables
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet, plain_name, text_columns

FORM = {"delim": "','", "quote": "''", "escape": "''", "header": "false", "auto_detect": "false"}
SAMPLES = text_columns("sample_id", "click", "buy", "user_index", "num", "features")
PEOPLE = text_columns("user_index", "num", "features")
# Features by their number: https://tianchi.aliyun.com/dataset/408
ITEM = {"item_id": 205, "category": 206, "shop": 207, "intention": 210, "brand": 216}
USER = 101


def feature(number: int) -> str:
    """Returns a feature in SQL: bytes 1, 2 and 3 part features, numbers, values and weights."""
    pattern = rf"(?:^|\x01){number}\x02([^\x03]*)\x03"
    return f"nullif(regexp_extract(features, '{pattern}', 1), '')"


def rows_of(tables: Tables, samples: Path, people: list[Path]) -> str:
    """Returns the query of the products that one file of samples shows."""
    name = plain_name(samples)
    shown = tables.open(f"samples of {name}", [samples], FORM | {"columns": SAMPLES}).sql
    known = tables.open(f"people of {name}", people, FORM | {"columns": PEOPLE}).sql
    own = ", ".join(f"{feature(number)} AS {column}" for column, number in ITEM.items())
    return f"""
        SELECT user_id, click::FLOAT AS click, buy::FLOAT AS buy, {own}
        FROM {shown}
        JOIN (SELECT user_index, {feature(USER)} AS user_id FROM {known}) USING (user_index)"""


def drafts(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario: a row for each product that was shown."""
    parts = []
    for file in files["samples"]:
        half = "train" if "train" in plain_name(file) else "test"
        people = [other for other in files["people"] if half in plain_name(other)]
        parts.append(rows_of(tables, file, people))
    rows = " UNION ALL ".join(parts)
    groups = [name for name in ITEM if name != "item_id"]
    modes = ", ".join(f"mode({name}) AS {name}" for name in groups)
    return [
        Draft(
            name="shop",
            items=f"""
                SELECT item_id, {modes} FROM ({rows}) WHERE item_id IS NOT NULL
                GROUP BY item_id ORDER BY item_id""",
            events=f"""
                SELECT user_id, item_id, click, buy FROM ({rows}) WHERE item_id IS NOT NULL""",
            item_fields={
                "text": "category {category}, shop {shop}, brand {brand}",
                "categorical": groups,
            },
            event_fields={"user": "user_id", "item": "item_id"},
            tasks={"click": {"kind": "binary"}, "buy": {"kind": "binary", "given": "click"}},
            why={
                "items.text": "the data set has no words",
                "tasks.buy": "after a click; `space: entire` learns from all rows (1804.07931)",
            },
            history="click",
        )
    ]


SETS = [
    PublicSet(
        "Ali-CCP",
        {"samples": r"sample_skeleton_.*\.csv", "people": r"common_features_.*\.csv"},
        drafts,
    )
]
