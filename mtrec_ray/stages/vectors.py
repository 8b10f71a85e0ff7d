"""All item vectors of a trained model, computed once over the cluster and stored beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from safetensors.torch import load, save

from mtrec_ray.config import parse_project
from mtrec_ray.data import storage
from mtrec_ray.data.shards import load_prepared
from mtrec_ray.learning import checkpoint
from mtrec_ray.learning.loop import build_model
from mtrec_ray.learning.vectors import ItemVectors
from mtrec_ray.model.encoder import quantise
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.schema import Project


def vectors_path(model_path: str, project: Project) -> str:
    """The file beside a model that holds its item vectors in the precision of use."""
    return storage.join(model_path, f"item_vectors-{project.evaluation.precision}.safetensors")


def ensure_vectors(project: Project, prepared_path: str, model_path: str) -> np.ndarray:
    """f32[n, D] of all catalogues' items: stored in the model's folder, computed if not there.

    None of them (f32[0, 0]) for a model that reads pairs: it has no vectors of items.
    """
    if project.model.layout == "pair":
        return np.zeros((0, 0), np.float32)
    path = vectors_path(model_path, project)
    if storage.exists(path):
        return load(storage.read_bytes(path))["vectors"].numpy()
    vectors = compute_vectors(project, prepared_path, model_path)
    storage.write_bytes(path, save({"vectors": torch.from_numpy(vectors)}))
    return vectors


def compute_vectors(project: Project, prepared_path: str, model_path: str) -> np.ndarray:
    """f32[n, D]: each worker encodes its share of the items."""
    run = project.run
    task = ray.remote(num_cpus=run.cpus_per_worker, num_gpus=1 if run.use_gpu else 0)(encode_share)
    size = run.most_workers
    shares = [task.remote(project.dump(), prepared_path, model_path, r, size) for r in range(size)]
    parts: list[tuple[np.ndarray, np.ndarray]] = ray.get(shares)
    places = np.concatenate([p for p, _ in parts])
    return np.concatenate([v for _, v in parts])[np.argsort(places)]


def encode_share(
    project_tree: dict[str, Any], prepared_path: str, model_path: str, rank: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places i64[m] and vectors f32[m, D] of a share of the items, in a Ray task."""
    _, vectors = load_trained(parse_project(project_tree), prepared_path, model_path)
    found = list(vectors.encode_share(rank, size))
    places, values = (torch.cat(part).cpu().numpy() for part in zip(*found, strict=True))
    return places, values


def load_trained(
    project: Project, prepared_path: str, model_path: str
) -> tuple[Recommender, ItemVectors]:
    """A trained model in evaluation mode, and the place of its item vectors, still empty."""
    torch.set_num_threads(project.run.cpus_per_worker)
    device = torch.device("cuda" if project.run.use_gpu else "cpu")
    precision = project.evaluation.precision
    above = "auto" if precision == "int8" else precision
    model, vectors = build_model(project, load_prepared(prepared_path), device, above)
    checkpoint.load_model(local_copy(model_path), model)
    if precision == "int8":
        quantise(model.encoder)
    return model.eval(), vectors


def local_copy(path: str) -> Path:
    """The folder of a model's files on this node."""
    if "://" not in path:
        return Path(path)
    import tempfile

    folder = Path(tempfile.mkdtemp())
    for name in (checkpoint.WEIGHTS, checkpoint.FACTS):
        (folder / name).write_bytes(storage.read_bytes(storage.join(path, name)))
    return folder
