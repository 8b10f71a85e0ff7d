"""Classes of multiclass tasks in rows: their numbers for statistics, and how often each occurs.

Letters: N rows, T tasks, C classes of a task.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtrec_ray.data.arrays import Float32s, Floats
from mtrec_ray.project.classes import key_of
from mtrec_ray.project.scenario import Scenario

# By multiclass task, f64[2, C]: rows of each class, and the sum of their weights.
ClassSums = dict[str, Floats]


def with_gains(labels: Float32s, scenario: Scenario) -> Float32s:
    """Returns labels f32[N, T] with the gain of a class in place of its number.

    Statistics take means of them; a log without multiclass tasks has its labels as they are.
    """
    specs = enumerate(scenario.tasks.values())
    gains = {place: task.class_gains for place, task in specs if task.classes}
    if not gains:
        return labels
    numbers = labels.copy()
    for place, own in gains.items():
        known = labels[:, place] >= 0
        numbers[known, place] = np.array(own, np.float32)[labels[known, place].astype(np.int64)]
    return numbers


def class_sums(labels: Float32s, weights: Float32s, scenario: Scenario) -> ClassSums:
    """Returns rows and weights of each class in labels f32[N, T], of rows with weights f32[N]."""
    found = {}
    for place, (name, task) in enumerate(scenario.tasks.items()):
        if task.classes:
            known, num = labels[:, place] >= 0, len(task.classes)
            code = labels[known, place].astype(np.int64)
            of_weights = np.bincount(code, weights[known], num)
            found[name] = np.stack([np.bincount(code, minlength=num), of_weights])
    return found


def add_sums(first: ClassSums, second: ClassSums) -> ClassSums:
    """Returns the sums of two parts."""
    return {task: first[task] + sums for task, sums in second.items()}


def class_facts(scenario: Scenario, sums: Mapping[str, Floats]) -> dict[str, Any]:
    """Returns what the manifest says of classes; nothing without a multiclass task."""
    found = {
        name: {
            "values": list(task.classes),
            "gains": list(task.class_gains),
            "rates": (sums[name][1] / sums[name][1].sum()).tolist(),
        }
        for name, task in scenario.tasks.items()
        if task.classes
    }
    return {"classes": found} if found else {}


def class_rows(scenario: Scenario, sums: Mapping[str, Floats]) -> dict[str, Any]:
    """Returns what the data report says of classes: training rows of each, by task."""
    found = {
        name: dict(zip(map(key_of, task.classes), sums[name][0].astype(int).tolist(), strict=True))
        for name, task in scenario.tasks.items()
        if task.classes
    }
    return {"train_classes": found} if found else {}
