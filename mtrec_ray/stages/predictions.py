"""Predictions of the rows of a split, by Ray Data actors, as Parquet.

A row has its label, score and popularity by task. Where others stand beside the network, the score
is the blend, `network` and `trees` are what each of them says by task, `labels.NAME` is what the
user's other labels say of each task, and `source.NAME` what a source of candidates says of the row.
Labels of a multiclass task are numbers of classes, its score the expected gain, and
`probabilities.TASK` has the probability of each class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from mtrec_ray.candidates.sources import Sources
from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Float32s, Floats
from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.data.shards import Arrays, read_rows
from mtrec_ray.evaluation.blend import LABELS, OPINIONS, Blend
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.project.project import Run
from mtrec_ray.stages.row_labels import OpenLabels, RowLabels
from mtrec_ray.stages.row_sources import FITTED_BEFORE, RowSources, scores_of_rows, with_logarithms
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors, load_with_vectors
from mtrec_ray.training.item_vectors import ItemVectors
from mtrec_ray.training.second_opinion import TreeModel, load_tree_model
from mtrec_ray.training.validation import SCORING_BATCH_ROWS, score_rows

ModelByScenario = Mapping[str, TrainedModel]
SOURCE = "source."  # before a source's name, in the name of its column
PROBABILITIES = "probabilities."  # before the name of a multiclass task


@dataclass(frozen=True)
class SecondOpinion:
    """What stands beside a model of a scenario; it travels.

    Attributes:
        trees: folder of the scenario's trees; None without them.
        texts: f32[n, D], a handle of the texts that their columns rest on.
        sources: those that say what they hold of a row.
        labels: what the user's other labels say of the row's.
        blends: by task; a task without one is the network's alone.
    """

    trees: str | None = None
    texts: ray.ObjectRef | None = None
    sources: RowSources | None = None
    labels: RowLabels | None = None
    blends: Mapping[str, Blend] = field(default_factory=dict)

    @property
    def named(self) -> "SecondOpinion":
        """This, without what no blend names."""
        names = {name for blend in self.blends.values() for name in blend.weights}
        of_sources = {name for name in names - set(OPINIONS) if not name.startswith(LABELS)}
        return replace(
            self,
            trees=self.trees if "trees" in names else None,
            sources=self.sources if of_sources else None,
            labels=self.labels if any(name.startswith(LABELS) for name in names) else None,
        )

    def wait(self) -> None:
        """Wait for the tasks that make what the handles stand for."""
        refs = [self.texts] if self.texts is not None else []
        refs += self.sources.fits if self.sources is not None else []
        refs += self.labels.fits if self.labels is not None else []
        if refs:
            ray.wait(refs, num_returns=len(refs), fetch_local=False)


# By the folder of predictions, then by scenario.
OpinionsByFolder = Mapping[str, Mapping[str, SecondOpinion]]
NO_OPINIONS: OpinionsByFolder = {}


@dataclass
class Beside:
    """A second opinion, opened: its trees, sources and labels, where it has them."""

    opinion: SecondOpinion
    facts: PreparedScenario
    trees: TreeModel | None
    sources: Sources | None
    labels: OpenLabels | None
    timed: bool

    @classmethod
    def of(cls, opinion: SecondOpinion, model: TrainedModel, name: str) -> "Beside":
        """Returns what stands beside a model of a scenario, all of it opened."""
        sources = None if opinion.sources is None else opinion.sources.open()
        labels = None if opinion.labels is None else opinion.labels.open()
        return cls.open(opinion, model, name, sources, labels)

    @classmethod
    def open(
        cls,
        opinion: SecondOpinion,
        model: TrainedModel,
        name: str,
        sources: Sources | None,
        labels: OpenLabels | None,
    ) -> "Beside":
        """Returns what stands beside a model of a scenario, with what it rests on opened."""
        prepared, trees = model.open_prepared(), None
        if opinion.trees is not None and opinion.texts is not None:
            trees = load_tree_model(prepared, name, ray.get(opinion.texts), opinion.trees)
        timed = model.project.scenarios[name].events.time is not None
        return cls(opinion, prepared.scenarios[name], trees, sources, labels, timed)

    def values(
        self, rows: Arrays, network: Float32s, known: int = FITTED_BEFORE
    ) -> dict[str, Float32s]:
        """Returns f32[N, T] or f32[N] by column: the blended score, and what it is made from.

        The score and the network's predictions are f32[N, P]: those of classes stand behind.

        Where rows have no time users are known by the splits before `known`.
        """
        said: dict[str, Float32s] = {"network": network}
        if self.trees is not None:
            trees = self.trees.predict(rows)
            none = np.full(len(network), np.nan, np.float32)
            said["trees"] = np.stack([trees.get(task, none) for task in self.facts.tasks], 1)
        if self.sources is not None:
            of_rows = scores_of_rows(self.sources, rows, timed=self.timed, known=known)
            said |= {SOURCE + name: scores for name, scores in of_rows.items()}
        if self.labels is not None:
            said |= {LABELS + name: told for name, told in self.labels.of_rows(rows, known).items()}
        score = network.copy()
        for i, task in enumerate(self.facts.tasks):
            if task in self.opinion.blends:
                score[:, i] = self.opinion.blends[task].of(said_of_task(said, i))
        return {"score": score, **said}


def said_of_task(columns: Mapping[str, np.ndarray], task: int) -> dict[str, Floats]:
    """Returns f64[N] by name: what was said of a task, from columns of predictions."""
    found = {name: columns[name][:, task] for name in OPINIONS if name in columns}
    found |= {k.removeprefix(SOURCE): v for k, v in columns.items() if k.startswith(SOURCE)}
    of_labels = {k: v[:, task] for k, v in columns.items() if k.startswith(LABELS)}
    found |= {k: v for k, v in of_labels.items() if np.isfinite(v).any()}
    said = {name: values.astype(np.float64) for name, values in found.items()}
    return with_logarithms(said)


class Predictor:
    """Scores shards of samples with trained models and writes predictions; a Ray Data actor."""

    def __init__(
        self,
        models: Mapping[str, ModelByScenario],
        vectors: Mapping[TrainedModel, ray.ObjectRef],
        opinions: OpinionsByFolder = NO_OPINIONS,
    ) -> None:
        """`models`: by the folder of their predictions."""
        self.models, self.vectors, self.opinions = models, vectors, opinions
        self.loaded: dict[TrainedModel, tuple[Recommender, ItemVectors]] = {}
        self.beside: dict[tuple[str, str], Beside] = {}
        self.sources: dict[str, Sources] = {}
        self.labels: dict[str, OpenLabels] = {}

    def load(self, trained_model: TrainedModel) -> tuple[Recommender, ItemVectors]:
        """Returns a model; one that serves several scenarios is loaded once."""
        if trained_model not in self.loaded:
            self.loaded[trained_model] = load_with_vectors(
                trained_model, ray.get(self.vectors[trained_model])
            )
        return self.loaded[trained_model]

    def load_beside(self, folder: str, name: str) -> Beside | None:
        """Returns what stands beside the model of a folder, opened once; None if nothing does."""
        opinion = self.opinions.get(folder, {}).get(name)
        if opinion is not None and (folder, name) not in self.beside:
            if opinion.sources is not None and name not in self.sources:
                self.sources[name] = opinion.sources.open()
            if opinion.labels is not None and name not in self.labels:
                self.labels[name] = opinion.labels.open()
            self.beside[folder, name] = Beside.open(
                opinion,
                self.models[folder][name],
                name,
                self.sources.get(name),
                self.labels.get(name),
            )
        return self.beside.get((folder, name))

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Write the predictions of a shard."""
        folder, name, path = shard["folder"], shard["scenario"], shard["path"]
        trained_model = self.models[folder][name]
        model, vectors = self.load(trained_model)
        beside = self.load_beside(folder, name)
        source = storage.join(trained_model.prepared, path)
        batches = read_rows([source], SCORING_BATCH_ROWS, 0, shard["rows"])
        tables = []
        for arrays, scores in score_rows(model, vectors, name, batches):
            values = {"score": scores} if beside is None else beside.values(arrays, scores)
            tables.append(prediction_table(model.facts[name], arrays, values))
        out = storage.join(folder, name, Path(path).name)
        storage.write_table(out, pa.concat_tables(tables))
        return {"path": out}


