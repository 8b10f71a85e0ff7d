"""Who is let in: requests a second and under way of each client, and the size of bodies."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtrec_ray.project.serve import Limits

CLIENTS = 10_000  # that are remembered, those who asked last


class TooManyError(Exception):
    """More requests than are let in; `retry_after`: seconds until another try."""

    def __init__(self, line: str, retry_after: float) -> None:
        super().__init__(line)
        self.line, self.retry_after = line, max(math.ceil(retry_after), 1)


class TooLargeError(Exception):
    """A body of more bytes than are read."""


@dataclass
class Client:
    """What a client may still ask: `tokens` at the time `filled`, and what is under way."""

    tokens: float
    filled: float
    in_flight: int = 0


class Limiter:
    """Lets clients ask so many requests a second, a burst of as many, and so many at a time.

    The limits are those of the service: each of its replicas, which share the requests evenly, lets
    in an equal part. So all together never let in more, whatever the store of events is, and a
    replica asks no other before it answers.
    """

    def __init__(
        self, limits: Limits, now: Callable[[], float] = time.monotonic, replicas: int = 1
    ) -> None:
        """`replicas`: of the service."""
        self.limits, self.now = limits, now
        self.rate = limits.requests_per_s / replicas
        self.burst = max(self.rate, 1.0)
        self.in_flight = max(limits.in_flight // replicas, 1)
        self.clients: OrderedDict[str, Client] = OrderedDict()

    @contextmanager
    def admitted(self, name: str) -> Iterator[None]:
        """Count a request of a client while it is under way.

        Raises:
            TooManyError: the client asks too often, or too much at a time.
        """
        client = self.client(name)
        if client.in_flight >= self.in_flight:
            found = f"found more than {self.limits.in_flight} requests under way"
            raise TooManyError(f"requests: {found}; allowed: wait for answers", 1)
        self.fill(client)
        if client.tokens < 1:
            line = f"requests: found more than {self.limits.requests_per_s:g} a second"
            raise TooManyError(f"{line}; allowed: fewer", (1 - client.tokens) / self.rate)
        client.tokens -= 1
        client.in_flight += 1
        try:
            yield
        finally:
            client.in_flight -= 1

    def client(self, name: str) -> Client:
        """Returns what is known of a client; who has not asked for long is forgotten."""
        client = self.clients.setdefault(name, Client(self.burst, self.now()))
        self.clients.move_to_end(name)
        if len(self.clients) > CLIENTS:
            oldest = next(iter(self.clients))
            if not self.clients[oldest].in_flight:
                del self.clients[oldest]
        return client

    def fill(self, client: Client) -> None:
        """Give a client what the time since then allows."""
        now = self.now()
        more = (now - client.filled) * self.rate
        client.tokens, client.filled = min(client.tokens + more, self.burst), now


class BodyLimit:
    """Refuses bodies of more than so many bytes, before they are read whole; ASGI middleware."""

    def __init__(self, app: ASGIApp, most: int, refuse: ASGIApp) -> None:
        """`refuse` answers in place of the app."""
        self.app, self.most, self.refuse = app, most, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if announced(scope) > self.most:
            await self.refuse(scope, receive, send)
            return
        parts, complete = await read_body(receive, self.most)
        if not complete:
            await self.refuse(scope, receive, send)
            return
        waiting = iter(parts)

        async def again() -> Message:
            return next(waiting, None) or await receive()

        await self.app(scope, again, send)


def announced(scope: Scope) -> int:
    """Returns the bytes that a request's head announces; 0 where it says nothing."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


async def read_body(receive: Receive, most: int) -> tuple[list[Message], bool]:
    """Returns the messages of a body, and whether it has no more than so many bytes."""
    parts: list[Message] = []
    size = 0
    while True:
        message = await receive()
        parts.append(message)
        size += len(message.get("body", b""))
        if size > most:
            return [], False
        if message["type"] != "http.request" or not message.get("more_body", False):
            return parts, True
