"""Every distinct text is encoded once, in chunks; frozen layers and LoRA's start change nothing."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    ModernBertConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from mtrec_ray.model import layers
from mtrec_ray.model.chunks import PairLayout, Texts, chunks
from mtrec_ray.model.encoder import TextEncoder, pool, tiny_backbone
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.model import Encoder
from mtrec_ray.training.cached_gradients import CachedGradients
from mtrec_ray.training.item_vectors import ItemVectors
from tests.builders import CPU, FACTS, make_catalogues, make_rows, stir

MODES = ["all", "top_k", "lora", "none"]


def texts_of(lengths) -> Texts:
    """Texts whose tokens are all different: 0, 1, 2, ..."""
    return Texts(torch.arange(sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]))


def encoder_of(trainable, **fields) -> TextEncoder:
    options = {"source": "tiny", "trainable": trainable, "tokens_per_chunk": 50, **fields}
    torch.manual_seed(0)  # LoRA's first factor starts at random
    return TextEncoder(Encoder.model_validate(options))


def vectors_of(trainable, **fields) -> ItemVectors:
    """Item vectors of an encoder whose trainable part has moved off its start."""
    encoder = encoder_of(trainable, **fields)
    stir(encoder)
    return ItemVectors(encoder, make_catalogues(), CPU)


def some_items(seed=0) -> dict[str, Samples]:
    """Samples of distinct items of both catalogues, in no order, without histories."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, size in {"shop": 17, "video": 9}.items():
        rows = make_rows(rng, FACTS[name], size)
        rows["item"] = rng.permutation(FACTS[name].num_items)[:size]
        rows["history"][:] = -1
        found[name] = Samples.of(rows)
    return found


def samples_with_history(seed=0) -> dict[str, Samples]:
    """Few candidates with histories over the whole catalogues."""
    rng = np.random.default_rng(seed)
    rows = {name: make_rows(rng, facts, 4) for name, facts in FACTS.items()}
    return {name: Samples.of(arrays) for name, arrays in rows.items()}


def places_of(vectors: ItemVectors, batch: dict[str, Samples]) -> np.ndarray:
    """Places of a batch's distinct items, one scenario after another."""
    return np.concatenate([vectors.places(name, s.items) for name, s in batch.items()])


def joined(vectors: ItemVectors, batch: dict[str, Samples], *, encode: bool) -> torch.Tensor:
    """The vectors of a batch's distinct items, one scenario after another."""
    return torch.cat(list(vectors.of_batch(batch, encode=encode).values()))


def gradients(vectors: ItemVectors) -> list[torch.Tensor]:
    """The encoder's gradients, as they are."""
    found = [p.grad.clone() for p in vectors.encoder.parameters() if p.grad is not None]
    assert found
    assert any(g.any() for g in found)
    return found


def encode_alone(vectors: ItemVectors, name: str, item: int) -> torch.Tensor:
    """The vector of one item, its tokens in a batch of their own without padding."""
    place = vectors.bases[name] + item
    start, stop = vectors.texts.offsets[place : place + 2]
    tokens = vectors.texts.tokens[start:stop].unsqueeze(0)
    return vectors.encoder(tokens, torch.ones_like(tokens, dtype=torch.bool))[0]


def assert_same_gradients(found: ItemVectors, wanted: ItemVectors) -> None:
    """Equal to 1e-5 of the largest gradient."""
    pairs = list(zip(gradients(found), gradients(wanted), strict=True))
    largest = max(b.abs().max().item() for _, b in pairs)
    assert max((a - b).abs().max().item() for a, b in pairs) <= 1e-5 * largest