def prediction_table(
    facts: PreparedScenario, arrays: Arrays, values: Mapping[str, Float32s]
) -> pa.Table:
    """Returns the predictions of a block as it is written to Parquet: f32[N, T] or f32[N].

    Those of classes, which stand behind the others f32[N, P] of the score, have columns of their
    own.
    """
    columns: dict[str, Any] = {c: arrays[c] for c in ("row", "user", "person", "item")}
    columns["scenario"] = pa.array([facts.name] * len(arrays["row"]))
    width = max(len(facts.tasks), 1)
    popularity = np.stack(
        [arrays["numeric"][:, facts.numeric_names.index(facts.popularity[t])] for t in facts.tasks],
        1,
    )
    columns |= probability_columns(facts, values["score"])
    every = {"label": arrays["labels"], **values, "popularity": popularity}
    for key, matrix in every.items():
        whole = matrix.ndim == 1
        columns[key] = matrix.astype(np.float32) if whole else lists_of(matrix[:, :width])
    return pa.table(columns)


def lists_of(matrix: Float32s) -> pa.ListArray:
    """Returns numbers [N, k] as a column of lists."""
    flat, width = pa.array(matrix.astype(np.float32).ravel()), max(matrix.shape[1], 1)
    return pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, width, dtype=np.int32), flat)


