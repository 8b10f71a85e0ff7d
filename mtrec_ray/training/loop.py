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
from mtrec_ray.progress import no_log, tell_progress
from mtrec_ray.project.project import Project
from mtrec_ray.training import checkpoint
from mtrec_ray.training.context import NO_SCORE, TrainContext
from mtrec_ray.training.delta import FineTuneStart
from mtrec_ray.training.losses import task_labels
from mtrec_ray.training.run import RankRun
from mtrec_ray.training.step import (
    StepResult,
    gradient_cosines,
    gradient_shares,
    scenario_gradients,
)
from mtrec_ray.training.validation import validate

LOG_SECONDS = 5.0


def train(
    project: Project, prepared: Prepared, context: TrainContext, start: FineTuneStart | None = None
) -> dict[str, Any]:
    """Train to the last epoch or until the joint score stops falling; returns the summary.

    From initial weights, or from where a scenario's model starts. Every rank must call it; the
    summary is the same on all.
    """
    run = RankRun(project, prepared, context, start)
    say = context.log if run.rank == 0 else no_log  # rank 0 logs for all
    say(plan_text(run))
    started = time.monotonic()
    run.start()
    seconds = time.monotonic() - started
    say(f"{run.vectors.num_items:,} item texts encoded in {seconds:.0f} s")
    while not is_finished(run):
        losses = train_epoch(run)
        finish_epoch(run, losses)
    if run.rank == 0:
        told = f"{run.epoch:g} epochs, best score {run.progress.best:.4f}"
        tell_progress(context.log, "training", run.num_steps, run.num_steps, told, quiet=True)
    return run_summary(run)


def is_finished(run: RankRun) -> bool:
    """Returns whether the last epoch is over, or the score has not fallen for `patience` epochs."""
    options = run.project.training
    return run.epoch >= options.epochs or run.since_best >= options.patience


def plan_text(run: RankRun) -> str:
    """Returns steps, and the rows of each scenario in a batch, for a person."""
    rows = ", ".join(f"{name} {num:,}" for name, num in run.rows_per_step.items())
    return f"{run.num_steps:,} steps; rows of a batch: {rows}"


def train_epoch(run: RankRun) -> dict[str, float]:
    """Take the remaining steps until the next validation; returns their mean losses."""
    run.module.train()
    progress, log = run.progress, StepLog(run)
    last = run.next_validation
    first, started, run.session.wait_seconds = progress.step, time.time(), 0.0
    has_notice = False  # a preemption gets one checkpoint an epoch
    while progress.step < last:
        log.step(run.train_step())
        first_notice = not has_notice and run.preempted()
        has_notice = has_notice or first_notice
        regular = progress.step % run.project.run.checkpoint_steps == 0
        if progress.step < last and (first_notice or regular):
            report_checkpoint(run, {"joint_score": NO_SCORE})
    note_speed(run, progress.step - first, started)
    return take_mean_losses(run)


def take_mean_losses(run: RankRun) -> dict[str, float]:
    """Returns the epoch's mean losses, and resets their sums to 0.

    By `scenario/task`, and those of the retrieval side by scenario.
    """
    sums, counts = run.progress.loss_sums, run.progress.label_counts
    run.progress.loss_sums, run.progress.label_counts = {}, {}
    labels = task_labels(run.prepared.scenarios) + list(run.draws.shares if run.draws else ())
    return {label: sums.get(label, 0.0) / (counts.get(label, 0.0) or 1) for label in labels}


def note_speed(run: RankRun, num_steps: int, started: float) -> None:
    """Note when an epoch started, its rows/s over all ranks and this rank's share of waiting."""
    seconds = max(time.time() - started, 1e-9)
    run.session.speed.append(
        {
            "epoch": run.validation_epochs[run.progress.validations],
            "started": started,
            "seconds": seconds,
            "rows_per_s": sum(run.rows_per_step.values()) * num_steps / seconds,
            "data_wait_share": run.session.wait_seconds / seconds,
        }
    )


class StepLog:
    """Logs progress every few seconds: epoch, step, rows/s, loss, time left."""

    def __init__(self, run: RankRun) -> None:
        self.run = run
        self.started = self.last = time.monotonic()
        self.first_step = run.progress.step

    def step(self, result: StepResult) -> None:
        """Log how far the run is, on rank 0, at most every few seconds."""
        now, run, progress = time.monotonic(), self.run, self.run.progress
        if run.rank or now - self.last < LOG_SECONDS:
            return
        self.last = now
        run.context.note_step(progress.step)
        seconds = (now - self.started) / (progress.step - self.first_step)
        rows_per_s = sum(run.rows_per_step.values()) / seconds
        tell_progress(
            run.context.log,
            "training",
            progress.step,
            run.num_steps,
            f"epoch {int(run.epoch) + 1}/{run.project.training.epochs}  "
            f"{rows_per_s:,.0f} rows/s  loss {result.loss:.3f}",
        )


