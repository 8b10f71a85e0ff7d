"""Lists over the whole catalogue: the model that orders candidates, and how good its lists are.

A user asks at the moment of the first row in a split, with the history and the statistics of that
row. Items, categories, popularity and what other users did are those of the same moment. What is
fitted (neighbours, EASE) rests on the earlier splits, as the network does. Candidates are items
that the user has not met (`exclude_seen`) and that are published by then.

The list model is fitted on users of valid. Test lists are measured against all positives in test,
beside each source by itself: popularity, the last days' popularity, item-to-item, EASE, texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray
from numpy.typing import NDArray

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.candidates.list_model import ListModel, Question, fit_list_model
from mtrec_ray.candidates.sources import Taken
from mtrec_ray.data.arrays import Float32s, Floats, Ints
from mtrec_ray.data.as_of import CatalogueAsOf
from mtrec_ray.data.asking_users import AskingUsers, asking_users
from mtrec_ray.data.end_states import CatalogueColumns, items_at_end, read_catalogue
from mtrec_ray.data.interactions import Moments
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.evaluation.catalogue_ranking import (
    cold_recall,
    gain,
    list_statistics,
    mean_interval,
    top,
    user_metrics,
)
from mtrec_ray.progress import Log
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import SPLITS
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.list_inputs import (
    Answer,
    ListInputs,
    ask,
    fit_crowds,
    join,
    open_sources,
    users_per_block,
)
from mtrec_ray.stages.ranker import NETWORK, Ranker

OWN_NAMES = {"text_mean": "neighbours"}


@dataclass(frozen=True)
class Asking:
    """Users of a split who ask, with their candidates.

    Attributes:
        candidates: with the scores of all sources.
        positives: by user, the items that the list should hold.
        alone: by source, the lists i64[B, k] that it makes by itself.
        known: bool[n], items of training. popularity: f64[n], its positives.
        texts: f32[n, D], unit vectors.
    """

    candidates: Candidates
    positives: list[Ints]
    alone: dict[str, Ints]
    known: NDArray[np.bool_]
    popularity: Floats
    texts: Float32s

    @property
    def taken(self) -> NDArray[np.bool_]:
        """bool[M]: which candidates are positives."""
        users = [np.full(len(items), user) for user, items in enumerate(self.positives)]
        size = len(self.known)
        wanted = np.concatenate(users) * size + np.concatenate(self.positives)
        return np.isin(self.candidates.user * size + self.candidates.item, wanted)


def ask_in_split(
    inputs: ListInputs, split: str, limit: int, of_crowd: Taken | None
) -> Asking | None:
    """Returns users of a split who ask; None where there is none. In a Ray task."""
    layout, options = inputs.layout(), inputs.model.project.recommend
    catalogue = read_catalogue(layout)
    asking = asking_users(layout, catalogue, inputs.task, limit, split)
    asking = asking.without_seen() if options.exclude_seen else asking
    if not len(asking):
        return None
    code = SPLITS.index(split)
    sources = open_sources(inputs, code, of_crowd)
    scorer = ScorerAsOf(inputs, layout, catalogue, asking)
    parts, alone = [], []
    step = users_per_block(len(catalogue.ids))
    for start in range(0, len(asking), step):
        rows = np.arange(start, min(start + step, len(asking)))
        block = asking.take(rows)
        moments = Moments(block.users.person, block.moments if layout.timed else None, code)
        answer = ask(sources, moments, scorer.ranker, block.users, exclude_met=options.exclude_seen)
        parts.append(scorer.score(block, answer.candidates))
        alone.append(lists_of_sources(answer, options.k))
    taken = sources.crowd.positives[inputs.name].before(1)
    return Asking(
        candidates=join(parts),
        positives=asking.positives,
        alone={s: np.concatenate([block[s] for block in alone]) for s in alone[0]},
        known=catalogue.in_training,
        popularity=np.bincount(taken.item, minlength=taken.num_items).astype(np.float64),
        texts=ray.get(inputs.texts[inputs.name]),
    )


def lists_of_sources(answer: Answer, k: int) -> dict[str, Ints]:
    """Returns i64[B, k] by source: the best items of each user that are not left out."""
    return {
        source: top(np.where(answer.left_out, -np.inf, values), k)
        for source, values in answer.scores.items()
    }


class ScorerAsOf:
    """The ranking network, for candidates at the moments at which users ask."""

    def __init__(
        self,
        inputs: ListInputs,
        layout: SnapshotColumns,
        catalogue: CatalogueColumns,
        asking: AskingUsers,
    ) -> None:
        self.past = None
        if layout.timed:
            self.past = CatalogueAsOf(layout, catalogue, int(asking.moments.max()))
            items = catalogue.snapshot(layout, layout.blank(len(catalogue.ids)))
        else:
            items = items_at_end(layout)
        self.ranker = Ranker(inputs.model, inputs.name, ray.get(inputs.vectors), items)

    def score(self, block: AskingUsers, candidates: Candidates) -> Candidates:
        """Returns the candidates of a block of users with the network's score."""
        numeric = None
        if self.past is not None:
            numeric = self.past.numeric(candidates.item, block.moments[candidates.user])
        predicted = self.ranker.predictions(block.users, candidates, numeric)
        return candidates.with_scores(self.ranker.scores(predicted, candidates.item))


