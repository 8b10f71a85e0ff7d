"""MIND: impressions and clicks of news (Wu et al. 2020), small and large."""

from mtrec_ray.data.tables import Tables
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet, text_columns

FORM = {"delim": "'\t'", "quote": "''", "escape": "''", "header": "false", "auto_detect": "false"}
NEWS = text_columns(
    "item_id", "category", "subcategory", "title", "abstract", "url", "entities", "others"
)
BEHAVIORS = text_columns("impression_id", "user_id", "time", "history", "impressions")


def drafts(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario: a row for each news of an impression."""
    news = tables.open("news", files["news"], FORM | {"columns": NEWS}).sql
    log = tables.open("behaviors", files["behaviors"], FORM | {"columns": BEHAVIORS})
    draft = Draft(
        name="news",
        items=f"""
            SELECT DISTINCT ON (item_id) item_id, category, subcategory, title, abstract
            FROM {news} WHERE title IS NOT NULL ORDER BY item_id""",
        events=f"""
            SELECT user_id, regexp_extract(shown, '^(.*)-[01]$', 1) AS item_id, time,
                right(shown, 1)::FLOAT AS click
            FROM (
                SELECT user_id, strptime(time, '%m/%d/%Y %I:%M:%S %p') AS time,
                    unnest(string_split(impressions, ' ')) AS shown
                FROM {log.sql})
            WHERE regexp_matches(shown, '-[01]$')""",
        item_fields={
            "text": "{title}. {category}. {abstract}",
            "categorical": ["category", "subcategory"],
        },
        event_fields={"user": "user_id", "item": "item_id", "time": "time"},
        tasks={"click": {"kind": "binary"}},
        why={
            "events.path": f"of {log.rows:,} impressions",
            "tasks.click": "what an impression showed and was not clicked is 0",
        },
        notes=["the column of earlier clicks has no times: histories are clicks of the log"],
        history="click",
    )
    draft.keep_known_items(tables)
    return [draft]


SETS = [PublicSet("MIND", {"news": r"news\.tsv", "behaviors": r"behaviors\.tsv"}, drafts)]
