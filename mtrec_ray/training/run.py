"""A training run on one rank: what is built once, and a step of it."""

import math
import time
from typing import Any

import torch

from mtrec_ray.data.prepared import Prepared
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.project import Project
from mtrec_ray.training import checkpoint
from mtrec_ray.training.batches import BatchComposer, make_plan
from mtrec_ray.training.build import build_model, cache_folder
from mtrec_ray.training.cached_gradients import CachedGradients
from mtrec_ray.training.collectives import any_rank, world
from mtrec_ray.training.context import TrainContext
from mtrec_ray.training.delta import L2SP, FineTuneStart, load_joint_weights
from mtrec_ray.training.item_vectors import Batch
from mtrec_ray.training.losses import loss_weights
from mtrec_ray.training.optim import build_optimizer, build_schedule, restore
from mtrec_ray.training.step import Forward, StepResult, accumulate, wrap

# Ranks ask so often whether a node of theirs is about to go (a barrier, by way of another process).
ASK_SECONDS = 5.0


# What of a run's state is plain values: a checkpoint holds it.
RESUMED = (
    "step", "epoch", "best", "since_best", "curve", "not_finite", "rows_seen",
    "steps_per_epoch", "loss_sums", "loss_counts",
)  # fmt: skip


class NotFiniteError(ValueError):
    """Too many steps had a loss or gradient that is not finite."""


