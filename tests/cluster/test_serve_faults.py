"""A service whose parts fail under load loses no event that it acknowledged, and is not wrong."""

import pytest

from benchmarks import serve_faults

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), pytest.mark.long]
FAULTS = ("disk", "swap", "replica", "replicas", "redis")
REFUSED = ("disk", "redis")  # surely, while the store does not answer


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What clients heard during each fault."""
    folder = tmp_path_factory.mktemp("faults")
    return serve_faults.measure(str(folder / "storage"), folder, 2.0)


@pytest.fixture(params=FAULTS)
def fault(request, figures):
    """The name and the counts of a fault."""
    name = request.param
    if f"{name}.answered" not in figures:
        pytest.skip("no tmpfs can be mounted, or there is no redis-server")
    own = {k.removeprefix(f"{name}."): v for k, v in figures.items() if k.startswith(f"{name}.")}
    return name, own


def test_nothing_is_lost_or_wrong(fault):
    """Events that were acknowledged are in the store; answers are those of their version."""
    _, counts = fault
    assert counts["lost"] == 0
    assert counts["wrong"] == 0
    assert counts["events"] > 0


def test_every_request_is_answered_or_told_when(fault):
    """No connection breaks, no other status comes; without a store events are refused."""
    name, counts = fault
    assert counts["broken"] == counts["other"] == 0
    assert counts["answered"] > 0
    assert (counts["refused"] > 0) >= (name in REFUSED)
    assert counts["longest_s"] < 30
