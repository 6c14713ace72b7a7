"""Who did what, and when: told to the log at once, and to Prefect as an event soon after."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from stillreel.errors import StillreelError
from stillreel.prefect_api import PrefectApi

log = logging.getLogger("stillreel.audit")

QUEUE_LIMIT = 2000
"""Events that may wait for Prefect; the oldest give way. The log has all of them."""
BATCH = 200
PAUSE_SECONDS = 1.0
"""Between two posts, so that a busy hour of submits costs Prefect one request a second."""

Event = dict[str, Any]

_KINDS = (("job", "job_id"), ("host", "host"), ("owner", "owner"))
"""What an action was done to: the first of these facts that is given."""


def audit(action: str, **facts: Any) -> None:
    """Tell the log who did what; also Prefect, inside `auditing`. Facts hold no secrets."""
    log.info("audit", extra={"audit": action, **facts})
    if sender := _sender():
        sender.add(event_of(action, facts, at=datetime.now(UTC)))


@asynccontextmanager
async def auditing(api: PrefectApi) -> AsyncIterator[None]:
    """Send what is audited in this event loop to Prefect, until the block ends."""
    loop = asyncio.get_running_loop()
    sender = _senders[loop] = _Sender(api)
    task = asyncio.create_task(sender.run())
    try:
        yield
    finally:
        del _senders[loop]
        sender.close()
        await task


def event_of(action: str, facts: Mapping[str, Any], *, at: datetime) -> Event:
    """The Prefect event of an action, e.g. `stillreel.job.cancel` about `stillreel.job.<id>`."""
    kind, name = next(
        ((kind, str(facts[fact])) for kind, fact in _KINDS if facts.get(fact)), ("service", "api")
    )
    return {
        "id": str(uuid4()),
        "occurred": at.isoformat(),
        "event": f"stillreel.{action}" if "." in action else f"stillreel.{kind}.{action}",
        "resource": {
            "prefect.resource.id": f"stillreel.{kind}.{name}",
            "prefect.resource.name": name,
        },
        "payload": {fact: _plain(value) for fact, value in facts.items()},
    }


class _Sender:
    """Posts events in the order they came, many at a time."""

    def __init__(self, api: PrefectApi) -> None:
        self._api = api
        self._waiting: deque[Event] = deque(maxlen=QUEUE_LIMIT)
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()

    def add(self, event: Event) -> None:
        if len(self._waiting) == QUEUE_LIMIT:
            log.warning("audit event %s not sent to Prefect: the queue is full", self._waiting[0])
        self._waiting.append(event)
        self._changed.set()

    def close(self) -> None:
        self._closed.set()
        self._changed.set()

    async def run(self) -> None:
        while not self._closed.is_set():
            await self._changed.wait()
            await self._send()
            try:
                await asyncio.wait_for(self._closed.wait(), PAUSE_SECONDS)
            except TimeoutError:
                continue
        await self._send()

    async def _send(self) -> None:
        self._changed.clear()
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                # Not `post`: Prefect only queues events, so they need not wait for its database.
                await self._api.ask("/events", batch)
            except StillreelError as exc:
                log.warning("%d audit events not sent to Prefect: %s", len(batch), exc.message)


_senders: WeakKeyDictionary[asyncio.AbstractEventLoop, _Sender] = WeakKeyDictionary()


def _sender() -> _Sender | None:
    try:
        return _senders.get(asyncio.get_running_loop())
    except RuntimeError:  # a command, not a service
        return None


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
