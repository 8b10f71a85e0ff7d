"""Scores depend on what items and rows are, not on where they stand; odd inputs stay finite."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.model.chunks import PairLayout
from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.model.history import (
    HistoryAttention,
    cosines,
    similarity_kernels,
    similarity_summary,
)
from mtrec_ray.model.inputs import drop_ids
from mtrec_ray.model.numeric import NumericInputs, ranks
from mtrec_ray.model.recommender import Recommender, predictions
from mtrec_ray.model.samples import Samples
from mtrec_ray.training.item_vectors import ItemVectors
from tests.builders import (
    CPU,
    EVERY_KIND,
    FACTS,
    NUM_ITEMS,
    SHOP,
    VIDEO,
    build,
    make_catalogues,
    make_rows,
    small_model,
    take,
)


def rows_of(num_rows=20, seed=0):
    rng = np.random.default_rng(seed)
    return {name: make_rows(rng, facts, num_rows) for name, facts in FACTS.items()}


@torch.no_grad()
def scores(model: Recommender, vectors: ItemVectors, rows) -> dict[str, torch.Tensor]:
    batch = {name: Samples.of(arrays) for name, arrays in rows.items()}
    return model.eval()(batch, vectors.of_batch(batch, encode=True))


def assert_same_scores(found, wanted):
    for name, values in wanted.items():
        assert values.std(0).min() > 1e-3, "the scores are too alike to tell anything"
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-5)


def shuffled_catalogue(catalogue: Catalogue, order: np.ndarray) -> Catalogue:
    """The catalogue whose item i is the old one's item `order[i]`."""
    texts = np.split(catalogue.tokens, catalogue.offsets[1:-1])
    return Catalogue(
        tokens=np.concatenate([texts[i] for i in order]),
        offsets=np.concatenate([[0], np.cumsum(catalogue.lengths[order])]),
        categorical=catalogue.categorical[order],
        numeric=catalogue.numeric[order],
        published=catalogue.published[order],
        known=catalogue.known[order],
    )


@pytest.mark.parametrize("trainable", ["all", "none"])
def test_a_shuffled_catalogue_changes_no_score(trainable):
    """Scores stay where items change their rows and id embeddings and histories follow."""
    catalogues, rows = make_catalogues(), rows_of()
    order = np.random.default_rng(1).permutation(NUM_ITEMS)
    place = np.argsort(order)
    other = {name: shuffled_catalogue(c, order) for name, c in catalogues.items()}
    moved_rows = {
        name: arrays
        | {
            "item": place[arrays["item"]],
            "history": np.where(arrays["history"] >= 0, place[arrays["history"]], -1),
        }
        for name, arrays in rows.items()
    }
    model, vectors = build(small_model(trainable), catalogues)
    moved, moved_vectors = build(small_model(trainable), other)
    for name in FACTS:
        old, new = (m.inputs[name].item_ids.weight.detach() for m in (model, moved))
        new[1:] = old[1:][order]
    assert_same_scores(scores(moved, moved_vectors, moved_rows), scores(model, vectors, rows))


def test_order_of_rows_changes_nothing():
    """A row has the same scores wherever it stands in the batch, and in a batch of its own."""
    model, vectors = build(small_model(), make_catalogues())
    rows = rows_of()
    wanted = scores(model, vectors, rows)
    order = np.random.default_rng(2).permutation(20)
    found = scores(model, vectors, {n: take(a, order) for n, a in rows.items()})
    assert_same_scores(found, {n: v[order] for n, v in wanted.items()})
    alone = [scores(model, vectors, {n: take(a, [i]) for n, a in rows.items()}) for i in range(20)]
    assert_same_scores({n: torch.cat([a[n] for a in alone]) for n in FACTS}, wanted)


def test_other_scenarios_in_the_batch_change_nothing():
    """A scenario's scores are the same with and without the other scenario in the batch."""
    model, vectors = build(small_model(), make_catalogues())
    rows = rows_of()
    both = scores(model, vectors, rows)
    for name in FACTS:
        assert_same_scores(scores(model, vectors, {name: rows[name]}), {name: both[name]})


@pytest.mark.parametrize("seen", [False, True])
def test_without_text_scores_do_not_move_with_it(seen):
    """`text: false` hides item vectors; with them scores move."""
    options = small_model("none", text=seen)
    model, vectors = build(options, make_catalogues())
    vectors.refresh()
    rows = rows_of()
    batch = {name: Samples.of(arrays) for name, arrays in rows.items()}
    found = vectors.of_batch(batch, encode=False)
    other = {name: torch.randn_like(v) for name, v in found.items()}
    with torch.no_grad():
        first, second = (model.eval()(batch, v) for v in (found, other))
    assert all((not torch.equal(first[n], second[n])) == seen for n in FACTS)


