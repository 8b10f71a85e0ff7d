"""The training loop: epochs of composed batches, validation, checkpoints. Knows no Ray.

`run.py` has the run and its steps, `context.py` what it sees of the world around it.
"""

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrec_ray.data.prepared import Prepared
from mtrec_ray.evaluation.metrics import flat, joint_score
from mtrec_ray.progress import tell_progress
from mtrec_ray.project.project import Project
from mtrec_ray.training import checkpoint
from mtrec_ray.training.context import NO_SCORE, TrainContext
from mtrec_ray.training.delta import FineTuneStart
from mtrec_ray.training.losses import loss_weights
from mtrec_ray.training.run import RankRun, rows_accounted
from mtrec_ray.training.step import (
    StepResult,
    gradient_cosines,
    gradient_shares,
    scenario_gradients,
)
from mtrec_ray.training.validation import validate

PROGRESS_SECONDS = 5.0


def train(
    project: Project, prepared: Prepared, context: TrainContext, start: FineTuneStart | None = None
) -> dict[str, Any]:
    """Train to the last epoch or until the joint score stops falling; returns the summary.

    From initial weights, or from where a scenario's model starts. Every rank must call it; the
    summary is the same on all.
    """
    run = RankRun(project, prepared, context, start)
    if run.rank == 0:
        context.log(plan_text(run))
    started = time.monotonic()
    run.start()
    if run.rank == 0:
        context.log(
            f"{run.vectors.num_items:,} item texts encoded in {time.monotonic() - started:.0f} s"
        )
    patience = project.training.patience
    while run.epoch < project.training.epochs and run.since_best < patience:
        losses = train_epoch(run)
        finish_epoch(run, losses)
    if run.rank == 0:
        told = f"{run.epoch} epochs, best score {run.best:.4f}"
        tell_progress(context.log, "training", run.num_steps, run.num_steps, told, quiet=True)
    return run_summary(run)


def plan_text(run: RankRun) -> str:
    """Steps, and the rows of each scenario in a batch, for a person."""
    times = run.size * run.project.training.accumulation
    rows = ", ".join(f"{name} {quota * times:,}" for name, quota in run.plan.quotas.items())
    return f"{run.num_steps:,} steps; rows of a batch: {rows}"


def train_epoch(run: RankRun) -> dict[str, float]:
    """The steps of one epoch that are left; returns the mean loss of each scenario and task."""
    run.module.train()
    progress = ProgressLines(run)
    last = (run.epoch + 1) * run.steps_per_epoch
    told = False
    first, started, run.waited = run.step, time.time(), 0.0
    while run.step < last:
        result = run.train_step()
        progress.tell(result)
        going = not told and run.preempted()
        told = told or going
        if run.step < last and (going or run.step % run.project.run.checkpoint_steps == 0):
            report_checkpoint(run, {"joint_score": NO_SCORE})
    note_speed(run, run.step - first, started)
    means = (run.loss_sums / run.loss_counts.clamp(min=1)).tolist()
    run.loss_sums.zero_()
    run.loss_counts.zero_()
    return dict(zip(("/".join(k) for k in loss_weights(run.project.scenarios)), means, strict=True))


def note_speed(run: RankRun, steps: int, started: float) -> None:
    """Note when an epoch started, its rows/s over all ranks and this rank's share of waiting."""
    seconds = time.time() - started
    run.speed.append(
        {
            "epoch": run.epoch + 1,
            "started": started,
            "seconds": seconds,
            "rows_per_s": batch_rows(run) * steps / max(seconds, 1e-9),
            "data_wait_share": run.waited / max(seconds, 1e-9),
        }
    )


class ProgressLines:
    """Every few seconds: epoch, step, rows/s, and the loss."""

    def __init__(self, run: RankRun) -> None:
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
        run.context.reached(run.step)
        each = (now - self.started) / (run.step - self.first_step)
        tell_progress(
            run.context.log,
            "training",
            run.step,
            run.num_steps,
            f"epoch {run.epoch + 1}/{run.project.training.epochs}  "
            f"{batch_rows(run) / each:,.0f} rows/s  loss {mean_loss(run, result):.3f}",
        )


def batch_rows(run: RankRun) -> int:
    """Rows of an optimizer step, over all ranks."""
    return sum(run.plan.quotas.values()) * run.size * run.project.training.accumulation


def mean_loss(run: RankRun, result: StepResult) -> float:
    """The loss of a step on this rank: L_it averaged as the run's weights say."""
    means = result.sums / result.counts.clamp(min=1)
    weights = means.new_tensor(list(loss_weights(run.project.scenarios).values()))
    return float((means * weights).sum())


def finish_epoch(run: RankRun, losses: Mapping[str, float]) -> None:
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
        run.context.show_curve(run.curve)
        tell_epoch(run, score)
    ranked = score if math.isfinite(score) else NO_SCORE
    report_checkpoint(run, {"joint_score": ranked, **record["valid"]}, record)


def tell_epoch(run: RankRun, score: float) -> None:
    """Say an epoch's validation score, the best so far and the speed."""
    best = "" if run.since_best == 0 else f" (best {run.best:.4f})"
    run.context.log(
        f"epoch {run.epoch}: joint validation score {score:.4f}{best}, "
        f"{run.speed[-1]['rows_per_s']:,.0f} rows/s"
    )


def report_checkpoint(
    run: RankRun, metrics: Mapping[str, float], record: Mapping[str, Any] | None = None
) -> None:
    """Report metrics; rank 0 brings the checkpoint. Every rank must call this."""
    told = {"epoch": run.epoch, "step": run.step, **metrics}
    state = run.state()
    if run.rank:
        run.context.report(told, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        checkpoint.save_model(path, run.model, {"project": run.project.dump(), "record": record})
        checkpoint.save_state(path, state)
        run.context.reached(run.step)
        run.context.report(told, path)


def run_summary(run: RankRun) -> dict[str, Any]:
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