def assert_close(found, wanted, **kwargs):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, **kwargs)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.lists(st.integers(0, 29), min_size=1, max_size=40),
    st.integers(1, 200),
)
def test_chunks_cover_every_asked_text_once(lengths, asked, budget):
    """Each asked place is in one chunk, within the token budget, with at most a tenth padded."""
    texts, rows = texts_of(lengths), np.array([a % len(lengths) for a in asked])
    found = list(chunks(texts, rows, budget))
    places = np.concatenate([c.places for c in found])
    assert sorted(places) == list(range(len(rows)))
    for chunk in found:
        own = texts.lengths[rows[chunk.places]]
        assert chunk.mask.shape == (len(own), own.max())
        assert chunk.mask.numel() <= max(budget, own.max())
        assert own.min() >= 0.9 * own.max()
        for place, index, mask in zip(chunk.places, chunk.index, chunk.mask, strict=True):
            start, stop = texts.offsets[rows[place] : rows[place] + 2]
            assert index[mask].tolist() == list(range(start, stop))
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_padding_is_under_a_twentieth():
    """Of thousands of texts of common lengths less than 5 % of the tokens are padding."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(14), 0.5, 5000), 4, 62).astype(int).tolist()
    found = list(chunks(texts_of(lengths), np.arange(5000), 8192))
    padded = sum(c.mask.numel() for c in found)
    assert 1 - sum(lengths) / padded < 0.05


def test_an_empty_text_does_not_stop_the_run():
    """Texts without a token (no special tokens, an empty title) are in a chunk like others."""
    found = list(chunks(texts_of([0, 3, 0]), np.arange(3), 8))
    assert sorted(np.concatenate([c.places for c in found])) == [0, 1, 2]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("trainable", MODES)
def test_encoding_distinct_texts_equals_encoding_each(trainable, pooling):
    """A text's vector is the same in a padded chunk with others as on its own."""
    vectors, items = vectors_of(trainable, pooling=pooling), some_items()
    found = vectors.of_batch(items, encode=True)
    for name, samples in items.items():
        alone = [encode_alone(vectors, name, int(item)) for item in samples.items]
        assert_close(found[name], torch.stack(alone))


def test_every_distinct_text_is_encoded_once(monkeypatch):
    """The encoder is given as many tokens as the asked texts have, each text once."""
    vectors, items = vectors_of("all"), some_items()
    seen = []
    forward = vectors.encoder.forward
    monkeypatch.setattr(
        vectors.encoder,
        "forward",
        lambda x, mask: (seen.append(int(mask.sum())), forward(x, mask))[1],
    )
    vectors.of_batch(items, encode=True)
    lengths = vectors.texts.lengths[places_of(vectors, items)]
    assert sum(seen) == lengths.sum()
    assert len(seen) > 2


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=30))
def test_equal_texts_are_found(words):
    """Texts of one group have the same tokens in the same order, those of two groups have not."""
    lengths = [len(text) for text in words]
    tokens = torch.tensor([w for text in words for w in text], dtype=torch.int64)
    equal = Texts(tokens, np.concatenate([[0], np.cumsum(lengths)])).equal()
    assert len({tuple(text) for text in words}) == len(equal.first)
    for number, first in enumerate(equal.first):
        rows, sizes = equal.rows(np.array([first]))
        assert rows.tolist() == [i for i, text in enumerate(words) if text == words[first]]
        assert sizes.tolist() == [len(rows)]
        assert (equal.number[rows] == number).all()
    every, sizes = equal.rows(equal.first[::-1])
    assert sorted(every.tolist()) == list(range(len(words)))
    assert (np.repeat(equal.number[equal.first[::-1]], sizes) == equal.number[every]).all()


@pytest.mark.parametrize("trainable", ["top_k", "lora"])
def test_cached_frozen_layers_equal_recomputed_ones(trainable, tmp_path):
    """With the frozen layers' states cached, vectors and gradients are those without the cache."""
    fields = {"lora": {"layers": 1}}
    plain, cached = (vectors_of(trainable, **fields) for _ in range(2))
    cached.compute_frozen(tmp_path)
    assert cached.states is not None
    assert plain.states is None
    items = some_items()
    for vectors in (plain, cached):
        joined(vectors, items, encode=True).pow(3).sum().backward()
    with torch.no_grad():
        assert_close(joined(cached, items, encode=True), joined(plain, items, encode=True))
    pairs = zip(cached.encoder.parameters(), plain.encoder.parameters(), strict=True)
    trained = [(a.grad, b.grad) for a, b in pairs if a.requires_grad]
    assert all(b.any() for _, b in trained)
    for a, b in trained:
        assert_close(a, b)


@pytest.mark.parametrize("trainable", MODES)
def test_refresh_caches_what_encode_gives(trainable, tmp_path):
    """The cached vector of every item is the encoded one, before and after the weights move."""
    vectors, items = vectors_of(trainable), some_items()
    vectors.compute_frozen(tmp_path)
    for seed in (1, 2):
        vectors.refresh()
        cached = joined(vectors, items, encode=False)
        assert not cached.requires_grad
        assert_close(cached, joined(vectors, items, encode=True).detach())
        stir(vectors.encoder, seed)


