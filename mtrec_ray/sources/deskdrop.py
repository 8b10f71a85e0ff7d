"""CI&T Deskdrop: what people of a company read, liked and followed on its platform (2016-17)."""

from mtrec_ray.data.tables import Tables, literal
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet

TASKS = {
    "like": "LIKE", "bookmark": "BOOKMARK", "follow": "FOLLOW", "comment": "COMMENT CREATED",
}  # fmt: skip
DAYS = 31
SECONDS = DAYS * 86_400


def items_of(articles: str) -> str:
    """Returns the query of the articles, as they were first shared."""
    return f"""
        SELECT DISTINCT ON ("contentId") "contentId"::VARCHAR AS item_id, title, text, lang,
            "authorPersonId"::VARCHAR AS author_id,
            regexp_extract(url, '://(?:www\\.)?([^/]+)', 1) AS site,
            make_timestamp("timestamp" * 1000000) AS shared_at
        FROM {articles} WHERE "eventType" = 'CONTENT SHARED'
        ORDER BY "contentId", "timestamp" """


def events_of(log: str) -> str:
    """Returns the query of the rows, one for each person and article, at its first event."""
    labels = ", ".join(
        f"""max(("eventType" = {literal(event)} AND "timestamp" <= first_time + {SECONDS})::INT
            )::FLOAT AS "{task}" """
        for task, event in TASKS.items()
    )
    return f"""
        SELECT "personId"::VARCHAR AS user_id, "contentId"::VARCHAR AS item_id,
            make_timestamp(first_time * 1000000) AS time, 1::FLOAT AS read, {labels}
        FROM (
            SELECT *, min("timestamp") OVER (PARTITION BY "personId", "contentId") AS first_time
            FROM {log})
        WHERE first_time <= (SELECT max("timestamp") FROM {log}) - {SECONDS}
        GROUP BY "personId", "contentId", first_time"""


def drafts(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario: what was read, and what a reader did with it within 31 days."""
    given = {"kind": "binary", "given": "read", "delay": f"{DAYS}d"}
    draft = Draft(
        name="news",
        items=items_of(tables.open("articles", files["articles"]).sql),
        events=events_of(tables.open("interactions", files["interactions"]).sql),
        item_fields={
            "text": "{title}. {text}",
            "categorical": ["lang", "author_id", "site"],
            "published": "shared_at",
        },
        event_fields={"user": "user_id", "item": "item_id", "time": "time"},
        tasks={"read": {"kind": "binary"}, **{task: dict(given) for task in TASKS}},
        why={f"tasks.{t}": f"{e} within {DAYS} days of the first event" for t, e in TASKS.items()},
        notes=[
            "a row is a person's first event with an article; rows of the last "
            f"{DAYS} days have no labels yet and are left out"
        ],
        history="read",
    )
    draft.keep_known_items(tables)
    return [draft]


SETS = [
    PublicSet(
        "Deskdrop",
        {"articles": r"shared_articles\.csv", "interactions": r"users_interactions\.csv"},
        drafts,
        {"articles": ("contentId", "title"), "interactions": ("personId", "eventType")},
    )
]
