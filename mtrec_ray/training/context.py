"""What a training run sees of the world around it.

`stages/ray_context.py` makes one of a Ray Train worker, `stages/in_process.py` one of the
calling process.
"""

import sys
from pathlib import Path
from typing import Any, Protocol

import torch

from mtrec_ray.progress import Log
from mtrec_ray.training.batches import OpenRows

# The score of a checkpoint that has none. (Ray Train keeps scores as JSON: infinity is lost in it.)
NO_SCORE = sys.float_info.max


class TrainContext(Protocol):
    """What the training loop asks of its surroundings."""

    device: torch.device

    @property
    def open_rows(self) -> OpenRows:
        """Opens the rows that this rank will take."""
        ...

    def report(self, metrics: dict[str, Any], folder: Path | None) -> None:
        """Report metrics; on rank 0 with a folder that holds the checkpoint."""
        ...

    def preempted(self) -> bool:
        """Returns whether a node of the ranks will be preempted; all ranks get one answer."""
        ...

    def note_start(self, step: int) -> int:
        """Note the step at which the run starts or resumes; called on rank 0.

        Returns how many steps have been repeated so far because they were not in a checkpoint.
        """
        ...

    def note_step(self, step: int) -> None:
        """Note how far the run is; called on rank 0."""
        ...

    def show_curve(self, curve: list[dict[str, Any]]) -> None:
        """Show the records of all epochs so far; called on rank 0."""
        ...

    def checkpoint_folder(self) -> Path | None:
        """Returns the folder of the checkpoint to resume from, if there is one."""
        ...

    @property
    def log(self) -> Log:
        """The log of the run; called on rank 0."""
        ...
