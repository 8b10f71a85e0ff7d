"""Metrics as tables: for a terminal and for a README."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]

COLUMNS = {
    "rows": "rows",
    "auc": "AUC",
    "popularity_auc": "popularity",
    "gauc": "GAUC",
    "gauc_unweighted": "GAUC unw.",
    "logloss": "log-loss",
    "ne": "NE",
    "calibration": "pred/actual",
    "rmse": "RMSE",
    "popularity_rmse": "popularity",
    "mean_rmse": "mean",
    "mae": "MAE",
}


def number(metric: str, value: float | None) -> str:
    """A metric for a person; `-` where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if metric == "rows" else f"{value:.4f}"


def metrics_table(title: str, metrics: Metrics) -> Table:
    """One row a scenario and task; an AUC that is not above popularity is marked with `!`."""
    table = Table(title=title, title_justify="left")
    table.add_column("scenario", no_wrap=True)
    table.add_column("task", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, tasks in metrics.items():
        for task, values in tasks.items():
            cells = {m: number(m, values.get(m)) for m in COLUMNS}
            if values.get("auc", 1.0) <= values.get("popularity_auc", 0.0):
                cells["auc"] += " !"
            table.add_row(name, task, *cells.values())
    return table


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
