"""Gradient-boosted trees on prepared rows: their columns, and the fit of one task.

They are what a user would build instead, a teacher of the network (`teacher.py`), and a second
opinion beside it (`second_opinion.py`).

Letters: N rows, T tasks, F columns, D width of text vectors, E main components of the texts.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.columns import hash_ints
from mtrec_ray.data.given_profiles import GivenProfiles
from mtrec_ray.data.kinds import OBJECTIVES, fitted_scale
from mtrec_ray.data.prepared import Prepared, PreparedScenario
from mtrec_ray.data.profiles import Profiles
from mtrec_ray.data.shards import GIVEN, MOMENT, OUTCOME, SEVERAL, WEIGHT, Arrays, read_rows
from mtrec_ray.model.history import cosines, similarity_summary
from mtrec_ray.model.outcomes import taken_and_passed_over
from mtrec_ray.project.project import Project
from mtrec_ray.training.build import pretrained_vectors

if TYPE_CHECKING:
    import lightgbm

NUM_COMPONENTS = 32
NUM_INDICATORS = 32  # of a column with several values, those of the most training rows
PATIENCE = 50  # rounds without a lower loss on valid
BATCH_ROWS = 65_536
MIN_DATA_IN_LEAF = 50
PARAMETERS = {
    "learning_rate": 0.05, "num_leaves": 31, "lambda_l2": 1.0,
    "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1, "verbosity": -1,
}  # fmt: skip


@dataclass(frozen=True)
class TextComponents:
    """The main components of texts: f32[D] their mean, f32[E, D] the directions."""

    mean: Float32s
    directions: Float32s

    @classmethod
    def fit(cls, vectors: Float32s) -> "TextComponents":
        """Returns those of vectors f32[n, D], at most 32."""
        from sklearn.decomposition import PCA

        found = PCA(min(NUM_COMPONENTS, *vectors.shape), random_state=0).fit(vectors)
        parts = (found.mean_, found.components_)  # whose rows may not lie one after another
        return cls(*(np.ascontiguousarray(part, np.float32) for part in parts))

    def of(self, vectors: Float32s) -> Float32s:
        """Returns f32[n, E]: where vectors f32[n, D] lie along the directions."""
        return np.asarray((vectors - self.mean) @ self.directions.T, np.float32)


class Columns:
    """The columns that trees read of a scenario's rows.

    Attributes:
        num_categorical: how many of the plain columns, from the first, are codes of categories.
    """

    def __init__(
        self,
        facts: PreparedScenario,
        catalogue: Catalogue,
        vectors: Float32s,
        components: TextComponents | None = None,
        profiles: Profiles | None = None,
    ) -> None:
        """`vectors` f32[n, D] are the items' texts; components are by default of known items."""
        self.facts, self.catalogue, self.profiles = facts, catalogue, profiles
        self.vectors = torch.tensor(vectors)
        self.components = components or TextComponents.fit(vectors[catalogue.known])
        self.reduced = self.components.of(vectors)
        self.indicators = [values.indicators(NUM_INDICATORS) for values in catalogue.several]
        self.num_categorical = catalogue.categorical.shape[1] + len(facts.category_sizes)
        self.num_categorical += len(profiles.facts.vocabularies) if profiles else 0

    def with_given(self, given: GivenProfiles) -> "Columns":
        """Returns the same columns, which know profiles that users bring along."""
        twin = copy.copy(self)
        twin.profiles = self.profiles and self.profiles.with_given(given)
        return twin

    @classmethod
    def of(cls, project: Project, prepared: Prepared, name: str) -> "Columns":
        """Returns the columns of a scenario, whose texts the pretrained encoder reads."""
        vectors = pretrained_vectors(project, prepared, name, torch.device("cpu"))
        facts, profiles = prepared.scenarios[name], prepared.profiles(name)
        return cls(facts, prepared.catalogue(name), vectors.numpy(), profiles=profiles)

    def every(self, rows: Arrays) -> Float32s:
        """Returns f32[N, F]: all columns."""
        return np.concatenate([self.plain(rows), self.text(rows)], 1)

    def plain(self, rows: Arrays) -> Float32s:
        """Returns f32[N, F]: categories, statistics and numbers, those of users' profiles too."""
        item, profiles = rows["item"], self.profiles
        place = self.profile_places(rows) if profiles else item
        of_profiles = [profiles.categorical(place)] if profiles else []
        codes = [self.catalogue.categorical[item], *of_profiles, rows["categorical"]]
        columns = [*codes, rows["numeric"], self.catalogue.numeric[item]]
        columns += [found[item] for found in self.indicators]
        columns += self.event_values(rows)
        if profiles:
            columns += [
                profiles.numeric(place), *profiles.indicators(place, NUM_INDICATORS)
            ]  # fmt: skip
        return np.concatenate(columns, 1).astype(np.float32)

    def event_values(self, rows: Arrays) -> list[Bools]:
        """Returns bool[N, K] of the log's columns with several values: has a row the K first."""
        found: list[Bools] = []
        start = 0
        for size, width in zip(self.facts.several_sizes, self.facts.several_widths, strict=True):
            codes = rows[SEVERAL][:, start : start + width]
            first = range(1, min(size, NUM_INDICATORS + 1))
            found += [(codes == code).any(1)[:, None] for code in first]
            start += width
        return found

    def profile_places(self, rows: Arrays) -> Ints:
        """Returns i64[N]: where the users' profiles lie as of the rows; -1 without one."""
        assert self.profiles is not None
        place = self.profiles.places(rows["person"], rows.get(MOMENT, rows["time"]))
        return self.profiles.places_given(place, rows[GIVEN]) if GIVEN in rows else place

    def text(self, rows: Arrays) -> Float32s:
        """Returns f32[N, 3 + E] (or 9 + E): cosines of candidate and history, main components.

        Where users have texts there is one more: the cosine of the candidate and that text.
        """
        columns = [self.similarity(rows), self.reduced[rows["item"]]]
        if self.profiles and self.profiles.texts is not None:
            columns.append(self.likeness(self.profiles, rows))
        return np.concatenate(columns, 1)

    def likeness(self, profiles: Profiles, rows: Arrays) -> Float32s:
        """Returns f32[N, 1]: cosines of candidates and users' texts; NaN without one."""
        place, found = self.profile_places(rows), []
        for start in range(0, len(place), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            item = self.vectors[torch.from_numpy(rows["item"][part].astype(np.int64))]
            user = torch.from_numpy(profiles.texts_of(place[part]))
            found.append(torch.nn.functional.cosine_similarity(item, user, dim=1))
        return torch.cat(found).numpy()[:, None]

    def similarity(self, rows: Arrays) -> Float32s:
        """Returns f32[N, 3]: cosine of candidate and history, mean, maximum and latest.

        Where histories tell what came of their items f32[N, 9]: the same of what was taken, and of
        what was passed over.
        """
        names = ["item", "history", *([OUTCOME] if self.facts.history_outcomes else [])]
        parts = []
        for start in range(0, len(rows["item"]), 8192):
            candidate, places, *outcomes = (
                torch.from_numpy(rows[name][start : start + 8192].astype(np.int64))
                for name in names
            )
            cosine, masks = cosines(self.vectors, candidate, places.clamp(min=0)), [places >= 0]
            for told in outcomes:
                masks += taken_and_passed_over(places >= 0, told)
            parts.append(torch.cat([similarity_summary(cosine, mask) for mask in masks], 1))
        return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Examples:
    """Rows as trees are fitted on them: f32[N, F] inputs, f32[N, T] labels, i64[N] users.

    Attributes:
        weights: f32[N]; None where the data has none.
    """

    inputs: np.ndarray
    labels: np.ndarray
    user: np.ndarray
    weights: np.ndarray | None = None

    def of_task(self, task: int, chosen: Bools | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs and labels of the rows (of those chosen) that have a label of the task."""
        known = self._known(task, chosen)
        return self.inputs[known], self.labels[known, task]

    def weights_of(self, task: int, chosen: Bools | None = None) -> np.ndarray | None:
        """Returns the weights of these rows; None where the data has none."""
        return None if self.weights is None else self.weights[self._known(task, chosen)]

    def _known(self, task: int, chosen: Bools | None) -> Bools:
        known = np.isfinite(self.labels[:, task])
        return known if chosen is None else known & chosen


def examples(
    prepared: Prepared, columns: Columns, name: str, split: str, num_rows: int
) -> Examples:
    """Returns at most `num_rows` rows of a split, the first of each shard (in random order)."""
    paths = prepared.shard_paths(name, split)
    each = -(-num_rows // max(len(paths), 1))
    parts = [
        (columns.every(r), r["labels"], r["person"], r.get(WEIGHT, np.ones(len(r["item"]))))
        for path in paths
        for r in read_rows([path], BATCH_ROWS, 0, each)
    ]
    inputs, labels, user, weights = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Examples(inputs, labels, user, None if (weights == 1).all() else weights)


def fit_trees(
    kind: str,
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    num_categorical: int,
    *,
    weights: np.ndarray | None = None,
    seed: int,
    num_threads: int,
    rounds: int = 1500,
    min_data_in_leaf: int = MIN_DATA_IN_LEAF,
) -> "lightgbm.Booster":
    """Returns trees for a task, as many as give the lowest loss on the valid rows.

    They predict on the scale of the fit (`data/kinds.py`).
    `weights` are those of the training rows; the rows of valid, which judge, all weigh the same.
    """
    parameters = PARAMETERS | {
        "objective": OBJECTIVES.get(kind, "regression"),
        "seed": seed,
        "num_threads": num_threads,
        "min_data_in_leaf": min_data_in_leaf,
    }
    codes = list(range(num_categorical))
    import lightgbm

    (x, y), (valid_x, valid_y) = ((x, fitted_scale(kind, y)) for x, y in (train, valid))
    first = lightgbm.Dataset(x, y, weight=weights, categorical_feature=codes)
    second = lightgbm.Dataset(valid_x, valid_y, categorical_feature=codes, reference=first)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    return lightgbm.train(parameters, first, rounds, valid_sets=[second], callbacks=[stop])


def num_rarer_labels(kind: str, labels: np.ndarray) -> int:
    """Returns the number of labels; for a binary task, of its rarer label.

    0 of a multiclass task, which trees leave to the network.
    """
    if kind == "multiclass":
        return 0
    if kind != "binary":
        return len(labels)
    return int(min((labels > 0.5).sum(), (labels <= 0.5).sum()))


def fold_of(user: Ints, folds: int) -> Ints:
    """Returns i64[N]: the fold of each row's user."""
    return (hash_ints(user.astype(np.int64), 5) % np.uint64(folds)).astype(np.int64)
