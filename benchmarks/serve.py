"""How many requests a second does the service answer, how fast, and what does HTTP cost?

    python -m benchmarks.serve [--quick] [--sizes 10000] [--storage DIR] [--out FILE]

The generated shop of `benchmarks/recommend.py` (not real data) with N items is prepared, trained
and served. So many clients ask for lists of known users, each again as soon as it has its answer,
over loopback from a process of their own:

    N.served.C.requests_per_s   Ray Serve with one replica, C clients; p50_ms and p99_ms beside it
    N.plain.C.requests_per_s    a plain FastAPI app that a user would write: uvicorn, one process,
                                the same engine called in a thread for each request
    N.in_process.C.requests_per_s
                                the same engine called with C requests at a time, without HTTP
    N.beyond.refused            share of requests that 128 clients are refused with 429, where 32
                                may wait; p99_ms of the others, and `other` statuses
    N.events_per_s              events that are stored durably, one a request, 8 clients
    N.replica_mb                resident memory of the replica
    N.made_s, N.start_s         seconds until models and lists are fitted; until the service answers

`requests_per_s`, `p50_ms` and `p99_ms` are those of the service with 32 clients on the largest
catalogue; `over_in_process` is its share of what the engine answers without HTTP.
"""

import asyncio
import http.client
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import ray
import torch
import typer
import uvicorn
from fastapi import FastAPI

from benchmarks.common import write_result
from benchmarks.recommend import NAME, project_of, write_goods
from benchmarks.serve_faults import replicas
from jobs.common import teller
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.serving.event_store import open_store
from mtrec_ray.stages.cluster import connect, give_back
from mtrec_ray.stages.prepare import run_prepare
from mtrec_ray.stages.serve import with_port
from mtrec_ray.stages.serving.deployment import start, stop
from mtrec_ray.stages.serving.engine import Engine, Job
from mtrec_ray.stages.serving.requests import Answer, RecommendRequest, RequestError
from mtrec_ray.stages.serving.versions import ServedVersion, open_version
from mtrec_ray.stages.train import run_train

SIZES, CLIENTS, BEYOND = (10_000, 1_000_000), (1, 8, 32), 128
K, USERS, SHORTLIST = 20, 2_000, 50
EVENTS, ROWS = 200_000, 50_000  # of the log, and of training: speed does not rest on quality
QUEUE = 32  # that may wait
PAUSE_S = 0.05  # of a client that was refused
LIMITS = {"requests_per_s": 1e6, "in_flight": 1_000_000, "queue": QUEUE, "seconds": 60.0}


@dataclass(frozen=True)
class Load:
    """What clients got: seconds f64[N] of the answered requests, and how often each status."""

    seconds: np.ndarray
    statuses: dict[int, int]
    duration: float

    def figures(self, name: str) -> dict[str, float]:
        """Returns requests a second, and quantiles of their time in ms."""
        found = {f"{name}.requests_per_s": len(self.seconds) / self.duration}
        if len(self.seconds):
            for q in (50, 99):
                found[f"{name}.p{q}_ms"] = 1000 * float(np.quantile(self.seconds, q / 100))
        return found


def ask_for_ever(
    port: int, path: str, bodies: Sequence[bytes], until: float, number: int
) -> list[tuple[int, float]]:
    """Returns statuses and seconds of a client's requests, one after another."""
    connection, found, place = http.client.HTTPConnection("127.0.0.1", port), [], number
    headers = {"Content-Type": "application/json"}
    while time.monotonic() < until:
        began = time.monotonic()
        connection.request("POST", path, bodies[place % len(bodies)], headers)
        answer = connection.getresponse()
        answer.read()
        found.append((answer.status, time.monotonic() - began))
        place += 7
        if answer.status == http.client.TOO_MANY_REQUESTS:
            time.sleep(PAUSE_S)
    connection.close()
    return found


