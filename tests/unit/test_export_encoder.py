"""The encoder in files of other libraries: the trained model's vectors."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mtrec_ray.model.encoder import pool
from mtrec_ray.stages.exporting.encoder import EncoderFiles
from mtrec_ray.stages.exporting.parity import Parity
from mtrec_ray.stages.trained_model import TrainedModel, joint_model
from mtrec_ray.training import checkpoint
from tests.builders import (
    build,
    make_catalogues,
    small_model,
    two_scenario_project,
    write_prepared,
)

CATALOGUES = make_catalogues()


def trained_model(folder: Path, trainable: str, **encoder: object) -> TrainedModel:
    """A stirred model of the small world, stored as training stores it."""
    options = small_model(trainable, encoder=encoder)
    project = two_scenario_project().model_copy(update={"model": options})
    write_prepared(folder / "prepared", CATALOGUES, {"shop": {}, "video": {}})
    model, _ = build(options, CATALOGUES)
    checkpoint.save_model(folder / "best", model, {})
    return joint_model(project, str(folder / "prepared"), str(folder / "best"))


@pytest.mark.parametrize(
    ("trainable", "pooling"),
    [("none", "mean"), ("all", "cls"), ("top_k", "last"), ("lora", "mean")],
)
def test_a_folder_that_transformers_loads(tmp_path, trainable, pooling):
    """The folder's encoder makes the trained vectors of texts, adapters included, to 1e-5.

    For whatever part of the encoder learned, and each pooling. The pretrained one makes others.
    """
    trained = trained_model(tmp_path, trainable, pooling=pooling)
    files = EncoderFiles(trained)
    told = files.write_huggingface(tmp_path / "encoder")
    assert told["parity"]["largest_difference"] < 1e-5
    assert told["parity"]["smallest_cosine"] > 1 - 1e-6
    model, _ = build(trained.project.model, CATALOGUES)
    tokens = torch.randint(5, 97, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    loaded = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    with torch.no_grad():
        states = loaded(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        wanted = model.encoder.eval()(tokens, mask)
    torch.testing.assert_close(pool(states, mask, pooling), wanted, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def with_lora(tmp_path_factory):
    """The files of an encoder with adapters."""
    return EncoderFiles(trained_model(tmp_path_factory.mktemp("lora"), "lora"))


def test_onnx(with_lora, tmp_path):
    """ONNX in fp32 makes the trained vectors to 1e-4, of texts of any number and length."""
    told = with_lora.write_onnx(tmp_path)
    assert told["parity"]["largest_difference"] < 1e-4
    assert told["parity"]["rows"] == 60


@pytest.mark.parametrize("kind", ["onnx_int8", "openvino_int8"])
def test_int8_is_near_and_told(with_lora, tmp_path, kind):
    """Vectors in int8 are near the trained ones, but not the same, and the record says how near."""
    told = getattr(with_lora, f"write_{kind}")(tmp_path)["parity"]
    assert 1e-4 < told["largest_difference"] < 0.2
    assert 0.99 < told["smallest_cosine"] < 1


def test_parity_sees_one_wrong_number():
    """One number that is off is the largest difference, and lowers the smallest cosine."""
    wanted = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).numpy()
    found = wanted.copy()
    assert Parity.of(found, wanted).largest_difference == 0
    found[3, 2] += 0.25
    parity = Parity.of(found, wanted)
    assert abs(parity.largest_difference - 0.25) < 1e-6
    assert parity.smallest_cosine < 0.999
