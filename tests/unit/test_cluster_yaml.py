"""cluster.yaml is a cluster that this Ray can launch, and its versions are the pinned ones."""

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((TOP / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` sees it."""
    return prepare_config(cluster)


def pinned_ray_version() -> str:
    requirements = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["dependencies"]
    (version,) = (m[1] for r in requirements if (m := re.fullmatch(r"ray\[.*\]==(\S+)", r)))
    return version


def test_ray_accepts_the_file(prepared):
    """`ray up` accepts cluster.yaml by the schema that ships with the pinned Ray."""
    validate_config(prepared)


def test_ray_refuses_an_unknown_field(prepared):
    """The validation that accepts cluster.yaml can fail."""
    with pytest.raises(jsonschema.ValidationError, match="num_gpus"):
        validate_config(prepared | {"num_gpus": 4})


def test_workers_start_from_zero(prepared):
    """An idle cluster is its head alone: no node type with a GPU, and no other, has a minimum."""
    types = prepared["available_node_types"]
    assert any(kind["resources"].get("GPU", 0) > 0 for kind in types.values())
    assert {kind["min_workers"] for kind in types.values()} == {0}


def test_the_head_runs_no_tasks(prepared):
    """Ray schedules no task and no training worker on the head node."""
    resources = prepared["available_node_types"][prepared["head_node_type"]]["resources"]
    assert resources == {"CPU": 0, "GPU": 0}


@pytest.mark.parametrize("field", ["image", "head_image"])
def test_the_image_has_the_pinned_ray(cluster, field):
    """Head and workers run the Ray version of pyproject.toml, on Python 3.11."""
    repository, tag = cluster["docker"][field].split(":")
    assert repository == "rayproject/ray"
    assert re.fullmatch(re.escape(pinned_ray_version()) + r"-py311-(cpu|gpu|cu\d+)", tag)


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_token_authentication_is_on(cluster, commands):
    """Every `ray start` runs with token authentication, and every node gets the token."""
    starts = [command for command in cluster[commands] if "ray start" in command]
    assert len(starts) == 1
    assert "export RAY_AUTH_MODE=token; ray start" in starts[0]
    assert "~/.ray/auth_token" in cluster["file_mounts"]
