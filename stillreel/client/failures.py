"""What goes wrong between a client and the API, as errors of our tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import httpx

from stillreel.errors import ApiError, StillreelError, error_of

PATIENT_SECONDS = 30.0
"""The longest wait that the API may ask for before a call gives up instead."""

_BUSY = (429, 503)
_GATEWAY = (502, 504)
"""From a proxy in front of the API, when the body is none of ours."""
_LOCAL = ("localhost", "127.0.0.1", "::1")


class ApiFailure(ApiError):
    """The API does not do what it was asked."""

    code = "api_failure"
    status: int = 0
    """The HTTP status; 0 where the answer itself was not understood."""
    detail: str = ""
    request_id: str = ""
    """Under which the API's log has the call."""
    errors: Sequence[Mapping[str, str]] = ()
    """Each invalid field, with its JSON pointer."""
    problem: Mapping[str, Any] = {}
    """The whole answer, where it was a problem of RFC 9457."""

    @classmethod
    def about(cls, text: str) -> ApiFailure:
        """A failure that no status tells of."""
        failure = cls(text)
        failure.detail = text
        return failure

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.message, self.status, self.problem, self.retry_after)


class ApiUnreachable(StillreelError):
    """The API does not answer; a later try may succeed."""

    code, retryable, http_status = "api_unreachable", True, 503


class WaitedTooLong(StillreelError, TimeoutError):
    """The job has not ended in time; it goes on."""

    code, retryable, http_status = "waited_too_long", True, 504


class DownloadDamaged(StillreelError):
    """What was downloaded is not what was made."""

    code, retryable, http_status = "download_damaged", True, 502


def failure_of(response: httpx.Response) -> ApiFailure:
    """The failure that a response with a status of 400 or more tells of; its body was read.

    It is also the error of our tree that has its code: `except QuotaExceeded` catches it.
    """
    problem = _problem_of(response)
    text = str(problem.get("detail") or "") or _plain_text(response)
    return _rebuilt(text, response.status_code, problem, _retry_after(response))


def backoff(error: Exception, *, repeatable: bool = True) -> bool | float:
    """Whether a call may be made again after this error, or in how many seconds.

    What is not `repeatable` is repeated only where it cannot have been done.
    """
    match error:
        case ApiFailure() if error.status in _BUSY:
            may = repeatable or error.status == httpx.codes.TOO_MANY_REQUESTS
            seconds = error.retry_after
            return may and (True if seconds is None else seconds <= PATIENT_SECONDS and seconds)
        case ApiFailure():
            return repeatable and error.status in _GATEWAY and not error.problem
        case DownloadDamaged() | httpx.ConnectError() | httpx.ConnectTimeout():
            return True
        case _:
            return repeatable and isinstance(error, httpx.TransportError)


def unreachable(error: httpx.RequestError, address: str) -> ApiUnreachable:
    """The error for a caller of the API at `address`, once no more tries are made."""
    what = str(error) or "it took too long"
    asked, api = error.request.url, httpx.URL(address)
    if (asked.host, asked.port) != (api.host, api.port):
        return ApiUnreachable(f"The storage at {asked.host} does not answer ({what}).")
    hint = (
        "`stillreel up` starts one on this machine, STILLREEL_API_URL names another"
        if api.host in _LOCAL
        else "check STILLREEL_API_URL and the network"
    )
    return ApiUnreachable(f"The API at {address} does not answer ({what}); {hint}.")


@lru_cache(maxsize=256)
def _class_of(code: str, status: int) -> type[ApiFailure]:
    """ApiFailure that is also the tree's error of this code; one of a newer API keeps its code."""
    known = type(error_of(code, ""))
    if known is StillreelError:
        facts = {"code": code, "http_status": status, "retryable": status in (*_BUSY, *_GATEWAY)}
        return type("ApiFailure", (ApiFailure,), facts)
    facts = {"code": known.code, "http_status": status, "retryable": known.retryable}
    return type(known.__name__, (ApiFailure, known), {"__doc__": known.__doc__, **facts})


def _rebuilt(
    text: str, status: int, problem: Mapping[str, Any], retry_after: float | None
) -> ApiFailure:
    failure = _class_of(str(problem.get("code") or "api_failure"), status or 502)(text)
    failure.status, failure.detail, failure.problem = status, text, problem
    failure.request_id = str(problem.get("request_id") or "")
    errors = problem.get("errors")
    failure.errors = errors if isinstance(errors, list) else ()
    failure.retry_after = retry_after
    return failure


def _problem_of(response: httpx.Response) -> Mapping[str, Any]:
    if "json" not in response.headers.get("content-type", ""):
        return {}
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain_text(response: httpx.Response) -> str:
    text = f"{response.url.host} answered {response.status_code} {response.reason_phrase}".strip()
    if response.has_redirect_location:
        text += f" and points to {response.headers['location'][:200]}; use the address it asks for"
    return f"{text}."


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds; the form with a date is not used by the API and passed over."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None
