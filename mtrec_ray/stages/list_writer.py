"""Workers that make the lists of a scenario's users and write them as Parquet."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from mtrec_ray.candidates.filters import listed_items
from mtrec_ray.candidates.list_model import ListModel
from mtrec_ray.candidates.search_index import EXACT_UP_TO, SearchIndex
from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools
from mtrec_ray.data.end_states import items_at_end, users_at_end
from mtrec_ray.data.interactions import END
from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot, blocks, new_users
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.list_inputs import ListInputs, open_sources, users_per_block
from mtrec_ray.stages.list_ranker import ItemRules, ListRanker, PairScorer
from mtrec_ray.stages.predictions import Beside, SecondOpinion
from mtrec_ray.stages.ranker import LoadedModel, Ranker

NEW_USERS = "new"  # in place of a partition: users without a row


@dataclass(frozen=True)
class ListMaker:
    """Handles of what every worker needs to make a scenario's lists.

    Attributes:
        opinion: what stands beside the network in predictions of listed items; None: nothing.
    """

    inputs: ListInputs
    sources: ray.ObjectRef
    index: ray.ObjectRef
    items: ray.ObjectRef
    rules: ray.ObjectRef
    list_model: ray.ObjectRef
    wanted: ray.ObjectRef
    folder: str
    opinion: SecondOpinion | None = None

    def wait(self) -> None:
        """Wait for the tasks that make what the handles stand for."""
        ray.wait([self.sources, self.index], num_returns=2, fetch_local=False)
        if self.opinion is not None:
            self.opinion.wait()

    def open(self, loaded: LoadedModel | None = None) -> ListRanker:
        """Returns what ranks; `loaded`: the scenario's model, where it is in memory already."""
        inputs, beside = self.inputs, None
        if self.opinion is not None and self.opinion.blends:
            beside = Beside.of(self.opinion, inputs.model, inputs.name)
        ranker = Ranker(
            inputs.model,
            inputs.name,
            ray.get(inputs.vectors),
            ray.get(self.items),
            ray.get(self.index),
            loaded,
        )
        return ListRanker(
            scorer=PairScorer(ranker, beside),
            sources=ray.get(self.sources),
            rules=ray.get(self.rules),
            list_model=ray.get(self.list_model),
            texts=ray.get(inputs.texts[inputs.name]),
        )


def list_maker(
    inputs: ListInputs,
    of_crowd: ray.ObjectRef | None,
    list_model: ListModel,
    project: Project,
    folder: str,
    wanted: Sequence[str] | None,
    opinion: SecondOpinion | None = None,
) -> ListMaker:
    """Returns what workers need for the lists of a scenario at the end of the data.

    Raises:
        ProjectError: rules on items that do not fit the catalogue file.
    """
    items = items_at_end(inputs.layout())
    rules = ItemRules(*listed_items(project, inputs.name, items.ids))
    fit, items_ref = task_of(open_sources, project.run, gpu=False), ray.put(items)
    index = task_of(index_of_retrieval, project.run)
    return ListMaker(
        inputs=inputs,
        sources=fit.remote(inputs, END, of_crowd, rules.allowed),
        index=index.remote(inputs, items_ref, rules.allowed),
        items=items_ref,
        rules=ray.put(rules),
        list_model=ray.put(list_model),
        wanted=ray.put(None if wanted is None else frozenset(wanted)),
        folder=folder,
        opinion=opinion,
    )


def index_of_retrieval(
    inputs: ListInputs, items: ItemSnapshot, allowed: Bools
) -> SearchIndex | None:
    """Returns the index of the retrieval vectors of a large catalogue; in a Ray task."""
    if len(items.ids) <= EXACT_UP_TO:
        return None
    return Ranker(inputs.model, inputs.name, ray.get(inputs.vectors), items).build_index(allowed)


class Writers:
    """Writes the lists of several scenarios, one after another; a Ray Data actor."""

    def __init__(self, makers: Mapping[str, ListMaker]) -> None:
        self.makers = makers
        self.held: tuple[str, Writer] | None = None

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write a unit's recommendations; returns its users, rows, and when it began and ended."""
        name, began = unit["scenario"], time.time()
        if self.held is None or self.held[0] != name:
            self.held = None  # frees what the scenario before needed
            self.held = (name, Writer(self.makers[name]))
            began = time.time()
        users, rows = self.held[1].write(unit)
        return {
            "scenario": name, "users": users, "rows": rows, "began": began, "ended": time.time()
        }  # fmt: skip


class Writer:
    """Ranks the items of a scenario for units of users and writes Parquet files."""

    def __init__(self, maker: ListMaker) -> None:
        self.lists = maker.open()
        self.wanted: frozenset[str] | None = ray.get(maker.wanted)
        self.folder = maker.folder
        self.held: tuple[str, UserSnapshot] | None = None

    def write(self, unit: dict[str, Any]) -> tuple[int, int]:
        """Write a unit's recommendations; returns how many users and rows.

        A unit whose file is there is finished.
        """
        name = f"{unit['part'].removesuffix('.parquet')}-{unit['start']:08}.parquet"
        path = storage.join(self.folder, name)
        if storage.exists(path):
            fs, inner = storage.filesystem(path)
            ranked = pq.read_table(inner, filesystem=fs, columns=["user"]).column(0)
            return len(ranked.unique()), len(ranked)
        users = self.users_of(unit)
        if not len(users):
            return 0, 0
        step = users_per_block(len(self.lists.ranker.items.ids))
        table = pa.concat_tables(self.lists.best(block) for block in blocks(users, step))
        storage.write_table(path, table)
        return len(users), table.num_rows

    def users_of(self, unit: dict[str, Any]) -> UserSnapshot:
        """Returns the users of a unit that are wanted."""
        layout, part = self.lists.ranker.layout, unit["part"]
        if part == NEW_USERS:
            return new_users(layout, json.loads(unit["users"]))
        if self.held is None or self.held[0] != part:
            self.held = (part, users_at_end(layout, part))
        users = self.held[1].of(unit["start"], unit["stop"])
        if self.wanted is not None:
            users = users.take(np.flatnonzero([i in self.wanted for i in users.ids]))
        return users
