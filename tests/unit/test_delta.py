"""A scenario's model starts as the joint one, and is the joint weights and its delta afterwards."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

from mtrec_ray.model.encoder import TextEncoder, tiny_backbone
from mtrec_ray.model.recommender import Recommender, is_below, scenario_parameters
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.model import Model
from mtrec_ray.training.checkpoint import save_model
from mtrec_ray.training.delta import (
    L2SP,
    FineTuneStart,
    apply_delta,
    base_fingerprint,
    load_joint_weights,
    merge_delta,
    read_delta,
    save_delta,
)
from tests.builders import FACTS, RETRIEVAL, build, make_catalogues, make_rows, small_model, stir

SHARINGS = ("bottom", "mmoe", "ple", "star", "pepnet")
MODES = ("lora", "head", "full")
CATALOGUES = make_catalogues()


def options_of(sharing: str = "bottom", trainable: str = "none") -> Model:
    return small_model(
        trainable, sharing=sharing, encoder={"lora": {"layers": 1}}, retrieval=RETRIEVAL
    )


def joint_folder(tmp_path, options):
    """The folder of a stirred joint model, and the model."""
    model, vectors = build(options, CATALOGUES)
    save_model(tmp_path / "joint", model.eval(), {})
    return str(tmp_path / "joint"), model, vectors


def scenario_model(options, name="shop"):
    """A model of one scenario with other initial weights than the joint one."""
    torch.manual_seed(5)
    encoder = TextEncoder(options.encoder)
    return Recommender(options, {name: FACTS[name]}, {name: CATALOGUES[name]}, encoder)


def logits_of(model, name="shop", seed=3):
    """Logits of some rows, their items' vectors drawn by the seed."""
    rows = make_rows(np.random.default_rng(seed), FACTS[name], 40)
    samples = Samples.of(rows)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(samples.items), model.encoder.width, generator=generator)
    with torch.no_grad():
        return model.eval().score(name, samples, vectors)


def start_of(base, mode="lora", **fields):
    return FineTuneStart(base=base, name="shop", mode=mode, rank=2, alpha=4.0, **fields)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("mode", MODES)
def test_starts_as_the_joint_model(tmp_path, sharing, mode):
    """Before its first step a scenario's model has the joint model's outputs, to the bit."""
    options = options_of(sharing)
    base, joint, _ = joint_folder(tmp_path, options)
    model = scenario_model(options)
    load_joint_weights(model, start_of(base, mode))
    assert torch.equal(logits_of(model), logits_of(joint))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("mode", MODES)
def test_joint_weights_and_delta_are_the_model(tmp_path, sharing, mode):
    """What was changed comes back from the joint weights and the delta, to the bit."""
    options = options_of(sharing)
    base, joint, _ = joint_folder(tmp_path, options)
    before, folder = logits_of(joint), str(tmp_path / "delta")
    model = scenario_model(options)
    wrapper = load_joint_weights(model, start_of(base, mode))
    stir(model)
    changed = logits_of(model)
    assert not torch.equal(changed, before)
    save_delta(model, wrapper, start_of(base, mode), folder)
    again = scenario_model(options)
    apply_delta(again, load_joint_weights(again, start_of(base, mode)), folder)
    assert torch.equal(logits_of(again), changed)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_other_scenarios_do_not_change(tmp_path, sharing):
    """After fine-tuning shop the joint model's file and its outputs of video are the same bits."""
    options = options_of(sharing)
    base, joint, _ = joint_folder(tmp_path, options)
    weights = (tmp_path / "joint" / "model.safetensors").read_bytes()
    before = logits_of(joint, "video")
    model = scenario_model(options)
    wrapper = load_joint_weights(model, start_of(base))
    stir(model)
    save_delta(model, wrapper, start_of(base), str(tmp_path / "delta"))
    assert (tmp_path / "joint" / "model.safetensors").read_bytes() == weights
    video = scenario_model(options, "video")
    load_joint_weights(video, FineTuneStart(base=base, name="video", mode="head"))
    assert torch.equal(logits_of(video, "video"), before)


