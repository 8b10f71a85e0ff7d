"""Amazon Reviews of 2018 (Ni et al. 2019) and 2023 (Hou et al. 2024): files of JSON lines."""

import re
from functools import partial
from pathlib import Path

from mtrec_ray.data.tables import Tables
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet, plain_name

# By year: user, product, microseconds and stars of a review; product, brand, narrowest category.
REVIEWS = {
    "2018": ("reviewerID", "asin", '"unixReviewTime" * 1000000', "overall"),
    "2023": ("user_id", "parent_asin", '"timestamp" * 1000', "rating"),
}
PRODUCTS = {
    "2018": ("asin", "brand", "list_extract(category, -1)"),
    "2023": ("parent_asin", "store", "list_extract(categories, -1)"),
}


def category_of(file: Path) -> str:
    """Returns the category that a file's name tells, as a scenario's name."""
    name = re.sub(r"^meta[_-]|(_\d+)?\.jsonl?$", "", plain_name(file))
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def items_of(year: str, products: str) -> str:
    """Returns the query of the products."""
    key, brand, category = PRODUCTS[year]
    return f"""
        SELECT DISTINCT ON ({key}) {key} AS item_id, title, {brand} AS brand,
            {category} AS category, try_cast(replace(replace(price::VARCHAR, '$', ''), ',', '')
            AS DOUBLE) AS price
        FROM {products} WHERE {key} IS NOT NULL ORDER BY {key}"""


def events_of(year: str, reviews: str) -> str:
    """Returns the query of the rows, one for each review with a user, a time and stars."""
    user, product, micros, stars = REVIEWS[year]
    return f"""
        SELECT {user} AS user_id, {product} AS item_id,
            make_timestamp(({micros})::BIGINT) AS time, ({stars} >= 4)::FLOAT AS "like",
            {stars}::FLOAT AS stars
        FROM {reviews} WHERE {user} IS NOT NULL AND {micros} > 0 AND {stars} BETWEEN 1 AND 5"""


def one(tables: Tables, year: str, category: str, reviews: Path, products: Path) -> Draft:
    """Returns the scenario of a category."""
    log = tables.open(f"{category} reviews", [reviews])
    draft = Draft(
        name=category,
        items=items_of(year, tables.open(f"{category} products", [products]).sql),
        events=events_of(year, log.sql),
        item_fields={
            "text": "{title}. {brand}. {category}",
            "categorical": ["brand", "category"],
            "numeric": ["price"],
        },
        event_fields={"user": "user_id", "item": "item_id", "time": "time"},
        tasks={"like": {"kind": "binary"}, "stars": {"kind": "regression"}},
        why={"tasks.like": "4 stars or more", "users": "customers are the same in all categories"},
        history="like",
        users="customers",
    )
    kept = tables.value(f"SELECT count(*) FROM ({draft.events})")
    if kept < log.rows:
        draft.notes.append(f"{log.rows - kept:,} reviews without user, stars or time are left out")
    draft.keep_known_items(tables)
    return draft


def drafts(year: str, tables: Tables, files: Files) -> list[Draft]:
    """Returns a scenario for each category of which reviews and products are there."""
    products = {category_of(file): file for file in files["products"]}
    reviews = {category_of(file): file for file in files["reviews"]}
    both = sorted(products.keys() & reviews.keys())
    return [one(tables, year, name, reviews[name], products[name]) for name in both]


def of_year(year: str) -> PublicSet:
    """Returns the data set of a year, told by the fields of its reviews."""
    return PublicSet(
        f"Amazon Reviews {year}",
        {"products": r"meta[_-].*\.jsonl?", "reviews": r"(?!meta[_-]).*\.jsonl?"},
        partial(drafts, year),
        {"reviews": REVIEWS[year][:2]},
    )


SETS = [of_year("2018"), of_year("2023")]
