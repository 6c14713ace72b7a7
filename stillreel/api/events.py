"""A job's events as they happen: server-sent events, and the same over a WebSocket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Request, Response, WebSocket, WebSocketDisconnect
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketState

from stillreel.api.auth import Reader, key_text, needing
from stillreel.api.jobs import own_job, view_of
from stillreel.api.limits import Streams
from stillreel.api.problems import PROBLEMS
from stillreel.api.services import Services, services_of
from stillreel.api.story import Event, Story, end_id, missed, since, time_of
from stillreel.api.views import to_bytes
from stillreel.errors import JobUnknown, StillreelError
from stillreel.jobs.reader import ACTIVE_SECONDS, Snapshot

router = APIRouter(tags=["jobs"], responses=PROBLEMS)
log = logging.getLogger("stillreel.api")

PATH = "/api/v1/jobs/{job_id}/events"
KEEP_ALIVE_SECONDS = 15
RETRY_MILLISECONDS = 2000
"""After which an EventSource connects again."""
SEND_SECONDS = 60
"""How long a reader may stand still before it is held to be gone."""
SUBPROTOCOL, KEY_PREFIX = "stillreel", "key."
"""What a browser offers, which can send no header with a WebSocket: `stillreel, key.<key>`."""
REFUSED = 4000
"""The socket of such a browser is closed with this plus the HTTP status: 4401, 4404, 4429."""

_EXAMPLE = """retry: 2000

id: 1795219200000-5d41402a
event: status
data: {"job_id":"job_abc123","status":"processing","at":"2026-11-20T12:00:00.000Z","job":{...}}

id: 1795219200000-7c211433
event: progress
data: {"stage":"infer","phase":"denoise","step":3,"steps":8,"progress":35,"position":null,\
"eta_seconds":21,"heartbeat_age_seconds":2}

id: 1795219231000-end
event: end
data: {"job_id":"job_abc123","status":"completed","progress":100,"result_url":"https://...",...}
"""


@router.get(
    PATH,
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "The events, until the job has ended.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}},
        },
        204: {"description": "The reader knows the job's end; an EventSource stops here."},
    },
)
async def stream_events(
    job_id: str,
    request: Request,
    caller: Reader,
    last_event_id: Annotated[
        str, Header(alias="Last-Event-ID", description="Id of the last event that was seen.")
    ] = "",
    last_seen: Annotated[
        str, Query(alias="last_event_id", description="The same, where no header can be sent.")
    ] = "",
) -> Response:
    """A job's events as they happen, the first one at once and then one a second at most.

    `status`: the job's status has changed, at `at`; `job` is the whole job, or null in a status
    that was missed. A stream begins with one. `progress`: `stage`, `phase`, `step`, `steps`,
    `progress`, `position`, `eta_seconds`, `heartbeat_age_seconds`. `end`: the whole job with its
    URLs; then the stream closes. A comment every 15 s keeps the connection open.

    A stream that broke is resumed with the id of its last event: the statuses that were missed
    come first, then the job as it is; nothing comes twice. It may be resumed at another API
    process. A job that has ended answers `end` alone, and 204 to a reader that has seen it.

    The same address takes WebSockets: each event is a message `{"id", "event", "data"}`, and
    `?last_event_id=` resumes. A browser, which can send no header, offers the subprotocols
    `stillreel` and `key.<API key>`; it is refused by closing with 4000 + the HTTP status, e.g.
    4401, where others get the HTTP answer itself. A key in the address is not accepted.
    """
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id)
    last_id = last_event_id or last_seen
    if snapshot.has_ended and last_id == end_id(snapshot):
        return Response(status_code=204)
    events = await _events(request, services, snapshot, last_id)
    return _Stream(_encoded(events), streams=services.streams, key_id=caller.key_id)


@router.websocket(PATH)
async def send_events(job_id: str, socket: WebSocket) -> None:
    """The same events as JSON messages."""
    subprotocol = SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None
    request = _as_request(socket)
    services = services_of(request)
    async with AsyncExitStack() as stack:
        try:
            caller = await needing("read")(request)
            snapshot = await own_job(services, caller, job_id)
            last_id = request.headers.get("last-event-id") or ""
            last_id = last_id or request.query_params.get("last_event_id", "")
            events = await _events(request, services, snapshot, last_id)
            await stack.enter_async_context(services.streams.opened(caller.key_id))
        except StillreelError as exc:
            if not subprotocol:
                raise
            await socket.accept(subprotocol)
            await socket.close(REFUSED + exc.http_status, exc.code)
            return
        await socket.accept(subprotocol)
        if not (snapshot.has_ended and last_id == end_id(snapshot)):
            await _converse(socket, events)
        if _is_open(socket):
            await socket.close()


async def follow(
    services: Services, snapshot: Snapshot, story: Story, key: str
) -> AsyncIterator[Event]:
    """What happens to a job until its end, read once a second at most.

    A status that lasted for less is told too. While Prefect is away nothing happens. Stops early
    when the job is deleted, or the key of its reader is revoked.
    """
    between: Sequence[Event] = ()
    while True:
        for event in (*between, *story.tell(snapshot)):
            yield event
        if snapshot.has_ended:
            return
        await asyncio.sleep(ACTIVE_SECONDS)
        try:
            if await services.owners.find(key) is None:
                return
            newer = await services.reader.get(snapshot.record.job_id)
            if newer.record.is_deleted:
                return
            is_same = newer.status is snapshot.status
            between = () if is_same else await _missed(services, since(snapshot), newer)
            snapshot = newer
        except JobUnknown:
            return
        except StillreelError as exc:
            between = ()
            log.info("a stream waits: %s", exc.code)


class _Stream(EventSourceResponse):
    """A stream that counts as one of its key's for exactly as long as it is open."""

    def __init__(self, events: AsyncIterator[Any], *, streams: Streams, key_id: str) -> None:
        super().__init__(events, ping=KEEP_ALIVE_SECONDS, sep="\n", send_timeout=SEND_SECONDS)
        self._streams, self._key_id = streams, key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._streams.opened(self._key_id):
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                log.info("the reader of a stream stood still for %d s", SEND_SECONDS)


