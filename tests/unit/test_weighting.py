"""Methods that move the weights of losses, each against its paper's formula on known losses.

Where a formula is a loss, its derivative by autograd is the weight; where it is an optimum, the
optimum's conditions hold.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.weighting import Weighting
from mtrec_ray.training.gradient_aggregators import bargaining_weights
from mtrec_ray.training.weighting import moving_weights, units_of
from mtrec_ray.training.weighting_methods import Seen
from tests.builders import two_scenario_project

KEYS = [("shop", "click"), ("shop", "buy"), ("video", "like"), ("video", "stars")]
TASKS = torch.tensor([0.3, 0.2, 0.1, 0.4], dtype=torch.float64)
LOSSES = torch.tensor([0.5, 0.8], dtype=torch.float64)
AFTER = torch.tensor([0.45, 0.79], dtype=torch.float64)


def moving_of(method, by="scenarios", tasks=TASKS, steps=100, **options):
    """The weights of a method over a run."""
    section = Weighting.model_validate({"method": method, "by": by, **options})
    return moving_weights(section, units_of(KEYS, tasks, by), 1, steps)


def close(found, wanted, rtol=1e-6):
    """Fails where two tensors of 64 bits differ."""
    torch.testing.assert_close(
        found, torch.as_tensor(wanted, dtype=torch.float64), rtol=rtol, atol=1e-12
    )


# --- units -----------------------------------------------------------------------------------


def test_units_of_scenarios():
    """Priors are sums of c_it, and the joint loss is their sum with the units' losses."""
    units = units_of(KEYS, TASKS, "scenarios")
    assert units.names == ("shop", "video")
    close(units.prior, [0.5, 0.5])
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    close(units.losses(losses), [0.6 * 1 + 0.4 * 2, 0.2 * 3 + 0.8 * 4])
    close((units.prior * units.losses(losses)).sum(), (TASKS * losses).sum())
    close(units.task_weights(torch.tensor([2.0, 0.5]).double()), [0.6, 0.4, 0.05, 0.2])


def test_tasks_that_weigh_nothing_are_no_units():
    """They keep the weight 0, and no method sees them."""
    tasks = torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    units = units_of(KEYS, tasks, "tasks")
    assert units.names == ("shop/click", "video/stars")
    close(units.losses(torch.tensor([1.0, 9.0, 9.0, 2.0]).double()), [1.0, 2.0])
    close(units.task_weights(torch.tensor([3.0, 4.0]).double()), [1.5, 0.0, 0.0, 2.0])


def test_a_unit_without_labels_keeps_its_last_loss():
    """A step without a labelled row of a scenario says nothing of its loss."""
    moving = moving_of("geometric")
    counts = torch.tensor([2.0, 0.0, 4.0, 1.0]).double()
    first = moving.losses(torch.tensor([1.0, 0.0, 2.0, 3.0]).double(), counts)
    close(first, [0.6 * 0.5, 0.2 * 0.5 + 0.8 * 3])
    moving.update(Seen(0, first), None)
    none = moving.losses(torch.zeros(4).double(), torch.tensor([0.0, 0.0, 4.0, 1.0]).double())
    close(none, [0.3, 0.0])


# --- by losses -------------------------------------------------------------------------------


def test_random():
    """n softmax of normal numbers that seed and step draw (2111.10603)."""
    moving = moving_of("random", "tasks")
    found = [moving.method.multipliers(Seen(step, LOSSES)) for step in (3, 4, 3)]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    drawn = torch.randn(4, generator=torch.Generator().manual_seed(1_000_006), dtype=torch.float64)
    close(found[0], 4 * drawn.exp() / drawn.exp().sum())


