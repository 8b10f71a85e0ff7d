"""The joint model: item texts, histories, ids and statistics to logits of scenarios and tasks.

Letters: N samples of a scenario, U its distinct items in the batch, H history items, D width of
text vectors, W width of item representations, K similarity kernels, F numeric columns, T tasks, L
logits of all tasks (`PreparedScenario.logits_of`: one a task, of a multiclass task one a class), P
predictions: one a task, and then the probabilities of classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.elsewhere import Timeline
from mtrec_ray.data.kinds import LARGEST_LOG, LEAST_COUNT
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.profiles import Profiles
from mtrec_ray.model.elsewhere import Elsewhere, elsewhere_of
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.general_head import GeneralHead, common_columns
from mtrec_ray.model.heads import Head
from mtrec_ray.model.history import NUM_KERNELS, HistoryAttention, cosines, similarity_kernels
from mtrec_ray.model.inputs import ScenarioInputs, drop_ids, id_embedding
from mtrec_ray.model.profiles import Asking, profile_inputs
from mtrec_ray.model.retrieval import Retrieval
from mtrec_ray.model.samples import Samples
from mtrec_ray.model.sharing import SharingInputs, build_sharing
from mtrec_ray.project.model import Model

GENERAL = "general/"  # before a scenario's name, which cannot hold a slash
NUM_SIMILARITIES = 4 * NUM_KERNELS
LEAST_RATE = 1e-4  # of a class, whose logit is finite
NO_PROFILES: Mapping[str, Profiles] = {}
NO_TIMELINES: Mapping[str, Timeline] = {}


@dataclass(frozen=True)
class PairInputs:
    """What the shared layers and the heads read of N pairs of a user and a candidate item.

    Attributes:
        user: f32[N, W], the history, as the candidate attends over it, and the profile.
        candidate: f32[N, W], the item.
        columns: f32[N, W], numeric columns and categories.
        identity: f32[N, W], the user's embedding and profile.
        similarity: f32[N, 4 K], kernels of the cosines of candidate and history.
    """

    user: Tensor
    candidate: Tensor
    columns: Tensor
    identity: Tensor
    similarity: Tensor


class Recommender(nn.Module):
    """The layers above the encoder, and the encoder."""

    def __init__(
        self,
        options: Model,
        scenarios: Mapping[str, PreparedScenario],
        catalogues: Mapping[str, Catalogue],
        encoder: TextEncoder,
        profiles: Mapping[str, Profiles] = NO_PROFILES,
        timelines: Mapping[str, Timeline] = NO_TIMELINES,
    ) -> None:
        """`profiles`: by id space with a table of users; `timelines`: by scenario with one."""
        super().__init__()
        self.options = options
        self.facts = dict(scenarios)
        self.encoder = encoder
        width = options.width
        self.project = nn.Linear(encoder.width, width)
        self.item_norm = nn.LayerNorm(width)
        self.interest = HistoryAttention(width, options.attention_heads)
        self.scenario_vectors = nn.ParameterDict(
            {n: nn.Parameter(torch.zeros(width)) for n in scenarios}
        )
        self.inputs = nn.ModuleDict(
            {n: ScenarioInputs(f, catalogues[n], options) for n, f in scenarios.items()}
        )
        spaces = {f.user_space: f.num_users for f in scenarios.values()}
        self.users = nn.ModuleDict(
            {n: id_embedding(size, width) for n, size in spaces.items()} if options.user_ids else {}
        )
        self.similarity = nn.Linear(NUM_SIMILARITIES, width, bias=False)
        tasks = {n: f.tasks for n, f in scenarios.items()}
        self.sharing = build_sharing(options, 6 * width + NUM_SIMILARITIES, 2 * width, tasks)
        self.heads = nn.ModuleDict(
            {n: self._heads(f, options.hidden[-1] + width) for n, f in scenarios.items()}
        )
        has_main = any(f.main for f in scenarios.values())
        self.general = GeneralHead() if options.general and has_main else None
        self.use_general_head = False
        # Whether main tasks add what the general head says: a new scenario's own layers start at 0.
        self.starts_from_general = False
        self.retrieval: Retrieval | None = None
        with torch.random.fork_rng([]):  # the others' random numbers stay the same
            if options.retrieves and has_main:
                self.retrieval = Retrieval(options, scenarios, catalogues, encoder.width, profiles)
            self.profiles = profile_inputs(profiles, width, options.bins, width**-0.5)
            self.elsewhere = elsewhere_of(timelines, options)

    def _heads(self, facts: PreparedScenario, num_inputs: int) -> nn.ModuleDict:
        """Returns heads that start at base rates (binary, multiclass) or at means of labels."""
        options = self.options
        return nn.ModuleDict(
            {
                task: Head(
                    num_inputs, options.head_hidden, base_logits(facts, task), options.dropout
                )
                for task in facts.tasks
            }
        )

    def forward(
        self, samples: Mapping[str, Samples], vectors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns logits f32[N, L] by scenario, and the general head's while it learns.

        Text vectors are f32[U, D] of each scenario's distinct items, or (layout `pair`) f32[N, D]
        of its samples. Outputs of a regression (a duration) are in units of the standard deviation
        of training labels (of their logarithms), around their mean; those of a count are
        logarithms. The general head's logits f32[N] of main tasks are `general/NAME`.
        """
        logits: dict[str, Tensor] = {}
        general: dict[str, Tensor] = {}
        for name, rows in samples.items():
            cosine = self.sample_cosines(rows, vectors[name])
            similarity = self.sample_similarity(rows, cosine)
            logits[name] = self._logits(name, rows, vectors[name], cosine, similarity)
            if self.training and self.general_head_learns and self.facts[name].main:
                general[GENERAL + name] = self.main_task_logits(name, similarity, rows.numeric)
        return logits | general

    def score(
        self, name: str, samples: Samples, vectors: Tensor, *, through_cosines: bool = False
    ) -> Tensor:
        """Returns the logits f32[N, L] of one scenario.

        `through_cosines`: cosines of texts carry gradients into their vectors, too.
        """
        cosine = self.sample_cosines(samples, vectors, carry_gradients=through_cosines)
        similarity = self.sample_similarity(samples, cosine)
        return self._logits(name, samples, vectors, cosine, similarity)

    def _logits(
        self, name: str, samples: Samples, vectors: Tensor, cosine: Tensor, similarity: Tensor
    ) -> Tensor:
        if self.use_general_head:
            return self.general_logits(name, similarity, samples.numeric)
        pairs = self._pair_inputs(name, samples, vectors, cosine, similarity)
        logits = self.assemble(name, pairs)
        return self.from_general(name, logits, similarity, samples.numeric)

    def assemble(self, name: str, pairs: PairInputs) -> Tensor:
        """Returns the logits f32[N, L] of a scenario's pairs: shared layers, then heads.

        Rows of a batch and blocks of a catalogue (`CatalogueScorer`) both end here.
        """
        user, candidate, similarity = pairs.user, pairs.candidate, pairs.similarity
        columns = pairs.columns + self.similarity(similarity)
        scenario = self.scenario_vectors[name].expand_as(candidate)
        parts = [user, candidate, user * candidate, columns, scenario, pairs.identity, similarity]
        shared = self.sharing(
            name, SharingInputs(torch.cat(parts, 1), identity=pairs.identity, candidate=candidate)
        )
        heads = self.heads[name]
        assert isinstance(heads, nn.ModuleDict)
        logits = [
            head(torch.cat([x, columns], 1)) for head, x in zip(heads.values(), shared, strict=True)
        ]
        return torch.cat(logits, 1)

    def _pair_inputs(
        self, name: str, samples: Samples, vectors: Tensor, cosine: Tensor, similarity: Tensor
    ) -> PairInputs:
        """Returns what the shared layers and heads read of a scenario's samples."""
        inputs = self.scenario_inputs(name)
        items, candidate = self._items_and_candidates(inputs, samples, self.visible_text(vectors))
        history, mask = samples.history.clamp(min=0), self.visible_history(samples.history)
        beside = inputs.outcome_vectors(samples.outcomes)
        user = self.interest(candidate, items, history, samples.ages, mask, beside)
        identity = self.user_vectors(name, samples.user)
        asking = Asking(samples.person, samples.moment, samples.given)
        user, identity = self.with_profiles(name, asking, user, identity)
        columns = inputs.row_columns(samples, mask)
        columns = columns + inputs.outcome_columns(cosine, mask, samples.outcomes)
        if name in self.elsewhere:
            met = self.elsewhere_side(name).of_samples(asking, candidate, samples.candidate_items)
            user, columns = user + met.user, columns + met.columns
        return PairInputs(
            user=user,
            candidate=candidate,
            columns=columns,
            identity=identity,
            similarity=similarity,
        )

    def _items_and_candidates(
        self, inputs: ScenarioInputs, samples: Samples, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the distinct items f32[U, W] and the samples' candidates f32[N, W]."""
        extras = inputs.item_extras(samples.items)
        if self.options.layout == "pair":  # a text of its own for each sample, none for an item
            candidate = self.item_norm(self.project(vectors) + extras[samples.candidate])
            return self.item_norm(extras), candidate
        items = self.item_norm(self.project(vectors) + extras)
        return items, items[samples.candidate]

    def scenario_inputs(self, name: str) -> ScenarioInputs:
        """Returns a scenario's own embeddings and columns."""
        inputs = self.inputs[name]
        assert isinstance(inputs, ScenarioInputs)
        return inputs

    def elsewhere_side(self, name: str) -> Elsewhere:
        """Returns what reads the items that a scenario's users took in others."""
        side = self.elsewhere[name]
        assert isinstance(side, Elsewhere)
        return side

    def visible_text(self, vectors: Tensor) -> Tensor:
        """Returns text vectors as towers and general head see them: zeros with `text: false`."""
        return vectors if self.options.text else torch.zeros_like(vectors)

    def visible_history(self, history: Tensor) -> Tensor:
        """Returns which history items [.., H] (-1: none) are seen: none with `history: false`."""
        return (history >= 0) & self.options.history

    def sample_cosines(
        self, samples: Samples, vectors: Tensor, *, carry_gradients: bool = False
    ) -> Tensor:
        """Returns the cosines f32[N, H] of the texts of candidates and histories.

        In training they carry no gradient into the text vectors. They are zeros where one text
        holds both.
        """
        if self.options.layout == "pair":
            return vectors.new_zeros(samples.history.shape)
        text = self.visible_text(vectors if carry_gradients else vectors.detach())
        return cosines(text, samples.candidate, samples.history.clamp(min=0))

    def sample_similarity(self, samples: Samples, cosine: Tensor) -> Tensor:
        """Returns kernels f32[N, 4 K] of cosines [N, H]; zeros where one text holds both."""
        if self.options.layout == "pair":
            return cosine.new_zeros(len(cosine), NUM_SIMILARITIES)
        return similarity_kernels(cosine, self.visible_history(samples.history))

    def user_vectors(self, name: str, user: Tensor) -> Tensor:
        """Returns embeddings f32[N, W] of users i64[N]; zeros without a table of users."""
        space = self.facts[name].user_space
        if space not in self.users:
            return self.scenario_vectors[name].new_zeros(len(user), self.options.width)
        return self.users[space](drop_ids(user, self.options.id_dropout, self.training))

    def with_profiles(
        self, name: str, asking: Asking, user: Tensor, identity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns histories and embeddings f32[N, .., W] with the profiles of those who ask.

        Without a table of users they stay as they are.
        """
        space = self.facts[name].user_space
        if space not in self.profiles:
            return user, identity
        profile = self.profiles[space](asking).view(len(user), *[1] * (user.ndim - 2), -1)
        return user + profile, identity + profile

    @property
    def general_head_learns(self) -> bool:
        """Whether the general head learns."""
        return self.general is not None and next(self.general.parameters()).requires_grad

    def from_general(
        self, name: str, logits: Tensor, similarity: Tensor, numeric: Tensor
    ) -> Tensor:
        """Returns logits f32[N, L], the main task's on top of what the general head says of it.

        Where the model does not start from the general head, they stay as they are.
        """
        facts = self.facts[name]
        if not self.starts_from_general or not facts.main:
            return logits
        is_main = torch.tensor([t == facts.main for t in facts.logit_tasks], device=logits.device)
        return logits + self.general_says(name, similarity, numeric)[:, None] * is_main

    def general_says(self, name: str, similarity: Tensor, numeric: Tensor) -> Tensor:
        """Returns f32[N], by how much the general head moves the main task's base rate.

        From similarity kernels f32[N, 4 K] and numeric columns f32[N, F].
        """
        inputs, facts = self.scenario_inputs(name), self.facts[name]
        assert self.general is not None
        visible = inputs.visible_columns(numeric)
        return self.general(similarity, inputs.columns, visible, common_columns(facts))

    def main_task_logits(self, name: str, similarity: Tensor, numeric: Tensor) -> Tensor:
        """Returns the general head's logits f32[N] of a scenario's main task."""
        facts = self.facts[name]
        assert facts.main
        says = self.general_says(name, similarity, numeric)
        return says + base_logits(facts, facts.main)[0]

    def general_logits(self, name: str, similarity: Tensor, numeric: Tensor) -> Tensor:
        """Returns logits f32[N, L] without a model of the scenario.

        The main task has the general head's logits, other tasks their base rates or mean.
        """
        facts = self.facts[name]
        logits = [
            self.main_task_logits(name, similarity, numeric)[:, None]
            if task == facts.main
            else torch.tensor(base_logits(facts, task), device=numeric.device).expand(
                len(numeric), -1
            )
            for task in facts.tasks
        ]
        return torch.cat(logits, 1)


def scenario_parameters(model: Recommender, name: str) -> list[str]:
    """Returns the full names of the modules and parameters that a scenario has for itself.

    They are the entries of its name in the model's dictionaries. Users and their profiles have the
    name of a user space, which is a scenario's name where no other scenario shares it.
    """
    return [
        f"{full}.{name}" if full else name
        for full, module in model.named_modules()
        if isinstance(module, nn.ModuleDict | nn.ParameterDict) and name in module
    ]


def is_below(full: str, parts: Sequence[str]) -> bool:
    """Returns whether a full name is one of some parts or lies in one of them."""
    return any(full == part or full.startswith(part + ".") for part in parts)


def base_logits(facts: PreparedScenario, task: str) -> list[float]:
    """Returns the logit of the training base rate, and the logarithm of a count's mean.

    Of a multiclass task the logarithms of its classes' rates. 0 for a regression and a duration,
    whose mean on the scale of the fit is 0.
    """
    if task in facts.classes:
        return [math.log(max(rate, LEAST_RATE)) for rate in facts.classes[task].rates]
    if facts.kinds[task] == "count":
        return [math.log(max(facts.label_means[task], LEAST_COUNT))]
    if facts.kinds[task] != "binary":
        return [0.0]
    rate = min(max(facts.label_means[task], LEAST_RATE), 1 - LEAST_RATE)
    return [math.log(rate / (1 - rate))]


def predictions(facts: PreparedScenario, logits: Tensor) -> Tensor:
    """Returns f32[N, P] of logits f32[N, L].

    By task a probability, a number in the label's own units, or the expected gain of the classes;
    then the probabilities of each multiclass task's classes.
    """
    columns, classes = [], []
    for task in facts.tasks:
        own = logits[:, facts.logits_of(task)].float()
        if task in facts.classes:
            classes.append(own.softmax(1))
            columns.append(classes[-1] @ own.new_tensor(facts.classes[task].gains))
        else:
            columns.append(prediction(facts, task, own[:, 0]))
    return torch.cat([torch.stack(columns, 1), *classes], 1)


def prediction(facts: PreparedScenario, task: str, logit: Tensor) -> Tensor:
    """Returns f32[N]: what a task's logits f32[N] say."""
    match facts.kinds[task]:
        case "binary":
            return logit.sigmoid()
        case "count":
            return logit.clamp(max=LARGEST_LOG).exp()
        case "duration":
            log = logit * facts.label_log_stds[task] + facts.label_log_means[task]
            return log.clamp(0, LARGEST_LOG).expm1()
        case _:
            return logit * facts.label_stds[task] + facts.label_means[task]
