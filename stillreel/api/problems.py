"""What a caller is told when something fails: RFC 9457 problems, OpenAI's envelope under /v1/."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.types import Scope

from stillreel.api.failures import LONGEST_TEXT, Failure, failure_of

OPENAI_PREFIX = "/v1/"
PROBLEM_JSON = "application/problem+json"


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


def problem_of(error: Exception, path: str, request_id: str) -> dict[str, Any]:
    """The problem as JSON data, for streams and sockets that have answered 200 already."""
    failure = failure_of(error)
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
    failure, path = failure_of(error), str(scope["path"])
    if path.startswith(OPENAI_PREFIX):
        body, media_type = {"error": _openai_error(failure)}, "application/json"
    else:
        body, media_type = problem_of(error, path, request_id_of(scope)), PROBLEM_JSON
    return Response(json.dumps(body), failure.status, failure.headers, media_type)


def request_id_of(scope: Scope) -> str:
    """The id that middleware gave this request."""
    return str(scope.get("state", {}).get("request_id", ""))


def problem_response(description: str, *headers: str) -> dict[str, Any]:
    """A problem for `responses=` of a route, and the headers that come with it."""
    described = {name: {"schema": {"type": "string"}} for name in headers}
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": description, "content": content} | (
        {"headers": described} if described else {}
    )


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: problem_response("The request cannot be read."),
    401: problem_response("The API key is missing or wrong.", "WWW-Authenticate"),
    403: problem_response("This key may not do that."),
    404: problem_response("There is no such thing, or it is another owner's."),
    405: problem_response("This method is not allowed here.", "Allow"),
    408: problem_response("The body did not arrive in time."),
    409: problem_response("The state of things does not allow it."),
    410: problem_response("It was deleted."),
    413: problem_response("The body or the image is too large."),
    422: problem_response("A field is not valid, or the order cannot be carried out."),
    429: problem_response("Too many requests, or a quota is used up.", "Retry-After", "RateLimit"),
    500: problem_response("Something went wrong here."),
    501: problem_response("This installation does not do that."),
    502: problem_response("Storage or another server refused."),
    503: problem_response("Prefect or storage does not answer now.", "Retry-After"),
}
"""For `responses=` of a route; under /v1/ they are described in OpenAI's envelope."""


def describe_problems(schema: dict[str, Any]) -> dict[str, Any]:
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


def _openai_error(failure: Failure) -> dict[str, str | None]:
    kind = "server_error" if failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR else ""
    return {
        "message": failure.detail,
        "type": kind or _OPENAI_TYPES.get(failure.status, "invalid_request_error"),
        "param": failure.param,
        "code": failure.code,
    }


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
