"""What of an error its caller is told: which it is, in words of a bounded length, and headers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from stillreel.errors import ApiError, NotThere, RequestRejected, StillreelError, error_of

RETRY_AFTER = 2
"""Seconds that a caller is asked to wait after 429 and 503 where the error knows none."""
LONGEST_TEXT = 300
MOST_FIELDS = 100


@dataclass(frozen=True)
class Failure:
    """An error as its caller may know it."""

    status: int
    code: str
    type: str
    """Where the code is explained."""
    title: str
    """The same for every error of this code."""
    detail: str
    headers: Mapping[str, str]
    errors: Sequence[Mapping[str, str]] = ()
    """The invalid fields: `detail`, and `pointer` where it is in the body."""
    param: str | None = None
    """The first of them, by its name."""


def failure_of(error: Exception) -> Failure:
    """What is told about an error; of one that we did not expect, only that there was one."""
    match error:
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return _http(error)
        case StillreelError():
            shown = error
        case _:
            shown = StillreelError("Something went wrong here; the log has it under request_id.")
    return Failure(
        status=shown.http_status,
        code=shown.code,
        type=f"/problems/{shown.code}",
        title=error_of(shown.code, "").message,
        detail=_clean(shown.message),
        headers=_headers(shown.http_status, error),
    )


def _invalid(error: RequestValidationError) -> Failure:
    fields = [_Field.of(mistake, error.body) for mistake in error.errors()[:MOST_FIELDS]]
    told = "; ".join(f"{field.name}: {field.detail}" for field in fields[:3])
    more = len(error.errors()) - 3
    return Failure(
        status=RequestRejected.http_status,
        code=RequestRejected.code,
        type=f"/problems/{RequestRejected.code}",
        title=RequestRejected().message,
        detail=_clean(told + (f"; and {more} more" if more > 0 else "")),
        headers={},
        errors=[field.told() for field in fields],
        param=fields[0].name if fields else None,
    )


def _http(error: HTTPException) -> Failure:
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
    return Failure(
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
