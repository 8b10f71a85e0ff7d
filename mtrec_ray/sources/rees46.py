"""REES46: views, carts and purchases of shops, a file a month (Kechinov 2019-20)."""

from mtrec_ray.data.tables import Tables
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet

TIME = "event_time::TIMESTAMPTZ::TIMESTAMP"
TASKS = ("cart", "purchase")


def items_of(log: str) -> str:
    """Returns the query of the products, as the log tells of them."""
    return f"""
        SELECT product_id::VARCHAR AS item_id,
            replace(replace(coalesce(mode(category_code), 'unknown'), '.', ', '), '_', ' ')
                AS category,
            coalesce(mode(brand), 'unknown') AS brand, arg_min(price, event_time) AS price
        FROM {log} WHERE product_id IS NOT NULL GROUP BY product_id ORDER BY product_id"""


def events_of(log: str) -> str:
    """Returns the query of the rows, one for each user, product and day, at its first event."""
    labels = ", ".join(f"max((event_type = '{t}')::INT)::FLOAT AS {t}" for t in TASKS)
    return f"""
        SELECT user_id::VARCHAR AS user_id, product_id::VARCHAR AS item_id, min({TIME}) AS time,
            1::FLOAT AS view, {labels}
        FROM {log} WHERE user_id IS NOT NULL AND product_id IS NOT NULL
        GROUP BY user_id, product_id, date_trunc('day', {TIME})"""


def drafts(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario: what was viewed, and what of it went to the cart and was bought."""
    log = tables.open("events", files["events"])
    events = events_of(log.sql)
    rows = tables.value(f"SELECT count(*) FROM ({events})")
    return [
        Draft(
            name="shop",
            items=items_of(log.sql),
            events=events,
            item_fields={
                "text": "{brand}. {category}",
                "categorical": ["brand", "category"],
                "numeric": ["price"],
            },
            event_fields={"user": "user_id", "item": "item_id", "time": "time"},
            tasks={
                "view": {"kind": "binary"},
                **{task: {"kind": "binary", "given": "view", "delay": "1d"} for task in TASKS},
            },
            why={
                "items.numeric": "the price when the product was first seen",
                **{f"tasks.{task}": "on the same day" for task in TASKS},
            },
            notes=[f"{log.rows:,} events are {rows:,} rows: one for each user, product and day"],
            history="view",
        )
    ]


SETS = [
    PublicSet(
        "REES46",
        {"events": r".*\.csv"},
        drafts,
        {"events": ("event_time", "event_type", "product_id", "category_code", "user_session")},
    )
]
