"""A table of users as the network reads it: one vector of each profile.

Letters: P rows of the table, N persons, D width of texts, W width.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from mtrec_ray.data.elsewhere import Taken
from mtrec_ray.data.given_profiles import NONE, GivenProfiles
from mtrec_ray.data.profiles import Profiles
from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.model.inputs import PooledValues, category_codes, id_embedding
from mtrec_ray.model.layers import shallow
from mtrec_ray.model.numeric import NumericInputs
from mtrec_ray.model.vectors import ReadyVectors, ready_vectors


class Asking(NamedTuple):
    """Who asks, and when: hashes of users' ids i64[N], moments i64[N] in ms.

    Profiles that they bring along stand in place of the table's, and what they took `elsewhere` in
    place of the timeline's.
    """

    person: Tensor
    moment: Tensor
    given: GivenProfiles | None = None
    elsewhere: Taken | None = None

    @classmethod
    def of(cls, users: UserSnapshot, device: torch.device) -> Self:
        """Returns the users of a snapshot, at the moment of each."""
        person, moment = (torch.tensor(v).to(device) for v in (users.person, users.moment))
        return cls(person, moment, users.given, users.elsewhere)


class ProfileInputs(nn.Module):
    """Vectors of profiles: embeddings of categories, and maps of numbers, texts and ready vectors.

    A number or a ready vector that is missing has a vector of its own, and so has a user without a
    profile; these start at zero, the others at random: where they did not, nothing that users and
    items tell together could be learned before something else had moved the layers above.
    """

    persons: Tensor
    clock: Tensor
    keys: Tensor
    codes: Tensor
    numbers: Tensor
    texts: Tensor

    def __init__(self, profiles: Profiles, width: int, num_bins: int, std: float) -> None:
        """`std`: of the weights at the start."""
        super().__init__()
        facts, table = profiles.facts, profiles.table
        num_numbers = len(facts.numeric_mean)
        self.categories = nn.ModuleList(id_embedding(n, width) for n in facts.category_sizes)
        self.several = nn.ModuleList(
            PooledValues(values, size, width)
            for values, size in zip(table.several, facts.several_sizes, strict=True)
        )
        self.vectors = ready_vectors(table.vectors, width)
        self.numeric = self.missing = self.project = None
        if num_numbers:
            scales = (facts.numeric_mean, facts.numeric_std, facts.numeric_quantiles)
            self.numeric = NumericInputs(*scales, width, num_bins)
            self.missing = nn.Linear(num_numbers, width, bias=False)
        texts = torch.zeros(len(profiles.persons), 0)
        if profiles.texts is not None:
            texts = torch.from_numpy(profiles.texts)
            self.project = nn.Linear(texts.shape[1], width, bias=False)
        self.absent = nn.Parameter(torch.zeros(width))
        self.start(std)
        index = profiles.index
        for name in ("persons", "clock", "keys"):
            self.register_buffer(name, torch.tensor(getattr(index, name)), persistent=False)
        self.register_buffer("codes", category_codes(table), persistent=False)
        self.register_buffer("numbers", torch.from_numpy(table.numeric), persistent=False)
        self.register_buffer("texts", texts, persistent=False)

    @torch.no_grad()
    def start(self, std: float) -> None:
        """Set the weights to their start; unknown categories have zeros."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)
        ready = [module for module in self.modules() if isinstance(module, ReadyVectors)]
        for own in ready:  # D numbers of size 1 say no more than an embedding does
            own.project.weight.div_(own.project.in_features**0.5)
        tables = [module for module in self.modules() if isinstance(module, nn.Embedding)]
        marks = [self.absent, *(own.absent for own in ready), *(t.weight[0] for t in tables)]
        if self.numeric is not None and self.missing is not None:
            marks += [self.numeric.plain.bias, self.missing.weight]
        for mark in marks:
            mark.zero_()

    def forward(self, asking: Asking) -> Tensor:
        """Returns f32[N, W] of persons as of the moment of each.

        Rows are found as `ProfileIndex.places` finds them.
        """
        earlier = torch.searchsorted(self.clock, asking.moment)
        first = torch.searchsorted(self.persons, asking.person)
        wanted = first * (len(self.clock) + 1) + earlier
        place = (torch.searchsorted(self.keys, wanted) - 1).clamp(min=0)
        known = (self.keys[place] < wanted) & (self.persons[place] == asking.person)
        found = torch.where(known.unsqueeze(1), self.of_rows(place), self.absent)
        return found if asking.given is None else self.with_given(found, asking.given)

    def with_given(self, stored: Tensor, given: GivenProfiles) -> Tensor:
        """Returns f32[N, W] of persons: `stored`, but for those who bring a profile along."""
        num = len(given.rows.known)
        own = self.over(given).of_rows(torch.arange(num, device=stored.device))
        place = torch.from_numpy(given.place).to(stored.device)
        row = torch.where(place == NONE, num, place.clamp(min=0))
        vectors = torch.cat([own, self.absent.unsqueeze(0)])[row]
        return torch.where((place >= 0).logical_or(place == NONE).unsqueeze(1), vectors, stored)

    def over(self, given: GivenProfiles) -> "ProfileInputs":
        """Returns the same maps over other rows."""
        twin, none = shallow(self), self.persons[:0]
        assert isinstance(twin, ProfileInputs)
        rows, device = given.rows, self.codes.device
        several = zip(self.several, rows.several, strict=True)
        vectors = zip(self.vectors, rows.vectors, strict=True)
        twin.several = nn.ModuleList(
            own.with_rows(none, more) for own, more in several if isinstance(own, PooledValues)
        )
        twin.vectors = nn.ModuleList(
            own.with_rows(none, more) for own, more in vectors if isinstance(own, ReadyVectors)
        )
        twin.codes = category_codes(rows).to(device)
        twin.numbers = torch.from_numpy(rows.numeric).to(device)
        if given.texts is not None:
            twin.texts = torch.from_numpy(given.texts).to(device)
        return twin

    def of_rows(self, place: Tensor) -> Tensor:
        """Returns f32[N, W] of rows i64[N] of the table."""
        total = self.absent.new_zeros(len(place), len(self.absent))
        for i, table in enumerate(self.categories):
            total = total + table(self.codes[place, i])
        for values in [*self.several, *self.vectors]:
            total = total + values(place)
        if self.numeric is not None and self.missing is not None:
            numbers = self.numbers[place]
            total = total + self.numeric(numbers) + self.missing(numbers.isnan().float())
        return total if self.project is None else total + self.project(self.texts[place])


def profile_inputs(
    profiles: Mapping[str, Profiles], width: int, num_bins: int, std: float
) -> nn.ModuleDict:
    """Returns the vectors of profiles by id space; `std` is that of the weights at the start."""
    return nn.ModuleDict(
        {space: ProfileInputs(own, width, num_bins, std) for space, own in profiles.items()}
    )
