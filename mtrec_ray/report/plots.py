"""Plots of a search as PNG: front, parallel coordinates, importance, learning curves.

A row is a trial: `trial, status, joint_score, on_front, chosen, score.SCENARIO`, and a value for
each searched field.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Row = Mapping[str, Any]
REFERENCES = {"own": "s", "uniform": "D"}
GREY, BLUE, RED = "#b8bcc4", "#2f5d9b", "#c23b22"
MOST_CURVES = 40


def tune_plots(
    rows: Sequence[Row],
    scenarios: Sequence[str],
    fields: Sequence[str],
    importance: Mapping[str, float],
    curves: Mapping[str, Sequence[tuple[int, float]]],
) -> dict[str, bytes]:
    """Returns PNG by name; a plot that has nothing to show is left out."""
    scored = [r for r in rows if r["joint_score"] is not None]
    plots: dict[str, Callable[[Axes], None]] = {
        f"front_{x}_{y}": lambda ax, x=x, y=y: draw_front(ax, scored, x, y)
        for x, y in itertools.combinations(scenarios, 2)
    }
    if len(scored) > 1:
        plots["parallel"] = lambda ax: draw_parallel(ax, scored, fields)
    if importance:
        plots["importance"] = lambda ax: draw_importance(ax, importance)
    plots["curves"] = lambda ax: draw_curves(ax, scored, curves)
    wide = {"parallel": (10.0, 4.5)}
    return {name: png(draw, wide.get(name, (6.0, 4.5))) for name, draw in plots.items()}


def png(draw: Callable[[Axes], None], size: tuple[float, float]) -> bytes:
    """Returns what a function draws, as PNG."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def draw_front(ax: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    """All trials by two scenarios' scores, with the front of these two as a staircase.

    Trials of the front over all scenarios are dark; they need not lie on that of two.
    """
    for row in rows:
        colour = BLUE if row["on_front"] else GREY
        shape = REFERENCES.get(row["trial"], "o")
        ax.plot(row[f"score.{x}"], row[f"score.{y}"], shape, color=colour, ms=6)
        if row["trial"] in REFERENCES or row["chosen"]:
            note = f"{row['trial']} (chosen)" if row["chosen"] else row["trial"]
            place = (row[f"score.{x}"], row[f"score.{y}"])
            below = row["trial"] == "own"  # it is often where uniform weights are
            ax.annotate(note, place, xytext=(6, -12 if below else 5), textcoords="offset points")
        if row["chosen"]:
            ax.plot(row[f"score.{x}"], row[f"score.{y}"], "o", mfc="none", mec=RED, ms=12, mew=2)
    stairs = np.array(list(staircase([(r[f"score.{x}"], r[f"score.{y}"]) for r in rows])))
    ax.step(stairs[:, 0], stairs[:, 1], where="post", color=BLUE, lw=1, alpha=0.6)
    ax.set_xlabel(f"{x}: score on valid (lower is better)")
    ax.set_ylabel(y)
    ax.set_title(f"{x} against {y}")


def staircase(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yields points that no other is below in both, from left to right."""
    least = math.inf
    for x, y in sorted(points):
        if y < least:
            least = y
            yield x, y


def draw_parallel(ax: Axes, rows: Sequence[Row], fields: Sequence[str]) -> None:
    """A line a trial through its values and its joint score, each axis scaled to its range."""
    names = [*fields, "joint_score"]
    scores = np.array([r["joint_score"] for r in rows])
    colours = matplotlib.colormaps["viridis_r"]
    scale = Normalize(scores.min(), scores.max() + 1e-12)
    columns = [heights([r[name] for r in rows]) for name in names]
    for i in np.argsort(-scores):
        own = [column[i] for column in columns]
        chosen = rows[i]["chosen"]
        colour = RED if chosen else colours(scale(scores[i]))
        ax.plot(own, color=colour, lw=2.5 if chosen else 1.2, alpha=0.9)
    for place, name in enumerate(names):
        ax.axvline(place, color="#dddddd", zorder=0)
        for height, text in ends([r[name] for r in rows]):
            ax.text(place, height, text, ha="center", va="top" if height < 0 else "bottom")
    ax.set_xticks(range(len(names)), [short(n) for n in names], rotation=12)
    ax.set_yticks([])
    ax.set_ylim(-0.15, 1.15)
    ax.figure.colorbar(ScalarMappable(scale, colours), ax=ax, label="joint score on valid")


def heights(values: Sequence[Any]) -> np.ndarray:
    """Returns values in [0, 1]: by logarithm where they span a decade, others by rank."""
    if not all(isinstance(v, int | float) for v in values):
        order = sorted({repr(v) for v in values})
        return np.array([order.index(repr(v)) for v in values]) / max(len(order) - 1, 1)
    numbers = np.array(values, float)
    if numbers.min() > 0 and numbers.max() > 10 * numbers.min():
        numbers = np.log(numbers)
    return (numbers - numbers.min()) / max(float(np.ptp(numbers)), 1e-12)


def ends(values: Sequence[Any]) -> list[tuple[float, str]]:
    """Returns texts below and above an axis: its least and largest value."""
    if not all(isinstance(v, int | float) for v in values):
        order = sorted({repr(v) for v in values})
        return [(-0.02, order[0]), (1.02, order[-1])]
    return [(-0.02, f"{min(values):.3g}"), (1.02, f"{max(values):.3g}")]


def short(field: str) -> str:
    """Returns the end of a field's name; of a scenario's weight the scenario."""
    parts = field.split(".")
    return f"λ {parts[1]}" if parts[0] == "scenarios" and len(parts) == 3 else parts[-1]


def draw_importance(ax: Axes, importance: Mapping[str, float]) -> None:
    """A bar for each searched field."""
    names = sorted(importance, key=lambda n: importance[n])
    ax.barh([short(n) for n in names], [importance[n] for n in names], color=BLUE)
    ax.set_xlabel("share of the joint score's variance (fANOVA)")


def draw_curves(
    ax: Axes, rows: Sequence[Row], curves: Mapping[str, Sequence[tuple[int, float]]]
) -> None:
    """Joint score by epoch of the best trials; those that were stopped end early."""
    ranked = sorted(rows, key=lambda r: r["joint_score"])
    for row in ranked[:MOST_CURVES]:
        epochs, scores = zip(*curves[row["trial"]], strict=True)
        named = row["chosen"] or row["trial"] in REFERENCES
        colour = RED if row["chosen"] else BLUE if named else GREY
        label = row["trial"] + (" (chosen)" if row["chosen"] else "") if named else None
        shape = REFERENCES.get(row["trial"], "o")
        ax.plot(epochs, scores, f"{shape}-", ms=4, lw=1, color=colour, label=label)
    ax.set_xlabel("epoch")
    ax.set_ylabel("joint score on valid")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
