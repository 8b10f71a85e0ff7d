"""The retrieval side finds what a user wants next, and changes nothing of the ranking."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.model.retrieval import unit
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.load import parse_project
from mtrec_ray.training.cached_gradients import CachedGradients
from mtrec_ray.training.forward import Forward
from mtrec_ray.training.retrieval_loss import (
    RETRIEVAL,
    CandidateDraws,
    Candidates,
    chances,
    hidden_candidates,
    positive_counts,
    positives,
    softmax_loss_sum,
)
from mtrec_ray.training.run import clipped_together
from mtrec_ray.training.step import accumulate
from tests.builders import (
    CPU,
    FACTS,
    SHOP,
    build,
    make_catalogues,
    make_rows,
    project_tree,
    scenario_tree,
    small_model,
    take,
    write_prepared,
)
from tests.builders import RETRIEVAL as SMALL

CATALOGUES = make_catalogues()
COUNTS = {n: torch.arange(f.num_items).double() for n, f in FACTS.items()}
WEIGHTS = torch.full((4,), 0.25, dtype=torch.float64)


def rows_of(seed=2, num_rows=50):
    rng = np.random.default_rng(seed)
    return {name: make_rows(rng, facts, num_rows) for name, facts in FACTS.items()}


def model_of(**fields):
    """A stirred model with a retrieval side over a frozen encoder, and its item vectors."""
    model, vectors = build(small_model("none", retrieval=SMALL, **fields), CATALOGUES)
    vectors.refresh()
    return model, vectors


def draws_of(model, seed=0):
    return CandidateDraws(model.options, FACTS, COUNTS, seed)


def samples_of(users, items, history, num_items=SHOP.num_items):
    """Samples of shop as catalogue rows, all of them positives."""
    history = torch.tensor(history)
    return Samples(
        items=torch.arange(num_items),
        candidate=torch.tensor(items),
        history=history,
        ages=torch.zeros_like(history),
        outcomes=torch.zeros_like(history),
        user=torch.tensor(users),
        person=torch.tensor(users),
        moment=torch.zeros(len(users), dtype=torch.int64),
        numeric=torch.zeros(len(users), 3),
        categorical=torch.zeros(len(users), 1, dtype=torch.int64),
        labels=torch.ones(len(users), 2),
        weights=torch.ones(len(users)),
        several=torch.zeros(len(users), 0, dtype=torch.int64),
    )


def test_a_users_vector_is_the_same_from_samples_and_from_a_snapshot():
    """Distinct items of a batch, or rows of the catalogue: the same vectors, of length 1."""
    model, vectors = model_of()
    rows = rows_of()["shop"]
    rows["history"][3] = -1
    samples = Samples.of(rows)
    text = vectors.of_batch({"shop": samples}, encode=False)["shop"]
    found = model.retrieval.sample_users("shop", samples, text)
    users = UserSnapshot(
        ids=rows["user"].astype(object), person=rows["person"], moment=rows["time"],
        user=rows["user"],
        history=rows["history"], ages=rows["history_age"], numeric=rows["numeric"],
    )  # fmt: skip
    own = model.retrieval.user_vectors("shop", users, vectors.cache[: SHOP.num_items])
    torch.testing.assert_close(own, found)
    torch.testing.assert_close(own.norm(dim=1), torch.ones(50))
    one = model.retrieval.user_vectors("shop", users.of(3, 4), vectors.cache[: SHOP.num_items])
    torch.testing.assert_close(one, found[3:4])


def test_items_are_the_same_in_blocks(monkeypatch):
    """The catalogue's vectors do not depend on the blocks, and are those of training."""
    model, vectors = model_of()
    text = vectors.cache[: SHOP.num_items]
    whole = model.retrieval.item_vectors("shop", text)
    monkeypatch.setattr("mtrec_ray.model.retrieval.MAX_ROWS", 7)
    torch.testing.assert_close(model.retrieval.item_vectors("shop", text), whole)
    some = torch.tensor([4, 9, 2])
    torch.testing.assert_close(unit(model.retrieval.states("shop", some, text[some])), whole[some])


