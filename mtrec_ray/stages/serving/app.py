"""The service over HTTP: FastAPI routes of one replica, and a line for each mistake.

No body, user or item is logged.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.exceptions import HTTPException

from mtrec_ray.stages.serving.error_answers import Counted, add_handlers, too_large
from mtrec_ray.stages.serving.limits import BodyLimit
from mtrec_ray.stages.serving.page import page_route
from mtrec_ray.stages.serving.requests import (
    Asker,
    EventsAnswer,
    EventsRequest,
    Message,
    ModelsAnswer,
    Problems,
    RecommendAnswer,
    RecommendRequest,
    RequestError,
    ScoreAnswer,
    ScoreRequest,
    Text,
    VersionFacts,
)
from mtrec_ray.stages.serving.service import NotReadyError, Service
from mtrec_ray.stages.serving.view_requests import (
    CompareAnswer,
    CompareRequest,
    ExplainAnswer,
    ExplainRequest,
    UserAnswer,
    UsersAnswer,
)

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Run = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")]
Scenario = Annotated[str, Path(max_length=100, description="A scenario of the project.")]
User = Annotated[str, Path(min_length=1, max_length=256, description="Id of a user.")]
Described = dict[int | str, dict[str, Any]]

REASONS = {
    400: "The body is no JSON.",
    401: "No token, or another one.",
    404: "No such scenario, version or path.",
    409: "The change contradicts what is there.",
    413: "The body is too large.",
    422: "A field or a value is wrong.",
    429: "Too many requests; `Retry-After` says when to try again.",
    501: "A library of an extra is not installed.",
    503: "Models are loading, or the store of events does not answer.",
    504: "No answer in time.",
}


class VersionRequest(Message):
    """A version to prepare: the models of another run of the same project."""

    run: Run = Field(description="Name of the run, below the same storage.")
    share: Share = Field(
        default=0.0, description="Share of users whom it answers once it is ready."
    )


class ShareRequest(Message):
    """A share for a version."""

    share: Share = Field(description="Share of users. 1: it takes over, or is taken back.")


def create_app(service: Service, token: str | None) -> FastAPI:
    """Returns the app of a replica; requests bear the token, where there is one."""
    app = FastAPI(
        title="mtrec",
        description="Recommendations and predictions of all scenarios of a project.",
        version="1",
        separate_input_output_schemas=False,
    )
    app.state.service = service
    add_handlers(app)
    app.add_middleware(Counted, service=service)
    limits = service.options.limits
    app.add_middleware(BodyLimit, most=limits.body_bytes, refuse=too_large(limits.body_bytes))
    app.include_router(open_routes(service))
    guards = [Depends(guard(token)), Depends(admit(service))]
    app.include_router(page_route())
    app.include_router(user_routes(service), dependencies=guards)
    app.include_router(view_routes(service), dependencies=guards)
    app.include_router(admin_routes(service), dependencies=guards)
    return app


def described(*codes: int) -> Described:
    """Returns the answers of a route that tell of mistakes."""
    return {code: {"model": Problems, "description": REASONS[code]} for code in codes}


LOOKED = described(401, 404, 422, 429, 503, 504)
ASKED = described(400, 401, 404, 413, 422, 429, 503, 504)


def guard(token: str | None) -> Callable[..., Awaitable[None]]:
    """Returns the check of the token that a request bears."""
    bearer = HTTPBearer(auto_error=False, description="The token of the service.")

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> None:
        if token is None:
            return
        found = b"" if given is None else given.credentials.encode()
        if not hmac.compare_digest(found, token.encode()):
            what = "no token" if given is None else "another token"
            line = f"Authorization: found {what}; allowed: Bearer and the token of this service"
            raise HTTPException(401, line, {"WWW-Authenticate": "Bearer"})

    return check


def admit(service: Service) -> Callable[..., Any]:
    """Returns the dependency that counts a client's requests while they are under way."""

    async def admitted(request: Request) -> Any:
        client = request.client.host if request.client else ""
        with service.limiter.admitted(client):
            yield

    return admitted


# --- routes --------------------------------------------------------------------------------------


def open_routes(service: Service) -> APIRouter:
    """Returns the routes that anybody may ask."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Says that the process answers."""
        return {"status": "alive"}

    @router.get("/readyz", responses=described(503))
    def readyz() -> dict[str, str]:
        """Says that models are loaded, and that the store of events answers."""
        if not service.ready:
            raise NotReadyError
        return {"status": "ready"}

    return router


