"""Metrics as tables: for a terminal and for a README."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

MetricsByTask = Mapping[str, Mapping[str, Mapping[str, float]]]

# What a terminal of 80 columns has room for; metrics.json has the others, too.
BINARY = {
    "rows": "rows",
    "auc": "AUC",
    "popularity_auc": "item rate",
    "gauc": "GAUC",
    "ne": "NE",
    "calibration": "pred/act.",
}
REGRESSION = {
    "rows": "rows",
    "rmse": "RMSE",
    "popularity_rmse": "item rate",
    "mean_rmse": "mean",
    "mae": "MAE",
}


COUNT = {
    "rows": "rows",
    "poisson_deviance": "deviance",
    "popularity_poisson_deviance": "item rate",
    "relative_deviance": "of mean",
    "rmse": "RMSE",
    "calibration": "pred/act.",
}
DURATION = {
    "rows": "rows",
    "rmsle": "RMSLE",
    "popularity_rmsle": "item rate",
    "relative_rmsle": "of mean",
    "mae": "MAE",
    "calibration": "pred/act.",
}
MULTICLASS = {
    "rows": "rows",
    "logloss": "log loss",
    "ne": "NE",
    "accuracy": "accuracy",
    "majority": "majority",
    "macro_auc": "AUC",
}
TABLES = (  # each with a metric that only its kind of label has
    (BINARY, "auc"), (REGRESSION, "relative_rmse"), (COUNT, "poisson_deviance"),
    (DURATION, "rmsle"), (MULTICLASS, "macro_auc"),
)  # fmt: skip


def number(metric: str, value: float | None, digits: int = 4) -> str:
    """Returns a metric for a person; `-` where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if metric == "rows" else f"{value:.{digits}f}"


def make_table(title: str, words: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """Returns an empty table: columns of words, which may break, and columns of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for heading in words:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def evaluation_tables(
    title: str, metrics: MetricsByTask, ranking: Mapping[str, Mapping[str, Any]]
) -> list[Table]:
    """Returns the tables of an evaluation, each of at most 80 columns."""
    tables = []
    for columns, key in TABLES:
        wanted = {n: {t: v for t, v in tasks.items() if key in v} for n, tasks in metrics.items()}
        if any(wanted.values()):
            tables.append(metrics_table(f"{title}: test", wanted, columns))
    if ranking:
        tables.append(ranking_table("test users, the whole catalogue", ranking))
    return tables


def metrics_table(title: str, metrics: MetricsByTask, columns: Mapping[str, str]) -> Table:
    """Returns a row for each scenario and task; `!` marks an AUC that is not above popularity."""
    table = make_table(title, ("scenario", "task"), list(columns.values()))
    for name, tasks in metrics.items():
        for task, values in tasks.items():
            cells = {m: number(m, values.get(m)) for m in columns}
            auc, popularity = values.get("auc"), values.get("popularity_auc")
            if auc is not None and popularity is not None and auc <= popularity:
                cells["auc"] += " !"
            table.add_row(name, task, *cells.values())
    return table


def comparison_tables(title: str, comparison: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Returns joint, fine-tuned and alone on test, their differences, and the effect of sharing."""
    heads = {"joint": "joint", "finetuned": "fine-tuned", "alone": "alone"}
    values = make_table(f"{title}: test", ("scenario", "task", "metric"), list(heads.values()))
    gaps = make_table("differences [95 % interval]", ("scenario", "task", "of"), ("difference",))
    verdicts = make_table("what sharing did", ("scenario", "verdict"))
    pairs = ("finetuned-joint", "finetuned-alone", "joint-alone")
    for name, compared in comparison.items():
        for task, row in compared["tasks"].items():
            cells = [number("auc", row.get(m)) for m in heads]
            values.add_row(name, task, row["metric"].upper().replace("_", " "), *cells)
            for pair in pairs:
                words = pair.replace("finetuned", "fine-tuned").replace("-joint", " less joint")
                words = words.replace("-alone", " less alone")
                gaps.add_row(name, task, words, difference(row.get(pair)))
        verdicts.add_row(name, compared["verdict"])
    return [values, gaps, verdicts]


def ranking_table(title: str, ranking: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns a table of recall and NDCG over the catalogue: the model and its rivals.

    The best source by itself stands beside the list: popularity, that of the last days, item to
    item, EASE, or frozen texts.
    """
    best = "/".join(sorted({str(metrics["k"]) for metrics in ranking.values()}))
    heads = ("list", "best alone", "gain (95 %)")
    table = make_table(f"{title}, best {best}", ("scenario", "metric"), heads)
    for name, metrics in ranking.items():
        for key, metric in (("recall", "recall"), ("ndcg", "NDCG")):
            gain = metrics["gain"][key]
            alone = f"{number(key, metrics[gain['rival']].get(key), 3)} {gain['rival']}"
            named = f"{name} ({metrics['task']})" if key == "recall" else ""
            ours = number(key, metrics["model"].get(key), 3)
            table.add_row(named, metric, ours, alone, interval(gain, digits=3))
    return table


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Returns a table with a row for each fact."""
    table = make_table(title, ("", ""))
    table.show_header = False
    for label, text in facts.items():
        table.add_row(label, text)
    return table


def difference(gap: Mapping[str, float | None] | None, digits: int = 4) -> str:
    """Returns `+0.0012 [-0.0001, +0.0024]`, with a star where the interval excludes zero.

    `-` where there is no gap, or one without an interval (stored as null).
    """
    value, low, high = ((gap or {}).get(key) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    star = " *" if low > 0 or high < 0 else ""
    value, low, high = (f"{x:+.{digits}f}" for x in (value, low, high))
    return f"{value} [{low}, {high}]{star}"


def interval(gap: Mapping[str, float | None], digits: int) -> str:
    """Returns `-0.001 to +0.024`, with a star where it excludes zero; `-` where there is none."""
    low, high = gap["low"], gap["high"]
    if low is None or high is None:
        return "-"
    star = " *" if low > 0 or high < 0 else "  "
    return f"{low:+.{digits}f} to {high:+.{digits}f}{star}"


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Returns rows with the same keys as a Markdown table; empty without rows."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(str(row[h]) for h in heads) + " |" for row in rows]
    return "\n".join(lines)


def plain_table(title: str, rows: Sequence[Mapping[str, object]]) -> Table:
    """Returns rows with the same keys, for a terminal."""
    table = make_table(title, list(rows[0]) if rows else ())
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table
