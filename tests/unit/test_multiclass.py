"""Multiclass tasks: one of several values of a column, with a probability for each."""

import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from mtrec_ray.data.catalogue import ItemLookup
from mtrec_ray.data.columns import place_among
from mtrec_ray.data.prepared import Classes, PreparedScenario, parse_scenario
from mtrec_ray.data.preparing.audit_log import raw_class
from mtrec_ray.data.preparing.classes import class_facts, with_gains
from mtrec_ray.data.preparing.events import canonical
from mtrec_ray.data.preparing.problems import scan_problems
from mtrec_ray.data.preparing.scan import LogSource, Scan, merge_scans, scan_rows
from mtrec_ray.data.storage import write_table
from mtrec_ray.evaluation.blend import Blend
from mtrec_ray.evaluation.metrics import task_metrics, task_score
from mtrec_ray.evaluation.model_choice import ScoredRows, choose_model, rare_labels
from mtrec_ray.model.catalogue_scorer import blend
from mtrec_ray.model.recommender import predictions
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import joint_model_depends_on, prepared_data_depends_on
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.project.task import Task
from mtrec_ray.stages.predictions import (
    Beside,
    SecondOpinion,
    prediction_table,
    read_predictions,
)
from mtrec_ray.training.boosted_trees import num_rarer_labels
from mtrec_ray.training.losses import joint_loss, label_counts, loss_sums
from mtrec_ray.training.task_losses import logit_losses
from tests.builders import (
    WITH_CLASSES,
    build,
    classes_project,
    make_catalogues,
    make_rows,
    project_tree,
    scenario_tree,
    small_model,
    two_scenario_project,
)
from tests.planted import learn, planted_facts, planted_model, planted_rows

nan = math.nan
SHOP = WITH_CLASSES["shop"]
CLASSES = ["skip", "like", "love"]


def project_of(**fields) -> Project:
    """A project with a binary and a multiclass task."""
    reaction = {"kind": "multiclass", "classes": CLASSES} | fields
    tasks = {"click": {"kind": "binary"}, "reaction": reaction}
    return parse_project(project_tree({"shop": scenario_tree(tasks)}))


def reaction_of(**fields) -> Task:
    """The multiclass task of a project that was written and read again."""
    project = project_of(**fields)
    again = parse_project(project.dump())
    assert again == project
    return again.scenarios["shop"].tasks["reaction"]


# --- the project file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "gains", "weights"),
    [
        ({}, (0, 1, 2), (1, 1, 1)),
        ({"gains": "love"}, (0, 0, 1), (1, 1, 1)),
        ({"gains": {"like": 1, "skip": -2}}, (-2, 1, 0), (1, 1, 1)),
        ({"classes": [1, 2.5, 7]}, (1, 2.5, 7), (1, 1, 1)),
        ({"classes": [1, 2.5, 7], "gains": {2.5: 3}}, (0, 3, 0), (1, 1, 1)),
        ({"classes": [True, False, "?"]}, (0, 1, 2), (1, 1, 1)),
        ({"classes": [True, False]}, (1, 0), (1, 1)),
        ({"classes": [False, True], "class_weights": {True: 4}}, (0, 1), (1, 4)),
    ],
)
def test_numbers_of_classes(fields, gains, weights):
    """Gains are the classes, their places, or those of the file; a dump keeps all of it."""
    task = reaction_of(**fields)
    assert (task.class_gains, task.weights_of_classes) == (gains, weights)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"classes": None}, "classes: found none in a multiclass task; allowed: a list of 2"),
        ({"classes": ["a"]}, 'classes: found ["a"]; allowed: 2 to 100 values'),
        ({"classes": list(range(101))}, "classes: found [0, 1, "),
        ({"classes": ["a", "b", "a"]}, "'a' stands twice; allowed: each value once"),
        ({"classes": [1, 2, "1.0"]}, "'1.0' stands twice; allowed: each value once"),
        ({"classes": [1, nan]}, "allowed: texts, finite numbers, true or false"),
        ({"classes": ["a", None]}, "classes.1: found null; allowed: text, a number"),
        ({"gains": {"hate": 1}}, 'gains: found \'hate\'; allowed: classes, ["skip", "like"'),
        ({"gains": {"love": 0}}, "gains: found 0 of every class; allowed: two numbers or more"),
        ({"gains": {"love": 1e10}}, "gains.love: found 10000000000.0; allowed: input should be l"),
        ({"classes": [1, 2], "gains": {1: 1, "1": 2}}, "gains: found '1' twice; allowed: each"),
        ({"class_weights": {"hate": 1}}, "class_weights: found 'hate'; allowed: classes"),
        ({"class_weights": {"love": 0}}, "class_weights.love: found 0; allowed: input should be"),
        ({"focal": 2}, "focal: found 2 in a multiclass task; allowed: a binary one"),
        ({"space": "entire", "given": "click"}, "space: found entire; allowed: masked, or a bin"),
        ({"kind": "binary"}, 'classes: found ["skip", "like", "love"] in a binary task; allowed'),
        ({"kind": "count", "classes": None, "gains": "a"}, 'gains: found {"a": 1.0} in a count'),
        (
            {"kind": "regression", "classes": None, "label_smoothing": 0.1},
            "found 0.1 in a regression task; allowed: a binary or multiclass one",
        ),
    ],
)
def test_mistakes_are_one_line(fields, line):
    """Each wrong field is a line that names what was found and what is allowed."""
    with pytest.raises(ProjectError) as caught:
        project_of(**fields)
    (found,) = caught.value.problems
    assert found.startswith("scenarios.shop.tasks.reaction.")
    assert line in found


