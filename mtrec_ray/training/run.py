"""A training run on one rank: what is built once, what a checkpoint resumes, and a step."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mtrec_ray.data.prepared import Prepared
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.project import Project
from mtrec_ray.training import checkpoint
from mtrec_ray.training.batches import BatchComposer, Plan, make_plan
from mtrec_ray.training.build import build_model, cache_folder
from mtrec_ray.training.cached_gradients import CachedGradients
from mtrec_ray.training.checkpoint import SavedRun
from mtrec_ray.training.collectives import any_rank, world
from mtrec_ray.training.context import TrainContext
from mtrec_ray.training.delta import L2SP, FineTuneStart, load_joint_weights
from mtrec_ray.training.forward import Forward, wrap
from mtrec_ray.training.item_vectors import Batch, ItemVectors
from mtrec_ray.training.losses import task_keys, task_labels, task_shapes, weight_tensor
from mtrec_ray.training.optim import build_optimization
from mtrec_ray.training.retrieval_loss import CandidateDraws, positive_counts
from mtrec_ray.training.step import StepResult, accumulate
from mtrec_ray.training.weighting import MovingWeights, moving_weights, units_of

# How often all ranks ask whether one of their nodes will be preempted: the question is a barrier.
PREEMPTION_CHECK_SECONDS = 5.0


class NotFiniteError(ValueError):
    """Too many steps had a loss or gradient that is not finite."""


@dataclass
class TrainingProgress:
    """How far a run is: plain values that a checkpoint holds and a resumed run starts with.

    Attributes:
        steps_per_epoch: as planned at the first start; another number of ranks does not change it.
        rows_seen: over all ranks, by scenario.
        validations: how many there were.
        best: the lowest joint score so far.
        loss_sums, label_counts: of the present epoch, by `scenario/task`; those of the retrieval
            side by scenario.
        skipped_steps: steps whose loss or gradient was not finite.
        not_finite_losses: in how many of them a task's loss was not, by `scenario/task`.
        not_finite_gradients: in how many of them the gradient alone was not.
    """

    steps_per_epoch: int
    rows_seen: dict[str, int]
    step: int = 0
    validations: int = 0
    best: float = math.inf
    curve: list[dict[str, Any]] = field(default_factory=list)
    loss_sums: dict[str, float] = field(default_factory=dict)
    label_counts: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    not_finite_losses: dict[str, int] = field(default_factory=dict)
    not_finite_gradients: int = 0

    def add_losses(self, sums: dict[str, float], counts: dict[str, float]) -> None:
        """Add a step's loss sums and label counts to those of the epoch."""
        for label, value in sums.items():
            self.loss_sums[label] = self.loss_sums.get(label, 0.0) + value
            self.label_counts[label] = self.label_counts.get(label, 0.0) + counts[label]

    def add_skipped(self, not_finite: Sequence[str]) -> None:
        """Count a skipped step, and the `scenario/task` whose losses were not finite in it."""
        self.skipped_steps += 1
        self.not_finite_gradients += not not_finite
        for label in not_finite:
            self.not_finite_losses[label] = self.not_finite_losses.get(label, 0) + 1


def start_progress(plan: Plan, prepared: Prepared, saved: SavedRun | None) -> TrainingProgress:
    """Returns the progress of a checkpoint, or that of a run that has not begun."""
    if saved:
        return TrainingProgress(**saved.state["progress"])
    return TrainingProgress(plan.steps_per_epoch, dict.fromkeys(prepared.scenarios, 0))


@dataclass
class Session:
    """What this process notes since it started; no checkpoint holds it.

    Attributes:
        repeated_steps: steps repeated so far, because no checkpoint held them.
        wait_seconds: spent on waiting for rows in the present epoch.
        speed: a record for each epoch.
        preemption_check_is_due: the same on all ranks.
    """

    repeated_steps: int = 0
    wait_seconds: float = 0.0
    speed: list[dict[str, float]] = field(default_factory=list)
    last_batch: Batch | None = None
    last_preemption_check: float = field(default_factory=time.monotonic)
    preemption_check_is_due: bool = False


def start_model(
    project: Project,
    prepared: Prepared,
    device: torch.device,
    start: FineTuneStart | None,
    saved: SavedRun | None,
) -> tuple[Recommender, ItemVectors, L2SP]:
    """Returns the model with its weights, its item vectors, and L2-SP towards its start.

    Loads the joint weights of `start`, to which L2-SP pulls, then those of a checkpoint.
    """
    model, vectors = build_model(project, prepared, device, project.training.precision)
    if start:
        load_joint_weights(model, start)
    l2_sp = L2SP(model, start.l2_sp if start else 0.0)
    if project.model.gathers:
        vectors.gathered = CachedGradients(vectors)
    if saved:
        checkpoint.load_model(saved.folder, model)
        vectors.restore(saved.state["vectors"])
    return model, vectors, l2_sp


