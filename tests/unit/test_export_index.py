"""The index of an export: exact for a small catalogue, and of known recall for a large one."""

import faiss
import numpy as np

from mtrec_ray.stages.exporting import scenario
from mtrec_ray.stages.exporting.scenario import unit, write_index

VECTORS = unit(np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32))


def test_a_small_catalogue_is_searched_whole(tmp_path):
    """Every item is its own nearest, and the recall is 1."""
    assert write_index(VECTORS, tmp_path / "index.faiss") == 1
    found = faiss.read_index(str(tmp_path / "index.faiss")).search(VECTORS, 1)[1]
    assert found[:, 0].tolist() == list(range(2000))


def test_a_large_catalogue_has_lists(tmp_path, monkeypatch):
    """A few lists are searched, as the file says; the recall that is told is that of the file."""
    monkeypatch.setattr(scenario, "EXACT_UP_TO", 100)
    monkeypatch.setattr(scenario, "PROBES", 2)
    recall = write_index(VECTORS, tmp_path / "index.faiss")
    index = faiss.read_index(str(tmp_path / "index.faiss"))
    assert index.nlist == 178
    assert index.nprobe == 11
    queries = VECTORS[scenario.spread(2000)]
    best = np.sort(queries @ VECTORS.T, 1)[:, -10:]
    wanted = (index.search(queries, 10)[0] >= best[:, :1] - 1e-5).mean()
    assert 0.3 < recall < 1
    assert abs(recall - wanted) < 1e-6
