"""The network that ranks as a module by itself: pairs of a user and an item to predictions.

Letters: N pairs, H history items, E items taken in other scenarios, D width of text vectors, W
width of item representations, F numeric columns of a row, M of the catalogue, T tasks, P
predictions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.model.elsewhere import Met
from mtrec_ray.model.history import similarity_kernels
from mtrec_ray.model.outcomes import OutcomeEmbedding
from mtrec_ray.model.profiles import Asking
from mtrec_ray.model.recommender import PairInputs, Recommender, predictions
from mtrec_ray.model.samples import Samples
from mtrec_ray.stages.exporting.user_side import MOST_TASKS, OutcomeTable

MAX_ROWS = 65_536  # of items that are represented at a time


class RankingPart(nn.Module):
    """A scenario's network, which reads items' representations instead of rows of a catalogue.

    Its layers are the model's own. Columns of the log's own events (a device, a query) are not
    known of a row that has not happened, and are left out.
    """

    def __init__(self, model: Recommender, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.inputs, self.facts = model.scenario_inputs(name), model.facts[name]
        outcomes = self.inputs.outcomes
        self.outcomes = OutcomeTable(outcomes) if isinstance(outcomes, OutcomeEmbedding) else None

    def forward(
        self,
        candidate: Tensor,
        candidate_text: Tensor,
        history: Tensor,
        history_text: Tensor,
        known: Tensor,
        ages: Tensor,
        columns: Tensor,
        user: Tensor | None = None,
        outcomes: Tensor | None = None,
        profile: Tensor | None = None,
        elsewhere: Tensor | None = None,
        elsewhere_text: Tensor | None = None,
        elsewhere_known: Tensor | None = None,
        elsewhere_ages: Tensor | None = None,
        candidate_elsewhere_text: Tensor | None = None,
    ) -> Tensor:
        """Returns predictions f32[N, P].

        Items `candidate` f32[N, W] and `history` f32[N, H, W], their texts [N, D] and [N, H, D];
        `known` bool[N, H], `ages` i64[N, H]; `columns` f32[N, F + M], NaN is null. Where the model
        has them, the numbers of users i64[N], `outcomes` i64[N, H] and `profile` f32[N, W]. What
        was taken in other scenarios f32[N, E, W], with its texts [N, E, D], bool[N, E] and ages
        i64[N, E], is compared with candidates by their texts there f32[N, D].
        """
        model, mask = self.model, known & self.model.options.history
        cosine = self._cosines(candidate_text, history_text)
        similarity = similarity_kernels(cosine, mask)
        row = columns[:, : len(self.facts.numeric_names)]
        if model.use_general_head:
            return predictions(self.facts, model.general_logits(self.name, similarity, row))
        interest = self._interest(candidate, history, ages, mask, outcomes)
        interest, identity = self._with_profile(interest, user, profile)
        parts = candidate_elsewhere_text, elsewhere, elsewhere_text, elsewhere_ages, elsewhere_known
        found = Met(interest, self._columns(columns, cosine, mask, outcomes))
        found = self._with_elsewhere(candidate, found, [p for p in parts if p is not None])
        pairs = PairInputs(
            user=found.user,
            candidate=candidate,
            columns=found.columns,
            identity=identity,
            similarity=similarity,
        )
        logits = model.assemble(self.name, pairs)
        logits = model.from_general(self.name, logits, similarity, row)
        return predictions(self.facts, logits)

    def _with_profile(
        self, interest: Tensor, user: Tensor | None, profile: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns histories and embeddings f32[N, W] of users, with their profiles."""
        identity = torch.zeros_like(interest)
        if user is not None:
            identity = self.model.user_vectors(self.name, user)
        return (interest, identity) if profile is None else (interest + profile, identity + profile)

    def _with_elsewhere(self, candidate: Tensor, found: Met, parts: Sequence[Tensor]) -> Met:
        """Returns users and columns with items taken elsewhere: their inputs, the mask last."""
        if not parts:
            return found
        own, items, texts, ages, known = parts
        seen = known & self.model.options.history
        side = self.model.elsewhere_side(self.name)
        met = side.of_vectors(candidate, own, items, texts, ages, seen)
        return Met(found.user + met.user, found.columns + met.columns)

    def _interest(
        self,
        candidate: Tensor,
        history: Tensor,
        ages: Tensor,
        mask: Tensor,
        outcomes: Tensor | None,
    ) -> Tensor:
        """Returns f32[N, W], histories as their candidates attend over them."""
        place = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        beside = None
        if self.outcomes is not None and outcomes is not None:
            beside = self.outcomes(outcomes)
        return self.model.interest(candidate, history.flatten(0, 1), place, ages, mask, beside)

    def _cosines(self, candidate: Tensor, history: Tensor) -> Tensor:
        """Returns the cosines f32[N, H] of texts; zeros where the model does not see them."""
        candidate, history = (self.model.visible_text(text) for text in (candidate, history))
        units = F.normalize(candidate, dim=-1), F.normalize(history, dim=-1)
        return torch.einsum("nd,nhd->nh", *units)

    def _columns(
        self, columns: Tensor, cosine: Tensor, mask: Tensor, outcomes: Tensor | None
    ) -> Tensor:
        found = self.inputs.columns(self.inputs.visible_columns(columns))
        if outcomes is None:
            return found
        return found + self.inputs.outcome_columns(cosine, mask, outcomes)


