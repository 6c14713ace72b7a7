"""What every request passes: its id, its line in the log, headers for browsers, a bounded body.

Plain ASGI, because all of it is on the way of each poll; together some tens of microseconds.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillreel.api.body_limit import BodyLimit

access_log = logging.getLogger("stillreel.api.access")

QUIET_PATHS = ("/health", "/metrics")
"""Asked every few seconds by machines; their lines are for debugging."""

_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_NONE: Mapping[str, Any] = {}
_REQUEST: ContextVar[Mapping[str, Any]] = ContextVar("request", default=_NONE)


def install_middleware(app: FastAPI, *, body_max_bytes: int, body_seconds: float) -> None:
    """Put this module and the body's limit around the app, in the order that they need."""
    app.add_middleware(BodyLimit, max_bytes=body_max_bytes, seconds=body_seconds)
    app.add_middleware(ResponseHeaders)
    app.add_middleware(AccessLog)
    app.add_middleware(RequestIds)


def install_logging(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Make our loggers and uvicorn's write JSON, one line each, to stderr (or to the stream)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("stillreel", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        # uvicorn writes a line per socket, with the query string.
        logger.setLevel(max(level, logging.WARNING) if name == "uvicorn" else level)
        logger.propagate = False


class RequestIds:
    """Gives each request an id: the caller's own where it is a sane one.

    It is in `scope["state"]["request_id"]`, in every log line and in the answer's X-Request-Id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(16)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def tell(message: Message) -> None:
            if message["type"] in _STARTS:
                MutableHeaders(scope=message).append("x-request-id", request_id)
            await send(message)

        token = _REQUEST.set(state)
        try:
            await self._app(scope, receive, tell)
        finally:
            _REQUEST.reset(token)


class AccessLog:
    """Writes one line per request: no query string, no header, and the route, not the address.

    And counts it in `app.state.metrics.requests` where the app has that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        level = logging.DEBUG if scope.get("path") in QUIET_PATHS else logging.INFO
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS:
                status = message.get("status", 101)
            elif message["type"] == "websocket.close" and not status:
                status = 403
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = status or 500
            raise
        finally:
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            # 499, as nginx has it: the caller left before there was an answer.
            _count(scope, status or 499)
            if access_log.isEnabledFor(level):
                access_log.log(level, "request", extra=_facts(scope, status or 499, milliseconds))


class ResponseHeaders:
    """Adds headers for browsers, and what a handler left in `scope["state"]["response_headers"]`.

    So a handler's headers (those of the rate limit) reach errors and streams too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                left: Mapping[str, str] = state.get("response_headers", _NONE)
                for name, value in (*left.items(), *_SECURITY.items()):
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, tell)


class JsonLines(logging.Formatter):
    """A record as one line of JSON with its extra fields and the request's id, owner and job."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= _told(_REQUEST.get())
        line |= {name: value for name, value in vars(record).items() if name not in _RECORD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def _facts(scope: Scope, status: int, milliseconds: float) -> dict[str, Any]:
    route = getattr(scope.get("route"), "path", None)
    return {
        "method": scope.get("method", "WEBSOCKET"),
        **({"route": route} if route else {"path": scope["path"][:200]}),
        "status": status,
        "ms": milliseconds,
        **_told(scope.get("state", _NONE)),
    }


def _count(scope: Scope, status: int) -> None:
    metrics = getattr(scope["app"].state, "metrics", None) if "app" in scope else None
    if metrics is not None:
        route = getattr(scope.get("route"), "path", "none")
        metrics.requests[scope.get("method", "WS"), route, str(status)] += 1


def _told(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in ("request_id", "owner", "job_id") if state.get(name)}
