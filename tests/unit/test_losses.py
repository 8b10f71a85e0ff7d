"""The joint loss is sums over labelled rows, divided by their counts, weighted by lambda and w."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_poisson_deviance

from mtrec_ray.model.samples import Samples
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.task import Task
from mtrec_ray.training.forward import Forward
from mtrec_ray.training.losses import (
    joint_loss,
    label_counts,
    loss_sums,
    loss_weights,
    task_shapes,
    weight_tensor,
)
from mtrec_ray.training.step import accumulate
from mtrec_ray.training.task_losses import logit_losses, target
from mtrec_ray.training.teacher_labels import mixable_tasks
from tests.builders import (
    EVERY_KIND,
    FACTS,
    SHOP,
    VIDEO,
    WITH_CLASSES,
    build,
    classes_project,
    every_kind_project,
    make_catalogues,
    make_rows,
    shaped_project,
    small_model,
    take,
    two_scenario_project,
)

nan = math.nan
# click, buy: every combination that can occur (a buy is known only where the click is positive).
SHOP_LABELS = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, nan], [0.0, nan], [nan, nan]])
SHOP_LOGITS = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 0.1], [1.5, 2.5], [0.2, 0.4]])
# like, stars.
VIDEO_LABELS = torch.tensor([[1.0, 5.0], [nan, 2.0], [0.0, nan]])
VIDEO_LOGITS = torch.tensor([[0.3, 1.0], [0.1, -0.5], [-0.4, 0.2]])
LABELS = {"shop": SHOP_LABELS, "video": VIDEO_LABELS}
LOGITS = {"shop": SHOP_LOGITS, "video": VIDEO_LOGITS}


def weights_of(shop: float, video: float) -> torch.Tensor:
    return weight_tensor(FACTS, two_scenario_project(shop, video).scenarios)


def joint(facts, logits, labels, weights):
    return joint_loss(loss_sums(facts, logits, labels), label_counts(facts, labels), weights)


def loss_and_gradients(labels, weights, facts=FACTS, logits=LOGITS):
    leaves = {name: logits[name].clone().requires_grad_() for name in facts}
    loss = joint(facts, leaves, labels, weights)
    return loss, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_loss(p: float, y: float) -> float:
    return -math.log(p if y else 1 - p)


def batches_of(num_rows: dict[str, int], seed: int = 3) -> dict[str, Samples]:
    rng = np.random.default_rng(seed)
    return {name: Samples.of(make_rows(rng, FACTS[name], n)) for name, n in num_rows.items()}


def test_golden_joint_loss():
    """A joint loss of eight rows with nulls, ESMM and a regression is the one computed by hand."""
    click = [log_loss(sigmoid(x), y) for x, y in ((0.5, 1), (2.0, 1), (-0.7, 1), (1.5, 0))]
    products = [sigmoid(a) * sigmoid(b) for a, b in ((0.5, -1.0), (2.0, 0.3), (1.5, 2.5))]
    buy = [log_loss(p, y) for p, y in zip(products, (1, 0, 0), strict=True)]
    like = [log_loss(sigmoid(0.3), 1), log_loss(sigmoid(-0.4), 0)]
    stars = [(1.0 - (5.0 - 3.5) / 1.1) ** 2, (-0.5 - (2.0 - 3.5) / 1.1) ** 2]
    click, buy, like, stars = (sum(x) / len(x) for x in (click, buy, like, stars))
    shop, video = (click + 0.5 * buy) / 1.5, (like + 3 * stars) / 4
    found = joint(FACTS, LOGITS, LABELS, weights_of(2, 1))
    assert found.item() == pytest.approx((2 * shop + video) / 3, rel=1e-6)
    assert found.item() == pytest.approx(0.821619, abs=1e-6)


def test_weights_sum_to_one():
    """The normalised weights are lambda_i w_it over the sums of both."""
    found = loss_weights(two_scenario_project(2, 1).scenarios)
    assert found == pytest.approx(
        {
            ("shop", "click"): 2 / 3 / 1.5,
            ("shop", "buy"): 2 / 3 * 0.5 / 1.5,
            ("video", "like"): 1 / 3 / 4,
            ("video", "stars"): 1 / 3 * 3 / 4,
        }
    )


@pytest.mark.parametrize("scale", [2.0, 0.5, 1024.0])
def test_doubling_all_lambdas_changes_nothing(scale):
    """Scaling every lambda by a power of two changes neither a loss nor a gradient bit."""
    loss, gradients = loss_and_gradients(LABELS, weights_of(3, 0.7))
    again, same = loss_and_gradients(LABELS, weights_of(3 * scale, 0.7 * scale))
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], same[name]) for name in FACTS)
    other, _ = loss_and_gradients(LABELS, weights_of(3 * scale, 0.7))
    assert not torch.equal(loss, other)


WORLDS = {
    "plain": (FACTS, two_scenario_project),
    "every kind": (EVERY_KIND, every_kind_project),
    "classes": (WITH_CLASSES, classes_project),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ["shop", "video"])
def test_one_hot_lambda_is_the_single_scenario(name, world):
    """A one-hot lambda gives exactly the loss and the gradients of a model of that scenario."""
    every, project = WORLDS[world]
    model, _ = build(small_model(), make_catalogues(), every)
    rng = np.random.default_rng(3)
    batch = {
        n: Samples.of(make_rows(rng, every[n], k)) for n, k in {"shop": 19, "video": 7}.items()
    }
    vectors = {n: torch.randn(len(s.items), 16) for n, s in batch.items()}
    tree = project().dump()
    for n, scenario in tree["scenarios"].items():
        scenario["weight"] = float(n == name)
    one_hot = weight_tensor(every, parse_project(tree).scenarios)
    found = []
    for facts in (every, {name: every[name]}):
        weights = dict(zip(keys_of(every), one_hot, strict=True))
        model.zero_grad()
        labels = {n: batch[n].labels for n in facts}
        logits = model({n: batch[n] for n in facts}, vectors)
        loss = joint(facts, logits, labels, torch.stack([weights[k] for k in keys_of(facts)]))
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss, {n: g.clone() for n, g in gradients.items()}))
    (loss, gradients), (single_loss, single) = found
    assert torch.equal(loss, single_loss)
    assert any(n.startswith("sharing.") and g.any() for n, g in single.items())
    for parameter, gradient in gradients.items():
        wanted = single.get(parameter, torch.zeros_like(gradient))
        assert torch.equal(gradient, wanted), parameter


def keys_of(facts):
    return [(name, task) for name, f in facts.items() for task in f.tasks]


def test_missing_labels_take_no_part():
    """Rows without a label have gradient 0, and the loss is that of the rows that have one."""
    labels = {"shop": torch.tensor([[1.0, 1], [nan, nan], [0, nan], [nan, nan]])}
    facts, weights = {"shop": SHOP}, torch.tensor([0.6, 0.4])
    logits = {"shop": SHOP_LOGITS[:4]}
    loss, gradients = loss_and_gradients(labels, weights, facts, logits)
    kept = torch.tensor([0, 2])
    less, fewer = loss_and_gradients(
        {"shop": labels["shop"][kept]}, weights, facts, {"shop": logits["shop"][kept]}
    )
    assert torch.equal(loss, less)
    assert torch.equal(gradients["shop"][kept], fewer["shop"])
    assert not gradients["shop"][[1, 3]].any()
    assert gradients["shop"][kept].any(1).all()


def test_task_without_labels_adds_nothing():
    """A task without a labelled row adds 0, and the weights of the others stay as they are."""
    labels = {"shop": SHOP_LABELS, "video": VIDEO_LABELS.clone()}
    labels["video"][:, 1] = nan
    weights = weights_of(2, 1)
    loss, gradients = loss_and_gradients(labels, weights)
    whole, before = loss_and_gradients(LABELS, weights)
    stars = sum((x - (y - 3.5) / 1.1) ** 2 for x, y in ((1.0, 5.0), (-0.5, 2.0))) / 2
    assert loss.item() == pytest.approx(whole.item() - 1 / 3 * 3 / 4 * stars, rel=1e-6)
    assert torch.equal(gradients["shop"], before["shop"])
    assert torch.equal(gradients["video"][:, 0], before["video"][:, 0])
    assert not gradients["video"][:, 1].any()


def test_batch_without_any_label_is_zero():
    """A batch without a single label has loss 0 and gradient 0, not NaN."""
    labels = {name: torch.full_like(values, nan) for name, values in LABELS.items()}
    loss, gradients = loss_and_gradients(labels, weights_of(1, 1))
    assert loss.item() == 0
    assert not any(g.any() for g in gradients.values())


def test_entire_space_target():
    """Over the entire space a label is 0 where its parent is 0 and null where its parent is."""
    found = target(SHOP, "buy", SHOP_LABELS)
    np.testing.assert_array_equal(found, [1, 0, nan, 0, nan])


def test_masked_target():
    """Without `space: entire` a conditional label stays null where its parent is 0."""
    found = target(replace(SHOP, entire=[]), "buy", SHOP_LABELS)
    np.testing.assert_array_equal(found, [1, 0, nan, nan, nan])


def test_entire_space_loss_trains_the_parent_too():
    """The loss of a buy is that of p(click) p(buy|click), also in its gradient by the click."""
    a, b = 1.5, 2.5
    labels = {"shop": torch.tensor([[0.0, nan]])}
    weights = torch.tensor([0.0, 1.0])
    logits = {"shop": torch.tensor([[a, b]])}
    loss, gradients = loss_and_gradients(labels, weights, {"shop": SHOP}, logits)
    p, q = sigmoid(a), sigmoid(b)
    assert loss.item() == pytest.approx(-math.log(1 - p * q), rel=1e-6)
    wanted = [p * q * (1 - p) / (1 - p * q), p * q * (1 - q) / (1 - p * q)]
    assert gradients["shop"][0].tolist() == pytest.approx(wanted, rel=1e-5)


FUNNEL = replace(
    SHOP,
    kinds={"buy": "binary", "view": "binary", "cart": "binary"},
    given={"buy": "cart", "cart": "view"},
    entire=["buy"],
)
# buy, view, cart; what is not known, and what a task above rules out, is null.
FUNNEL_LABELS = torch.tensor(
    [[1.0, 1, 1], [0, 1, 1], [nan, 1, 1], [nan, 1, 0], [nan, 0, nan], [nan, 1, nan], [nan] * 3]
)


def test_a_chain_over_the_entire_space_is_the_product():
    """The loss of a buy is that of p(view) p(cart|view) p(buy|cart); its label 0 below any 0."""
    found = target(FUNNEL, "buy", FUNNEL_LABELS)
    np.testing.assert_array_equal(found, [1, 0, nan, 0, 0, nan, nan])
    logits = torch.tensor([[0.3, 1.1, -0.4]]).expand(2, 3).clone().requires_grad_()
    losses = logit_losses(FUNNEL, "buy", logits, torch.tensor([1.0, 0.0]))
    p = logits.detach().sigmoid().prod(1)[0].item()
    assert losses.tolist() == pytest.approx([-math.log(p), -math.log(1 - p)], rel=1e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert (gradient[0] < 0).all()
    assert (gradient[1] > 0).all()


def test_a_masked_chain_learns_inside_of_its_parents():
    """Masked, a task of a chain has the labels that it has, and its own logit's loss."""
    masked = replace(FUNNEL, entire=[])
    np.testing.assert_array_equal(target(masked, "buy", FUNNEL_LABELS), FUNNEL_LABELS[:, 0])
    logits = torch.tensor([[0.3, 1.1, -0.4]])
    loss = logit_losses(masked, "buy", logits, torch.ones(1))
    assert loss.item() == pytest.approx(log_loss(sigmoid(0.3), 1), rel=1e-6)