def finish_epoch(run: RankRun, losses: Mapping[str, float]) -> None:
    """Validate, note the score in the curve, report a checkpoint."""
    run.vectors.refresh()
    options, progress = run.project.evaluation, run.progress
    metrics = validate(run.model, run.vectors, run.prepared, "valid", options.valid_rows)
    score = joint_score(metrics, options.weights or None)
    progress.validations += 1
    progress.best = min(progress.best, score)
    record = {
        "epoch": run.epoch,
        "step": progress.step,
        "joint_score": score,
        "train_loss": {label: loss for label, loss in losses.items() if "/" in label},
        "retrieval_loss": {name: loss for name, loss in losses.items() if "/" not in name},
        "valid": flat(metrics),
        **shared_layer_record(run),
        **({"loss_weights": run.moving.take_means()} if run.moving else {}),
        "skipped_steps": progress.skipped_steps,
    }
    progress.curve.append(record)
    if run.rank == 0:
        run.context.show_curve(progress.curve)
        tell_epoch(run, score)
    ranked = score if math.isfinite(score) else NO_SCORE
    report_checkpoint(run, {"joint_score": ranked, **record["valid"]}, record)


def tell_epoch(run: RankRun, score: float) -> None:
    """Log an epoch's validation score, the best so far and the speed."""
    progress = run.progress
    best = "" if score == progress.best else f" (best {progress.best:.4f})"
    run.context.log(
        f"epoch {run.epoch:g}: joint validation score {score:.4f}{best}, "
        f"{run.session.speed[-1]['rows_per_s']:,.0f} rows/s"
    )


def shared_layer_record(run: RankRun) -> dict[str, Any]:
    """Returns how scenarios share layers between inputs and heads, measured on the last batch."""
    batch = run.session.last_batch
    assert batch is not None
    facts = run.prepared.scenarios
    weights = run.moving.mean_task_weights if run.moving else run.weights
    gradients = scenario_gradients(run.forward, facts, batch, weights, run.shapes)
    return {
        "gradient_share": gradient_shares(gradients),
        "gradient_cosine": gradient_cosines(gradients),
        "gate_use": {n: use.tolist() for n, use in run.model.sharing.use.items()},
    }


def report_checkpoint(
    run: RankRun, metrics: Mapping[str, float], record: Mapping[str, Any] | None = None
) -> None:
    """Report metrics; rank 0 brings the checkpoint. Every rank must call this."""
    report = {"epoch": run.epoch, "step": run.progress.step, **metrics}
    state = run.state()
    if run.rank:
        run.context.report(report, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        checkpoint.save_model(path, run.model, {"project": run.project.dump(), "record": record})
        checkpoint.save_state(path, state)
        run.context.note_step(run.progress.step)
        run.context.report(report, path)


def run_summary(run: RankRun) -> dict[str, Any]:
    """Returns what the run did; only `speed`, of the epochs since its start, differs by rank."""
    progress = run.progress
    return {
        "best_joint_score": progress.best,
        "epochs": run.epoch,
        "steps": progress.step,
        "skipped_steps": progress.skipped_steps,
        "not_finite_losses": progress.not_finite_losses,
        "not_finite_gradients": progress.not_finite_gradients,
        "sampling_share": run.plan.sampling_shares,
        "loss_share": run.plan.loss_shares,
        "gradient_share": progress.curve[-1]["gradient_share"] if progress.curve else {},
        "rows_available": {n: f.num_rows("train") for n, f in run.prepared.scenarios.items()},
        "rows_seen": progress.rows_seen,
        "rows": rows_accounted(run),
        "speed": run.session.speed,
        "trainable_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "curve": progress.curve,
    }


def rows_accounted(run: RankRun) -> dict[str, dict[str, int]]:
    """Returns by scenario the rows available, seen, repeated, not reached, redone.

    No row is dropped: each pass holds every row once. `repeated`: seen in more than one pass.
    `redone`: repeated after a failure, because no checkpoint held them; they count once as seen.
    """
    rows = {}
    for name, facts in run.prepared.scenarios.items():
        available, seen = facts.num_rows("train"), run.progress.rows_seen[name]
        rows[name] = {
            "available": available,
            "seen": seen,
            "repeated": max(seen - available, 0),
            "not_reached": max(available - seen, 0),
            "redone": run.session.repeated_steps * run.rows_per_step[name],
        }
    return rows