def ask_everywhere(
    inputs: Mapping[str, ListInputs], project: Project, split: str, limit: int
) -> dict[str, Asking]:
    """Returns users of a split who ask, by scenario that has any, scored side by side."""
    task = task_of(ask_in_split, project.run)
    crowds = fit_crowds(inputs, project.run, SPLITS.index(split))
    refs = {n: task.remote(own, split, limit, crowds[n]) for n, own in inputs.items()}
    found: dict[str, Asking | None] = {
        name: cast("Any", ray.get(ref)) for name, ref in refs.items()
    }
    return {name: asking for name, asking in found.items() if asking is not None}


def fit_lists(inputs: Mapping[str, ListInputs], project: Project, log: Log) -> ListModel:
    """Returns the list model, fitted on users of valid."""
    asking = ask_everywhere(inputs, project, "valid", project.recommend.fit_users)
    users = sum(own.candidates.num_users for own in asking.values())
    log(f"lists: fitting the order of candidates on {users:,} users of valid")
    questions = {n: Question(own.candidates, own.taken) for n, own in asking.items()}
    task = task_of(fit_list_model, project.run, gpu=False)
    return ray.get(task.remote(questions, project.data_seed, project.run.cpus_per_worker))


def measure_lists(
    inputs: Mapping[str, ListInputs], model: ListModel, project: Project
) -> dict[str, Any]:
    """Returns how good test lists are, by scenario, beside each source by itself."""
    asking = ask_everywhere(inputs, project, "test", project.recommend.ranking_users)
    k = project.recommend.k
    return {
        name: {"task": inputs[name].task, "k": k, **measure(name, own, model, k)}
        for name, own in asking.items()
    }


def measure(name: str, asking: Asking, model: ListModel, k: int) -> dict[str, Any]:
    """Returns metrics of a scenario's lists by the list model and by each source.

    `gain`: recall and NDCG less those of the source that is best in each, with intervals over
    users.
    """
    candidates = asking.candidates
    lists = {"model": candidates.best(model.scores(name, candidates), k)[0]}
    lists[NETWORK] = candidates.best(candidates.scores[NETWORK], k)[0]
    lists |= {OWN_NAMES.get(source, source): best for source, best in asking.alone.items()}
    users = {source: user_metrics(best, asking.positives) for source, best in lists.items()}
    means = {s: {m: float(v.mean()) for m, v in found.items()} for s, found in users.items()}
    rivals = [source for source in means if source in RIVALS]
    gains = {}
    for metric in ("recall", "ndcg"):
        rival = max(rivals, key=lambda source: means[source][metric])
        found = gain(users["model"][metric], users[rival][metric])
        gains[metric] = {
            "rival": rival, "value": found.value, "low": found.low, "high": found.high
        }  # fmt: skip
    return {
        "users": candidates.num_users,
        "items": len(asking.known),
        **means,
        "gain": gains,
        "intervals": {m: interval_of(users["model"][m]) for m in ("recall", "ndcg")},
        "lists": list_statistics(lists["model"], asking.popularity, asking.known, asking.texts),
        "cold_recall": cold_recall(lists["model"], asking.positives, asking.known),
        "candidates_recall": float(candidate_recall(asking).mean()),
    }


# What a user would build instead: no part of it is learned together with others, or elsewhere.
RIVALS = (
    "popularity", "last_1_days", "last_7_days", "last_30_days", "newest", "item_knn", "ease",
    "neighbours",
)  # fmt: skip


def interval_of(values: Floats) -> list[float]:
    """Returns the low and high end of a mean over users."""
    found = mean_interval(values)
    return [found.low, found.high]


def candidate_recall(asking: Asking) -> Floats:
    """Returns f64[B]: the share of each user's positives that are candidates."""
    found = np.bincount(asking.candidates.user, asking.taken, asking.candidates.num_users)
    return found / np.array([len(items) for items in asking.positives])
