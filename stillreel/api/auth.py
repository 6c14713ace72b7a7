"""Who is asking: a key in `Authorization: Bearer` or `X-API-Key`, and what it may do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request

from stillreel.api.services import services_of
from stillreel.errors import Forbidden, Unauthorized
from stillreel.owners import Caller, Scope

MISSING = "Missing authorization header"
"""These two texts stand in the first design document, word for word."""
INVALID = "Invalid API key"


OPEN = ("/health", "/api/v1/receipt-key", "/files/", "/problems/", "/webhook/complete")
"""What needs no API key: nothing secret, or a signature or token of its own."""


def describe_security(schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with the two ways to send a key."""
    schema.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    schema["security"] = [{"bearer": []}, {"apiKey": []}]
    for path, operations in schema.get("paths", {}).items():
        if path.startswith(OPEN):
            for operation in operations.values():
                operation["security"] = []
    return schema


async def authenticate(request: Request) -> Caller:
    """The caller of a request. Raises Unauthorized, TooManyRequests."""
    services = services_of(request)
    text = key_text(request.headers.get("authorization"), request.headers.get("x-api-key"))
    caller = await services.owners.find(text)
    if caller is None:
        raise Unauthorized(INVALID)
    state = request.scope["state"]
    state["owner"], state["key_id"] = caller.owner, caller.key_id
    state["response_headers"] = services.rates.hit(caller.key_id)
    return caller


def key_text(authorization: str | None, x_api_key: str | None) -> str:
    """The key in these headers. Raises Unauthorized where there is none."""
    if authorization:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    if x_api_key:
        return x_api_key
    raise Unauthorized(MISSING)


def needing(scope: Scope) -> Callable[[Request], Coroutine[Any, Any, Caller]]:
    """A dependency that gives the caller, when its key has this scope."""

    async def check(request: Request) -> Caller:
        caller = await authenticate(request)
        if scope not in caller.scopes:
            raise Forbidden(f"This key may not do that; it lacks the scope `{scope}`.")
        return caller

    return check


Reader = Annotated[Caller, Depends(needing("read"))]
Generator = Annotated[Caller, Depends(needing("generate"))]
Admin = Annotated[Caller, Depends(needing("admin"))]
