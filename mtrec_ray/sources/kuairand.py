"""KuaiRand: short videos and what people did with them (Gao et al. 2022)."""

from mtrec_ray.data.tables import Tables
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet

LABELS = {
    "click": "is_click", "long_view": "long_view", "like": "is_like", "follow": "is_follow",
    "comment": "is_comment", "forward": "is_forward",
}  # fmt: skip
LEAST_POSITIVES = 20


def drafts(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario: a row for each video that was shown."""
    log = tables.open("log", files["log"]).sql
    videos = tables.open("videos", files["videos"]).sql
    sums = ", ".join(f"coalesce(sum({column}), 0)" for column in LABELS.values())
    counts = tables.rows(f"SELECT {sums} FROM {log}")[0]
    kept = [t for t, n in zip(LABELS, counts, strict=True) if n >= LEAST_POSITIVES]
    labels = "".join(f', {LABELS[task]}::FLOAT AS "{task}"' for task in kept)
    draft = Draft(
        name="video",
        items=f"""
            SELECT DISTINCT ON (video_id) video_id::VARCHAR AS item_id,
                coalesce(tag::VARCHAR, '') AS tag, author_id::VARCHAR AS author_id, video_type,
                music_type::VARCHAR AS music_type,
                try_cast(video_duration AS DOUBLE) / 1000 AS seconds
            FROM {videos} ORDER BY video_id""",
        events=f"""
            SELECT user_id::VARCHAR AS user_id, video_id::VARCHAR AS item_id,
                make_timestamp(time_ms::BIGINT * 1000) AS time, tab::VARCHAR AS tab{labels}
            FROM {log}""",
        item_fields={
            "text": "{video_type} video about {tag}",
            "categorical": ["tag", "author_id", "music_type"],
            "numeric": ["seconds"],
        },
        event_fields={"user": "user_id", "item": "item_id", "time": "time", "categorical": ["tab"]},
        tasks={task: {"kind": "binary"} for task in kept},
        why={
            "items.text": "the data set has no words: tags are numbers",
            "events.categorical": "where in the app the video was shown",
        },
        notes=[
            "statistics of videos were counted over the whole log: they tell the future, unused"
        ],
        history=kept[0] if kept else "any",
    )
    draft.keep_known_items(tables)
    return [draft]


SETS = [
    PublicSet(
        "KuaiRand",
        {"log": r"log_standard.*\.csv", "videos": r"video_features_basic.*\.csv"},
        drafts,
        {"log": ("user_id", "video_id", "time_ms", "is_click"), "videos": ("video_id",)},
    )
]
