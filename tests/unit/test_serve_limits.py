"""Who is let in: rates, requests under way, bodies, and a queue that does not grow."""

import asyncio
import threading

import pytest

from mtrec_ray.project.serve import Limits
from mtrec_ray.stages.serving.batching import Batcher
from mtrec_ray.stages.serving.limits import BodyLimit, Limiter, TooManyError


def limiter(**limits):
    """A limiter whose clock is told."""
    clock = [0.0]
    return Limiter(Limits.model_validate(limits), lambda: clock[0]), clock


def ask(own, client="a"):
    with own.admitted(client):
        pass


def test_a_client_has_a_burst_and_then_a_rate():
    """Four at once, the fifth is refused until a quarter of a second is over; others are let in."""
    own, clock = limiter(requests_per_s=4)
    for _ in range(4):
        ask(own)
    with pytest.raises(TooManyError, match="found more than 4 a second") as caught:
        ask(own)
    assert caught.value.retry_after == 1
    ask(own, "b")
    clock[0] += 0.25
    ask(own)
    with pytest.raises(TooManyError):
        ask(own)
    clock[0] += 1000  # no more than a burst is saved up
    for _ in range(4):
        ask(own)
    with pytest.raises(TooManyError):
        ask(own)


def let_in(replicas, per_s, seconds, place):
    """How many of many requests a second the replicas of a service let in, and the most at once."""
    clock = [0.0]
    limits = Limits.model_validate({"requests_per_s": per_s})
    own = [Limiter(limits, lambda: clock[0], replicas) for _ in range(replicas)]
    found = []
    for number in range(10 * per_s * seconds):
        clock[0] = number / (10 * per_s)
        try:
            ask(own[place(number)])
        except TooManyError:
            continue
        found.append(clock[0])
    return found


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_let_in_what_one_would(replicas):
    """Ten times as many ask as may: a burst, and then the rate, however many replicas there are."""
    found = let_in(replicas, 8, 5, lambda number: number % replicas)
    assert len(found) == pytest.approx(8 + 8 * 5, abs=replicas)
    assert sum(time < 0.5 for time in found) <= 8 + 4
    on_one = let_in(replicas, 8, 5, lambda number: 0)
    assert len(on_one) == pytest.approx(len(found) / replicas, abs=1)


def test_replicas_share_what_is_under_way():
    """Four at a time are two at each of two replicas; one is always let in."""
    own, other = (Limiter(Limits(in_flight=4), replicas=2) for _ in range(2))
    with own.admitted("a"), own.admitted("a"), other.admitted("a"), other.admitted("a"):
        for full in (own, other):
            with pytest.raises(TooManyError, match="found more than 4 requests under way"):
                ask(full)
    ask(Limiter(Limits(in_flight=1, requests_per_s=0.5), replicas=8))


def test_requests_under_way_are_counted():
    """Two at a time; one that ends, well or badly, makes room."""
    own, _ = limiter(in_flight=2)
    with own.admitted("a"), own.admitted("a"):
        with pytest.raises(TooManyError, match="found more than 2 requests under way"):
            ask(own)
        ask(own, "b")
    with pytest.raises(KeyError), own.admitted("a"):
        raise KeyError
    with own.admitted("a"), own.admitted("a"):
        pass


def test_clients_are_forgotten(monkeypatch):
    """Of many clients those who asked last are remembered."""
    monkeypatch.setattr("mtrec_ray.stages.serving.limits.CLIENTS", 3)
    own, _ = limiter()
    for number in range(9):
        ask(own, str(number))
    assert list(own.clients) == ["6", "7", "8"]


