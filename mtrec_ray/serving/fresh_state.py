"""Users and items as of now: the prepared data, and what users did since.

What is said of a user equals what `prepare` of a longer log says, with the events at its end: the
functions that prepare users' rows and states run here over the rows of a few users.

Letters: B users, n items, N rows, F numeric columns of a row, T tasks.
"""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.as_of import CatalogueAsOf
from mtrec_ray.data.columns import fixed_list
from mtrec_ray.data.end_states import items_at_end, numbered_users, read_catalogue, users_of_states
from mtrec_ray.data.outcomes import level_bounds
from mtrec_ray.data.preparing.features import FeatureSpec, user_states, vocabulary_numbers
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
        lag_s: float = 0.0,
    ) -> None:
        """Read the rows of the prepared data.

        Args:
            layout: where the columns of the scenario's rows stand.
            store: what the events come from.
            seed: `data_seed` of the project, for the order of rows of one moment.
            vocabulary: sorted hashes u64[U] of all users that the model knows (`stored_users` of
                its data); by default those that this data has rows of, which are not all of them
                where the scenario joined a model.
            lag_s: seconds by which statistics of items may lag behind events, whose rows are sorted
                anew at most so often; users never lag.
        """
        self.layout, self.seed, self.lag_s = layout, seed, lag_s
        self.catalogue = read_catalogue(layout)
        if vocabulary is None:
            self.known = numbered_users(layout.prepared, layout.facts.user_space)
        else:
            self.known = (vocabulary, np.arange(1, len(vocabulary) + 1))
        self.log = LogRows.read(layout)
        self.fresh = FreshRows(layout, store, self.catalogue.ids.tolist(), self.log.next_row)
        self.with_events: tuple[int, CatalogueAsOf] | None = None
        self.sorted_at = -math.inf  # s, of a clock that never goes back
        self.held: HeldItems | None = None
        self.lock = threading.Lock()

    @cached_property
    def spec(self) -> FeatureSpec:
        """What `prepare` needs of the scenario; its end is that of the prepared data."""
        layout, catalogue = self.layout, self.catalogue
        return FeatureSpec(
            scenario=layout.scenario,
            priors=tuple(layout.priors),
            end_ms=layout.end,
            published=catalogue.published,
            users=self.known[0],
            event_vocabularies=(),
            seed=self.seed,
            categories=catalogue.codes,
            level_bounds=level_bounds(asdict(layout.facts)),
            values=catalogue.values,
        )

    def users(self, ids: Sequence[str], moment: int) -> UserSnapshot:
        """Returns users at a moment in ms, in the order of `ids`.

        A user without a row is as `new_users` says.
        """
        self.fresh.follow()
        return self.users_of(self.rows_of(np.unique(persons_of(ids))), ids, moment)

    def users_of(self, rows: Arrays, ids: Sequence[str], moment: int) -> UserSnapshot:
        """Returns users at a moment in ms, in the order of `ids`, by all rows that they have."""
        names = dict(zip(persons_of(ids).tolist(), ids, strict=True))
        new = sorted(set(names) - set(rows["person"].tolist()))
        parts = [self._with_rows(rows, names, moment)] if len(new) < len(names) else []
        if new or not parts:
            parts.append(new_users(self.layout, [names[person] for person in new], moment))
        found = joined(*parts) if len(parts) > 1 else parts[0]
        place = {name: number for number, name in enumerate(found.ids.tolist())}
        return found.take(np.array([place[name] for name in ids], np.int64))

    def _with_rows(self, rows: Arrays, names: dict[int, str], moment: int) -> UserSnapshot:
        """Returns the users of some rows at a moment in ms."""
        states = user_states(canonical(rows, names), replace(self.spec, end_ms=moment))
        found = users_of_states(self.layout, states, moment)
        return replace(found, user=self._numbers(found.person))

    def _numbers(self, person: Ints) -> Ints:
        """Returns i64[B], the numbers by which the model knows persons; 0 of unknown ones."""
        place = vocabulary_numbers(person, self.known[0])
        return np.append(0, self.known[1])[place]

    def rows_of(self, persons: Ints) -> Arrays:
        """Returns all rows of distinct persons, without an order."""
        return concatenate([self.log.of(persons), self.fresh.of(persons)])

    def columns(self, item: Ints, moment: Ints | int) -> Float32s:
        """Returns f32[m, F]: the columns of items i64[m] as of moments in ms.

        They are exact, and no others are computed: what a request needs of its candidates
        (`Ranker.predictions`). Where rows have no time they are those of the end of the data.
        """
        self.fresh.follow()
        if self.log_as_of is None:
            return self.at_end.numeric[item]
        return self._as_of()[1].numeric(item, np.broadcast_to(moment, item.shape))

    def items(self, moment: int, *, refresh_ms: int = 0) -> ItemSnapshot:
        """Returns the catalogue at a moment in ms.

        What events touched since the last call is as of the moment. What nobody touched changes,
        too, because windows and ages move on: it is as of at most `refresh_ms` before.
        """
        if self.log_as_of is None:
            return self.at_end
        self.fresh.follow()
        with self.lock:
            held, every = self.held, np.arange(len(self.catalogue.ids))
            touched, past = self._as_of()
            if held is not None and 0 <= moment - held.moment <= refresh_ms:
                some, numeric = self._touched_after(held.touched), held.numeric.copy()
                numeric[some] = past.numeric(some, np.full(len(some), moment))
                self.held = HeldItems(numeric, held.moment, touched)
            else:
                numeric = past.numeric(every, np.full(len(every), moment))
                self.held = HeldItems(numeric, moment, touched)
            return self.catalogue.snapshot(self.layout, numeric)

    @cached_property
    def at_end(self) -> ItemSnapshot:
        """The catalogue at the end of the data."""
        return items_at_end(self.layout)

    @cached_property
    def log_as_of(self) -> CatalogueAsOf | None:
        """The catalogue as of any moment from the log alone; None where rows have no time."""
        if not self.layout.timed:
            return None
        return CatalogueAsOf(self.layout, self.catalogue, self.layout.end)

    def _as_of(self) -> tuple[int, CatalogueAsOf]:
        """Returns the same with the events that enter statistics, and how many changes it has."""
        assert self.log_as_of is not None
        if self.layout.scenario.statistics == "frozen":
            return self.fresh.num_touched, self.log_as_of
        held = self.with_events
        late = time.monotonic() >= self.sorted_at + self.lag_s
        if held is None or (late and held[0] != self.fresh.num_touched):
            self.sorted_at = time.monotonic()
            touched, rows = self.fresh.all()
            held = (touched, self.log_as_of.with_rows(rows))
            self.with_events = held
        return held

    def _touched_after(self, touched: int) -> Ints:
        """Returns the items that changed with events after the first `touched` of them."""
        met = np.unique(self.fresh.touched_after(touched))
        changed = np.zeros(len(self.catalogue.ids), bool)
        changed[met] = True
        for code in self.catalogue.codes.values():
            changed |= np.isin(code, code[met]) & (code >= 0)
        for values in self.catalogue.values.values():
            shared = np.isin(values.codes, values.take(met).codes)
            changed[values.rows[shared]] = True
        return np.flatnonzero(changed)

    def now(self, clock: int) -> int:
        """Returns the moment in ms at which who asks knows all that has been told by now.

        A row is known strictly after its own time: that is a millisecond after the latest event,
        if the clock is not later. Where rows have no time it is the end of the data.
        """
        if not self.layout.timed:
            return self.layout.end
        self.fresh.follow()
        return max(clock, self.layout.end, self.fresh.latest + 1)


@dataclass(frozen=True)
class HeldItems:
    """The columns f32[n, F] of all items at a moment, and how many changes they hold."""

    numeric: Float32s
    moment: int
    touched: int


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