def load(port: int, path: str, bodies: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Returns what clients got in some seconds; in a process of its own."""
    parts: list[list[tuple[int, float]]] = [[] for _ in range(clients)]
    until, began = time.monotonic() + seconds, time.monotonic()

    def run(number: int) -> None:
        parts[number] = ask_for_ever(port, path, bodies, until, number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [one for part in parts for one in part]
    statuses: dict[int, int] = {}
    for status, _ in every:
        statuses[status] = statuses.get(status, 0) + 1
    good = [taken for status, taken in every if status < http.client.MULTIPLE_CHOICES]
    return Load(np.array(good), statuses, time.monotonic() - began)


def from_outside(port: int, path: str, bodies: Sequence[bytes], clients: int, s: float) -> Load:
    """Returns what clients in another process got."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(load, port, path, bodies, clients, s).result()


def in_process(engine: Engine, users: Sequence[str], clients: int, seconds: float) -> Load:
    """Returns what the engine answers, so many requests at a time."""
    taken, place, began = [], 0, time.monotonic()
    while time.monotonic() - began < seconds:
        asked = [users[(place + n) % len(users)] for n in range(clients)]
        before = time.monotonic()
        engine.answer([Job(NAME, RecommendRequest(user=user, k=K)) for user in asked])
        taken += [time.monotonic() - before] * clients
        place += clients
    return Load(np.array(taken), {}, time.monotonic() - began)


def plain_app(engine: Engine) -> FastAPI:
    """Returns the app that a user would write around the engine."""
    app = FastAPI()

    @app.post("/recommend")
    async def recommend(body: RecommendRequest) -> Answer:
        (answer,) = await asyncio.to_thread(engine.answer, [Job(NAME, body)])
        if isinstance(answer, RequestError):
            raise answer
        return answer

    return app


def with_plain(engine: Engine, port: int, measure: Callable[[], dict[str, float]]) -> dict:
    """Returns what is measured while the plain app runs."""
    config = uvicorn.Config(plain_app(engine), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        return measure()
    finally:
        server.should_exit = True
        thread.join()


def prepared_version(num_items: int, folder: str) -> tuple[Project, ServedVersion]:
    """Returns a shop's project and version, prepared and trained where that is still to do."""
    project = project_of(num_items, Path(folder), SHORTLIST)
    if not Path(project.root, "events.parquet").exists():
        write_goods(Path(project.root), num_items, EVENTS)
    limits = {f"serve.limits.{name}": value for name, value in LIMITS.items()}
    own = {"training.rows_per_epoch": ROWS, "serve.port": 0, "serve.token": "none"}
    project = with_overrides(project, own | limits)
    for stage in (run_prepare, run_train):
        stage(project, folder, teller())
    connect(project.run)
    serve = with_port(project.serve)
    return project.model_copy(update={"serve": serve}), open_version(project, folder, teller())


def measure(num_items: int, folder: str, seconds: float) -> dict[str, float]:
    """Returns the figures of a catalogue, in a process of its own."""
    torch.set_num_threads(1)
    began = time.monotonic()
    project, version = prepared_version(num_items, folder)
    figures = {"made_s": time.monotonic() - began}
    store = f"sqlite:///{Path(folder).absolute() / f'events-{num_items}.sqlite'}"
    users = [str(user) for user in range(USERS)]
    port, engine = project.serve.port, Engine(version, open_store(store))
    figures |= without_service(engine, port, users, seconds)
    del engine
    give_back()
    began = time.monotonic()
    start(project, folder, version, store, None)
    figures["start_s"] = time.monotonic() - began
    try:
        return figures | of_service(port, users, seconds)
    finally:
        stop()
        ray.shutdown()


def without_service(
    engine: Engine, port: int, users: Sequence[str], seconds: float
) -> dict[str, float]:
    """Returns the figures of the engine by itself, and in a plain app."""
    figures: dict[str, float] = {}
    in_process(engine, users, 8, 1.0)  # warm
    for clients in CLIENTS:
        figures |= in_process(engine, users, clients, seconds).figures(f"in_process.{clients}")

    def of_plain() -> dict[str, float]:
        from_outside(port, "/recommend", bodies_of(users), 8, 1.0)
        found = {
            clients: from_outside(port, "/recommend", bodies_of(users), clients, seconds)
            for clients in CLIENTS
        }
        return {k: v for n, own in found.items() for k, v in own.figures(f"plain.{n}").items()}

    return figures | with_plain(engine, port, of_plain)


def of_service(port: int, users: Sequence[str], seconds: float) -> dict[str, float]:
    """Returns the figures of the service."""
    path, bodies, figures = f"/v1/{NAME}/recommend", bodies_of(users), dict[str, float]()
    from_outside(port, path, bodies, 8, 1.0)  # warm
    for clients in CLIENTS:
        found = from_outside(port, path, bodies, clients, seconds)
        figures |= found.figures(f"served.{clients}")
    figures |= beyond(from_outside(port, path, bodies, BEYOND, 2 * seconds))
    figures["events_per_s"] = events_per_s(port, users, seconds)
    (replica,) = replicas()
    figures["replica_mb"] = resident_mb(replica)
    return figures


def bodies_of(users: Sequence[str]) -> list[bytes]:
    """Returns what clients send."""
    return [json.dumps({"user": user, "k": K}).encode() for user in users]


def resident_mb(process: int) -> float:
    """Returns the resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def beyond(found: Load) -> dict[str, float]:
    """Returns how requests beyond capacity were answered."""
    total = sum(found.statuses.values())
    other = sum(n for status, n in found.statuses.items() if status not in (200, 429))
    return found.figures("beyond") | {
        "beyond.refused": found.statuses.get(429, 0) / total,
        "beyond.other": other,
    }


def events_per_s(port: int, users: Sequence[str], seconds: float) -> float:
    """Returns how many events are stored durably."""
    began = time.time_ns()
    bodies = [
        json.dumps({"events": [{"id": f"{began}-{n}", "user": user, "item": str(n % 1000)}]})
        for n, user in enumerate(users)
    ]
    encoded = [body.encode() for body in bodies]
    found = from_outside(port, f"/v1/{NAME}/events", encoded, 8, seconds)
    return found.figures("events")["events.requests_per_s"]


def main(
    quick: Annotated[bool, typer.Option(help="The small catalogue, 3 seconds each.")] = False,
    sizes: Annotated[list[int] | None, typer.Option(help="Items; by default all sizes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the runs, to go on with them.")] = "",
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Measure the service over catalogues of several sizes."""
    folder = storage or tempfile.mkdtemp()
    figures: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    for num_items in sizes or (SIZES[:1] if quick else SIZES):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(measure, num_items, folder, 3.0 if quick else 15.0).result()
        print(json.dumps({"items": num_items, **found}), flush=True)
        figures |= {f"{num_items}.{key}": value for key, value in found.items()}
        most = f"served.{CLIENTS[-1]}"
        figures |= {key: found[f"{most}.{key}"] for key in ("requests_per_s", "p50_ms", "p99_ms")}
        without = found[f"in_process.{CLIENTS[-1]}.requests_per_s"]
        figures["over_in_process"] = figures["requests_per_s"] / without
    write_result("serve", figures, out, quick=quick)


if __name__ == "__main__":
    typer.run(main)
