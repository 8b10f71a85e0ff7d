"""The columns of `benchmarks/prepare.py` as a script by hand: polars, one scenario, no options.

`write` reads the log and writes a Parquet file with the numeric columns and the histories of all
rows, in the order of the log. Windows are polars' `rolling`, closed on the left: rows strictly
before the moment, and from its beginning on. A delay moves the window back.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

DAY_MS = 86_400_000
WINDOWS = {"": 100_000, "_1d": 1, "_7d": 7, "_30d": 30}  # days; the first is the whole past
DELAYS = {"click": 0, "buy": 1}  # days
SMOOTHING = 10.0
LAST = 20

Frame = Any  # a polars.DataFrame: polars is no dependency of the project


def library() -> Any:
    """Returns polars, which is no dependency of the project (`pip install '.[benchmarks]'`)."""
    import polars  # pyright: ignore[reportMissingImports]

    return polars


def write(log: str, items: str, priors: Mapping[str, float], out: str) -> None:
    """Read the log, add all columns, write them."""
    pl = library()
    brands = pl.read_parquet(items, columns=["item_id", "brand"])
    rows = pl.read_parquet(log).join(brands, on="item_id", how="left", maintain_order="left")
    rows = rows.with_row_index("row").with_columns(pl.col("time").cast(pl.Int64))
    parts = [
        statistics(rows, ["item_id"], "item", list(WINDOWS), priors),
        statistics(rows, ["brand"], "category.brand", [""], priors),
        statistics(rows, ["user_id"], "user", list(WINDOWS), priors),
        statistics(rows, ["user_id", "brand"], "user_category.brand", [""], priors),
        calendar(rows),
        histories(rows),
    ]
    pl.concat([rows.select("row"), *parts], how="horizontal").write_parquet(out)


def statistics(
    rows: Frame, keys: Sequence[str], kind: str, windows: Sequence[str], priors: Mapping[str, float]
) -> Frame:
    """The statistics of a key, in the order of the rows."""
    pl = library()
    ordered = rows.select("row", *keys, "time", *DELAYS).sort(*keys, "time")
    found: dict[str, Any] = {}
    for window in windows:
        for delay in set(DELAYS.values()):
            days = WINDOWS[window]
            found |= sums(ordered, keys, window, delay, days)
    log1p = lambda values: (values + 1.0).log().cast(pl.Float32)  # noqa: E731
    counts = (log1p(found[f"rows{window}"]) for window in windows)
    columns = [ordered["row"]]
    columns += [c.alias(f"{kind}.log_count{w}") for c, w in zip(counts, windows, strict=True)]
    for word in ("first", "last"):
        seconds = (ordered["time"] - found[word]) / 1000
        columns.append(log1p(seconds).alias(f"{kind}.log_seconds_since_{word}"))
    for task, prior in priors.items():
        columns.append(log1p(found[f"known.{task}"]).alias(f"{kind}.log_known.{task}"))
        for window in windows:
            known, total = (found[f"{word}{window}.{task}"] for word in ("known", "sum"))
            rate = (total + SMOOTHING * prior) / (known + SMOOTHING)
            columns.append(rate.cast(pl.Float32).alias(f"{kind}.rate{window}.{task}"))
    return pl.DataFrame(columns).sort("row").drop("row")


def sums(ordered: Frame, keys: Sequence[str], window: str, delay: int, days: int) -> dict[str, Any]:
    """Counts and sums of a window that ends `delay` days before each row, as columns."""
    pl = library()
    wanted = [
        column
        for task in DELAYS
        if DELAYS[task] == delay
        for column in (
            pl.col(task).count().alias(f"known{window}.{task}"),
            pl.col(task).sum().cast(pl.Float64).alias(f"sum{window}.{task}"),
        )
    ]
    if not delay:
        wanted.append(pl.len().alias(f"rows{window}"))
    if not delay and not window:
        wanted += [pl.col("moment").first().alias("first"), pl.col("moment").last().alias("last")]
    frame = ordered.with_columns(moment=pl.col("time")).rolling(
        "time",
        period=f"{days * DAY_MS}i",
        offset=f"-{(days + delay) * DAY_MS}i",
        closed="left",
        group_by=list(keys),
    )
    return {column.name: column for column in frame.agg(wanted).drop(*keys, "time")}


def calendar(rows: Frame) -> Frame:
    """Sine and cosine of the hour of the day and of the day of the week."""
    pl = library()
    columns = []
    for word, period in (("hour", DAY_MS), ("week", 7 * DAY_MS)):
        angle = pl.col("time") % period * (2 * math.pi / period)
        columns += [angle.sin().alias(f"{word}_sin"), angle.cos().alias(f"{word}_cos")]
    return rows.select(c.cast(pl.Float32) for c in columns)


def histories(rows: Frame) -> Frame:
    """The last items that the user clicked before each row, newest first, and their ages."""
    pl = library()
    clicks = rows.filter(pl.col("click") == 1).select("user_id", "item_id", "time")
    clicks = clicks.sort("user_id", "time").with_row_index("at").cast({"at": pl.Int64})
    ends = clicks.select("user_id", "time", "at", begin=pl.col("at").min().over("user_id"))
    asked = rows.select("row", "user_id", "time").sort("time")
    found = asked.join_asof(
        ends.sort("time"), on="time", by="user_id", strategy="backward",
        allow_exact_matches=False, check_sortedness=False,
    ).sort("row")  # fmt: skip
    items, ages = [], []
    for k in range(LAST):
        place = found["at"] - k
        place = found.select(pl.when(place >= pl.col("begin")).then(place))["at"].alias("place")
        seconds = (found["time"] - clicks["time"].gather(place)) / 1000
        items.append(clicks["item_id"].gather(place).cast(pl.Int32).alias(f"item{k}"))
        ages.append((seconds + 1).log(2).floor().cast(pl.UInt8).alias(f"age{k}"))
    return pl.DataFrame([*items, *ages]).select(
        history=pl.concat_arr(f"item{k}" for k in range(LAST)),
        history_age=pl.concat_arr(f"age{k}" for k in range(LAST)),
    )
