"""A trained model with its whole catalogue, which ranks the items for users."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtrec_ray.data.snapshot import ItemSnapshot, SnapshotColumns, UserSnapshot, blocks
from mtrec_ray.model.catalogue_scorer import CatalogueScorer, best_items, blend
from mtrec_ray.model.recommender import predictions
from mtrec_ray.stages.trained_model import TrainedModel, load_with_vectors

# Persons and items.
SeenPairs = tuple[np.ndarray, np.ndarray]


NO_PAIRS: SeenPairs = (np.zeros(0, np.int64), np.zeros(0, np.int64))


class Ranker:
    """A scenario's model with its whole catalogue; it ranks for the users of any partition."""

    def __init__(
        self, trained_model: TrainedModel, name: str, vectors: np.ndarray, items: ItemSnapshot
    ) -> None:
        project = trained_model.project
        self.model, item_vectors = load_with_vectors(trained_model, vectors)
        self.layout = SnapshotColumns(trained_model.open_prepared(), name, project.scenarios[name])
        self.items, self.options, self.name = items, project.recommend, name
        self.facts = self.model.facts[name]
        self.by = self.options.by.get(name) or {self.facts.main or self.facts.tasks[0]: 1.0}
        if self.model.use_general_head:  # it tells items apart by the main task alone
            self.by = {self.facts.main or self.facts.tasks[0]: 1.0}
        start = item_vectors.bases[name]
        assert item_vectors.cache is not None
        text_vectors = item_vectors.cache[start : start + self.facts.num_items]
        with torch.no_grad():
            self.ranking = CatalogueScorer(self.model, name, text_vectors, items)

    @property
    def users_per_block(self) -> int:
        """Users that are scored at a time; one, where even one has too many pairs."""
        return max(self.options.pairs_per_block // max(len(self.items.ids), 1), 1)

    @torch.no_grad()
    def scores(
        self, catalogue: CatalogueScorer, users: UserSnapshot, items: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns blended scores f32[B, m] of some items, and predictions f32[B, m, T]."""
        logits = catalogue.logits(users, items)
        b, m, t = logits.shape
        predicted = predictions(self.facts, logits.view(b * m, t)).view(b, m, t)
        return blend(predicted, self.facts.tasks, self.facts.given, self.by), predicted

    def top(
        self, users: UserSnapshot, seen: np.ndarray, numeric: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns scores f32[B, k], items i64[B, k], predictions f32[B, k, T] of users' best items.

        Items that `seen` bool[B, n] marks are left out; where fewer than k remain, the score is
        minus infinity. Items are scored block by block, with the columns of their snapshot, or with
        `numeric` f32[B, n, F], those of the moment at which each user asks.
        """
        catalogue = self.ranking if numeric is None else self.ranking.as_of(numeric)
        step = max(self.options.pairs_per_block // max(len(users), 1), 1)
        left_out = torch.from_numpy(seen).to(self.ranking.unit.device)
        parts = []
        for start in range(0, len(self.items.ids), step):
            items = slice(start, min(start + step, len(self.items.ids)))
            score, predicted = self.scores(catalogue, users, items)
            values, best = best_items(score, left_out[:, items], self.options.k)
            parts.append((values, best + start, gather_items(predicted, best)))
        score, items, predicted = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        values, place = score.topk(min(self.options.k, score.shape[1]), dim=1)
        chosen = gather_items(predicted, place)
        return values.cpu().numpy(), items.gather(1, place).cpu().numpy(), chosen.cpu().numpy()

    def best(self, users: UserSnapshot, seen: np.ndarray) -> pa.Table:
        """Returns the k best items of each user, without those that `seen` bool[B, n] marks."""
        values, best, predicted = self.top(users, seen)
        user, rank = np.nonzero(np.isfinite(values))
        item = best[user, rank]
        columns: dict[str, Any] = {
            "user": pa.array(users.ids[user], pa.string()),
            "rank": (rank + 1).astype(np.int32),
            "item": pa.array(self.items.ids[item], pa.string()),
            "score": values[user, rank],
        }
        each = predicted[user, rank]
        for i, (task, kind) in enumerate(self.facts.kinds.items()):
            word = "probability" if kind == "binary" else "prediction"
            columns[f"{word}.{task}"] = each[:, i]
        columns["new_user"] = users.user[user] == 0  # no training row
        columns["new_item"] = ~self.items.in_training[item]
        return pa.table(columns)

    def rank_all(self, users: UserSnapshot, seen: SeenPairs) -> pa.Table:
        """Returns the best items of many users, in blocks of about equally long histories."""
        order = np.argsort((users.history >= 0).sum(1), kind="stable")
        users = users.take(order)
        num = len(self.items.ids)
        parts = blocks(users, self.users_per_block)
        tables = [self.best(block, seen_mask(block, seen, num)) for block in parts]
        return pa.concat_tables(tables)


def gather_items(predicted: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Returns f32[B, k, T]: predictions f32[B, m, T] of the items i64[B, k]."""
    return predicted.gather(1, best.unsqueeze(2).expand(-1, -1, predicted.shape[2]))


def seen_mask(users: UserSnapshot, seen: SeenPairs, num_items: int) -> np.ndarray:
    """Returns bool[B, n]: which items each user has seen, from persons [m] and items [m]."""
    mask = np.zeros((len(users), num_items), bool)
    persons, items = seen
    order = np.argsort(users.person, kind="stable")
    place = np.searchsorted(users.person[order], persons)
    place = np.minimum(place, len(order) - 1)
    is_seen_by_user = users.person[order][place] == persons
    mask[order[place[is_seen_by_user]], items[is_seen_by_user]] = True
    return mask
