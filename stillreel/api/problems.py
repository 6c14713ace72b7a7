"""What a caller is told when something fails: RFC 9457 problems, OpenAI's envelope under /v1/."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState

from stillreel.errors import ApiError, NotThere, RequestRejected, StillreelError, error_of

log = logging.getLogger("stillreel.api")
router = APIRouter(include_in_schema=False)

OPENAI_PREFIX = "/v1/"
PROBLEM_JSON = "application/problem+json"
RETRY_AFTER = 2
"""Seconds that a caller is asked to wait after 429 and 503 where the error knows none."""
LONGEST_TEXT = 300
MOST_FIELDS = 100


class InvalidField(BaseModel):
    """One part of a request that is not valid."""

    pointer: str | None = Field(None, description="JSON pointer into the body; none: a parameter.")
    detail: str


class Problem(BaseModel):
    """Why a request was not answered as asked (RFC 9457)."""

    type: str = Field(examples=["/problems/job_unknown"])
    title: str = Field(description="The same for all problems of this type.")
    status: int = Field(examples=[404])
    detail: str = Field(description="What was wrong this time, and what to do.")
    instance: str = Field(examples=["/api/v1/jobs/job_1"])
    code: str = Field(description="The type as one word, for programs.", examples=["job_unknown"])
    error: str = Field(description="The detail again, for clients that read only this.")
    request_id: str = Field(description="Under which the server's log has this request.")
    errors: list[InvalidField] | None = Field(None, description="Each invalid field, on 422.")


class OpenAIErrorBody(BaseModel):
    """What OpenAI's clients read of an error."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The first invalid field.")
    code: str = Field(examples=["job_unknown"])


class OpenAIError(BaseModel):
    """An error in OpenAI's envelope."""

    error: OpenAIErrorBody


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
    app.openapi = lambda: _describe_problems(describe())


def problem_of(error: Exception, path: str, request_id: str) -> dict[str, Any]:
    """The problem as JSON data, for streams and sockets that have answered 200 already."""
    failure = _failure_of(error)
    problem: dict[str, Any] = {
        "type": failure.type,
        "title": failure.title,
        "status": failure.status,
        "detail": failure.detail,
        "instance": quote(path[:LONGEST_TEXT], errors="replace"),
        "code": failure.code,
        "error": failure.detail.removesuffix("."),
        "request_id": request_id,
    }
    return problem | ({"errors": failure.errors} if failure.errors else {})


def answer_of(error: Exception, scope: Scope) -> Response:
    """The response that tells the caller of this request about an error."""
    failure, path = _failure_of(error), str(scope["path"])
    if path.startswith(OPENAI_PREFIX):
        body, media_type = {"error": _openai_error(failure)}, "application/json"
    else:
        body, media_type = problem_of(error, path, _request_id(scope)), PROBLEM_JSON
    return Response(json.dumps(body), failure.status, failure.headers, media_type)


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


@dataclass(frozen=True)
class _Failure:
    status: int
    code: str
    type: str
    title: str
    detail: str
    headers: Mapping[str, str]
    errors: Sequence[Mapping[str, str]] = ()
    param: str | None = None


def _failure_of(error: Exception) -> _Failure:
    match error:
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return _http(error)
        case StillreelError():
            shown = error
        case _:
            shown = StillreelError("Something went wrong here; the log has it under request_id.")
    return _Failure(
        status=shown.http_status,
        code=shown.code,
        type=f"/problems/{shown.code}",
        title=error_of(shown.code, "").message,
        detail=_clean(shown.message),
        headers=_headers(shown.http_status, error),
    )


def _invalid(error: RequestValidationError) -> _Failure:
    fields = [_Field.of(mistake, error.body) for mistake in error.errors()[:MOST_FIELDS]]
    told = "; ".join(f"{field.name}: {field.detail}" for field in fields[:3])
    more = len(error.errors()) - 3
    return _Failure(
        status=RequestRejected.http_status,
        code=RequestRejected.code,
        type=f"/problems/{RequestRejected.code}",
        title=RequestRejected().message,
        detail=_clean(told + (f"; and {more} more" if more > 0 else "")),
        headers={},
        errors=[field.told() for field in fields],
        param=fields[0].name if fields else None,
    )


def _http(error: HTTPException) -> _Failure:
    try:
        status = HTTPStatus(error.status_code)
        title, code = status.phrase, status.name.lower()
    except ValueError:
        title, code = "Error", "api_error"
    detail = error.detail if isinstance(error.detail, str) else title
    allowed = (error.headers or {}).get("Allow")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and allowed:
        detail = f"This method is not allowed here; allowed is {allowed}."
    elif error.status_code == HTTPStatus.NOT_FOUND and detail == title:
        detail = NotThere().message
    return _Failure(
        status=error.status_code,
        code=code,
        type="about:blank",
        title=title,
        detail=_clean(detail),
        headers=_headers(error.status_code, error),
    )