@pytest.mark.parametrize("seen", [False, True])
def test_without_history_scores_do_not_move_with_it(seen):
    """`history: false` hides the user's history; with it scores move."""
    model, vectors = build(small_model(history=seen), make_catalogues())
    rows = rows_of()
    other = {
        name: arrays | {"history": np.full_like(arrays["history"], -1)}
        for name, arrays in rows.items()
    }
    first, second = (scores(model, vectors, r) for r in (rows, other))
    for name in FACTS:
        moved = (first[name] - second[name]).abs().max() > 1e-5
        assert moved == seen


def test_without_statistics_scores_do_not_move_with_them():
    """`statistics: false` hides past counts and rates; with them scores move."""
    rows = rows_of()
    other = {n: a | {"numeric": a["numeric"] + 1} for n, a in rows.items()}
    for statistics in (False, True):
        model, vectors = build(small_model(statistics=statistics), make_catalogues())
        found, wanted = scores(model, vectors, other), scores(model, vectors, rows)
        moved = [not torch.equal(found[n], wanted[n]) for n in FACTS]
        assert moved == [statistics] * 2


def test_pairs_take_the_place_of_item_vectors():
    """In the pair layout scores are finite, learn, and move with the history's text."""
    rows = rows_of()
    model, vectors = build(small_model(layout="pair", item_ids=False), make_catalogues())
    vectors.pairs = PairLayout((1,), (2,), 60)
    batch = {name: Samples.of(arrays) for name, arrays in rows.items()}
    logits = model.train()(batch, vectors.of_batch(batch, encode=True))
    torch.cat([v.flatten() for v in logits.values()]).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    vectors.texts.tokens[:] = vectors.texts.tokens.flip(0)
    moved = model(batch, vectors.of_batch(batch, encode=True))
    assert all((moved[n] - logits[n]).abs().min() > 1e-6 for n in FACTS)


def test_empty_histories_are_finite():
    """Users without a history get finite scores, alone and beside others; gradients are finite."""
    model, vectors = build(small_model(), make_catalogues())
    rows = rows_of()
    empty = {n: a | {"history": np.full_like(a["history"], -1)} for n, a in rows.items()}
    assert all(v.isfinite().all() for v in scores(model, vectors, empty).values())
    batch = {n: Samples.of(a) for n, a in empty.items()}
    logits = model.train()(batch, vectors.of_batch(batch, encode=True))
    torch.cat([x.flatten() for x in logits.values()]).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_null_numbers_are_finite():
    """Rows whose numbers are all null or infinite get finite scores."""
    model, vectors = build(small_model(), make_catalogues())
    for value in (np.nan, np.inf, -np.inf):
        rows = {n: a | {"numeric": np.full_like(a["numeric"], value)} for n, a in rows_of().items()}
        assert all(v.isfinite().all() for v in scores(model, vectors, rows).values())


def test_history_and_user_matter():
    """Emptying the history, the numbers or the user changes the scores: no input is left out."""
    model, vectors = build(small_model(), make_catalogues())
    rows = rows_of()
    before = scores(model, vectors, rows)
    for column, value in (("history", -1), ("numeric", 0.0), ("user", 0), ("categorical", 0)):
        changed = {n: a | {column: np.full_like(a[column], value)} for n, a in rows.items()}
        after = scores(model, vectors, changed)
        assert not torch.allclose(before["shop"], after["shop"], atol=1e-3), column


def test_items_unknown_to_training_have_no_id():
    """Scores of an item that training never saw do not depend on its row's id embedding."""
    model, vectors = build(small_model(), make_catalogues())
    unknown = np.flatnonzero(~make_catalogues()["shop"].known)
    assert len(unknown) > 0
    before = scores(model, vectors, rows_of())
    with torch.no_grad():
        table = model.inputs["shop"].item_ids.weight
        table[1 + unknown] += torch.randn(len(unknown), table.shape[1])
    assert_same_scores(scores(model, vectors, rows_of()), before)


