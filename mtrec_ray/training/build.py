"""A project's model on a device, in its precision, with its item vectors."""

import os
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.elsewhere import Timeline
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.profiles import Profiles
from mtrec_ray.data.tokens import special_tokens
from mtrec_ray.model.chunks import PairLayout
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.project.project import Project
from mtrec_ray.training.item_vectors import Autocast, ItemVectors


def build_model(
    project: Project,
    prepared: Prepared,
    device: torch.device,
    precision: str,
    width: int | None = None,
) -> tuple[Recommender, ItemVectors]:
    """Returns the model, with the same initial weights on every rank, and its item vectors.

    With the width D of vectors that are known already, the encoder is not loaded.
    """
    torch.manual_seed(project.training.seed)
    catalogues = {name: prepared.catalogue(name) for name in prepared.scenarios}
    encoder = TextEncoder(project.model.encoder, width=width)
    timelines = timelines_of(prepared)
    parts = (prepared.scenarios, catalogues, encoder, profiles_of(prepared), timelines)
    model = Recommender(project.model, *parts).to(device)
    autocast = autocast_for(device, precision)
    pairs = None
    if project.model.layout == "pair":
        prefix, suffix = special_tokens(project.model.encoder.source)
        pairs = PairLayout(prefix, suffix, project.model.pair_tokens)
    return model, ItemVectors(model.encoder, catalogues, device, autocast, pairs)


def autocast_for(device: torch.device, precision: str) -> Autocast:
    """Returns bf16 autocast if asked for, or (auto) if the device computes in bf16 natively."""
    native = computes_bf16(device)
    if precision == "fp32" or (precision == "auto" and not native):
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def computes_bf16(device: torch.device) -> bool:
    """Returns whether the device has matrix products in bf16 (on x86: AMX or AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def cache_folder(project: Project) -> Path:
    """Returns the node's folder for outputs of frozen layers, by default one for each user."""
    if project.run.cache_folder:
        return Path(project.run.cache_folder)
    return Path(tempfile.gettempdir()) / f"mtrec_ray-{os.getuid()}" / "frozen"


def pretrained_vectors(
    project: Project, prepared: Prepared, name: str, device: torch.device
) -> Tensor:
    """Returns f32[n, D], a scenario's item vectors by the pretrained encoder."""
    return read_texts(project, name, prepared.catalogue(name), device)


@torch.no_grad()
def read_texts(project: Project, name: str, table: Catalogue, device: torch.device) -> Tensor:
    """Returns f32[n, D], vectors of a table's texts by the pretrained encoder."""
    options = project.model.encoder.model_copy(update={"trainable": "none"})
    encoder = TextEncoder(options).to(device).eval()
    autocast = autocast_for(device, project.training.precision)
    vectors = ItemVectors(encoder, {name: table}, device, autocast)
    vectors.compute_frozen(cache_folder(project))
    assert vectors.cache is not None
    return vectors.cache


def profiles_of(prepared: Prepared) -> dict[str, Profiles]:
    """Returns the profiles of each id space that has a table of users."""
    found: dict[str, Profiles] = {}
    for name, facts in prepared.scenarios.items():
        profiles = None if facts.user_space in found else prepared.profiles(name)
        if profiles is not None:
            found[facts.user_space] = profiles
    return found


def timelines_of(prepared: Prepared) -> dict[str, Timeline]:
    """Returns what users took elsewhere, of each scenario that asks for it."""
    found = {name: prepared.timeline(name) for name in prepared.scenarios}
    return {name: timeline for name, timeline in found.items() if timeline is not None}
