"""The loss of the retrieval side: a softmax of each positive over the candidates of the step.

The candidates of a scenario are the items of all its positives in the step, over all ranks and
micro-batches, and items drawn uniformly from its catalogue. They are the same on every rank.
Popular items are candidates more often, which is corrected: from the logit of a candidate the log
of the chance is subtracted that the step holds it beside the row's own positive (logQ, Yi et al.,
RecSys 2019). With

    s_j  share of item j among the training positives, P positives in the step, m draws of n items
    c_j  = 1 - (1 - s_j)^(P - 1) (1 - 1 / n)^m

the loss of a row is -log softmax_j(cosine(user, j) / temperature - log c_j) at its positive, which
learns the probability of each item of the catalogue, not only of those that are candidates. Left
out are the user's history and the same user's other positives of the step.

Letters: n items of a catalogue, C candidates, P positives of a step, N rows with a positive of one
micro-batch, H history items, E width of retrieval vectors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.data.shards import read_columns
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.retrieval import unit
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.model import Model
from mtrec_ray.training.collectives import gather_rows, sum_over_ranks, world
from mtrec_ray.training.item_vectors import Batch

RETRIEVAL = "retrieval/"  # before a scenario's name, which cannot hold a slash


@dataclass(frozen=True)
class Candidates:
    """Items of a scenario among which a step's positives are to be found; the same on all ranks.

    Attributes:
        items: i64[C], distinct catalogue rows, ascending.
        log_chance: f32[C], log of the chance that a step holds it beside a row's own positive.
        users: i64[P], of all positives of the step; `places`: i64[P], their items among `items`.
        dropped: bool[n], items whose ids are not seen in this step.
    """

    items: Tensor
    log_chance: Tensor
    users: Tensor
    places: Tensor
    dropped: Tensor

    @property
    def num_positives(self) -> int:
        """P."""
        return len(self.users)


def positives(facts: PreparedScenario, samples: Samples) -> Samples:
    """Returns the samples whose label of the main task is 1, or nearer to it after a teacher."""
    assert facts.main
    label = samples.labels[:, facts.tasks.index(facts.main)]
    return samples.some((label > 0.5).nonzero().squeeze(1))


def positive_counts(prepared: Prepared, device: torch.device) -> dict[str, Tensor]:
    """Returns f64[n] by scenario with a main task: training positives of each item.

    Each rank reads the labels of its share of the shards; every rank must call this.
    """
    rank, size = world()
    counts = {}
    for name, facts in prepared.scenarios.items():
        if facts.main:
            column, found = facts.tasks.index(facts.main), np.zeros(facts.num_items)
            paths = prepared.shard_paths(name, "train")[rank::size]
            for part in read_columns(paths, ("item", "labels")):
                hit = part["labels"][:, column] == 1
                found += np.bincount(part["item"][hit], minlength=facts.num_items)
            counts[name] = sum_over_ranks(torch.from_numpy(found).to(device))
    return counts


class CandidateDraws:
    """Draws the candidates of a run's steps, by seed, step and scenario alone."""

    def __init__(
        self,
        options: Model,
        facts: Mapping[str, PreparedScenario],
        counts: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        """`counts` f64[n] are the training positives of each item, by scenario."""
        self.options, self.facts, self.seed = options, facts, seed
        self.shares = {name: own / own.sum().clamp(min=1) for name, own in counts.items()}

    def of_step(self, batches: Sequence[Batch], step: int) -> dict[str, Candidates]:
        """Returns the candidates by scenario of a step; every rank must call this."""
        pairs = step_positives(self.facts, batches)
        return {
            name: self._candidates(name, pairs[pairs[:, 0] == number, 1:], number, step)
            for number, name in enumerate(self.facts)
            if name in self.shares
        }

    def _candidates(self, name: str, pairs: Tensor, number: int, step: int) -> Candidates:
        """Returns a scenario's candidates for the pairs i64[P, 2] of user and item of a step."""
        size, draws = self.facts[name].num_items, self.options.retrieval.negatives
        seed = (self.seed * 1_000_003 + step) * 1009 + number  # other numbers than the ranks'
        generator = torch.Generator().manual_seed(seed)
        dropped = torch.rand(size, generator=generator) < self.options.id_dropout
        some = torch.randint(size, (draws,), generator=generator)
        drawn = some if draws < size else torch.arange(size)
        items = torch.cat([pairs[:, 1], drawn.to(pairs.device)]).unique()
        chance = chances(self.shares[name][items], len(pairs), draws, size)
        return Candidates(
            items=items,
            log_chance=chance.log().float(),
            users=pairs[:, 0],
            places=torch.searchsorted(items, pairs[:, 1].contiguous()),
            dropped=dropped.to(pairs.device),
        )


def step_positives(facts: Mapping[str, PreparedScenario], batches: Sequence[Batch]) -> Tensor:
    """Returns i64[M, 3]: scenario's number, user and item of the positives of all ranks."""
    parts = []
    for number, (name, scenario) in enumerate(facts.items()):
        for batch in batches if scenario.main else []:
            rows = positives(scenario, batch[name])
            names = torch.full_like(rows.user, number)
            parts.append(torch.stack([names, rows.user, rows.candidate_items], 1))
    return gather_rows(torch.cat(parts))


def chances(shares: Tensor, num_positives: int, draws: int, size: int) -> Tensor:
    """Returns f64[C]: the chance that a step holds each item beside a row's own positive.

    `shares` f64[C] are the items' shares of all positives; `draws` of `size` items are drawn, which
    are all of them where there are no more.
    """
    if draws >= size:
        return torch.ones_like(shares)
    others = max(num_positives - 1, 0)
    log_missed = others * torch.log1p(-shares.clamp(max=1 - 1e-9)) + draws * math.log1p(-1 / size)
    return -torch.expm1(log_missed)


def hidden_candidates(candidates: Candidates, rows: Samples) -> Tensor:
    """Returns bool[N, C]: candidates that are no negatives of a row.

    These are the items of its history and its user's other positives. User 0 is not one person.
    """
    items, size = candidates.items, len(candidates.items)
    hidden = torch.zeros(len(rows.user), size + 1, dtype=torch.bool, device=items.device)
    history = rows.history_items
    place = torch.searchsorted(items, history).clamp(max=size - 1)
    hidden.scatter_(1, torch.where(items[place] == history, place, size), True)
    user = rows.user.unsqueeze(1)
    same = (user == candidates.users) & (user > 0)
    hidden.scatter_(1, torch.where(same, candidates.places, size), True)
    own = torch.searchsorted(items, rows.candidate_items).unsqueeze(1)
    return hidden.scatter_(1, own, False)[:, :size]


def softmax_loss_sum(
    cosines: Tensor, rows: Samples, candidates: Candidates, temperature: float
) -> Tensor:
    """Returns f32[]: the loss of rows, summed, for the cosines f32[N, C] with all candidates."""
    logits = cosines / temperature - candidates.log_chance
    logits = logits.masked_fill(hidden_candidates(candidates, rows), -torch.inf)
    own = torch.searchsorted(candidates.items, rows.candidate_items)
    return F.cross_entropy(logits, own, reduction="sum")


def retrieval_loss_sum(
    model: Recommender, name: str, rows: Samples, texts: tuple[Tensor, Tensor], drawn: Candidates
) -> Tensor:
    """Returns f32[]: the loss of rows with a positive, summed.

    `texts` are those of their distinct items, f32[U, D], and of the candidates, f32[C, D].
    """
    retrieval = model.retrieval
    assert retrieval is not None
    text, candidate_text = texts
    users = retrieval.sample_users(name, rows, text, drawn.dropped)
    items = unit(retrieval.states(name, drawn.items, candidate_text, drawn.dropped))
    with torch.autocast(users.device.type, enabled=False):  # cosines are divided by a small number
        cosines = users @ items.T
    return softmax_loss_sum(cosines, rows, drawn, model.options.retrieval.temperature)


def retrieval_loss(
    facts: Mapping[str, PreparedScenario],
    sums: Mapping[str, Tensor],
    drawn: Mapping[str, Candidates],
    weights: Tensor,
) -> Tensor:
    """Returns the sum over scenarios of lambda_i / sum lambda times the mean over its positives.

    `sums` holds a micro-batch's sums as `retrieval/NAME`; `weights` f32[K] are those of the tasks,
    which add up to that of their scenario. The numbers of positives are global.
    """
    total, start = weights.new_zeros(()), 0
    for name, scenario in facts.items():
        share = weights[start : start + len(scenario.tasks)].sum()
        start += len(scenario.tasks)
        if name in drawn:
            total = total + share * sums[RETRIEVAL + name] / max(drawn[name].num_positives, 1)
    return total
