"""The training loop: epochs of composed batches, validation, checkpoints. Knows no Ray.

A `Host` is what the loop sees of the world around it; `stages/train.py` makes one of Ray Train.
"""

import math
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mtrec_ray.data.shards import Prepared
from mtrec_ray.data.tokens import special_tokens
from mtrec_ray.learning import checkpoint
from mtrec_ray.learning.adapt import Pull, Start, begin
from mtrec_ray.learning.feed import Feed, Reader, quotas
from mtrec_ray.learning.losses import loss_weights
from mtrec_ray.learning.metrics import joint_score
from mtrec_ray.learning.optim import build_optimizer, build_schedule
from mtrec_ray.learning.ranks import any_rank, world
from mtrec_ray.learning.step import (
    Batch,
    Forward,
    StepResult,
    accumulate,
    gradient_cosines,
    gradient_shares,
    scenario_gradients,
    wrap,
)
from mtrec_ray.learning.validate import flat, validate
from mtrec_ray.learning.vectors import Autocast, Gathered, ItemVectors
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.recommender import Recommender, Samples
from mtrec_ray.model.text import PairLayout
from mtrec_ray.schema import Project

PROGRESS_SECONDS = 5.0

# What of a run's state is plain values: a checkpoint holds it.
RESUMED = (
    "step", "epoch", "best", "since_best", "curve", "not_finite", "rows_seen",
    "steps_per_epoch", "loss_sums", "loss_counts",
)  # fmt: skip
# In every which step ranks ask whether a node of theirs is about to go.
PREEMPTION_STEPS = 10
# The score of a checkpoint that has none. (Ray Train keeps scores as JSON: infinity is lost in it.)
NO_SCORE = sys.float_info.max


class NotFiniteError(ValueError):
    """Too many steps had a loss or gradient that is not finite."""


class Host(Protocol):
    """What surrounds the loop."""

    device: torch.device

    @property
    def reader(self) -> Reader:
        """How to open the rows that this rank will take."""
        ...

    def report(self, metrics: dict[str, Any], folder: Path | None) -> None:
        """Hand over metrics, and on rank 0 a folder that holds the checkpoint."""
        ...

    def preempted(self) -> bool:
        """Whether a node of the ranks is about to go; every rank asks, and gets the same."""
        ...

    def started(self, step: int) -> int:
        """Note that the run starts, or goes on, at a step; returns the steps done again so far.

        Called on rank 0.
        """
        ...

    def reached(self, step: int) -> None:
        """Note how far the run is; called on rank 0."""
        ...

    def show_curve(self, curve: list[dict[str, Any]]) -> None:
        """Show the records of all epochs so far; called on rank 0."""
        ...

    def restore(self) -> Path | None:
        """The folder of the checkpoint to go on from, if there is one."""
        ...

    def say(self, text: str) -> None:
        """Tell a person."""
        ...


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


def build_model(
    project: Project, prepared: Prepared, device: torch.device, precision: str
) -> tuple[Recommender, ItemVectors]:
    """The model on its device, same initial weights on every rank, and its item vectors."""
    torch.manual_seed(project.training.seed)
    catalogues = {name: prepared.catalogue(name) for name in prepared.scenarios}
    encoder = TextEncoder(project.model.encoder)
    model = Recommender(project.model, prepared.scenarios, catalogues, encoder).to(device)
    autocast = autocast_for(device, precision)
    pairs = None
    if project.model.layout == "pair":
        prefix, suffix = special_tokens(project.model.encoder.source)
        pairs = PairLayout(prefix, suffix, project.model.pair_tokens)
    return model, ItemVectors(model.encoder, catalogues, device, autocast, pairs)