def test_uncertainty():
    """exp(-s) L + s / 2 (1705.07115): its gradient, and where it ends, at weights 1 / (2 L)."""
    moving = moving_of("uncertainty", lr=0.05)
    s = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (moving.units.prior * ((-s).exp() * LOSSES + s / 2)).sum().backward()
    moving.update(Seen(0, LOSSES), None)
    close(moving.method.own.grad, s.grad)
    for step in range(2000):
        moving.update(Seen(step, LOSSES), None)
    close(moving.method.multipliers(Seen(0, LOSSES)), 1 / (2 * LOSSES), rtol=1e-3)


def test_dynamic_average():
    """n softmax of r / T, r the ratio of the last two means (1803.10704, equation 7)."""
    moving = moving_of("dwa", every=2)
    for step, losses in enumerate([[1.0, 2.0], [3.0, 2.0], [1.0, 4.0], [2.0, 5.0]]):
        seen = Seen(step, torch.tensor(losses).double())
        close(moving.method.multipliers(seen), [1.0, 1.0])
        moving.update(seen, None)
    ratio = np.array([1.5 / 2, 4.5 / 2]) / 2.0
    found = moving.method.multipliers(Seen(4, LOSSES))
    close(found, 2 * np.exp(ratio) / np.exp(ratio).sum())
    assert moving_of("dwa", steps=300).method.every == 30


def weights_by_autograd(loss_of, losses=LOSSES, prior=(0.5, 0.5)):
    """The multipliers p m of which a loss is the derivative, over p."""
    variable = losses.clone().requires_grad_()
    loss_of(variable).backward()
    return variable.grad / torch.tensor(prior).double()


@pytest.mark.parametrize("tasks", [TASKS, torch.tensor([0.1, 0.1, 0.2, 0.6], dtype=torch.float64)])
def test_geometric_mean(tasks):
    """The derivative of the product of L^p (1904.08492)."""
    moving = moving_of("geometric", tasks=tasks)
    prior = moving.units.prior
    wanted = weights_by_autograd(lambda x: (x**prior).prod(), prior=prior.tolist())
    close(moving.method.multipliers(Seen(0, LOSSES)), wanted)


@pytest.mark.parametrize("mu", [None, 0.1, 3.0])
def test_tchebycheff(mu):
    """The derivative of mu log sum exp(l / mu) by l, the losses over the first (2402.19078)."""
    tasks = torch.tensor([0.1, 0.1, 0.2, 0.6], dtype=torch.float64)
    moving = moving_of("tchebycheff", tasks=tasks, temperature=mu)
    first = torch.tensor([1.0, 2.0]).double()
    close(
        moving.method.multipliers(Seen(0, first)),
        (2 * moving.units.prior / (mu or 1)).softmax(0) * 2,
    )
    moving.update(Seen(0, first), None)
    scaled = (2 * moving.units.prior * LOSSES / first).requires_grad_()
    ((mu or 1.0) * (scaled / (mu or 1.0)).exp().sum().log()).backward()
    close(moving.method.multipliers(Seen(1, LOSSES)), 2 * scaled.grad)


def test_famo():
    """c sum z log L, and one step of Adam along the gradient of z times the falls (2306.03792)."""
    tasks = torch.tensor([0.1, 0.1, 0.2, 0.6], dtype=torch.float64)
    moving = moving_of("famo", tasks=tasks, lr=0.1)
    z = moving.units.prior
    c = 1 / (z / LOSSES).sum()
    wanted = weights_by_autograd(lambda x: c * (z * x.log()).sum(), prior=z.tolist())
    close(moving.method.multipliers(Seen(0, LOSSES)), wanted)
    own = z.log().clone().requires_grad_()
    (own.softmax(0) * (LOSSES.log() - AFTER.log())).sum().backward()
    moving.update(Seen(0, LOSSES), AFTER)
    close(moving.method.own.grad, own.grad)
    steps = moving.method.own.detach() - z.log()
    assert steps[0] < 0 < steps[1]  # the first loss fell more
    close(steps.abs(), [0.1, 0.1], rtol=1e-2)


# --- by gradients ----------------------------------------------------------------------------

