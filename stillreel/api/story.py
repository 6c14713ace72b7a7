"""What the reader of a job's event stream knows, and what it is told next.

Nothing is stored for it: the id of an event says what its reader knows by then, the same in every
API process, and what was missed is in the run's states in Prefect.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from stillreel.api.schemas import iso
from stillreel.job import ENDED, JobStatus
from stillreel.jobs.attempts import begins_attempt
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import status_of

QUIET_SECONDS = 5.0
"""How often the estimate and the heartbeat's age are told where nothing else has changed."""

_MOVING = ("stage", "phase", "step", "steps", "progress", "position")
_AGEING = ("eta_seconds", "heartbeat_age_seconds")

View = Callable[[Snapshot], Mapping[str, Any]]
"""The whole job as its reader sees it, with URLs where it has ended."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that is told; a reader that names its id is told what came after."""

    id: str
    event: Literal["status", "progress", "end"]
    data: Mapping[str, Any]


class Story:
    """What one reader knows of a job, and what a newer snapshot adds to it."""

    def __init__(self, view: View, last_id: str = "") -> None:
        self._view = view
        self._last_id = last_id
        self._snapshot: Snapshot | None = None
        self._moving: tuple[Any, ...] = ()
        self._ageing: tuple[Any, ...] = ()
        self._told_at = 0.0

    def tell(self, snapshot: Snapshot) -> Iterator[Event]:
        """The events that bring the reader up to date; none where nothing has changed."""
        before, self._snapshot = self._snapshot, snapshot
        if snapshot is before:
            return
        view = self._view(snapshot)
        moving = tuple(view[name] for name in _MOVING)
        ageing = tuple(view[name] for name in _AGEING)
        here = f"{since(snapshot)}-{_mark(moving)}"
        has_aged = ageing != self._ageing and time.monotonic() - self._told_at >= QUIET_SECONDS
        if not before and (here == self._last_id or snapshot.has_ended):
            pass  # it is known already, or the end tells all of it
        elif not before or before.status is not snapshot.status:
            yield _status(here, snapshot.record.job_id, snapshot.status, since(snapshot), view)
        elif moving != self._moving or has_aged:
            yield Event(here, "progress", {name: view[name] for name in (*_MOVING, *_AGEING)})
        else:
            return
        self._moving, self._ageing, self._told_at = moving, ageing, time.monotonic()
        if snapshot.has_ended:
            yield Event(end_id(snapshot), "end", view)


def missed(states: Sequence[Mapping[str, Any]], known: int, snapshot: Snapshot) -> list[Event]:
    """The statuses that a job came into after `known` (ms since 1970), before that of `snapshot`.

    `states` are those of its run as Prefect has them, the oldest first.
    """
    changes: list[tuple[int, JobStatus]] = []
    for n, state in enumerate(states, 1):
        status = status_of(state["type"], state["name"], has_receipt=False)
        followed = n < len(states)
        ended_a_round = followed and state["type"] in ("FAILED", "CANCELLED")
        ended_a_round = ended_a_round and not begins_attempt(states[n])
        if status in ENDED and not ended_a_round:
            continue  # the last state is the snapshot's; a crash that went on was no end
        if not changes or changes[-1][1] is not status:
            changes.append((_milliseconds(datetime.fromisoformat(state["timestamp"])), status))
    if changes and changes[-1][1] is snapshot.status:
        changes.pop()
    job_id = snapshot.record.job_id
    return [_status(f"{at}-", job_id, status, at) for at, status in changes if at > known]


def since(snapshot: Snapshot) -> int:
    """When what a snapshot tells began: its state's time, or its receipt's; ms since 1970."""
    record, receipt = snapshot.record, snapshot.receipt
    if snapshot.status is JobStatus.COMPLETED and receipt:
        return _milliseconds(datetime.fromisoformat(receipt["completed_at"]))
    settled_at = record.ended_at if record.is_settled else None
    return _milliseconds(settled_at or record.state_at or record.created_at)


def end_id(snapshot: Snapshot) -> str:
    """The id of the last event of an ended job."""
    return f"{since(snapshot)}-end"


def time_of(event_id: str) -> int | None:
    """The time in an event's id, in ms since 1970; None for a text that is no id of ours."""
    at, dash, _ = event_id.partition("-")
    return int(at) if dash and at.isascii() and at.isdigit() and len(at) < 16 else None


def _status(
    event_id: str, job_id: str, status: JobStatus, at: int, view: Mapping[str, Any] | None = None
) -> Event:
    when = iso(datetime.fromtimestamp(at / 1000, UTC))
    return Event(
        event_id, "status", {"job_id": job_id, "status": str(status), "at": when, "job": view}
    )


def _mark(moving: Sequence[Any]) -> str:
    return f"{zlib.crc32(repr(moving).encode()):08x}"


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
