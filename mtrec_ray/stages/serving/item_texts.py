"""The texts of a catalogue's items, as people read them.

They are those that the model reads, from the catalogue file at their first use.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.data.end_states import CatalogueColumns
from mtrec_ray.data.preparing.inputs import read_items
from mtrec_ray.data.tokens import item_texts
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.project import Project
from mtrec_ray.serving.new_items import same_items


class ItemTexts:
    """The texts of a scenario's items; None each, where the catalogue file cannot be read."""

    def __init__(self, project: Project, name: str, known: CatalogueColumns) -> None:
        """`project` names files that can be read."""
        self.project, self.name, self.known = project, name, known
        self.lock = threading.Lock()
        self.held: NDArray[np.object_] | None = None

    def __getitem__(self, item: int) -> str | None:
        """Returns the text of a row of the catalogue."""
        with self.lock:
            if self.held is None:
                self.held = self._read()
        return self.held[item]

    def _read(self) -> NDArray[np.object_]:
        items = self.project.scenarios[self.name].items
        found = np.full(len(self.known.ids), None, object)
        try:
            table = same_items(read_items(self.project, self.name), items, self.known)
        except (ProjectError, FileNotFoundError):
            return found
        found[:] = item_texts(table, items)
        return found