conflicting = st.tuples(st.floats(0.2, 3), st.floats(0.2, 3), st.floats(-0.95, -0.05))
any_pair = st.tuples(st.floats(0.2, 3), st.floats(0.2, 3), st.floats(-0.95, 0.95))


def pair(norms_and_cosine):
    """Inner products of two gradients of given norms and cosine."""
    a, b, cosine = norms_and_cosine
    return torch.tensor([[a * a, a * b * cosine], [a * b * cosine, b * b]], dtype=torch.float64)


def multipliers(method, gramian, **options):
    """What a method by gradients gives."""
    return moving_of(method, **options).method.multipliers(Seen(0, LOSSES, gramian))


METHODS = ["upgrad", "pcgrad", "cagrad", "mgda", "nash", "aligned"]


@pytest.mark.parametrize("method", METHODS)
def test_orthogonal_gradients_of_one_length_have_equal_weights(method):
    """Where nothing conflicts and nothing is longer, the weights are those of the project file."""
    close(multipliers(method, torch.eye(2).double(), c=0.0), [1.0, 1.0], rtol=1e-4)


@given(conflicting)
def test_pcgrad_and_upgrad(numbers):
    """Of two gradients that conflict, each without its part along the other (2001.06782).

    For two, the projection on the dual cone (2406.16232) is the same.
    """
    gramian = pair(numbers)
    inner = gramian[0, 1]
    wanted = torch.stack([1 - inner / gramian[0, 0], 1 - inner / gramian[1, 1]])
    close(multipliers("pcgrad", gramian), wanted, rtol=1e-9)
    close(multipliers("upgrad", gramian), wanted, rtol=0.05)


@given(any_pair)
def test_mgda(numbers):
    """The shortest vector between two gradients (1810.04650, equation 4), n times."""
    gramian = pair(numbers)
    (aa, ab), (_, bb) = gramian.tolist()
    share = float(np.clip((bb - ab) / max(aa + bb - 2 * ab, 1e-12), 0, 1))
    found = multipliers("mgda", gramian)
    length = lambda w: float(w @ gramian @ w)  # noqa: E731
    best = length(torch.tensor([2 * share, 2 - 2 * share]).double())
    assert length(found) == pytest.approx(best, rel=0.02, abs=1e-3)
    assert float(found.sum()) == pytest.approx(2)


@given(any_pair)
def test_nash(numbers):
    """The bargaining solution (2202.01017): each gradient's product with the sum is 1 / weight.

    Of gradients that are scaled to a mean square of 1.
    """
    gramian = pair(numbers)
    found = multipliers("nash", gramian)
    close(found * (gramian @ found) / gramian.diagonal().mean(), [1.0, 1.0], rtol=1e-4)


@given(st.integers(2, 14), st.integers(1, 20), st.integers(0, 999))
def test_nash_of_many(num, width, seed):
    """The same for up to 14 gradients, also where some depend on others."""
    gradients = torch.tensor(np.random.default_rng(seed).normal(size=(num, width)))
    gramian = gradients @ gradients.T
    found = bargaining_weights(gramian)
    regular = gramian + torch.diag(1e-6 * gramian.diagonal())
    close(found * (regular @ found), [1.0] * num, rtol=1e-3)
    assert (found > 0).all()


@given(any_pair)
def test_aligned(numbers):
    """B times the mean, B = s V S^-1 V' with the least singular value s (2305.19000)."""
    gramian = pair(numbers)
    values, vectors = np.linalg.eigh(gramian.numpy())
    balance = np.sqrt(values[0]) * vectors @ np.diag(values**-0.5) @ vectors.T
    close(multipliers("aligned", gramian), balance @ np.ones(2), rtol=1e-6)


