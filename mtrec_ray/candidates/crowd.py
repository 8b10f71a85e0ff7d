"""The scenarios whose users are the same people, and what these people took in any of them.

Letters: U persons, B users who ask, n items of a scenario, m items of all scenarios of the crowd.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.interactions import Interactions, Moments, matrix_of

DECAY = 0.9  # of an item's weight for each later item of the user


@dataclass(frozen=True)
class Asked:
    """What B users who ask have done by then.

    Attributes:
        moments: when they ask.
        taken: f32[B, n], items that they took in the scenario; `recent` with weights: 1 for the
            latest one, and less for each earlier one.
        taken_anywhere: f32[B, m], in all scenarios of the crowd.
        history: i64[B, h], the latest items that they took, latest first, -1 where there is none.
        met: users and items of all rows that they have in the scenario.
    """

    moments: Moments
    taken: csr_array
    recent: csr_array
    taken_anywhere: csr_array
    history: Ints
    met: tuple[Ints, Ints]

    def __len__(self) -> int:
        return len(self.moments)


@dataclass(frozen=True)
class Crowd:
    """Interactions by scenario; their items are numbered one scenario after another."""

    scenarios: Mapping[str, Interactions]

    @cached_property
    def positives(self) -> Mapping[str, Interactions]:
        """The rows of taken items."""
        return {name: rows.positives for name, rows in self.scenarios.items()}

    @cached_property
    def columns(self) -> Mapping[str, slice]:
        """Where each scenario's items lie among those of all."""
        sizes = [rows.num_items for rows in self.scenarios.values()]
        ends = np.cumsum(sizes).tolist()
        places = zip(self.scenarios, sizes, ends, strict=True)
        return {name: slice(end - size, end) for name, size, end in places}

    @property
    def num_items(self) -> int:
        """M."""
        return sum(rows.num_items for rows in self.scenarios.values())

    @property
    def end(self) -> int:
        """The moment after the last row of any scenario, in ms, when all labels are known."""
        ends = [rows.time.max(initial=0) + rows.delay_ms for rows in self.scenarios.values()]
        return int(max(ends)) + 1

    def only(self, name: str) -> "Crowd":
        """Returns a scenario by itself."""
        return Crowd({name: self.scenarios[name]})

    def taken_before(self, split: int) -> csr_array:
        """Returns f32[U, m]: who took what in the splits before one."""
        known = {name: rows.before(split) for name, rows in self.positives.items()}
        persons = np.concatenate([rows.person for rows in known.values()])
        items = [rows.item + self.columns[name].start for name, rows in known.items()]
        distinct, user = np.unique(persons, return_inverse=True)
        shape = (max(len(distinct), 1), self.num_items)
        return matrix_of(user, np.concatenate(items), shape)

    def ask(self, name: str, moments: Moments, last: int) -> Asked:
        """Returns what users have done when they ask in a scenario; `last`: items of a history."""
        own = self.positives[name]
        user, row = own.known_to(moments)
        shape, item = (len(moments), own.num_items), own.item[row]
        place = places_from_latest(user, len(moments))
        met, met_row = self.scenarios[name].known_to(moments)
        return Asked(
            moments=moments,
            taken=matrix_of(user, item, shape),
            recent=matrix_of(user, item, shape, (DECAY**place).astype(np.float32)),
            taken_anywhere=self.taken_by(moments),
            history=latest(user, item, place, (len(moments), last)),
            met=(met, self.scenarios[name].item[met_row]),
        )

    def taken_by(self, moments: Moments) -> csr_array:
        """Returns f32[B, m]: what the users who ask took, in any scenario."""
        users, items = [], []
        for name, rows in self.positives.items():
            user, row = rows.known_to(moments)
            users.append(user)
            items.append(rows.item[row] + self.columns[name].start)
        shape = (len(moments), self.num_items)
        return matrix_of(np.concatenate(users), np.concatenate(items), shape)


def latest(user: Ints, item: Ints, place: Ints, shape: tuple[int, int]) -> Ints:
    """Returns i64[B, h]: items by their place from the latest one, -1 where there is none."""
    history, late = np.full(shape, -1), place < shape[1]
    history[user[late], place[late]] = item[late]
    return history


def places_from_latest(user: Ints, num_users: int) -> Ints:
    """Returns i64[N]: how many later rows a user has after each of rows sorted by user."""
    ends = np.searchsorted(user, np.arange(num_users), side="right")
    return ends[user] - 1 - np.arange(len(user))
