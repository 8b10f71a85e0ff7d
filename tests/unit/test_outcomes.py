"""What came of the items of a history: known in time, read by the network, and learned from."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mtrec_ray.data.catalogue import NO_TIME, Catalogue
from mtrec_ray.data.columns import DAY_MS
from mtrec_ray.data.outcomes import HIGH, LOW, MIDDLE, level_bounds, levels, outcome_parts
from mtrec_ray.data.preparing import statistics
from mtrec_ray.data.preparing.features import FeatureSpec, history_rows
from mtrec_ray.data.preparing.statistics import KeyedRows, Outcomes
from mtrec_ray.data.shards import OUTCOME, Arrays
from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.model.outcomes import OutcomeEmbedding, similarity_by_outcome
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.training.boosted_trees import Columns
from tests.builders import HISTORY, project_tree, scenario_tree
from tests.planted import learn, planted_facts, planted_model, planted_rows, predicted

nan = math.nan


# --- the project file ------------------------------------------------------------------------


def scenario_of(history, tasks=("click", "buy")) -> Scenario:
    """A scenario with binary tasks and a history."""
    tree = scenario_tree({t: {"kind": "binary", "delay": "1d"} for t in tasks}, history=history)
    return parse_project(project_tree({"shop": tree})).scenarios["shop"]


@pytest.mark.parametrize(
    ("of", "tasks"),
    [
        ("any", ()),
        (["any"], ()),
        ("click", ("click",)),
        (["click"], ("click",)),
        (["click", "buy"], ("click", "buy")),
    ],
)
def test_tasks_of_a_history(of, tasks):
    """One task, several, or any; as they stand, and read back."""
    scenario = scenario_of({"of": of})
    assert scenario.history.tasks == tasks
    assert Scenario.model_validate(scenario.model_dump(by_alias=True)) == scenario


@pytest.mark.parametrize(
    ("history", "line"),
    [
        ({"of": []}, r"history.of: found \[\]; allowed: any, a task, or a list of tasks"),
        ({"of": ["any", "buy"]}, "history.of: found .*; allowed: any, a task, .*, each once"),
        ({"of": ["buy", "buy"]}, "history.of: found .*; allowed: any, a task, .*, each once"),
        ({"of": [1]}, r"history.of: found \[1\]; allowed: any, a task, or a list of tasks"),
        ({"of": ["buy", "sell"]}, r"history.of: found 'sell'; allowed: another of \['buy', 'cli"),
    ],
)
def test_mistakes_of_a_history(history, line):
    """Each mistake gets one line."""
    with pytest.raises(ProjectError, match=line) as caught:
        scenario_of(history)
    assert len(caught.value.problems) == 1


def test_outcomes_of_rows_that_nobody_saw_are_refused():
    """With sampled negatives in the log, all of whose rows are in the history, nothing was seen."""
    negatives = {"of": "click", "from": "log"}
    tasks = {"click": {"kind": "binary"}}

    def read(**history):
        tree = scenario_tree(tasks, history={"outcomes": True, **history}, negatives=negatives)
        return parse_project(project_tree({"shop": tree}))

    assert read(of="click").scenarios["shop"].history.outcomes
    with pytest.raises(
        ProjectError, match=r"history\.outcomes: found it with all rows in the hist"
    ):
        read()


def test_outcomes_of_many_tasks_are_refused():
    """Fifteen tasks have room, sixteen have not."""
    names = [f"t{i}" for i in range(16)]
    assert scenario_of({"outcomes": True}, names[:15]).history.outcomes
    with pytest.raises(ProjectError, match="outcomes: found 16 tasks; allowed: at most 15 beside"):
        scenario_of({"outcomes": True}, names)


# --- levels and histories --------------------------------------------------------------------

FACTS = {
    "kinds": {"buy": "binary", "stars": "regression", "views": "count", "watched": "duration"},
    "label_means": {"buy": 0.1, "stars": 3.0, "views": 2.0, "watched": 90.0},
    "label_stds": {"buy": 0.3, "stars": 1.0, "views": 2.0, "watched": 200.0},
    "label_log_means": {"watched": math.log(61)},
    "label_log_stds": {"watched": 2 * math.log(2)},
}


def test_levels():
    """Binary labels are low or high; numbers by half a deviation, durations by their logarithms."""
    labels = [
        [0, 2.5, 0, 29.4],
        [1, 2.4, 1, 29.6],
        [nan, 3.6, 3, 120.9],
        [0, nan, 4, 121.1],
    ]
    found = levels(np.array(labels), level_bounds(FACTS))
    assert found.tolist() == [
        [LOW, MIDDLE, LOW, LOW],
        [HIGH, LOW, MIDDLE, MIDDLE],
        [0, HIGH, MIDDLE, MIDDLE],
        [LOW, 0, HIGH, HIGH],
    ]
    assert outcome_parts(found).sum(1).tolist() == [
        sum(level * 4**task for task, level in enumerate(row)) for row in found.tolist()
    ]


moments = st.builds(
    lambda day, ms: day * DAY_MS + ms, st.integers(0, 9), st.sampled_from([-1, 0, 0, 1])
)
rows = st.tuples(st.integers(0, 2), moments, *[st.sampled_from([0.0, 1.0, nan])] * 2, st.booleans())
delays = st.sampled_from([0, 1, DAY_MS, 3 * DAY_MS])


def told(label_row, is_known) -> int:
    """An outcome from the labels of a row, task by task."""
    level = [0 if math.isnan(x) or not k else 1 + 2 * x for x, k in zip(label_row, is_known)]  # noqa: B905
    return int(sum(x * 4**task for task, x in enumerate(level)))


@given(st.lists(rows, min_size=1, max_size=25), st.integers(1, 4), delays, delays, delays)
def test_an_outcome_is_known_after_its_delay(table, last, delay, first, second):
    """An item of a history tells of each task what its row's label says, once that is known."""
    key, time, click, buy, counts = (np.array(c) for c in zip(*table, strict=True))
    labels = np.stack([click, buy], 1)
    parts = outcome_parts(levels(labels, [(0.5, 0.5)] * 2))
    item = np.arange(len(table), dtype=np.int32)
    found = statistics.histories(
        KeyedRows(key, time, labels, counts), item, last, delay,
        outcomes=Outcomes(parts, [first, second]),
    )  # fmt: skip
    assert found.outcomes is not None
    for i, (history, outcomes) in enumerate(zip(found.items, found.outcomes, strict=True)):
        for j, outcome in zip(history, outcomes, strict=True):
            known = [time[j] < time[i] - d for d in (first, second)]
            assert outcome == (told(labels[j], known) if j >= 0 else 0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 4), rows), min_size=1, max_size=25))
