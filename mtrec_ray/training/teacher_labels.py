"""A teacher's predictions mixed into the labels that the network learns from (1503.02531).

Apart from `teacher.py`, which fits the trees, so that training workers need not import it.
"""

import numpy as np

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.shards import TEACHER, Arrays


def with_teacher_labels(facts: PreparedScenario, rows: Arrays, share: float) -> Arrays:
    """Returns the rows with mixed labels; unchanged where there are no predictions."""
    if TEACHER not in rows:
        return rows
    mixed = mix_labels(rows["labels"], rows[TEACHER], share, mixable_tasks(facts))
    return {k: v for k, v in rows.items() if k != TEACHER} | {"labels": mixed}


def mixable_tasks(facts: PreparedScenario) -> np.ndarray:
    """Returns bool[T]: all but those above an entire-space task, whose labels must be 0 or 1."""
    parents = {above for task in facts.entire for above in facts.chain(task)[1:]}
    return np.array([task not in parents for task in facts.tasks])


def mix_labels(
    labels: np.ndarray, predicted: np.ndarray, share: float, mixable: np.ndarray
) -> np.ndarray:
    """Returns f32[N, T]: (1 - share) label + share prediction, where both exist and may mix.

    Predictions are NaN where there is none; `mixable` is bool[T].
    """
    mixed = (1 - share) * labels + share * predicted
    return np.where(np.isfinite(predicted) & mixable, mixed, labels).astype(np.float32)
