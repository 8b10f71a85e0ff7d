"""The service over the small trained run, in this process: an app, and who asks it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from mtrec_ray.project.serve import Serve
from mtrec_ray.serving.event_store import open_store
from mtrec_ray.stages.serving.app import create_app
from mtrec_ray.stages.serving.control import LocalControl
from mtrec_ray.stages.serving.engine import Engine
from mtrec_ray.stages.serving.service import Service
from mtrec_ray.stages.serving.versions import ServedVersion, open_version
from tests.cluster.runs import Trained, say_nothing

TOKEN = "a token of tests"


def version_of(trained: Trained) -> ServedVersion:
    """A version of the trained run."""
    return open_version(trained.project, str(trained.storage), say_nothing)


def store_in(folder: Path):
    """A new store of events."""
    return open_store(f"sqlite:///{folder / 'events.sqlite'}")


def service_of(version: ServedVersion, folder: Path, make=None, **options: Any) -> Service:
    """A service with a store of its own, whose models are loaded."""
    limits = {"requests_per_s": 1e6, **options.pop("limits", {})}
    serve = Serve.model_validate({"batch_wait_ms": 0, "limits": limits, **options})
    service = Service(LocalControl(version, make or same(version)), store_in(folder), serve)
    service.update()
    return service


def same(version: ServedVersion):
    """What opens another run: the same models, under a name of their own."""
    return lambda run: replace(version, name=f"{run}-version")


def client_of(service: Service, token: str | None = TOKEN) -> TestClient:
    """A client that bears the token."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return TestClient(create_app(service, token), headers=headers)


def engine_of(service: Service) -> Engine:
    """The only engine of a service."""
    (engine,) = service.engines.values()
    return engine
