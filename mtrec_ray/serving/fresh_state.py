"""Users and items as of now: the prepared data, and what users did since.

What is said of a user equals what `prepare` of a longer log says, with the events at its end: the
functions that prepare users' rows and states run here over the rows of a few users.

Letters: B users, n items, N rows, F numeric columns of a row, T tasks.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.columns import fixed_list
from mtrec_ray.data.end_states import items_at_end, read_catalogue, stored_users, users_of_states
from mtrec_ray.data.outcomes import level_bounds
from mtrec_ray.data.preparing.features import FeatureSpec, user_states
from mtrec_ray.data.shards import Arrays, concatenate
from mtrec_ray.data.snapshot import ItemSnapshot, SnapshotColumns, UserSnapshot, new_users
from mtrec_ray.serving.event_store import EventStore
from mtrec_ray.serving.fresh_rows import FreshRows, persons_of
from mtrec_ray.serving.log_rows import LogRows


class FreshState:
    """The state of a scenario: its prepared data, and the events of a store since then."""

    def __init__(
        self,
        layout: SnapshotColumns,
        store: EventStore,
        *,
        seed: int = 0,
        vocabulary: np.ndarray | None = None,
    ) -> None:
        """Read the rows of the prepared data.

        Args:
            layout: where the columns of the scenario's rows stand.
            store: what the events come from.
            seed: `data_seed` of the project, for the order of rows of one moment.
            vocabulary: sorted hashes u64[U] of the users that the model knows; by default those
                that the prepared data says.
        """
        self.layout, self.seed = layout, seed
        self.catalogue = read_catalogue(layout)
        if vocabulary is None:
            vocabulary = stored_users(layout.prepared, layout.facts.user_space)
        self.vocabulary = vocabulary
        self.log = LogRows.read(layout)
        self.fresh = FreshRows(layout, store, self.catalogue.ids.tolist(), self.log.next_row)

    @cached_property
    def spec(self) -> FeatureSpec:
        """What `prepare` needs of the scenario; its end is that of the prepared data."""
        layout, catalogue = self.layout, self.catalogue
        return FeatureSpec(
            scenario=layout.scenario,
            priors=tuple(layout.priors),
            end_ms=layout.end,
            published=catalogue.published,
            users=self.vocabulary,
            event_vocabularies=(),
            seed=self.seed,
            categories=catalogue.codes,
            level_bounds=level_bounds(asdict(layout.facts)),
            values=catalogue.values,
        )

    def users(self, ids: Sequence[str], moment: int) -> UserSnapshot:
        """Returns distinct users at a moment in ms, in the order of `ids`.

        A user without a row is as `new_users` says.
        """
        self.fresh.follow()
        return self.users_of(self.rows_of(persons_of(ids)), ids, moment)

    def users_of(self, rows: Arrays, ids: Sequence[str], moment: int) -> UserSnapshot:
        """Returns distinct users at a moment in ms, in the order of `ids`, by all of their rows."""
        if not len(rows["row"]):
            return new_users(self.layout, list(ids), moment)
        names = dict(zip(persons_of(ids).tolist(), ids, strict=True))
        spec = replace(self.spec, end_ms=moment)
        known = users_of_states(self.layout, user_states(canonical(rows, names), spec), moment)
        missing = sorted(set(ids) - set(known.ids.tolist()))
        both = joined(known, new_users(self.layout, missing, moment)) if missing else known
        place = {name: number for number, name in enumerate(both.ids.tolist())}
        return both.take(np.array([place[name] for name in ids]))

    def rows_of(self, persons: Ints) -> Arrays:
        """Returns all rows of distinct persons, without an order."""
        return concatenate([self.log.of(persons), self.fresh.of(persons)])

    def items(self, moment: int) -> ItemSnapshot:
        """Returns the catalogue at a moment in ms."""
        del moment
        return items_at_end(self.layout)


def canonical(rows: Arrays, names: dict[int, str]) -> pa.Table:
    """Returns rows as `prepare` has them before its last pass; `names` are ids by person."""
    num = len(rows["row"])
    return pa.table(
        {
            "row": rows["row"],
            "user": rows["person"],
            "user_id": pa.array([names[p] for p in rows["person"].tolist()], pa.string()),
            "item": rows["item"].astype(np.int32),
            "time": rows["time"],
            "split": rows["split"],
            "sampled": np.zeros(num, bool),
            "labels": fixed_list(rows["labels"]),
        }
    )


def joined(first: UserSnapshot, second: UserSnapshot) -> UserSnapshot:
    """Returns the users of two snapshots, of which the second has no statistics by value."""

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    return UserSnapshot(
        both("ids"),
        both("person"),
        both("moment"),
        both("user"),
        both("history"),
        both("ages"),
        both("numeric"),
        first.categories,
        None if first.outcomes is None else both("outcomes"),
    )
