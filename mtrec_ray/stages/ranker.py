"""A trained model with its whole catalogue, which scores candidates for users."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.candidates.scores import VectorScores
from mtrec_ray.candidates.search_index import SearchIndex
from mtrec_ray.data.arrays import Bools, Float32s
from mtrec_ray.data.interactions import times_sampled
from mtrec_ray.data.snapshot import ItemSnapshot, SnapshotColumns, UserSnapshot
from mtrec_ray.model.catalogue_scorer import CatalogueScorer, blend
from mtrec_ray.model.recommender import Recommender, predictions
from mtrec_ray.stages.trained_model import TrainedModel, load_with_vectors
from mtrec_ray.training.item_vectors import ItemVectors

NETWORK, SAMPLED, RETRIEVAL = "network", "sampled", "retrieval"  # names of scores
LEAST = 1e-6  # of a probability, and of one less it, in log odds

LoadedModel = tuple[Recommender, ItemVectors]


def retrieval_vectors(model: Recommender, name: str, text: torch.Tensor) -> Float32s | None:
    """Returns f32[n, E]: items of a scenario, by their texts f32[n, D]; None without retrieval."""
    if model.retrieval is None or name not in model.retrieval.extras:
        return None
    return model.retrieval.item_vectors(name, text).cpu().numpy()


@dataclass(frozen=True)
class Block:
    """Candidates of some users as a table: pairs i64[b, C] of all candidates, -1 where none."""

    users: slice
    pairs: NDArray[np.int64]


class Ranker:
    """A scenario's model with its whole catalogue; it scores candidates of any users."""

    def __init__(
        self,
        trained_model: TrainedModel,
        name: str,
        vectors: np.ndarray,
        items: ItemSnapshot,
        index: SearchIndex | None = None,
        loaded: LoadedModel | None = None,
    ) -> None:
        """`index` finds the retrieval vectors of a large catalogue; without it all are scored.

        `loaded`: the model with its item vectors, where they are in memory already.
        """
        project = trained_model.project
        self.model, item_vectors = loaded or load_with_vectors(trained_model, vectors)
        self.layout = SnapshotColumns(trained_model.open_prepared(), name, project.scenarios[name])
        self.items, self.options, self.name = items, project.recommend, name
        self.facts = self.model.facts[name]
        self.by = self.options.by.get(name) or {self.facts.main or self.facts.tasks[0]: 1.0}
        if self.model.use_general_head:  # it tells items apart by the main task alone
            self.by = {self.facts.main or self.facts.tasks[0]: 1.0}
        self.sampled = log_times_sampled(self.layout)
        start = item_vectors.bases[name]
        assert item_vectors.cache is not None
        self.text = item_vectors.cache[start : start + self.facts.num_items]
        self.item_vectors, self.index = retrieval_vectors(self.model, name, self.text), index

    @cached_property
    def ranking(self) -> CatalogueScorer:
        """The network over the whole catalogue."""
        with torch.no_grad():
            return CatalogueScorer(self.model, self.name, self.text, self.items)

    def build_index(self, allowed: Bools | None = None) -> SearchIndex | None:
        """Index the retrieval vectors of a large catalogue, of the items that bool[n] marks."""
        if self.item_vectors is not None:
            self.index = SearchIndex.of(self.item_vectors, allowed)
        return self.index

    def retrieval_scores(self, users: UserSnapshot) -> dict[str, VectorScores]:
        """Returns `retrieval`, cosines of users with items; empty without that side."""
        if self.item_vectors is None or self.model.retrieval is None:
            return {}
        vectors = self.model.retrieval.user_vectors(self.name, users, self.text).cpu().numpy()
        return {RETRIEVAL: VectorScores(vectors, self.item_vectors, self.index)}

    @torch.no_grad()
    def predictions(
        self, users: UserSnapshot, candidates: Candidates, numeric: Float32s | None = None
    ) -> Float32s:
        """Returns f32[M, P], the predictions of each candidate.

        Candidates have the columns of their snapshot, or `numeric` f32[M, F], those of the moment
        at which their user asks.
        """
        width = self.facts.num_predictions
        found = np.zeros((len(candidates), width), np.float32)
        for block in blocks(candidates, self.options.pairs_per_block):
            own = users.of(block.users.start, block.users.stop)
            own_numeric = None if numeric is None else torch.from_numpy(numeric[block.pairs])
            items = torch.from_numpy(candidates.item[block.pairs])
            device = self.ranking.unit.device
            moved = None if own_numeric is None else own_numeric.to(device)
            logits = self.ranking.logits(own, items.to(device), moved)
            values = predictions(self.facts, logits.flatten(0, 1)).cpu().numpy()
            real = block.pairs >= 0
            found[block.pairs[real]] = values.reshape(*block.pairs.shape, width)[real]
        return found

    def blended(self, predicted: Float32s) -> Float32s:
        """Returns f32[M], the weighted sum of the tasks' predictions f32[M, P]."""
        facts = self.facts
        return blend(torch.from_numpy(predicted), facts.tasks, facts.given, self.by).numpy()

    def scores(self, predicted: Float32s, item: NDArray[np.int64]) -> dict[str, Float32s]:
        """Returns f32[M] by name: what the network says of candidates, for the list model.

        A probability that was learned beside sampled negatives is relative to how they were drawn:
        p / (1 - p) = P(taken) / (c q(item)). `network` is the log odds, to which log q is added
        where `prepare` drew by popularity. Where the log holds the negatives, q is not known and
        may change with time: `sampled`, log(1 + times) as a negative, lets the list model undo it.
        """
        found = {NETWORK: self.log_odds(predicted)}
        negatives = self.layout.scenario.negatives
        if negatives is None or negatives.source == "uniform":
            return found
        if negatives.source == "log":
            return found | {SAMPLED: self.sampled[item]}
        return {NETWORK: found[NETWORK] + self.sampled[item]}

    def log_odds(self, predicted: Float32s) -> Float32s:
        """Returns f32[M], log odds of the blended probability; another blend as it is."""
        p = self.blended(predicted)
        if not self.is_probability:
            return p
        p = p.clip(LEAST, 1 - LEAST)
        return np.log(p) - np.log1p(-p)

    @property
    def is_probability(self) -> bool:
        """Whether the score is the probability of one task, with those above it."""
        return len(self.by) == 1 and self.facts.kinds[next(iter(self.by))] == "binary"


def log_times_sampled(layout: SnapshotColumns) -> Float32s:
    """Returns f32[n]: log(1 + times) that training has each item as a sampled negative."""
    negatives = layout.scenario.negatives
    if negatives is None or negatives.source == "uniform":  # q is the same for all items
        return np.zeros(layout.facts.num_items, np.float32)
    return np.log1p(times_sampled(layout)).astype(np.float32)


def blocks(candidates: Candidates, pairs_per_block: int) -> list[Block]:
    """Returns tables of candidates, each of users in a row, with at most so many pairs.

    A user with more candidates than that has a block to himself.
    """
    starts = candidates.starts
    sizes = np.diff(starts)
    found, first = [], 0
    while first < len(sizes):
        longest = np.maximum.accumulate(np.maximum(sizes[first:], 1))
        area = longest * np.arange(1, len(longest) + 1)
        num = max(int(np.searchsorted(area, pairs_per_block, side="right")), 1)
        users = slice(first, first + num)
        place = np.arange(int(longest[num - 1]))
        pairs = starts[users, None] + place
        found.append(Block(users, np.where(place < sizes[users, None], pairs, -1)))
        first += num
    return found
