"""The serve stage: checks the run, prepares what its lists are made from, and starts the service.

Read on in `serving/engine.py` (what answers), `serving/app.py` (HTTP) and `serving/deployment.py`
(replicas).
"""

import importlib.util
import os
import secrets
import socket
from dataclasses import dataclass

from mtrec_ray.progress import Log, begin_stage
from mtrec_ray.project.base import ProjectError, refuse
from mtrec_ray.project.project import Project
from mtrec_ray.project.serve import Serve
from mtrec_ray.serving.event_store import StoreError, open_store
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.run_folder import RunFolder
from mtrec_ray.stages.serving.versions import open_version

TOKEN_BYTES = 24
STORE = "events.sqlite"


@dataclass(frozen=True)
class Served:
    """A service that runs: where it listens, its token (None: anybody may ask), and its version."""

    url: str
    token: str | None
    version: str


def run_serve(project: Project, storage_path: str, log: Log) -> Served:
    """Start the service; it runs until `stop_serve`.

    Raises:
        ProjectError: no models, no token where one is named, or a port that is taken.
    """
    options = project.serve
    refuse([*library_problems(), *port_problems(options)])
    token = token_of(options)
    connect(project.run)
    from mtrec_ray.stages.serving.deployment import start

    first = open_version(project, storage_path, log)
    store = store_of(project, storage_path)
    check_store(store)
    begin_stage(log, f"serve: loading {', '.join(first.scenarios)}, version {first.name}")
    own = project.model_copy(update={"serve": with_port(options)})
    start(own, storage_path, first, store, token)
    return Served(f"http://{options.host}:{own.serve.port}", token, first.name)


def stop_serve() -> None:
    """End the service."""
    from mtrec_ray.stages.serving.deployment import stop

    stop()


def library_problems() -> list[str]:
    """Returns a line if what serves is not installed."""
    missing = [n for n in ("fastapi", "uvicorn", "grpc") if importlib.util.find_spec(n) is None]
    if not missing:
        return []
    return [f"serve: found no {missing[0]}; allowed: pip install 'mtrec-ray[serve]'"]


def port_problems(options: Serve) -> list[str]:
    """Returns a line where the service cannot listen."""
    try:
        with socket.create_server((options.host, options.port)):
            return []
    except OSError as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_NODATA):
            return [f"serve.host: found {options.host!r}; allowed: an address of this node"]
        where = f"{options.host}:{options.port}"
        return [f"serve.port: found {where}, which is not free ({error.strerror}); allowed: 0"]


def with_port(options: Serve) -> Serve:
    """Returns the options with a free port in place of 0."""
    if options.port:
        return options
    with socket.create_server((options.host, 0)) as probe:
        return options.model_copy(update={"port": probe.getsockname()[1]})


def token_of(options: Serve) -> str | None:
    """Returns the token that requests bear; None: anybody may ask.

    Raises:
        ProjectError: a variable of the environment that is not set.
    """
    if options.token == "none":
        return None
    if options.token == "new":
        return secrets.token_urlsafe(TOKEN_BYTES)
    name = options.token.removeprefix("env:")
    value = os.environ.get(name, "")
    if not value:
        raise ProjectError([f"serve.token: found no value of {name}; allowed: a variable with one"])
    return value


def check_store(url: str) -> None:
    """Open and close the store of events, before replicas do.

    Raises:
        ProjectError: a URL that names none, or a store that does not answer.
    """
    try:
        open_store(url).close()
    except StoreError as error:
        raise ProjectError([f"serve.store: {error}"]) from None


def store_of(project: Project, storage_path: str) -> str:
    """Returns the URL of the store of events.

    Raises:
        ProjectError: storage that is no folder has no place for SQLite.
    """
    if project.serve.store:
        return project.serve.store
    if "://" in storage_path:
        raise ProjectError(
            [f"serve.store: found null for the storage {storage_path}; allowed: redis://HOST:PORT"]
        )
    return f"sqlite:///{RunFolder.of(project, storage_path).path('serve', STORE)}"
