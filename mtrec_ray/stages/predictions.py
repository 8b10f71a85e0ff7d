"""Predictions of the rows of a split, by Ray Data actors, as Parquet.

A row has its label, score and popularity by task. Where boosted trees have a say, the score is the
blend of both, and `network` and `trees` are what each of them says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Float32s
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.shards import Arrays, read_rows
from mtrec_ray.evaluation.blend import Blend
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.project.project import Run
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors, load_with_vectors
from mtrec_ray.training.item_vectors import ItemVectors
from mtrec_ray.training.second_opinion import TreeModel, load_tree_model
from mtrec_ray.training.validation import SCORING_BATCH_ROWS, score_rows

ModelByScenario = Mapping[str, TrainedModel]
OPINIONS = ("network", "trees")  # columns that are there where trees have a say


@dataclass(frozen=True)
class SecondOpinion:
    """Trees beside a model of a scenario; it travels.

    Attributes:
        trees: folder of the scenario's trees.
        texts: f32[n, D], a handle of the texts that their columns rest on.
        blends: by task; a task without one is the network's alone.
    """

    trees: str
    texts: ray.ObjectRef
    blends: Mapping[str, Blend] = field(default_factory=dict)


# By the folder of predictions, then by scenario.
Opinions = Mapping[str, Mapping[str, SecondOpinion]]
NO_OPINIONS: Opinions = {}


class Predictor:
    """Scores shards of samples with trained models and writes predictions; a Ray Data actor."""

    def __init__(
        self,
        models: Mapping[str, ModelByScenario],
        vectors: Mapping[TrainedModel, ray.ObjectRef],
        opinions: Opinions = NO_OPINIONS,
    ) -> None:
        """`models`: by the folder of their predictions."""
        self.models, self.vectors, self.opinions = models, vectors, opinions
        self.loaded: dict[TrainedModel, tuple[Recommender, ItemVectors]] = {}
        self.trees: dict[str, TreeModel] = {}

    def load(self, trained_model: TrainedModel) -> tuple[Recommender, ItemVectors]:
        """Returns a model; one that serves several scenarios is loaded once."""
        if trained_model not in self.loaded:
            self.loaded[trained_model] = load_with_vectors(
                trained_model, ray.get(self.vectors[trained_model])
            )
        return self.loaded[trained_model]

    def load_trees(self, own: SecondOpinion, model: TrainedModel, name: str) -> TreeModel:
        """Returns a scenario's trees, read once."""
        if own.trees not in self.trees:
            texts: Float32s = ray.get(own.texts)
            self.trees[own.trees] = load_tree_model(model.open_prepared(), name, texts, own.trees)
        return self.trees[own.trees]

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Write the predictions of a shard: row, user, item; label, score, popularity by task."""
        folder, name, path = shard["folder"], shard["scenario"], shard["path"]
        trained_model = self.models[folder][name]
        model, vectors = self.load(trained_model)
        own = self.opinions.get(folder, {}).get(name)
        trees = None if own is None else self.load_trees(own, trained_model, name)
        source = storage.join(trained_model.prepared, path)
        batches = read_rows([source], SCORING_BATCH_ROWS, 0, shard["rows"])
        tables = []
        for arrays, scores in score_rows(model, vectors, name, batches):
            values = {"score": scores}
            if own is not None and trees is not None:
                values = with_trees(model.facts[name], own, trees.predict(arrays), scores)
            tables.append(prediction_table(model.facts[name], arrays, values))
        out = storage.join(folder, name, Path(path).name)
        storage.write_table(out, pa.concat_tables(tables))
        return {"path": out}


def with_trees(
    facts: PreparedScenario, own: SecondOpinion, trees: Mapping[str, Float32s], network: Float32s
) -> dict[str, Float32s]:
    """Returns f32[N, T] by name: the blended score, and what network and trees say (NaN: none)."""
    score, said = network.copy(), np.full_like(network, np.nan)
    for i, task in enumerate(facts.tasks):
        if task in trees:
            said[:, i] = trees[task]
        if task in trees and task in own.blends:
            pair = (values.astype(np.float64) for values in (network[:, i], trees[task]))
            score[:, i] = own.blends[task].of(*pair)
    return {"score": score, "network": network, "trees": said}


def prediction_table(
    facts: PreparedScenario, arrays: Arrays, values: Mapping[str, Float32s]
) -> pa.Table:
    """Returns the predictions of a block as it is written to Parquet: `values` f32[N, T]."""
    columns: dict[str, Any] = {c: arrays[c] for c in ("row", "user", "person", "item")}
    columns["scenario"] = pa.array([facts.name] * len(arrays["row"]))
    width = max(len(facts.tasks), 1)
    popularity = np.stack(
        [arrays["numeric"][:, facts.numeric_names.index(facts.popularity[t])] for t in facts.tasks],
        1,
    )
    every = {"label": arrays["labels"], **values, "popularity": popularity}
    for key, matrix in every.items():
        flat = pa.array(matrix.astype(np.float32).ravel())
        columns[key] = pa.ListArray.from_arrays(
            np.arange(0, len(flat) + 1, width, dtype=np.int32), flat
        )
    return pa.table(columns)


def predict_split(
    models: Mapping[str, ModelByScenario],
    run: Run,
    split: str = "test",
    opinions: Opinions = NO_OPINIONS,
) -> None:
    """Write `FOLDER/NAME/*.parquet` for each scenario's rows of a split, a file for each shard.

    `models`: those of each folder. The same actors score all: to start one takes seconds.
    """
    shards = [
        {"folder": folder, "scenario": name, "path": shard.path, "rows": shard.rows}
        for folder, by_name in models.items()
        for name, trained_model in by_name.items()
        for shard in trained_model.open_prepared().scenarios[name].shards[split]
    ]
    every = [model for by_name in models.values() for model in by_name.values()]
    vectors = {model: ray.put(ensure_vectors(model)) for model in dict.fromkeys(every)}
    scored = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        cast("Any", Predictor),  # Ray types the class as its own result
        fn_constructor_args=(models, vectors, opinions),
        compute=ray.data.ActorPoolStrategy(size=min(run.most_workers, len(shards))),
        num_cpus=run.cpus_per_worker,
        num_gpus=1 if run.use_gpu else 0,
    )
    scored.take_all()


def read_predictions(folder: str, name: str, num_tasks: int) -> dict[str, np.ndarray]:
    """Returns users [N] and labels, scores, popularity [N, T] of a scenario's predictions.

    And `network` and `trees` [N, T], where trees have a say.
    """
    tables = []
    for path in storage.parquet_files(storage.join(folder, name)):
        fs, inner = storage.filesystem(path)
        tables.append(pq.read_table(inner, filesystem=fs))
    table = pa.concat_tables(tables).combine_chunks()
    scalars = ("row", "user", "person", "item")
    columns: dict[str, np.ndarray] = {c: table.column(c).to_numpy() for c in scalars}
    for key in ("label", "score", "popularity", *OPINIONS):
        if key in table.column_names:
            values = table.column(key).combine_chunks().flatten().to_numpy(zero_copy_only=False)
            columns[key] = values.reshape(-1, num_tasks)
    return columns