@pytest.mark.parametrize("facts", [FACTS, EVERY_KIND], ids=["two kinds", "every kind"])
def test_a_new_model_predicts_what_training_labels_tell(facts):
    """Before the first step it says the base rate, the mean, or the mean of the logarithms."""
    options = small_model()
    model = Recommender(options, facts, make_catalogues(), TextEncoder(options.encoder))
    vectors = ItemVectors(model.encoder, make_catalogues(), CPU)
    rows = {name: make_rows(np.random.default_rng(0), own, 20) for name, own in facts.items()}
    for name, logits in scores(model, vectors, rows).items():
        wanted = [facts[name].base_prediction(task) for task in facts[name].tasks]
        found = predictions(facts[name], logits)
        torch.testing.assert_close(found, torch.tensor([wanted]).expand_as(found))


def test_predictions_are_in_the_labels_units():
    """Predictions are probabilities, and regression values in units of the label."""
    found = predictions(VIDEO, torch.tensor([[0.0, 2.0], [1.0, -1.0]]))
    wanted = [[0.5, 3.5 + 2 * 1.1], [1 / (1 + np.exp(-1)), 3.5 - 1.1]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 17])
def test_samples_refer_to_distinct_items(num_rows):
    """`items` are distinct; candidates and histories, looked up in them, are the rows' own."""
    arrays = rows_of(num_rows)["shop"]
    samples = Samples.of(arrays)
    assert len(samples.items.unique()) == len(samples.items)
    assert (samples.items >= 0).all()
    np.testing.assert_array_equal(samples.items[samples.candidate], arrays["item"])
    found = np.where(samples.history >= 0, samples.items[samples.history.clamp(min=0)], -1)
    np.testing.assert_array_equal(found, arrays["history"])


@pytest.mark.parametrize("missing", ["none", "some", "all"])
def test_samples_with_and_without_histories(missing):
    """Distinct items are found where every, some and no history place is empty."""
    arrays = rows_of()["shop"]
    full = {"none": np.zeros_like, "some": lambda x: x, "all": lambda x: np.full_like(x, -1)}
    history = full[missing](arrays["history"])
    samples = Samples.of(arrays | {"history": history})
    used = set(arrays["item"]) | set(history[history >= 0].tolist())
    assert samples.items.tolist() == sorted(used)


