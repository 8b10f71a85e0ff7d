"""Shares of versions: who is answered by which, and what changes are refused."""

import itertools
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.project.base import ProjectError
from mtrec_ray.stages.serving.control import LocalControl, Row, chosen, shared
from mtrec_ray.stages.serving.requests import ConflictError, RequestError, UnknownNameError

USERS = [f"user {number}" for number in range(4000)]


def version(name, run):
    """What a table of versions needs of one."""
    return SimpleNamespace(name=name, project=SimpleNamespace(run=SimpleNamespace(name=run)))


def control(make=lambda run: version(f"{run}-1", run)):
    return LocalControl(version("old-1", "old"), make)


def settled(own):
    """The table, once nothing is being prepared."""
    for _ in range(1000):
        if all(row.state != "loading" for row in own.table()):
            return {row.name: row for row in own.table()}
        time.sleep(0.005)
    raise AssertionError(own.table())


def of_users(rows):
    return {user: chosen(rows, user) for user in USERS}


def test_users_stay_while_a_version_takes_over():
    """A share of 10 %, 40 % and 100 %: who had the new version keeps it; taken back, all return."""
    own = control()
    own.add("new", 0.1)
    settled(own)
    before = of_users(own.table())
    assert list(before.values()).count("new-1") == pytest.approx(400, abs=80)
    own.set_share("new-1", 0.4)
    after = of_users(own.table())
    assert all(after[user] == "new-1" for user in USERS if before[user] == "new-1")
    assert list(after.values()).count("new-1") == pytest.approx(1600, abs=150)
    own.set_share("new-1", 1)
    assert set(of_users(own.table()).values()) == {"new-1"}
    own.set_share("old-1", 1)
    assert set(of_users(own.table()).values()) == {"old-1"}


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.integers(0, 4), st.floats(0, 1))
def test_shares_sum_to_one(parts, number, share):
    """Whatever is set, shares sum to 1, and the others keep their proportions."""
    rows = [Row(str(i), "run", part / sum(parts), "ready") for i, part in enumerate(parts)]
    name = str(number % len(rows))
    after = shared(rows, name, share)
    assert sum(row.share for row in after) == pytest.approx(1)
    others = [(a.share, b.share) for a, b in zip(rows, after, strict=True) if a.name != name]
    for (before, now), (first, last) in itertools.pairwise(others):
        assert before * last == pytest.approx(first * now)


def test_a_version_that_fails_takes_no_share():
    """Its problems are told, and the old one answers all."""

    def make(run):
        raise ProjectError(["run: found no joint model"])

    own = control(make)
    own.add("new", 0.5)
    rows = settled(own)
    assert rows["new (loading)"].state == "failed"
    assert rows["new (loading)"].problems == ("run: found no joint model",)
    assert set(of_users(own.table()).values()) == {"old-1"}
    with pytest.raises(ConflictError, match="which is failed"):
        own.set_share("new (loading)", 0.5)
    own.remove("new (loading)")
    assert list(settled(own)) == ["old-1"]


def test_changes_that_are_refused():
    """An unknown version, the rest of a share that nobody takes, a version with users."""
    own = control()
    with pytest.raises(UnknownNameError, match="found 'none'; allowed: old-1"):
        own.set_share("none", 1)
    with pytest.raises(RequestError, match=r"found 0.5 for the only version; allowed: 1"):
        own.set_share("old-1", 0.5)
    with pytest.raises(ConflictError, match="with the share 1; allowed: one with 0"):
        own.remove("old-1")
    own.add("new", 0)
    settled(own)
    own.set_share("new-1", 1)
    own.remove("old-1")
    assert list(settled(own)) == ["new-1"]


def test_the_same_models_again_keep_their_share():
    """A run that is added twice is one version."""
    own = control()
    for share in (0.25, 0.75):
        own.add("new", share)
        settled(own)
    assert {name: row.share for name, row in settled(own).items()} == {"old-1": 0.75, "new-1": 0.25}
