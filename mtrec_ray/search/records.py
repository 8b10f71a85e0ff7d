"""Trials of a search, each kept in a JSON file from which an interrupted search goes on."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mtrec_ray.data import storage
from mtrec_ray.search.space import Overrides, Point

Status = Literal["waiting", "running", "finished", "stopped", "failed"]


ENDED = ("finished", "stopped", "failed")


@dataclass
class Trial:
    """A trial.

    Attributes:
        name: of its files; the resume key of its training.
        overrides: values by field of the project.
        point: its place in the space of the search; None outside a search.
        status: `stopped` is that of a trial which the scheduler ended early.
        reason: of a failure.
        moves: in a population: after which epoch it went on from which trial, and earlier values.
        seconds: from its start to its end, waiting for resources included.
        curve: by epoch: `epoch, joint_score, scores` (by scenario), `tasks` (by scenario/task).
        result: whatever else its training returned.
    """

    name: str
    overrides: Overrides
    point: Point | None = None
    status: Status = "waiting"
    reason: str = ""
    moves: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch with the lowest joint score; None where there is no finite one."""
        return best_of(self.curve)

    @property
    def epochs(self) -> float:
        """Epochs that it was trained for, as far as it told."""
        return max((entry["epoch"] for entry in self.curve), default=0)

    @property
    def ended(self) -> bool:
        """Whether the trial has ended."""
        return self.status in ENDED

    def add(self, entry: dict[str, Any]) -> None:
        """Put an epoch into the curve, in place of an earlier report of the same one."""
        others = [e for e in self.curve if e["epoch"] != entry["epoch"]]
        self.curve = sorted([*others, entry], key=lambda e: e["epoch"])

    def move(self, source: str, overrides: Overrides, point: Point) -> None:
        """Go on from another trial, with other values."""
        self.moves.append({"after_epoch": self.epochs, "from": source, "before": self.overrides})
        self.overrides, self.point = overrides, point

    def save(self, folder: str) -> None:
        """Write its file."""
        storage.write_json(record_path(folder, self.name), asdict(self))


def best_of(curve: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the epoch with the lowest joint score of a curve."""
    finite = [e for e in curve if math.isfinite(e["joint_score"])]
    return min(finite, key=lambda e: e["joint_score"]) if finite else None


def record_path(folder: str, name: str) -> str:
    """Returns the file of a trial."""
    return storage.join(folder, f"{name}.json")


def parse_trial(tree: dict[str, Any]) -> Trial:
    """Returns a trial from its JSON, where a score that was not finite stands as null."""
    return Trial(**{**tree, "curve": [_with_nan(entry) for entry in tree.get("curve", [])]})


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(inner) for key, inner in value.items()}
    return math.nan if value is None else value


def load_trial(folder: str, name: str) -> Trial | None:
    """Returns a trial as it was kept."""
    path = record_path(folder, name)
    return parse_trial(storage.read_json(path)) if storage.exists(path) else None


def load_trials(folder: str) -> dict[str, Trial]:
    """Returns all trials of a folder by name, in the order of their names."""
    trials = [
        parse_trial(storage.read_json(p))
        for p in storage.files(folder)
        if storage.name_of(p).endswith(".json")
    ]
    return {trial.name: trial for trial in trials}
