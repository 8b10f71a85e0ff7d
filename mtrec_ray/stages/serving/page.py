"""The page: one HTML file with its style and script, which asks the service as any client does."""

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

PAGE = "page.html"


def page_route() -> APIRouter:
    """Returns the route of the page; it needs no token, what it asks does."""
    router = APIRouter()
    text = files("mtrec_ray.stages.serving").joinpath(PAGE).read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": policy_of(text),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """Returns the page."""
        return HTMLResponse(text, headers=headers)

    return router


def policy_of(text: str) -> str:
    """Returns the policy that lets a page run its own style and script, and ask its own host."""
    style, script = hashes_of(text, "style"), hashes_of(text, "script")
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def hashes_of(text: str, tag: str) -> str:
    """Returns the hashes of the contents of all tags of a kind, as a policy names them."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [hashlib.sha256(one.encode()).digest() for one in found]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
