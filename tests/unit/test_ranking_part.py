"""The network by itself: the served predictions, from representations and columns alone."""

import numpy as np
import onnxruntime
import pytest
import torch

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.data.snapshot import rows_of_pairs
from mtrec_ray.model.recommender import predictions
from mtrec_ray.model.samples import Samples
from mtrec_ray.stages.exporting.onnx_file import export_onnx, twice_at_least
from mtrec_ray.stages.exporting.ranking_part import (
    RankingPart,
    inputs_of_pairs,
    ranking_problem,
    represented_elsewhere,
    sizes_of,
)
from tests.builders import (
    FACTS,
    NUM_ITEMS,
    build,
    make_catalogues,
    make_rows,
    make_timelines,
    small_model,
)
from tests.unit.test_explain import World


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A served model with outcomes, user ids and statistics, and a user."""
    return World(tmp_path_factory.mktemp("ranked"), "none")


def pairs_of(world, items):
    """The inputs of the network for the user and some items, and the served predictions."""
    pairs = np.zeros(len(items), int), np.array(items)
    ranker = world.ranker
    arrays = rows_of_pairs(ranker.layout, world.user, ranker.items, *pairs)
    samples = Samples.of(arrays | {"labels": np.zeros((len(items), 2), np.float32)})
    inputs = inputs_of_pairs(ranker.model, "shop", samples, ranker.text)
    return inputs, ranker.predictions(world.user, Candidates(*pairs, {}, 1))


@pytest.mark.parametrize("head", ["towers", "general", "from_general"])
@torch.no_grad()
def test_predictions_by_itself(world, head):
    """From items' representations, texts and columns come the served predictions."""
    model = world.ranker.model
    model.use_general_head = head == "general"
    model.starts_from_general = head == "from_general"
    try:
        inputs, wanted = pairs_of(world, range(12))
        found = RankingPart(model, "shop").eval()(**inputs)
    finally:
        model.use_general_head = model.starts_from_general = False
    assert wanted.std(0).max() > 1e-3
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_one_pair_is_no_fixed_size():
    """An example of one pair is doubled where any number is meant: torch takes 1 as fixed."""
    one = torch.ones(1, 3)
    assert twice_at_least(one, {0: None}).shape == (2, 3)
    assert twice_at_least(one, {1: None}).shape == (1, 3)


def test_predictions_as_onnx(world, tmp_path):
    """As ONNX it makes the served predictions of any number of pairs."""
    model = world.ranker.model
    assert ranking_problem(model, "shop") is None
    inputs, _ = pairs_of(world, range(5))
    part = RankingPart(model, "shop").eval()
    export_onnx(part, inputs, tmp_path / "ranking.onnx", "predictions", sizes_of(inputs))
    inputs, wanted = pairs_of(world, range(12))
    session = onnxruntime.InferenceSession(tmp_path / "ranking.onnx")
    (found,) = session.run(None, {n: v.numpy() for n, v in inputs.items()})
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.fixture(scope="module")
def people():
    """A model of two scenarios that see each other, and the texts of shop's items."""
    model, vectors = build(small_model("none"), make_catalogues(), timelines=make_timelines())
    vectors.refresh()
    start = vectors.bases["shop"]
    return model.eval(), vectors.cache[start : start + NUM_ITEMS].detach()


def rows_elsewhere(people, num, seed=0):
    """The inputs of the network for rows of people who took items elsewhere, and its predictions.

    What a row says of its own event is left out.
    """
    model, text = people
    rows = make_rows(np.random.default_rng(seed), FACTS["shop"], num)
    samples = Samples.of(rows | {"categorical": np.zeros_like(rows["categorical"])})
    with torch.no_grad():
        logits = model.score("shop", samples, text[samples.items])
        inputs = inputs_of_pairs(model, "shop", samples, text)
    return inputs, predictions(FACTS["shop"], logits).numpy()


def test_what_was_taken_elsewhere_is_read(people):
    """Items of another scenario and their texts make the predictions of the model itself."""
    inputs, wanted = rows_elsewhere(people, 40)
    part = RankingPart(people[0], "shop").eval()
    known = inputs["elsewhere_known"]
    assert known.any(1).any()
    assert not known.all()
    with torch.no_grad():
        found = part(**inputs)
        blind = part(**{**inputs, "elsewhere_known": torch.zeros_like(known)})
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert abs(blind - found)[known.any(1)].max() > 1e-3


def test_what_was_taken_elsewhere_as_onnx(people, tmp_path):
    """Of any number of pairs, and of items that they took."""
    assert ranking_problem(people[0], "shop") is None
    inputs, _ = rows_elsewhere(people, 5)
    part = RankingPart(people[0], "shop").eval()
    export_onnx(part, inputs, tmp_path / "ranking.onnx", "predictions", sizes_of(inputs))
    inputs, wanted = rows_elsewhere(people, 33, seed=1)
    more = {n: twice_long(v) if n.startswith("elsewhere") else v for n, v in inputs.items()}
    session = onnxruntime.InferenceSession(tmp_path / "ranking.onnx")
    for own in (inputs, more):
        (found,) = session.run(None, {n: v.numpy() for n, v in own.items()})
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def twice_long(values):
    """Values [N, E, ..] with as many places that are empty after them."""
    return torch.cat([values, torch.zeros_like(values)], 1)


def test_the_table_has_what_the_network_reads(people):
    """The items of both scenarios, by which the inputs of a user are put together."""
    vectors, texts = represented_elsewhere(people[0], "shop")
    inputs, _ = rows_elsewhere(people, 20)
    side = people[0].elsewhere_side("shop")
    rows = make_rows(np.random.default_rng(0), FACTS["shop"], 20)
    items = side.timeline.taken(rows["person"], rows["time"]).items
    known = items >= 0
    assert len(vectors) == len(texts) == 2 * NUM_ITEMS
    np.testing.assert_allclose(inputs["elsewhere"][known], vectors[items[known]], atol=1e-6)
    np.testing.assert_array_equal(inputs["elsewhere_text"][known], texts[items[known]])
    np.testing.assert_array_equal(inputs["candidate_elsewhere_text"], texts[rows["item"]])