def user_routes(service: Service) -> APIRouter:
    """Returns the routes that answer for users."""
    router = APIRouter(prefix="/v1")

    @router.post(
        "/{scenario}/recommend", tags=["answers"], responses=ASKED, response_model=RecommendAnswer
    )
    async def recommend(scenario: Scenario, body: RecommendRequest) -> Response:
        """Returns the best items of a scenario for a user."""
        found = await service.ask(scenario, checked(service, body))
        return as_json(found.model_dump_json(exclude_unset=True))

    @router.post("/{scenario}/score", tags=["answers"], responses=ASKED, response_model=ScoreAnswer)
    async def score(scenario: Scenario, body: ScoreRequest) -> Response:
        """Returns predictions of given items for a user."""
        found = await service.ask(scenario, checked(service, body))
        return as_json(found.model_dump_json())

    @router.post(
        "/{scenario}/events", tags=["events"], status_code=202, responses=ASKED | described(409)
    )
    async def events(scenario: Scenario, body: EventsRequest) -> EventsAnswer:
        """Stores what users did; the ids of the answer survive a restart."""
        return EventsAnswer(stored=await service.store_events(scenario, checked(service, body)))

    return router


def view_routes(service: Service) -> APIRouter:
    """Returns the routes that the page needs beside the others."""
    router = APIRouter(prefix="/v1", tags=["page"])

    @router.get("/{scenario}/users", responses=LOOKED)
    async def users(scenario: Scenario) -> UsersAnswer:
        """Returns some users of a scenario."""
        return await service.view(scenario, Asker(), lambda views: views.users())

    @router.get("/{scenario}/users/{user:path}", responses=LOOKED)
    async def user(scenario: Scenario, user: User) -> UserAnswer:
        """Returns what is known of a user."""
        return await service.view(scenario, Asker(user=user), lambda views: views.user(user))

    @router.post("/{scenario}/explain", responses=ASKED | described(501))
    async def explain(scenario: Scenario, body: ExplainRequest) -> ExplainAnswer:
        """Returns why an item has its score: history, words, statistics."""
        ask = checked(service, body)
        return await service.view(scenario, ask, lambda views: views.explain(ask))

    @router.post("/{scenario}/compare", responses=ASKED, response_model_exclude_unset=True)
    async def compare(scenario: Scenario, body: CompareRequest) -> CompareAnswer:
        """Returns the lists of all models, and what is popular, side by side."""
        ask = checked(service, body)
        return await service.view(scenario, ask, lambda views: views.compare(ask))

    return router


def admin_routes(service: Service) -> APIRouter:
    """Returns the routes that tell of models, and change which of them answer."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", responses=described(401, 429))
    async def models() -> ModelsAnswer:
        """Returns all versions: scenarios, kinds of models, tasks and shares."""
        return ModelsAnswer(versions=service.versions())

    text = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @router.get("/metrics", responses={**described(401, 429), **text}, response_class=Response)
    async def metrics() -> Response:
        """Returns counts in Prometheus' text format."""
        service.count_versions()
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    add_changes(router, service)
    return router


def add_changes(router: APIRouter, service: Service) -> None:
    """Add the routes that change versions."""
    changes = described(400, 401, 404, 409, 413, 422, 429)

    @router.post("/v1/admin/versions", status_code=202, responses=changes)
    def add(body: VersionRequest) -> VersionFacts:
        """Prepares the models of another run beside those that answer."""
        return service.version_facts(service.control.add(body.run, body.share))

    @router.put("/v1/admin/versions/{version}", responses=changes)
    def put(version: Text, body: ShareRequest) -> VersionFacts:
        """Sets the share of a version; 1 takes over, or takes back."""
        row = service.control.set_share(version, body.share)
        service.update()
        return service.version_facts(row)

    @router.delete("/v1/admin/versions/{version}", status_code=204, responses=changes)
    def delete(version: Text) -> None:
        """Forgets a version whose share is 0."""
        service.control.remove(version)
        service.update()


def checked(service: Service, body: Any) -> Any:
    """Returns a request that keeps the limits of the service.

    Raises:
        RequestError: it does not; a line for each field.
    """
    limits = service.options.limits
    lines = [
        f"{field}: found {len(values)} of them; allowed: at most {most}"
        for field, most in (
            ("history", limits.history), ("items", limits.items), ("events", limits.events)
        )
        if len(values := getattr(body, field, None) or ()) > most
    ]  # fmt: skip
    if lines:
        raise RequestError(lines)
    return body


def as_json(text: str) -> Response:
    """Returns an answer that is JSON already: FastAPI would check it and write it once more."""
    return Response(text, media_type="application/json")