def test_outcomes_without_time(table):
    """Without time, rows of other folds tell all they know."""
    key, fold, more = zip(*table, strict=True)
    labels = np.array([row[2:4] for row in more])
    parts = outcome_parts(levels(labels, [(0.5, 0.5)] * 2))
    keyed = KeyedRows(np.array(key), np.zeros(len(key), np.int64), labels, np.array(fold) >= 0,
                      np.array(fold))  # fmt: skip
    item = np.arange(len(key), dtype=np.int32)
    found = statistics.histories(keyed, item, 3, 0, outcomes=Outcomes(parts, [0, 0]))
    assert found.outcomes is not None
    for history, outcomes in zip(found.items, found.outcomes, strict=True):
        for j, outcome in zip(history, outcomes, strict=True):
            assert outcome == (told(labels[j], [True, True]) if j >= 0 else 0)


def test_positives_of_several_tasks():
    """Rows that are positive in one of the tasks, from when all of these labels are known."""
    tree = scenario_tree(
        {"click": {"kind": "binary", "delay": "1d"}, "like": {"kind": "binary", "delay": "3d"},
         "buy": {"kind": "binary", "delay": "9d"}},
        history={"of": ["like", "click"]},
    )  # fmt: skip
    scenario = parse_project(project_tree({"shop": tree})).scenarios["shop"]
    none = np.zeros(0, np.uint64)
    spec = FeatureSpec(scenario, (0.1,) * 3, 0, np.zeros(0, np.int64), none, (), 0)
    labels = np.array([[1, 0, 0], [0, 1, nan], [0, 0, 1], [nan, nan, 1]])
    zeros = np.zeros(4, np.int64)
    listed, delay = history_rows(KeyedRows(zeros, zeros, labels, np.ones(4, bool)), spec)
    assert listed is not None
    assert listed.tolist() == [True, True, False, False]
    assert delay == 3 * DAY_MS


# --- the network -----------------------------------------------------------------------------


def test_vectors_of_outcomes():
    """The sum of the vectors of the tasks' levels; nothing where nothing is known."""
    torch.manual_seed(0)
    embedding = OutcomeEmbedding(3, 5, std=1.0)
    outcomes = torch.tensor([[1 + 4 * 3, 0], [16 * 2, 1 + 4 * 3]])
    vectors, place = embedding(outcomes)
    click, buy, stars = embedding.parameters()
    wanted = torch.stack([torch.stack([click[1] + buy[3], torch.zeros(5)]),
                          torch.stack([stars[2], click[1] + buy[3]])])  # fmt: skip
    torch.testing.assert_close(vectors[place], wanted)


def test_similarity_by_outcome():
    """What is close to a taken item is told apart from what is close to one passed over."""
    cosine, mask = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]), torch.ones(3, 2).bool()
    first, second, neither = similarity_by_outcome(
        cosine, mask, torch.tensor([[HIGH, LOW], [LOW, HIGH], [0, 4 * HIGH]])
    )
    half = len(first) // 2
    torch.testing.assert_close(first[:half], second[half:])
    torch.testing.assert_close(first[half:], second[:half])
    assert (first - second).abs().max() > 0.5
    assert not neither.any()


