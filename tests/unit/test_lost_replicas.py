"""Before the replicas: what one of them lost is asked again, or told when to try again."""

import asyncio
import json

import pytest

from mtrec_ray.stages.serving.lost_replicas import KEPT_BYTES, TRIES, LostReplicas

JSON, TEXT = [(b"content-type", b"application/json")], [(b"content-type", b"text/plain")]


def asked(app, body=(b"one ", b"two")):
    """What an app behind the middleware is asked and tells: its status, headers, body."""
    left = [
        {"type": "http.request", "body": part, "more_body": place < len(body) - 1}
        for place, part in enumerate(body)
    ]
    told = []

    async def receive():
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message):
        told.append(message)

    asyncio.run(LostReplicas(app)({"type": "http", "headers": []}, receive, send))
    start, *parts = told
    heads = {bytes(name): bytes(value) for name, value in start["headers"]}
    return start["status"], heads, b"".join(part["body"] for part in parts)


def proxy(*outcomes):
    """An app that reads a body and ends as told: no answer, or a status with headers."""
    bodies, left = [], list(outcomes)

    async def app(scope, receive, send):
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        bodies.append(b"".join(parts))
        outcome = left.pop(0)
        if outcome is not None:
            status, headers = outcome
            start = {"type": "http.response.start", "status": status, "headers": headers}
            await send(start)
            await send({"type": "http.response.body", "body": b"told"})

    return app, bodies


def test_a_lost_request_is_asked_again():
    """Its whole body goes to another replica, whose answer the client gets."""
    app, bodies = proxy(None, None, (200, JSON))
    status, _, told = asked(app)
    assert (status, told) == (200, b"told")
    assert bodies == [b"one two"] * 3


def test_a_request_that_nobody_answers():
    """It is refused after a few tries, with the time of the next one."""
    app, bodies = proxy(*[None] * TRIES)
    status, heads, told = asked(app)
    assert (status, heads[b"retry-after"]) == (503, b"1")
    assert "no replica that answers" in json.loads(told)["errors"][0]
    assert len(bodies) == TRIES


@pytest.mark.parametrize(("found", "wanted"), [(408, 503), (503, 503), (429, 429)])
def test_what_the_proxy_refuses(found, wanted):
    """Time-outs and full queues of the proxy are told as those of a replica, and not repeated."""
    app, bodies = proxy((found, TEXT))
    status, heads, told = asked(app)
    assert (status, heads[b"retry-after"]) == (wanted, b"1")
    assert json.loads(told)["errors"]
    assert len(bodies) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_a_replica_refuses(status):
    """It reaches the client as it is."""
    app, bodies = proxy((status, JSON))
    assert asked(app)[::2] == (status, b"told")
    assert len(bodies) == 1


def test_a_body_too_large_to_be_kept():
    """It reaches a replica whole, and is not asked again."""
    part = b"x" * (KEPT_BYTES // 2)
    app, bodies = proxy(None, (200, JSON))
    assert asked(app, [part, part, b"y"])[0] == 503
    assert len(bodies) == 1
    app, bodies = proxy((200, JSON))
    assert asked(app, [part, part, b"y"])[0] == 200
    assert len(bodies[0]) == KEPT_BYTES + 1


def test_a_client_who_left():
    """Nobody asks again for a client who is gone."""
    calls = []

    async def app(scope, receive, send):
        calls.append(await receive())
        assert (await receive())["type"] == "http.disconnect"

    async def alone():
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive():
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError(message)

        await LostReplicas(app)({"type": "http", "headers": []}, receive, send)

    asyncio.run(alone())
    assert len(calls) == 1
