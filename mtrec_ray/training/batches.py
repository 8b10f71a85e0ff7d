"""Composed batches: how many rows of each scenario, and the streams that they are taken from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtrec_ray.data.order import PassOrder, RankProgress, ReadPlan, Remaining, Span, window_rows
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays, concatenate
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.project import Project
from mtrec_ray.training.teacher_labels import with_teacher_labels


@dataclass
class Plan:
    """Numbers of a run that follow from the project and the data.

    Attributes:
        quotas: rows of each scenario in a rank's micro-batch.
        sampling_shares: each scenario's share of the rows; `loss_shares`: of the loss's weights.
    """

    quotas: dict[str, int]
    steps_per_epoch: int
    sampling_shares: dict[str, float]
    loss_shares: dict[str, float]


def make_plan(project: Project, prepared: Prepared, world_size: int) -> Plan:
    """Returns quotas of a rank's micro-batch and steps of an epoch.

    An epoch is `rows_per_epoch` rows (default: as many as there are training rows) over the
    global batch; scenarios pass at their own pace within it.
    """
    options = project.training
    rows = {n: f.num_rows("train") for n, f in prepared.scenarios.items()}
    each = quotas(rows, options.batch_size // (world_size * options.accumulation), options.alpha)
    global_batch = sum(each.values()) * world_size * options.accumulation
    total = sum(s.weight for s in project.scenarios.values())
    return Plan(
        quotas=each,
        steps_per_epoch=max(-(-(options.rows_per_epoch or sum(rows.values())) // global_batch), 1),
        sampling_shares={n: q / sum(each.values()) for n, q in each.items()},
        loss_shares={n: project.scenarios[n].weight / total for n in prepared.scenarios},
    )


# Opens the rows of each scenario that a rank will take: the rows of each slice, in its order.
OpenRows = Callable[[Mapping[str, ReadPlan]], Mapping[str, Iterator[Arrays]]]


class Stream:
    """The rows of one scenario that a rank takes, pass after pass."""

    def __init__(self, parts: Iterator[Arrays]) -> None:
        self.parts = parts
        self._rest: Arrays | None = None

    def take(self, num_rows: int) -> Arrays:
        """Returns the next rows; a pass that ends runs into the next."""
        taken: list[Arrays] = []
        missing = num_rows
        while missing:
            part = self._rest if self._rest is not None else next(self.parts)
            have = len(part["row"])
            taken.append({k: v[:missing] for k, v in part.items()})
            self._rest = {k: v[missing:] for k, v in part.items()} if have > missing else None
            missing -= min(have, missing)
        return concatenate(taken)


class BatchComposer:
    """Composes a rank's batches of rows of every scenario.

    Attributes:
        orders: of each scenario's passes.
        progress: how far all ranks are in each scenario; the same on every rank, since every rank
            takes as many rows.
    """

    def __init__(
        self,
        prepared: Prepared,
        quotas: Mapping[str, int],
        seed: int,
        world: tuple[int, int],
        state: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.facts, self.quotas = prepared.scenarios, dict(quotas)
        self.teacher_share = prepared.teacher_labels.share if prepared.teacher_labels else 0.0
        self.rank, self.size = world
        self.orders: dict[str, PassOrder] = {}
        self.progress: dict[str, RankProgress] = {}
        self.streams: dict[str, Stream] = {}
        for name, facts in self.facts.items():
            shard_rows = tuple(s.rows for s in facts.shards["train"])
            saved = state[name] if state is not None else None
            window = saved["window"] if saved else window_rows(sum(shard_rows), self.size)
            self.orders[name] = PassOrder(shard_rows, seed, window)
            self.progress[name] = resumed_progress(saved, sum(shard_rows), self.size)

    def open(self, open_rows: OpenRows, num_batches: int) -> None:
        """Open the streams from the present progress on, for `num_batches` batches."""
        plans = {
            name: ReadPlan(
                slices=order.slices(self.progress[name].spans(self.rank)),
                rows_per_batch=self.quotas[name],
                num_rows=self.quotas[name] * num_batches,
            )
            for name, order in self.orders.items()
        }
        self.streams = {name: Stream(parts) for name, parts in open_rows(plans).items()}

    def next_batch(self) -> dict[str, Arrays]:
        """Returns the rows of a micro-batch by scenario, their labels mixed with the teacher's."""
        batch = {name: self._take(name, quota) for name, quota in self.quotas.items()}
        for name, quota in self.quotas.items():
            progress = self.progress[name]
            self.progress[name] = replace(progress, taken=progress.taken + quota)
        return batch

    def _take(self, name: str, num_rows: int) -> Arrays:
        rows = self.streams[name].take(num_rows)
        return with_teacher_labels(self.facts[name], rows, self.teacher_share)

    def state(self) -> dict[str, dict[str, Any]]:
        """Returns the progress of all ranks, as plain values."""
        return {
            name: {
                "window": self.orders[name].window,
                "size": progress.size,
                "taken": progress.taken,
                "unfinished": [[s.number, s.low, s.high] for s in progress.start.unfinished],
                "next_pass": progress.start.next_pass,
            }
            for name, progress in self.progress.items()
        }


def resumed_progress(saved: Mapping[str, Any] | None, num_rows: int, size: int) -> RankProgress:
    """Returns where `size` ranks start: at the first row, or where a saved state stopped."""
    if saved is None:
        return RankProgress(num_rows, size)
    return progress_from_state(saved, num_rows).resume_with(size)


def progress_from_state(saved: Mapping[str, Any], num_rows: int) -> RankProgress:
    """Returns the progress of a scenario in `BatchComposer.state`."""
    unfinished = tuple(Span(*span) for span in saved["unfinished"])
    return RankProgress(
        num_rows, saved["size"], saved["taken"], Remaining(unfinished, saved["next_pass"])
    )


def quotas(rows: Mapping[str, int], batch_rows: int, alpha: float) -> dict[str, int]:
    """Returns each scenario's rows in a batch, proportional to n^alpha and at least one.

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