def test_ids_are_dropped_in_training_only():
    """Dropped ids become 0 and nothing else, at about the asked share, in training only."""
    torch.manual_seed(0)
    ids = torch.arange(1, 10_001)
    found = drop_ids(ids, 0.3, training=True)
    assert (found[found != 0] == ids[found != 0]).all()
    assert (found == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(drop_ids(ids, 0.3, training=False), ids)
    assert torch.equal(drop_ids(ids, 0.0, training=True), ids)


def test_scenarios_share_users_by_name():
    """Scenarios of one user space share user embeddings; others have their own."""
    model, _ = build(small_model(), make_catalogues())
    assert list(model.users) == ["people"]
    facts = FACTS | {"video": replace(VIDEO, user_space="video", num_users=3)}
    apart, _ = build(small_model(), make_catalogues(), facts)
    assert {n: len(t.weight) for n, t in apart.users.items()} == {"people": 12, "video": 3}


def test_attention_equals_torchs():
    """The history's attention is torch's scaled dot product attention over the real items."""
    torch.manual_seed(0)
    module = HistoryAttention(8, 2)
    candidate, items, places = torch.randn(5, 8), torch.randn(7, 8), torch.randint(0, 7, (5, 4))
    history = items[places]
    mask = torch.arange(4) < torch.tensor([4, 1, 2, 3, 4])[:, None]
    found = module(candidate, items, places, torch.zeros(5, 4, dtype=torch.long), mask)
    query = module.query(candidate).view(5, 2, 1, 4)
    key, value = (m(history).view(5, 4, 2, 4).transpose(1, 2) for m in (module.key, module.value))
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
    torch.testing.assert_close(found, wanted.reshape(5, 8))


def test_what_stands_behind_the_padding_does_not_matter():
    """Items and ages at empty history places change neither attention nor similarities."""
    torch.manual_seed(0)
    module = HistoryAttention(8, 2)
    items, candidate, places = (
        torch.randn(6, 8),
        torch.tensor([5, 0, 2]),
        torch.randint(0, 6, (3, 4)),
    )
    mask = torch.arange(4) < torch.tensor([2, 0, 3])[:, None]
    ages = torch.randint(0, 20, (3, 4))
    torch.nn.init.normal_(module.age_key.weight)
    other = torch.where(mask, places, 1)
    other_ages = torch.where(mask, ages, 31)
    found = module(items[candidate], items, other, other_ages, mask)
    torch.testing.assert_close(found, module(items[candidate], items, places, ages, mask))
    assert not found[1].any()
    first, second = (cosines(items, candidate, p) for p in (places, other))
    for of in (similarity_summary, similarity_kernels):
        assert torch.equal(of(first, mask), of(second, mask))


def test_closeness_by_hand():
    """Mean, largest and latest cosine of candidate and history, and Gaussian kernels of each."""
    vectors, places = torch.randn(6, 8), torch.randint(0, 6, (3, 4))
    mask = torch.arange(4) < torch.tensor([2, 4, 3])[:, None]
    found = cosines(vectors, torch.tensor([5, 0, 2]), places)
    centres = torch.tensor([-0.2 + 0.1 * k for k in range(13)])

    def bump(x):
        return torch.exp(-((x - centres) ** 2) / (2 * 0.1**2))

    for row, candidate in enumerate([5, 0, 2]):
        history = vectors[places[row][mask[row]]]
        cosine = F.cosine_similarity(vectors[candidate][None], history)
        wanted = torch.stack([cosine.mean(), cosine.max(), cosine[0]])
        torch.testing.assert_close(similarity_summary(found, mask)[row], wanted)
        pooled = torch.stack([bump(c) for c in cosine]).mean(0)
        torch.testing.assert_close(
            similarity_kernels(found, mask)[row], torch.cat([pooled, *(bump(x) for x in wanted)])
        )


def test_no_closeness_without_history():
    """A sample without history has zeros, whatever stands at its empty places."""
    cosine, mask = torch.rand(2, 4), torch.tensor([[False] * 4, [True] + [False] * 3])
    for of in (similarity_summary, similarity_kernels):
        found = of(cosine, mask)
        assert not found[0].any()
        assert found[1].any()


# --- numeric inputs --------------------------------------------------------------------------

numbers = st.floats(-100, 100, width=32)


def inputs_of(*quantiles) -> NumericInputs:
    return NumericInputs([0.0] * len(quantiles), [1.0] * len(quantiles), quantiles, 3, 4)


def rank(quantiles, value):
    return ranks(torch.tensor([[value]]), torch.tensor([quantiles], dtype=torch.float32)).item()


@given(st.lists(numbers, min_size=2, max_size=9), st.lists(numbers, min_size=2, max_size=9))
def test_ranks_are_monotone(edges, values):
    """A larger value never has a smaller rank, equal quantiles included; all lie in [-1, 1]."""
    values = sorted([*values, *edges])
    found = ranks(torch.tensor(values)[:, None], torch.tensor([sorted(edges)]))[:, 0]
    assert (found.diff() >= -1e-6).all()
    assert found.abs().max() <= 1


@given(st.lists(st.integers(-100, 100).map(float), min_size=2, max_size=9, unique=True))
def test_quantiles_have_equally_spaced_ranks(edges):
    """The quantiles themselves have ranks from -1 to 1 in equal steps."""
    edges = sorted(edges)
    found = [rank(edges, value) for value in edges]
    np.testing.assert_allclose(found, np.linspace(-1, 1, len(edges)), atol=1e-6)


@given(numbers, st.integers(3, 9))
def test_a_constant_has_the_middle_rank(value, num_quantiles):
    """A column that was constant in training has rank 0 at that value."""
    assert rank([value] * num_quantiles, value) == 0


def test_ranks_between_and_beyond_the_quantiles():
    """Ranks are linear between quantiles and end at -1 and 1."""
    edges = [0.0, 1.0, 3.0]
    found = [rank(edges, v) for v in (-5.0, 0.5, 2.0, 2.5, 99.0)]
    np.testing.assert_allclose(found, [-1, -0.5, 0.5, 0.75, 1], atol=1e-6)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_frequent_value_has_the_middle_of_its_quantiles(first):
    """A value that fills 3 of 5 quantiles has the middle one's rank, to half a step at the ends."""
    edges = [*range(-first, 0), 0, 0, 0, *range(1, 3 - first)]
    middle = -1 + 2 * (first + 1) / 4
    assert rank(edges, 0.0) == pytest.approx(middle, abs=0 if first == 1 else 0.25)


def test_nulls_are_zero_in_both_readings():
    """NaN and infinite numbers give 0 in the standardised and in the ranked columns."""
    inputs = inputs_of([1.0, 2.0, 5.0], [-3.0, -2.0, -1.0])
    values = torch.tensor([[np.nan, -2.5], [4.0, np.inf], [-np.inf, np.nan]])
    found = inputs.encodings(values)
    assert found.isfinite().all()
    unknown = ~values.isfinite()
    assert not found[torch.cat([unknown, unknown], 1)].any()
    assert found[0, 1].item() == -2.5
    assert inputs(values).isfinite().all()
    nothing = inputs(torch.full((1, 2), np.nan))
    torch.testing.assert_close(nothing[0], inputs.plain.bias.detach())


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5), st.integers(1, 9))
def test_bins_interpolate_between_knots(some_ranks, num_bins):
    """A rank has at most two weights of knots; they sum to 1, and their mean knot is the rank."""
    inputs = NumericInputs([0.0], [1.0], [[0.0, 1.0]], 3, num_bins)
    piecewise_linear = inputs.piecewise_linear(
        torch.tensor(some_ranks)[:, None], torch.ones(len(some_ranks), 1, dtype=torch.bool)
    )
    assert ((piecewise_linear > 0).sum(1) <= 2).all()
    torch.testing.assert_close(piecewise_linear.sum(1), torch.ones(len(some_ranks)))
    knots = torch.linspace(-1, 1, num_bins + 1)
    torch.testing.assert_close(
        piecewise_linear @ knots, torch.tensor(some_ranks), atol=1e-5, rtol=0
    )