def test_confident_chains_keep_their_gradient():
    """Near 1 all along a chain, with label 0, each link has a third of the gradient."""
    logits = torch.full((1, 3), 20.0, requires_grad=True)
    logit_losses(FUNNEL, "buy", logits, torch.zeros(1)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.full((1, 3), 1 / 3), rtol=1e-4, atol=1e-4)


def test_a_teacher_leaves_all_labels_above_alone():
    """Labels above a task over the entire space must be 0 or 1: no predictions are mixed in."""
    assert mixable_tasks(FUNNEL).tolist() == [True, False, False]


@pytest.mark.parametrize("logit", [-120.0, -20.0, 20.0, 120.0])
@pytest.mark.parametrize("buy", [0.0, 1.0])
def test_entire_space_loss_is_finite(logit, buy):
    """Certain predictions give a finite loss and gradient over the entire space."""
    labels = {"shop": torch.tensor([[1.0, buy]])}
    logits = {"shop": torch.full((1, 2), logit)}
    loss, gradients = loss_and_gradients(labels, torch.tensor([0.5, 0.5]), {"shop": SHOP}, logits)
    assert loss.isfinite()
    assert gradients["shop"].isfinite().all()


def test_regression_target_is_standardised():
    """A regression is trained on (label - training mean) / training deviation, nulls kept."""
    found = target(VIDEO, "stars", VIDEO_LABELS)
    np.testing.assert_allclose(found, [1.5 / 1.1, -1.5 / 1.1, nan], rtol=1e-6)