class RankRun:
    """A training run on one rank: what is built once and what changes from step to step."""

    def __init__(
        self,
        project: Project,
        prepared: Prepared,
        context: TrainContext,
        start: FineTuneStart | None = None,
    ) -> None:
        self.project, self.prepared, self.context = project, prepared, context
        self.rank, self.size = world()
        self.plan = make_plan(project, prepared, self.size)
        self.model, self.vectors = build_model(
            project, prepared, context.device, project.training.precision
        )
        if start:
            load_joint_weights(self.model, start)
        self.pull = L2SP(self.model, start.l2_sp if start else 0.0)
        self.weights = torch.tensor(
            list(loss_weights(project.scenarios).values()), device=context.device
        )
        self.autocast = self.vectors.autocast
        self.steps_per_epoch = self.plan.steps_per_epoch
        self.step, self.epoch = 0, 0
        self.best, self.since_best = float("inf"), 0
        self.curve: list[dict[str, Any]] = []
        self.not_finite: dict[str, int] = {}
        self.rows_seen = dict.fromkeys(prepared.scenarios, 0)
        self.redone_steps = 0
        self.waited = 0.0  # seconds of this epoch spent on waiting for rows
        self.asked, self.asks = time.monotonic(), False  # for a preemption; the same on all ranks
        self.speed: list[dict[str, float]] = []
        self.loss_sums = torch.zeros(len(self.weights), dtype=torch.float64)
        self.loss_counts = torch.zeros_like(self.loss_sums)
        self.last_batch: Batch | None = None
        if project.model.gathers:
            self.vectors.gathered = CachedGradients(self.vectors)
        folder = context.restore()
        state = checkpoint.load_state(folder) if folder else None
        for name, value in (state or {}).items():
            if name in RESUMED:
                setattr(self, name, value)
        self.optimizer = build_optimizer(self.model, project.training)
        self.schedule = build_schedule(self.optimizer, project.training, self.num_steps)
        if folder and state:
            checkpoint.load_model(folder, self.model)
            restore(self.optimizer, self.schedule, state)
            self.vectors.restore(state["vectors"])
        self.feed = BatchComposer(
            prepared, self.plan.quotas, project.training.seed, (self.rank, self.size),
            state["feed"] if state else None,
        )  # fmt: skip
        self.forward = Forward(self.model, self.vectors)
        some_unused = (
            project.model.encoder_every > 1
            and not project.model.gathers
            and not self.model.encoder.is_frozen
        )
        self.module = wrap(self.forward, some_unused=some_unused)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.project.training.epochs

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights; every rank must call this."""
        return {
            **{name: getattr(self, name) for name in RESUMED},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "feed": self.feed.state(),
            "vectors": self.vectors.state(),
        }

    def start(self) -> None:
        """Open the streams and have the item vectors."""
        batches = (self.num_steps - self.step) * self.project.training.accumulation
        self.feed.open(self.context.reader, batches)
        self.vectors.compute_frozen(cache_folder(self.project))
        if self.vectors.cache is None:
            self.vectors.refresh()
        if self.rank == 0:
            self.redone_steps = self.context.started(self.step)

    def next_batch(self) -> Batch:
        """A micro-batch that holds every scenario; every rank takes as many rows of each."""
        for name, quota in self.plan.quotas.items():
            self.rows_seen[name] += quota * self.size
        started = time.monotonic()
        rows = self.feed.take()
        self.waited += time.monotonic() - started
        return {n: Samples.of(a, self.context.device) for n, a in rows.items()}

    def encodes(self) -> bool:
        """Whether the encoder learns from this step's rows alone: every k-th step."""
        options = self.project.model
        if self.model.encoder.is_frozen or options.gathers:
            return False
        return self.step % options.encoder_every == 0

    def gather(self) -> None:
        """Take the gradients of the item vectors into the encoder, in every k-th step."""
        gathered = self.vectors.gathered
        if gathered is None:
            return
        gathered.collect()
        if (self.step + 1) % self.project.model.encoder_every == 0:
            gathered.backward()

    def train_step(self) -> StepResult:
        """One optimizer step; a step whose loss or gradient is not finite is skipped on all ranks.

        Its random numbers follow from seed, step and rank alone.
        """
        torch.manual_seed(self.project.training.seed * 1_000_003 + self.step * 1009 + self.rank)
        batches = [self.next_batch() for _ in range(self.project.training.accumulation)]
        self.last_batch = batches[-1]
        self.optimizer.zero_grad(set_to_none=True)
        result = accumulate(
            self.module, self.prepared.scenarios, batches, self.weights,
            encode=self.encodes(), autocast=self.autocast,
        )  # fmt: skip
        gathered = self.vectors.gathered
        finite = math.isfinite(result.loss) and (gathered is None or gathered.is_finite())
        late = time.monotonic() - self.asked >= ASK_SECONDS
        wrong, self.asks = any_rank([not finite, late], self.context.device)
        if wrong:
            self.skip(result)
        else:
            self.learn(result)
        self.schedule.step()
        self.step += 1
        return result

    def preempted(self) -> bool:
        """Whether a node of the ranks is about to go; asked every few seconds, by all ranks."""
        if not self.asks:
            return False
        self.asked, self.asks = time.monotonic(), False
        return self.context.preempted()

    def learn(self, result: StepResult) -> None:
        """Take the step, if the gradient, now the same on all ranks, is finite."""
        self.gather()
        limit = self.project.training.clip_norm
        norms = [torch.nn.utils.clip_grad_norm_(p, limit) for p in clipped_together(self.model)]
        if not all(bool(torch.isfinite(norm)) for norm in norms):
            self.skip(result)
            return
        self.optimizer.step()
        self.pull.step(self.optimizer)
        self.loss_sums += result.sums.cpu()
        self.loss_counts += result.counts.cpu()

    def skip(self, result: StepResult) -> None:
        """Count a step that is not finite, by scenario and task; above the allowed share, stop."""
        if self.vectors.gathered is not None:
            self.vectors.gathered.forget()
        names = ["/".join(key) for key in loss_weights(self.project.scenarios)]
        bad = [n for n, v in zip(names, result.sums.tolist(), strict=True) if not math.isfinite(v)]
        for name in bad or ["gradient"]:
            self.not_finite[name] = self.not_finite.get(name, 0) + 1
        self.not_finite["steps"] = self.not_finite.get("steps", 0) + 1
        allowed = self.project.training.max_skipped * self.num_steps
        if self.not_finite["steps"] > allowed:
            found = ", ".join(f"{k} {v}" for k, v in self.not_finite.items() if k != "steps")
            raise NotFiniteError(
                f"training.max_skipped: found {self.not_finite['steps']} steps without a finite "
                f"loss and gradient ({found}); allowed: {allowed:g} of {self.num_steps} steps"
            )


def clipped_together(model: Recommender) -> list[list[torch.nn.Parameter]]:
    """The parameters of the model, and apart from them those of the general head."""
    apart = list(model.general.parameters()) if model.general is not None else []
    ids = {id(p) for p in apart}
    return [p for p in ([p for p in model.parameters() if id(p) not in ids], apart) if p]


def rows_accounted(run: RankRun) -> dict[str, dict[str, int]]:
    """By scenario: rows available, seen, repeated, not reached, dropped by the split into ranks.

    Each pass holds every row once, so that none is dropped; those repeated were in earlier passes.
    `redone` were taken again after a failure, since the last checkpoint; they count once as seen.
    """
    found = {}
    for name, facts in run.prepared.scenarios.items():
        available, seen = facts.num_rows("train"), run.rows_seen[name]
        each = run.plan.quotas[name] * run.size * run.project.training.accumulation
        found[name] = {
            "available": available,
            "seen": seen,
            "repeated": max(seen - available, 0),
            "not_reached": max(available - seen, 0),
            "dropped": 0,
            "redone": run.redone_steps * each,
        }
    return found
