"""The section `serve` of a project file: the service that answers requests."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mtrec_ray.project.base import Section

Port = Annotated[int, Field(ge=0, le=65_535)]


class Limits(Section):
    """What a request, and a client, may ask for; beyond it the service refuses."""

    body_bytes: PositiveInt = Field(
        default=1_000_000, description="Bytes of a request's body, at most."
    )
    history: PositiveInt = Field(
        default=1_000, description="Items of a history in a request, at most."
    )
    k: PositiveInt = Field(default=200, description="Items of a list, at most.")
    items: PositiveInt = Field(default=500, description="Items of a score request, at most.")
    events: PositiveInt = Field(default=1_000, description="Events of a request, at most.")
    requests_per_s: PositiveFloat = Field(
        default=200.0,
        description="Requests a second of a client address, at most, of which each replica lets in "
        "an equal part; short bursts of as many are answered.",
    )
    in_flight: PositiveInt = Field(
        default=64,
        description="Requests of a client address that are under way, at most, shared alike.",
    )
    queue: PositiveInt = Field(
        default=64,
        description="Requests that wait at a replica, at most; others are told when to try again.",
    )
    seconds: PositiveFloat = Field(
        default=10.0, description="Time after which a request that has no answer yet is given up."
    )


class Serve(Section):
    """The service that answers requests."""

    host: str = Field(default="127.0.0.1", description="Address to listen at.")
    port: Port = Field(default=8000, description="Port to listen at. 0: any that is free.")
    replicas: PositiveInt = Field(default=1, description="Processes that answer requests.")
    cpus_per_replica: PositiveInt = Field(default=1, description="CPUs of a replica.")
    token: str = Field(
        default="new",
        description="Token that requests bear. new: made at the start and told; env:NAME: the "
        "value of a variable of the environment; none: anybody may ask.",
    )
    store: str | None = Field(
        default=None,
        description="URL of the store of events: redis://HOST:PORT, or sqlite:///FILE. null: "
        "SQLite below the run's folder.",
    )
    moment: Literal["latest", "clock"] = Field(
        default="latest",
        description="When users ask. latest: just after the latest row or event of the scenario; "
        "clock: when the request comes.",
    )
    limits: Limits = Field(default=Limits(), description="What requests and clients may ask for.")
    batch_size: PositiveInt = Field(
        default=32, description="Requests that are answered together, at most."
    )
    batch_wait_ms: float = Field(
        default=2.0, ge=0, description="Time that a request waits for others, at most, in ms."
    )

    def check_token(self) -> Iterator[str]:
        """Yields a line for a token that stands in the file itself."""
        named = self.token.startswith("env:") and len(self.token) > len("env:")
        if self.token not in ("new", "none") and not named:
            yield "token: found another text; allowed: new, none, or env:NAME"