def test_a_multiclass_task_is_no_parent():
    """What history, negatives and given name has positives: a binary task."""
    tasks = {
        "buy": {"kind": "binary", "given": "reaction"},
        "reaction": {"kind": "multiclass", "classes": CLASSES},
    }
    with pytest.raises(ProjectError, match="found that 'reaction' is a multiclass; allowed: a bin"):
        parse_project(project_tree({"shop": scenario_tree(tasks)}))


def test_other_projects_do_not_name_classes():
    """What a project without classes is prepared and trained from is as before the fields."""
    project = two_scenario_project()
    for made_from in (prepared_data_depends_on(project), joint_model_depends_on(project, "x")):
        assert "classes" not in str(made_from)
        assert "class_weights" not in str(made_from)
    of_loss = joint_model_depends_on(classes_project(), "x")
    assert "class_weights" in str(of_loss)
    prepared = str(prepared_data_depends_on(classes_project()))
    assert "gains" in prepared
    assert "class_weights" not in prepared


# --- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "classes", "wanted"),
    [
        (pa.array(["b", "a", None, "x"]), ["a", "b"], [1, 0, nan, -1]),
        (pa.array(["b", None, "a"]).dictionary_encode(), ["a", "b"], [1, nan, 0]),
        (pa.array([b"b", b"a", None]), ["a", "b"], [1, 0, nan]),
        (pa.array([5, 3, None, 4], pa.int8()), [3, 4, 5], [2, 0, nan, 1]),
        (pa.array([5, 300, None]), ["a", 300, 5, 2.5], [2, 1, nan]),
        (pa.array([1.0, nan, 2.5, math.inf]), [1, 2.5], [0, nan, 1, -1]),
        (pa.array([Decimal("4.5"), None]), [1, 4.5], [1, nan]),
        (pa.array([0.1, 2.0, None], pa.float16()), [2, 0.1], [1, 0, nan]),
        (pa.array([True, None, False]), [False, True], [1, nan, 0]),
        (pa.array(["1", "2", None]), [1, 2], [0, 1, nan]),
    ],
)
def test_labels_are_places_in_the_list_of_classes(column, classes, wanted):
    """NaN is null and -1 another value; the audit's own code finds the same classes."""
    chunks = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    np.testing.assert_array_equal(place_among(chunks, classes), np.array(wanted, "f4"))
    known = np.where(np.array(wanted) == -1, nan, wanted)
    np.testing.assert_array_equal(raw_class(chunks, classes), known)