def test_encode_renews_the_cache():
    """Items that a step encodes are renewed in the cache, the others keep their old vectors."""
    vectors, items = vectors_of("all"), some_items()
    vectors.refresh()
    assert vectors.cache is not None
    old = vectors.cache.clone()
    stir(vectors.encoder, 7)
    found = joined(vectors, items, encode=True).detach()
    places = places_of(vectors, items)
    others = np.setdiff1d(np.arange(vectors.num_items), places)
    assert torch.equal(vectors.cache[places], found)
    assert not torch.allclose(old[places], found, atol=1e-3)
    assert torch.equal(vectors.cache[others], old[others])


# --- two speeds ------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["all", "top_k", "lora"])
def test_chunks_run_again_give_the_same_gradients(trainable):
    """With `rerun` vectors and gradients are those of one pass, and every chunk is run twice."""
    found = []
    for rerun in (False, True):
        vectors = vectors_of(trainable, rerun=rerun)
        joined(vectors, some_items(), encode=True).pow(3).sum().backward()
        found.append(vectors)
    assert_same_gradients(*found)


def test_chunks_run_again_keep_no_activations():
    """With `rerun` what the forward pass keeps for the backward pass is a small part of else."""
    kept = []
    for rerun in (False, True):
        vectors, sizes = vectors_of("all", rerun=rerun), []
        pack = lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            joined(vectors, some_items(), encode=True)
        kept.append(sum(sizes))
    assert kept[1] < 0.1 * kept[0]


@pytest.mark.parametrize("trainable", ["all", "top_k", "lora"])
def test_gathered_gradients_are_those_of_the_mean_loss(trainable):
    """The encoder's gradient gathered over three batches is that of their mean loss at once."""
    batches = [samples_with_history(seed) for seed in range(3)]
    plain, gathering = vectors_of(trainable), vectors_of(trainable)
    for batch in batches:
        (joined(plain, batch, encode=True).pow(3).sum() / 3).backward()
    gathering.refresh()
    gathering.gathered = CachedGradients(gathering)
    for batch in batches:
        joined(gathering, batch, encode=False).pow(3).sum().backward()
        gathering.gathered.collect()
    assert all(p.grad is None for p in gathering.encoder.parameters())
    gathering.gathered.backward()
    assert_same_gradients(gathering, plain)
    assert not gathering.gathered.sums.any()
    assert not gathering.gathered.met.any()