@dataclass(frozen=True)
class _Field:
    """One invalid part of a request: in which part, where in it, and why."""

    part: str
    steps: Sequence[str] = field(default_factory=tuple)
    detail: str = ""

    @classmethod
    def of(cls, mistake: Mapping[str, Any], body: Any) -> _Field:
        part, *steps = mistake["loc"] or ("body",)
        detail = _clean(str(mistake["msg"]).removeprefix("Value error, "))
        if mistake["type"] == "json_invalid":
            return cls("body", (), f"is not JSON (at character {steps[0] if steps else 0})")
        if part == "body":
            steps = list(_real_steps(steps, body, missing=mistake["type"] == "missing"))
        return cls(str(part), [_clean(str(step)) for step in steps], detail)

    @property
    def name(self) -> str:
        return ".".join(self.steps) or self.part

    def told(self) -> dict[str, str]:
        if self.part != "body":
            return {"detail": _clean(f"{self.part} parameter {self.name}: {self.detail}")}
        steps = (step.replace("~", "~0").replace("/", "~1") for step in self.steps)
        return {
            "pointer": "#" + "".join(f"/{quote(step)}" for step in steps),
            "detail": self.detail,
        }


def _real_steps(steps: Iterable[Any], body: Any, *, missing: bool) -> Iterable[Any]:
    """The steps that lead into the body; pydantic puts names of union members between them."""
    *inner, last = steps = list(steps) or [None]
    for step in inner if missing else steps:
        inside = isinstance(body, Mapping) and step in body
        if not inside and not (isinstance(body, list) and step in range(len(body))):
            continue
        yield step
        body = body[step]
    if missing and last is not None:
        yield last


def _headers(status: int, error: Exception) -> Mapping[str, str]:
    headers = dict(getattr(error, "headers", None) or {})
    if status == HTTPStatus.UNAUTHORIZED:
        headers.setdefault("WWW-Authenticate", "Bearer")
    seconds = error.retry_after if isinstance(error, ApiError) else None
    if seconds is None and status in (
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ):
        seconds = RETRY_AFTER
    if seconds is not None:
        headers.setdefault("Retry-After", str(max(1, math.ceil(seconds))))
    return headers


def _clean(text: str) -> str:
    """Text of a bounded length that any encoder takes, whatever a caller put into it."""
    if len(text) > LONGEST_TEXT:
        text = f"{text[: LONGEST_TEXT - 1]}…"
    text = text.encode("utf-8", errors="replace").decode()
    return "".join(letter for letter in text if letter >= " " or letter == "\n")


def _openai_error(failure: _Failure) -> dict[str, str | None]:
    kind = "server_error" if failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR else ""
    return {
        "message": failure.detail,
        "type": kind or _OPENAI_TYPES.get(failure.status, "invalid_request_error"),
        "param": failure.param,
        "code": failure.code,
    }


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def _request_id(scope: Scope) -> str:
    return str(scope.get("state", {}).get("request_id", ""))


# --- where errors arrive ------------------------------------------------------------------------


async def _handle(connection: HTTPConnection, error: Exception) -> Response | None:
    answer = answer_of(error, connection.scope)
    told = isinstance(error, (StillreelError, HTTPException, RequestValidationError))
    if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.log(
            logging.WARNING if told else logging.ERROR,
            "request failed: %s",
            error if told else type(error).__name__,
            exc_info=None if told else error,
            extra={"request_id": _request_id(connection.scope), "status": answer.status_code},
        )
    if isinstance(connection, WebSocket) and _accepted(connection):
        code = 1008 if answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else 1011
        await connection.close(code, _failure_of(error).code)
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


# --- how errors are described -------------------------------------------------------------------


def _response(description: str, *headers: str) -> dict[str, Any]:
    described = {name: {"schema": {"type": "string"}} for name in headers}
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": description, "content": content} | (
        {"headers": described} if described else {}
    )


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _response("The request cannot be read."),
    401: _response("The API key is missing or wrong.", "WWW-Authenticate"),
    403: _response("This key may not do that."),
    404: _response("There is no such thing, or it is another owner's."),
    405: _response("This method is not allowed here.", "Allow"),
    408: _response("The body did not arrive in time."),
    409: _response("The state of things does not allow it."),
    410: _response("It was deleted."),
    413: _response("The body or the image is too large."),
    422: _response("A field is not valid, or the order cannot be carried out."),
    429: _response("Too many requests, or a quota is used up.", "Retry-After", "RateLimit"),
    500: _response("Something went wrong here."),
    501: _response("This installation does not do that."),
    502: _response("Storage or another server refused."),
    503: _response("Prefect or storage does not answer now.", "Retry-After"),
}
"""For `responses=` of a route; under /v1/ they are described in OpenAI's envelope."""


def _describe_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with the problems' schemas, in place of FastAPI's own for 422."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in (Problem, OpenAIError):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= described.pop("$defs", {})
        schemas[model.__name__] = described
    for path, operations in schema.get("paths", {}).items():
        for operation in operations.values():
            _describe_responses(operation.get("responses", {}), path)
    return schema


def _describe_responses(responses: dict[str, Any], path: str) -> None:
    for status, given in responses.items():
        response = PROBLEMS[422] if "HTTPValidationError" in json.dumps(given) else given
        if path.startswith(OPENAI_PREFIX) and PROBLEM_JSON in response.get("content", {}):
            envelope = {"schema": {"$ref": "#/components/schemas/OpenAIError"}}
            response = response | {"content": {"application/json": envelope}}
        responses[status] = response
