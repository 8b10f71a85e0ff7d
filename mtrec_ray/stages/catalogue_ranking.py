"""Recall and NDCG over the whole catalogue for test users, by Ray tasks.

A test user asks at the moment of their first test row, with the history and the statistics of that
row. Items, categories and popularity are those of the same moment: nothing later is known. The
whole catalogue is ranked without the items that the user had seen by then, but with those published
later, which count as 0 seconds old: lists are measured against all positives in test. The rivals:

popularity       training positives of the item, before the moment where rows have a time
live_popularity  positives known at the moment, in all splits that the statistics count
neighbours       cosine with the mean of the history, by the frozen, pretrained encoder
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from mtrec_ray.data.as_of import CatalogueAsOf
from mtrec_ray.data.asking_users import AskingUsers, asking_users
from mtrec_ray.data.end_states import CatalogueColumns, items_at_end, read_catalogue
from mtrec_ray.data.popularity import live_popularity, training_popularity
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.snapshot import SnapshotColumns
from mtrec_ray.evaluation.catalogue_ranking import main_task, neighbours, ranking_metrics, top
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.ranker import Ranker, seen_mask
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors
from mtrec_ray.training.build import pretrained_vectors


def unit_vectors(project: Project, prepared: Prepared, name: str) -> NDArray[np.float32]:
    """Returns f32[n, D]: unit vectors of the items' texts by the pretrained encoder."""
    device = torch.device("cuda" if project.run.use_gpu else "cpu")
    vectors = pretrained_vectors(project, prepared, name, device)
    return torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()


def rank_for_test_users(
    trained_model: TrainedModel, source: Project, name: str, vectors: np.ndarray
) -> dict[str, Any] | None:
    """Returns recall and NDCG at k of the model and its rivals; None without a positive.

    `source` is the project whose encoder is the pretrained one. In a Ray task.
    """
    project = trained_model.project
    layout = SnapshotColumns(trained_model.open_prepared(), name, project.scenarios[name])
    options = project.recommend
    task = main_task(layout.prepared, name, options.by.get(name, {}))
    if task is None or not options.ranking_users:
        return None
    catalogue = read_catalogue(layout)
    asking = asking_users(layout, catalogue, task, options.ranking_users)
    asking = asking.without_seen() if options.exclude_seen else asking
    if not len(asking):
        return None
    lists = catalogue_lists(trained_model, layout, vectors, catalogue, asking)
    rivals = Rivals(layout, task, unit_vectors(source, layout.prepared, name))
    ranked: dict[str, list[NDArray[np.int64]]] = {}
    for block, seen, best in lists:
        for model, own in {"model": best, **rivals.lists(block, seen, options.k)}.items():
            ranked.setdefault(model, []).append(own)
    metrics = {m: ranking_metrics(np.concatenate(b), asking.positives) for m, b in ranked.items()}
    return {
        "task": task, "k": options.k, "users": len(asking), "items": len(catalogue.ids), **metrics
    }  # fmt: skip


def catalogue_lists(
    trained_model: TrainedModel,
    layout: SnapshotColumns,
    vectors: np.ndarray,
    catalogue: CatalogueColumns,
    asking: AskingUsers,
) -> Iterator[tuple[AskingUsers, NDArray[np.bool_], NDArray[np.int64]]]:
    """Yields blocks of users, what each has seen bool[B, n], and the model's lists i64[B, k].

    Items have the columns of each user's own moment; without time, those of training.
    """
    if layout.timed:
        past = CatalogueAsOf(layout, catalogue, int(asking.moments.max()))
        items = catalogue.snapshot(layout, layout.blank(len(catalogue.ids)))
    else:
        past, items = None, items_at_end(layout)
    ranker = Ranker(trained_model, layout.name, vectors, items)
    for block in asking.blocks(ranker.users_per_block):
        seen = seen_mask(block.users, block.seen, len(items.ids)) & ranker.options.exclude_seen
        numeric = past.numeric(block.moments) if past else None
        scores, best, _ = ranker.top(block.users, seen, numeric)
        yield block, seen, np.where(np.isfinite(scores), best, -1)


class Rivals:
    """Rivals of the model's lists: two kinds of popularity, and nearest neighbours."""

    def __init__(self, layout: SnapshotColumns, task: str, vectors: NDArray[np.float32]) -> None:
        """`vectors` f32[n, D] are unit vectors of the items' texts."""
        self.training = training_popularity(layout, task)
        self.live = live_popularity(layout, task)
        self.vectors = vectors

    def lists(
        self, block: AskingUsers, seen: NDArray[np.bool_], k: int
    ) -> dict[str, NDArray[np.int64]]:
        """Returns i64[B, k] by rival: the best items of each user, without those seen."""
        scores = {
            "popularity": self.training.at(block.moments),
            "live_popularity": self.live.at(block.moments),
            "neighbours": neighbours(self.vectors, block.users.history),
        }
        return {name: top(np.where(seen, -np.inf, values), k) for name, values in scores.items()}


def rank_all_scenarios(models: dict[str, TrainedModel], source: Project) -> dict[str, Any]:
    """Returns recall and NDCG by scenario, of each scenario's model, measured side by side."""
    run = source.run
    task = task_of(rank_for_test_users, run)
    refs = {
        name: task.remote(trained_model, source, name, ensure_vectors(trained_model))
        for name, trained_model in models.items()
    }
    return {name: metrics for name, ref in refs.items() if (metrics := ray.get(ref))}
