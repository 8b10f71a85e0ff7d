"""The labels of the rows that somebody met: who gave which item which label, and when it is known.

Letters: N rows, T tasks, B users, M rows of theirs, n items.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.arrays import Bools, Float32s, Floats, Ints
from mtrec_ray.data.interactions import Interactions, Moments, is_met
from mtrec_ray.data.kinds import logarithmic
from mtrec_ray.data.shards import Arrays, read_columns
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.project.split import SPLITS

COLUMNS = ("row", "person", "item", "time", "labels")
LATEST = 1000  # labels of a user that count


@dataclass(frozen=True)
class Labels:
    """A task's labels, sorted by person, then by time.

    Attributes:
        rows: N of them, each at the moment when its label is known.
        values: f64[N]; of counts and durations log(1 + y).
        sort: what kind of label it is; those of one sort are comparable.
    """

    rows: Interactions
    values: Floats
    sort: str = "regression"

    def take(self, rows: Bools | Ints) -> "Labels":
        """Returns some of the rows."""
        return Labels(self.rows.of(rows), self.values[rows], self.sort)

    def before(self, split: int) -> "Labels":
        """Returns those of the splits before one, of each user and item the latest."""
        own = self.take(self.rows.split < split)
        _, user = np.unique(own.rows.person, return_inverse=True)
        return own.take(latest_of_pairs(user, own.rows.item, own.rows.num_items))

    def known_to(self, asking: Moments, counted: int) -> tuple[Ints, Ints]:
        """Returns places i64[M] among the asking users, and rows i64[M] known when they ask.

        The latest 1,000 of a user, of each item the latest, of the splits before `counted`.
        """
        user, row = self.rows.known_to(asking, LATEST)
        kept = self.rows.split[row] < counted
        user, row = user[kept], row[kept]
        latest = latest_of_pairs(user, self.rows.item[row], self.rows.num_items)
        return user[latest], row[latest]


def latest_of_pairs(user: Ints, item: Ints, num_items: int) -> Ints:
    """Returns i64[M]: the last place of each pair of a user and an item."""
    pair = (user * num_items + item)[::-1]
    _, first = np.unique(pair, return_index=True)
    return len(pair) - 1 - first


def read_labels(layout: SnapshotColumns) -> dict[str, Labels]:
    """Returns the labels of a scenario by task, of tasks that have two values at least in train.

    Not of multiclass tasks: the number of a class is no label to take a mean of.

    Sampled negatives are no rows here: nobody gave them a label.
    """
    parts = [part for code, _ in enumerate(SPLITS) for part in met_labels(layout, code)]
    rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    found = {}
    for column, (task, kind) in enumerate(layout.facts.kinds.items()):
        if kind == "multiclass":
            continue
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
    delay = layout.delays_ms[column] if layout.timed else 0
    time = rows["time"].astype(np.int64) + delay
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.lexsort([rows["row"][known], time[known], rows["person"][known]])]
    interactions = Interactions(
        rows["person"][order], rows["item"][order].astype(np.int64), time[order],
        rows["split"][order], np.ones(len(order), bool), layout.facts.num_items,
    )  # fmt: skip
    task = list(layout.scenario.tasks.values())[column]
    sort = f"{task.kind} given another" if task.given else str(task.kind)
    scale = logarithmic(task.kind, values[order].astype(np.float64))
    return Labels(interactions, scale, sort)
