"""Which items of a catalogue pass the rules of a request.

The catalogue file is read anew once a minute: stock and prices change while a service runs.
"""

import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtrec_ray.candidates.filters import allowed_items, read_catalogue_file, rule_problems
from mtrec_ray.data.arrays import Bools
from mtrec_ray.data.catalogue import ItemLookup
from mtrec_ray.project.assortment import Filter
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.project import Project
from mtrec_ray.stages.serving.requests import RequestError

SECONDS = 60  # for which columns that were read are kept
COLUMNS = 16  # that are kept, at most; more are read again


class ItemFilters:
    """The rules of requests on a scenario's catalogue file, whose n items have these ids [n]."""

    def __init__(self, project: Project, name: str, ids: NDArray[np.object_]) -> None:
        """`project` names files that can be read."""
        self.project, self.name = project, name
        self.ids = pa.chunked_array([pa.array(ids, pa.string())])
        self.read = lru_cache(COLUMNS)(self._read)

    def allowed(self, rules: Sequence[Filter]) -> Bools:
        """Returns bool[n]: which items pass all rules; one that the file has no more passes none.

        Raises:
            RequestError: a column or a value that does not fit the catalogue file, or no such file.
        """
        passed = np.ones(len(self.ids), bool)
        problems: list[str] = []
        for number, rule in enumerate(rules):
            table, row = self.read(rule.column, int(time.monotonic() / SECONDS))
            lines = list(rule_problems(f"filters.{number}", rule, table))
            problems += lines
            if not lines:
                passed &= allowed_items([rule], table)[row] & (row >= 0)
        if problems:
            raise RequestError(problems)
        return passed

    def _read(self, column: str, minute: int) -> tuple[pa.Table, NDArray[np.int32]]:
        """Returns a column of the catalogue file, and the row of each item; -1 where it has none.

        `minute` tells a later reading from an earlier one.
        """
        del minute
        anything = Filter(column=column, none_of=("",))
        recommend = self.project.recommend.model_copy(
            update={"filters": {self.name: (anything,)}, "at_most_per": {}}
        )
        project = self.project.model_copy(update={"recommend": recommend})
        try:
            table = read_catalogue_file(project, self.name)
        except ProjectError as error:
            raise RequestError([f"filters: {line}" for line in error.problems]) from None
        ids = table.column(self.project.scenarios[self.name].items.id)
        return table, ItemLookup.of(ids).find(self.ids)
