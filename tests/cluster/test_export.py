"""A run exported: files that others read, near the trained model, whole or not at all."""

import hashlib
import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data import storage
from mtrec_ray.data.end_states import items_at_end, user_parts, users_at_end
from mtrec_ray.project.base import ProjectError
from mtrec_ray.stages.export import FORMATS, run_export
from mtrec_ray.stages.exporting.encoder import EncoderFiles
from mtrec_ray.stages.list_inputs import layout_of
from mtrec_ray.stages.ranker import Ranker
from mtrec_ray.stages.trained_model import TrainedModel, ensure_vectors, joint_model
from tests.cluster.runs import Trained, changed, say_nothing

LIGHT = ("vectors", "user", "huggingface")  # without the encoder as ONNX, which takes long

pytestmark = pytest.mark.cluster


def copy_of(trained: Trained, storage_path: Path) -> Trained:
    """The run in a storage of its own."""
    shutil.copytree(trained.folder, storage_path / trained.project.run.name)
    return Trained(trained.project, storage_path, trained.summary)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Trained:
    """A run with an export of what is light."""
    own = copy_of(trained, tmp_path_factory.mktemp("exported"))
    run_export(own.project, str(own.storage), say_nothing, formats=LIGHT)
    return own


def joint(run: Trained) -> TrainedModel:
    """The run's joint model."""
    return joint_model(run.project, run.prepared.folder, str(run.folder / "joint" / "best"))


def manifest_of(run: Trained) -> dict:
    return json.loads((run.folder / "export" / "manifest.json").read_text())


def test_every_file_is_in_the_manifest(exported):
    """The manifest names each file with its size and SHA-256, and there is no other file."""
    folder = exported.folder / "export"
    manifest = manifest_of(exported)
    named = {"manifest.json": None, "README.md": manifest["card"]}
    for place, record in manifest["parts"].items():
        named[f"{place}/part.json"] = None
        named |= {f"{place}/{name}": file for name, file in record["files"].items()}
    assert set(named) == {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
    }
    for name, file in named.items():
        data = (folder / name).read_bytes()
        if file is not None:
            assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert {place.split("/")[-1] for place in manifest["parts"]} == set(LIGHT)


def test_vectors_and_user_side_find_what_the_model_finds(exported):
    """The exported index, asked with vectors that ONNX makes of histories, finds the model's best.

    Histories are put together from the exported table of items alone.
    """
    run = exported.folder / "export" / "scenarios" / "shop"
    items = pq.read_table(run / "vectors" / "items.parquet")
    vectors = np.stack(items.column("vector").to_numpy())
    states = vectors * items.column("length").to_numpy()[:, None]
    model = joint(exported)
    layout = layout_of(model, "shop")
    users = users_at_end(layout, user_parts(layout.prepared, "shop")[0])
    known = users.history >= 0
    inputs = {
        "history": states[users.history.clip(0)].astype(np.float32),
        "known": known,
        "ages": users.ages,
    }
    (found,) = onnxruntime.InferenceSession(run / "user" / "user.onnx").run(None, inputs)
    ranker = Ranker(model, "shop", ensure_vectors(model), items_at_end(layout))
    scores = ranker.retrieval_scores(users)["retrieval"]
    np.testing.assert_allclose(found, scores.users, atol=1e-5)
    assert known.any(1).sum() > 10
    best, places = faiss.read_index(str(run / "vectors" / "index.faiss")).search(found, 5)
    every = scores.users @ ranker.item_vectors.T
    np.testing.assert_allclose(best, -np.sort(-every, 1)[:, :5], atol=1e-5)
    assert items.column("id").to_pylist() == [str(i) for i in ranker.items.ids]
    np.testing.assert_allclose(np.take_along_axis(every, places, 1), best, atol=1e-5)


def test_the_card_says_what_there_is(exported):
    """Without an evaluation the card has no metrics, and says so; it names data and split."""
    card = (exported.folder / "export" / "README.md").read_text()
    assert "There is no evaluation of these models yet" in card
    assert "95 %" not in card
    assert "by time, valid from 2025-03-12" in card
    assert "by fractions of each user's rows, 0.7, 0.1, 0.2" in card
    for place in manifest_of(exported)["parts"]:
        assert f"`{place}`" in card


