"""The API keeps its description for whatever is sent; versions change without a lost request."""

import asyncio
from contextlib import suppress

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from mtrec_ray.project.base import ProjectError
from mtrec_ray.stages.serving.app import create_app
from tests.cluster.serving import TOKEN, client_of, service_of

pytestmark = pytest.mark.cluster

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance",
)  # fmt: skip


@pytest.fixture(scope="module")
def api(version, tmp_path_factory):
    """The described service; no other run is there to be served."""

    def make(run):
        raise ProjectError([f"run: found no joint model in {run}; allowed: a trained run"])

    service = service_of(version, tmp_path_factory.mktemp("store"), make)
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(service, TOKEN))


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_keep_the_description(api, mode):
    """No 500, no status and no body that the description lacks, of drawn and broken requests."""
    checks = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in CHECKS]
    assert len(checks) == len(CHECKS)
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:
        try:
            drawn = operation.as_strategy(generation_mode=mode)
        except schemathesis.errors.SchemathesisError:
            continue

        @settings(
            max_examples=4, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=drawn)
        def check(case):
            if "scenario" in (case.path_parameters or {}):
                case.path_parameters["scenario"] = "shop"
            case.call_and_validate(headers=HEADERS, checks=checks)

        with suppress(Unsatisfiable):  # nothing of it can be broken
            check()


def test_the_description_asks_for_the_token(api):
    """Each route but those of health names the bearer token, and tells of a wrong one."""
    for path, methods in api.raw_schema["paths"].items():
        for route in methods.values():
            closed = path not in ("/healthz", "/readyz")
            assert bool(route.get("security")) == closed
            assert ("401" in route["responses"]) == closed


def test_models_that_load_answer_later(version, tmp_path):
    """503 with a hint until a version is loaded; health tells it, too."""
    service = service_of(version, tmp_path)
    engines, service.engines = service.engines, {}
    with client_of(service) as client:
        for path in ("/v1/shop/recommend", "/v1/shop/score", "/v1/shop/events"):
            body = {"user": "u", "items": ["shop_00001"]}
            body = {} if path.endswith("events") else body
            if path.endswith("recommend"):
                body = {"user": "u"}
            if not body:
                body = {"events": [{"id": "1", "user": "u", "item": "shop_00001"}]}
            answer = client.post(path, json=body)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"
            assert answer.json()["errors"] == [
                "service: found models that are still loading; allowed: try again"
            ]
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        service.engines = engines
        assert client.get("/readyz").status_code == 200


def test_a_store_that_does_not_answer(version, tmp_path, monkeypatch):
    """Its events are refused with 503, and nothing is acknowledged."""
    from mtrec_ray.serving.event_store import StoreError

    service = service_of(version, tmp_path)

    def fail(events):
        raise StoreError("no room")

    monkeypatch.setattr(service.store, "append", fail)
    with client_of(service) as client:
        events = {"events": [{"id": "1", "user": "u", "item": "shop_00001"}]}
        answer = client.post("/v1/shop/events", json=events)
        assert answer.status_code == 503
        assert answer.json()["errors"] == [
            "events: the store cannot be reached now; allowed: try again"
        ]


def test_too_slow_and_too_many(version, tmp_path, monkeypatch):
    """504 where no answer comes in time; 429 with a hint beyond the rate, and beyond the queue."""
    import threading

    limits = {"seconds": 0.2, "queue": 2, "requests_per_s": 1e6}
    service = service_of(version, tmp_path, limits=limits, batch_size=1)
    go = threading.Event()
    monkeypatch.setattr(service.batcher, "answer", lambda asks: go.wait(30) and [])
    with client_of(service) as client:
        answer = client.post("/v1/shop/recommend", json={"user": "u"})
        assert answer.status_code == 504
        assert answer.json()["errors"] == ["service: found no answer in time; allowed: try again"]
        codes = [client.post("/v1/shop/recommend", json={"user": "u"}) for _ in range(3)]
        assert [one.status_code for one in codes] == [504, 504, 429]
        assert int(codes[-1].headers["Retry-After"]) >= 1
        go.set()
    rate = service_of(version, tmp_path / "other", limits={"requests_per_s": 2.0})
    with client_of(rate) as client:
        codes = [client.get("/v1/models").status_code for _ in range(4)]
        assert codes.count(200) >= 2
        assert codes[-1] == 429


async def asked(client, stop, answers):
    """Asks for lists, one after another, until it is stopped."""
    number = 0
    while not stop.is_set():
        number += 1
        user = f"user {number % 40}"
        answer = await client.post("/v1/shop/recommend", json={"user": user, "k": 2})
        answers.append((user, answer.status_code, answer.json().get("version")))


async def until(condition):
    for _ in range(2000):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it takes too long")


async def swapped(service, old):
    """Answers while another version is loaded, takes a share, takes over, and is taken back."""
    transport = httpx2.ASGITransport(create_app(service, TOKEN))
    stages, answers, stop = {}, [], asyncio.Event()
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://test", headers=HEADERS
    ) as client:
        tasks = [asyncio.create_task(asked(client, stop, answers)) for _ in range(4)]
        body = {"run": "later", "share": 0.5}
        assert (await client.post("/v1/admin/versions", json=body)).status_code == 202

        async def ready():
            await asyncio.to_thread(service.update)
            found = (await client.get("/v1/models")).json()["versions"]
            return [v["state"] for v in found] == ["ready", "ready"]

        await until(ready)
        for name, share in (("half", None), ("later-version", 1.0), (old, 1.0)):
            if share is not None:
                put = await client.put(f"/v1/admin/versions/{name}", json={"share": share})
                assert put.status_code == 200
            answers.clear()

            async def enough():
                return len(answers) >= 60

            await until(enough)
            stages[name] = list(answers)
        stop.set()
        await asyncio.gather(*tasks)
        assert (await client.delete("/v1/admin/versions/later-version")).status_code == 204
    return stages


@pytest.mark.timeout(120)
def test_a_version_takes_over_without_a_lost_request(version, tmp_path):
    """All requests are answered; a user stays with a version; one call takes over, one back."""
    service = service_of(version, tmp_path)
    stages = asyncio.run(swapped(service, version.name))
    assert all(code == 200 for found in stages.values() for _, code, _ in found)
    half = {}
    for user, _, name in stages["half"]:
        half.setdefault(user, set()).add(name)
    # Those under way when the version was ready were answered by the first one.
    assert sum(len(names) > 1 for names in half.values()) <= 4
    assert {name for names in half.values() for name in names} == {version.name, "later-version"}
    for wanted in ("later-version", version.name):
        others = [name for _, _, name in stages[wanted] if name != wanted]
        assert len(others) <= 4  # were under way when it took over
    assert list(service.engines) == [version.name]


def test_changed_files_are_refused(version, tmp_path):
    """A byte of the weights that changes is told by the file; no model is loaded."""
    import shutil
    from dataclasses import replace
    from pathlib import Path

    copy = tmp_path / "run"
    shutil.copytree(version.folder, copy, ignore=shutil.ignore_patterns("checkpoint_*", "logs"))
    own = replace(version, folder=str(copy))
    own.check()
    weights = Path(copy, "joint", "best", "model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ProjectError, match=r"model\.safetensors, not the .* of its manifest"):
        own.check()
    with suppress(FileNotFoundError):
        Path(copy, "lists", "list_model.json").unlink()
    with pytest.raises(ProjectError, match=r"found no file for .*list_model\.json"):
        own.check()