def shaped(kind="binary", **fields) -> Task:
    """A task whose loss has a shape of its own."""
    return Task(kind=kind, **fields)


def test_class_weights_are_row_weights_of_positives():
    """A positive weight of 3 is that of three copies of each positive, in loss and count."""
    facts, shapes = {"shop": SHOP}, {("shop", "click"): shaped(positive_weight=3)}
    logits, labels, c = {"shop": SHOP_LOGITS}, {"shop": SHOP_LABELS}, torch.tensor([1.0, 0.0])
    sums = loss_sums(facts, logits, labels, shapes=shapes)
    found = joint_loss(sums, label_counts(facts, labels, shapes=shapes), c)
    copies = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4]
    wanted = joint(facts, {"shop": SHOP_LOGITS[copies]}, {"shop": SHOP_LABELS[copies]}, c)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("facts", [SHOP, FUNNEL], ids=["buy given click", "buy given cart"])
@pytest.mark.parametrize("task", [0, 1])
def test_shapes_at_their_defaults_are_the_plain_loss(facts, task):
    """Without smoothing and with gamma 0 the loss is log loss, over the entire space, too."""
    name = facts.tasks[task]
    logits, targets = torch.randn(6, len(facts.tasks)), torch.tensor([0.0, 1, 0, 1, 0.3, 1])
    found = logit_losses(facts, name, logits, targets, shaped(positive_weight=2))
    torch.testing.assert_close(found, logit_losses(facts, name, logits, targets))