def scanned(project: Project, **columns) -> tuple[Scan, np.ndarray]:
    """The scan of a log in two parts, and its labels."""
    scenario, num = project.scenarios["shop"], len(columns["reaction"])
    ids = pa.chunked_array([["a", "b"]])
    every = {"user_id": ["u"] * num, "item_id": ["a"] * num, "time": np.full(num, 1.6e9)}
    table = pa.table(every | {"split": ["train"] * num, "click": [1.0] * num} | columns)
    source = LogSource(scenario, ItemLookup.of(ids), 2, 2, np.zeros(2, np.int64))
    scan, labels = None, []
    for part in (table.slice(0, 3), table.slice(3)):
        rows, findings = canonical(part, scenario, 0, source.lookup, 2)
        scan = merge_scans(scan, scan_rows(rows, findings, source))
        labels += rows.column("labels").to_pylist()
    assert scan is not None
    return scan, np.array(labels, float)


LOG = ["love", "skip", None, "like", "skip", "skip"]


def test_training_has_rates_and_gains():
    """The scan counts classes by rows and weights; means of labels are those of gains."""
    project = project_of(gains={"like": 1, "love": 3})
    tree = project.dump()
    tree["scenarios"]["shop"]["events"]["weight_column"] = "w"
    project = parse_project(tree)
    scan, labels = scanned(project, reaction=LOG, w=[2.0, 1, 1, 1, 1, 3])
    np.testing.assert_array_equal(labels[:, 1], [2, 0, nan, 1, 0, 0])
    facts = class_facts(project.scenarios["shop"], scan.class_sums)["classes"]["reaction"]
    assert facts == {"values": CLASSES, "gains": [0, 1, 3], "rates": [5 / 8, 1 / 8, 2 / 8]}
    assert scan.priors[1] == pytest.approx((2 * 3 + 1) / 8)
    gained = with_gains(labels.astype("f4"), project.scenarios["shop"])
    np.testing.assert_array_equal(gained[:, 1], [3, 0, nan, 1, 0, 0])
    np.testing.assert_array_equal(gained[:, 0], labels[:, 0])


def test_what_training_lacks_is_refused():
    """A value that is no class, and a class without a row, are a line each."""
    project = project_of()
    scan, _ = scanned(project, reaction=[*LOG, "hate", "hate"], click=[1.0, 0] * 4)
    (line,) = (x for x in scan_problems(project, {"shop": scan}) if ".tasks." in x)
    assert line == (
        "scenarios.shop.tasks.reaction: found 2 labels of a multiclass task that are no class, "
        "such as hate; allowed: skip, like, love, null"
    )
    scan, _ = scanned(project, reaction=["skip", "like"] * 4, click=[1.0, 0] * 4)
    (line,) = (x for x in scan_problems(project, {"shop": scan}) if ".tasks." in x)
    assert line == (
        "scenarios.shop.tasks.reaction.classes: found no row of love in train; allowed: classes "
        "that training has"
    )


def test_manifests_without_classes_are_read():
    """The facts of a scenario are read with classes and, as others wrote them, without."""
    tree = {**vars(SHOP), "classes": {"reaction": vars(SHOP.classes["reaction"])}}
    assert parse_scenario(tree) == SHOP
    del tree["classes"]
    assert parse_scenario(tree) == replace(SHOP, classes={})


# --- the loss --------------------------------------------------------------------------------

LABELS = torch.tensor([[1.0, 0, 0], [1.0, 2, 1], [1.0, 1, 0], [1.0, 2, 1], [0, nan, nan]])
LOGITS = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))


def of_reaction(labels, logits, rows=None, **fields) -> float:
    """The loss of the multiclass task alone."""
    shapes = {("shop", "reaction"): reaction_of(**fields)} if fields else {}
    facts, weights = {"shop": SHOP}, {"shop": rows} if rows is not None else {}
    counts = label_counts(facts, {"shop": labels}, weights, shapes)
    sums = loss_sums(facts, {"shop": logits}, {"shop": labels}, weights, shapes)
    return joint_loss(sums, counts, torch.tensor([0.0, 1.0, 0.0])).item()


