"""What joint training can be expected to do, by the people whom scenarios share."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.stages.common_people import advice, common_people


def prepared_of(tmp_path, users):
    """Prepared data that has nothing but users, by scenario: their id space and numbers."""
    for name, (_, numbers) in users.items():
        pq.write_table(pa.table({"user": pa.array(numbers, pa.int32())}), tmp_path / name)
    return SimpleNamespace(
        scenarios={name: SimpleNamespace(user_space=space) for name, (space, _) in users.items()},
        shard_paths=lambda name, split: [str(tmp_path / name)] if split == "train" else [],
    )


def test_shares_of_common_users(tmp_path):
    """Users of the same space count once each, the unknown one does not, other spaces do not."""
    users = {
        "shop": ("people", [1, 1, 2, 3, 4, 0, 0]),
        "news": ("people", [3, 4, 4, 0]),
        "books": ("books", [1, 2, 3]),
    }
    assert common_people(prepared_of(tmp_path, users)) == {"shop": 0.5, "news": 1.0, "books": 0.0}


def test_advice_names_both_kinds():
    """Scenarios with common users are told apart from those without; one alone needs none."""
    help_line, no_help = advice({"shop": 0.5, "news": 1.0, "books": 0.0, "toys": 0.02})
    assert "shop (50%), news (100%)" in help_line
    assert "hardly a user of books and toys is in another scenario" in no_help
    assert len(advice({"shop": 0.5, "news": 1.0})) == 1
    assert advice({"shop": 0.0}) == []
