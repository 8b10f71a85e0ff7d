"""Lists over the whole catalogue: the model that orders candidates, and how good its lists are.

A user asks at the moment of the first row in a split, with the history and the statistics of that
row. Items, categories, popularity and what other users did are those of the same moment. What is
fitted (neighbours, EASE) rests on the earlier splits, as the network does. Candidates are items
that the user has not met (`exclude_seen`) and that are published by then.

The list model is fitted on users of valid. Test lists are measured against all positives in test,
beside each source by itself: popularity, the last days' popularity, item-to-item, EASE, texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.candidates.list_model import (
    ListModel,
    Logit,
    Question,
    fit_first,
    fit_list_model,
    shortlist,
)
from mtrec_ray.candidates.sources import Taken
from mtrec_ray.data.arrays import Float32s, Floats, Ints
from mtrec_ray.data.as_of import CatalogueAsOf
from mtrec_ray.data.asking_users import AskingUsers, asking_users
from mtrec_ray.data.end_states import CatalogueColumns, items_at_end, read_catalogue
from mtrec_ray.data.interactions import Moments
from mtrec_ray.data.snapshot import SnapshotColumns, UserSnapshot
from mtrec_ray.evaluation.catalogue_ranking import (
    cold_recall,
    gain,
    list_statistics,
    mean_interval,
    popular_share,
    user_metrics,
)
from mtrec_ray.progress import Log
from mtrec_ray.project.project import Project
from mtrec_ray.project.split import SPLITS
from mtrec_ray.stages.cluster import result_of, task_of
from mtrec_ray.stages.list_inputs import (
    MOST_USERS,
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
        users: who they are, and when they ask.
        candidates: with the scores of all sources; of a shortlist with the network's, too.
        alone: by source, the lists i64[B, k] that it makes by itself.
        known: bool[n], items of training. popularity: f64[n], its positives.
        texts: f32[n, D], unit vectors.
    """

    users: AskingUsers
    candidates: Candidates
    alone: dict[str, Ints]
    known: NDArray[np.bool_]
    popularity: Floats
    texts: Float32s

    @property
    def positives(self) -> list[Ints]:
        """By user, the items that the list should hold."""
        return self.users.positives

    @property
    def question(self) -> Question:
        """The candidates, and which of them were taken."""
        return Question(self.candidates, self.taken)

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
    items = catalogue.snapshot(layout, layout.blank(len(catalogue.ids)))
    ranker = Ranker(inputs.model, inputs.name, ray.get(inputs.vectors), items)
    ranker.build_index()
    parts, alone = [], []
    for block in asking.blocks(users_per_block(len(catalogue.ids))):
        moments = Moments(block.users.person, block.moments if layout.timed else None, code)
        answer = ask(sources, moments, ranker, block.users, exclude_met=options.exclude_seen)
        parts.append(answer.candidates)
        alone.append(lists_of_sources(answer, options.k))
    taken = sources.crowd.positives[inputs.name].before(1)
    return Asking(
        users=asking,
        candidates=join(parts),
        alone={s: np.concatenate([block[s] for block in alone]) for s in alone[0]},
        known=catalogue.in_training,
        popularity=np.bincount(taken.item, minlength=taken.num_items).astype(np.float64),
        texts=ray.get(inputs.texts[inputs.name]),
    )


def score_shortlists(inputs: ListInputs, asking: Asking, first: Logit) -> Asking:
    """Returns users with their shortlists, which the network has scored. In a Ray task."""
    num = inputs.model.project.recommend.shortlist
    short = shortlist(asking.candidates, first.scores(inputs.name, asking.candidates), num)
    layout = inputs.layout()
    scorer = ScorerAsOf(inputs, layout, read_catalogue(layout), asking.users)
    parts = []
    for start in range(0, short.num_users, MOST_USERS):
        users = np.arange(start, min(start + MOST_USERS, short.num_users))
        parts.append(scorer.score(asking.users.take(users), short.of_users(start, len(users))))
    return replace(asking, candidates=join(parts))


