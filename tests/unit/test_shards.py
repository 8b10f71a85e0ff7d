"""Prepared rows on disk: any range of rows is read as it is, and ranks share all rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.data.order import rank_range
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.shards import LISTS, SCALARS, read_rows
from tests.builders import FACTS, make_catalogues, make_rows, take, write_prepared

SIZES = [3, 1, 7, 2]
TOTAL = sum(SIZES)
ROWS = make_rows(np.random.default_rng(0), FACTS["shop"], TOTAL)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The rows in four shards."""
    cuts = np.cumsum([0, *SIZES])
    parts = [take(ROWS, slice(a, a + n)) for a, n in zip(cuts, SIZES, strict=False)]
    shards = {name: {"train": parts if name == "shop" else []} for name in FACTS}
    return write_prepared(tmp_path_factory.mktemp("prepared"), make_catalogues(), shards)


@pytest.mark.parametrize("batch_rows", [1, 2, 5, 100])
def test_every_range_of_rows_is_read(prepared, batch_rows):
    """Rows start..stop are those of the shards one after another, whatever the batch size."""
    paths = prepared.shard_paths("shop", "train")
    for start in range(TOTAL):
        for stop in range(start + 1, TOTAL + 1):
            batches = list(read_rows(paths, batch_rows, start, stop))
            assert all(0 < len(b["row"]) <= batch_rows for b in batches)
            found = np.concatenate([b["row"] for b in batches])
            assert found.tolist() == list(range(start, stop))


def test_columns_are_read_as_written(prepared):
    """Every column of a row comes back with its values, nulls included."""
    (path, *_) = prepared.shard_paths("shop", "train")
    (found,) = read_rows([path], 100, 0, 100)
    for name in (*SCALARS, *LISTS):
        np.testing.assert_array_equal(found[name], ROWS[name][:3], err_msg=name)


def test_no_rows_are_read_from_no_shards(prepared):
    """A split without shards has no rows."""
    assert prepared.scenarios["video"].num_rows("train") == 0
    assert not list(read_rows(prepared.shard_paths("video", "train"), 10, 0, 5))


def test_catalogue_is_read_as_written(prepared):
    """A catalogue's arrays come back as they were."""
    for name, wanted in make_catalogues().items():
        found = prepared.catalogue(name)
        for field in ("tokens", "offsets", "categorical", "numeric", "published", "known"):
            np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field))


def test_unfinished_data_is_refused(tmp_path):
    """A folder without a manifest is an error that names it and the job to run."""
    with pytest.raises(ValueError, match=f"found none in {tmp_path}; allowed: run the prepare job"):
        load_prepared(str(tmp_path))


@given(st.integers(0, 10**6), st.integers(1, 70))
def test_ranks_share_all_rows(num_rows, size):
    """The ranks' ranges follow each other over all rows and differ by one row at most."""
    ranges = [rank_range(num_rows, rank, size) for rank in range(size)]
    assert [a for a, _ in ranges] + [num_rows] == [0] + [b for _, b in ranges]
    lengths = [b - a for a, b in ranges]
    assert max(lengths) - min(lengths) <= 1
