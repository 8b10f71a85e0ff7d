"""How good recommendations are: recall and NDCG over the whole catalogue on test positives.

A test user asks at the moment of their first test row, with the history and the statistics of that
row; items and the user's categories are as their last row before test met them, so that nothing
of test is known (without time, statistics are of training rows anyway). Beside the model stand
popularity (training positives of the item) and nearest neighbours by vectors of the frozen,
pretrained encoder (cosine with the mean of the history).
"""

from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from mtrec_ray.data import features
from mtrec_ray.data.features import NO_WINDOWS, WINDOWS_MS
from mtrec_ray.data.partition import FIRST_NEGATIVE
from mtrec_ray.data.shards import Arrays, Prepared, read_rows
from mtrec_ray.data.state import (
    PUBLISHED,
    Entries,
    Items,
    Layout,
    Users,
    blocks,
    items_at_end,
    lay_over,
    no_entries,
    seen_pairs,
    user_parts,
    users_at_end,
)
from mtrec_ray.learning.build import autocast_for, cache_folder
from mtrec_ray.learning.vectors import ItemVectors
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.schema import Project
from mtrec_ray.stages.cluster import task_of
from mtrec_ray.stages.recommend import Ranker, marks
from mtrec_ray.stages.vectors import Served, ensure_vectors

BATCH_ROWS = 65_536


def main_task(prepared: Prepared, name: str, by: dict[str, float]) -> str | None:
    """The binary task that recommendations are judged by: the heaviest of the blend."""
    facts = prepared.scenarios[name]
    binary = [t for t, kind in facts.kinds.items() if kind == "binary"]
    wanted = [t for t in sorted(by, key=lambda t: -by[t]) if t in binary and by[t] > 0]
    return (wanted or binary or [None])[0]


def rows_of(prepared: Prepared, name: str, split: str) -> Arrays:
    """All rows of a split, without their numbers."""
    parts = [
        {k: a[k] for k in ("row", "person", "item", "time", "labels")}
        for a in read_rows(prepared.shard_paths(name, split), BATCH_ROWS, 0, 2**62)
    ]
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def asking_users(layout: Layout, task: str, limit: int) -> tuple[Users, list[NDArray[np.int64]]]:
    """At most so many test users with positives (drawn by a fixed hash), and these, as items."""
    prepared, name = layout.prepared, layout.name
    facts = prepared.scenarios[name]
    rows = rows_of(prepared, name, "test")
    hit = (rows["labels"][:, facts.tasks.index(task)] == 1) & (rows["row"] < FIRST_NEGATIVE)
    who = np.unique(rows["person"][hit])
    who = np.sort(who[np.argsort(features.hash_ints(who, 0), kind="stable")][:limit])
    first = first_rows(rows, who)
    positives = [np.zeros(0, np.int64)] * len(who)
    order = np.argsort(rows["person"][hit], kind="stable")
    persons, items = rows["person"][hit][order], rows["item"][hit][order].astype(np.int64)
    for i, (a, b) in enumerate(zip(*bounds(persons, who), strict=True)):
        positives[i] = np.unique(items[a:b])
    return users_of_rows(layout, who, first), positives


def bounds(values: NDArray[Any], wanted: NDArray[Any]) -> tuple[NDArray[np.int64], ...]:
    """Where each wanted value starts and stops among sorted ones."""
    return np.searchsorted(values, wanted), np.searchsorted(values, wanted, side="right")


