"""What a training run sees of the world around it; `stages/train.py` makes one of Ray Train."""

import sys
from pathlib import Path
from typing import Any, Protocol

import torch

from mtrec_ray.progress import Log
from mtrec_ray.training.batches import OpenRows

# The score of a checkpoint that has none. (Ray Train keeps scores as JSON: infinity is lost in it.)
NO_SCORE = sys.float_info.max


class TrainContext(Protocol):
    """What surrounds the loop."""

    device: torch.device

    @property
    def reader(self) -> OpenRows:
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

    @property
    def log(self) -> Log:
        """Tells a person; called on rank 0."""
        ...
