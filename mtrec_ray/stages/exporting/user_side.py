"""The user side of retrieval as a module by itself: histories to vectors.

Letters: B users, H history items, E width of retrieval vectors, T tasks.
"""

import copy
from collections.abc import Iterable

import pyarrow as pa
import torch
from torch import Tensor, nn

from mtrec_ray.data.columns import fixed_list
from mtrec_ray.data.outcomes import LEVELS
from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.model.outcomes import OutcomeEmbedding, OutcomeVectors
from mtrec_ray.model.profiles import Asking, ProfileInputs
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.retrieval import Retrieval

MOST_TASKS = 6  # whose outcomes, 4^T, are a table


class OutcomeTable(nn.Module):
    """An `OutcomeEmbedding` whose outcomes all have a row of a table: without `unique`."""

    vectors: Tensor

    def __init__(self, embedding: OutcomeEmbedding) -> None:
        super().__init__()
        every = torch.arange(LEVELS ** len(embedding.tables))
        self.register_buffer("vectors", embedding(every[None]).vectors.detach())

    def forward(self, outcomes: Tensor) -> OutcomeVectors:
        """Returns the vectors of all outcomes, and the places of outcomes i64[B, H] in them."""
        return OutcomeVectors(self.vectors, outcomes)


class UserSide(nn.Module):
    """A scenario's user side, which reads items' states instead of rows of a catalogue.

    It is the model's own (`Retrieval.users`), but for the lookups: a profile is given as its
    vector, and what came of a history's items is read from a table.
    """

    def __init__(self, model: Recommender, name: str) -> None:
        super().__init__()
        assert model.retrieval is not None
        own: Retrieval = copy.copy(model.retrieval)
        own._modules = dict(own._modules)
        space = own.spaces[name]
        if space in own.profiles:
            own.profiles = nn.ModuleDict({space: nn.Identity()})
        if name in own.outcomes:
            embedding = own.outcomes[name]
            assert isinstance(embedding, OutcomeEmbedding)
            own.outcomes = nn.ModuleDict({name: OutcomeTable(embedding)})
        self.retrieval, self.name = own, name

    def forward(
        self,
        history: Tensor,
        known: Tensor,
        ages: Tensor,
        outcomes: Tensor | None = None,
        profile: Tensor | None = None,
    ) -> Tensor:
        """Returns unit vectors f32[B, E] of users.

        `history` f32[B, H, E]: the states of items, latest first; `known` bool[B, H]: where there
        is one; `ages` i64[B, H]; where the scenario has them, `outcomes` i64[B, H] and `profile`
        f32[B, E].
        """
        outcomes = torch.zeros_like(ages) if outcomes is None else outcomes
        rows = torch.arange(known.numel(), device=known.device).view(known.shape)
        place = torch.where(known, rows, -1)
        states = history.flatten(0, 1)
        return self.retrieval.users(self.name, states, place, ages, outcomes, profile)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def profile_table(retrieval: Retrieval, space: str, parts: Iterable[UserSnapshot]) -> pa.Table:
    """Returns ids and vectors of profiles f32[E], as the user side reads them.

    The first row, without an id, is that of a user without a profile.
    """
    side = retrieval.profiles[space]
    assert isinstance(side, ProfileInputs)
    ids: list[str | None] = [None]
    vectors = [side.absent[None]]
    for users in parts:
        ids += [str(user) for user in users.ids]
        vectors.append(side(Asking.of(users, side.absent.device)))
    return pa.table(
        {"id": pa.array(ids, pa.string()), "profile": fixed_list(torch.cat(vectors).numpy())}
    )


def user_side_problem(model: Recommender, name: str) -> str | None:
    """Returns why a scenario has no user side that can be exported; None where it has one."""
    retrieval = model.retrieval
    if retrieval is None or name not in retrieval.extras:
        return "the model has no retrieval vectors of this scenario"
    if name in retrieval.outcomes and len(model.facts[name].tasks) > MOST_TASKS:
        return f"histories tell the outcomes of more than {MOST_TASKS} tasks"
    return None


@torch.no_grad()
def inputs_of_users(
    model: Recommender, name: str, users: UserSnapshot, text: Tensor
) -> dict[str, Tensor]:
    """Returns the inputs of the user side by name; text vectors f32[n, D] of all items."""
    retrieval = model.retrieval
    assert retrieval is not None
    history = torch.tensor(users.history)
    rows = history.clamp(min=0).flatten()
    states = retrieval.states(name, rows, text[rows]).view(*history.shape, -1)
    known = history >= 0
    inputs = {
        "history": states * known.unsqueeze(2),
        "known": known,
        "ages": torch.tensor(users.ages),
    }
    if name in retrieval.outcomes:
        assert users.outcomes is not None
        inputs["outcomes"] = torch.tensor(users.outcomes)
    space = retrieval.spaces[name]
    if space in retrieval.profiles:
        inputs["profile"] = retrieval.profiles[space](Asking.of(users, text.device))
    return inputs
