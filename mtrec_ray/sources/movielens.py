"""MovieLens of all sizes: https://grouplens.org/datasets/movielens/ (Harper, Konstan 2015)."""

from mtrec_ray.data.tables import Tables
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet, text_columns

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
LATIN = {"header": "false", "encoding": "'latin-1'", "quote": "''", "auto_detect": "false"}
RATING_COLUMNS = ("user_id", "item_id", "rating", "time")


def scenario(tables: Tables, movies: str, ratings: str) -> list[Draft]:
    """Returns the scenario of a query of movies (item_id, title, genres) and one of ratings.

    Titles end with the year in parentheses; genres are joined by `|`.
    """
    year = r"\((\d{4})\) *$"
    draft = Draft(
        name="movies",
        items=rf"""
            SELECT item_id::VARCHAR AS item_id,
                trim(regexp_replace(title, '{year}', '')) AS title,
                replace(nullif(genres, '(no genres listed)'), '|', ', ') AS genres,
                try_cast(regexp_extract(title, '{year}', 1) AS INT) AS year
            FROM ({movies}) AS movies ORDER BY movies.item_id::BIGINT""",
        events=f"""
            SELECT user_id::VARCHAR AS user_id, item_id::VARCHAR AS item_id,
                make_timestamp(time::BIGINT * 1000000) AS time,
                (rating::FLOAT >= 4)::FLOAT AS "like", rating::FLOAT AS rating
            FROM ({ratings})""",
        item_fields={"text": "{title}. {genres}", "categorical": ["genres"], "numeric": ["year"]},
        event_fields={"user": "user_id", "item": "item_id", "time": "time"},
        tasks={"like": {"kind": "binary"}, "rating": {"kind": "regression"}},
        why={
            "items.text": "the year of the title is a number of its own",
            "tasks.like": "4 stars or more",
            "tasks.rating": "up to 5 stars",
        },
        history="like",
    )
    draft.keep_known_items(tables)
    return [draft]


def from_csv(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario of ml-latest, ml-20m, ml-25m, ml-32m: CSV with a first line."""
    movies = tables.open("movies", files["movies"]).sql
    ratings = tables.open("ratings", files["ratings"]).sql
    return scenario(
        tables,
        f'SELECT "movieId" AS item_id, title, genres FROM {movies}',
        f"""SELECT "userId" AS user_id, "movieId" AS item_id, rating, "timestamp" AS time
            FROM {ratings}""",
    )


def from_dat(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario of ml-1m and ml-10m: `::` between the fields, no first line."""
    form = LATIN | {"delim": "'::'"}
    of_movies = text_columns("item_id", "title", "genres")
    movies = tables.open("movies", files["movies"], form | {"columns": of_movies})
    of_ratings = text_columns(*RATING_COLUMNS)
    ratings = tables.open("ratings", files["ratings"], form | {"columns": of_ratings})
    return scenario(tables, f"FROM {movies.sql}", f"FROM {ratings.sql}")


def from_100k(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario of ml-100k: tabs and `|`, a flag for each genre."""
    flags = {f"g{i}": genre for i, genre in enumerate(GENRES)}
    of_movies = text_columns("item_id", "title", "released", "video", "url", *flags)
    form = LATIN | {"delim": "'|'", "columns": of_movies}
    movies = tables.open("movies", files["movies"], form)
    form = LATIN | {"delim": "'\t'", "columns": text_columns(*RATING_COLUMNS)}
    ratings = tables.open("ratings", files["ratings"], form)
    named = ", ".join(f"CASE {flag} WHEN '1' THEN '{genre}' END" for flag, genre in flags.items())
    return scenario(
        tables,
        f"SELECT item_id, title, concat_ws('|', {named}) AS genres FROM {movies.sql}",
        f"FROM {ratings.sql}",
    )


SETS = [
    PublicSet(
        "MovieLens",
        {"movies": r"movies\.csv", "ratings": r"ratings\.csv"},
        from_csv,
        {"movies": ("movieId", "genres"), "ratings": ("userId", "movieId", "rating", "timestamp")},
    ),
    PublicSet("MovieLens", {"movies": r"movies\.dat", "ratings": r"ratings\.dat"}, from_dat),
    PublicSet("MovieLens", {"movies": r"u\.item", "ratings": r"u\.data"}, from_100k),
]
