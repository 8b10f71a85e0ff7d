"""Numbers of a run that follow from the project and the data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtrec_ray.data.order import (
    PassOrder,
    RankProgress,
    ReadPlan,
    Remaining,
    Slice,
    Span,
    window_rows,
)
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.project import Project


@dataclass
class Plan:
    """Numbers of a run that follow from the project and the data."""

    quotas: dict[str, int]
    steps_per_epoch: int
    num_steps: int
    sampling_shares: dict[str, float]
    loss_shares: dict[str, float]


def make_plan(project: Project, prepared: Prepared, world_size: int) -> Plan:
    """Quotas of a rank's micro-batch and steps of an epoch.

    An epoch is `rows_per_epoch` rows (default: as many as there are training rows) over the
    global batch; scenarios pass at their own pace within it.
    """
    options = project.training
    rows = {n: f.num_rows("train") for n, f in prepared.scenarios.items()}
    own = quotas(rows, options.batch_size // (world_size * options.accumulation), options.alpha)
    real_batch = sum(own.values()) * world_size * options.accumulation
    steps = max(-(-(options.rows_per_epoch or sum(rows.values())) // real_batch), 1)
    total = sum(s.weight for s in project.scenarios.values())
    return Plan(
        quotas=own,
        steps_per_epoch=steps,
        num_steps=steps * options.epochs,
        sampling_shares={n: q / sum(own.values()) for n, q in own.items()},
        loss_shares={n: s.weight / total for n, s in project.scenarios.items()},
    )


# Opens the wanted rows of each scenario: the rows of each piece, in its order.
OpenRows = Callable[[Mapping[str, ReadPlan]], Mapping[str, Iterator[Arrays]]]


class Stream:
    """The rows of one scenario that a rank takes, pass after pass."""

    def __init__(self, parts: Iterator[Arrays]) -> None:
        self.parts = parts
        self._rest: Arrays | None = None

    def take(self, num_rows: int) -> Arrays:
        """The next rows; a pass that ends runs into the next."""
        found: list[Arrays] = []
        missing = num_rows
        while missing:
            rest = self._rest if self._rest is not None else next(self.parts)
            have = len(rest["row"])
            found.append({k: v[:missing] for k, v in rest.items()})
            self._rest = {k: v[missing:] for k, v in rest.items()} if have > missing else None
            missing -= min(have, missing)
        return concatenate(found)


class BatchComposer:
    """The streams of a rank, and where all ranks stand in each scenario.

    Attributes:
        courses: by scenario; the same on every rank, since every rank takes as many rows.
    """

    def __init__(
        self,
        prepared: Prepared,
        quotas: Mapping[str, int],
        seed: int,
        world: tuple[int, int],
        state: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.quotas = dict(quotas)
        self.rank, self.size = world
        self.orders: dict[str, PassOrder] = {}
        self.courses: dict[str, RankProgress] = {}
        self.streams: dict[str, Stream] = {}
        for name, facts in prepared.scenarios.items():
            shard_rows = tuple(s.rows for s in facts.shards["train"])
            num_rows, stands = sum(shard_rows), (state or {}).get(name)
            window = stands["window"] if stands else window_rows(num_rows, self.size)
            self.orders[name] = PassOrder(shard_rows, seed, window)
            course = (
                progress_from_state(stands, num_rows)
                if stands
                else RankProgress(num_rows, self.size)
            )
            self.courses[name] = course.taken_up(self.size)

    def open(self, reader: OpenRows, num_batches: int) -> None:
        """Open the streams where the courses stand, for so many batches."""
        wanted = {
            name: ReadPlan(
                order.shard_rows,
                order.pieces(self.courses[name].spans(self.rank)),
                self.quotas[name],
                self.quotas[name] * num_batches,
            )
            for name, order in self.orders.items()
        }
        self.streams = {name: Stream(parts) for name, parts in reader(wanted).items()}

    def take(self) -> dict[str, Arrays]:
        """The rows of a micro-batch by scenario."""
        found = {name: self.streams[name].take(quota) for name, quota in self.quotas.items()}
        for name, quota in self.quotas.items():
            course = self.courses[name]
            self.courses[name] = replace(course, taken=course.taken + quota)
        return found

    def state(self) -> dict[str, dict[str, Any]]:
        """Where all ranks stand, as plain values."""
        return {
            name: {
                "window": self.orders[name].window,
                "size": course.size,
                "taken": course.taken,
                "rests": [[s.number, s.low, s.high] for s in course.left.rests],
                "next_pass": course.left.next_pass,
            }
            for name, course in self.courses.items()
        }


def progress_from_state(state: Mapping[str, Any], num_rows: int) -> RankProgress:
    """The course of `Feed.state`."""
    rests = tuple(Span(*span) for span in state["rests"])
    return RankProgress(
        num_rows, state["size"], state["taken"], Remaining(rests, state["next_pass"])
    )


def pick(shards: Sequence[Arrays], piece: Slice) -> Arrays:
    """The rows of a piece, of shards in memory."""
    parts = [{k: v[a:b] for k, v in shards[i].items()} for i, a, b in piece.segments]
    return {k: v[piece.order] for k, v in concatenate(parts).items()}


def concatenate(parts: list[Arrays]) -> Arrays:
    """Rows of several parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def quotas(rows: Mapping[str, int], batch_rows: int, alpha: float) -> dict[str, int]:
    """Rows of each scenario in a batch: shares proportional to n^alpha, at least one row each.

    Largest remainders make the sum exact.

    Raises:
        ProjectError: fewer rows than scenarios.
    """
    if batch_rows < len(rows):
        raise ProjectError(
            [
                f"training.batch_size: found {batch_rows} rows for each worker's step; "
                f"allowed: at least {len(rows)}, one a scenario"
            ]
        )
    weight = np.array([float(n) ** alpha for n in rows.values()])
    least = np.zeros(len(weight), bool)  # those whose share is below one row
    exact = weight * batch_rows / weight.sum()
    while (exact < 1).any():
        least |= exact < 1
        rest = np.where(least, 0.0, weight)
        exact = rest * (batch_rows - least.sum()) / max(rest.sum(), 1.0)
        exact[least] = 1
    whole = np.floor(exact).astype(int)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: batch_rows - int(whole.sum())]] += 1
    return dict(zip(rows, whole.tolist(), strict=True))