def test_gathered_gradients_of_items_that_wait_are_not_lost():
    """With `gather_items` the longest gradients go first; in the end all have been taken."""
    batch = samples_with_history()
    found = []
    for limit in (None, 2):
        vectors = vectors_of("all", gather_items=limit)
        vectors.refresh()
        gathered = vectors.gathered = CachedGradients(vectors)
        joined(vectors, batch, encode=False).pow(3).sum().backward()
        gathered.collect()
        lengths, calls = gathered.sums.norm(dim=1), 0
        while gathered.met.any():
            gathered.num_steps, waiting = 1, gathered.met > 0
            gathered.backward()
            calls += 1
            taken = waiting & (gathered.met == 0)
            left = lengths[gathered.met > 0]
            assert not len(left) or lengths[taken].min() >= left.max()
        assert calls == (1 if limit is None else -(-int((lengths > 0).sum()) // limit))
        found.append(vectors)
    assert_same_gradients(*found)


@pytest.mark.long
def test_compiled_layers_give_the_same(monkeypatch):
    """With `compile` the layers that learn are compiled, and vectors and gradients are the same.

    By the tracing backend of torch.compile, which takes seconds where a C++ compiler takes minutes.
    """
    compile_module, compiled = torch.compile, []

    def trace(function, **options):
        compiled.append(options)
        return compile_module(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", trace)
    found = []
    for wanted in (False, True):
        vectors = vectors_of("lora", compile=wanted)
        joined(vectors, some_items(), encode=True).pow(3).sum().backward()
        found.append(vectors)
    assert compiled == [{"dynamic": True}]
    assert_same_gradients(*found)


def test_gathering_renews_the_cache_of_the_items_it_met():
    """After the encoder's step the items that were met have the vectors of the weights then."""
    vectors, batch = vectors_of("all"), samples_with_history()
    vectors.refresh()
    old = vectors.cache.clone()
    stir(vectors.encoder, 7)
    vectors.gathered = CachedGradients(vectors)
    joined(vectors, batch, encode=False).sum().backward()
    vectors.gathered.collect()
    vectors.gathered.backward()
    places = places_of(vectors, batch)
    others = np.setdiff1d(np.arange(vectors.num_items), places)
    assert_close(vectors.cache[places], vectors.run(places).detach())
    assert torch.equal(vectors.cache[others], old[others])


def test_another_number_of_ranks_resumes_with_the_mean():
    """One rank that resumes what two have gathered has the mean of both, as two would together."""
    vectors = vectors_of("all")
    gathered = CachedGradients(vectors)
    items = [torch.tensor([1, 4]), torch.tensor([4, 7])]
    sums = [torch.full((2, vectors.encoder.width), value) for value in (2.0, 6.0)]
    gathered.restore({"gathered_items": items, "gathered_sums": sums, "gathered_steps": 3})
    assert gathered.sums[[1, 4, 7], 0].tolist() == [1.0, 4.0, 3.0]
    assert gathered.met.nonzero().squeeze(1).tolist() == [1, 4, 7]
    assert gathered.num_steps == 3
    (again,) = gathered.state()["gathered_items"]
    assert again.tolist() == [1, 4, 7]


# --- frozen layers on disk -------------------------------------------------------------------


def test_frozen_states_are_computed_once_for_all_runs(tmp_path, monkeypatch):
    """A second run over the same items maps the file of the first; its frozen layers do not run."""
    first, second = vectors_of("top_k"), vectors_of("top_k")
    first.compute_frozen(tmp_path)
    monkeypatch.setattr(second.encoder, "frozen_states", None)
    second.compute_frozen(tmp_path)
    assert torch.equal(first.states, second.states)
    assert len(list(tmp_path.glob("*.f32"))) == 1


def test_vectors_of_a_frozen_encoder_are_computed_once_for_all_runs(tmp_path, monkeypatch):
    """A run over one of the catalogues reads what a run over both stored, and encodes nothing."""
    catalogues = make_catalogues()
    both = ItemVectors(encoder_of("none"), catalogues, CPU)
    both.compute_frozen(tmp_path)
    plain = ItemVectors(encoder_of("none"), catalogues, CPU)
    plain.refresh()
    assert_close(both.cache, plain.cache)
    last = list(catalogues)[-1]
    one = ItemVectors(encoder_of("none"), {last: catalogues[last]}, CPU)
    monkeypatch.setattr(one.encoder, "forward", None)
    one.compute_frozen(tmp_path)
    one.refresh()
    assert torch.equal(one.cache, both.cache[both.bases[last] :])
    assert len(list(tmp_path.glob("*.f32"))) == len(catalogues)


def test_runs_that_start_together_compute_once(tmp_path):
    """Of four runs at once one encodes, the others wait for its file."""
    seen = []

    def start(vectors):
        def slow(tokens, mask, forward=vectors.encoder.forward):
            seen.append(id(vectors))
            time.sleep(0.05)
            return forward(tokens, mask)

        vectors.encoder.forward = slow
        vectors.compute_frozen(tmp_path)

    runs = [vectors_of("none") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, runs))
    assert len(set(seen)) == 1
    for vectors in runs[1:]:
        assert torch.equal(vectors.cache, runs[0].cache)


def test_other_weights_or_texts_have_other_states(tmp_path):
    """Frozen weights that moved, and texts that changed, are computed anew."""
    one, moved = vectors_of("top_k"), vectors_of("top_k")
    with torch.no_grad():
        next(moved.encoder.lower.parameters()).add_(0.1)
    other = ItemVectors(encoder_of("top_k"), make_catalogues(seed=5), CPU)
    for number, vectors in enumerate((one, moved, other), 1):
        vectors.compute_frozen(tmp_path)
        assert len(list(tmp_path.glob("*.f32"))) == number


# --- pairs -----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(2, 12), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(-1, 7), min_size=4, max_size=4), min_size=1, max_size=6),
    st.integers(8, 40),
)
def test_pair_texts(lengths, rows, max_tokens):
    """A pair is prefix, history (latest first, as fits), suffix, candidate, suffix."""
    items, layout = texts_of(lengths), PairLayout((901,), (902,), max_tokens)
    rows = np.array(rows).clip(max=len(lengths) - 1)
    rows[:, 0] = rows[:, 0].clip(0)
    found = layout.texts(items, rows[:, 0], rows[:, 1:])

    def body(row):
        return list(range(items.offsets[row] + 1, items.offsets[row + 1] - 1))

    for i, (candidate, *history) in enumerate(rows):
        own = body(candidate)[: max_tokens - 3]
        before = [t for h in history if h >= 0 for t in body(h)][: max_tokens - 3 - len(own)]
        text = found.tokens[found.offsets[i] : found.offsets[i + 1]].tolist()
        assert text == [901, *before, 902, *own, 902]


def test_a_pair_reads_its_own_history_only():
    """A sample's pair vector is the same beside others as alone, and moves with its history."""
    batch = samples_with_history()
    vectors = vectors_of("all")
    vectors.pairs = PairLayout((1,), (2,), 60)
    found = vectors.of_batch(batch, encode=True)
    rng = np.random.default_rng(0)
    rows = {name: make_rows(rng, facts, 4) for name, facts in FACTS.items()}
    for name, arrays in rows.items():
        for i in range(4):
            alone = Samples.of({k: v[i : i + 1] for k, v in arrays.items()})
            assert_close(vectors.of_batch({name: alone}, encode=True)[name][0], found[name][i])
    other = rows["shop"] | {"history": np.full_like(rows["shop"]["history"], -1)}
    moved = vectors.of_batch({"shop": Samples.of(other)}, encode=True)["shop"]
    had_some = (rows["shop"]["history"] >= 0).any(1)
    assert ((moved - found["shop"]).abs().amax(1) > 1e-3).tolist() == had_some.tolist()


# --- LoRA and decoders -----------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
def test_lora_starts_at_the_frozen_encoder(layers):
    """LoRA's vectors before the first step are those of the encoder, and change once it moves."""
    lora, frozen = encoder_of("lora", lora={"layers": layers}), encoder_of("none")
    tokens, mask = random_texts()
    assert_close(lora(tokens, mask).detach(), frozen(tokens, mask))
    stir(lora)
    assert (lora(tokens, mask) - frozen(tokens, mask)).abs().max() > 1e-3


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("trainable", MODES)
def test_a_cut_encoder_is_the_encoder(trainable, top_k):
    """However the encoder is cut, its vectors at the start are those of the whole model."""
    encoder = encoder_of(trainable, top_k=top_k, lora={"layers": top_k})
    tokens, mask = random_texts()
    whole = tiny_backbone()(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    assert_close(encoder(tokens, mask), pool(whole, mask, "mean"))


SIZES = {
    "vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32, "pad_token_id": 0,
}  # fmt: skip
# Windows are shorter than the texts, and the lowest layer is of another type than the top ones.
SLIDING = {
    "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}  # fmt: skip
BUILDS = {
    "bert": BertConfig(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, **SLIDING),
    "gemma3": Gemma3TextConfig(**SIZES, **SLIDING),
    "qwen2-sliding": Qwen2Config(**SIZES, **SLIDING, use_sliding_window=True),
    "qwen3-sliding": Qwen3Config(**SIZES, **SLIDING, use_sliding_window=True),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
    "roberta": RobertaConfig(**SIZES),
    "modernbert": ModernBertConfig(
        **SIZES, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
    "distilbert": DistilBertConfig(vocab_size=97, dim=16, n_layers=3, n_heads=2, hidden_dim=32),
}


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("trainable", MODES)
@pytest.mark.parametrize("build", BUILDS)
def test_other_builds_are_cut_alike(build, trainable, pooling):
    """Decoders and encoders of other builds, cut, have the vectors of the whole model."""
    torch.manual_seed(0)
    model = AutoModel.from_config(BUILDS[build]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower():  # 1 at the start, where a norm too many would not be seen
                parameter += 0.3 * torch.randn(parameter.shape)
    tokens, mask = random_texts()
    with torch.no_grad():
        whole = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    options = {"source": build, "trainable": trainable, "pooling": pooling}
    encoder = TextEncoder(Encoder.model_validate(options), model)
    assert_close(encoder(tokens, mask).detach(), pool(whole, mask, pooling))
    assert bool(trained_sizes(encoder)) == (trainable != "none")


@pytest.mark.parametrize("build", ["gemma2", "gemma3", "qwen2-sliding", "qwen3-sliding"])
@pytest.mark.parametrize("trainable", ["top_k", "lora"])
def test_a_cut_that_changes_the_encoder_is_refused(build, trainable, monkeypatch):
    """An encoder whose two parts do not give the whole's vectors is refused when it is loaded.

    Here because the upper part counts its layers from 0: fields of the config are not cut.
    """
    monkeypatch.setattr(layers, "PER_LAYER_FIELDS", ())
    torch.manual_seed(0)
    model = AutoModel.from_config(BUILDS[build])
    options = Encoder.model_validate({"source": build, "trainable": trainable})
    line = (
        rf"model\.encoder\.trainable: found {trainable} for a {type(model).__name__}, .*: all, none"
    )
    with pytest.raises(ProjectError, match=line):
        TextEncoder(options, model)


def test_the_check_of_a_cut_leaves_the_mode_alone():
    """A model that was training, or not, still is after it has been cut and checked."""
    for training in (True, False):
        model = AutoModel.from_config(BUILDS["roberta"]).train(training)
        encoder = TextEncoder(Encoder.model_validate({"source": "roberta"}), model)
        assert {m.training for m in encoder.upper.modules()} == {training}
        assert {m.training for m in encoder.lower.modules()} == {training}


@pytest.mark.parametrize("build", BUILDS)
def test_other_builds_run_again_alike(build):
    """With LoRA on decoders and other encoders, chunks run again give the gradients of one pass."""
    found = []
    for rerun in (False, True):
        torch.manual_seed(0)
        model = AutoModel.from_config(BUILDS[build])
        options = {"source": build, "trainable": "lora", "pooling": "last", "rerun": rerun}
        encoder = TextEncoder(Encoder.model_validate(options), model)
        stir(encoder)
        vectors = ItemVectors(encoder, make_catalogues(), CPU)
        joined(vectors, some_items(), encode=True).pow(3).sum().backward()
        found.append(vectors)
    assert_same_gradients(*found)


def random_texts():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 97, (4, 9), generator=generator)
    return tokens, torch.arange(9) < torch.tensor([9, 4, 1, 7])[:, None]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"trainable": "all"}, ("embeddings.", "layer.0.", "layer.1.")),
        ({"trainable": "top_k", "top_k": 1}, ("layer.1.",)),
        ({"trainable": "top_k", "top_k": 2}, ("embeddings.", "layer.0.", "layer.1.")),
        ({"trainable": "none"}, ()),
    ],
)
def test_trainable_parameters(fields, wanted):
    """Each mode trains the weights of its layers, all of them and no others."""
    found = trained_sizes(encoder_of(**fields))
    names = tiny_backbone().named_parameters()
    assert found == sorted(p.numel() for n, p in names if any(w in n for w in wanted))


