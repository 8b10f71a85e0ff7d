"""Trained models for use, and all of their item vectors, computed once over the cluster."""

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import ray
import torch
from safetensors.numpy import load, save

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared, load_prepared
from mtrec_ray.model.encoder import quantise
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.project.depends_on import fingerprint
from mtrec_ray.project.project import Project
from mtrec_ray.stages.cluster import result_of, task_of
from mtrec_ray.training import checkpoint
from mtrec_ray.training.build import build_model, cache_folder, pretrained_vectors
from mtrec_ray.training.delta import FineTuneStart, apply_delta, load_joint_weights, merge_delta
from mtrec_ray.training.item_vectors import ItemVectors


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained model for use: it scores the scenarios of its project.

    Two of them are equal where they would score alike: one that serves several scenarios is loaded
    once.

    Attributes:
        project: its scenarios are those of the model.
        prepared: folder of the prepared data.
        weights: folder of its weights; of a scenario's model with `start` the joint ones.
        vectors: folder that keeps its item vectors, of all rows of the file or of `rows`.
        start: how a scenario's model is made of the joint one.
        delta: folder of what fine-tuning changed; empty: nothing.
        general: whether its general head scores, for a scenario without a model.
    """

    project: Project
    prepared: str
    weights: str
    vectors: str
    start: FineTuneStart | None = None
    delta: str = ""
    rows: tuple[int, int] | None = None
    general: bool = False

    @cached_property
    def key(self) -> str:
        """Equal for models that would score alike."""
        start = asdict(self.start) if self.start else None
        parts = (self.prepared, self.weights, self.vectors, start, self.delta, self.rows)
        return fingerprint(self.project.model_dump(mode="json"), *parts, self.general)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainedModel) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def rows_of(self, name: str) -> slice:
        """Returns where a scenario's items lie among the model's item vectors."""
        sizes = {n: facts.num_items for n, facts in self.open_prepared().scenarios.items()}
        start = sum(size for _, size in itertools.takewhile(lambda s: s[0] != name, sizes.items()))
        return slice(start, start + sizes[name])

    def open_prepared(self) -> Prepared:
        """Returns the prepared data of the model's scenarios."""
        return load_prepared(self.prepared).only(self.project.scenarios)


def joint_model(project: Project, prepared: str, weights: str) -> TrainedModel:
    """Returns the joint model for use, or any other that is stored whole, by their folders."""
    return TrainedModel(project, prepared, weights, weights)


def vectors_path(trained_model: TrainedModel) -> str:
    """Returns the file that holds a model's item vectors in the precision of use."""
    precision = trained_model.project.evaluation.precision
    return storage.join(trained_model.vectors, f"item_vectors-{precision}.safetensors")


def ensure_vectors(trained_model: TrainedModel) -> np.ndarray:
    """Returns f32[n, D] of all items of its catalogues: stored beside the model, or computed.

    None of them (f32[0, 0]) for a model that reads pairs: it has no vectors of items.
    """
    if trained_model.project.model.layout == "pair":
        return np.zeros((0, 0), np.float32)
    path = vectors_path(trained_model)
    if storage.exists(path):
        vectors = load(storage.read_bytes(path))["vectors"]
        return vectors if trained_model.rows is None else vectors[slice(*trained_model.rows)]
    vectors = compute_vectors(replace(trained_model, rows=None))
    if trained_model.rows is None:
        storage.write_bytes(path, save({"vectors": np.ascontiguousarray(vectors)}))
    return vectors


def pretrained_texts(
    trained_model: TrainedModel, vectors: np.ndarray, source: Project, name: str
) -> np.ndarray:
    """Returns f32[n, D]: a scenario's item texts, as the pretrained encoder of `source` reads them.

    They are among the model's own item vectors f32[., D] where its encoder is that one.
    """
    if vectors.size and is_pretrained(trained_model.project, source):
        return vectors[trained_model.rows_of(name)]
    device = torch.device("cuda" if source.run.use_gpu else "cpu")
    return pretrained_vectors(source, trained_model.open_prepared(), name, device).cpu().numpy()


def is_pretrained(project: Project, source: Project) -> bool:
    """Returns whether a model's item vectors are those of the pretrained encoder of `source`."""
    encoder = project.model.encoder
    return encoder.trainable == "none" and encoder.source == source.model.encoder.source


