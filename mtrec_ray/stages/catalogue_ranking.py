"""Recall and NDCG over the whole catalogue for test users, by Ray tasks.

A test user asks at the moment of their first test row, with the history and the statistics of that
row. Beside the model stand popularity (training positives of the item) and nearest neighbours by
vectors of the frozen, pretrained encoder (cosine with the mean of the history).
"""

from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from mtrec_ray.data.before_test import before_test, first_test_moments
from mtrec_ray.data.end_states import items_at_end, seen_pairs
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.snapshot import SnapshotColumns, blocks
from mtrec_ray.evaluation.catalogue_ranking import (
    main_task,
    neighbours,
    popularity,
    ranking_metrics,
    top,
)
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.ranker import Ranker, seen_mask
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors
from mtrec_ray.training.build import pretrained_vectors


def unit_vectors(project: Project, prepared: Prepared, name: str) -> NDArray[np.float32]:
    """f32[n, D]: unit vectors of the items' texts by the pretrained encoder as it came."""
    device = torch.device("cuda" if project.run.use_gpu else "cpu")
    vectors = pretrained_vectors(project, prepared, name, device)
    return torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()


def rank_for_test_users(
    trained_model: TrainedModel, source: Project, name: str, vectors: np.ndarray
) -> dict[str, Any] | None:
    """Recall and NDCG at k of the model, popularity and neighbours; None without a binary task.

    `source` is the project whose encoder is the pretrained one. In a Ray task.
    """
    project = trained_model.project
    layout = SnapshotColumns(trained_model.open_prepared(), name, project.scenarios[name])
    options, prepared = project.recommend, layout.prepared
    task = main_task(prepared, name, options.by.get(name, {}))
    if task is None or not options.ranking_users:
        return None
    users, positives = first_test_moments(layout, task, options.ranking_users)
    items, users = before_test(layout, items_at_end(layout), users)
    seen = seen_pairs(prepared, name, ("train", "valid"))
    left_out = seen_mask(users, seen, len(items.ids)) & options.exclude_seen
    positives = [p[~left_out[i, p]] for i, p in enumerate(positives)]
    asked = np.flatnonzero([len(p) > 0 for p in positives])
    users, left_out = users.take(asked), left_out[asked]
    positives = [positives[i] for i in asked]
    if not len(asked):
        return None
    ranker = Ranker(trained_model, name, vectors, items)
    popular = popularity(prepared, name, task)
    texts = unit_vectors(source, prepared, name)
    ranked: dict[str, list[NDArray[np.int64]]] = {"model": [], "popularity": [], "neighbours": []}
    start = 0
    for block in blocks(users, ranker.users_per_block):
        out = left_out[start : start + len(block)]
        start += len(block)
        scores, best, _ = ranker.top(block, out)
        ranked["model"].append(np.where(np.isfinite(scores), best, -1))
        popular_here = np.repeat(popular[None], len(block), 0)
        ranked["popularity"].append(top(np.where(out, -np.inf, popular_here), options.k))
        near = neighbours(texts, block.history)
        ranked["neighbours"].append(top(np.where(out, -np.inf, near), options.k))
    found = {
        model: ranking_metrics(np.concatenate(best), positives) for model, best in ranked.items()
    }
    return {"task": task, "k": options.k, "users": len(users), "items": len(items.ids), **found}


def rank_all_scenarios(models: dict[str, TrainedModel], source: Project) -> dict[str, Any]:
    """`judge` of each scenario's model, side by side."""
    run = source.run
    task = task_of(rank_for_test_users, run)
    refs = {
        name: task.remote(trained_model, source, name, ensure_vectors(trained_model))
        for name, trained_model in models.items()
    }
    return {name: found for name, ref in refs.items() if (found := ray.get(ref))}
