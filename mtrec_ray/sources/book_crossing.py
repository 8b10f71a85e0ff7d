"""Book-Crossing: ratings of books by members of a community (Ziegler et al. 2005). No time."""

from mtrec_ray.data.tables import Tables, literal
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet

FORM = {
    "delim": "';'", "quote": "'\"'", "escape": "'\\'", "header": "true", "encoding": "'latin-1'",
    "strict_mode": "false", "all_varchar": "true",
}  # fmt: skip
ENTITIES = {"&amp;": "&", "&#39;": "'", "&quot;": '"', "&lt;": "<", "&gt;": ">", "&nbsp;": " "}


def plain_text(column: str) -> str:
    """Returns a column with the entities of HTML as letters, in SQL."""
    for entity, letter in ENTITIES.items():
        column = f"replace({column}, {literal(entity)}, {literal(letter)})"
    return column


def drafts(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario: a rating of 0 says that a book was there, not how it was liked."""
    books = tables.open("books", files["books"], FORM).sql
    ratings = tables.open("ratings", files["ratings"], FORM).sql
    title, author = plain_text('"Book-Title"'), plain_text('"Book-Author"')
    year = 'try_cast("Year-Of-Publication" AS INT)'
    draft = Draft(
        name="books",
        items=f"""
            SELECT DISTINCT ON ("ISBN") "ISBN" AS item_id, {title} AS title, {author} AS author,
                {plain_text('"Publisher"')} AS publisher,
                CASE WHEN {year} BETWEEN 1800 AND 2005 THEN {year} END AS year
            FROM {books} WHERE "ISBN" IS NOT NULL ORDER BY "ISBN" """,
        events=f"""
            SELECT "User-ID" AS user_id, "ISBN" AS item_id, (score IS NOT NULL)::FLOAT AS explicit,
                (score >= 8)::FLOAT AS high, score
            FROM (SELECT *, nullif(try_cast("Book-Rating" AS FLOAT), 0) AS score FROM {ratings})""",
        item_fields={
            "text": "{title} by {author}",
            "categorical": ["author", "publisher"],
            "numeric": ["year"],
        },
        event_fields={"user": "user_id", "item": "item_id"},
        tasks={
            "explicit": {"kind": "binary"},
            "high": {"kind": "binary", "given": "explicit"},
            "score": {"kind": "regression", "given": "explicit"},
        },
        why={
            "items.numeric": "years before 1800 and after 2005 are left empty",
            "tasks.explicit": "a rating of 1 to 10; 0 says only that the book was there",
            "tasks.high": "8 or more",
        },
    )
    draft.keep_known_items(tables)
    return [draft]


SETS = [
    PublicSet(
        "Book-Crossing",
        {"books": r"bx[-_]books\.csv", "ratings": r"bx[-_]book[-_]ratings\.csv"},
        drafts,
        {"books": ("ISBN", "Book-Title"), "ratings": ("User-ID", "ISBN", "Book-Rating")},
    )
]