def test_what_learns(tmp_path):
    """head: the scenario's own layers; lora: low-rank maps, too; full: all that learned jointly."""
    options = options_of()
    base, _, _ = joint_folder(tmp_path, options)
    learning = {}
    for mode in MODES:
        model = scenario_model(options)
        load_joint_weights(model, start_of(base, mode))
        own = scenario_parameters(model, "shop")
        learning[mode] = {n for n, p in model.named_parameters() if p.requires_grad}
        others = {n for n in learning[mode] if not is_below(n, own)}
        if mode == "lora":
            assert others
            assert all(".lora_" in n for n in others)
            assert any(n.startswith("sharing.tower") for n in others)
        else:
            assert bool(others) == (mode == "full")
    assert learning["head"] < learning["full"]
    assert learning["head"] < learning["lora"]


def test_what_learns_of_the_retrieval_side(tmp_path):
    """Its shared layers learn in mode full alone, and get no low-rank maps."""
    options = options_of()
    base, _, _ = joint_folder(tmp_path, options)
    for mode in MODES:
        model = scenario_model(options)
        load_joint_weights(model, start_of(base, mode))
        assert model.retrieval is not None
        learning = {n for n, p in model.retrieval.named_parameters() if p.requires_grad}
        assert {"queries.shop", "no_history.shop", "extras.shop.item_ids.weight"} <= learning
        assert ("project.weight" in learning) == (mode == "full")
        assert not any("lora_" in n for n, _ in model.retrieval.named_parameters())


def test_delta_is_small(tmp_path):
    """A delta of mode head holds the own parts of shop alone."""
    from safetensors.torch import load_file

    options = options_of()
    base, _, _ = joint_folder(tmp_path, options)
    model = scenario_model(options)
    facts = save_delta(
        model,
        load_joint_weights(model, start_of(base, "head")),
        start_of(base, "head"),
        str(tmp_path / "d"),
    )
    names = set(load_file(tmp_path / "d" / "own.safetensors"))
    assert names == {
        n for n in model.state_dict() if is_below(n, scenario_parameters(model, "shop"))
    }
    assert facts["bytes"] < (tmp_path / "joint" / "model.safetensors").stat().st_size


