"""The service on a real Ray Serve: HTTP, events that survive a killed replica, another run."""

import shutil
import threading
import time

import httpx2
import pytest
import ray

from mtrec_ray.stages.serve import run_serve, stop_serve
from tests.cluster.runs import changed, say_nothing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    """The trained run, served; its token is made at the start."""
    storage = tmp_path_factory.mktemp("served")
    name = trained.project.run.name
    shutil.copytree(trained.folder, storage / name)
    shutil.copytree(trained.folder, storage / "later")
    found = run_serve(changed(trained.project, serve={"port": 0}), str(storage), say_nothing)
    yield found
    stop_serve()


@pytest.fixture(scope="module")
def client(served):
    headers = {"Authorization": f"Bearer {served.token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=30) as found:
        yield found


def patiently(ask):
    """An answer, once the service gives one."""
    for _ in range(300):
        try:
            answer = ask()
            if answer.status_code < 500:
                return answer
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("no answer")


def replicas():
    """The actors of the replicas that live."""
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address  # of several on a machine
    found = list_actors(address, [("state", "=", "ALIVE")], limit=1000)
    return [actor for actor in found if "ServeReplica:mtrec:" in actor.class_name]


def test_a_killed_replica_loses_no_event(served, client):
    """Events that were acknowledged before it was killed are seen by the next one."""
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/models", headers={"Authorization": ""}).status_code == 401
    asked = {"user": "a new one", "k": 40}
    whole = client.post("/v1/shop/recommend", json=asked).json()["items"]
    assert len(whole) == 40
    taken = [one["item"] for one in whole[:3]]
    for number, item in enumerate(taken):
        event = {"id": str(number), "user": "a new one", "item": item, "labels": {"click": 1}}
        assert client.post("/v1/shop/events", json={"events": [event]}).status_code == 202
    (replica,) = replicas()
    actor = ray.get_actor(replica.name, namespace="serve")
    ray.kill(actor, no_restart=True)
    answer = patiently(lambda: client.post("/v1/shop/recommend", json=asked))
    found = [one["item"] for one in answer.json()["items"]]
    assert len(found) == 37
    assert not set(found) & set(taken)


def test_another_run_takes_over_under_load(served, client):
    """Its models are loaded beside the others, and take over; every request is answered."""
    codes, stop = [], threading.Event()

    def ask():
        own = httpx2.Client(base_url=served.url, headers=client.headers, timeout=30)
        while not stop.is_set():
            answer = own.post("/v1/shop/recommend", json={"user": "u", "k": 2})
            codes.append((answer.status_code, answer.json().get("version")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    body = {"run": "later", "share": 0.0}
    assert client.post("/v1/admin/versions", json=body).status_code == 202
    for _ in range(600):
        versions = client.get("/v1/models").json()["versions"]
        if [v["state"] for v in versions] == ["ready", "ready"]:
            break
        time.sleep(0.2)
    name = versions[1]["version"]
    assert name.startswith("later-")
    assert client.put(f"/v1/admin/versions/{name}", json={"share": 1.0}).status_code == 200
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert {code for code, _ in codes} == {200}
    assert codes[-1][1] == name
    client.put(f"/v1/admin/versions/{served.version}", json={"share": 1.0})
