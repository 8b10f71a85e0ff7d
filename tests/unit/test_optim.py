"""Parameter groups, the learning rate over steps, and checkpoints that give back what they got."""

import json
import math
from itertools import pairwise

import pytest
import torch

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.training import Training
from mtrec_ray.training.checkpoint import load_model, load_state, save_model, save_state
from mtrec_ray.training.optim import build_optimization, build_optimizer, build_schedule, restore
from tests.builders import FACTS, build, make_catalogues, small_model, stir

OPTIONS = Training(lr=1e-2, lr_encoder=1e-4, weight_decay=0.03, id_weight_decay=0.2)


def model_of(trainable="all", **fields):
    return build(small_model(trainable, **fields), make_catalogues())[0]


def settings_of(model, optimizer) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter by name."""
    names = {id(p): n for n, p in model.named_parameters()}
    found = [
        (names[id(p)], (g["initial_lr"] if "initial_lr" in g else g["lr"], g["weight_decay"]))
        for g in optimizer.param_groups
        for p in g["params"]
    ]
    assert len(dict(found)) == len(found), "a parameter is in two groups"
    return dict(found)


def is_id_table(name: str) -> bool:
    return name.startswith("users.") or ".item_ids." in name


@pytest.mark.parametrize("trainable", ["all", "top_k", "lora", "none"])
def test_exactly_the_trainable_parameters_are_optimised(trainable):
    """The optimizer has every trainable parameter once and no frozen one."""
    model = model_of(trainable)
    found = settings_of(model, build_optimizer(model, OPTIONS))
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_biases_norms_and_vectors_are_not_decayed():
    """Weight matrices have the plain decay; whatever has one dimension has none."""
    model = model_of()
    found = settings_of(model, build_optimizer(model, OPTIONS))
    flat = {n for n, p in model.named_parameters() if p.ndim < 2}
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {found[n][1] for n in flat} == {0.0}
    assert {found[n][1] for n in linear} == {0.03}
    assert {"item_norm.weight", "scenario_vectors.shop", "sharing.tower.0.bias"} <= flat


def test_ids_have_their_own_decay():
    """Id embeddings have the id decay; the encoder's token embeddings have the plain one."""
    model = model_of()
    found = settings_of(model, build_optimizer(model, OPTIONS))
    ids = [n for n in found if is_id_table(n)]
    assert len(ids) == 3
    assert {found[n] for n in ids} == {(1e-2, 0.2)}
    assert found["encoder.upper.embeddings.word_embeddings.weight"] == (1e-4, 0.03)


@pytest.mark.parametrize("trainable", ["all", "top_k", "lora"])
def test_the_encoder_has_its_own_rate(trainable):
    """Parameters of the encoder have `lr_encoder`, all others `lr`."""
    model = model_of(trainable)
    found = settings_of(model, build_optimizer(model, OPTIONS))
    for name, (rate, _) in found.items():
        assert rate == (1e-4 if name.startswith("encoder.") else 1e-2), name
    assert any(name.startswith("encoder.") for name in found)