def ranking_problem(model: Recommender, name: str) -> str | None:
    """Returns why a scenario's network cannot be exported; None where it can."""
    if len(model.scenario_inputs(name).item_vectors):
        return "the network reads ready vectors of items (items.vectors)"
    if model.facts[name].history_outcomes and len(model.facts[name].tasks) > MOST_TASKS:
        return f"histories tell the outcomes of more than {MOST_TASKS} tasks"
    return None


@torch.no_grad()
def represented(model: Recommender, name: str, text: Tensor) -> Tensor:
    """Returns f32[n, W], the items of a scenario by their text vectors f32[n, D]."""
    rows = torch.arange(len(text), device=text.device)
    extras = model.scenario_inputs(name).item_extras(rows)
    return model.item_norm(model.project(model.visible_text(text)) + extras)


@torch.no_grad()
def inputs_of_pairs(
    model: Recommender, name: str, samples: Samples, text: Tensor
) -> dict[str, Tensor]:
    """Returns the inputs of the network for pairs, by name; text vectors f32[n, D] of all items."""
    inputs, items = model.scenario_inputs(name), represented(model, name, text)
    candidate, history = samples.candidate_items, samples.history_items
    known, met = history >= 0, history.clamp(min=0)
    found = {
        "candidate": items[candidate],
        "candidate_text": text[candidate],
        "history": items[met] * known.unsqueeze(2),
        "history_text": text[met] * known.unsqueeze(2),
        "known": known,
        "ages": samples.ages,
        "columns": torch.cat([samples.numeric, inputs.catalogue_raw[candidate]], 1),
    }
    space = model.facts[name].user_space
    if space in model.users:
        found["user"] = samples.user
    if inputs.outcomes is not None:
        found["outcomes"] = samples.outcomes
    if space in model.profiles:
        found["profile"] = model.profiles[space](Asking(samples.person, samples.moment))
    return found | inputs_of_taken(model, name, samples)


def inputs_of_taken(model: Recommender, name: str, samples: Samples) -> dict[str, Tensor]:
    """Returns the inputs of what the users of pairs took elsewhere; none where it is not read."""
    if name not in model.elsewhere:
        return {}
    side = model.elsewhere_side(name)
    items, ages = side.taken(Asking(samples.person, samples.moment))
    known, met = items >= 0, items.clamp(min=0)
    texts = side.texts_of(met.flatten())
    vectors = side.represented(met.flatten(), texts).unflatten(0, met.shape)
    return {
        "elsewhere": vectors * known.unsqueeze(2),
        "elsewhere_text": texts.unflatten(0, met.shape) * known.unsqueeze(2),
        "elsewhere_known": known,
        "elsewhere_ages": ages,
        "candidate_elsewhere_text": side.texts_of(samples.candidate_items + side.base),
    }


@torch.no_grad()
def represented_elsewhere(model: Recommender, name: str) -> tuple[Tensor, Tensor]:
    """Returns f32[n, W] and f32[n, D]: all items of a scenario's people, and their texts."""
    side = model.elsewhere_side(name)
    every = torch.arange(len(side.texts)).split(MAX_ROWS)
    texts = torch.cat([side.texts_of(rows) for rows in every])
    parts = zip(every, texts.split(MAX_ROWS), strict=True)
    return torch.cat([side.represented(rows, part) for rows, part in parts]), texts


def sizes_of(inputs: dict[str, Tensor]) -> dict[str, dict[int, torch.export.Dim]]:
    """Returns which dimensions of the network's inputs are of any size."""
    pairs, length = torch.export.Dim("pairs"), torch.export.Dim("history")
    taken = torch.export.Dim("elsewhere")
    second = dict.fromkeys(("history", "history_text", "known", "ages", "outcomes"), length)
    second |= dict.fromkeys((n for n in inputs if n.startswith("elsewhere")), taken)
    return {n: {0: pairs, 1: second[n]} if n in second else {0: pairs} for n in inputs}
