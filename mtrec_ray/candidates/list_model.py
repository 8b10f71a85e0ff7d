"""The order of candidates, fitted on what users of valid took.

A list ranks by "will be taken, among all items". All sources name some hundred candidates of a
user; a *conditional logit* (a softmax over the user's candidates) with weights that all scenarios
share, and deviations of each scenario from them, leaves the best on a shortlist. The ranking
network scores these alone. A second logit, which sees the network's score as well, and boosted
trees (LambdaMART) that all scenarios share order them: a candidate's score is the sum of both, each
in units of its own spread. A scenario with few users of valid thus borrows from the others.

Letters: M pairs of a user and a candidate, S sources, P pairs of all questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtrec_ray.candidates.candidates import Candidates, raw, standardised
from mtrec_ray.data.arrays import Float32s, Floats, Ints
from mtrec_ray.data.columns import hash_ints

if TYPE_CHECKING:
    import lightgbm

RIDGE_SHARED = 1e-3  # of the shared weights, for the mean over users
RIDGE_OWN = 2.0  # of a scenario's deviations, for the sum over its users
OTHERS = 200  # candidates that a user did not take, about, in the fit
TREES = 250
LEAST_USERS = 10  # with a taken candidate: fewer fit nothing
TREE_OPTIONS = {
    "objective": "lambdarank", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 50,
    "lambdarank_truncation_level": 30, "feature_fraction": 0.7, "bagging_fraction": 0.8,
    "bagging_freq": 1, "lambda_l2": 5.0, "verbose": -1, "deterministic": True,
    "force_row_wise": True,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """The candidates of some users, and which of them the users took: bool[M]."""

    candidates: Candidates
    taken: NDArray[np.bool_]


@dataclass(frozen=True)
class Logit:
    """Weights of standardised scores.

    Attributes:
        sources: in the order of the weights.
        shared: weights f64[S]; `own`: a scenario's weights in place of them.
    """

    sources: list[str]
    shared: list[float]
    own: dict[str, list[float]]

    @classmethod
    def fit(cls, rows: Mapping[str, "FitRows"], sources: list[str]) -> "Logit":
        """Returns the weights of all scenarios' pairs; with few users popularity's alone."""
        every = FitRows.join(list(rows.values()))
        if every.num_users < LEAST_USERS:
            return cls(sources, [float(source == "popularity") for source in sources], {})
        shared = fit_logit(every, RIDGE_SHARED * every.num_users)
        own = {
            name: (shared + fit_logit(part, RIDGE_OWN, part.standardised @ shared)).tolist()
            for name, part in rows.items()
            if part.num_users
        }
        return cls(sources, shared.tolist(), own)

    def weights(self, name: str) -> Floats:
        """Returns f64[S]: the weights of a scenario."""
        return np.array(self.own.get(name, self.shared), np.float64)

    def scores(self, name: str, candidates: Candidates) -> Floats:
        """Returns f64[M]: the score of each candidate of a scenario."""
        return standardised(candidates, self.sources).astype(np.float64) @ self.weights(name)

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> "Logit":
        """Returns the weights of plain JSON values."""
        return cls(**tree)


@dataclass(frozen=True)
class ListModel:
    """What orders the candidates of every scenario.

    Attributes:
        first: the order by which candidates come onto the shortlist.
        logit: the order of the shortlist.
        trees: LightGBM's text; empty where there were too few users.
        spread: standard deviations of the logit's score and of the trees'.
        users: by scenario, how many it was fitted on.
    """

    first: Logit
    logit: Logit
    trees: str
    spread: tuple[float, float]
    users: dict[str, int]

    @cached_property
    def booster(self) -> "lightgbm.Booster":
        """The trees, read once."""
        import lightgbm

        return lightgbm.Booster(model_str=self.trees)

    def scores(self, name: str, candidates: Candidates, threads: int = 1) -> Floats:
        """Returns f64[M]: the score of each candidate of a scenario's shortlists."""
        linear: Floats = self.logit.scores(name, candidates) / self.spread[0]
        if not self.trees or not len(candidates):
            return linear
        values = tree_columns(candidates, self.logit.sources)
        found = np.asarray(self.booster.predict(values, num_threads=threads), np.float64)
        return linear + found / self.spread[1]

    def dump(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> "ListModel":
        """Returns the model of `dump`."""
        parts = {name: Logit.parse(tree[name]) for name in ("first", "logit")}
        return cls(**{**tree, **parts, "spread": tuple(tree["spread"])})


def shortlist(candidates: Candidates, score: Floats, num: int) -> Candidates:
    """Returns at most `num` candidates of each user, those with the highest score f64[M]."""
    _, pairs = candidates.best(score, num)
    return candidates.take(np.sort(pairs[pairs >= 0]))


@dataclass(frozen=True)
class FitRows:
    """Pairs of the users who took one of their candidates, sorted by user.

    Attributes:
        columns: f32[P, 2 S]: scores of the sources as they are, and standardised for each user.
        group: i64[P], users numbered from 0 on. taken: bool[P].
    """

    columns: Float32s
    group: Ints
    taken: NDArray[np.bool_]

    @classmethod
    def of(cls, question: Question, sources: Sequence[str]) -> "FitRows":
        """Returns a question's pairs: all that were taken, and about `OTHERS` more of each user.

        The others are drawn alike, by a fixed hash: the weights of a softmax stay the same.
        """
        candidates, taken = question.candidates, question.taken
        others = np.bincount(candidates.user, ~taken, candidates.num_users)
        answered = np.bincount(candidates.user, taken, candidates.num_users) > 0
        chance = hash_ints(np.arange(len(candidates)), 0) / 2.0**64
        drawn = chance < OTHERS / np.maximum(others, 1)[candidates.user]
        kept = answered[candidates.user] & (taken | drawn)
        group = np.unique(candidates.user[kept], return_inverse=True)[1]
        return cls(tree_columns(candidates, sources)[kept], group, taken[kept])

    @classmethod
    def join(cls, parts: Sequence["FitRows"]) -> "FitRows":
        """Returns the pairs of several scenarios, one after another."""
        starts = np.cumsum([0] + [part.num_users for part in parts])
        return cls(
            np.concatenate([part.columns for part in parts]),
            np.concatenate([p.group + s for p, s in zip(parts, starts, strict=False)]),
            np.concatenate([part.taken for part in parts]),
        )

    @property
    def num_users(self) -> int:
        """Users."""
        return int(self.group.max(initial=-1)) + 1

    @property
    def standardised(self) -> Float32s:
        """f32[P, S]: standardised scores."""
        return self.columns[:, self.columns.shape[1] // 2 :]


def rows_of(questions: Mapping[str, Question]) -> tuple[dict[str, FitRows], list[str]]:
    """Returns the pairs of each scenario's questions, and the sources of any."""
    sources = list(dict.fromkeys(s for q in questions.values() for s in q.candidates.scores))
    return {name: FitRows.of(question, sources) for name, question in questions.items()}, sources


def fit_first(questions: Mapping[str, Question]) -> Logit:
    """Returns the order of all candidates, before the network has scored any."""
    return Logit.fit(*rows_of(questions))


def fit_list_model(
    first: Logit, questions: Mapping[str, Question], seed: int = 0, threads: int = 1
) -> ListModel:
    """Returns the model of all scenarios' shortlists: by scenario, users of valid."""
    rows, sources = rows_of(questions)
    logit = Logit.fit(rows, sources)
    users = {name: own.num_users for name, own in rows.items()}
    every = FitRows.join(list(rows.values()))
    if every.num_users < LEAST_USERS:
        return ListModel(first, logit, "", (1.0, 1.0), users)
    booster = fit_trees(every, seed, threads)
    trees = np.asarray(booster.predict(every.columns, num_threads=threads), np.float64)
    linear = np.concatenate([own.standardised @ logit.weights(n) for n, own in rows.items()])
    spread = (spread_of(linear.astype(np.float64)), spread_of(trees))
    return ListModel(first, logit, booster.model_to_string(), spread, users)


def spread_of(scores: Floats) -> float:
    """Returns the standard deviation of scores; 1 where all are equal."""
    return float(scores.std()) or 1.0


def fit_logit(rows: FitRows, ridge: float, offset: Floats | None = None) -> Floats:
    """Returns weights f64[S] of the softmax over each user's pairs.

    Of a user with several taken pairs each counts alike, and all users count alike. `offset` f64[P]
    is added to the scores.
    """
    x, group, taken = rows.standardised.astype(np.float64), rows.group, rows.taken
    start = np.searchsorted(group, np.arange(rows.num_users))
    share = taken / np.add.reduceat(taken.astype(float), start)[group]
    base = np.zeros(len(x)) if offset is None else offset

    def loss(weights: Floats) -> tuple[float, Floats]:
        score = x @ weights + base
        score = score - np.maximum.reduceat(score, start)[group]
        mass = np.exp(score)
        total = np.add.reduceat(mass, start)
        value = -(share * (score - np.log(total)[group])).sum() + ridge * weights @ weights
        return value, x.T @ (mass / total[group] - share) + 2 * ridge * weights

    from scipy.optimize import minimize

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
    return np.asarray(found.x)


def tree_columns(candidates: Candidates, sources: Sequence[str]) -> Float32s:
    """Returns f32[M, 2 S]: scores of the sources as they are, and standardised for each user."""
    return np.concatenate([raw(candidates, sources), standardised(candidates, sources)], 1)


def fit_trees(rows: FitRows, seed: int, threads: int) -> "lightgbm.Booster":
    """Returns LambdaMART (Burges, 2010) over all questions."""
    import lightgbm

    data = lightgbm.Dataset(
        rows.columns, rows.taken.astype(np.int32), group=np.bincount(rows.group)
    )
    options = {**TREE_OPTIONS, "seed": seed, "num_threads": threads}
    return lightgbm.train(options, data, TREES)