def rates(num_steps=100, **fields) -> list[float]:
    """Rate over `lr` before each step, and after the last."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2.0)
    schedule = build_schedule(optimizer, Training(**fields), num_steps)
    found = []
    for _ in range(num_steps + 1):
        found.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_is_linear(schedule):
    """The rate rises by equal steps to its peak over the warm-up share, and never above."""
    found = rates(warmup=0.1, schedule=schedule)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(found) == pytest.approx(1)


@pytest.mark.parametrize(("schedule", "middle", "end"), [
    ("cosine", 0.505, 0.01), ("linear", 0.505, 0.01), ("constant", 1.0, 1.0),
])  # fmt: skip
def test_the_rate_after_warm_up(schedule, middle, end):
    """Cosine and linear fall to 1 % at the last step through 50.5 % in the middle."""
    found = rates(warmup=0.1, schedule=schedule)
    assert found[10] == pytest.approx(1)
    assert found[55] == pytest.approx(middle)
    assert found[100] == pytest.approx(end)
    assert all(a >= b for a, b in pairwise(found[10:]))


def test_cosine_is_a_cosine():
    """A quarter of the way down the cosine stands at 0.01 + 0.99 (1 + cos(pi/4)) / 2."""
    found = rates(80, warmup=0.0, schedule="cosine")
    wanted = 0.01 + 0.99 * (1 + math.cos(math.pi * 19 / 79)) / 2
    assert found[20] == pytest.approx(wanted)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_very_short_runs_have_positive_rates(warmup, num_steps):
    """Runs of a few steps have a rate above 0 at every step, whatever the warm-up."""
    assert all(0 < r <= 1 for r in rates(num_steps, warmup=warmup)[:num_steps])


@pytest.mark.parametrize("trainable", ["all", "top_k", "lora", "none"])
def test_saved_weights_are_loaded(tmp_path, trainable):
    """A model of the same build that loads the weights has each of them, bit for bit."""
    model, other = model_of(trainable), model_of(trainable)
    stir(model, 5)
    save_model(tmp_path / "new" / "folder", model, {"project": 3})
    load_model(tmp_path / "new" / "folder", other)
    state, found = model.state_dict(), other.state_dict()
    assert list(state) == list(found)
    assert all(torch.equal(state[n], found[n]) for n in state)
    assert json.loads((tmp_path / "new" / "folder" / "model.json").read_text()) == {"project": 3}


def test_facts_of_a_model_are_json(tmp_path):
    """A score that does not exist is null beside the weights, which every reader of JSON takes."""
    save_model(tmp_path, model_of("none"), {"record": {"joint_score": math.nan}})
    assert json.loads((tmp_path / "model.json").read_text()) == {"record": {"joint_score": None}}


@pytest.mark.parametrize(
    "fields",
    [{"width": 16}, {"hidden": (12, 12, 10)}, {"item_ids": False}, {"user_ids": False}],
    ids=lambda f: next(iter(f)),
)
def test_weights_of_another_build_are_refused(tmp_path, fields):
    """Weights of a model with other sizes or parts are a mistake that names the file."""
    save_model(tmp_path, model_of(), {})
    with pytest.raises(ProjectError, match=r"model\.safetensors: weights of another model"):
        load_model(tmp_path, model_of(**fields))


def test_weights_of_other_scenarios_are_refused(tmp_path):
    """Weights of a model with one scenario are refused by a model with two."""
    single = {"shop": FACTS["shop"]}
    save_model(tmp_path, build(small_model(), make_catalogues(), single)[0], {})
    with pytest.raises(ProjectError, match="weights of another model"):
        load_model(tmp_path, model_of())


def test_resumed_training_goes_on_as_if_never_stopped(tmp_path):
    """Weights, optimizer and schedule from a checkpoint give the next steps of the run itself."""
    model, again = model_of("none"), model_of("none")
    run, resumed = ((m, *optimizer_of(m)) for m in (model, again))
    steps(*run, 3)
    save_model(tmp_path, model, {})
    save_state(tmp_path, {"optimizer": run[1].state_dict(), "schedule": run[2].state_dict()})
    load_model(tmp_path, again)
    state = load_state(tmp_path)
    resumed[1].load_state_dict(state["optimizer"])
    resumed[2].load_state_dict(state["schedule"])
    steps(*run, 2)
    steps(*resumed, 2)
    found = again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def optimizer_of(model):
    optimizer = build_optimizer(model, OPTIONS)
    return optimizer, build_schedule(optimizer, OPTIONS, 20)


def steps(model, optimizer, schedule, number):
    for _ in range(number):
        optimizer.zero_grad()
        sum(p.pow(2).sum() for p in model.parameters()).backward()
        optimizer.step()
        schedule.step()


def test_training_state_is_not_unpickled_freely(tmp_path):
    """A training state that holds more than plain values and tensors is refused."""
    save_state(tmp_path, {"step": 3, "curve": [{"loss": 0.5}]})
    assert load_state(tmp_path) == {"step": 3, "curve": [{"loss": 0.5}]}
    torch.save({"project": OPTIONS}, tmp_path / "training.pt")
    with pytest.raises(Exception, match=r"Weights only load failed"):
        load_state(tmp_path)


def test_a_run_goes_on_at_its_own_rates():
    """From a checkpoint of other rates: those of this run, at the schedule's place, are taken."""
    model = model_of()
    steps, other = 10, OPTIONS.model_copy(update={"lr": 3e-3, "weight_decay": 0.5})
    optimizer = build_optimizer(model, OPTIONS)
    schedule = build_schedule(optimizer, OPTIONS, steps)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    before = [group["lr"] for group in optimizer.param_groups]
    for options in (OPTIONS, other):
        second = build_optimizer(model, options)
        going = build_schedule(second, options, steps)
        restore(second, going, state)
        now = [group["lr"] for group in second.param_groups]
        wanted = [b * (0.3 if options is other and b == max(before) else 1) for b in before]
        assert now == pytest.approx(wanted, rel=1e-12)
        assert options.weight_decay in {g["weight_decay"] for g in second.param_groups}
        assert going.last_epoch == 4
        second.step()
        going.step()
        assert going.get_last_lr() == [g["lr"] for g in second.param_groups]


@pytest.mark.parametrize("trainable", ["all", "top_k", "lora", "none"])
def test_a_run_with_other_decays_loads_the_state(trainable):
    """Whatever rates and decays are equal or zero, the state goes to the same parameters."""
    model = model_of(trainable)
    optimizer, schedule = optimizer_of(model)
    steps(model, optimizer, schedule, 2)
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    moments = {id(p): optimizer.state[p]["exp_avg"].clone() for p in optimizer.state}
    for fields in (
        {"weight_decay": 0.0},
        {"weight_decay": 0.2},
        {"lr_encoder": OPTIONS.lr},
        {"weight_decay": 0.0, "id_weight_decay": 0.0, "lr_encoder": OPTIONS.lr},
    ):
        options = OPTIONS.model_copy(update=fields)
        other, _ = build_optimization(model, options, 20, state)
        assert all(torch.equal(other.state[p]["exp_avg"], moments[id(p)]) for p in other.state)
        assert len(other.state) == len(moments)
        decays = {g["name"]: g["weight_decay"] for g in other.param_groups}
        assert decays["rest.matrix"] == options.weight_decay
        assert decays["ids.matrix"] == options.id_weight_decay
        assert decays["rest.vector"] == 0
