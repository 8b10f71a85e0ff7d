"""A search as one HTML page that needs no other file."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def tune_page(
    run: str,
    front: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    comparison: Sequence[Mapping[str, Any]],
    advice: Sequence[str],
    plots: Mapping[str, bytes],
    affinity: Sequence[Mapping[str, str]],
    generated: bool,
) -> str:
    """Returns the page of a search: choice, advice, comparison, affinities, plots, all trials."""
    pages = Environment(
        loader=PackageLoader("mtrec_ray.report", "."), autoescape=True, undefined=StrictUndefined
    )
    shown = [k for k in (rows[0] if rows else {}) if not k.startswith(("last.", "task."))]
    pictures = {name: base64.b64encode(data).decode() for name, data in plots.items()}
    return pages.get_template("tune.html").render(
        run=run, front=front, comparison=comparison, plots=pictures, generated=generated,
        affinity=affinity, advice=advice,
        columns=shown, rows=[[cell(row[k]) for k in shown] for row in ranked(rows)],
    )  # fmt: skip


def ranked(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns trials by joint score, those without one last."""
    return sorted(rows, key=lambda r: (r["joint_score"] is None, r["joint_score"] or 0.0))


def cell(value: Any) -> str:
    """Returns a value for a person."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
