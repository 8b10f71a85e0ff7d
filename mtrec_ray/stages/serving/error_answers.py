"""Mistakes and failures over HTTP: each has its status and its lines, and is counted.

No body, user or item is logged.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from mtrec_ray.project.base import shorten
from mtrec_ray.project.mistakes import describe
from mtrec_ray.serving.event_store import StoreError
from mtrec_ray.stages.serving.limits import TooManyError
from mtrec_ray.stages.serving.requests import RequestError
from mtrec_ray.stages.serving.service import NotReadyError, Service

LOGGER = logging.getLogger(__name__)


def problem(status: int, *lines: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns the answer that tells why there is no other one."""
    return JSONResponse({"errors": list(lines)}, status, headers)


def add_handlers(app: FastAPI) -> None:
    """Answer each mistake with its status and its lines."""

    async def wrong_value(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid(error)

    async def request_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return problem(error.status, *error.problems)

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem(error.status_code, str(error.detail), headers=error.headers)

    app.add_exception_handler(RequestValidationError, wrong_value)
    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(HTTPException, http_error)
    for kind in (TooManyError, StoreError, NotReadyError, TimeoutError, Exception):
        app.add_exception_handler(kind, another_time)


def invalid(error: RequestValidationError) -> JSONResponse:
    """Returns the answer to a body with wrong fields, or to one that is no JSON."""
    lines: list[str] = []
    for item in error.errors():
        if item["type"] == "json_invalid":
            why = item.get("ctx", {}).get("error", item["msg"])
            return problem(400, f"body: found no JSON ({why}); allowed: JSON")
        lines += lines_of(item)
    return problem(422, *dict.fromkeys(lines))


def lines_of(item: Mapping[str, Any]) -> list[str]:
    """Returns the lines for a mistake that pydantic found."""
    place = tuple(item["loc"])[1:]
    field = ".".join(map(str, place)) or "body"
    if item["type"] == "extra_forbidden":
        return [f"{field}: found an unknown key; allowed: the fields of /docs"]
    if item["type"] == "model_attributes_type":
        return [f"{field}: found {shorten(item.get('input'))}; allowed: a mapping"]
    return describe({**item, "loc": place or ("body",)})


async def another_time(_: Request, error: Exception) -> Response:
    """Returns the answer to a request that could be answered at another time."""
    match error:
        case TooManyError():
            return problem(429, error.line, headers={"Retry-After": str(error.retry_after)})
        case StoreError():
            LOGGER.error("the store of events failed: %s", error)
            line = "events: the store cannot be reached now; allowed: try again"
            return problem(503, line, headers={"Retry-After": "1"})
        case NotReadyError():
            line = "service: found models that are still loading; allowed: try again"
            return problem(503, line, headers={"Retry-After": "1"})
        case TimeoutError():
            line = "service: found no answer in time; allowed: try again"
            return problem(504, line, headers={"Retry-After": "1"})
        case _:
            LOGGER.error("a request failed", exc_info=error)
            return problem(500, "service: failed; the log of the service has the reason")


def too_large(most: int) -> Callable[..., Awaitable[None]]:
    """Returns the answer to a body that is too large, as an ASGI app."""
    return problem(413, f"body: found more than {most} bytes; allowed: at most {most}")


class Counted:
    """Counts each request by its route, which names no user; ASGI middleware.

    What no handler has told is told here.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it with its status."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noted(message: ASGIMessage) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if status:  # an answer is on its way
                raise
            response = await another_time(Request(scope), error)
            await response(scope, receive, noted)
        path = getattr(scope.get("route"), "path", "other")
        self.service.metrics.answered(path, status, time.monotonic() - began)