def sent(most, headers, parts):
    """What a body of some parts comes to: `read` by the app, or `refused`."""
    heard = []

    async def app(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        heard.append(("read", body))

    async def refuse(scope, receive, send):
        heard.append(("refused", b""))

    messages = [
        {"type": "http.request", "body": part, "more_body": n + 1 < len(parts)}
        for n, part in enumerate(parts)
    ]
    waiting = iter(messages)

    async def receive():
        return next(waiting)

    scope = {"type": "http", "headers": headers}
    asyncio.run(BodyLimit(app, most, refuse)(scope, receive, None))
    return heard[0]


def test_bodies_are_cut():
    """Ten bytes pass whole; eleven do not, whether they are announced, parted or lied about."""
    assert sent(10, [], [b"01234", b"56789"]) == ("read", b"0123456789")
    assert sent(10, [(b"content-length", b"10")], [b"0123456789"]) == ("read", b"0123456789")
    assert sent(10, [], [b"01234", b"56789", b"0"])[0] == "refused"
    assert sent(10, [(b"content-length", b"11")], [b"0"])[0] == "refused"
    assert sent(10, [(b"content-length", b"1")], [b"0" * 11])[0] == "refused"
    assert sent(10, [(b"content-length", b"none")], [b"0"])[0] == "read"


def run(asking, **options):
    """What requests to a batcher give: answers and errors."""

    async def all_of_them():
        batcher = Batcher(**{"size": 4, "wait_s": 0.0, "queue": 8, **options})
        try:
            return await asking(batcher)
        finally:
            batcher.close()

    return asyncio.run(all_of_them())


def test_requests_are_answered_in_batches():
    """Each has its own answer, in calls of at most four."""
    sizes = []

    def double(values):
        sizes.append(len(values))
        return [2 * value for value in values]

    async def asking(batcher):
        return await asyncio.gather(*(batcher.ask(number) for number in range(8)))

    assert run(asking, answer=double, wait_s=0.05) == [2 * number for number in range(8)]
    assert sum(sizes) == 8
    assert max(sizes) == 4


def test_a_request_that_fails_spoils_no_other():
    """One of three fails; the others have their answers."""

    def inverse(values):
        return [1 / value for value in values]

    async def asking(batcher):
        asked = (batcher.ask(value) for value in (1, 0, 2))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = run(asking, answer=inverse, wait_s=0.05)
    assert (first, third) == (1, 0.5)
    assert isinstance(second, ZeroDivisionError)


def test_an_error_of_all_is_told_once():
    """What fails for all of a call, as a store that does not answer, is not asked one by one."""
    calls = []

    def answer(values):
        calls.append(len(values))
        raise ConnectionError

    async def asking(batcher):
        asked = (batcher.ask(value) for value in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    found = run(asking, answer=answer, common=(OSError,))
    assert [type(one) for one in found] == [ConnectionError] * 3
    assert calls == [3]


def test_a_call_waits_for_as_many_as_there_were():
    """Who asks alone never waits; after a call of two, the next one waits for a second request."""
    sizes = []

    def answer(values):
        sizes.append(len(values))
        return values

    async def asking(batcher):
        await batcher.ask(1)
        await asyncio.gather(batcher.ask(2), batcher.ask(3))
        first = asyncio.create_task(batcher.ask(4))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, batcher.ask(5))

    run(asking, answer=answer, wait_s=60)  # longer than the test may take
    assert sizes == [1, 2, 2]


def test_a_full_queue_refuses():
    """While a call runs two may wait; others are refused, and answered when there is room."""
    go = threading.Event()

    def slow(values):
        go.wait(30)
        return values

    async def asking(batcher):
        running = asyncio.create_task(batcher.ask(0))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.ask(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyError, match="found 2 that wait; allowed: at most 2"):
            await batcher.ask(3)
        go.set()
        first = [await running, *[await one for one in waiting]]
        return [*first, await batcher.ask(4)]

    assert run(asking, answer=slow, queue=2, size=1) == [0, 1, 2, 4]


def test_who_gave_up_is_not_answered():
    """A request whose time is over is left out of the next call."""
    go, asked = threading.Event(), []

    def slow(values):
        asked.extend(values)
        go.wait(30)
        return values

    async def asking(batcher):
        running = asyncio.create_task(batcher.ask(0))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.ask(1), 0.01)
        last = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        go.set()
        return [await running, await last]

    assert run(asking, answer=slow) == [0, 2]
    assert asked == [0, 2]
