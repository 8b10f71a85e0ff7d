"""Where candidates come from: each source names its best items for a user, and scores any.

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

Letters: B users who ask, n items, D width of texts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from mtrec_ray.candidates.crowd import Asked, Crowd
from mtrec_ray.candidates.item_item import NEIGHBOURS, Ease, ItemKnn
from mtrec_ray.candidates.popularity import (
    WINDOW_DAYS,
    Newness,
    RecentPopularity,
    TotalPopularity,
)
from mtrec_ray.candidates.scores import (
    Hidden,
    NearestScores,
    PairScores,
    Scores,
    SparseScores,
    TableScores,
    VectorScores,
)
from mtrec_ray.candidates.search_index import SearchIndex
from mtrec_ray.data.arrays import Bools, Float32s, Ints
from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.interactions import END

HISTORY = 20  # items of the user that texts are compared with

Source = Callable[[Asked], Scores]


@dataclass(frozen=True)
class Sources:
    """A scenario's sources of candidates.

    Attributes:
        by_name: the scores of each source.
        crowd, name: whose interactions they rest on.
        published: i64[n], in ms, NO_TIME where that is not known.
        allowed: bool[n], items that anybody may be shown.
        share: of the items that indexes may find, how many are allowed.
    """

    by_name: Mapping[str, Source]
    crowd: Crowd
    name: str
    published: Ints
    allowed: Bools
    share: float = 1.0

    def only(self, allowed: Bools) -> "Sources":
        """Returns the sources of those items that bool[n] marks, too."""
        both = self.allowed & allowed
        share = float(both.sum() / max(self.allowed.sum(), 1))
        return replace(self, allowed=both, share=share)

    def scores(self, asked: Asked) -> dict[str, Scores]:
        """Returns what each source says."""
        return {name: source(asked) for name, source in self.by_name.items()}

    def hidden(self, asked: Asked, *, exclude_met: bool) -> Hidden:
        """Returns the items not yet published, not allowed, or which the user has a row with."""
        none = np.zeros(0, np.int64)
        met = asked.met if exclude_met else (none, none)
        return Hidden(met, self.allowed, self.published, asked.moments.times, self.share)


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


@dataclass(frozen=True)
class Texts:
    """Vectors f32[n, D] of the items' texts, by scenario of a crowd, with a search in one."""

    vectors: Mapping[str, Float32s]
    index: SearchIndex | None = None

    @classmethod
    def of(cls, unit: Mapping[str, Float32s], name: str, allowed: Bools | None = None) -> "Texts":
        """Returns the texts of unit vectors f32[n, D] for users who ask in a scenario.

        Of a large catalogue, and of the scenarios beside it, only the main components are kept: a
        pair's cosine is read from a sixth of the memory.
        """
        index = SearchIndex.of(unit[name], allowed)
        if index is None or index.components is None:
            return cls(unit, index)
        reduced = {other: vectors @ index.components for other, vectors in unit.items()}
        return cls(reduced, SearchIndex(index.index, None))

    @property
    def everything(self) -> Float32s:
        """f32[m, D]: those of all scenarios, one after another."""
        return np.concatenate(list(self.vectors.values()))


def fit_sources(
    crowd: Crowd,
    name: str,
    split: int,
    texts: Texts,
    published: Ints,
    of_crowd: Taken | None = None,
    counted: int = END,
    allowed: Bools | None = None,
    own: Taken | None = None,
) -> Sources:
    """Returns a scenario's sources, fitted on the splits before `split`.

    `own` is the fit of its items, by default made here; `of_crowd` is the fit of all items of a
    crowd with several scenarios. The last days count rows of the splits before `counted`: with
    `statistics: frozen` those of train alone. `allowed` bool[n]: the items that anybody may be
    shown; by default all.
    """
    found = popularity_sources(crowd, name, split, published, counted)
    found |= own_sources(own or Taken.fit(crowd.only(name), split))
    found |= text_sources(texts.vectors[name], texts.index)
    if of_crowd is not None:
        found |= crowd_sources(of_crowd.only(crowd.columns[name]), texts, name)
    anything = np.ones(len(published), bool)
    return Sources(found, crowd, name, published, anything if allowed is None else allowed)