def trained_sizes(encoder: TextEncoder) -> list[int]:
    return sorted(p.numel() for p in encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize("layers", [1, 2])
def test_trainable_parameters_of_lora(layers):
    """LoRA trains two factors each for query and value of the top layers, and nothing else."""
    encoder = encoder_of("lora", lora={"layers": layers, "rank": 3})
    assert trained_sizes(encoder) == [3 * 16] * (2 * 2 * layers)
    names = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert all("lora_" in n and ("query" in n or "value" in n) for n in names)


@pytest.mark.parametrize("trainable", ["top_k", "none"])
def test_the_frozen_part_is_not_in_the_state(trainable):
    """What is frozen neither learns nor is copied into checkpoints."""
    encoder = encoder_of(trainable)
    assert not any(p.requires_grad for p in encoder.lower.parameters())
    stored = {t.data_ptr() for t in encoder.state_dict(keep_vars=True).values()}
    assert not stored & {p.data_ptr() for p in encoder.lower.parameters()}


def test_more_layers_than_there_are_is_refused():
    """More trainable layers than the encoder has is an error that names both numbers."""
    line = r"model\.encoder\.top_k: found 3; allowed: at most 2, the layers of tiny"
    with pytest.raises(ProjectError, match=line):
        encoder_of("top_k", top_k=3)


def test_pooling_by_hand():
    """Mean takes the real tokens, CLS the first, last the last real one."""
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert pool(states, mask, "mean").squeeze(1).tolist() == [2.0, 5.0]
    assert pool(states, mask, "cls").squeeze(1).tolist() == [1.0, 2.0]
    assert pool(states, mask, "last").squeeze(1).tolist() == [3.0, 9.0]
    assert math.isfinite(pool(states, torch.zeros_like(mask), "mean").sum())
