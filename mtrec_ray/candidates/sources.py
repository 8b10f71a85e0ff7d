"""Where candidates come from: each source scores items for users who ask, and names its best.

    popularity      positives of all time
    last_1_days     positives of the last days (1, 7, 30), where rows have a time
    newest          the latest published first, where the catalogue says when
    item_knn        cosine neighbours of what the user took; item_knn_recent: the later, the more
    ease            EASE (1905.03375)
    text_mean       cosine of the text with the mean of the user's latest items; text_nearest: with
                    the nearest of them
    crowd_knn, crowd_ease, crowd_text
                    the same from what the user took in all scenarios of the same people
    retrieval       the model's user vector times its item vector

All are fitted on the rows of the splits before one; what a user did is known up to his moment.

Letters: B users who ask, n items, C candidates of a user, D width of texts, h items of a history.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mtrec_ray.candidates.crowd import Asked, Crowd
from mtrec_ray.candidates.item_item import Ease, ItemKnn
from mtrec_ray.candidates.popularity import (
    WINDOW_DAYS,
    RecentPopularity,
    newness,
    total_popularity,
)
from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.interactions import END

HISTORY = 20  # items of the user that texts are compared with

# Scores f32[B, n] of all items for users who ask.
Scores = Callable[[Asked], Float32s]


@dataclass(frozen=True)
class Sources:
    """A scenario's sources of candidates.

    Attributes:
        by_name: the scores of each source.
        crowd, name: whose interactions they rest on.
        published: i64[n], in ms, NO_TIME where that is not known.
    """

    by_name: Mapping[str, Scores]
    crowd: Crowd
    name: str
    published: Ints

    def scores(self, asked: Asked) -> dict[str, Float32s]:
        """Returns f32[B, n] by source."""
        return {source: scores(asked) for source, scores in self.by_name.items()}

    def left_out(self, asked: Asked, *, exclude_met: bool) -> NDArray[np.bool_]:
        """Returns bool[B, n]: items not yet published, and those that the user has a row with."""
        mask = np.zeros((len(asked), len(self.published)), bool)
        if asked.moments.times is not None:
            mask |= self.published[None] > asked.moments.times[:, None]
        if exclude_met:
            mask[asked.met] = True
        return mask


@dataclass(frozen=True)
class Taken:
    """What items that the same people took say of one another."""

    knn: ItemKnn
    ease: Ease

    @classmethod
    def fit(cls, crowd: Crowd, split: int) -> "Taken":
        """Returns the fit of all items of a crowd on the splits before one."""
        taken = crowd.taken_before(split)
        return cls(ItemKnn.fit(taken), Ease.fit(taken))

    def only(self, output: slice) -> "Taken":
        """Returns what scores some of the items."""
        return Taken(self.knn.only(output), self.ease.only(output))


def fit_sources(
    crowd: Crowd,
    name: str,
    split: int,
    vectors: Mapping[str, Float32s],
    published: Ints,
    of_crowd: Taken | None = None,
    counted: int = END,
) -> Sources:
    """Returns a scenario's sources, fitted on the splits before `split`.

    `vectors` f32[n, D] are unit vectors of the items' texts, by scenario of the crowd; `of_crowd`
    is the fit of all items of a crowd with several scenarios. The last days count rows of the
    splits before `counted`: with `statistics: frozen` those of train alone.
    """
    found = popularity_sources(crowd, name, split, published, counted)
    found |= own_sources(Taken.fit(crowd.only(name), split))
    found["text_mean"] = lambda asked: mean_text(vectors[name], asked.history)
    found["text_nearest"] = lambda asked: nearest_text(vectors[name], asked.history)
    if of_crowd is not None:
        found |= crowd_sources(of_crowd.only(crowd.columns[name]))
        everything = np.concatenate([vectors[other] for other in crowd.scenarios])
        found["crowd_text"] = lambda asked: crowd_text(
            everything, vectors[name], asked.taken_anywhere
        )
    return Sources(found, crowd, name, published)


def popularity_sources(
    crowd: Crowd, name: str, split: int, published: Ints, counted: int
) -> dict[str, Scores]:
    """Returns what does not depend on the user, but on the moment."""
    positives = crowd.positives[name]
    total = total_popularity(positives.before(split))
    found: dict[str, Scores] = {
        "popularity": lambda asked: np.broadcast_to(total, (len(asked), len(total)))
    }
    if positives.time.any():
        recent = RecentPopularity.of(positives.before(counted))
        for days in WINDOW_DAYS:
            found[f"last_{days}_days"] = recent_source(recent, days)
        if (published != NO_TIME).any():
            found["newest"] = lambda asked: newness(published, times_of(asked))
    return found


def recent_source(recent: RecentPopularity, days: int) -> Scores:
    """Returns the popularity of the last days."""
    return lambda asked: recent.at(times_of(asked), days)


def times_of(asked: Asked) -> Ints:
    """Returns i64[B]: when users ask, in ms."""
    assert asked.moments.times is not None
    return asked.moments.times


def own_sources(taken: Taken) -> dict[str, Scores]:
    """Returns the sources from what a user took in the scenario itself."""
    knn, ease = taken.knn, taken.ease
    return {
        "item_knn": lambda asked: knn.scores(asked.taken).toarray(),
        "item_knn_recent": lambda asked: knn.scores(asked.recent).toarray(),
        "ease": lambda asked: spread(ease, ease.scores(asked.taken)),
    }


def crowd_sources(taken: Taken) -> dict[str, Scores]:
    """Returns the sources from what a user took in any scenario of the crowd."""
    knn, ease = taken.knn, taken.ease
    return {
        "crowd_knn": lambda asked: knn.scores(asked.taken_anywhere).toarray(),
        "crowd_ease": lambda asked: spread(ease, ease.scores(asked.taken_anywhere)),
    }


def spread(ease: Ease, scores: Float32s) -> Float32s:
    """Returns f32[B, n] from scores of the items that EASE knows; 0 for the others."""
    whole = np.zeros((len(scores), ease.num_items), np.float32)
    whole[:, ease.outputs] = scores
    return whole


def mean_text(vectors: Float32s, history: Ints) -> Float32s:
    """Returns f32[B, n]: cosines, times a constant, with the mean of a history i64[B, h]."""
    known = (history >= 0)[..., None]
    mean = (vectors[history.clip(0)] * known).sum(1) / np.maximum(known.sum(1), 1)
    return mean.astype(np.float32) @ vectors.T


def nearest_text(vectors: Float32s, history: Ints) -> Float32s:
    """Returns f32[B, n]: the largest cosine with an item of a history i64[B, h]; 0 without one."""
    scores = np.zeros((len(history), len(vectors)), np.float32)
    for user, items in enumerate(history):
        known = items[items >= 0]
        if len(known):
            scores[user] = (vectors @ vectors[known].T).max(1)
    return scores


def crowd_text(everything: Float32s, vectors: Float32s, taken: csr_array) -> Float32s:
    """Returns f32[B, n]: cosines, times a constant, with the mean of what users took anywhere."""
    size = np.maximum(np.asarray(taken.sum(1)).ravel(), 1).astype(np.float32)
    mean: Float32s = np.asarray(taken @ everything, np.float32) / size[:, None]
    return np.asarray(mean @ vectors.T, np.float32)