class RankRun:
    """A training run on one rank."""

    def __init__(
        self,
        project: Project,
        prepared: Prepared,
        context: TrainContext,
        start: FineTuneStart | None = None,
    ) -> None:
        self.project, self.prepared, self.context = project, prepared, context
        self.rank, self.size = world()
        saved = checkpoint.load_run(context.checkpoint_folder())
        state = saved.state if saved else None
        self.plan = make_plan(project, prepared, self.size)
        self.progress = start_progress(self.plan, prepared, saved)
        self.session = Session()
        self.validation_epochs = project.training.validation_epochs
        self.weights = weight_tensor(prepared.scenarios, project.scenarios).to(context.device)
        self.shapes = task_shapes(project.scenarios)
        self.moving = self._moving_weights(state)
        self.model, self.vectors, self.l2_sp = start_model(
            project, prepared, context.device, start, saved
        )
        self.optimizer, self.schedule = build_optimization(
            self.model, project.training, self.num_steps, state
        )
        self.batches = BatchComposer(
            prepared, self.plan.quotas, project.training.seed, (self.rank, self.size),
            state["batches"] if state else None,
        )  # fmt: skip
        self.draws: CandidateDraws | None = None
        self.forward = Forward(self.model, self.vectors)
        self.module = wrap(self.forward, some_unused=self.encoder_skips_steps)

    def _moving_weights(self, state: dict[str, Any] | None) -> MovingWeights | None:
        """Returns weights that move while the model trains, at their start or as they were."""
        options = self.project.training
        units = units_of(task_keys(self.prepared.scenarios), self.weights, options.weighting.by)
        steps = self.progress.steps_per_epoch
        moving = moving_weights(options.weighting, units, options.seed, steps)
        if moving is not None and state is not None:
            moving.restore(state["weighting"])
        return moving

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.progress.steps_per_epoch * self.project.training.epochs

    @property
    def epoch(self) -> float:
        """How many epochs are over: whole ones, and parts of one between two validations."""
        validations = self.progress.validations
        return self.validation_epochs[validations - 1] if validations else 0.0

    @property
    def since_best(self) -> float:
        """Epochs since the validation with the lowest score so far."""
        curve = self.progress.curve
        best = [record["epoch"] for record in curve if record["joint_score"] == self.progress.best]
        return self.epoch - (best[0] if best else 0.0)

    @property
    def next_validation(self) -> int:
        """The step after which the next validation follows."""
        epochs = self.validation_epochs[self.progress.validations]
        return math.ceil(round(epochs * self.progress.steps_per_epoch, 6))

    @property
    def rows_per_step(self) -> dict[str, int]:
        """Rows of each scenario in an optimizer step, over all ranks."""
        times = self.size * self.project.training.accumulation
        return {name: quota * times for name, quota in self.plan.quotas.items()}

    @property
    def encoder_skips_steps(self) -> bool:
        """Whether the encoder learns in every k-th step, from that step's rows."""
        options = self.project.model
        learns_from_rows = not self.model.encoder.is_frozen and not options.gathers
        return learns_from_rows and options.encoder_every > 1

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint holds beside the weights; every rank must call this."""
        return {
            "progress": asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "batches": self.batches.state(),
            "vectors": self.vectors.state(),
            "weighting": self.moving.state() if self.moving else {},
        }

    def start(self) -> None:
        """Open the streams and compute the item vectors."""
        num_batches = (self.num_steps - self.progress.step) * self.project.training.accumulation
        self.batches.open(self.context.open_rows, num_batches)
        self.vectors.compute_frozen(cache_folder(self.project))
        if self.vectors.cache is None:
            self.vectors.refresh()
        if self.model.retrieval is not None and self.model.retrieval.learns:
            self.draws = self._candidate_draws()
        if self.rank == 0:
            self.session.repeated_steps = self.context.note_start(self.progress.step)

    def _candidate_draws(self) -> CandidateDraws:
        """Returns what draws the retrieval side's candidates; every rank must call this."""
        counts = positive_counts(self.prepared, self.context.device)
        facts, seed = self.prepared.scenarios, self.project.training.seed
        return CandidateDraws(self.project.model, facts, counts, seed)

    def next_batch(self) -> Batch:
        """Returns a micro-batch with rows of every scenario, as many of each on every rank."""
        for name, quota in self.plan.quotas.items():
            self.progress.rows_seen[name] += quota * self.size
        started = time.monotonic()
        rows = self.batches.next_batch()
        self.session.wait_seconds += time.monotonic() - started
        return {n: Samples.of(a, self.context.device) for n, a in rows.items()}

    def encodes(self) -> bool:
        """Returns whether the encoder learns from this step's rows, not from gathered gradients."""
        options = self.project.model
        if self.model.encoder.is_frozen or options.gathers:
            return False
        return self.progress.step % options.encoder_every == 0

    def gather(self) -> None:
        """Sum the gradients of the item vectors; in every k-th step, take them to the encoder."""
        gathered = self.vectors.gathered
        if gathered is None:
            return
        gathered.collect()
        if (self.progress.step + 1) % self.project.model.encoder_every == 0:
            gathered.backward()

    def train_step(self) -> StepResult:
        """Takes an optimizer step; all ranks skip one whose loss or gradient is not finite.

        Its random numbers follow from seed, step and rank alone.
        """
        step = self.progress.step
        torch.manual_seed(self.project.training.seed * 1_000_003 + step * 1009 + self.rank)
        batches = [self.next_batch() for _ in range(self.project.training.accumulation)]
        self.session.last_batch = batches[-1]
        self.optimizer.zero_grad(set_to_none=True)
        result = accumulate(
            self.module, self.prepared.scenarios, batches, self.weights,
            encode=self.encodes(), autocast=self.vectors.autocast,
            drawn=self.draws.of_step(batches, step) if self.draws else None, shapes=self.shapes,
            moving=self.moving, step=step,
        )  # fmt: skip
        if self.finite_on_all_ranks(result):
            self.learn(result)
        else:
            self.skip(result)
        self.schedule.step()
        self.progress.step += 1
        return result

    def finite_on_all_ranks(self, result: StepResult) -> bool:
        """Returns whether the loss and the watched gradients are finite.

        In the same collective the ranks agree whether they will ask about a preemption.
        """
        gathered, session = self.vectors.gathered, self.session
        finite = math.isfinite(result.loss) and (gathered is None or gathered.is_finite())
        due = time.monotonic() - session.last_preemption_check >= PREEMPTION_CHECK_SECONDS
        wrong, session.preemption_check_is_due = any_rank([not finite, due], self.context.device)
        return not wrong

    def preempted(self) -> bool:
        """Returns whether a node of the ranks will be preempted; asked every few seconds."""
        if not self.session.preemption_check_is_due:
            return False
        self.session.last_preemption_check = time.monotonic()
        self.session.preemption_check_is_due = False
        return self.context.preempted()

    def learn(self, result: StepResult) -> None:
        """Take the step, if the gradient, now the same on all ranks, is finite.

        Gathered gradients are collected only once those of all other parameters are known to be
        finite: a skipped step must not reach the encoder in a later one.
        """
        if self.vectors.gathered is not None and not gradient_is_finite(self.model):
            self.skip(result)
            return
        self.gather()
        limit = self.project.training.clip_norm
        norms = [torch.nn.utils.clip_grad_norm_(p, limit) for p in clipped_together(self.model)]
        if not all(bool(torch.isfinite(norm)) for norm in norms):
            self.skip(result)
            return
        self.optimizer.step()
        self.l2_sp.step(self.optimizer)
        if self.moving is not None and result.seen is not None:
            self.moving.update(result.seen, result.look_back() if result.look_back else None)
        self.progress.add_losses(self.by_label(result.sums), self.by_label(result.counts))
        self.progress.add_losses(result.retrieval_sums, result.retrieval_counts)

    def by_label(self, values: torch.Tensor) -> dict[str, float]:
        """Returns the entries of a tensor [K] by `scenario/task`."""
        return dict(zip(task_labels(self.prepared.scenarios), values.tolist(), strict=True))

    def skip(self, result: StepResult) -> None:
        """Count a step that is not finite.

        Raises:
            NotFiniteError: there are more of them than the allowed share of all steps.
        """
        if self.vectors.gathered is not None:
            self.vectors.gathered.forget()
        sums = self.by_label(result.sums)
        self.progress.add_skipped([n for n, value in sums.items() if not math.isfinite(value)])
        allowed = self.project.training.max_skipped * self.num_steps
        if self.progress.skipped_steps > allowed:
            raise NotFiniteError(
                f"training.max_skipped: found {self.progress.skipped_steps} steps without a finite "
                f"loss and gradient ({causes(self.progress)}); "
                f"allowed: {allowed:g} of {self.num_steps} steps"
            )


def causes(progress: TrainingProgress) -> str:
    """Returns `shop/click 2, gradient 1`: what was not finite in the skipped steps."""
    words = [f"{label} {count}" for label, count in progress.not_finite_losses.items()]
    if progress.not_finite_gradients:
        words.append(f"gradient {progress.not_finite_gradients}")
    return ", ".join(words)


def gradient_is_finite(model: Recommender) -> bool:
    """Returns whether the norms of all gradients, as they will be clipped, are finite."""
    norms = [
        torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])
        for group in clipped_together(model)
    ]
    return all(bool(torch.isfinite(norm)) for norm in norms)


def clipped_together(model: Recommender) -> list[list[torch.nn.Parameter]]:
    """Returns groups of parameters, each clipped by its norm: model, general head, retrieval side.

    The head and the retrieval side are apart, so that they do not change the model's steps.
    """
    beside = [
        list(part.parameters()) for part in (model.general, model.retrieval) if part is not None
    ]
    ids = {id(p) for part in beside for p in part}
    return [p for p in ([p for p in model.parameters() if id(p) not in ids], *beside) if p]
