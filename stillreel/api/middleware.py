"""What every request passes: its id, its line in the log, headers for browsers, a bounded body.

Plain ASGI, because all of it is on the way of each poll; together some tens of microseconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillreel.api.problems import answer_of
from stillreel.errors import BodyTooLarge, BodyTooSlow, StillreelError

access_log = logging.getLogger("stillreel.api.access")

QUIET_PATHS = ("/health", "/metrics")
"""Asked every few seconds by machines; their lines are for debugging."""
LINGER_SECONDS = 1.0
"""How long a refused body is still read. Closing on unread bytes resets the connection, and with
it the answer may be lost on its way."""

_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SECURITY = {b"x-content-type-options": b"nosniff", b"referrer-policy": b"no-referrer"}
_NONE: Mapping[str, Any] = {}
_REQUEST: ContextVar[Mapping[str, Any]] = ContextVar("request", default=_NONE)


def install_middleware(app: FastAPI, *, body_max_bytes: int, body_seconds: float) -> None:
    """Put all of this module around the app, in the order that they need."""
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
        given = _header(scope, b"x-request-id")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(16).encode()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id.decode()

        async def tell(message: Message) -> None:
            if message["type"] in _STARTS:
                headers = [*message.get("headers", ()), (b"x-request-id", request_id)]
                message = {**message, "headers": headers}
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
                headers = list(message.get("headers", ()))
                given = {name.lower() for name, _ in headers}
                left: Mapping[str, str] = state.get("response_headers", _NONE)
                ours = _SECURITY | {key.lower().encode(): left[key].encode() for key in left}
                headers += [(name, value) for name, value in ours.items() if name not in given]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, tell)


class BodyLimit:
    """Refuses bodies that are larger (413) or take longer (408) than allowed, and hangs up then.

    Paths that begin as one of `exempt` have limits of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        seconds: float,
        exempt: Sequence[str] = ("/files/",),
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._exempt = tuple(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._exempt):
            await self._app(scope, receive, send)
            return
        length = _header(scope, b"content-length")
        if length in (b"", b"0") and not _header(scope, b"transfer-encoding"):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._max_bytes, self._seconds)
        if length.isdigit() and int(length) > self._max_bytes:
            await exchange.refuse(exchange.too_large())
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            if not exchange.refused:
                raise
        if exchange.refused:
            await exchange.refuse(exchange.refused)


class _Exchange:
    """A request whose body is counted and timed, and its answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, max_bytes: int, seconds: float
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_bytes, self._seconds = max_bytes, seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._size = 0
        self._arrived = False
        self._ahead: Message | None = None
        self._begun = False
        self._closing = False
        self.refused: StillreelError | None = None

    async def receive(self) -> Message:
        """What the server has for the app; raises BodyTooLarge and BodyTooSlow."""
        message, self._ahead = self._ahead, None
        if message is None and self._arrived:
            return await self._receive()
        if message is None:
            try:
                async with asyncio.timeout_at(self._deadline):
                    message = await self._next()
            except TimeoutError as exc:
                self.refused = self._too_slow()
                raise self.refused from exc
        if self._size > self._max_bytes:
            self.refused = self.too_large()
            raise self.refused
        return message

    async def send(self, message: Message) -> None:
        """Pass the app's answer on, unless it is refused: frameworks make a 400 of our errors."""
        if self._begun or not self.refused:
            await self._answer(message)

    async def refuse(self, error: StillreelError) -> None:
        """Answer in the app's place, unless it has begun to."""
        if not self._begun:
            await answer_of(error, self._scope)(self._scope, self._receive, self._answer)

    def too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The request body is larger than {self._max_bytes} bytes; upload a larger image to "
            "the address that POST /api/v1/presign/upload gives."
        )

    def _too_slow(self) -> BodyTooSlow:
        return BodyTooSlow(
            f"The request body did not arrive within {self._seconds:g} s; send it again, or "
            "upload the image to the address that POST /api/v1/presign/upload gives."
        )

    async def _answer(self, message: Message) -> None:
        """Send; where the body has not been read, hang up after the answer."""
        if message["type"] == "http.response.start":
            self._begun = True
            await self._look_ahead()
            self._closing = not self._arrived
            if self._closing:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
        elif self._closing and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _look_ahead(self) -> None:
        """Learn whether the rest of the body is here already, as small ones are."""
        # To one who waits for "100 Continue", reading is an invitation to send.
        if self._arrived or self._ahead or _header(self._scope, b"expect"):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                self._ahead = await self._next()

    async def _linger(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._arrived:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._arrived = not message.get("more_body", False)
        return message


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


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
