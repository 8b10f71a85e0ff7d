"""What scenarios and tasks share: each kind against its formula, and who feels whose weights."""

import numpy as np
import pytest
import torch

from mtrec_ray.model.samples import Samples
from mtrec_ray.model.sharing import SharingInputs, build_sharing
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.training.forward import Forward
from mtrec_ray.training.losses import weight_tensor
from mtrec_ray.training.step import gradient_cosines, gradient_shares, scenario_gradients
from tests.builders import (
    FACTS,
    build,
    make_catalogues,
    make_rows,
    project_tree,
    scenario_tree,
    small_model,
    stir,
    two_scenario_project,
)

KINDS = ["bottom", "mmoe", "ple", "star", "pepnet"]
TASKS = {"shop": ["click", "buy", "return"], "video": ["like"]}
NUM_INPUTS, NUM_PRIOR, NUM_ROWS = 9, 5, 7


def layers_of(kind, stirred=True, **fields):
    torch.manual_seed(0)
    layers = build_sharing(
        small_model(sharing=kind, experts=3, **fields), NUM_INPUTS, NUM_PRIOR, TASKS
    )
    if stirred:
        stir(layers)
    return layers.eval()


def some_inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = (NUM_INPUTS, NUM_PRIOR - 2, 2)
    return SharingInputs(*(torch.randn(NUM_ROWS, width, generator=generator) for width in widths))


