"""What came of an item of a history: a level for each task, all in one whole number.

Letters: N rows, T tasks, H history items.

A level takes two bits: 0 unknown, 1 low (of a binary task: not positive), 2 middle (of numbers
alone), 3 high (positive). The task in place t has the bits 2t and 2t + 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Float32s, Floats

LEVELS = 4
LOW, MIDDLE, HIGH = 1, 2, 3


def level_bounds(facts: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    """Returns for each task below which label it is low, and above which high.

    Of numbers half a standard deviation of the training labels (of a duration, of their logarithms)
    off their mean. `facts`: kinds of tasks and moments of their labels, as in a manifest.
    """
    return tuple(_bounds(facts, task, kind) for task, kind in facts["kinds"].items())


def _bounds(facts: Mapping[str, Any], task: str, kind: str) -> tuple[float, float]:
    if kind == "binary":
        return 0.5, 0.5
    of, back = ("label_log", np.expm1) if kind == "duration" else ("label", float)
    mean, std = facts[f"{of}_means"][task], facts[f"{of}_stds"][task]
    return float(back(mean - std / 2)), float(back(mean + std / 2))


def levels(labels: Floats | Float32s, bounds: Sequence[tuple[float, float]]) -> NDArray[np.int32]:
    """Returns i32[N, T], the level of each label [N, T], NaN for an unknown one."""
    low, high = np.array(bounds).T
    level = np.where(labels < low, LOW, np.where(labels > high, HIGH, MIDDLE))
    return np.where(np.isnan(labels), 0, level).astype(np.int32)


def outcome_parts(level: NDArray[np.int32]) -> NDArray[np.int32]:
    """Returns i32[N, T], what each task's level [N, T] adds to the outcome of a row."""
    return level << (2 * np.arange(level.shape[1], dtype=np.int32))