def test_the_loss_is_scikit_learns():
    """Cross entropy of the task's own logits, by weights of rows and of classes."""
    p = LOGITS[:4, 1:4].softmax(1).numpy()
    codes, rows = LABELS[:4, 1].numpy(), torch.tensor([0.5, 2.0, 1.0, 0.1, 9.0])
    assert of_reaction(LABELS, LOGITS) == pytest.approx(log_loss(codes, p), rel=1e-5)
    found = of_reaction(LABELS, LOGITS, rows, class_weights={"love": 2.5, "skip": 0.5})
    both = rows[:4].numpy() * np.array([0.5, 1, 2.5])[codes.astype(int)]
    assert found == pytest.approx(log_loss(codes, p, sample_weight=both), rel=1e-5)


def test_smoothed_labels_by_hand():
    """A label smoothed by 0.3 over three classes is 0.8 of its own and 0.1 of each other."""
    smooth = torch.eye(3)[LABELS[:4, 1].long()] * 0.7 + 0.1
    wanted = -(smooth * LOGITS[:4, 1:4].log_softmax(1)).sum(1)
    task = reaction_of(label_smoothing=0.3)
    found = logit_losses(SHOP, "reaction", LOGITS[:4], LABELS[:4, 1], task)
    torch.testing.assert_close(found, wanted)


def test_two_classes_are_a_binary_task():
    """Two classes with logits 0 and z have the loss and the gradient of a binary logit z."""
    two = replace(
        SHOP, kinds={"a": "multiclass"}, given={}, entire=[],
        classes={"a": Classes([0, 1], [0.0, 1.0], [0.6, 0.4])},
    )  # fmt: skip
    one = replace(two, kinds={"a": "binary"}, classes={})
    z, y = torch.randn(6, requires_grad=True), torch.tensor([0.0, 1, 1, 0, 1, 0])
    found = logit_losses(two, "a", torch.stack([torch.zeros(6), z], 1), y)
    wanted = logit_losses(one, "a", z[:, None], y)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(x.sum(), z)[0] for x in (found, wanted)]
    torch.testing.assert_close(*gradients)


# --- the network -----------------------------------------------------------------------------


def test_each_task_reads_its_own_logits():
    """Changing a class's logit changes that task's predictions and loss and no other task's."""
    facts, moved = SHOP, LOGITS.clone()
    moved[:, 2] += 1.0
    before, after = (predictions(facts, x) for x in (LOGITS, moved))
    changed = (before != after).any(0)
    assert changed.tolist() == [False, True, False, True, True, True]
    sums = [loss_sums({"shop": facts}, {"shop": x}, {"shop": LABELS}) for x in (LOGITS, moved)]
    assert (sums[0] != sums[1]).tolist() == [False, True, False]
    torch.testing.assert_close(before[:, 0], LOGITS[:, 0].sigmoid())
    torch.testing.assert_close(before[:, 2], LOGITS[:, 4].sigmoid())


def test_predictions_are_expected_gains_and_probabilities():
    """Behind a number for each task stand probabilities, whose mean gain is the task's number."""
    found = predictions(SHOP, LOGITS)
    assert found.shape == (5, SHOP.num_predictions) == (5, 6)
    p = found[:, SHOP.probabilities_of("reaction")]
    torch.testing.assert_close(p, LOGITS[:, 1:4].softmax(1))
    torch.testing.assert_close(found[:, 1], p @ torch.tensor([0.0, 1.0, 3.0]))
    ranked = blend(found, SHOP.tasks, SHOP.given, {"reaction": 2.0})
    torch.testing.assert_close(ranked, 2 * found[:, 0] * found[:, 1])