def autocast_for(device: torch.device, precision: str) -> Autocast:
    """bf16 autocast where asked for, or (auto) where the device computes in bf16 natively."""
    native = computes_bf16(device)
    if precision == "fp32" or (precision == "auto" and not native):
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has matrix products in bf16 (on x86: AMX or AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


class Run:
    """A training run on one rank: what is built once and what changes from step to step."""

    def __init__(
        self, project: Project, prepared: Prepared, host: Host, start: Start | None = None
    ) -> None:
        self.project, self.prepared, self.host = project, prepared, host
        self.rank, self.size = world()
        self.plan = make_plan(project, prepared, self.size)
        self.model, self.vectors = build_model(
            project, prepared, host.device, project.training.precision
        )
        if start:
            begin(self.model, start)
        self.pull = Pull(self.model, start.l2_sp if start else 0.0)
        self.weights = torch.tensor(
            list(loss_weights(project.scenarios).values()), device=host.device
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
        self.speed: list[dict[str, float]] = []
        self.loss_sums = torch.zeros(len(self.weights), dtype=torch.float64)
        self.loss_counts = torch.zeros_like(self.loss_sums)
        self.last_batch: Batch | None = None
        if project.model.gathers:
            self.vectors.gathered = Gathered(self.vectors)
        folder = host.restore()
        state = checkpoint.load_state(folder) if folder else None
        for name, value in (state or {}).items():
            if name in RESUMED:
                setattr(self, name, value)
        self.optimizer = build_optimizer(self.model, project.training)
        self.schedule = build_schedule(self.optimizer, project.training, self.num_steps)
        if folder and state:
            checkpoint.load_model(folder, self.model)
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.vectors.restore(state["vectors"])
        self.feed = Feed(
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
        self.feed.open(self.host.reader, batches)
        self.vectors.compute_frozen(cache_folder(self.project))
        if self.vectors.cache is None:
            self.vectors.refresh()
        if self.rank == 0:
            self.redone_steps = self.host.started(self.step)

    def next_batch(self) -> Batch:
        """A micro-batch that holds every scenario; every rank takes as many rows of each."""
        for name, quota in self.plan.quotas.items():
            self.rows_seen[name] += quota * self.size
        started = time.monotonic()
        rows = self.feed.take()
        self.waited += time.monotonic() - started
        return {n: Samples.of(a, self.host.device) for n, a in rows.items()}

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
        if any_rank(not finite, self.host.device):
            self.skip(result)
        else:
            self.learn(result)
        self.schedule.step()
        self.step += 1
        return result

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


def train(
    project: Project, prepared: Prepared, host: Host, start: Start | None = None
) -> dict[str, Any]:
    """Train to the last epoch or until the joint score stops falling; returns the summary.

    From initial weights, or from where a scenario's model starts. Every rank must call it; the
    summary is the same on all.
    """
    run = Run(project, prepared, host, start)
    if run.rank == 0:
        host.say(
            f"plan: {run.plan.steps_per_epoch} steps an epoch, "
            f"rows of each rank's batch {run.plan.quotas}"
        )
    started = time.monotonic()
    run.start()
    if run.rank == 0:
        host.say(
            f"{run.vectors.num_items:,} item texts encoded in {time.monotonic() - started:.0f} s"
        )
    patience = project.training.patience
    while run.epoch < project.training.epochs and run.since_best < patience:
        losses = train_epoch(run)
        finish_epoch(run, losses)
    return summary(run)


def cache_folder(project: Project) -> Path:
    """Where this node keeps outputs of frozen layers."""
    return Path(project.run.cache_folder or Path(tempfile.gettempdir()) / "mtrec_ray" / "frozen")


def train_epoch(run: Run) -> dict[str, float]:
    """The steps of one epoch that are left; returns the mean loss of each scenario and task."""
    run.module.train()
    progress = Progress(run)
    last = (run.epoch + 1) * run.steps_per_epoch
    told = False
    first, started, run.waited = run.step, time.time(), 0.0
    while run.step < last:
        result = run.train_step()
        progress.tell(result)
        going = run.step % PREEMPTION_STEPS == 0 and not told and run.host.preempted()
        told = told or going
        if run.step < last and (going or run.step % run.project.run.checkpoint_steps == 0):
            hand_over(run, {"joint_score": NO_SCORE})
    note_speed(run, run.step - first, started)
    means = (run.loss_sums / run.loss_counts.clamp(min=1)).tolist()
    run.loss_sums.zero_()
    run.loss_counts.zero_()
    return dict(zip(("/".join(k) for k in loss_weights(run.project.scenarios)), means, strict=True))


def note_speed(run: Run, steps: int, started: float) -> None:
    """Note when an epoch started, its rows/s over all ranks and this rank's share of waiting."""
    seconds = time.time() - started
    rows = sum(run.plan.quotas.values()) * run.size * run.project.training.accumulation
    run.speed.append(
        {
            "epoch": run.epoch + 1,
            "started": started,
            "seconds": seconds,
            "rows_per_s": rows * steps / max(seconds, 1e-9),
            "data_wait_share": run.waited / max(seconds, 1e-9),
        }
    )


class Progress:
    """A line every few seconds: epoch, step, rows/s, loss of each scenario, time left."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.started = self.last = time.monotonic()
        self.first_step = run.step

    def tell(self, result: StepResult) -> None:
        """Say how far the run is, on rank 0."""
        now = time.monotonic()
        run = self.run
        if run.rank or now - self.last < PROGRESS_SECONDS:
            return
        self.last = now
        run.host.reached(run.step)
        done = run.step - self.first_step
        each = (now - self.started) / done
        rows = sum(run.plan.quotas.values()) * run.size * run.project.training.accumulation
        left = (run.num_steps - run.step) * each
        run.host.say(
            f"epoch {run.epoch + 1}/{run.project.training.epochs} "
            f"step {run.step}/{run.num_steps}  {rows / each:,.0f} rows/s  "
            f"loss {scenario_losses(run, result)}  {left / 60:.1f} min left"
        )


def scenario_losses(run: Run, result: StepResult) -> str:
    """The loss L_i of each scenario in a step, for a person."""
    means = (result.sums / result.counts.clamp(min=1)).tolist()
    keyed = dict(zip(loss_weights(run.project.scenarios), means, strict=True))
    words = []
    for name, scenario in run.project.scenarios.items():
        inside = sum(t.weight for t in scenario.tasks.values())
        value = sum(t.weight * keyed[name, n] for n, t in scenario.tasks.items()) / inside
        words.append(f"{name} {value:.3f}")
    return " ".join(words)


def finish_epoch(run: Run, losses: Mapping[str, float]) -> None:
    """Validate on all rows, remember the best score, write and report a checkpoint."""
    run.vectors.refresh()
    judged = run.project.evaluation
    metrics = validate(run.model, run.vectors, run.prepared, "valid", judged.valid_rows)
    score = joint_score(metrics, judged.weights or None)
    run.epoch += 1
    run.since_best = 0 if score < run.best else run.since_best + 1
    run.best = min(run.best, score)
    assert run.last_batch is not None
    gradients = scenario_gradients(run.forward, run.prepared.scenarios, run.last_batch, run.weights)
    record = {
        "epoch": run.epoch,
        "step": run.step,
        "joint_score": score,
        "train_loss": dict(losses),
        "valid": flat(metrics),
        "gradient_share": gradient_shares(gradients),
        "gradient_cosine": gradient_cosines(gradients),
        "gate_use": {n: use.tolist() for n, use in run.model.sharing.use.items()},
        "skipped_steps": run.not_finite.get("steps", 0),
    }
    run.curve.append(record)
    if run.rank == 0:
        run.host.show_curve(run.curve)
        run.host.say(f"epoch {run.epoch}: joint validation score {score:.4f} (best {run.best:.4f})")
    ranked = score if math.isfinite(score) else NO_SCORE
    hand_over(run, {"joint_score": ranked, **record["valid"]}, record)


def hand_over(
    run: Run, metrics: Mapping[str, float], record: Mapping[str, Any] | None = None
) -> None:
    """Report metrics; rank 0 brings the checkpoint. Every rank must call this."""
    told = {"epoch": run.epoch, "step": run.step, **metrics}
    state = run.state()
    if run.rank:
        run.host.report(told, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        checkpoint.save_model(path, run.model, {"project": run.project.dump(), "record": record})
        checkpoint.save_state(path, state)
        run.host.reached(run.step)
        run.host.report(told, path)


def summary(run: Run) -> dict[str, Any]:
    """What the run did, the same on all ranks but for `speed`: of the epochs since its start."""
    return {
        "best_joint_score": run.best,
        "epochs": run.epoch,
        "steps": run.step,
        "skipped_steps": run.not_finite.get("steps", 0),
        "not_finite": run.not_finite,
        "sampling_share": run.plan.sampling_shares,
        "loss_share": run.plan.loss_shares,
        "gradient_share": run.curve[-1]["gradient_share"] if run.curve else {},
        "rows_available": {n: f.num_rows("train") for n, f in run.prepared.scenarios.items()},
        "rows_seen": run.rows_seen,
        "rows": rows_accounted(run),
        "speed": run.speed,
        "trainable_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "curve": run.curve,
    }


def rows_accounted(run: Run) -> dict[str, dict[str, int]]:
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