@pytest.mark.parametrize("fields", [{}, {"history": False}, {"text": False}])
def test_a_user_without_a_history_is_finite(fields):
    """Value and gradient are finite, also where no history is seen at all."""
    model, vectors = model_of(**fields)
    rows = rows_of()
    for arrays in rows.values():
        arrays["history"][:] = -1
    result = step(model, vectors, [{n: Samples.of(a) for n, a in rows.items()}])
    assert all(np.isfinite(list(result.retrieval_sums.values())))
    gradients = [p.grad for p in model.retrieval.parameters()]
    assert all(g.isfinite().all() for g in gradients)
    assert model.retrieval.no_history["shop"].grad.any()
    assert not model.retrieval.queries["shop"].grad.any()


def step(model, vectors, batches, seed=0):
    """A step with the retrieval side, if the model has one."""
    drawn = draws_of(model, seed).of_step(batches, step=0) if model.retrieval else None
    model.train()
    return accumulate(
        Forward(model, vectors), FACTS, batches, WEIGHTS, encode=False, drawn=drawn
    )  # fmt: skip


def test_it_learns_in_bf16():
    """Under autocast the loss is near that of full precision, and gradients are finite."""
    batches = [{n: Samples.of(a) for n, a in rows_of().items()}]
    losses = []
    for autocast in (nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)):
        model, vectors = model_of()
        drawn = draws_of(model).of_step(batches, step=0)
        forward = Forward(model.train(), vectors)
        result = accumulate(
            forward, FACTS, batches, WEIGHTS, encode=False, autocast=autocast, drawn=drawn
        )
        losses.append(result.retrieval_sums)
        assert all(p.grad.isfinite().all() for p in model.retrieval.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_encoder_learns_from_histories_alone():
    """The texts of histories carry a gradient where the encoder learns; candidates' are constants.

    Gathered gradients and those of the step's own rows are the same.
    """
    batches = [{n: Samples.of(a) for n, a in rows_of().items()}]
    gradients = []
    for gather in (False, True):
        model, vectors = build(small_model("all", retrieval=SMALL), CATALOGUES)
        vectors.refresh()
        vectors.gathered = CachedGradients(vectors) if gather else None
        drawn = draws_of(model).of_step(batches, step=0)
        found = Forward(model, vectors)(batches[0], not gather, drawn)
        sum(found[RETRIEVAL + name] for name in FACTS).backward()
        if vectors.gathered is not None:
            vectors.gathered.collect()
            vectors.gathered.backward()
        gradients.append([p.grad for p in model.encoder.parameters()])
    assert any(g.any() for g in gradients[0])
    for own, gathered in zip(*gradients, strict=True):
        torch.testing.assert_close(gathered, own, rtol=1e-3, atol=1e-5)


def trained(enabled):
    """A model after three steps with dropout, and what each step gave."""
    options = {"dropout": 0.2, "id_dropout": 0.3, "retrieval": {**SMALL, "enabled": enabled}}
    torch.manual_seed(0)
    model, vectors = build(small_model("none", **options), CATALOGUES)
    vectors.refresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    results = []
    for i in range(3):
        torch.manual_seed(i)
        optimizer.zero_grad()
        batch = {n: Samples.of(a) for n, a in rows_of(i).items()}
        results.append(step(model, vectors, [batch]).loss)
        results.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
        for group in clipped_together(model):
            torch.nn.utils.clip_grad_norm_(group, 0.1)
        optimizer.step()
    return model, results


def test_the_ranking_does_not_change():
    """With a frozen encoder: initial weights, losses, gradients and weights to the bit."""
    with_it, results = trained(True)
    without, others = trained(False)
    for found, wanted in zip(results, others, strict=True):
        if isinstance(wanted, float):
            assert found == wanted
        else:
            assert {n for n in found if not n.startswith("retrieval.")} == set(wanted)
            assert all(torch.equal(found[n], g) for n, g in wanted.items())
            assert any(g.any() for n, g in found.items() if n.startswith("retrieval."))
    for name, weight in without.state_dict().items():
        assert torch.equal(with_it.state_dict()[name], weight), name


def test_it_draws_no_random_numbers_of_others():
    """Building it leaves the numbers that are drawn next as they were."""
    numbers = []
    for enabled in (True, False):
        build(small_model("none", retrieval={**SMALL, "enabled": enabled}), CATALOGUES)
        numbers.append(torch.rand(3))
    assert torch.equal(*numbers)


def test_it_is_clipped_apart():
    """The norm that clips the model's gradients holds nothing of the retrieval side."""
    model, _ = model_of()
    *_, apart = clipped_together(model)
    assert {id(p) for p in apart} == {id(p) for p in model.retrieval.parameters()}
    assert sum(map(len, clipped_together(model))) == len(list(model.parameters()))


@pytest.mark.parametrize("cut", [1, 20, 49])
def test_ragged_micro_batches_have_the_gradient_of_one(cut):
    """However the rows are cut into micro-batches, the loss and the gradient are the same."""
    found = []
    for cuts in ([slice(0, 50)], [slice(0, cut), slice(cut, 50)]):
        model, vectors = model_of()
        batches = [{n: Samples.of(take(a, c)) for n, a in rows_of().items()} for c in cuts]
        result = step(model, vectors, batches)
        found.append((result, {n: p.grad for n, p in model.retrieval.named_parameters()}))
    (one, whole), (other, parts) = found
    assert other.retrieval_counts == one.retrieval_counts
    assert other.retrieval_sums == pytest.approx(one.retrieval_sums, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_dropped_ids_are_not_seen():
    """A dropped item has the vector of its text and columns, and an id no gradient."""
    model, vectors = model_of()
    items, text = torch.arange(SHOP.num_items), vectors.cache[: SHOP.num_items]
    dropped = torch.arange(SHOP.num_items) % 2 == 0
    found = model.retrieval.states("shop", items, text, dropped)
    table = model.retrieval.extras["shop"].item_ids
    wanted = model.retrieval.states("shop", items, text)
    known = torch.from_numpy(CATALOGUES["shop"].known)
    moved = (found - wanted).abs().sum(1) > 1e-6
    assert torch.equal(moved, dropped & known)
    found.sum().backward()
    assert not table.weight.grad[1:][dropped].any()


def test_what_is_no_negative():
    """Items of the history and the user's other positives are left out, never the positive."""
    rows = samples_of([1, 1, 2, 0], [3, 5, 5, 7], [[5, -1], [8, 3], [5, 2], [-1, -1]])
    drawn = Candidates(
        items=torch.tensor([2, 3, 5, 7, 8, 9]),
        log_chance=torch.zeros(6),
        users=torch.tensor([1, 1, 2, 0, 0, 1]),
        places=torch.tensor([1, 2, 2, 3, 5, 5]),
        dropped=torch.zeros(SHOP.num_items, dtype=torch.bool),
    )
    hidden = hidden_candidates(drawn, rows)
    named = [drawn.items[row].tolist() for row in hidden]
    assert named == [[5, 9], [3, 8, 9], [2], []]


def test_candidates_are_the_steps_positives_and_draws():
    """Drawn by seed, step and scenario alone: the same again, others in another step."""
    model, _ = model_of(id_dropout=0.3)
    batches = [{n: Samples.of(a) for n, a in rows_of().items()}]
    draws = draws_of(model, seed=4)
    first, again, other = (draws.of_step(batches, step) for step in (7, 7, 8))
    for name, facts in FACTS.items():
        own = positives(facts, batches[0][name])
        found = first[name]
        assert found.num_positives == len(own.user)
        assert torch.equal(found.items[found.places], own.candidate_items)
        assert torch.equal(found.items, again[name].items)
        assert torch.equal(found.dropped, again[name].dropped)
        assert not torch.equal(found.dropped, other[name].dropped)
        assert 0 < found.dropped.sum() < facts.num_items


def test_more_draws_than_items_are_the_whole_catalogue():
    """Then every item is a candidate, and nothing is corrected."""
    model, _ = build(small_model("none", retrieval={**SMALL, "negatives": 500}), CATALOGUES)
    batches = [{n: Samples.of(a) for n, a in rows_of().items()}]
    drawn = draws_of(model).of_step(batches, step=0)["shop"]
    assert torch.equal(drawn.items, torch.arange(SHOP.num_items))
    assert not drawn.log_chance.any()


def test_chances_are_frequencies():
    """The chance of an item is how often a step holds it beside a row's own positive."""
    rng, size, num, draws, steps = np.random.default_rng(0), 6, 4, 3, 20_000
    shares = np.array([0.4, 0.3, 0.15, 0.1, 0.05, 0.0])
    others = rng.choice(size, (steps, num - 1), p=shares)
    drawn = rng.integers(0, size, (steps, draws))
    held = np.concatenate([others, drawn], 1)
    often = [(held == item).any(1).mean() for item in range(size)]
    found = chances(torch.from_numpy(shares), num, draws, size)
    np.testing.assert_allclose(found.numpy(), often, atol=0.015)


def test_positives_are_counted_over_all_shards(tmp_path):
    """The counts are those of the main task's label 1 in all training rows."""
    rows = rows_of()
    shards = {
        n: {"train": [take(a, slice(0, 20)), take(a, slice(20, 50))]} for n, a in rows.items()
    }
    prepared = write_prepared(tmp_path, CATALOGUES, shards)
    for name, found in positive_counts(prepared, CPU).items():
        items = rows[name]["item"][rows[name]["labels"][:, 0] == 1]
        wanted = np.bincount(items, minlength=FACTS[name].num_items)
        np.testing.assert_array_equal(found.numpy(), wanted)


def learned(corrected, num_steps=1500):
    """What free scores of 2 users and 12 items learn from skewed positives, as probabilities."""
    rng, size = np.random.default_rng(1), 12
    taste = rng.normal(size=(2, size))
    wanted = np.exp(taste + np.linspace(3, 0, size))
    wanted /= wanted.sum(1, keepdims=True)
    shares = torch.from_numpy(wanted.mean(0))
    scores = torch.zeros(2, size, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.02)
    for number in range(num_steps):
        users = rng.integers(0, 2, 24)
        items = np.array([rng.choice(size, p=wanted[u]) for u in users])
        held = torch.from_numpy(np.concatenate([items, rng.integers(0, size, 4)])).unique()
        chance = chances(shares[held], len(items), 4, size).log().float()
        rows = samples_of([0] * 24, items, [[-1]] * 24, size)
        drawn = Candidates(
            items=held,
            log_chance=chance if corrected else torch.zeros(len(held)),
            users=rows.user,
            places=torch.searchsorted(held, rows.candidate),
            dropped=torch.zeros(size, dtype=torch.bool),
        )
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - number / num_steps)
        optimizer.zero_grad()
        cosines = scores[torch.from_numpy(users)][:, held]
        (softmax_loss_sum(cosines, rows, drawn, 1.0) / 24).backward()
        optimizer.step()
    return scores.detach().softmax(1).numpy(), wanted


def test_the_correction_finds_the_true_preference():
    """Popular items are candidates in most steps, rare ones in few: that is not learned."""
    found, wanted = learned(corrected=True)
    plain, _ = learned(corrected=False)
    errors = [np.abs(p - wanted).sum(1).max() / 2 for p in (found, plain)]
    assert errors[0] < 0.06
    assert errors[1] > 2 * errors[0]


def test_a_scenario_without_a_binary_task_has_none():
    """It has no positives to learn from."""
    facts = {"video": replace(FACTS["video"], kinds={"stars": "regression"})}
    catalogues = {"video": CATALOGUES["video"]}
    model, _ = build(small_model("none", retrieval=SMALL), catalogues, facts)
    assert model.retrieval is None


def test_pairs_have_no_retrieval_side():
    """A text of history and candidate together has no item vector to make one of."""
    model, _ = build(small_model("none", layout="pair", retrieval=SMALL), CATALOGUES)
    assert model.retrieval is None


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"retrieval": {"negatives": 0}}, "model.retrieval.negatives: found 0"),
        ({"retrieval": {"temperature": 0}}, "model.retrieval.temperature: found 0"),
        (
            {"text": False, "retrieval": {"item_ids": False}, "encoder": {"trainable": "none"}},
            "model.retrieval.item_ids: found false with model.text false",
        ),
    ],
)
def test_nonsense_is_refused_in_a_line(fields, line):
    """The field, what was found and what is allowed."""
    tree = project_tree({"shop": scenario_tree({"click": {"kind": "binary"}})}, model=fields)
    with pytest.raises(ValueError, match=line) as caught:
        parse_project(tree)
    assert len(str(caught.value).splitlines()) == 1
