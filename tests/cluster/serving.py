"""The service over the small trained run, in this process: an app, and who asks it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from mtrec_ray.data.end_states import user_parts, users_at_end
from mtrec_ray.data.interactions import END
from mtrec_ray.data.snapshot import rows_of_pairs
from mtrec_ray.project.serve import Serve
from mtrec_ray.serving.event_store import open_store
from mtrec_ray.stages.serving.app import create_app
from mtrec_ray.stages.serving.control import LocalControl
from mtrec_ray.stages.serving.engine import Engine
from mtrec_ray.stages.serving.service import Service
from mtrec_ray.stages.serving.versions import ServedVersion, open_version
from mtrec_ray.stages.trained_model import ensure_vectors, load_with_vectors
from mtrec_ray.training.validation import score_rows
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


def check_scores(engine: Engine, client: TestClient, name: str) -> None:
    """Scores of a scenario are those of `evaluate` for rows of the same state."""
    own = engine.scenarios[name]
    layout, items = own.ranker.layout, own.ranker.items
    users = users_at_end(layout, user_parts(layout.prepared, name)[0]).of(0, 8)
    user, item = np.repeat(np.arange(8), 5), np.tile(np.arange(5, 10), 8)
    rows = rows_of_pairs(layout, users, items, user, item)
    rows["labels"] = np.zeros((len(item), len(own.facts.tasks)), np.float32)
    trained_model = engine.version.scenarios[name].model
    vectors = ensure_vectors(trained_model)
    model, item_vectors = load_with_vectors(trained_model, vectors)
    ((_, wanted),) = score_rows(model, item_vectors, name, iter([rows]))
    if own.scorer.beside is not None:
        if layout.timed:
            rows["time"] = np.full(len(item), own.askers.prepared_end)
        wanted = own.scorer.beside.values(rows, wanted, END)["score"]
    for number, one in enumerate(users.ids):
        body = {"user": one, "items": [str(i) for i in items.ids[5:10]]}
        answer = client.post(f"/v1/{name}/score", json=body).json()
        told = [[i["predictions"][task] for task in own.facts.tasks] for i in answer["items"]]
        num_tasks = len(own.facts.tasks)
        np.testing.assert_allclose(told, wanted[user == number, :num_tasks], atol=1e-4)
