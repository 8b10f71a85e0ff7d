"""The labels of the rows that somebody met: who gave which item which label, and when it is known.

Letters: N rows, T tasks, B users, M rows of theirs, n items.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.arrays import Float32s, Floats, Ints
from mtrec_ray.data.interactions import Interactions, Moments, is_met
from mtrec_ray.data.shards import Arrays, read_columns
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.project.scenario import SPLITS

COLUMNS = ("row", "person", "item", "time", "labels")


@dataclass(frozen=True)
class Labels:
    """A task's labels, sorted by person, then by time.

    Attributes:
        rows: N of them, each at the moment when its label is known.
        values: f64[N].
    """

    rows: Interactions
    values: Floats

    def before(self, split: int) -> "Labels":
        """Returns those of the splits before one."""
        return Labels(self.rows.before(split), self.values[self.rows.split < split])

    def known_to(self, asking: Moments, counted: int) -> tuple[Ints, Ints]:
        """Returns places i64[M] among the asking users, and rows i64[M] known when they ask.

        Of an item with several rows of a user the latest one, of the splits before `counted`.
        """
        user, row = self.rows.known_to(asking)
        kept = self.rows.split[row] < counted
        user, row = user[kept][::-1], row[kept][::-1]
        _, first = np.unique(user * self.rows.num_items + self.rows.item[row], return_index=True)
        return user[first], row[first]


def read_labels(layout: SnapshotColumns) -> dict[str, Labels]:
    """Returns the labels of a scenario by task, of tasks that have two values at least in train.

    Sampled negatives are no rows here: nobody gave them a label.
    """
    parts = [part for code, _ in enumerate(SPLITS) for part in met_labels(layout, code)]
    rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    found = {}
    for column, task in enumerate(layout.facts.tasks):
        one = labels_of(layout, rows, column)
        if len(np.unique(one.before(1).values)) > 1:
            found[task] = one
    return found


def met_labels(layout: SnapshotColumns, code: int) -> list[Arrays]:
    """Returns the rows of a split that somebody met, with all labels f32[N, T]."""
    paths = layout.prepared.shard_paths(layout.name, SPLITS[code])
    found = []
    for arrays in read_columns(paths, COLUMNS):
        kept = {
            k: v[is_met(layout.scenario, layout.facts.tasks, arrays)] for k, v in arrays.items()
        }
        found.append(kept | {"split": np.full(len(kept["row"]), code, np.int8)})
    return found


def labels_of(layout: SnapshotColumns, rows: Arrays, column: int) -> Labels:
    """Returns the labels of a task, each at the moment when it is known."""
    values: Float32s = rows["labels"][:, column]
    time = rows["time"].astype(np.int64) + layout.delays_ms[column]
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.lexsort([rows["row"][known], time[known], rows["person"][known]])]
    interactions = Interactions(
        rows["person"][order], rows["item"][order].astype(np.int64), time[order],
        rows["split"][order], np.ones(len(order), bool), layout.facts.num_items,
    )  # fmt: skip
    return Labels(interactions, values[order].astype(np.float64))