def test_trees_tell_closeness_apart():
    """Mean, maximum and latest cosine with the history, with what was taken, and passed over."""
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    columns = Columns(world_facts(outcomes=True), world_catalogue(), vectors)
    rows = passed_over_rows(0, 9000)
    rows[OUTCOME] = np.where(rows["item"][:, None] % 2, rows[OUTCOME] * 3, rows[OUTCOME])
    found = columns.similarity(rows)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i in range(0, 9000, 97):
        cosine = unit[rows["history"][i]] @ unit[rows["item"][i]]
        for place, level in enumerate((None, HIGH, LOW)):
            own = np.where(rows[OUTCOME][i] == level, True, level is None)
            wanted = [cosine[own].mean(), cosine[own].max(), cosine[0] * own[0]] if own.any() else 0
            np.testing.assert_allclose(found[i, 3 * place : 3 * place + 3], wanted, atol=1e-5)


# --- a world in which the items that were passed over tell the taste ----------------------------

NUM_ITEMS, NUM_KINDS, NUM_PERSONS = 60, 3, 300


def passed_over_rows(seed: int, num: int = 4000) -> Arrays:
    """Persons who dislike one kind of items, and their histories: they passed over two of these.

    Of two items of another kind nothing is known; what they like is never in a history.
    """
    rng = np.random.default_rng(seed)
    disliked = np.random.default_rng(9).integers(0, NUM_KINDS, NUM_PERSONS)
    person = rng.integers(0, NUM_PERSONS, num)
    dislikes = disliked[person]
    other = (dislikes + rng.integers(1, NUM_KINDS, num)) % NUM_KINDS
    kind = np.where(rng.random(num) < 0.5, dislikes, other)
    arrays = planted_rows(rng, of_kind(rng, kind), person, kind != dislikes)
    met = np.stack([dislikes, dislikes, other, other], 1)
    order = rng.permuted(np.tile(np.arange(HISTORY), (num, 1)), axis=1)
    met = np.take_along_axis(met, order, 1)
    history = of_kind(rng, met)
    outcomes = np.where(met == dislikes[:, None], LOW, 0)
    return arrays | {"history": history, "history_age": 0 * history, OUTCOME: outcomes}


def of_kind(rng, kind) -> np.ndarray:
    """Items, each of a kind."""
    return kind + NUM_KINDS * rng.integers(0, NUM_ITEMS // NUM_KINDS, kind.shape)


def shown(outcomes: bool):
    """A model that was trained in the world, with its vectors."""
    model, vectors = planted_model(world_facts(outcomes), world_catalogue())
    learn(model, vectors, lambda step: passed_over_rows(step, 500))
    return model, vectors


def world_facts(outcomes: bool):
    """The world's facts."""
    return replace(planted_facts(NUM_ITEMS, []), history_outcomes=outcomes)


def world_catalogue() -> Catalogue:
    """Items whose text tells their kind."""
    return Catalogue(
        tokens=(5 + np.arange(NUM_ITEMS) % NUM_KINDS).astype(np.int32),
        offsets=np.arange(NUM_ITEMS + 1), categorical=np.zeros((NUM_ITEMS, 0), np.int32),
        numeric=np.zeros((NUM_ITEMS, 0), np.float32),
        published=np.full(NUM_ITEMS, NO_TIME), known=np.ones(NUM_ITEMS, bool),
    )  # fmt: skip


def test_what_is_passed_over_is_learned():
    """A taste that lies in the passed-over items alone: learned with outcomes, else a chance."""
    rows = passed_over_rows(10_000)
    auc = {}
    for outcomes in (True, False):
        model, vectors = shown(outcomes)
        auc[outcomes] = roc_auc_score(rows["labels"][:, 0], predicted(model, vectors, rows))
        if outcomes:
            assert_found(model, vectors, rows)
    assert auc[True] > 0.8
    assert 0.45 < auc[False] < 0.55


@torch.no_grad()
def assert_found(model, vectors, rows):
    """The retrieval side ranks what a user passed over below what he did not."""
    num = 200
    users = UserSnapshot(
        ids=np.arange(num).astype(str).astype(object), person=rows["person"][:num],
        moment=rows["time"][:num], user=np.zeros(num, int), history=rows["history"][:num],
        ages=rows["history_age"][:num], numeric=np.full((num, 1), np.nan, np.float32),
        outcomes=rows[OUTCOME][:num],
    )  # fmt: skip
    text = vectors.of_items("shop", torch.arange(NUM_ITEMS))
    side = model.retrieval
    scores = side.user_vectors("shop", users, text) @ side.item_vectors("shop", text).T
    kind = np.arange(NUM_ITEMS) % NUM_KINDS
    low = (users.outcomes == LOW).argmax(1)
    dislikes = kind[users.history[np.arange(num), low]]
    auc = [roc_auc_score(kind != d, s) for d, s in zip(dislikes, scores.numpy(), strict=True)]
    assert np.mean(auc) > 0.65