async def _events(
    request: Request, services: Services, snapshot: Snapshot, last_id: str
) -> AsyncIterator[Event]:
    """What is to be told from the event `last_id` on; a text that is no id is passed over."""
    key = key_text(request.headers.get("authorization"), request.headers.get("x-api-key"))
    story = Story(partial(view_of, request, services), last_id)
    known = time_of(last_id)
    before = () if known is None else await _missed(services, known, snapshot)
    return _chain(before, follow(services, snapshot, story, key))


async def _missed(services: Services, known: int, snapshot: Snapshot) -> Sequence[Event]:
    """The statuses between what was known at `known` (ms since 1970) and the snapshot's."""
    if known >= since(snapshot):
        return ()
    path = f"/flow_run_states/?flow_run_id={snapshot.record.run_id}"
    return missed(await services.api.get(path), known, snapshot)


async def _chain(first: Sequence[Event], then: AsyncIterator[Event]) -> AsyncIterator[Event]:
    for event in first:
        yield event
    async for event in then:
        yield event


async def _encoded(events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(retry=RETRY_MILLISECONDS, sep="\n")
    async for event in events:
        data = to_bytes(dict(event.data)).decode()
        yield ServerSentEvent(data, id=event.id, event=event.event, sep="\n")


async def _converse(socket: WebSocket, events: AsyncIterator[Event]) -> None:
    """Send the events until they end or the other side goes; what it says is passed over."""

    async def listen() -> None:
        while (await socket.receive())["type"] != "websocket.disconnect":
            continue
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        with suppress(WebSocketDisconnect, TimeoutError):
            async for event in events:
                message = {"id": event.id, "event": event.event, "data": event.data}
                with anyio.fail_after(SEND_SECONDS):
                    await socket.send_text(to_bytes(message).decode())
        group.cancel_scope.cancel()


def _is_open(socket: WebSocket) -> bool:
    return socket.client_state is socket.application_state is WebSocketState.CONNECTED


def _as_request(socket: WebSocket) -> Request:
    """The handshake as the GET that it is, with the key that a browser put among the protocols."""
    scope = socket.scope
    keys = [p.removeprefix(KEY_PREFIX) for p in scope["subprotocols"] if p.startswith(KEY_PREFIX)]
    headers = [*scope["headers"], *((b"x-api-key", key.encode()) for key in keys[:1])]
    scheme = {"ws": "http", "wss": "https"}[scope["scheme"]]
    return Request({**scope, "type": "http", "method": "GET", "scheme": scheme, "headers": headers})
