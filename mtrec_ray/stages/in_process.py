"""Training in the calling process: one rank, no worker group that would have to start.

R ranks give what one rank gives with as many rows in a batch, so that a search may train its trials
so, and fine-tuning its scenarios: where a run takes seconds, starting processes for it would take
longer than the run.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.stream import RowSource
from mtrec_ray.progress import Log, no_log
from mtrec_ray.project.project import Project
from mtrec_ray.stages.run_folder import BEST, Stage
from mtrec_ray.training import loop
from mtrec_ray.training.batches import OpenRows
from mtrec_ray.training.checkpoint import FACTS, WEIGHTS
from mtrec_ray.training.context import NO_SCORE
from mtrec_ray.training.delta import FineTuneStart

LATEST = "latest.json"


ReportEpoch = Callable[[dict[str, Any]], None]


class InProcessContext:
    """The loop's view of the calling process; checkpoints lie in the model's folder."""

    def __init__(
        self, project: Project, folder: str, source: RowSource, tell: ReportEpoch, log: Log
    ) -> None:
        self.folder, self.source, self.tell, self.log = folder, source, tell, log
        self.device = torch.device("cuda" if project.run.use_gpu else "cpu")
        self.copy = tempfile.TemporaryDirectory()  # of the checkpoint to go on from
        self.latest = read_latest(folder)

    @property
    def open_rows(self) -> OpenRows:
        """The rows from the object store, or streamed."""
        return self.source.read

    def report(self, metrics: dict[str, Any], folder: Path | None) -> None:
        """Store the checkpoint, then report the metrics; the best model stays in `best`."""
        assert folder is not None
        name = f"checkpoint_{metrics['step']:09d}"
        for file in sorted(folder.iterdir()):
            storage.write_bytes(storage.join(self.folder, name, file.name), file.read_bytes())
        before, best = self.latest.get("name"), self.latest.get("best", NO_SCORE)
        if metrics["joint_score"] < best:
            best = metrics["joint_score"]
            for file in (WEIGHTS, FACTS):
                data = (folder / file).read_bytes()
                storage.write_bytes(storage.join(self.folder, BEST, file), data)
        self.latest = {"name": name, "best": best}
        storage.write_json(storage.join(self.folder, LATEST), self.latest)
        if before and before != name:
            with suppress(OSError):
                storage.remove_folder(storage.join(self.folder, before))
        self.tell(metrics)

    def preempted(self) -> bool:
        """Returns False: Ray tells workers only; a trial goes on from its last epoch elsewhere."""
        return False

    def note_start(self, step: int) -> int:
        """Returns 0: repeated steps are not counted."""
        return 0

    def note_step(self, step: int) -> None:
        """Do nothing: the checkpoint holds the step."""

    def show_curve(self, curve: list[dict[str, Any]]) -> None:
        """Do nothing: a search shows the curves of its trials, fine-tuning keeps none."""

    def checkpoint_folder(self) -> Path | None:
        """Returns the latest checkpoint of this name, copied to this node."""
        if not self.latest:
            return None
        target = Path(self.copy.name)
        for path in storage.files(storage.join(self.folder, self.latest["name"])):
            (target / storage.name_of(path)).write_bytes(storage.read_bytes(path))
        return target


def read_latest(folder: str) -> dict[str, Any]:
    """Returns the latest whole checkpoint's name and the best score so far; empty: none."""
    path = storage.join(folder, LATEST)
    return storage.read_json(path) if storage.exists(path) else {}


def train_in_process(
    project: Project,
    prepared: Prepared,
    stage: Stage,
    source: RowSource,
    tell: Callable[[Any], None],
    start: FineTuneStart | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Train a model in a stage's folder, or go on with it, in this process; returns the summary.

    `tell` gets the metrics of each report after its checkpoint is stored.

    Raises:
        ValueError: too many steps without a finite loss.
    """
    torch.set_num_threads(project.run.cpus_per_worker)
    context = InProcessContext(project, stage.folder, source, tell, log or no_log)
    return stage.finish(loop.train(project, prepared, context, start))
