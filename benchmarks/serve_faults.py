"""What is lost and what is answered wrongly when a part of the service fails under load?

    python -m benchmarks.serve_faults [--quick] [--storage DIR] [--out FILE]

A small model of two scenarios is trained on a generated world and served over HTTP by two replicas
on Ray Serve. Clients ask and post events (`benchmarks/serve_clients.py`), and meanwhile:

    replica     a replica is ended with SIGKILL, until another one answers
    replicas    both are, at once
    swap        another version is loaded, takes over, and is taken back
    disk        the disk of SQLite's file is full, and has room again: a small tmpfs, which root
                alone may mount; without it this fault is left out
    redis       the server that keeps the events is ended with SIGKILL, and started again; without
                `redis-server` this fault is left out

Of each FAULT:

    FAULT.answered      requests that were answered
    FAULT.refused       with 429 or 503, and the time of the next try
    FAULT.broken        connections that ended without an answer, or with none in 30 seconds
    FAULT.other         other statuses
    FAULT.wrong         lists that are not what the same version says in this process: under load
                        of users of whom nothing is told, afterwards of all who did something, and
                        under load those with an item whose event had been acknowledged
    FAULT.events        events that were acknowledged
    FAULT.lost          of these, those that are not in the store afterwards
    FAULT.longest_s     the longest time of a request
    FAULT.pause_s       the longest time in which no request was answered

These are counts: other load on the machine changes them little. `wrong`, `lost`, `broken` and
`other` are the sums over all faults.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from ray import serve
from ray.util.state import list_actors
from safetensors.numpy import load_file, save_file

from benchmarks.common import write_result
from benchmarks.faults import free_port, small_project, wait_for
from benchmarks.serve_clients import (
    ASKED,
    TOLD,
    Client,
    Heard,
    lost_events,
    under_load,
    wrong_at_the_end,
    wrong_lists,
)
from jobs.common import teller
from mtrec_ray.project.load import parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.serving.event_store import open_store
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.run_folder import RunFolder
from mtrec_ray.stages.serve import with_port
from mtrec_ray.stages.serving.deployment import APP, start, stop
from mtrec_ray.stages.serving.engine import Engine
from mtrec_ray.stages.serving.runs import project_of_run
from mtrec_ray.stages.serving.versions import ServedVersion, open_version
from mtrec_ray.stages.train import run_train
from mtrec_ray.training.checkpoint import WEIGHTS

LATER = "later"  # run of the version that takes over
REPLICAS, CLIENTS = 2, 6
LONG_S = 300.0  # for a replica to be there, on a busy machine
DISK = "16m"
SUMS = ("wrong", "lost", "broken", "other")


def project_of() -> Project:
    """Returns the project of two scenarios whose people are others."""
    tree = small_project(2).dump()
    scenarios = {name: tree["scenarios"][name] for name in (TOLD, ASKED)}
    for name, own in scenarios.items():
        own |= {"users": name, "history": own["history"] | {"elsewhere": False}}
    tree["scenarios"] = scenarios
    tree["model"]["encoder"]["trainable"] = "none"
    tree["training"]["epochs"] = 1
    limits = {"requests_per_s": 1e6, "in_flight": 1_000}
    tree["serve"] |= {"port": 0, "replicas": REPLICAS, "token": "none"}
    tree["serve"]["limits"] |= limits
    return parse_project(tree)


# --- the service ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A trained project, and its versions by name: the first, and the one that takes over."""

    project: Project
    storage: str
    versions: dict[str, ServedVersion]

    @property
    def first(self) -> ServedVersion:
        """The version that answers from the start on."""
        return next(iter(self.versions.values()))

    def engines(self, store_url: str) -> dict[str, Engine]:
        """Returns the engines of all versions in this process."""
        return {name: Engine(own, open_store(store_url)) for name, own in self.versions.items()}


def make_world(storage: str) -> World:
    """Returns a trained project with two runs, of which the second has other heads."""
    project = project_of()
    for stage in (run_prepare, run_train):
        stage(project, storage, teller())
    later = Path(storage, LATER)
    if not later.exists():
        shutil.copytree(Path(storage, project.run.name), later)
        change_heads(Path(RunFolder(storage, LATER).best_joint_model, WEIGHTS))
    connect(project.run)
    runs = (project, project_of_run(project, storage, LATER))
    opened = [open_version(own, storage, teller()) for own in runs]
    return World(project, storage, {own.name: own for own in opened})


def change_heads(path: Path) -> None:
    """Give a model other predictions."""
    weights = load_file(path)
    heads = [name for name in weights if name.startswith("heads.") and ".out." in name]
    save_file(weights | {name: 1.1 * weights[name] + 0.05 for name in heads}, path)


@dataclass(frozen=True)
class Service:
    """A service that runs, and what its clients ask of it."""

    world: World
    store_url: str
    port: int
    users: Sequence[str]
    items: Sequence[str]

    def measure(self, fault: str, cause: Callable[["Service"], None], s: float) -> dict[str, Any]:
        """Returns the figures of a fault."""
        clients = [
            Client(f"{fault}-{n}", self.port, self.users[n:], self.items) for n in range(CLIENTS)
        ]
        heard = under_load(clients, lambda: cause(self), s)
        engines = self.world.engines(self.store_url)
        figures = figures_of(heard) | {
            "wrong": heard.stale
            + wrong_lists(heard, engines)
            + wrong_at_the_end(heard, self.port, engines[self.world.first.name]),
            "lost": lost_events(heard, self.store_url),
        }
        print(json.dumps({"fault": fault, **figures, "told": heard.other[:5]}), flush=True)
        return {f"{fault}.{key}": value for key, value in figures.items()}

    def admin(self, method: str, path: str, body: dict[str, Any]) -> int:
        """Returns the status of a change of versions."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(
            method, f"/v1/admin{path}", json.dumps(body), {"Content-Type": "application/json"}
        )
        return connection.getresponse().status

    def version_states(self) -> dict[str, str]:
        """Returns the states of all versions, by name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/v1/models")
        told = json.loads(connection.getresponse().read())
        return {one["version"]: one["state"] for one in told["versions"]}