def test_smoothed_and_focal_losses_by_hand():
    """A label of 1 smoothed by 0.2 is 0.9; focal, the loss of p is (1 - p)^2 times log loss."""
    logits, targets = torch.tensor([[0.4, 0.0], [-1.0, 0.0]]), torch.tensor([1.0, 0.0])
    p = [sigmoid(0.4), sigmoid(-1.0)]
    found = logit_losses(SHOP, "click", logits, targets, shaped(label_smoothing=0.2))
    wanted = [
        0.9 * log_loss(q, y) + 0.1 * log_loss(q, 1 - y) for q, y in zip(p, (1, 0), strict=True)
    ]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    found = logit_losses(SHOP, "click", logits, targets, shaped(focal=2))
    wanted = [(1 - p[0]) ** 2 * log_loss(p[0], 1), p[1] ** 2 * log_loss(p[1], 0)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_focal_losses_are_finite():
    """Certain predictions, right or wrong, have a finite focal loss and gradient."""
    logits = torch.tensor([[120.0, 120], [-120, -120], [120, -120]], requires_grad=True)
    for task in ("click", "buy"):
        for label in (0.0, 1.0):
            targets = torch.full((3,), label)
            losses = logit_losses(SHOP, task, logits, targets, shaped(focal=2))
            (gradient,) = torch.autograd.grad(losses.sum(), logits)
            assert losses.isfinite().all()
            assert gradient.isfinite().all()


def test_huber_is_the_square_of_small_errors_alone():
    """Errors up to delta, in units of the label, are squared; beyond, the slope stays."""
    logits = torch.tensor([[0.0, 0.1], [0.0, -3.0]], requires_grad=True)
    targets = torch.tensor([0.3, 1.0])
    task = shaped("regression", huber=1.1)  # one standard deviation of stars
    found = logit_losses(VIDEO, "stars", logits, targets, task)
    assert found.tolist() == pytest.approx([0.2**2, 2 * 4 - 1], rel=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[:, 1].tolist() == pytest.approx([-0.4, -2], rel=1e-5)
    wide = logit_losses(VIDEO, "stars", logits, targets, shaped("regression", huber=99))
    torch.testing.assert_close(wide, logit_losses(VIDEO, "stars", logits, targets))


def test_shapes_of_a_project():
    """Only tasks whose loss has a shape of its own are named."""
    assert task_shapes(two_scenario_project().scenarios) == {}
    assert set(task_shapes(shaped_project().scenarios)) == {
        ("shop", "click"), ("shop", "cart"), ("shop", "buy"), ("video", "stars")
    }  # fmt: skip


KINDS = EVERY_KIND["shop"]


def test_counts_and_durations_by_hand():
    """Poisson deviance over the dispersion, and a squared error of standardised logarithms."""
    logits = torch.tensor([[0.0, 0, 0, 0.4, -0.5], [0.0, 0, 0, -1.0, 2.0]])
    counts, seconds = torch.tensor([3.0, 0.0]), torch.tensor([30.0, 0.0])
    labels = torch.stack([*torch.full((3, 2), nan), counts, seconds], 1)
    visits = logit_losses(KINDS, "visits", logits, target(KINDS, "visits", labels))
    wanted = mean_poisson_deviance([3, 1e-9], np.exp([0.4, -1.0])) / (1.6**2 / 2.0)
    assert visits.mean().item() == pytest.approx(wanted, rel=1e-5)
    found = logit_losses(KINDS, "seconds", logits, target(KINDS, "seconds", labels))
    standard = [(math.log1p(y) - 3.4) / 1.2 for y in (30, 0)]
    assert found.tolist() == pytest.approx([(-0.5 - standard[0]) ** 2, (2 - standard[1]) ** 2])


def test_the_least_loss_of_a_count_is_the_mean():
    """Of one logit for many counts the loss is least at the logarithm of their mean."""
    counts = torch.tensor([0.0, 1, 7, 2])
    logits = torch.zeros(4, 5, requires_grad=True)
    shifted = logits + math.log(counts.mean())
    (gradient,) = torch.autograd.grad(logit_losses(KINDS, "visits", shifted, counts).sum(), logits)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-5)
    assert gradient[:, 3].any()


@pytest.mark.parametrize("cuts", [(0, 4, 12), (0, 1, 11, 12)])
def test_micro_batches_equal_one_batch(cuts):
    """Micro-batches of unequal sizes and label counts give the loss and gradient of their union."""
    rng = np.random.default_rng(5)
    rows = {name: make_rows(rng, facts, 12) for name, facts in FACTS.items()}
    parts = [
        {name: Samples.of(take(arrays, slice(a, b))) for name, arrays in rows.items()}
        for a, b in pairwise(cuts)
    ]
    whole = [{name: Samples.of(arrays) for name, arrays in rows.items()}]
    (loss, gradients), (wanted_loss, wanted) = (step(batches) for batches in (parts, whole))
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def step(batches):
    model, vectors = build(small_model(), make_catalogues())
    result = accumulate(Forward(model, vectors), FACTS, batches, weights_of(2, 1), encode=True)
    return result.loss, {n: p.grad for n, p in model.named_parameters()}


def test_step_reports_the_joint_loss():
    """The loss that a step reports is that of the formula, evaluated row by row."""
    batches = [batches_of({"shop": 6, "video": 5}, seed) for seed in (1, 2)]
    model, vectors = build(small_model(), make_catalogues())
    forward = Forward(model, vectors)
    result = accumulate(forward, FACTS, batches, weights_of(2, 1), encode=True)
    means = dict.fromkeys(keys_of(FACTS), ())
    with torch.no_grad():
        for batch in batches:
            logits = forward(batch, encode=True)
            for name in batch:
                for task, losses in looped_losses(name, logits[name], batch[name].labels).items():
                    means[name, task] += tuple(losses)
    weights = loss_weights(two_scenario_project(2, 1).scenarios)
    wanted = sum(weights[k] * sum(x) / len(x) for k, x in means.items())
    assert result.counts.tolist() == [len(x) for x in means.values()]
    assert result.loss == pytest.approx(wanted, rel=1e-5)


def test_row_weights_are_copies_of_rows():
    """A row of weight 3 counts as three rows, one of weight 0 as none, in loss and gradient."""
    weights, copies = {"shop": torch.tensor([3.0, 0.0, 1.0, 2.0, 1.0])}, [0, 0, 0, 2, 3, 3, 4]
    facts, c = {"shop": SHOP}, torch.tensor([0.6, 0.4])
    leaf = SHOP_LOGITS.clone().requires_grad_()
    sums = loss_sums(facts, {"shop": leaf}, {"shop": SHOP_LABELS}, weights)
    counts = label_counts(facts, {"shop": SHOP_LABELS}, weights)
    loss = joint_loss(sums, counts, c)
    wanted, gradients = loss_and_gradients(
        {"shop": SHOP_LABELS[copies]}, c, facts, {"shop": SHOP_LOGITS[copies]}
    )
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    summed = torch.zeros_like(leaf).index_add_(0, torch.tensor(copies), gradients["shop"])
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], summed)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_scale_of_row_weights_changes_nothing(scale):
    """Weights that sum to less than 1, too, are weights relative to each other."""
    weights = {name: scale * torch.arange(1.0, len(x) + 1) for name, x in LABELS.items()}
    sums, counts = loss_sums(FACTS, LOGITS, LABELS, weights), label_counts(FACTS, LABELS, weights)
    loss = joint_loss(sums, counts, weights_of(2, 1))
    assert loss.item() == pytest.approx(0.941264, abs=1e-6)