def test_encoder_adapter_loads_with_peft_alone(tmp_path):
    """`PeftModel.from_pretrained` on the plain encoder gives the adapted encoder's states."""
    base, _, _ = joint_folder(tmp_path, options_of())
    model = scenario_model(options_of(trainable="lora"))
    wrapper = load_joint_weights(model, start_of(base))
    stir(model)
    save_delta(model, wrapper, start_of(base), str(tmp_path / "delta"))
    alone = PeftModel.from_pretrained(tiny_backbone(), str(tmp_path / "delta" / "encoder"))
    tokens = torch.randint(5, 97, (6, 9))
    mask = torch.ones(6, 9, dtype=torch.bool)
    with torch.no_grad():
        states = alone.eval()(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        plain = tiny_backbone()(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        ours = model.encoder.eval()(tokens, mask)
    assert torch.equal(states.mean(1), ours)
    assert not torch.allclose(states, plain)


def test_shared_adapter_leaves_the_encoders_on(tmp_path):
    """With both adapters, that of the encoder stays switched on and learns."""
    base, _, _ = joint_folder(tmp_path, options_of())
    model = scenario_model(options_of(trainable="lora"))
    load_joint_weights(model, start_of(base))
    assert any(p.requires_grad for p in model.encoder.parameters())
    tokens, mask = torch.randint(5, 97, (4, 7)), torch.ones(4, 7, dtype=torch.bool)
    before = model.encoder.eval()(tokens, mask)
    stir(model)
    after = model.encoder(tokens, mask)
    assert not torch.allclose(before, after)
    after.sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters() if p.requires_grad)


def test_delta_of_another_base(tmp_path):
    """A delta of another base, of another scenario, or none: one clear line each."""
    base, _, _ = joint_folder(tmp_path, options_of())
    model = scenario_model(options_of())
    folder = str(tmp_path / "delta")
    with pytest.raises(ValueError, match=r"scenario shop: found no fine-tuned model in .*finetune"):
        read_delta(folder, base_fingerprint(base), "shop")
    save_delta(model, load_joint_weights(model, start_of(base)), start_of(base), folder)
    assert read_delta(folder, base_fingerprint(base), "shop")["mode"] == "lora"
    for name, fingerprint, words in (
        ("video", base_fingerprint(base), "found the model of shop"),
        ("shop", "0123456789abcdef", r"fine-tuned from other joint weights \(.*0123456789abcdef"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            read_delta(folder, fingerprint, name)
        assert len(str(caught.value).splitlines()) == 1


def test_another_build_is_refused(tmp_path):
    """Joint weights of another width are refused in one line that names the weight."""
    base, _, _ = joint_folder(tmp_path, options_of())
    model = scenario_model(small_model("none", width=16))
    with pytest.raises(
        ValueError, match=r"joint model: found the shape .* for project.weight; allowed"
    ):
        load_joint_weights(model, start_of(base))


def test_new_scenario_keeps_its_initial_layers(tmp_path):
    """A scenario that the joint model lacks takes the shared weights and has new layers."""
    options = options_of()
    model, _ = build(options, CATALOGUES, {"video": FACTS["video"]})
    save_model(tmp_path / "joint", model, {})
    new = scenario_model(options)
    initial = {n: v.clone() for n, v in new.state_dict().items()}
    load_joint_weights(
        new, FineTuneStart(base=str(tmp_path / "joint"), name="shop", mode="head", is_new=True)
    )
    own = scenario_parameters(new, "shop")
    for name, value in new.state_dict().items():
        wanted = initial[name] if is_below(name, own) else model.state_dict()[name]
        assert torch.equal(value, wanted), name


@pytest.mark.parametrize("mode", MODES)
def test_a_new_scenario_starts_from_the_general_head(tmp_path, mode):
    """Before its first step a new scenario says of its main task what the general head says."""
    options = options_of()
    model, _ = build(options, CATALOGUES, {"video": FACTS["video"]})
    stir(model)
    save_model(tmp_path / "joint", model, {})
    start = start_of(str(tmp_path / "joint"), mode, is_new=True, from_general=True)
    found, general = (scenario_model(options) for _ in range(2))
    load_joint_weights(found, start)
    load_joint_weights(general, start)
    general.use_general_head = True
    main = list(FACTS["shop"].tasks).index(FACTS["shop"].main)
    started = logits_of(found)[:, main]
    assert started.std() > 0.01
    torch.testing.assert_close(started, logits_of(general)[:, main])
    assert not any(p.requires_grad for p in found.general.parameters())


def test_pull_towards_the_start():
    """Without a gradient the pull takes weights back by lr * strength of the way a step."""
    layer = torch.nn.Linear(3, 2)
    pull = L2SP(layer, strength=2.0)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1.0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    pull.step(optimizer)
    assert torch.allclose(layer.weight - start, torch.full_like(start, 0.5))


def test_folders_can_be_copied(tmp_path):
    """A delta is found by its content: in a copied folder it is the same model."""
    base, _, _ = joint_folder(tmp_path, options_of())
    model = scenario_model(options_of())
    wrapper = load_joint_weights(model, start_of(base))
    stir(model)
    save_delta(model, wrapper, start_of(base), str(tmp_path / "delta"))
    shutil.move(tmp_path / "delta", tmp_path / "elsewhere")
    again = scenario_model(options_of())
    apply_delta(again, load_joint_weights(again, start_of(base)), str(tmp_path / "elsewhere"))
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outcomes", [False, True])
def test_merged_maps_score_as_the_delta(tmp_path, monkeypatch, sharing, mode, outcomes):
    """With known vectors neither PEFT nor the encoder is needed: the scores are the same.

    Also where histories tell what came of their items.
    """
    monkeypatch.setitem(FACTS, "shop", replace(FACTS["shop"], history_outcomes=outcomes))
    options = options_of(sharing)
    base, _, _ = joint_folder(tmp_path, options)
    start, tuned = start_of(base, mode), scenario_model(options)
    wrapper = load_joint_weights(tuned, start)
    stir(tuned)
    save_delta(tuned, wrapper, start, str(tmp_path / "delta"))
    width = tuned.encoder.width
    encoder = TextEncoder(options.encoder, width=width)
    model = Recommender(options, {"shop": FACTS["shop"]}, {"shop": CATALOGUES["shop"]}, encoder)
    load_joint_weights(model, replace(start, shared=False))
    merge_delta(model, start, str(tmp_path / "delta"))
    assert torch.allclose(logits_of(model), logits_of(tuned), atol=1e-5)


def test_workers_import_what_they_need_alone():
    """Modules of workers that score by known vectors import no library that takes seconds."""
    code = (
        "import sys, mtrec_ray.stages.list_writer, mtrec_ray.stages.lists, mtrec_ray.training.run;"
        "print([m for m in ('transformers', 'peft', 'sklearn', 'scipy.stats', 'lightgbm')"
        " if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
