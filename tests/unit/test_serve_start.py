"""What the service refuses before anything starts: an address or a store that is not there."""

import pytest

from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.serve import Serve
from mtrec_ray.stages.serve import check_store, port_problems


def test_a_host_without_address_is_one_line():
    """It names the host, not the port; a free port has no line."""
    found = port_problems(Serve(host="nohost.invalid"))
    assert found == ["serve.host: found 'nohost.invalid'; allowed: an address of this node"]
    assert port_problems(Serve(port=0)) == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mysql://user:secret@host", "found 'mysql://host'; allowed: sqlite:///path or redis://"),
        ("redis://127.0.0.1:1", "Connection refused"),
        ("sqlite:////proc/none/events.sqlite", "event store /proc/none/events.sqlite"),
    ],
)
def test_a_store_that_does_not_answer_is_one_line(url, told):
    """Without the password that its URL holds."""
    with pytest.raises(ProjectError) as error:
        check_store(url)
    (line,) = error.value.problems
    assert line.startswith("serve.store: ")
    assert told in line
    assert "secret" not in line
    assert "\n" not in line