def lists_of_sources(answer: Answer, k: int) -> dict[str, Ints]:
    """Returns i64[B, k] by source: the best items of each user that are not left out."""
    return {name: source.best(k, answer.hidden) for name, source in answer.scores.items()}


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
) -> dict[str, ray.ObjectRef]:
    """Returns handles of users of a split who ask, by scenario that has any."""
    task = task_of(ask_in_split, project.run)
    crowds = fit_crowds(inputs, project.run, SPLITS.index(split))
    refs = {n: task.remote(own, split, limit, crowds[n]) for n, own in inputs.items()}
    return {name: ref for name, ref in refs.items() if result_of(ref) is not None}


def score_everywhere(
    inputs: Mapping[str, ListInputs],
    asking: Mapping[str, ray.ObjectRef],
    first: Logit,
    project: Project,
) -> dict[str, ray.ObjectRef]:
    """Returns handles of the users with their scored shortlists, by scenario."""
    task = task_of(score_shortlists, project.run)
    return {name: task.remote(inputs[name], ref, first) for name, ref in asking.items()}


def questions_of(asking: Mapping[str, ray.ObjectRef]) -> dict[str, Question]:
    """Returns what users were asked, by scenario; in a Ray task."""
    return {name: result_of(ref).question for name, ref in asking.items()}


def fit_first_of(asking: Mapping[str, ray.ObjectRef]) -> Logit:
    """Returns the first order of candidates; in a Ray task."""
    return fit_first(questions_of(asking))


def fit_model_of(
    first: Logit, asking: Mapping[str, ray.ObjectRef], seed: int, threads: int
) -> ListModel:
    """Returns the list model of scored shortlists; in a Ray task."""
    return fit_list_model(first, questions_of(asking), seed, threads)


def fit_lists(inputs: Mapping[str, ListInputs], project: Project, log: Log) -> ListModel:
    """Returns the list model, fitted on users of valid."""
    run = project.run
    log("lists: asking users of valid, whose choices give the order of candidates")
    asking = ask_everywhere(inputs, project, "valid", project.recommend.fit_users)
    first: Logit = result_of(task_of(fit_first_of, run, gpu=False).remote(asking))
    scored = score_everywhere(inputs, asking, first, project)
    fit = task_of(fit_model_of, run, gpu=False)
    model: ListModel = result_of(fit.remote(first, scored, project.data_seed, run.cpus_per_worker))
    users = sum(model.users.values())
    log(f"lists: the order of candidates is fitted on {users:,} users of valid")
    return model


def measure_lists(
    inputs: Mapping[str, ListInputs], model: ListModel, project: Project
) -> dict[str, Any]:
    """Returns how good test lists are, by scenario, beside each source by itself."""
    asking = ask_everywhere(inputs, project, "test", project.recommend.ranking_users)
    scored = score_everywhere(inputs, asking, model.first, project)
    task = task_of(measure_scenario, project.run, gpu=False)
    k = project.recommend.k
    refs = {n: task.remote(n, asking[n], ref, model, k) for n, ref in scored.items()}
    return {n: {"task": inputs[n].task, "k": k, **result_of(ref)} for n, ref in refs.items()}


def measure_scenario(
    name: str, asking: Asking, scored: Asking, model: ListModel, k: int
) -> dict[str, Any]:
    """Returns metrics of a scenario's lists, and how many positives are candidates; a Ray task."""
    recall = float(candidate_recall(asking).mean())
    return {**measure(name, scored, model, k), "candidates_recall": recall}


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
        "taken_popular_items": popular_share(np.concatenate(asking.positives), asking.popularity),
        "slices": slices_of(asking.users.users, users, gains),
        "cold_recall": cold_recall(lists["model"], asking.positives, asking.known),
        "shortlist_recall": float(candidate_recall(asking).mean()),
    }


def slices_of(
    asking: UserSnapshot, users: Mapping[str, Mapping[str, Floats]], gains: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Returns metrics of some of the users, of the lists and of the source that is best over all.

    new_users: without a row in training; no_history: who had not taken anything when they asked.
    """
    slices = {"new_users": asking.user == 0, "no_history": (asking.history < 0).all(1)}
    found: dict[str, dict[str, float]] = {}
    for name, own in slices.items():
        if own.any():
            found[name] = {"users": float(own.sum())}
            for metric, of_rival in gains.items():
                found[name][metric] = float(users["model"][metric][own].mean())
                rival = users[of_rival["rival"]][metric]
                found[name][f"rival_{metric}"] = float(rival[own].mean())
    return found


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