def test_bins_learn_a_step_that_a_line_cannot():
    """A threshold in the middle of a column: fitted far better by bins than by the plain readings.

    Least squares: a line leaves a quarter of the variance of the step, bins less than a tenth.
    """
    values = torch.linspace(0, 1, 401)[:, None]
    wanted = (values > 0.5).float()
    inputs = NumericInputs([0.5], [0.3], [torch.linspace(0, 1, 33).tolist()], 1, 8)
    plain = inputs.encodings(values)
    piecewise_linear = inputs.piecewise_linear(plain[:, 1:], values.isfinite())

    def left(columns):
        columns = torch.cat([columns, torch.ones_like(values)], 1).double()
        fitted = columns @ torch.linalg.lstsq(columns, wanted.double(), driver="gelsd").solution
        return ((fitted - wanted) ** 2).mean() / wanted.var()

    assert left(plain) == pytest.approx(0.25, abs=0.02)
    assert left(piecewise_linear) < 0.1


def test_standardised_numbers_are_clipped():
    """The standardised column is (value - mean) / std, cut at 4 deviations."""
    inputs = NumericInputs([1.0], [2.0], [[-1e9, 1e9]], 1)
    found = inputs.encodings(torch.tensor([[2.0], [1e6], [-1e6]]))[:, 0]
    assert found.tolist() == [0.5, 4.0, -4.0]


def test_beyond_the_range_of_training_lies_its_end():
    """A value beyond the first or last quantile reads as that quantile in all readings."""
    inputs = inputs_of([-2.0, 0.0, 3.0])
    values = torch.tensor([[-50.0], [-2.0], [3.0], [77.0]])
    found = inputs(values)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[3], found[2])
    assert not torch.allclose(found[1], found[2])


def test_ages_beyond_a_month_are_one():
    """How long an item has been known changes its score up to 30 days, and no longer."""
    day = 86_400
    names = ["item.log_seconds_since_first", *SHOP.numeric_names[1:]]
    quantiles = [np.linspace(0, 20, 5).tolist(), *SHOP.numeric_quantiles[1:]]
    facts = replace(SHOP, numeric_names=names, numeric_quantiles=quantiles)
    model, vectors = build(small_model(), make_catalogues(), {"shop": facts, "video": VIDEO})
    rows = {name: take(arrays, slice(0, 3)) for name, arrays in rows_of().items()}
    rows["shop"] = {k: np.repeat(v[:1], 3, 0) for k, v in rows["shop"].items()}
    rows["shop"]["numeric"][:, 0] = np.log1p(np.array([9.0, 30.0, 900.0]) * day)
    young, month, old = scores(model, vectors, rows)["shop"]
    torch.testing.assert_close(month, old)
    assert not torch.allclose(young, month)


def test_the_item_order_of_a_head_is_that_of_the_labels():
    """Moving one task's head moves that task's column of the scores and no other."""
    model, vectors = build(small_model(), make_catalogues())
    before = scores(model, vectors, rows_of())
    for name, facts in (("shop", SHOP), ("video", VIDEO)):
        for i, task in enumerate(facts.tasks):
            with torch.no_grad():
                model.heads[name][task].out.bias += 1
            after = scores(model, vectors, rows_of())
            moved = torch.zeros_like(before[name])
            moved[:, i] = 1
            torch.testing.assert_close(after[name] - before[name], moved, rtol=1e-5, atol=1e-5)
            before = after