def first_rows(rows: Arrays, who: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row number of the earliest row of each person, sampled negatives left out."""
    real = np.flatnonzero(rows["row"] < FIRST_NEGATIVE)
    order = real[np.lexsort([rows["row"][real], rows["time"][real], rows["person"][real]])]
    start, _ = bounds(rows["person"][order], who)
    return rows["row"][order][start]


def users_of_rows(layout: Layout, who: NDArray[np.int64], row: NDArray[np.int64]) -> Users:
    """The users as some rows of test say that they were."""
    prepared, name = layout.prepared, layout.name
    wanted = np.sort(row)
    parts = []
    for arrays in read_rows(prepared.shard_paths(name, "test"), BATCH_ROWS, 0, 2**62):
        place = np.minimum(np.searchsorted(wanted, arrays["row"]), len(wanted) - 1)
        mine = wanted[place] == arrays["row"]
        parts.append({k: v[mine] for k, v in arrays.items()})
    found = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    order = np.argsort(found["person"])
    found = {k: v[order] for k, v in found.items()}
    assert (found["person"] == who).all()
    mine = layout.group(("user.", *features.CALENDAR_NAMES))
    return Users(
        ids=who.astype(str).astype(object),
        person=who,
        user=found["user"].astype(np.int64),
        history=found["history"].astype(np.int64),
        ages=found["history_age"].astype(np.int64),
        numeric=np.where(mine, found["numeric"], np.nan).astype(np.float32),
    )


# --- what was known before test --------------------------------------------------------------


def latest(keys: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row with the greatest time of each key, in the order of keys."""
    order = np.lexsort([time, keys])
    last = np.concatenate([np.diff(keys[order]) != 0, [True]])
    return order[last]


def before_test(layout: Layout, items: Items, users: Users) -> tuple[Items, Users]:
    """Items and users' categories as their last rows before test left them."""
    if not layout.timed:
        return items, users_with_end_entries(layout, users)
    own = layout.group(("item.", "category."))
    nothing = layout.spread("item", WINDOWS_MS, layout.nothing(WINDOWS_MS))
    for column in items.codes:
        key = f"category.{column}"
        nothing = lay_over(nothing, layout.spread(key, NO_WINDOWS, layout.nothing(NO_WINDOWS)))
    numeric = np.repeat(nothing, len(items.ids), 0)
    seen = np.full(len(items.ids), np.iinfo(np.int64).min)
    entries: dict[str, list[tuple[Any, ...]]] = {c: [] for c in items.codes}
    for split in ("train", "valid"):
        paths = layout.prepared.shard_paths(layout.name, split)
        for arrays in read_rows(paths, BATCH_ROWS, 0, 2**62):
            last = latest(arrays["item"].astype(np.int64), arrays["time"])
            item = arrays["item"][last]
            newer = arrays["time"][last] >= seen[item]
            seen[item[newer]] = arrays["time"][last][newer]
            numeric[item[newer]] = np.where(own, arrays["numeric"][last][newer], np.nan)
            for column, code in items.codes.items():
                entries[column].append(entry_rows(arrays, code, users.person))
    if PUBLISHED in layout.names:  # of the moment: the end's is near enough for all users
        numeric[:, layout.names.index(PUBLISHED)] = items.numeric[:, layout.names.index(PUBLISHED)]
    found = {c: newest_entries(layout, c, parts) for c, parts in entries.items()}
    before = Items(items.ids, items.known, numeric, items.codes, items.empty)
    return before, with_entries(users, found)


def entry_rows(
    arrays: Arrays, code: NDArray[np.int64], persons: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """Users' places, categories, times and numbers of the rows of some persons."""
    place = np.minimum(np.searchsorted(persons, arrays["person"]), len(persons) - 1)
    category = code[arrays["item"]]
    mine = (persons[place] == arrays["person"]) & (category >= 0)
    return place[mine], category[mine], arrays["time"][mine], arrays["numeric"][mine]


def newest_entries(layout: Layout, column: str, parts: list[tuple[Any, ...]]) -> Entries:
    """The latest of the rows of each user and category."""
    user, category, time, numeric = (np.concatenate(x) for x in zip(*parts, strict=True))
    if not len(user):
        return no_entries(layout)
    key = user * (int(category.max()) + 1) + category
    last = latest(key, time)
    mine = layout.group((f"user_category.{column}.",))
    values = np.where(mine, numeric[last], np.nan).astype(np.float32)
    return Entries(user[last].astype(np.int64), category[last].astype(np.int64), values)


def with_entries(users: Users, entries: dict[str, Entries]) -> Users:
    """The users with what they have of categories."""
    return Users(
        users.ids, users.person, users.user, users.history, users.ages, users.numeric, entries
    )


def users_with_end_entries(layout: Layout, users: Users) -> Users:
    """The users with their categories at the end, which without time is training alone."""
    found: dict[str, list[Entries]] = {c: [] for c in layout.scenario.items.counted}
    for part in user_parts(layout.prepared, layout.name):
        state = users_at_end(layout, part)
        place = np.minimum(np.searchsorted(users.person, state.person), len(users) - 1)
        mine = np.flatnonzero(users.person[place] == state.person)
        for column, own in state.take(mine).entries.items():
            found[column].append(Entries(place[mine][own.user], own.category, own.numeric))
    joined = {
        c: Entries(
            np.concatenate([e.user for e in parts]),
            np.concatenate([e.category for e in parts]),
            np.concatenate([e.numeric for e in parts]),
        )
        for c, parts in found.items()
    }
    return with_entries(users, joined)


# --- measures --------------------------------------------------------------------------------


def ranking_metrics(
    best: NDArray[np.int64], positives: list[NDArray[np.int64]]
) -> dict[str, float]:
    """Recall and NDCG at k of the ranked items i64[B, k] (-1: none); means over users.

    recall: share of a user's positives among the k. NDCG (Jarvelin and Kekalainen, 2002): the sum
    of 1 / log2(1 + rank) over the hits, over its largest value.
    """
    k = best.shape[1]
    gains = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gains)
    recall, ndcg = [], []
    for ranked, wanted in zip(best, positives, strict=True):
        hits = np.isin(ranked, wanted)
        recall.append(hits.sum() / len(wanted))
        ndcg.append((hits * gains).sum() / ideal[min(len(wanted), k) - 1])
    return {"recall": float(np.mean(recall)), "ndcg": float(np.mean(ndcg))}


def top(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """i64[B, k]: the highest scores f64[B, n] of each row, -1 where it is minus infinity."""
    k = min(k, scores.shape[1])
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.isfinite(np.take_along_axis(scores, best, 1)), best, -1)


def popularity(prepared: Prepared, name: str, task: str) -> NDArray[np.float64]:
    """f64[n]: training positives of each item."""
    facts = prepared.scenarios[name]
    rows = rows_of(prepared, name, "train")
    positive = (rows["labels"][:, facts.tasks.index(task)] == 1) & (rows["row"] < FIRST_NEGATIVE)
    return np.bincount(rows["item"][positive], minlength=facts.num_items).astype(np.float64)


@torch.no_grad()
def frozen_vectors(project: Project, prepared: Prepared, name: str) -> NDArray[np.float32]:
    """f32[n, D]: unit vectors of the items' texts by the pretrained encoder as it came."""
    options = project.model.encoder.model_copy(update={"trainable": "none", "gather": None})
    device = torch.device("cuda" if project.run.use_gpu else "cpu")
    encoder = TextEncoder(options).to(device).eval()
    catalogues = {name: prepared.catalogue(name)}
    vectors = ItemVectors(encoder, catalogues, device, autocast_for(device, "auto"))
    vectors.compute_frozen(cache_folder(project))
    assert vectors.cache is not None
    return torch.nn.functional.normalize(vectors.cache, dim=1).cpu().numpy()


def neighbours(vectors: NDArray[np.float32], history: NDArray[np.int64]) -> NDArray[np.float64]:
    """f64[B, n]: cosines of all items with the mean of each history; 0 without one."""
    known = (history >= 0)[..., None]
    mean = (vectors[history.clip(0)] * known).sum(1) / np.maximum(known.sum(1), 1)
    return (mean @ vectors.T).astype(np.float64)


def judge(served: Served, source: Project, name: str, vectors: np.ndarray) -> dict[str, Any] | None:
    """Recall and NDCG at k of the model, popularity and neighbours; None without a binary task.

    `source` is the project whose encoder is the pretrained one. In a Ray task.
    """
    project = served.parsed
    layout = Layout(served.open_prepared(), name, project.scenarios[name])
    options, prepared = project.recommend, layout.prepared
    task = main_task(prepared, name, options.by.get(name, {}))
    if task is None or not options.judged_users:
        return None
    users, positives = asking_users(layout, task, options.judged_users)
    items, users = before_test(layout, items_at_end(layout), users)
    seen = seen_pairs(prepared, name, ("train", "valid"))
    left_out = marks(users, seen, len(items.ids)) & options.exclude_seen
    positives = [p[~left_out[i, p]] for i, p in enumerate(positives)]
    asked = np.flatnonzero([len(p) > 0 for p in positives])
    users, left_out = users.take(asked), left_out[asked]
    positives = [positives[i] for i in asked]
    if not len(asked):
        return None
    ranker = Ranker(served, name, vectors, items)
    popular = popularity(prepared, name, task)
    texts = frozen_vectors(source, prepared, name)
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


def judge_all(models: dict[str, Served], source: Project) -> dict[str, Any]:
    """`judge` of each scenario's model, side by side."""
    run = source.run
    task = task_of(judge, run)
    refs = {
        name: task.remote(served, source, name, ensure_vectors(served))
        for name, served in models.items()
    }
    return {name: found for name, ref in refs.items() if (found := ray.get(ref))}
