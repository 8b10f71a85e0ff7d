"""The network by itself: the served predictions, from representations and columns alone."""

import numpy as np
import onnxruntime
import pytest
import torch

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.data.snapshot import rows_of_pairs
from mtrec_ray.model.samples import Samples
from mtrec_ray.stages.exporting.onnx_file import export_onnx, twice_at_least
from mtrec_ray.stages.exporting.ranking_part import (
    RankingPart,
    inputs_of_pairs,
    ranking_problem,
    sizes_of,
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
