"""The general head learns beside the model and changes nothing of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtrec_ray.model.recommender import GENERAL
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.load import parse_project
from mtrec_ray.stages import recommend
from mtrec_ray.training.forward import Forward
from mtrec_ray.training.losses import general_loss, label_counts
from mtrec_ray.training.run import clipped_together
from mtrec_ray.training.step import accumulate
from tests.builders import (
    FACTS,
    build,
    make_catalogues,
    make_rows,
    small_model,
    two_scenario_project,
)

CATALOGUES = make_catalogues()


def batch_of(seed=2):
    rng = np.random.default_rng(seed)
    return {name: Samples.of(make_rows(rng, facts, 50)) for name, facts in FACTS.items()}


def gradients(general):
    """Gradients of a step, by parameter."""
    model, vectors = build(small_model("none", general=general), CATALOGUES)
    vectors.refresh()
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    model.train()
    result = accumulate(Forward(model, vectors), FACTS, [batch_of()], weights, encode=False)
    return model, {n: p.grad for n, p in model.named_parameters()}, result


def test_model_has_the_same_gradients():
    """With and without the general head a step has the same loss and gradients, to the bit."""
    _, with_it, result = gradients(True)
    _, without, other = gradients(False)
    assert result.loss == other.loss
    own = {n for n in with_it if n.startswith("general.")}
    assert set(with_it) - own == set(without)
    for name, wanted in without.items():
        assert torch.equal(with_it[name], wanted), name
    assert all(with_it[n].abs().sum() > 0 for n in own)


def test_it_is_clipped_apart():
    """The norm that clips the model's gradients does not hold the general head's."""
    model, _, _ = gradients(True)
    together, apart = clipped_together(model)
    assert {id(p) for p in apart} == {id(p) for p in model.general.parameters()}
    assert len(together) + len(apart) == len(list(model.parameters()))


def test_loss_is_the_mean_over_scenarios():
    """The general loss is the mean of the scenarios' mean log-losses of their main tasks."""
    model, vectors = build(small_model("none"), CATALOGUES)
    vectors.refresh()
    batch = batch_of()
    labels = {n: s.labels for n, s in batch.items()}
    logits = model.train()(batch, vectors.of_batch(batch, encode=False))
    found = general_loss(FACTS, logits, labels, label_counts(FACTS, labels))
    means = []
    for name, facts in FACTS.items():
        own = labels[name][:, facts.tasks.index(facts.main)]
        known = own.isfinite()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[GENERAL + name][known], own[known]
        )
        means.append(loss)
    torch.testing.assert_close(found.float(), torch.stack(means).mean())


def test_it_is_silent_in_use():
    """In evaluation the model gives the scenarios' logits alone."""
    model, vectors = build(small_model("none"), CATALOGUES)
    vectors.refresh()
    batch = batch_of()
    found = model.eval()(batch, vectors.of_batch(batch, encode=False))
    assert set(found) == set(FACTS)


def test_scores_generally():
    """Told so, the model gives the general head's logits for the main task, else base rates."""
    model, vectors = build(small_model("none"), CATALOGUES)
    vectors.refresh()
    batch = batch_of()
    text = vectors.of_batch(batch, encode=False)["shop"]
    model.eval().use_general_head = True
    found = model.score("shop", batch["shop"], text)
    similarity = model.sample_similarity(batch["shop"], model.sample_cosines(batch["shop"], text))
    wanted = model.main_task_logits("shop", similarity, batch["shop"].numeric)
    torch.testing.assert_close(found[:, 0], wanted)
    assert found[:, 0].std() > 0
    rate = FACTS["shop"].label_means["buy"]
    torch.testing.assert_close(found[:, 1].sigmoid(), torch.full((50,), rate))


@pytest.mark.parametrize(
    ("name", "by", "line"),
    [
        ("shop", None, None),
        ("shop", {"click": 1.0}, None),
        ("shop", {"buy": 1.0}, "recommend.by.shop: found buy for a scenario without a model"),
        ("video", None, None),
    ],
)
def test_it_ranks_by_the_main_task_alone(monkeypatch, name, by, line):
    """A blend of other tasks, which it cannot tell apart, is refused."""
    monkeypatch.setattr(recommend, "chosen_model", lambda *_: SimpleNamespace(general=True))
    project = two_scenario_project()
    if by:
        project = parse_project(project.dump() | {"recommend": {"by": {name: by}}})
    problems = recommend.blend_problems(SimpleNamespace(facts=FACTS), name, project)
    assert [p[: len(line or "")] for p in problems] == ([line] if line else [])
