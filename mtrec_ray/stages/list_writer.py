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
from numpy.typing import NDArray

from mtrec_ray.candidates.assortment import Cap, ListRules, Lists, choose_lists
from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.candidates.filters import listed_items
from mtrec_ray.candidates.list_model import ListModel, shortlist
from mtrec_ray.candidates.search_index import EXACT_UP_TO, SearchIndex
from mtrec_ray.candidates.sources import Sources
from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools, Float32s, Floats, Ints
from mtrec_ray.data.end_states import items_at_end, users_at_end
from mtrec_ray.data.interactions import END, Moments
from mtrec_ray.data.snapshot import ItemSnapshot, UserSnapshot, blocks, new_users, rows_of_pairs
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.list_inputs import ListInputs, ask, open_sources, users_per_block
from mtrec_ray.stages.predictions import Beside, SecondOpinion, probability_columns
from mtrec_ray.stages.ranker import Ranker

NEW_USERS = "new"  # in place of a partition: users without a row


@dataclass(frozen=True)
class ItemRules:
    """Which items may be listed, bool[n], and the caps on lists."""

    allowed: NDArray[np.bool_]
    caps: list[Cap]


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
        inputs = maker.inputs
        self.ranker = Ranker(
            inputs.model,
            inputs.name,
            ray.get(inputs.vectors),
            ray.get(maker.items),
            ray.get(maker.index),
        )
        self.sources: Sources = ray.get(maker.sources)
        self.rules: ItemRules = ray.get(maker.rules)
        self.list_model: ListModel = ray.get(maker.list_model)
        self.wanted: frozenset[str] | None = ray.get(maker.wanted)
        self.texts: Float32s = ray.get(inputs.texts[inputs.name])
        self.folder, self.name = maker.folder, inputs.name
        self.beside = None
        if maker.opinion is not None and maker.opinion.blends:
            self.beside = Beside.of(maker.opinion, inputs.model, inputs.name)
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
        step = users_per_block(len(self.ranker.items.ids))
        table = pa.concat_tables(self.best(block) for block in blocks(users, step))
        storage.write_table(path, table)
        return len(users), table.num_rows

    def users_of(self, unit: dict[str, Any]) -> UserSnapshot:
        """Returns the users of a unit that are wanted."""
        layout, part = self.ranker.layout, unit["part"]
        if part == NEW_USERS:
            return new_users(layout, json.loads(unit["users"]))
        if self.held is None or self.held[0] != part:
            self.held = (part, users_at_end(layout, part))
        users = self.held[1].of(unit["start"], unit["stop"])
        if self.wanted is not None:
            users = users.take(np.flatnonzero([i in self.wanted for i in users.ids]))
        return users

    def best(self, users: UserSnapshot) -> pa.Table:
        """Returns the k best items of each user, with the model's predictions of them."""
        named = self.candidates(users)
        first = self.list_model.first.scores(self.name, named)
        candidates = shortlist(named, first, self.ranker.options.shortlist)
        predicted = self.ranker.predictions(users, candidates)
        scored = candidates.with_scores(self.ranker.scores(predicted, candidates.item))
        lists = self.lists(users, candidates, self.list_model.scores(self.name, scored))
        return self.table(users, candidates, predicted, lists)

    def candidates(self, users: UserSnapshot) -> Candidates:
        """Returns the candidates of users who ask at the end of the data."""
        timed, options = self.ranker.layout.timed, self.ranker.options
        times = np.full(len(users), self.sources.crowd.end) if timed else None
        moments = Moments(users.person, times, END)
        answer = ask(self.sources, moments, self.ranker, users, exclude_met=options.exclude_seen)
        return answer.candidates

    def lists(self, users: UserSnapshot, candidates: Candidates, score: Floats) -> Lists:
        """Returns the final lists: the best by score, within caps, diverse, with chance."""
        options = self.ranker.options
        most = int(np.diff(candidates.starts).max(initial=1))
        items, pairs = candidates.best(score, max(most, 1))
        scores = np.where(pairs >= 0, score[pairs] if len(score) else 0, -np.inf)
        rules = ListRules(options.k, options.diversity, options.explore, self.rules.caps)
        return choose_lists(items, scores.astype(np.float32), users.person, rules, self.texts)

    def table(
        self, users: UserSnapshot, candidates: Candidates, predicted: Float32s, lists: Lists
    ) -> pa.Table:
        """Returns lists as rows: user, rank, item, score, predictions (the network's f32[M, P])."""
        ranker = self.ranker
        user, rank = np.nonzero(lists.items >= 0)
        item = lists.items[user, rank]
        columns: dict[str, Any] = {
            "user": pa.array(users.ids[user], pa.string()),
            "rank": (rank + 1).astype(np.int32),
            "item": pa.array(ranker.items.ids[item], pa.string()),
            "score": lists.scores[user, rank],
        }
        pair = pairs_of(candidates, user, item, len(ranker.items.ids))
        told = self.told(users, user, item, predicted[pair])
        for i, (task, kind) in enumerate(ranker.facts.kinds.items()):
            word = "probability" if kind == "binary" else "prediction"
            columns[f"{word}.{task}"] = told[:, i]
        columns |= probability_columns(ranker.facts, told)
        columns["new_user"] = users.user[user] == 0  # no training row
        columns["new_item"] = ~ranker.items.in_training[item]
        if ranker.options.explore.way != "none":
            columns["propensity"] = lists.propensities[user, rank]
        return pa.table(columns)

    def told(self, users: UserSnapshot, user: Ints, item: Ints, network: Float32s) -> Float32s:
        """Returns f32[m, P]: predictions of pairs, blended as those of an evaluation."""
        if self.beside is None or not len(item):
            return network
        layout = self.ranker.layout
        rows = rows_of_pairs(layout, users, self.ranker.items, user, item)
        if layout.timed:
            rows["time"] = np.full(len(item), self.sources.crowd.end)
        return self.beside.values(rows, network, END)["score"]


def pairs_of(candidates: Candidates, user: Ints, item: Ints, num_items: int) -> Ints:
    """Returns i64[N]: which pairs of the candidates, sorted by user and item, these are."""
    return np.searchsorted(candidates.user * num_items + candidates.item, user * num_items + item)