def figures_of(heard: Heard) -> dict[str, Any]:
    """Returns the counts of what clients heard."""
    kinds = ("answered", "refused", "broken", "other")
    pauses = [after - before for before, after in pairwise(heard.answered_at)]
    return {
        **{kind: heard.kinds[kind] for kind in kinds},
        "events": len(heard.events),
        "longest_s": round(heard.longest_s, 1),
        "pause_s": round(max(pauses), 1),
    }


@contextmanager
def served(world: World, store_url: str) -> Iterator[Service]:
    """A service with a store of events, once all of its replicas answer."""
    options = with_port(world.project.serve)
    project = world.project.model_copy(update={"serve": options})
    engine = Engine(world.first, open_store(store_url))
    users = engine.views(ASKED).users().users  # with long histories
    start(project, world.storage, world.first, store_url, None)
    try:
        items = engine.scenarios[TOLD].ranker.items.ids[:20]
        yield Service(
            world, store_url, options.port, users,
            [str(item) for item in items],
        )  # fmt: skip
    finally:
        stop()


def replicas() -> set[int]:
    """Returns the processes of the replicas."""
    address = ray.get_runtime_context().gcs_address  # of several on a machine
    found: list[Any] = list_actors(address, [("state", "=", "ALIVE")], limit=10_000, detail=True)
    return {own.pid for own in found if f"ServeReplica:{APP}:" in own.class_name and own.pid}


def all_run() -> bool:
    """Returns whether as many replicas as there should be are ready."""
    (deployment,) = serve.status().applications[APP].deployments.values()
    return deployment.replica_states == {"RUNNING": REPLICAS}


# --- what happens --------------------------------------------------------------------------------


def kill(number: int) -> Callable[[Service], None]:
    """Returns what ends so many replicas, and waits until there are others."""

    def cause(_: Service) -> None:
        ended = sorted(replicas())[:number]
        for process in ended:
            os.kill(process, signal.SIGKILL)
        wait_for(lambda: not replicas() & set(ended) and all_run(), LONG_S)

    return cause


def swap(service: Service) -> None:
    """Let another version take over, and take it back."""
    before, after = service.world.versions
    assert service.admin("POST", "/versions", {"run": LATER}) == 202
    wait_for(lambda: service.version_states().get(after) == "ready", LONG_S)
    for version in (after, before):
        assert service.admin("PUT", f"/versions/{version}", {"share": 1.0}) == 200
        time.sleep(2)


def fill_disk(folder: Path, seconds: float) -> Callable[[Service], None]:
    """Returns what takes all room of a disk for some seconds."""

    def cause(_: Service) -> None:
        ballast = folder / "ballast"
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), b"\0" * 4096)
        time.sleep(seconds)
        ballast.unlink()

    return cause


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of a few megabytes at a folder; False where none may be mounted."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "mtrec", str(folder)]
    try:
        mounted = subprocess.run(words, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class RedisServer:
    """A server that has written an event to its file before it acknowledges it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        self.start()

    def start(self) -> None:
        """Start it."""
        words = f"--port {self.port} --appendonly yes --appendfsync always --save".split()
        command = ["redis-server", "--bind", "127.0.0.1", "--dir", str(self.folder), *words, ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def pause(self, seconds: float) -> Callable[[Service], None]:
        """Returns what ends it, and starts it again after some seconds."""

        def cause(_: Service) -> None:
            self.kill()
            time.sleep(seconds)
            self.start()

        return cause


def with_sqlite(world: World, folder: Path, seconds: float) -> dict[str, Any]:
    """Returns the figures of the faults of a service whose events are in SQLite."""
    figures: dict[str, Any] = {}
    with small_disk(folder) as mounted, served(world, f"sqlite:///{folder}/events.db") as service:
        if mounted:
            figures |= service.measure("disk", fill_disk(folder, 2 * seconds), seconds)
        figures |= service.measure("swap", swap, seconds)
        figures |= service.measure("replica", kill(1), seconds)
        figures |= service.measure("replicas", kill(REPLICAS), seconds)
    return figures


def with_redis(world: World, folder: Path, seconds: float) -> dict[str, Any]:
    """Returns the figures of a service whose events are in Redis; none without a server."""
    if shutil.which("redis-server") is None:
        return {}
    server = RedisServer(folder)
    url = f"redis://127.0.0.1:{server.port}/0"
    with ExitStack() as after:
        after.callback(server.kill)
        service = after.enter_context(served(world, url))
        return service.measure("redis", server.pause(2 * seconds), seconds)


def measure(storage: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Returns the figures of all faults; some seconds before and after each."""
    world = make_world(storage)
    figures = with_sqlite(world, folder / "disk", seconds)
    figures |= with_redis(world, folder / "redis", seconds)
    sums = {k: sum(v for f, v in figures.items() if f.endswith(f".{k}")) for k in SUMS}
    return sums | figures


def main(
    quick: Annotated[bool, typer.Option(help="Two seconds around each fault, not five.")] = False,
    storage: Annotated[str, typer.Option(help="Folder of the runs, to use them again.")] = "",
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Harm a service and write what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = 2.0 if quick else 5.0
        figures = measure(storage or f"{folder}/storage", Path(folder), seconds)
    write_result("serve_faults", figures, out, quick=quick)


if __name__ == "__main__":
    typer.run(main)
