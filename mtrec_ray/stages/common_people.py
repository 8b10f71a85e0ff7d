"""Which scenarios share their people, and what joint training can therefore be expected to do.

Measured on generated worlds (`benchmarks/dials.py`): the joint model's gain over one that is
trained alone grows with the share of users whom other scenarios know, and vanishes without them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mtrec_ray.data.arrays import Ints
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import read_columns

SOME = 0.1  # share of common users from which on the gain is beyond what chance gives


def common_people(prepared: Prepared) -> dict[str, float]:
    """Returns by scenario the share of its training users who are training users of others, too."""
    users = {name: users_of(prepared, name) for name in prepared.scenarios}
    space = {name: facts.user_space for name, facts in prepared.scenarios.items()}
    shares = {}
    for name, own in users.items():
        others = [users[o] for o in users if o != name and space[o] == space[name]]
        known = np.isin(own, np.concatenate(others)) if others and len(own) else np.zeros(1)
        shares[name] = float(known.mean())
    return shares


def users_of(prepared: Prepared, name: str) -> Ints:
    """Returns i64[U]: the distinct training users of a scenario, as numbers of their id space."""
    parts = read_columns(prepared.shard_paths(name, "train"), ("user",))
    found = [np.unique(part["user"]) for part in parts]
    users = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    return users[users > 0].astype(np.int64)


def advice(shares: Mapping[str, float]) -> list[str]:
    """Returns lines that say what to expect of joint training; none for a single scenario."""
    if len(shares) < 2:
        return []
    some = {name: share for name, share in shares.items() if share >= SOME}
    lines = []
    if some:
        told = ", ".join(f"{name} ({share:.0%})" for name, share in some.items())
        lines.append(
            f"joint training should help where users are in other scenarios, too: {told}; "
            "the more of them, the more"
        )
    if few := [name for name in shares if name not in some]:
        lines.append(
            f"hardly a user of {listed(few)} is in another scenario: expect joint training to be "
            "as good as training alone, no better"
        )
    return lines


def listed(names: Sequence[str]) -> str:
    """Returns names as a person lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
