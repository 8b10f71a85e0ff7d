"""Requests whose replica ends, or that no replica takes, are asked again or told when to try again.

Ray Serve's proxy loads this beside the HTTP server. By itself it says 500 where a replica ends with
a request, and 408 where none takes it in time. What a request changes it may change twice: events
have ids, and shares are set.
"""

from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK = f"{__name__}.middlewares"  # what Ray Serve's proxy is told to load
TRIES = 3
KEPT_BYTES = 8_000_000  # of a body, to ask again
TOO_MANY = 429
OF_PROXY = (408, TOO_MANY, 503)  # statuses that the proxy gives, too, as plain text
LINE = "service: found no replica that answers; allowed: try again"


def middlewares() -> list[Middleware]:
    """Returns what Ray Serve's proxy puts before its replicas."""
    return [Middleware(LostReplicas)]


class LostReplicas:
    """ASGI middleware that asks again where there was no answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, up to `TRIES` times; then say when to try again."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, answer = Body(receive), Answer(send)
        for _ in range(TRIES):
            answer = Answer(send)
            await self.app(dict(scope), body.again(), answer.send)
            if answer.begun or body.gone:
                return
            if answer.refused or not body.whole:
                break
        status = TOO_MANY if answer.refused == TOO_MANY else 503
        await JSONResponse({"errors": [LINE]}, status, {"Retry-After": "1"})(scope, receive, send)


class Body:
    """The messages of a request, kept as they are read.

    Attributes:
        gone: the client is. whole: nothing of it was too much to be kept.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive, self.size = receive, 0
        self.kept: list[Message] = []
        self.gone, self.whole = False, True

    def again(self) -> Callable[[], Awaitable[Message]]:
        """Returns what reads the request from its start."""
        kept = iter(list(self.kept))

        async def read() -> Message:
            return next(kept, None) or await self.next()

        return read

    async def next(self) -> Message:
        """Returns the next message, and keeps it."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            return message
        self.size += len(message.get("body", b""))
        self.whole = self.size <= KEPT_BYTES
        self.kept = [*self.kept, message] if self.whole else []
        return message


class Answer:
    """An answer on its way to the client.

    Attributes:
        begun: the client has its start. refused: the proxy's own status, which is held back, or 0.
    """

    def __init__(self, send: Send) -> None:
        self.to_client, self.begun, self.refused = send, False, 0

    async def send(self, message: Message) -> None:
        """Pass on what a replica says, and nothing of what the proxy says in its place."""
        if message["type"] == "http.response.start":
            of_proxy = message["status"] in OF_PROXY and not is_json(message)
            self.refused, self.begun = message["status"] * of_proxy, not of_proxy
        if self.begun:
            await self.to_client(message)


def is_json(start: Message) -> bool:
    """Returns whether an answer is JSON, as all answers of replicas that refuse are."""
    heads = {bytes(name).lower(): bytes(value) for name, value in start.get("headers", ())}
    return heads.get(b"content-type", b"").startswith(b"application/json")