def popularity_sources(
    crowd: Crowd, name: str, split: int, published: Ints, counted: int
) -> dict[str, Source]:
    """Returns what does not depend on the user, but on the moment."""
    positives = crowd.positives[name]
    total = TotalPopularity.of(positives.before(split))
    found: dict[str, Source] = {"popularity": lambda asked: total.scores(len(asked))}
    if positives.time.any():
        recent = RecentPopularity.of(positives.before(counted))
        for days in WINDOW_DAYS:
            found[f"last_{days}_days"] = recent_source(recent, days)
        if (published != NO_TIME).any():
            newness = Newness(published)
            found["newest"] = lambda asked: newness.scores(times_of(asked))
    return found


def recent_source(recent: RecentPopularity, days: int) -> Source:
    """Returns the popularity of the last days."""
    return lambda asked: recent.scores(times_of(asked), days)


def times_of(asked: Asked) -> Ints:
    """Returns i64[B]: when users ask, in ms."""
    assert asked.moments.times is not None
    return asked.moments.times


def own_sources(taken: Taken) -> dict[str, Source]:
    """Returns the sources from what a user took in the scenario itself."""
    return {
        "item_knn": lambda asked: knn_scores(taken.knn, asked.taken, len(asked)),
        "item_knn_recent": lambda asked: knn_scores(taken.knn, asked.recent, len(asked)),
        "ease": lambda asked: ease_scores(taken.ease, asked.taken, len(asked)),
    }


def text_sources(vectors: Float32s, index: SearchIndex | None) -> dict[str, Source]:
    """Returns the sources from the texts f32[n, D] of what a user took in the scenario itself."""
    return {
        "text_mean": lambda asked: VectorScores(mean_text(vectors, asked.history), vectors, index),
        "text_nearest": lambda asked: NearestScores(asked.history, vectors, index),
    }


def crowd_sources(taken: Taken, texts: Texts, name: str) -> dict[str, Source]:
    """Returns the sources from what a user took in any scenario of the crowd."""
    everything, vectors = texts.everything, texts.vectors[name]
    return {
        "crowd_knn": lambda asked: knn_scores(taken.knn, asked.taken_anywhere, len(asked)),
        "crowd_ease": lambda asked: ease_scores(taken.ease, asked.taken_anywhere, len(asked)),
        "crowd_text": lambda asked: VectorScores(
            mean_of(everything, asked.taken_anywhere), vectors, texts.index
        ),
    }


def knn_scores(knn: ItemKnn, taken: csr_array, num_users: int) -> PairScores:
    """Returns the scores of the neighbours of what users took f32[B, m]."""
    return PairScores(
        lambda: SparseScores(knn.scores(taken)),
        lambda user, item: knn.of_pairs(taken, user, item),
        num_users=num_users,
        few=NEIGHBOURS // 4,
    )


def ease_scores(ease: Ease, taken: csr_array, num_users: int) -> PairScores:
    """Returns the scores of the items that EASE knows, for users who took f32[B, m]."""
    return PairScores(
        lambda: TableScores(ease.scores(taken), ease.outputs, least=0.0),
        lambda user, item: ease.of_pairs(taken, user, item),
        num_users=num_users,
        few=len(ease.outputs) // 16,
    )


def mean_text(vectors: Float32s, history: Ints) -> Float32s:
    """Returns f32[B, D]: the mean text of a history i64[B, h]; 0 without one."""
    known = (history >= 0)[..., None]
    mean = (vectors[history.clip(0)] * known).sum(1) / np.maximum(known.sum(1), 1)
    return mean.astype(np.float32)


def mean_of(vectors: Float32s, taken: csr_array) -> Float32s:
    """Returns f32[B, D]: the mean of the texts f32[m, D] of what users took f32[B, m]."""
    size = np.maximum(np.asarray(taken.sum(1)).ravel(), 1).astype(np.float32)
    return np.asarray(taken @ vectors, np.float32) / size[:, None]
