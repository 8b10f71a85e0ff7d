"""What labels that users gave to other items say of a label.

    mean + b_item + b_user     the baseline of collaborative filtering (Koren, 2010,
                               doi:10.1145/1644873.1644874, eq. 1), means damped by a few rows
    neighbours                 EASE (1905.03375) on what labels are above that baseline, instead of
                               on who took what

The model is fitted once; what a user gave counts as of his moment. Scenarios of the same people
that have a task of one name have a model of their labels together, too, each read in its own
deviations from its own mean: who is generous in one of them often is in others.

Letters: N rows, n items, B users who ask, K labels that are known of them, M pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array, csr_array

from mtrec_ray.candidates.item_item import Ease, most_frequent
from mtrec_ray.data.arrays import Float32s, Floats, Ints
from mtrec_ray.data.interactions import Moments
from mtrec_ray.data.labels import Labels

DAMPING = 5.0  # rows' worth of pull of a mean to 0
RIDGE = 2000.0  # of the neighbours, in variances of what labels are above the baseline
MOST_ITEMS = 4096  # of the neighbours, the most frequent of each scenario: a matrix for each task


@dataclass(frozen=True)
class Given:
    """Labels f64[K] that users gave to items: i64[K] each, users numbered from 0 to `num_users`."""

    user: Ints
    item: Ints
    label: Floats
    num_users: int


@dataclass(frozen=True)
class LabelModel:
    """The baseline and the neighbours of a task's labels.

    Attributes:
        mean: of all labels.
        of_item: f64[n], what an item's labels are above it; `count` f64[n]: how many they are.
        neighbours: weights between items.
    """

    mean: float
    of_item: Floats
    count: Floats
    neighbours: Ease

    @classmethod
    def fit(cls, given: Given, sizes: Sequence[int]) -> "LabelModel":
        """Returns the model of labels; `sizes`: how many items each scenario has."""
        num_items = sum(sizes)
        mean = float(given.label.mean())
        above = given.label - mean
        of_item, count = damped_means(given.item, above, num_items)
        above = above - of_item[given.item]
        of_user, _ = damped_means(given.user, above, given.num_users)
        above = above - of_user[given.user]
        rest = matrix_of_labels(given, above, num_items)
        ridge = RIDGE * max(float(above.var()), 1e-9)
        inputs = frequent_of_each(count, sizes, MOST_ITEMS // len(sizes))
        return cls(mean, of_item, count, Ease.between(csc_array(rest), inputs, ridge))

    def columns(self, given: Given, user: Ints, item: Ints) -> dict[str, Float32s]:
        """Returns f32[M] by name: what labels `given` by then say of pairs of users and items."""
        above = given.label - self.mean - self.of_item[given.item]
        of_user, count = damped_means(given.user, above, given.num_users)
        rest = matrix_of_labels(given, above - of_user[given.user], len(self.of_item))
        found = {
            "item_mean": self.of_item[item],
            "item_count": np.log1p(self.count[item]),
            "user_mean": of_user[user],
            "user_count": np.log1p(count[user]),
            "neighbours": self.neighbours.of_pairs(rest, user, item),
        }
        return {name: values.astype(np.float32) for name, values in found.items()}


def frequent_of_each(count: Floats, sizes: Sequence[int], most: int) -> Ints:
    """Returns the most frequent items of each scenario, whose items lie one after another."""
    starts = np.cumsum([0, *sizes])
    parts = [
        start + most_frequent(count[start : start + size], most)
        for start, size in zip(starts, sizes, strict=False)
    ]
    return np.concatenate(parts)


def damped_means(group: Ints, values: Floats, num_groups: int) -> tuple[Floats, Floats]:
    """Returns f64[groups] each: means that few rows leave near 0, and the numbers of rows."""
    count = np.bincount(group, minlength=num_groups).astype(np.float64)
    return np.bincount(group, values, num_groups) / (count + DAMPING), count


def matrix_of_labels(given: Given, values: Floats, num_items: int) -> csr_array:
    """Returns f32[users, n]: a value for each label that was given."""
    shape = (given.num_users, num_items)
    return csr_array((values.astype(np.float32), (given.user, given.item)), shape=shape)


@dataclass(frozen=True)
class LabelSource:
    """What the labels of some scenarios of the same people say; a scenario may be alone.

    Attributes:
        labels: by scenario; their items are numbered one scenario after another.
        scales: by scenario, the mean and the deviation of its labels.
        model: of the labels of the splits before one.
    """

    labels: Mapping[str, Labels]
    scales: Mapping[str, tuple[float, float]]
    model: LabelModel

    @classmethod
    def fit(cls, labels: Mapping[str, Labels], split: int) -> "LabelSource":
        """Returns the source, fitted on the splits before one."""
        known = {name: one.before(split) for name, one in labels.items()}
        scales = {
            n: (float(one.values.mean()), float(one.values.std())) for n, one in known.items()
        }
        starts = starts_of(labels)
        person = np.concatenate([one.rows.person for one in known.values()])
        item = np.concatenate([one.rows.item + starts[name] for name, one in known.items()])
        value = np.concatenate([scaled(one.values, scales[n]) for n, one in known.items()])
        persons, user = np.unique(person, return_inverse=True)
        given = Given(user, item, value, len(persons))
        sizes = [one.rows.num_items for one in labels.values()]
        return cls(labels, scales, LabelModel.fit(given, sizes))

    def columns(
        self, name: str, moments: Moments, counted: int, user: Ints, item: Ints
    ) -> dict[str, Float32s]:
        """Returns f32[M] by name, for pairs of users who ask in a scenario and its items.

        Labels of the splits before `counted` are known to them, up to their moments.
        """
        users, items, values = [], [], []
        starts = starts_of(self.labels)
        for other, labels in self.labels.items():
            who, row = labels.known_to(moments, counted)
            users.append(who)
            items.append(labels.rows.item[row] + starts[other])
            values.append(scaled(labels.values[row], self.scales[other]))
        given = Given(
            np.concatenate(users), np.concatenate(items), np.concatenate(values), len(moments)
        )
        return self.model.columns(given, user, item + starts[name])


def scaled(values: Floats, scale: tuple[float, float]) -> Floats:
    """Returns f64[K]: how many deviations labels are above the mean."""
    mean, deviation = scale
    return (values - mean) / max(deviation, 1e-9)


def starts_of(labels: Mapping[str, Labels]) -> dict[str, int]:
    """Returns the number of each scenario's first item among those of all."""
    sizes = [one.rows.num_items for one in labels.values()]
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    return dict(zip(labels, starts, strict=True))
