"""Which rows one task holds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.data.preparing.passes import FeaturePasses, Partitions

NUM_PARTITIONS, NUM_ITEMS = 8, 4000


def test_items_without_a_category_are_not_in_one_partition(monkeypatch):
    """Rows of one value lie together; those without a value are spread as their items are."""
    code = np.where(np.arange(NUM_ITEMS) % 10 == 0, np.arange(NUM_ITEMS) % 3, -1)
    spec = SimpleNamespace(categories={"brand": code})
    monkeypatch.setattr(FeaturePasses, "spec", lambda self, name: spec)
    nothing: Any = None  # handles of Ray, which a key does not need
    partitions = Partitions({"shop": NUM_PARTITIONS})
    passes = FeaturePasses(nothing, nothing, partitions, 1, "")
    table = pa.table({"item": np.arange(NUM_ITEMS, dtype=np.int32)})
    part = partitions.assign("shop", table, passes.category_key(0)).column("part").to_numpy()
    for value in range(3):
        assert len(np.unique(part[code == value])) == 1
    rows = np.bincount(part[code < 0], minlength=NUM_PARTITIONS)
    assert rows.max() < 2 * rows.mean()
    for number in (1, 2):  # this scenario's last pass, and one that only others have
        last = partitions.assign("shop", table, passes.category_key(number)).column("part")
        assert np.bincount(last.to_numpy()).tolist() == [NUM_ITEMS // NUM_PARTITIONS] * 8