@pytest.mark.parametrize("sharing", ["bottom", "mmoe", "ple", "star", "pepnet"])
def test_a_model_starts_at_the_base_rates(sharing):
    """At its start, and scored by the general head, a task has the rates of training: NE 1."""
    options = small_model("none", sharing=sharing)
    model, vectors = build(options, make_catalogues(), WITH_CLASSES)
    vectors.refresh()
    for name, facts in WITH_CLASSES.items():
        for task in facts.tasks:
            torch.nn.init.zeros_(model.heads[name][task].out.weight)
    rows = make_rows(np.random.default_rng(2), SHOP, 40)
    samples = Samples.of(rows)
    rates = torch.tensor(SHOP.classes["reaction"].rates)
    with torch.no_grad():
        model.heads["shop"]["reaction"].out.bias.copy_(rates.log())
        for model.use_general_head in (False, True):
            logits = model.score("shop", samples, vectors.of_items("shop", samples.items))
            found = predictions(SHOP, logits)
            p = found[:, SHOP.probabilities_of("reaction")]
            torch.testing.assert_close(p, rates.expand(40, -1))
            metrics = task_metrics(SHOP, rows["person"], rows["labels"], found.numpy())
            assert task_score(metrics["reaction"]) == pytest.approx(1, rel=1e-5)


# --- metrics and choices ---------------------------------------------------------------------


def drawn(num: int, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Persons, labels and predictions of a scenario, better with less noise."""
    rng = np.random.default_rng(seed)
    labels = np.full((num, 3), nan, np.float32)
    labels[:, 1] = rng.choice(3, num, p=[0.5, 0.2, 0.3])
    logits = np.random.default_rng(5).normal(size=(num, 5)).astype("f4") * noise
    logits[np.arange(num), 1 + labels[:, 1].astype(int)] += 1
    return rng.integers(0, 40, num), labels, predictions(SHOP, torch.tensor(logits)).numpy()


def test_metrics_are_scikit_learns():
    """Log loss, accuracy and macro AUC are scikit-learn's; NE is over the rates of training."""
    users, labels, scores = drawn(400)
    (found,) = task_metrics(SHOP, users, labels, scores).values()
    codes, p = labels[:, 1].astype(int), scores[:, 3:].astype(np.float64)
    p /= p.sum(1, keepdims=True)
    rates = np.tile([0.5, 0.2, 0.3], (400, 1))
    wanted = {
        "logloss": log_loss(codes, p),
        "ne": log_loss(codes, p) / log_loss(codes, rates),
        "accuracy": accuracy_score(codes, p.argmax(1)),
        "majority": accuracy_score(codes, np.zeros(400)),
        "macro_auc": roc_auc_score(codes, p, multi_class="ovr", average="macro"),
        "calibration": (p @ [0, 1, 3]).sum() / np.array([0, 1, 3])[codes].sum(),
        "rows": 400,
    }
    assert found == pytest.approx(wanted, rel=1e-5)


def test_metrics_of_one_class_alone():
    """Rows that all have one class have a log loss and no AUC; without gains no calibration."""
    users, labels, scores = drawn(30)
    labels[:, 1] = 0
    (found,) = task_metrics(SHOP, users, labels, scores).values()
    assert np.isfinite([found["logloss"], found["ne"]]).all()
    assert np.isnan([found["macro_auc"], found["calibration"]]).all()


@pytest.mark.parametrize(("noise", "chosen"), [(0.5, "finetuned"), (3.0, "joint")])
def test_the_better_model_is_chosen(noise, chosen):
    """Fine-tuning is kept where the log loss of the classes falls, and not where it rises."""
    users, labels, scores = drawn(400)
    scored = ScoredRows(users, labels, {"joint": scores, "finetuned": drawn(400, noise=noise)[2]})
    found = choose_model(SHOP, scored, 100, "certain")
    assert found["chosen"] == chosen
    assert found["tasks"] == ["reaction"]
    assert found["metrics"]["reaction"]["metric"] == "logloss"
    assert (found["metrics"]["reaction"]["value"] < 0) == (chosen == "finetuned")


def test_rare_labels_are_those_beside_the_most_frequent_class():
    """A task with one frequent class has as many labels as the others have."""
    labels = np.full((9, 3), nan, np.float32)
    labels[:7, 1] = [0, 0, 0, 2, 1, 0, 2]
    assert rare_labels(SHOP, labels) == {"click": 0, "reaction": 3, "buy": 0}
    assert num_rarer_labels("multiclass", labels[:, 1]) == 0


# --- what is written -------------------------------------------------------------------------


def facts_with_columns() -> PreparedScenario:
    """The scenario, whose rows have the columns of popularity."""
    return replace(SHOP, popularity=dict.fromkeys(SHOP.tasks, SHOP.numeric_names[0]))


def test_predictions_are_read_as_they_were_written(tmp_path):
    """Scores and the network's own predictions come back with the probabilities of classes."""
    facts, rows = facts_with_columns(), make_rows(np.random.default_rng(1), SHOP, 5)
    network = predictions(facts, LOGITS).numpy()
    blends = {"click": Blend("binary", {"network": 0.5}, 0.3)}
    beside = Beside(SecondOpinion(blends=blends), facts, None, None, None, timed=True)
    values = beside.values(rows, network)
    table = prediction_table(facts, rows, values)
    assert len(table["score"][0]) == len(table["network"][0]) == 3
    assert len(table["probabilities.reaction"][0]) == 3
    write_table(str(tmp_path / "shop" / "part.parquet"), table)
    found = read_predictions(str(tmp_path), "shop", 3)
    np.testing.assert_array_equal(found["network"], network)
    np.testing.assert_array_equal(found["score"][:, 1:], network[:, 1:])
    assert (found["score"][:, 0] != network[:, 0]).all()
    np.testing.assert_array_equal(found["label"], rows["labels"])


# --- a planted world -------------------------------------------------------------------------

RATES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]])  # of classes, by category


