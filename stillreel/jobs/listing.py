"""Lists jobs, newest first, page by page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from stillreel.errors import RequestRejected
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.reader import JobReader, Snapshot
from stillreel.jobs.record import EXPIRED_STATE, Record, record_of
from stillreel.prefect_api import PAGE, PrefectApi

TEXT_LIMIT = 1000
"""Of the newest jobs so many are searched for a text in their prompts."""

YEARS = range(2000, 2101)
"""In which a job may be looked for."""

CURSOR_LIMIT = 4000
"""Characters of a cursor: one job takes 32, each further one of the same microsecond 22."""

_STATES: Mapping[JobStatus, tuple[str, ...]] = {
    JobStatus.QUEUED: ("SCHEDULED", "PENDING", "PAUSED"),
    JobStatus.PROCESSING: ("RUNNING", "CANCELLING", "CRASHED", "FAILED"),
    JobStatus.COMPLETED: ("COMPLETED", "FAILED", "CRASHED", "CANCELLED", "RUNNING"),
    JobStatus.FAILED: ("FAILED", "CRASHED", "COMPLETED"),
    JobStatus.CANCELLED: ("CANCELLED", "FAILED", "CRASHED"),
    JobStatus.EXPIRED: ("CANCELLED",),
}
"""Prefect's states in which a job of this status can be; what is read is looked at again."""


@dataclass(frozen=True)
class Wanted:
    """Which jobs are listed; empty means any."""

    owner: str | None = None
    """None: everybody's."""
    statuses: tuple[JobStatus, ...] = ()
    model: str = ""
    batch: str = ""
    since: datetime | None = None
    until: datetime | None = None
    text: str = ""
    oldest_first: bool = False


@dataclass(frozen=True)
class Page:
    """Some jobs, and where the next ones begin (empty at the end)."""

    jobs: list[Snapshot]
    cursor: str
    scanned: int
    """Jobs that were looked at for this page."""


class JobLister:
    """Lists jobs from Prefect; filters that Prefect does not have are applied here."""

    def __init__(self, api: PrefectApi, reader: JobReader) -> None:
        self._api = api
        self._reader = reader

    async def list(self, wanted: Wanted, *, limit: int, cursor: str = "") -> Page:
        """A page of at most `limit` jobs after `cursor`. Raises RequestRejected for a bad one."""
        place = _read_cursor(cursor)
        found: list[Snapshot] = []
        scanned = 0
        budget = TEXT_LIMIT if wanted.text else PAGE * 10
        while len(found) < limit and scanned < budget:
            size = min(PAGE, max(limit, 20)) if not wanted.text else PAGE
            records = await self._read(wanted, size, place)
            scanned_now = 0
            for record, snapshot in zip(records, await self._snapshots(records), strict=True):
                scanned_now += 1
                place = _after(record, place)
                if _fits(snapshot, wanted) and not record.is_deleted:
                    found.append(snapshot)
                if len(found) == limit:
                    break
            scanned += scanned_now
            if scanned_now == len(records) and len(records) < size:
                return Page(found, "", scanned)
        more = place and (found or not wanted.text)
        return Page(found, _cursor(place) if place and more else "", scanned)

    async def _snapshots(self, records: Sequence[Record]) -> list[Snapshot]:
        return await self._reader.complete(records)

    async def _read(self, wanted: Wanted, limit: int, place: _Place | None) -> list[Record]:
        runs: dict[str, Any] = {}
        tags = [marks.model_tag(wanted.model)] if wanted.model else []
        if wanted.owner is not None:
            tags.append(marks.owner_tag(wanted.owner))
        if wanted.batch:
            tags.append(marks.batch_tag(wanted.batch))
        if tags:
            runs["tags"] = {"all_": tags}
        if wanted.statuses:
            states = {state for status in wanted.statuses for state in _STATES[status]}
            runs["state"] = {"type": {"any_": sorted(states)}}
            if wanted.statuses == (JobStatus.EXPIRED,):
                runs["state"]["name"] = {"any_": [EXPIRED_STATE]}
        now = datetime.now(UTC)
        until, since = min(wanted.until or now, now), wanted.since
        if place:
            runs["id"] = {"not_any_": list(place.run_ids)}
            if wanted.oldest_first:
                since = max(since or place.at, place.at)
            else:
                until = min(until, place.at)
        runs["expected_start_time"] = {"before_": until.isoformat()}  # both are inclusive
        if since:
            runs["expected_start_time"]["after_"] = since.isoformat()
        body = {
            "flow_runs": runs,
            "flows": {"name": {"any_": [marks.FLOW]}},
            "sort": f"EXPECTED_START_TIME_{'ASC' if wanted.oldest_first else 'DESC'}",
            "limit": limit,
        }
        return [record_of(run) for run in await self._api.ask("/flow_runs/filter", body)]


def _fits(snapshot: Snapshot, wanted: Wanted) -> bool:
    if wanted.statuses and snapshot.status not in wanted.statuses:
        return False
    if wanted.owner not in (None, snapshot.record.owner):  # in Prefect, anybody can set a tag
        return False
    return wanted.text.casefold() in snapshot.record.text("prompt").casefold()


@dataclass(frozen=True)
class _Place:
    """Behind which jobs a page begins: all until this time, of which these have just that time.

    What is deleted, or changes its status, between two pages moves no other job.
    """

    at: datetime
    run_ids: tuple[str, ...]


def _after(record: Record, place: _Place | None) -> _Place:
    at = record.expected_at or record.created_at
    same = place.run_ids if place and place.at == at else ()
    return _Place(at, (*same, record.run_id))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _cursor(place: _Place) -> str:
    microseconds = (place.at - _EPOCH) // timedelta(microseconds=1)
    data = microseconds.to_bytes(8, "big") + b"".join(UUID(run).bytes for run in place.run_ids)
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _read_cursor(cursor: str) -> _Place | None:
    """Where a page begins; None for the first one. Raises RequestRejected."""
    if not cursor:
        return None
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        at = _EPOCH + timedelta(microseconds=int.from_bytes(data[:8], "big"))
        runs = [str(UUID(bytes=data[n : n + 16])) for n in range(8, len(data), 16)]
        if at.year not in YEARS or not runs:
            raise ValueError(cursor)
    except (ValueError, OverflowError, binascii.Error) as exc:
        raise RequestRejected(
            "The cursor is none of ours; take `next_cursor` of the page before, as it is."
        ) from exc
    return _Place(at, tuple(runs))