@pytest.mark.parametrize("hidden", [(12, 10), (6,), (8, 7, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_one_output_a_task(kind, hidden):
    """Every task of a scenario gets N rows of the last hidden size, all of them finite."""
    layers = layers_of(kind, hidden=hidden)
    for name, tasks in TASKS.items():
        found = layers(name, some_inputs())
        assert [x.shape for x in found] == [(NUM_ROWS, hidden[-1])] * len(tasks)
        assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize(("kind", "differ"), [("mmoe", True), ("ple", True), ("pepnet", True),
                                              ("bottom", False), ("star", False)])  # fmt: skip
def test_tasks_differ_where_they_have_gates(kind, differ):
    """Gates a task make its output its own; a tower of the scenario gives all tasks the same."""
    first, second, _ = layers_of(kind)("shop", some_inputs())
    assert torch.equal(first, second) != differ


@pytest.mark.parametrize("kind", ["mmoe", "ple", "star", "pepnet"])
def test_own_weights_are_felt_by_their_scenario_alone(kind):
    """Moving every weight that is named after a scenario moves its outputs and no other's."""
    layers, inputs = layers_of(kind), some_inputs()
    before = {name: layers(name, inputs) for name in TASKS}
    own = [p for n, p in layers.named_parameters() if "video" in n]
    assert own
    with torch.no_grad():
        for parameter in own:
            parameter += torch.randn_like(parameter)
    after = {name: layers(name, inputs) for name in TASKS}
    assert all(torch.equal(a, b) for a, b in zip(before["shop"], after["shop"], strict=True))
    assert not torch.equal(before["video"][0], after["video"][0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_compared_weight_is_shared(kind):
    """The weight at which gradients are compared has one from every scenario."""
    layers = layers_of(kind)
    for name in TASKS:
        loss = sum(x.pow(2).sum() for x in layers(name, some_inputs()))
        (gradient,) = torch.autograd.grad(loss, layers.first_weight)
        assert gradient.any()


def test_mmoe_is_the_gates_mixture():
    """Each task's output is the sum over experts of softmax(gate) times the expert's output."""
    layers, inputs = layers_of("mmoe"), some_inputs()
    found, inputs = layers("shop", inputs), inputs.features
    experts = [expert(inputs) for expert in layers.experts]
    gates = layers.gates["shop"]
    for task in range(3):
        rows = slice(3 * task, 3 * task + 3)
        weights = (inputs @ gates.weight[rows].T + gates.bias[rows]).softmax(1)
        wanted = sum(weights[:, [e]] * experts[e] for e in range(3))
        torch.testing.assert_close(found[task], wanted)
        torch.testing.assert_close(layers.use["shop"][task], weights.mean(0))


def test_ple_is_its_levels_by_hand():
    """Two levels by hand: task gates over own and shared experts, a shared gate over all."""
    layers, inputs = layers_of("ple"), some_inputs()
    found, inputs = layers("shop", inputs), inputs.features
    first, last = layers.levels
    shared = [e(inputs) for e in first.shared]
    own = [e(inputs) for e in first.own["shop"]]

    def weighted(gate, x, outputs):
        return sum(w.unsqueeze(1) * o for w, o in zip(gate(x).softmax(1).T, outputs, strict=True))

    tasks = [
        weighted(g, inputs, [o, *shared]) for g, o in zip(first.gates["shop"], own, strict=True)
    ]
    common = weighted(first.shared_gates["shop"], inputs, [*own, *shared])
    shared = [e(common) for e in last.shared]
    for i, x in enumerate(tasks):
        wanted = weighted(last.gates["shop"][i], x, [last.own["shop"][i](x), *shared])
        torch.testing.assert_close(found[i], wanted)
    assert layers.use["shop"].shape == (3, 4)
    torch.testing.assert_close(layers.use["shop"].sum(1), torch.ones(3))
    assert not last.shared_gates


def test_star_starts_as_a_shared_tower():
    """Own weights of one and zero leave the shared tower, the same for every scenario."""
    layers, inputs = layers_of("star", stirred=False), some_inputs()
    x = inputs.features
    for layer in layers.layers:
        x = torch.nn.functional.gelu(layer.norm(layer.shared(x)))
    for name in TASKS:
        torch.testing.assert_close(layers(name, inputs)[0], x)


def test_star_multiplies_weights():
    """A layer's weight is the shared one times the scenario's, its bias their sum."""
    layers, inputs = layers_of("star", hidden=(6,)), some_inputs()
    layer = layers.layers[0]
    x = inputs.features @ (layer.shared.weight * layer.scale["video"]).T
    x = x + layer.shared.bias + layer.shift["video"]
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = x * layer.norm.weight * layer.norm_scale["video"]
    x = torch.nn.functional.gelu(x + layer.norm.bias + layer.norm_shift["video"])
    torch.testing.assert_close(layers("video", inputs)[0], x)


def test_pepnet_starts_without_gates():
    """Gates start at one: the outputs are the ungated tower's; later they lie in (0, 2)."""
    layers, inputs = layers_of("pepnet", stirred=False), some_inputs()
    x = inputs.features
    for layer in layers.layers:
        x = layer(x)
    for found in layers("shop", inputs):
        torch.testing.assert_close(found, x)
    gate = layers_of("pepnet").task_gates["shop"][0](inputs.prior, inputs.features)
    assert ((gate > 0) & (gate < 2)).all()
    assert gate.std() > 0


def test_pepnet_gates_do_not_teach_the_inputs():
    """What is gated enters its gates without gradient; the prior enters with it."""
    layers, inputs = layers_of("pepnet"), some_inputs()
    features, prior = inputs.features.requires_grad_(), inputs.prior.requires_grad_()
    gate = layers.task_gates["shop"][0](prior, features).sum()
    to_inputs, to_prior = torch.autograd.grad(gate, [features, prior], allow_unused=True)
    assert to_inputs is None
    assert to_prior.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_learns_through_each_kind(kind):
    """With each kind every trainable parameter of a model gets a gradient."""
    model, vectors = build(small_model(sharing=kind, experts=2), make_catalogues())
    batch = samples()
    logits = model(batch, vectors.of_batch(batch, encode=True))
    sum(x.pow(2).sum() for x in logits.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def samples(seed=0):
    rng = np.random.default_rng(seed)
    return {name: Samples.of(make_rows(rng, facts, 16)) for name, facts in FACTS.items()}


def gradients(batch, weights):
    model, vectors = build(small_model(), make_catalogues())
    vectors.refresh()
    return scenario_gradients(Forward(model, vectors), FACTS, batch, weights)


def test_gradient_cosines_and_shares():
    """A scenario's gradient grows with its lambda: the shares move, the cosines do not."""
    batch = samples()
    equal, more = (
        weight_tensor(FACTS, two_scenario_project(shop, 1.0).scenarios) for shop in (1.0, 5.0)
    )
    first, second = gradients(batch, equal), gradients(batch, more)
    assert gradient_shares(second)["shop"] > gradient_shares(first)["shop"]
    assert sum(gradient_shares(first).values()) == pytest.approx(1)
    cosine = gradient_cosines(first)
    assert list(cosine) == ["shop/video"]
    assert cosine["shop/video"] == pytest.approx(gradient_cosines(second)["shop/video"], abs=1e-5)
    opposite = {"shop": first["shop"], "video": -2 * first["shop"]}
    assert gradient_cosines(opposite)["shop/video"] == pytest.approx(-1)


def test_unknown_kinds_are_refused():
    """One line names the field, what was found and what is allowed."""
    scenario = scenario_tree({"click": {"kind": "binary"}})
    tree = project_tree({"shop": scenario}, model={"sharing": "magic"})
    with pytest.raises(ProjectError, match=r"model\.sharing: found 'magic'; allowed: .*mmoe"):
        parse_project(tree)