def test_a_finished_export_is_kept(exported, monkeypatch):
    """What is there is not written again, and a further format joins it in the manifest."""
    before = manifest_of(exported)["parts"]
    monkeypatch.setattr("mtrec_ray.stages.exporting.parts.store_folder", None)
    lines: list[str] = []
    found = run_export(exported.project, str(exported.storage), lines.append, formats=["user"])
    assert lines == ["export: already done"]
    assert len(found["parts"]) == 2
    assert manifest_of(exported)["parts"] == before


def test_an_interrupted_export_goes_on(trained, tmp_path, monkeypatch):
    """A part that was being stored when the job ended is written anew; the others are kept."""
    own, written = copy_of(trained, tmp_path), []
    new_file = storage.new_file

    def ends(path):
        if "video/vectors.part/vectors.npy" in path:
            raise KeyboardInterrupt
        return new_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "new_file", ends)
        with pytest.raises(KeyboardInterrupt):
            run_export(own.project, str(tmp_path), say_nothing, formats=["vectors"])
    folder = own.folder / "export"
    assert not (folder / "manifest.json").exists()
    assert (folder / "scenarios/video/vectors.part").exists()
    assert not (folder / "scenarios/video/vectors").exists()
    run_export(own.project, str(tmp_path), written.append, formats=["vectors"])
    assert [line.split(":")[0] for line in written[1:]] == ["scenarios/video/vectors"]
    assert set(manifest_of(own)["parts"]) == {f"scenarios/{n}/vectors" for n in ("shop", "video")}
    assert not list(folder.rglob("*.part"))


def test_parts_of_another_model_are_removed(trained, tmp_path):
    """What was exported of other weights is neither kept nor in the manifest."""
    own = copy_of(trained, tmp_path)
    run_export(own.project, str(tmp_path), say_nothing, ["shop"], ["vectors"])
    record = own.folder / "export/scenarios/shop/vectors/part.json"
    told = json.loads(record.read_text())
    told["made_from"]["model"] = "another"
    record.write_text(json.dumps(told))
    run_export(own.project, str(tmp_path), say_nothing, ["video"], ["vectors"])
    assert set(manifest_of(own)["parts"]) == {"scenarios/video/vectors"}
    assert not record.exists()


@pytest.mark.long
def test_the_trained_encoder_as_onnx(trained, tmp_path):
    """A real encoder as ONNX makes the vectors of the run's own texts to 1e-4."""
    told = EncoderFiles(joint(trained)).write_onnx(tmp_path)
    assert told["parity"]["rows"] == 80
    assert told["parity"]["largest_difference"] < 1e-4


@pytest.mark.parametrize(
    ("fields", "names", "formats", "line"),
    [
        ({}, ["shops"], [], "--scenario: found 'shops'; allowed: shop, video"),
        ({}, [], ["onxx"], f"--format: found 'onxx'; allowed: {', '.join(FORMATS)}"),
        ({"layout": "pair"}, [], [], "model.layout: found pair; allowed for an export: vectors"),
    ],
)
def test_a_mistake_is_one_line(trained, tmp_path, fields, names, formats, line):
    """An unknown scenario or format, and a model that reads pairs, are refused."""
    project = changed(trained.project, model=fields) if fields else trained.project
    with pytest.raises(ProjectError) as error:
        run_export(project, str(trained.storage), say_nothing, names, formats)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(line)
    assert not (trained.folder / "export").exists()


def test_a_package_that_is_missing_is_one_line(trained, monkeypatch):
    """Without a format's package the format is refused, with how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else 1)
    with pytest.raises(ProjectError) as error:
        run_export(trained.project, str(trained.storage), say_nothing, (), ["openvino-int8"])
    (line,) = error.value.problems
    assert line.startswith("--format: found openvino-int8, for which openvino is not installed;")
    assert line.endswith("pip install 'mtrec-ray[export]'")