def test_the_class_follows_from_the_category_of_the_item():
    """Where the category of an item says the class, the learned probabilities are its rates."""
    rng = np.random.default_rng(0)
    catalogue = make_catalogues()["shop"]
    num = catalogue.num_items
    category = np.arange(num) % 3
    catalogue = replace(
        catalogue,
        categorical=category[:, None].astype("i4"),
        known=np.ones(num, bool),
        numeric=np.zeros((num, 0), "f4"),
    )
    classes = Classes(CLASSES, [0.0, 1.0, 3.0], RATES.mean(0).tolist())
    facts = replace(
        planted_facts(num, [3]),
        kinds={"click": "binary", "reaction": "multiclass"}, classes={"reaction": classes},
        label_means={"click": 0.4, "reaction": 1.0}, label_stds={"click": 0.5, "reaction": 1.0},
        popularity=dict.fromkeys(("click", "reaction"), "item.log_count"),
    )  # fmt: skip

    def rows_of(_: int):
        item = rng.integers(0, num, 500)
        rows = planted_rows(rng, item, np.zeros(500, int), category[item] == 1)
        drawn = (rng.random((500, 1)) > RATES[category[item]].cumsum(1)).sum(1)
        labels = np.concatenate([rows["labels"], drawn[:, None]], 1).astype("f4")
        return rows | {"labels": labels}

    model, vectors = planted_model(facts, catalogue)
    learn(model, vectors, rows_of)
    rows = rows_of(0)
    samples = Samples.of(rows)
    with torch.no_grad():
        logits = model.score("shop", samples, vectors.of_items("shop", samples.items))
    found = predictions(facts, logits).numpy()
    of_row = RATES[category[rows["item"]]]
    assert np.abs(found[:, 2:] - of_row).mean() < 0.06
    expected = of_row @ [0, 1, 3]
    assert np.corrcoef(found[:, 1], expected)[0, 1] > 0.95
    metrics = task_metrics(facts, rows["person"], rows["labels"], found)["reaction"]
    entropy = -(of_row * np.log(of_row)).sum(1).mean()
    assert metrics["logloss"] == pytest.approx(entropy, rel=0.15)
    assert metrics["accuracy"] > 0.6 > metrics["majority"]