def test_a_step_of_rows_without_weight_is_zero():
    """Where all labelled rows weigh 0 the loss is 0, not NaN."""
    weights = {name: torch.zeros(len(x)) for name, x in LABELS.items()}
    sums, counts = loss_sums(FACTS, LOGITS, LABELS, weights), label_counts(FACTS, LABELS, weights)
    assert joint_loss(sums, counts, weights_of(2, 1)).item() == 0


def looped_losses(name, logits, labels):
    found = {task: [] for task in FACTS[name].tasks}
    for (first, second), (a, b) in zip(logits.tolist(), labels.tolist(), strict=True):
        if name == "shop":
            if not math.isnan(a):
                found["click"].append(log_loss(sigmoid(first), a))
            if a == 0 or not math.isnan(b):
                found["buy"].append(log_loss(sigmoid(first) * sigmoid(second), a and b))
        else:
            if not math.isnan(a):
                found["like"].append(log_loss(sigmoid(first), a))
            if not math.isnan(b):
                found["stars"].append((second - (b - 3.5) / 1.1) ** 2)
    return found


def test_entire_space_needs_the_parent_label():
    """A label whose parent is null takes no part, even where it is there itself."""
    labels = torch.tensor([[math.nan, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, math.nan]])
    found = target(SHOP, "buy", labels)
    torch.testing.assert_close(found, torch.tensor([math.nan, 0.0, 1.0, math.nan]), equal_nan=True)