def probability_columns(facts: PreparedScenario, predicted: Float32s) -> dict[str, pa.ListArray]:
    """Returns the probabilities of each multiclass task's classes in predictions f32[N, P]."""
    return {
        PROBABILITIES + task: lists_of(predicted[:, facts.probabilities_of(task)])
        for task in facts.tasks
        if task in facts.classes
    }


def predict_split(
    models: Mapping[str, ModelByScenario],
    run: Run,
    split: str = "test",
    opinions: OpinionsByFolder = NO_OPINIONS,
) -> None:
    """Write `FOLDER/NAME/*.parquet` for each scenario's rows of a split, a file for each shard.

    `models`: those of each folder. The same actors score all: to start one takes seconds. What they
    need is made before they start: an actor that waits keeps its processor.
    """
    for by_name in opinions.values():
        for own in by_name.values():
            own.wait()
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

    And what stands beside the network: `network`, `trees` and `labels.NAME` [N, T], `source.NAME`
    [N]. Behind the scores and those of the network stand the probabilities of classes: [N, P].
    """
    tables = []
    for path in storage.parquet_files(storage.join(folder, name)):
        fs, inner = storage.filesystem(path)
        tables.append(pq.read_table(inner, filesystem=fs))
    table = pa.concat_tables(tables).combine_chunks()
    scalars = ["row", "user", "person", "item"]
    scalars += [name for name in table.column_names if name.startswith(SOURCE)]
    columns: dict[str, np.ndarray] = {c: table.column(c).to_numpy() for c in scalars}
    of_labels = [name for name in table.column_names if name.startswith(LABELS)]
    for key in ("label", "score", "popularity", *OPINIONS, *of_labels):
        if key in table.column_names:
            values = table.column(key).combine_chunks().flatten().to_numpy(zero_copy_only=False)
            columns[key] = values.reshape(-1, num_tasks)
    return with_probabilities(columns, table)


def with_probabilities(columns: dict[str, np.ndarray], table: pa.Table) -> dict[str, np.ndarray]:
    """Returns columns of predictions, with those of classes behind the scores of tasks."""
    named = [name for name in table.column_names if name.startswith(PROBABILITIES)]
    of_classes = [matrix_of(table.column(name)) for name in named]
    for key in ("score", "network"):
        if key in columns and of_classes:
            columns[key] = np.concatenate([columns[key], *of_classes], 1)
    return columns


def matrix_of(column: pa.ChunkedArray) -> np.ndarray:
    """Returns [N, k] of a column of lists that are equally long."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)
