"""What a run of a project would do, and roughly for how long: from footers, without Ray."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.fs as pafs

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.preparing.inputs import footers
from mtrec_ray.project.depends_on import fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.stages.pipeline import searches
from mtrec_ray.stages.run_folder import RunFolder
from mtrec_ray.training.batches import quotas

STAGES = ("prepare", "tune", "train", "finetune", "evaluate", "recommend")

# Guesses, not measurements: near what the README shows of the quickstart (two workers, 2 cores).
ROWS_PER_S = 2_500.0  # that a worker trains
PREPARED_ROWS_PER_S = 20_000.0
STAGE_SECONDS = 12.0  # of starting processes, a stage
TRAIN_SHARE = 0.8  # of the rows, where the splits are not known before they are read
BYTES_PER_ROW = 400  # of a training sample with its history, in the object store


@dataclass(frozen=True)
class Size:
    """Sizes of a scenario: rows of its log, items, and rows by split where they are known."""

    rows: int
    items: int
    splits: Mapping[str, int] | None = None

    @property
    def train(self) -> int:
        """Training rows, or a guess of them."""
        return self.splits["train"] if self.splits else int(self.rows * TRAIN_SHARE)


@dataclass(frozen=True)
class RunEstimate:
    """What training would do.

    Attributes:
        quotas: rows of each scenario in a global batch.
        steps_per_epoch, steps: of the joint model.
        seconds: roughly, of each stage that is still to do; None where there is no basis.
        basis: what the seconds rest on.
    """

    quotas: dict[str, int]
    steps_per_epoch: int
    steps: int
    seconds: dict[str, float] | None
    basis: str


def sizes_of(project: Project, storage_path: str) -> dict[str, Size]:
    """Returns rows and items of each scenario: from Parquet footers, splits from prepared data."""
    splits = known_splits(project, storage_path)
    here = with_world_root(project, storage_path)
    if here is None:
        world = project.sample_world
        assert world is not None
        return {n: Size(world.events, world.items) for n in project.scenarios}
    sizes = {}
    for name, scenario in here.scenarios.items():
        rows, items = (
            sum(footer.num_rows for footer in footers(here.path(path)))
            for path in (scenario.events.path, scenario.items.path)
        )
        split_rows = splits.get(name)
        if (
            split_rows is None and scenario.negatives and scenario.draws_negatives
        ):  # at most: not every row is a positive
            rows *= 1 + scenario.negatives.per_positive
        if split_rows is None and scenario.split.fractions:
            names = ("train", "valid", "test")
            split_rows = {
                s: int(rows * f) for s, f in zip(names, scenario.split.fractions, strict=True)
            }
        sizes[name] = Size(rows, items, split_rows)
    return sizes


def known_splits(project: Project, storage_path: str) -> dict[str, dict[str, int]]:
    """Returns rows by split of each scenario that is prepared."""
    stage = RunFolder.of(project, storage_path).prepare
    if not stage.is_finished:
        return {}
    splits = ("train", "valid", "test")
    facts = load_prepared(stage.folder).scenarios
    return {n: {s: f.num_rows(s) for s in splits} for n, f in facts.items()}


def stages_of(project: Project, storage_path: str, job: str) -> list[str]:
    """Returns the stages that a job goes through."""
    if job == "pipeline":
        stages: list[str] = list(STAGES)
        if not searches(
            project, RunFolder.of(project, storage_path)
        ) and "tune" not in finished_stages(project, storage_path):
            stages.remove("tune")
        return stages
    return ["prepare", "tune"] if job == "tune" else [job]


def finished_stages(project: Project, storage_path: str) -> list[str]:
    """Returns the stages of a run that are done."""
    run, names = RunFolder.of(project, storage_path), list(project.scenarios)
    stages = {
        "prepare": [run.prepare],
        "tune": [run.tune],
        "train": [run.train],
        "finetune": [run.finetune(name) for name in names],
        "evaluate": [run.evaluate],
        "recommend": [run.recommend(name) for name in names],
    }
    return [job for job, parts in stages.items() if all(part.is_finished for part in parts)]


def estimate_of(
    project: Project, storage_path: str, sizes: Mapping[str, Size], job: str
) -> RunEstimate:
    """Returns batches, steps and rough times of the stages that a job has still to do."""
    training, run = project.training, project.run
    ranks = run.most_workers * training.accumulation
    rows = {n: s.train for n, s in sizes.items()}
    batch_quotas = quotas(rows, training.batch_size // ranks, training.alpha)
    batch = {n: q * ranks for n, q in batch_quotas.items()}
    epoch = training.rows_per_epoch or sum(rows.values())
    steps = max(-(-epoch // sum(batch.values())), 1)
    rate, basis = rate_of(project, storage_path)
    done = finished_stages(project, storage_path)
    todo = [s for s in stages_of(project, storage_path, job) if s not in done]
    times = stage_seconds(project, sizes, epoch, rate) if rate else {}
    seconds = {s: times[s] for s in todo} if rate else None
    return RunEstimate(batch, steps, steps * training.epochs, seconds, basis)


def stage_seconds(
    project: Project, sizes: Mapping[str, Size], epoch_rows: float, rate: float
) -> dict[str, float]:
    """Returns rough seconds of each stage, where a worker trains `rate` rows/s."""
    run, search = project.run, project.search
    cores = os.cpu_count() or 1
    rows = sum(s.rows for s in sizes.values())
    train = epoch_rows * project.training.epochs / rate
    trials = search.pipeline_trials or search.trials
    trial_rows = (search.rows_per_epoch or epoch_rows) * (search.epochs or project.training.epochs)
    tuned = sum(s.train for s in sizes.values()) * project.finetune.epochs / rate
    work = {
        "prepare": rows / PREPARED_ROWS_PER_S,
        "tune": trials * (trial_rows / rate + STAGE_SECONDS) / cores,
        "train": train / run.most_workers,
        "finetune": tuned / min(cores, max(len(sizes), 1)) + STAGE_SECONDS * len(sizes) / cores,
        "evaluate": rows * (1 - TRAIN_SHARE) / (4 * rate),
        "recommend": STAGE_SECONDS * (len(sizes) - 1) / cores,
    }
    return {stage: seconds + STAGE_SECONDS for stage, seconds in work.items()}


def rate_of(project: Project, storage_path: str) -> tuple[float | None, str]:
    """Returns rows/s that a worker trains, and what that rests on.

    Measured by a run in the same storage that has the same model; else by the quickstart on another
    machine, for an encoder no larger than its own; else unknown.
    """
    model = project.model.model_dump(mode="json")
    for run in runs_here(storage_path, project.run.name):
        record, facts = run.train.result, storage.join(run.best_joint_model, "model.json")
        if not record or not record.get("speed") or not storage.exists(facts):
            continue
        trained = storage.read_json(facts)["project"]
        if trained["model"] != model:
            continue
        workers = trained["run"]["num_workers"]
        most = workers if isinstance(workers, int) else workers[-1]
        rate = max(s["rows_per_s"] for s in record["speed"]) / most
        return rate, f"by the speed of run {trained['run']['name']} here"
    encoder = project.model.encoder
    learns = encoder.trainable == "none" or (encoder.trainable == "top_k" and encoder.top_k == 1)
    small = any(word in encoder.source.lower().replace("_", "-") for word in ("minilm-l6", "tiny"))
    if project.model.layout == "vectors" and small and learns and not project.run.use_gpu:
        return ROWS_PER_S, "a guess, no run measured here yet"
    return None, "no run with this model is in the storage yet"


def runs_here(storage_path: str, run: str) -> list[RunFolder]:
    """Returns the runs of a storage, a given one first."""
    fs, inner = storage.filesystem(storage_path)
    infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    others = [info.base_name for info in infos if info.type == pafs.FileType.Directory]
    return [RunFolder(storage_path, name) for name in dict.fromkeys([run, *others])]


def with_world_root(project: Project, storage_path: str) -> Project | None:
    """Returns the project with the root of its files; None while its world is not written."""
    world = project.sample_world
    if world is None:
        return project
    root = storage.join(storage_path, f"sample_world-{fingerprint(world.model_dump())}")
    if not storage.exists(storage.join(root, "sample_world.json")):
        return None
    return project.model_copy(update={"root": root})
