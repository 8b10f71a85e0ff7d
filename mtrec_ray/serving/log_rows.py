"""The rows of a prepared log in memory, sorted by person: `36 + 4 T` bytes a row.

Sampled negatives are no rows of the log. Letters: N rows, T tasks, P persons.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.as_of import log_rows
from mtrec_ray.data.shards import Arrays, concatenate
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.project.split import SPLITS

COLUMNS = ("person", "item", "time", "labels")


@dataclass(frozen=True)
class LogRows:
    """Rows sorted by person: row, person, item, time, labels, split."""

    arrays: Arrays

    @classmethod
    def read(cls, layout: SnapshotColumns) -> "LogRows":
        """Returns the rows of all splits of a scenario, read from its shards."""
        num_tasks = len(layout.facts.tasks)
        parts = [
            {**arrays, "split": np.full(len(arrays["row"]), code, np.int8)}
            for code, split in enumerate(SPLITS)
            for arrays in log_rows(layout, (split,), COLUMNS)
        ]
        rows = concatenate(parts)
        order = np.argsort(rows["person"], kind="stable")
        rows = {name: values[order] for name, values in rows.items()}
        rows["item"] = rows["item"].astype(np.int64)
        rows["labels"] = rows["labels"][:, :num_tasks]
        return cls(rows)

    @property
    def next_row(self) -> int:
        """The number of the row that comes after the last one."""
        return int(self.arrays["row"].max(initial=-1)) + 1

    def of(self, persons: Ints) -> Arrays:
        """Returns the rows of distinct persons i64[P]."""
        person = self.arrays["person"]
        start = np.searchsorted(person, persons, side="left")
        size = np.searchsorted(person, persons, side="right") - start
        places = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size - start, size)
        return {name: values[places] for name, values in self.arrays.items()}
