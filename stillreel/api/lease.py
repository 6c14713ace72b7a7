"""`/lease/api/...`: Prefect's API for rented hosts, as far as their lease goes.

A stock worker has `PREFECT_API_URL=https://.../lease/api` and
`PREFECT_API_AUTH_STRING=lease:<token>`. The server's own credential is added here, and the token
goes no further than here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import math
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from stillreel.errors import (
    ApiError,
    BodyTooLarge,
    LeaseRefused,
    NotLeased,
    PrefectRefused,
    RequestRejected,
    StillreelError,
)
from stillreel.gateway.allowed import CALLS
from stillreel.gateway.calls import Answered, Asked, Call, find_call
from stillreel.gateway.desk import Desk
from stillreel.gateway.events import EVENT_BYTES, own_event
from stillreel.gateway.lease import Lease

PREFIX = "/lease/api"
AUTH_SECONDS = 10.0
HELLO_MOST = 1_000
"""Characters of the first message over a socket; a token has about a hundred."""

log = logging.getLogger("stillreel.gateway")

_PATH = re.compile(r"/[A-Za-z0-9_./-]*")
"""What a path may be made of: nothing that one server reads otherwise than another."""


class Gateway:
    """The calls of rented hosts, as an ASGI application; errors are the API's problems."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await _answer(Request(scope, receive))
        except ClientDisconnect:
            return
        await answer(scope, receive, send)


def lease_routes() -> list[BaseRoute]:
    """The gateway's routes, for any method, and its socket."""
    return [
        WebSocketRoute(f"{PREFIX}/events/in", _take_events),
        Route(PREFIX + "/{path:path}", Gateway()),
    ]


async def _answer(request: Request) -> Response:
    desk = _desk(request.scope)
    lease = await desk.leases.lease_of(_token(request.headers.get("authorization", "")))
    desk.budget.call(lease.id)
    with desk.budget.turn(lease.id):
        return await _answer_to(request, desk, lease)


async def _answer_to(request: Request, desk: Desk, lease: Lease) -> Response:
    try:
        call, names = find_call(CALLS, request.method, _path(request.scope))
        request.scope["route"] = SimpleNamespace(path=PREFIX + call.path)
        body = await _body(request, call.max_bytes, partial(desk.budget.size, lease.id))
        asked = Asked(names, _query(request, call), body)
        passed = await call.rule(desk, lease, asked)
    except (ApiError, RequestRejected) as exc:
        _log_refusal(lease, request.method, request.url.path, exc)
        raise
    if isinstance(passed, Answered):
        has_body = passed.status != 204
        return JSONResponse(passed.body, passed.status) if has_body else Response(status_code=204)
    answer = await _forward(desk, call.method, passed.path, passed.body)
    if answer.status_code in (401, 403):
        raise PrefectRefused("The Prefect server refuses the gateway's own credential.")
    content = answer.content
    if answer.is_success and passed.done:
        passed.done(answer.json())
    if answer.is_success and passed.show:
        content = json.dumps(passed.show(answer.json())).encode()
    wait = answer.headers.get("retry-after")
    headers = {"retry-after": wait} if wait else None
    return Response(content, answer.status_code, headers, "application/json")


async def _forward(desk: Desk, method: str, path: str, body: Any) -> httpx.Response:
    """Prefect's answer. Raises RequestRejected for what cannot be written as JSON."""
    try:
        return await desk.api.forward(method, path, body)
    except (ValueError, RecursionError) as exc:  # a half of a surrogate pair, for one
        raise RequestRejected("This is no JSON that Prefect takes.") from exc


