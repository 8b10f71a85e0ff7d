"""What a run needs to be resumed, as files of a folder: weights and training state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtrec_ray.data import storage
from mtrec_ray.model.recommender import Recommender, is_below
from mtrec_ray.project.base import ProjectError

WEIGHTS, STATE, FACTS = "model.safetensors", "training.pt", "model.json"


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint to go on from: its folder and its training state."""

    folder: Path
    state: dict[str, Any]


def save_model(folder: Path, model: Recommender, facts: dict[str, Any]) -> None:
    """Write the trained weights (the frozen part of the encoder is named, not copied)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    storage.write_json(str(folder / FACTS), facts)


def load_model(folder: Path, model: Recommender) -> None:
    """Read the weights of `save_model` into a model of the same build.

    Those of an encoder that is not loaded are left out.

    Raises:
        ProjectError: the weights belong to another build.
    """
    state = load_file(folder / WEIGHTS)
    if not model.encoder.is_loaded:
        state = {name: value for name, value in state.items() if not is_below(name, ["encoder"])}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()[:160]
        raise ProjectError([f"{folder / WEIGHTS}: weights of another model ({first})"]) from None


def load_part(state: dict[str, Tensor], model: Recommender, new: Sequence[str] = ()) -> None:
    """Read the weights of a model of more scenarios into one of some of them.

    What lies below the names `new` keeps its initial values where the weights do not have it.

    Raises:
        ProjectError: the weights belong to another build.
    """
    weights = model.state_dict()
    for name, value in weights.items():
        stored = state.get(name)
        if stored is not None and stored.shape == value.shape:
            weights[name] = stored
        elif not is_below(name, new):
            what = "none" if stored is None else f"the shape {tuple(stored.shape)}"
            raise ProjectError(
                [
                    f"joint model: found {what} for {name}; allowed: {tuple(value.shape)}, "
                    "the weights of this project's model"
                ]
            )
    model.load_state_dict(weights)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the training state: progress, optimizer, schedule, reading order, item vectors."""
    torch.save(state, folder / STATE)


def load_state(folder: Path) -> dict[str, Any]:
    """Read the state of `save_state`."""
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def load_run(folder: Path | None) -> SavedRun | None:
    """Returns the checkpoint in a folder; None where there is no folder."""
    return SavedRun(folder, load_state(folder)) if folder else None