@given(any_pair, st.sampled_from([0.1, 0.4, 0.9]))
def test_cagrad(numbers, c):
    """The mean g0 and c |g0| along the mixture that is worst (2110.14048, algorithm 1), n times."""
    gramian = pair(numbers)
    matrix, mean = gramian.numpy(), np.full(2, 0.5)
    radius = c * np.sqrt(mean @ matrix @ mean)

    def worst(share):
        mixture = np.array([share, 1 - share]).ravel()
        return mixture @ matrix @ mean + radius * np.sqrt(max(mixture @ matrix @ mixture, 1e-12))

    shares = np.linspace(0, 1, 2001)
    start = shares[np.argmin([worst(share) for share in shares])]
    (share,) = minimize(lambda x: worst(x[0]), [start], bounds=[(0, 1)]).x
    mixture = np.array([share, 1 - share])
    wanted = 2 * (mean + radius / np.sqrt(mixture @ matrix @ mixture) * mixture)
    found = multipliers("cagrad", gramian, c=c).numpy()
    gain = lambda w: float((matrix @ w).min())  # noqa: E731
    assert gain(found) == pytest.approx(gain(wanted), rel=0.02, abs=5e-3)


def test_gradnorm():
    """|w norm - target| with fixed targets (1711.02257): its gradient, and weights of mean 1."""
    moving = moving_of("gradnorm", lr=0.1, alpha=1.5)
    moving.update(Seen(0, torch.tensor([1.0, 1.0]).double()), None)
    norms = torch.tensor([2.0, 1.0]).double()
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    rates = LOSSES / LOSSES.mean()
    target = (w * norms).mean().detach() * rates**1.5
    (w * norms - target).abs().sum().backward()
    moving.update(Seen(1, LOSSES, torch.diag(norms**2)), None)
    close(moving.method.own.grad, w.grad)
    close(moving.method.multipliers(Seen(2, LOSSES)), torch.tensor([0.9, 1.1]), rtol=1e-4)
    moving.update(Seen(2, LOSSES), None)  # no look at gradients: nothing moves
    close(moving.method.multipliers(Seen(3, LOSSES)), torch.tensor([0.9, 1.1]), rtol=1e-4)


def test_between_two_looks_weights_stay():
    """With `every: 3` gradients are read in each third step."""
    moving = moving_of("mgda", every=3)
    assert [moving.looks_at_gradients(step) for step in range(4)] == [True, False, False, True]
    first = moving.method.multipliers(Seen(0, LOSSES, pair((2.0, 1.0, 0.1))))
    assert torch.equal(moving.method.multipliers(Seen(1, LOSSES)), first)
    assert (first - 1).abs().max() > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-12, 1.0])
def test_units_without_a_gradient(method, scale):
    """At the start none has one: the weights stay. Later one has none: the others share as two."""
    moving = moving_of(method, "tasks")
    nothing = torch.zeros(4, 4, dtype=torch.float64)
    close(moving.method.multipliers(Seen(0, LOSSES, nothing)), [1.0] * 4)
    gramian = nothing.clone()
    gramian[:2, :2] = scale * pair((1.0, 2.0, -0.5))
    close(moving.method.multipliers(Seen(1, LOSSES, gramian))[2:], [1.0, 1.0])
    alone = moving_of(method).method.multipliers(Seen(1, LOSSES, pair((1.0, 2.0, -0.5))))
    close(moving.method.multipliers(Seen(1, LOSSES, gramian))[:2], alone, rtol=1e-3)
    gramian[1] = gramian[:, 1] = 0
    close(moving.method.multipliers(Seen(2, LOSSES, gramian))[:2], alone, rtol=1e-3)


@pytest.mark.parametrize("method", ["tchebycheff", "gradnorm"])
def test_first_losses_are_of_steps_that_were_taken(method):
    """A skipped step leaves nothing; a unit's first loss may come late."""
    moving = moving_of(method)
    wrong = torch.tensor([np.nan, 1.0]).double()
    moving.task_weights(Seen(0, wrong))
    assert moving.take_means() == {"shop": 0.0, "video": 0.0}
    moving.update(Seen(1, LOSSES, told=torch.tensor([True, False])), None)
    assert moving.method.first.isnan().tolist() == [False, True]
    moving.update(Seen(2, AFTER), None)
    close(moving.method.first, [LOSSES[0], AFTER[1]])


