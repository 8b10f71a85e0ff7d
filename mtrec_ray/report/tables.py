"""Metrics as tables: for a terminal and for a README."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

MetricsByTask = Mapping[str, Mapping[str, Mapping[str, float]]]

COLUMNS = {
    "rows": "rows",
    "auc": "AUC",
    "popularity_auc": "item rate",
    "gauc": "GAUC",
    "gauc_unweighted": "GAUC unw.",
    "logloss": "log-loss",
    "ne": "NE",
    "calibration": "pred/actual",
    "rmse": "RMSE",
    "popularity_rmse": "item rate",
    "mean_rmse": "mean",
    "mae": "MAE",
}


def number(metric: str, value: float | None) -> str:
    """A metric for a person; `-` where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if metric == "rows" else f"{value:.4f}"


def metrics_table(title: str, metrics: MetricsByTask) -> Table:
    """One row a scenario and task; an AUC that is not above the item's past rate is marked `!`."""
    table = Table(title=title, title_justify="left")
    table.add_column("scenario", no_wrap=True)
    table.add_column("task", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, tasks in metrics.items():
        for task, values in tasks.items():
            cells = {m: number(m, values.get(m)) for m in COLUMNS}
            auc, popularity = values.get("auc"), values.get("popularity_auc")
            if auc is not None and popularity is not None and auc <= popularity:
                cells["auc"] += " !"
            table.add_row(name, task, *cells.values())
    return table


def comparison_table(title: str, comparison: Mapping[str, Mapping[str, Any]]) -> Table:
    """Joint, fine-tuned and alone: one row a scenario and task, and what sharing did in all."""
    table = Table(title=title, title_justify="left")
    heads = ("scenario", "task", "metric", "joint", "fine-tuned", "alone")
    for heading in (*heads, "fine-tuned - joint", "fine-tuned - alone", "joint - alone"):
        table.add_column(heading, no_wrap=heading == "scenario")
    for name, found in comparison.items():
        for task, row in found["tasks"].items():
            values = [number("auc", row.get(m)) for m in ("joint", "finetuned", "alone")]
            gaps = [
                difference(row.get(pair))
                for pair in ("finetuned-joint", "finetuned-alone", "joint-alone")
            ]
            table.add_row(name, task, row["metric"].upper(), *values, *gaps)
        table.add_row(name, "", "", "", "", "", found["verdict"], "", "", end_section=True)
    return table


def ranking_table(title: str, ranking: Mapping[str, Mapping[str, Any]]) -> Table:
    """Recall and NDCG over the catalogue: the model and its rivals.

    Popularity is the item's training positives, live popularity its positives known when the user
    asks; neighbours are by frozen texts.
    """
    table = Table(title=title, title_justify="left")
    for heading in ("scenario", "task", "k", "users", "items"):
        table.add_column(heading, no_wrap=True)
    models = {
        "model": "model", "popularity": "popularity",
        "live_popularity": "live popularity", "neighbours": "neighbours",
    }  # fmt: skip
    for metric in ("recall", "NDCG"):
        for words in models.values():
            table.add_column(f"{metric}, {words}", justify="right")
    for name, found in ranking.items():
        facts = [str(found["task"]), *(f"{found[k]:,}" for k in ("k", "users", "items"))]
        values = [
            number(key, found.get(m, {}).get(key)) for key in ("recall", "ndcg") for m in models
        ]
        table.add_row(name, *facts, *values)
    return table


def difference(gap: Mapping[str, float | None] | None) -> str:
    """`+0.0012 [-0.0001, +0.0024]`, with a star where the interval excludes zero.

    `-` where there is no gap, or one without an interval (stored as null).
    """
    value, low, high = ((gap or {}).get(key) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    star = " *" if low > 0 or high < 0 else ""
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]{star}"


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as a Markdown table; empty without rows."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(str(row[h]) for h in heads) + " |" for row in rows]
    return "\n".join(lines)


def plain_table(title: str, rows: Sequence[Mapping[str, object]]) -> Table:
    """Rows with the same keys, for a terminal."""
    table = Table(title=title, title_justify="left")
    for heading in rows[0] if rows else ():
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table