def compute_vectors(trained_model: TrainedModel) -> np.ndarray:
    """Returns f32[n, D]: each worker encodes its share of the items.

    Those of a frozen encoder are in the node's cache, where training left them.
    """
    run = trained_model.project.run
    if has_frozen_encoder(trained_model):
        return result_of(task_of(frozen_vectors, run).remote(trained_model))
    task = task_of(encode_share, run)
    size = run.most_workers
    parts = ray.get([task.remote(trained_model, rank, size) for rank in range(size)])
    places = np.concatenate([p for p, _ in parts])
    return np.concatenate([v for _, v in parts])[np.argsort(places)]


def encode_share(
    trained_model: TrainedModel, rank: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns places i64[m] and vectors f32[m, D] of a share of the items, in a Ray task.

    Items of equal text are encoded once.
    """
    _, vectors = load_model_for_use(trained_model)
    equal = vectors.texts.equal()
    blocks = list(vectors.encode_share(rank, size, equal.first))
    if not blocks:
        return np.zeros(0, np.int64), np.zeros((0, vectors.encoder.width), np.float32)
    first, values = (torch.cat(part).cpu().numpy() for part in zip(*blocks, strict=True))
    places, counts = equal.rows(first)
    return places, values.repeat(counts, 0)


def has_frozen_encoder(trained_model: TrainedModel) -> bool:
    """Returns whether a model's texts are read by the pretrained encoder as it is."""
    project = trained_model.project
    return project.model.encoder.trainable == "none" and project.evaluation.precision != "int8"


def frozen_vectors(trained_model: TrainedModel) -> np.ndarray:
    """Returns f32[n, D]: the items' vectors by a frozen encoder, in a Ray task."""
    _, vectors = load_model_for_use(trained_model)
    vectors.compute_frozen(cache_folder(trained_model.project))
    assert vectors.cache is not None
    return vectors.cache.cpu().numpy()


def load_model_for_use(
    trained_model: TrainedModel, width: int | None = None
) -> tuple[Recommender, ItemVectors]:
    """Returns a model in evaluation mode, and the place of its item vectors, still empty.

    With the width D of vectors that are known already, the encoder is not loaded.
    """
    project = trained_model.project
    torch.set_num_threads(project.run.cpus_per_worker)
    device = torch.device("cuda" if project.run.use_gpu else "cpu")
    precision = project.evaluation.precision
    above = "auto" if precision == "int8" else precision
    model, vectors = build_model(project, trained_model.open_prepared(), device, above, width)
    if trained_model.start is None:
        with local_copy(trained_model.weights) as folder:
            checkpoint.load_model(folder, model)
    elif width is not None:
        load_joint_weights(model, replace(trained_model.start, shared=False))
        if trained_model.delta:
            merge_delta(model, trained_model.start, trained_model.delta)
    else:
        wrapper = load_joint_weights(model, trained_model.start)
        if trained_model.delta:
            apply_delta(model, wrapper, trained_model.delta)
    model.use_general_head = trained_model.general
    if precision == "int8" and width is None:
        quantise(model.encoder)
    return model.eval(), vectors


def load_with_vectors(
    trained_model: TrainedModel, vectors: np.ndarray
) -> tuple[Recommender, ItemVectors]:
    """Returns a model in evaluation mode with its item vectors f32[n, D]."""
    width = vectors.shape[1] if trained_model.project.model.layout == "vectors" else None
    model, item_vectors = load_model_for_use(trained_model, width)
    item_vectors.cache = torch.from_numpy(vectors.copy()).to(item_vectors.device)
    return model, item_vectors


def load_trained(
    project: Project, prepared_path: str, model_path: str
) -> tuple[Recommender, ItemVectors]:
    """Returns a model that is stored whole, and the place of its item vectors, still empty."""
    return load_model_for_use(joint_model(project, prepared_path, model_path))


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """The folder of a model's files on this node."""
    if "://" not in path:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as local:
        for name in (checkpoint.WEIGHTS, checkpoint.FACTS):
            data = storage.read_bytes(storage.join(path, name))
            (Path(local) / name).write_bytes(data)
        yield Path(local)
