"""Which rows one task holds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.data.preparing.inputs import Fragment
from mtrec_ray.data.preparing.passes import key_partitions, read_tasks
from mtrec_ray.data.preparing.scan import Scan
from mtrec_ray.data.preparing.shuffle import cut

NUM_ITEMS = 4000
NOTHING: Any = None  # handles of Ray, which a key does not need


def test_items_without_a_category_are_not_in_one_partition(monkeypatch):
    """Rows of one value lie together; those without a value are spread as their items are."""
    monkeypatch.setattr("mtrec_ray.data.preparing.partitions.ROWS_PER_PARTITION", 500)
    item = np.arange(NUM_ITEMS)
    code = np.where(item % 10 == 0, item % 3, -1)
    spec: Any = SimpleNamespace(categories={"brand": code}, values={}, published=item)
    by_brand, by_item = key_partitions(spec, Scan(all_item_rows=np.ones(NUM_ITEMS, np.int64)))
    table = pa.table({"item": item.astype(np.int32)})
    part = by_brand.numbers(table)
    for value in range(3):
        assert len(np.unique(part[code == value])) == 1
    assert np.bincount(part).tolist() == [500] * 8
    assert np.bincount(by_item.numbers(table)).tolist() == [500] * 8


@pytest.mark.parametrize("k", [1, 3])
def test_pieces_of_a_table_keep_the_order_of_its_rows(k):
    """Each row is in the piece of its number, in the order given, also of a table in chunks."""
    row = np.arange(100)
    table = pa.concat_tables([pa.table({"row": row[:30]}), pa.table({"row": row[30:]})])
    number = row * 7 % k
    found = [piece.column("row").to_pylist() for piece in cut(table, number, k)]
    assert found == [row[number == i].tolist() for i in range(k)]


def test_a_task_reads_successive_row_groups_of_about_a_partition(monkeypatch):
    """Small row groups are read together, a large one by a task of its own, none twice."""
    monkeypatch.setattr("mtrec_ray.data.preparing.partitions.ROWS_PER_PARTITION", 100)
    rows = [40, 50, 30, 400, 10, 90]
    fragments = [Fragment("shop", "e", i, 0, n) for i, n in enumerate(rows)]
    groups = [[f.num_rows for f in task.args[0]] for task in read_tasks(fragments, NOTHING)]
    assert groups == [[40, 50], [30], [400], [10, 90]]


def test_a_log_that_begins_with_an_empty_file():
    """Row groups without rows are read with others, wherever they stand."""
    fragments = [Fragment("shop", "log", n, 0, rows) for n, rows in enumerate((0, 300, 0))]
    groups = [[f.num_rows for f in task.args[0]] for task in read_tasks(fragments, NOTHING)]
    assert groups == [[0, 300, 0]]
