"""Where errors arrive: each becomes one answer, and a line in the log where the fault is ours."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import cast

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState

from stillreel.api.failures import failure_of
from stillreel.api.problems import answer_of, describe_problems, request_id_of
from stillreel.errors import NotThere, StillreelError, error_of

log = logging.getLogger("stillreel.api")
router = APIRouter(include_in_schema=False)


def install_problems(app: FastAPI) -> None:
    """Make the app answer every error in the one form, and describe it so in /openapi.json."""
    for kind in (StillreelError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, cast("ExceptionHandler", _handle))
    # The handler of Exception above is Starlette's outermost: an answer of its would have no
    # headers of ours, no line in the access log, and would be raised again. So it gets only what
    # our own middleware raises, and this, the innermost, all else.
    app.user_middleware.append(Middleware(_LastResort))
    app.include_router(router)
    describe = app.openapi
    app.openapi = lambda: describe_problems(describe())


@router.get("/problems/{code}")
def explain_problem(code: str) -> dict[str, str | int | bool]:
    """What a problem's `type` means."""
    error = error_of(code, "")
    if error.code != code:
        raise NotThere
    return {
        "type": f"/problems/{code}",
        "title": error.message,
        "status": error.http_status,
        "retryable": error.retryable,
    }


async def _handle(connection: HTTPConnection, error: Exception) -> Response | None:
    answer = answer_of(error, connection.scope)
    told = isinstance(error, (StillreelError, HTTPException, RequestValidationError))
    if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.log(
            logging.WARNING if told else logging.ERROR,
            "request failed: %s",
            error if told else type(error).__name__,
            exc_info=None if told else error,
            extra={"request_id": request_id_of(connection.scope), "status": answer.status_code},
        )
    if isinstance(connection, WebSocket) and _accepted(connection):
        code = 1008 if answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else 1011
        await connection.close(code, failure_of(error).code)
        return None
    return answer


def _accepted(socket: WebSocket) -> bool:
    return socket.application_state is not WebSocketState.CONNECTING


class _LastResort:
    """Answers what no handler knew; an answer that has begun is broken off instead."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as exc:
            if begun:
                raise
            answer = await _handle(HTTPConnection(scope), exc)
            if answer:
                await answer(scope, receive, send)