def test_one_unit_has_fixed_weights():
    """A model of one scenario alone learns as it would without a method."""
    assert moving_of("cagrad", tasks=torch.tensor([0.5, 0.5, 0.0, 0.0]).double()) is None


def test_a_state_of_other_units_is_left_alone():
    """Where a weight has become 0 between two trials of a population, the weights start anew."""
    moving, other = moving_of("famo", "tasks"), moving_of("famo")
    other.update(Seen(0, LOSSES), AFTER)
    moving.restore(other.state())
    close(moving.method.own.detach(), TASKS.log())


def test_a_gradient_that_is_not_finite_moves_nothing():
    """The step will be skipped; until then the last weights hold."""
    moving = moving_of("upgrad")
    wrong = torch.tensor([[1.0, np.nan], [np.nan, 1.0]]).double()
    close(moving.method.multipliers(Seen(0, LOSSES, wrong)), [1.0, 1.0])


# --- over a run ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["random", "uncertainty", "dwa", "famo", "gradnorm", *METHODS])
def test_a_restored_state_goes_on(method):
    """Weights that go on from a state are those of weights that were never stopped."""
    first, second = (moving_of(method, every=2, lr=0.1) for _ in range(2))
    rng = np.random.default_rng(0)

    def step(moving, number, losses, gramian):
        seen = Seen(number, losses, gramian if number % 2 == 0 else None)
        found = moving.task_weights(seen)
        moving.update(seen, losses * 0.9)
        return found

    steps = [(n, torch.tensor(rng.uniform(0.1, 1, 2)), pair((1.0, rng.uniform(0.5, 2), -0.3)))
             for n in range(12)]  # fmt: skip
    for one in steps[:5]:
        step(first, *one)
    second.restore(first.state())
    for one in steps[5:]:
        assert torch.equal(step(first, *one), step(second, *one))
    assert first.take_means() == second.take_means()


@pytest.mark.parametrize(
    ("weighting", "scenarios", "line"),
    [
        ({"method": "famos"}, 2, "training.weighting.method: found 'famos'; allowed: "),
        ({"method": "famo"}, 1, "training.weighting.by: found scenarios, of which there is one; "),
        ({"method": "famo", "by": "tasks"}, 0, "weighting.by: found tasks, of which there is one"),
        (
            {"method": "dwa", "temperature": 0},
            2,
            "training.weighting.temperature: found 0; allowed",
        ),
        ({"by": "users"}, 2, "training.weighting.by: found 'users'; allowed: "),
        ({"rate": 1}, 2, "training.weighting"),
    ],
)
def test_mistakes(tmp_path, weighting, scenarios, line):
    """Each mistake gets one line."""
    tree = two_scenario_project().dump()
    tree["training"]["weighting"] = weighting
    if scenarios < 2:
        tree["scenarios"]["video"]["weight"] = 0.0
    if scenarios < 1:
        tree["scenarios"]["shop"]["tasks"]["buy"]["weight"] = 0.0
    import yaml

    path = tmp_path / "project.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ProjectError, match=line) as caught:
        load_project(path, [])
    assert len(caught.value.problems) == 1


def test_a_library_that_is_not_there(monkeypatch):
    """A method of torchjd without it gets one line, the others work."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProjectError, match="method: found mgda without torchjd; allowed: pip"):
        moving_of("mgda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "torchjd" or None)
    with pytest.raises(
        ProjectError, match="method: found cagrad without cvxpy, clarabel; allowed: pip"
    ):
        moving_of("cagrad")
    assert moving_of("nash") is not None


def test_a_part_of_a_project_keeps_its_weighting():
    """One scenario alone has weights of one unit."""
    tree = two_scenario_project().dump()
    tree["training"]["weighting"] = {"method": "famo"}
    assert parse_project(tree).single("shop").training.weighting.method == "famo"