def test_confident_and_wrong_rows_keep_their_gradient():
    """Over the entire space, p(click) p(buy) near 1 with label 0 has a gradient, not 0."""
    logits = torch.full((1, 2), 20.0, requires_grad=True)
    logit_losses(SHOP, "buy", logits, torch.zeros(1)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.full((1, 2), 0.5), rtol=1e-4, atol=1e-4)


WEIGHTS = st.floats(0.1, 10)


@pytest.mark.parametrize("world", WORLDS)
def test_weights_of_every_kind_are_matched_by_name(world):
    """Scenarios and tasks in the opposite order have the same weights, in the manifest's order."""
    every, project = WORLDS[world]
    tree = project().dump()
    for scenario in tree["scenarios"].values():
        scenario["tasks"] = dict(reversed(scenario["tasks"].items()))
    tree["scenarios"] = dict(reversed(tree["scenarios"].items()))
    weights = weight_tensor(every, project().scenarios)
    assert torch.equal(weight_tensor(every, parse_project(tree).scenarios), weights)
    assert len(set(weights.tolist())) > 2


@given(
    st.permutations(["shop", "video"]), st.permutations([0, 1]), st.lists(WEIGHTS, min_size=6,
                                                                         max_size=6),
)  # fmt: skip
def test_weights_are_matched_by_name(names, order, values):
    """Each c_it stands where its task's loss stands in the manifest, whatever the file's order."""
    tree = two_scenario_project(values[0], values[1]).dump()
    pairs = [(n, t) for n, facts in FACTS.items() for t in facts.tasks]
    for (name, task), value in zip(pairs, values[2:], strict=True):
        tree["scenarios"][name]["tasks"][task]["weight"] = value
    wanted = weight_tensor(FACTS, parse_project(tree).scenarios)
    scenarios = {name: tree["scenarios"][name] for name in names}
    for scenario in scenarios.values():
        tasks = list(scenario["tasks"].items())
        scenario["tasks"] = dict(tasks[i] for i in order)
    permuted = parse_project(tree | {"scenarios": scenarios}).scenarios
    assert torch.equal(weight_tensor(FACTS, permuted), wanted)
    assert loss_weights(permuted) == pytest.approx(dict(zip(pairs, wanted.tolist(), strict=True)))
