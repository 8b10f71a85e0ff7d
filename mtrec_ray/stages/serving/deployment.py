"""The service on Ray Serve: replicas with all models, and the table of versions that they share."""

import logging
import sys
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from mtrec_ray.progress import no_log
from mtrec_ray.project.project import Project
from mtrec_ray.project.serve import Serve
from mtrec_ray.serving.event_store import open_store
from mtrec_ray.stages.serving.app import create_app
from mtrec_ray.stages.serving.control import LocalControl, Row, Table
from mtrec_ray.stages.serving.lost_replicas import CALLBACK
from mtrec_ray.stages.serving.runs import project_of_run
from mtrec_ray.stages.serving.service import Service
from mtrec_ray.stages.serving.versions import ServedVersion, open_version

APP = "mtrec"
CALLS = 1_000  # to a replica at a time, of which nearly all are refused at once
RESTART_S = 2.0  # between looks at the health of a replica
GRACE_S = 2.0  # of the proxy, for an answer that a replica gives up just in time

LOGGING = {"enable_access_log": False, "log_level": "WARNING"}  # of proxy and replicas
SWITCH_S = 0.0005  # after which a thread that computes lets those of requests go on
PROXY = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK}


class Keeper:
    """Holds the table of versions, and what they are opened from, in an actor of its own."""

    def __init__(self, project: Project, storage_path: str, first: ServedVersion) -> None:
        def make(run: str) -> ServedVersion:
            return open_version(project_of_run(project, storage_path, run), storage_path, no_log)

        self.control = LocalControl(first, make)

    def call(self, name: str, *args: Any) -> Any:
        """Returns what a method of the table returns, or the error that it raises."""
        try:
            return getattr(self.control, name)(*args)
        except ValueError as error:  # as it is: Ray would wrap it
            return error


class RemoteControl:
    """The table of versions, as a replica sees it (`control.Control`)."""

    def __init__(self, keeper: Any) -> None:
        self.keeper = keeper

    def call(self, name: str, *args: Any) -> Any:
        """Returns what a method of the table returns.

        Raises:
            RequestError: what it raises.
        """
        found = ray.get(self.keeper.call.remote(name, *args))
        if isinstance(found, ValueError):
            raise found
        return found

    def table(self) -> Table:
        """Returns all versions, the oldest first."""
        return self.call("table")

    def version(self, name: str) -> ServedVersion:
        """Returns what a ready version is opened from."""
        return self.call("version", name)

    def add(self, run: str, share: float) -> Row:
        """Begin to prepare the models of another run."""
        return self.call("add", run, share)

    def set_share(self, name: str, share: float) -> Row:
        """Set the share of a version."""
        return self.call("set_share", name, share)

    def remove(self, name: str) -> None:
        """Forget a version that has no users."""
        self.call("remove", name)


class Replica:
    """A process that answers; it is asked only once its models are loaded."""

    def __init__(self, keeper: Any, store_url: str, options: Serve, token: str | None) -> None:
        logging.getLogger("mtrec_ray").setLevel(logging.INFO)
        sys.setswitchinterval(SWITCH_S)
        self.token = token
        name = serve.get_replica_context().replica_id.unique_id
        self.service = Service(RemoteControl(keeper), open_store(store_url), options, name)
        self.service.update()
        if not self.service.engines:
            raise RuntimeError(f"no version could be loaded: {self.service.failed}")
        self.service.follow()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the app that answers."""
        return create_app(self.service, self.token)

    def check_health(self) -> None:
        """Raise where no models are loaded; Ray Serve then starts another replica."""
        if not self.service.engines:
            raise RuntimeError("no models are loaded")


def start(
    project: Project, storage_path: str, first: ServedVersion, store_url: str, token: str | None
) -> Any:
    """Start the replicas behind HTTP; returns the handle of the table of versions."""
    options = project.serve
    actor: Any = ray.remote(Keeper)  # Ray types the class as its own result
    keeper = actor.options(num_cpus=0, max_concurrency=8).remote(project, storage_path, first)
    serve.start(
        http_options={
            "host": options.host, "port": options.port,
            "request_timeout_s": options.limits.seconds + GRACE_S,
        },
        controller_options={"runtime_env": {"env_vars": PROXY}},
        logging_config=LOGGING,
    )  # fmt: skip
    replica: Any = serve.deployment(
        serve.ingress()(Replica),
        name="replica",
        num_replicas=options.replicas,
        max_ongoing_requests=CALLS,
        max_queued_requests=options.limits.queue,  # while no replica is there
        backpressure_config={"status_code": 429},
        health_check_period_s=RESTART_S,
        logging_config=LOGGING,
        ray_actor_options={"num_cpus": options.cpus_per_replica},
    )
    serve.run(replica.bind(keeper, store_url, options, token), name=APP, route_prefix="/")
    return keeper


def stop() -> None:
    """End the replicas and the HTTP server."""
    serve.shutdown()
