"""Boosted trees of a scenario's tasks, whose opinion stands beside the network's.

They are fitted on training rows. Half of the users of valid say how many trees are best; the other
half judges what they bring beside the network (`evaluation/blend.py`).

Letters: N rows, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from mtrec_ray.data import storage
from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.given_profiles import GivenProfiles
from mtrec_ray.data.kinds import own_units
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import Arrays
from mtrec_ray.project.training import Opinions
from mtrec_ray.training.boosted_trees import (
    Columns,
    Examples,
    TextComponents,
    examples,
    fit_trees,
    num_rarer_labels,
)

if TYPE_CHECKING:
    import lightgbm

COMPONENTS = "components.safetensors"


def stops(user: Ints) -> Bools:
    """Returns bool[N]: rows of valid that say how many trees are best; the others judge them."""
    return hash_ints(user.astype(np.int64), 7) % np.uint64(2) == 0


@dataclass(frozen=True)
class TreeModel:
    """The trees of a scenario, by task that had enough labels."""

    columns: Columns
    boosters: Mapping[str, "lightgbm.Booster"]

    def predict(self, rows: Arrays, num_threads: int = 1) -> dict[str, Float32s]:
        """Returns f32[N] by task, in the units of its label."""
        if not self.boosters:
            return {}
        inputs, kinds = self.columns.every(rows), self.columns.facts.kinds
        found = {
            task: np.asarray(trees.predict(inputs, num_threads=num_threads), np.float32)
            for task, trees in self.boosters.items()
        }
        return {task: own_units(kinds[task], values) for task, values in found.items()}

    def with_given(self, given: GivenProfiles) -> "TreeModel":
        """Returns the same trees, which know profiles that users bring along."""
        return replace(self, columns=self.columns.with_given(given))

    def save(self, folder: str) -> None:
        """Write the trees of each task as text, and the components that their columns need."""
        parts = {"mean": self.columns.components.mean, "axes": self.columns.components.directions}
        storage.write_bytes(storage.join(folder, COMPONENTS), save(parts))
        for task, trees in self.boosters.items():
            text = trees.model_to_string(num_iteration=trees.best_iteration)
            storage.write_bytes(storage.join(folder, f"{task}.txt"), text.encode())


def load_tree_model(prepared: Prepared, name: str, vectors: Float32s, folder: str) -> TreeModel:
    """Returns the trees of a folder, for items whose texts are f32[n, D]."""
    import lightgbm

    parts = load(storage.read_bytes(storage.join(folder, COMPONENTS)))
    components = TextComponents(parts["mean"], parts["axes"])
    facts = prepared.scenarios[name]
    texts = {task: storage.join(folder, f"{task}.txt") for task in facts.tasks}
    boosters = {
        task: lightgbm.Booster(model_str=storage.read_bytes(path).decode())
        for task, path in texts.items()
        if storage.exists(path)
    }
    catalogue, profiles = prepared.catalogue(name), prepared.profiles(name)
    return TreeModel(Columns(facts, catalogue, vectors, components, profiles), boosters)


def fit_tree_model(
    prepared: Prepared, name: str, vectors: Float32s, options: Opinions, seed: int, num_threads: int
) -> TreeModel:
    """Returns the trees of a scenario's tasks, but of those with few labels."""
    facts = prepared.scenarios[name]
    catalogue, profiles = prepared.catalogue(name), prepared.profiles(name)
    columns = Columns(facts, catalogue, vectors, profiles=profiles)
    train = examples(prepared, columns, name, "train", options.rows)
    valid = examples(prepared, columns, name, "valid", options.rows)
    boosters = {}
    for number, (task, kind) in enumerate(facts.kinds.items()):
        if has_enough_labels(kind, number, train, valid, options.least_labels):
            boosters[task] = fit_trees(
                kind, train.of_task(number), valid.of_task(number, stops(valid.user)),
                columns.num_categorical, weights=train.weights_of(number),
                seed=seed, num_threads=num_threads, rounds=options.rounds,
            )  # fmt: skip
    return TreeModel(columns, boosters)


def has_enough_labels(kind: str, task: int, train: Examples, valid: Examples, least: int) -> bool:
    """Returns whether a task has so many labels of its rarer class, and of each in both halves."""
    halves = [valid.of_task(task, half)[1] for half in (stops(valid.user), ~stops(valid.user))]
    if min(num_rarer_labels(kind, labels) for labels in halves) < 1:
        return False
    return num_rarer_labels(kind, train.of_task(task)[1]) >= least
