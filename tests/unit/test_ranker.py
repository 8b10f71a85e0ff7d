"""Candidates of users as tables for the network."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.candidates.candidates import Candidates
from mtrec_ray.stages.ranker import blocks


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 60))
def test_blocks_hold_each_candidate_once(sizes, pairs_per_block):
    """Every candidate is in one table, in its user's row, and no table is too large."""
    user = np.repeat(np.arange(len(sizes)), sizes)
    candidates = Candidates(user, np.arange(len(user)), {}, len(sizes))
    found, users = [], 0
    for block in blocks(candidates, pairs_per_block):
        assert block.users.start == users
        users = min(block.users.stop, len(sizes))
        for number, row in enumerate(block.pairs):
            own = row[row >= 0]
            assert (user[own] == block.users.start + number).all()
            found += own.tolist()
        assert block.pairs.size <= pairs_per_block or len(block.pairs) == 1
    assert users == len(sizes)
    assert found == list(range(len(user)))
