"""The short way for polls: `GET /api/v1/jobs/{id}` of a job whose answer is fresh.

Most requests are polls of jobs that have not ended. They are answered here, before routing and
dependencies, which cost more than the answer; whatever is not plainly such a poll goes on to the
route, so there is one behaviour.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from stillreel.api.auth import key_text
from stillreel.api.views import facts, to_bytes
from stillreel.errors import StillreelError
from stillreel.job import JobStatus
from stillreel.jobs.reader import Snapshot

if TYPE_CHECKING:
    from stillreel.api.services import Services

PREFIX = "/api/v1/jobs/"
ROUTE = SimpleNamespace(path="/api/v1/jobs/{job_id}")
"""What the access log reads of a route."""


class Polls:
    """Answers plain polls from what is known, and passes everything else on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            path: str = scope["path"]
            if path.startswith(PREFIX) and not scope["query_string"]:
                body = await _answer(scope, path[len(PREFIX) :])
                if body is not None:
                    await _send(send, body)
                    return
        await self._app(scope, receive, send)


async def _answer(scope: Scope, job_id: str) -> bytes | None:
    """The answer to a plain poll; None for anything else."""
    services: Services = scope["app"].state.services
    snapshot = services.reader.peek(job_id)
    if snapshot is None or snapshot.status is JobStatus.COMPLETED or snapshot.record.is_deleted:
        return None
    headers = dict(scope["headers"])
    if b"prefer" in headers:
        return None
    try:
        text = key_text(_text(headers, b"authorization"), _text(headers, b"x-api-key"))
        caller = await services.owners.find(text)
        if caller is None or not caller.may("read"):
            return None
        if snapshot.record.owner != caller.owner and not caller.may("admin"):
            return None
        limit = services.rates.hit(caller.key_id)
    except StillreelError:
        return None  # the route says it, and counts the request once
    state = scope["state"]
    state["owner"], state["key_id"], state["job_id"] = caller.owner, caller.key_id, job_id
    state["response_headers"] = limit
    scope["route"] = ROUTE
    return render(services, snapshot)


def render(services: Services, snapshot: Snapshot) -> bytes:
    """The answer about a job that has no URLs, made once for each snapshot."""
    return services.reader.render(
        snapshot, lambda s: to_bytes(facts(s, services.settings.storage, services.estimates.eta))
    )


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


async def _send(send: Send, body: bytes) -> None:
    length = str(len(body)).encode()
    headers = [(b"content-length", length), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