async def _take_events(socket: WebSocket) -> None:
    """Events of an own run, one a message; what is not its own is left out."""
    desk = _desk(socket.scope)
    if "prefect" not in socket.scope.get("subprotocols", ()):
        await socket.close(1002)
        return
    try:
        with desk.budget.socket():
            await socket.accept("prefect")
            token, lease = await _hello(desk, socket)
        with desk.budget.socket(lease.id):
            await socket.send_json({"type": "auth_success"})
            while True:
                text = await socket.receive_text()
                lease = await desk.leases.lease_of(token)  # it may have ended meanwhile
                desk.budget.call(lease.id)
                await _take_event(desk, lease, text)
    except (WebSocketDisconnect, RuntimeError):
        return
    except (TimeoutError, ValueError, AttributeError, KeyError):
        await socket.close(1008, "This is not what is expected here.")
    except StillreelError as exc:
        log.warning("lease refused", extra={"reason": exc.message})
        await socket.close(1008 if isinstance(exc, ApiError) else 1011, exc.code)


async def _hello(desk: Desk, socket: WebSocket) -> tuple[str, Lease]:
    """The token of who has opened this socket, and its lease. Raises LeaseRefused."""
    async with asyncio.timeout(AUTH_SECONDS):
        text = await socket.receive_text()
    hello = json.loads(text) if len(text) <= HELLO_MOST else None
    if not isinstance(hello, dict) or hello.get("type") != "auth":
        raise LeaseRefused
    token = _bare(str(hello.get("token")))
    return token, await desk.leases.lease_of(token)


async def _take_event(desk: Desk, lease: Lease, text: str) -> None:
    if len(text) > EVENT_BYTES:
        raise BodyTooLarge("The event is larger than allowed.")
    desk.budget.size(lease.id, len(text))
    try:
        event = await own_event(desk, lease, parse(text.encode()))
        if event is None:
            return
        answer = await _forward(desk, "POST", "/events", [event])
    except (NotLeased, RequestRejected) as exc:
        _log_refusal(lease, "WEBSOCKET", "/events/in", exc)
        return
    if not answer.is_success:
        log.info("an event of lease %s was not taken: %d", lease.id, answer.status_code)


def _desk(scope: Scope) -> Desk:
    return scope["app"].state.desk


def _token(authorization: str) -> str:
    """The token in an Authorization header, as Prefect's client sends it. Raises LeaseRefused."""
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise LeaseRefused
    try:
        return _bare(base64.b64decode(text, validate=True).decode())
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise LeaseRefused from exc


def _bare(auth_string: str) -> str:
    user, _, token = auth_string.partition(":")
    if user != "lease":
        raise LeaseRefused
    return token


def _path(scope: Scope) -> str:
    """The path below the gateway's, as it came over the wire. Raises NotLeased for an odd one."""
    raw = scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
    path = str(scope["path"])
    if raw != path or not _PATH.fullmatch(path) or "//" in path or "/." in path:
        raise NotLeased("This is not the path of a call.")
    return path.removeprefix(PREFIX)


def _query(request: Request, call: Call) -> dict[str, str]:
    pairs = request.query_params.multi_items()
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names) or not set(names) <= set(call.query):
        raise NotLeased("This call has other parameters.")
    return dict(pairs)


async def _body(request: Request, max_bytes: int, count: Callable[[int], None]) -> Any:
    """What the body says; None without one. `count` is told of all bytes that have come.

    Raises BodyTooLarge, RequestRejected for what is no JSON, and what `count` raises.
    """
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        count(len(part))
        if size > max_bytes:
            raise BodyTooLarge("The request body is larger than allowed.")
        parts.append(part)
    return parse(b"".join(parts)) if size else None


def parse(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
        if "\\u0000" in text:  # Postgres answers such a text with 503, for ever
            raise ValueError("holds a NUL")
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as exc:
        raise RequestRejected("This is no JSON that Prefect takes.") from exc


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _log_refusal(lease: Lease, method: str, path: str, error: StillreelError) -> None:
    log.warning(
        "lease refused",
        extra={
            "lease": lease.id,
            "method": method,
            "path": path[:200],
            "reason": error.message,
        },
    )
