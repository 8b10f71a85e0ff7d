"""Every distinct text is encoded once, in chunks; frozen layers and LoRA's start change nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    DistilBertConfig,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    RobertaConfig,
)

from mtrec_ray.learning.vectors import ItemVectors
from mtrec_ray.model.encoder import TextEncoder, pool, tiny_backbone
from mtrec_ray.model.text import Texts, chunks
from mtrec_ray.schema import Encoder
from tests.builders import CPU, FACTS, make_catalogues, stir

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


def some_items(seed=0) -> dict[str, torch.Tensor]:
    """Distinct items of both catalogues, in no order."""
    rng = np.random.default_rng(seed)
    sizes = {"shop": 17, "video": 9}
    return {n: torch.from_numpy(rng.permutation(FACTS[n].num_items)[:k]) for n, k in sizes.items()}


def encode_alone(vectors: ItemVectors, name: str, item: int) -> torch.Tensor:
    """The vector of one item, its tokens in a batch of their own without padding."""
    place = vectors.bases[name] + item
    start, stop = vectors.texts.offsets[place : place + 2]
    tokens = vectors.texts.tokens[start:stop].unsqueeze(0)
    return vectors.encoder(tokens, torch.ones_like(tokens, dtype=torch.bool))[0]


def assert_close(found, wanted, **kwargs):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, **kwargs)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.lists(st.integers(0, 29), min_size=1, max_size=40),
    st.integers(1, 200),
)
def test_chunks_cover_every_asked_text_once(lengths, asked, budget):
    """Each asked place is in one chunk, within the token budget, with at most a quarter padded."""
    texts, rows = texts_of(lengths), np.array([a % len(lengths) for a in asked])
    found = list(chunks(texts, rows, budget))
    places = np.concatenate([c.places for c in found])
    assert sorted(places) == list(range(len(rows)))
    for chunk in found:
        own = texts.lengths[rows[chunk.places]]
        assert chunk.mask.shape == (len(own), own.max())
        assert chunk.mask.numel() <= max(budget, own.max())
        assert own.min() >= 0.75 * own.max()
        for place, index, mask in zip(chunk.places, chunk.index, chunk.mask, strict=True):
            start, stop = texts.offsets[rows[place] : rows[place] + 2]
            assert index[mask].tolist() == list(range(start, stop))
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_an_empty_text_does_not_stop_the_run():
    """Texts without a token (no special tokens, an empty title) are in a chunk like others."""
    found = list(chunks(texts_of([0, 3, 0]), np.arange(3), 8))
    assert sorted(np.concatenate([c.places for c in found])) == [0, 1, 2]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("trainable", MODES)
def test_encoding_distinct_texts_equals_encoding_each(trainable, pooling):
    """A text's vector is the same in a padded chunk with others as on its own."""
    vectors, items = vectors_of(trainable, pooling=pooling), some_items()
    found = vectors.encode(items)
    for name, rows in items.items():
        alone = [encode_alone(vectors, name, int(item)) for item in rows]
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
    vectors.encode(items)
    lengths = vectors.texts.lengths[vectors.places(items)]
    assert sum(seen) == lengths.sum()
    assert len(seen) > 2


@pytest.mark.parametrize("trainable", ["top_k", "lora"])
def test_cached_frozen_layers_equal_recomputed_ones(trainable):
    """With the frozen layers' states cached, vectors and gradients are those without the cache."""
    fields = {"lora": {"layers": 1}}
    plain, cached = (vectors_of(trainable, **fields) for _ in range(2))
    cached.compute_frozen()
    assert cached.states is not None
    assert plain.states is None
    items = some_items()
    for vectors in (plain, cached):
        torch.cat(list(vectors.encode(items).values())).pow(3).sum().backward()
    with torch.no_grad():
        for name, found in cached.encode(items).items():
            assert_close(found, plain.encode(items)[name])
    pairs = zip(cached.encoder.parameters(), plain.encoder.parameters(), strict=True)
    trained = [(a.grad, b.grad) for a, b in pairs if a.requires_grad]
    assert all(b.any() for _, b in trained)
    for a, b in trained:
        assert_close(a, b)


@pytest.mark.parametrize("trainable", MODES)
def test_refresh_caches_what_encode_gives(trainable):
    """The cached vector of every item is the encoded one, before and after the weights move."""
    vectors, items = vectors_of(trainable), some_items()
    vectors.compute_frozen()
    for seed in (1, 2):
        vectors.refresh()
        cached, encoded = vectors.cached(items), vectors.encode(items)
        assert all(not v.requires_grad for v in cached.values())
        for name in items:
            assert_close(cached[name], encoded[name].detach())
        stir(vectors.encoder, seed)


def test_encode_renews_the_cache():
    """Items that a step encodes are renewed in the cache, the others keep their old vectors."""
    vectors, items = vectors_of("all"), some_items()
    vectors.refresh()
    assert vectors.cache is not None
    old = vectors.cache.clone()
    stir(vectors.encoder, 7)
    found = torch.cat(list(vectors.encode(items).values())).detach()
    places = vectors.places(items)
    others = np.setdiff1d(np.arange(vectors.num_items), places)
    assert torch.equal(vectors.cache[places], found)
    assert not torch.allclose(old[places], found, atol=1e-3)
    assert torch.equal(vectors.cache[others], old[others])


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
BUILDS = {
    "llama": LlamaConfig(**SIZES),
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
    with pytest.raises(ValueError, match="found 3 trainable layers; allowed: at most 2"):
        encoder_of("top_k", top_k=3)


def test_pooling_by_hand():
    """Mean takes the real tokens, CLS the first, last the last real one."""
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert pool(states, mask, "mean").squeeze(1).tolist() == [2.0, 5.0]
    assert pool(states, mask, "cls").squeeze(1).tolist() == [1.0, 2.0]
    assert pool(states, mask, "last").squeeze(1).tolist() == [3.0, 9.0]
    assert math.isfinite(pool(states, torch.zeros_like(mask), "mean").sum())
