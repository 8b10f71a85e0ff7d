"""Which partition holds each row of a scenario, so that none holds more than is stated.

By item or by value of a column: whole keys are laid out until a partition has `ROWS_PER_PARTITION`
rows, the last key being one that has no more than that, so that it holds less than twice as many.
A key with more rows is hot: it has partitions of its own, each with rows of successive times,
`ROWS_PER_PARTITION` of them as far as a sample of the log tells (`scan.SAMPLED_ROWS`).

By user: a hash. All rows of a user lie together, because histories and sampled negatives need
them; a user with too many is refused (`problems.MAX_ROWS_PER_USER`).

Letters: n items, K keys, N rows, P parts of a hot key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.preparing.inputs import Fragment

# What a task holds at a time. It is a number of rows, not a share of the machine's cores: the order
# of prepared rows follows from the partitions.
ROWS_PER_PARTITION = 250_000


# Values of a column with several that a partition of users holds at a time: as many bytes as rows.
VALUES_PER_ROW = 4


PLACE_SEED = 3


NO_VALUES: Mapping[str, int] = {}


@dataclass(frozen=True)
class UserPartitions:
    """How rows are assigned to partitions by a hash of their user.

    Attributes:
        counts: how many partitions each scenario has.
    """

    counts: dict[str, int]

    @classmethod
    def of(
        cls, fragments: Sequence[Fragment], num_values: Mapping[str, int] = NO_VALUES
    ) -> "UserPartitions":
        """Returns as many partitions as the rows of each scenario need, and the values of these."""
        rows: dict[str, int] = {}
        for fragment in fragments:
            rows[fragment.scenario] = rows.get(fragment.scenario, 0) + fragment.num_rows
        for name, num in num_values.items():
            rows[name] = max(rows.get(name, 0), -(-num // VALUES_PER_ROW))
        return cls({name: max(-(-n // ROWS_PER_PARTITION), 1) for name, n in rows.items()})

    def numbers(self, name: str, table: pa.Table) -> Ints:
        """Returns i64[N]: the partition of each row."""
        hashes = table.column("user").to_numpy().astype(np.int64).view(np.uint64)
        return (hashes % np.uint64(self.counts[name])).astype(np.int64)


@dataclass(frozen=True)
class KeyPartitions:
    """How a scenario's rows are assigned to partitions by their item, or by its category value.

    Rows of a column with several values are assigned by the value that each has.

    Attributes:
        of_item: i64[n], the partition of each item's rows; of a hot key the first of its own.
        num_whole: how many partitions, the first ones, hold whole keys.
        cuts: by the first partition of a hot key: complex128[P - 1], the places (`places_of`)
            where its other parts begin.
        by: the column of the rows that numbers the n items, or the values.
    """

    of_item: Ints
    num_whole: int
    cuts: dict[int, NDArray[np.complex128]]
    by: str = "item"

    @classmethod
    def of(cls, key: Ints, rows: Ints, sample: pa.Table, by: str = "item") -> "KeyPartitions":
        """Returns the partitions of a key.

        Args:
            key: i64[n], the key of each item.
            rows: i64[n], the rows of each item.
            sample: some rows of the log, as a `Scan` has them.
            by: the column that numbers the items.
        """
        _, key = np.unique(key, return_inverse=True)
        rows = np.bincount(key, rows).astype(np.int64)
        whole = np.where(rows > ROWS_PER_PARTITION, 0, rows)
        number = (np.cumsum(whole) - whole) // ROWS_PER_PARTITION
        hot = np.flatnonzero(rows > ROWS_PER_PARTITION)
        count = num_whole = int(number.max()) + 1
        cuts: dict[int, NDArray[np.complex128]] = {}
        for one, places in zip(hot, _sampled_places(hot, key, sample, by), strict=True):
            number[one] = count
            cuts[count] = cut_evenly(places, -(-int(rows[one]) // ROWS_PER_PARTITION))
            count += len(cuts[count]) + 1
        return cls(number[key], num_whole, cuts, by)

    @property
    def count(self) -> int:
        """How many partitions there are."""
        return self.num_whole + sum(map(len, self.hot_keys()))

    def hot_keys(self) -> list[range]:
        """Returns the partitions of each hot key, by time."""
        return [range(first, first + len(cut) + 1) for first, cut in self.cuts.items()]

    def is_first(self, index: int) -> bool:
        """Returns whether a partition is the first, or the only one, of its keys."""
        return index < self.num_whole or index in self.cuts

    def numbers(self, table: pa.Table) -> Ints:
        """Returns i64[N]: the partition of each row."""
        number = self.of_item[table.column(self.by).to_numpy()]
        hot = np.flatnonzero(number >= self.num_whole)
        if len(hot):
            place, first = places_of(table)[hot], number[hot]
            for one in np.unique(first):
                mine = first == one
                number[hot[mine]] += np.searchsorted(self.cuts[one], place[mine], side="right")
        return number


def places_of(table: pa.Table) -> NDArray[np.complex128]:
    """Returns complex128[N]: the time of each row, and of equal times a hash of the row.

    Complex numbers are ordered by their real part first, and then by the imaginary one.
    """
    tie = hash_ints(table.column("row").to_numpy(), PLACE_SEED) >> np.uint64(11)  # exact in 64 bits
    return table.column("time").to_numpy() + 1j * tie.astype(np.float64)


def cut_evenly(places: NDArray[np.complex128], num: int) -> NDArray[np.complex128]:
    """Returns where the 2nd to the last of `num` parts of sorted places begin.

    They are fewer parts where there are fewer places.
    """
    num = min(num, max(len(places), 1))
    return places[np.arange(1, num) * len(places) // num]


def _sampled_places(
    hot: Ints, of_item: Ints, sample: pa.Table, by: str
) -> list[NDArray[np.complex128]]:
    """Returns the sorted places of the sampled rows of each hot key."""
    if not len(hot):
        return []
    key, place = of_item[sample.column(by).to_numpy()], places_of(sample)
    order = np.lexsort([place, key])
    key, place = key[order], place[order]
    bounds = np.stack([np.searchsorted(key, hot, side=side) for side in ("left", "right")], 1)
    return [place[a:b] for a, b in bounds]
