"""The waiting line: how many jobs wait where, and which place a job has."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

from stillreel.jobs import marks
from stillreel.jobs.record import Record, record_of
from stillreel.prefect_api import PAGE, PrefectApi
from stillreel.recent import Recent

log = logging.getLogger("stillreel.jobs")

Priority = Literal["high", "default", "backlog"]
PRIORITIES: tuple[Priority, ...] = ("high", "default", "backlog")
"""Names of the queues of a pool, served in this order (deployments/pools.yaml)."""

FRESH_SECONDS = 2.0
STALE_SECONDS = 10.0
TASKS_LIMIT = 4
NEW_SECONDS = 1.0
FAR_FRESH_SECONDS = 15.0
"""For jobs behind the first 200, whose place costs a query each."""


@dataclass(frozen=True)
class _Line:
    """One queue of one pool, and the places of the first 200 runs in it."""

    total: int
    places: Mapping[str, int]


class Queues:
    """Places and counts, at most 2 s old."""

    def __init__(self, api: PrefectApi) -> None:
        self._api = api
        self._lines: dict[tuple[str, str], Recent[_Line]] = {}
        self._kept: dict[tuple[str, str], tuple[float, _Line]] = {}
        self._far: dict[str, tuple[float, int]] = {}
        self._tasks: dict[object, asyncio.Task[Any]] = {}

    async def place(self, record: Record) -> int:
        """The job's place among those that wait for the same hosts: 1 is next, 0 starts now."""
        if record.state_type != "SCHEDULED":
            return 0
        ahead = 0
        for name in PRIORITIES:
            if name == record.queue:
                break
            ahead += (await self._line(record.pool, name)).total
        line = await self._line(record.pool, record.queue)
        found = line.places.get(record.run_id)
        return ahead + (found if found is not None else await self._far_place(record, line))

    async def count(self, *states: str, tags: tuple[str, ...] = (), **more: Any) -> int:
        """How many video jobs are in one of these states (Prefect's types) and have these tags.

        Without a state they count in all states.
        """
        runs: dict[str, Any] = {"state": {"type": {"any_": list(states)}}} if states else {}
        if tags:
            runs["tags"] = {"all_": list(tags)}
        return await self._api.ask("/flow_runs/count", {"flow_runs": runs | more, **_VIDEOS})

    async def deleted(self, since: datetime, *, tags: tuple[str, ...] = ()) -> list[Record]:
        """The tombstones of jobs with these tags that were deleted since then."""
        runs = {"expected_start_time": {"after_": since.isoformat()}, "tags": {"all_": list(tags)}}
        body = {"flow_runs": runs, "sort": "EXPECTED_START_TIME_ASC", "limit": PAGE} | _TOMBSTONES
        found: list[Record] = []
        while True:
            page = await self._api.ask("/flow_runs/filter", body | {"offset": len(found)})
            found += map(record_of, page)
            if len(page) < PAGE:
                return found

    async def oldest_waiting(self) -> datetime | None:
        """When the job was to start that waits the longest; None when none waits."""
        found = await self._api.ask("/flow_runs/filter", _waiting(limit=1))
        return datetime.fromisoformat(found[0]["expected_start_time"]) if found else None

    async def _line(self, pool: str, queue: str) -> _Line:
        """The line as it was 2 s ago at most, or 10 s where a newer reading is under way."""
        place = (pool, queue)
        if place not in self._lines:
            read = partial(self._read_line, pool, queue)
            self._lines[place] = Recent(read, seconds=FRESH_SECONDS)
        at, kept = self._kept.get(place, (float("-inf"), None))
        if kept is None or time.monotonic() - at > STALE_SECONDS:
            return await self._renew(place)
        if time.monotonic() - at > FRESH_SECONDS:
            self._soon(place, self._renew(place))
        return kept

    async def _renew(self, place: tuple[str, str]) -> _Line:
        line = await self._lines[place].get()
        self._kept[place] = (time.monotonic(), line)
        return line

    def _soon(self, key: object, work: Coroutine[Any, Any, Any]) -> None:
        """Do this beside the answer, once at a time for each key; a failure is tried again."""
        if key in self._tasks:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks[key] = task

        def end(done: asyncio.Task[Any]) -> None:
            del self._tasks[key]
            if not done.cancelled() and (exc := done.exception()):
                log.info("the line was not read: %s", type(exc).__name__)

        task.add_done_callback(end)

    async def _read_line(self, pool: str, queue: str) -> _Line:
        place = _place(pool, queue)
        found = await self._api.ask("/flow_runs/filter", _waiting(limit=PAGE) | place)
        places = {run["id"]: n for n, run in enumerate(found, 1)}
        if len(found) < PAGE:
            return _Line(len(found), places)
        return _Line(await self._api.ask("/flow_runs/count", _waiting() | place), places)

    async def _far_place(self, record: Record, line: _Line) -> int:
        """The place behind the first 200; of a job that is not new the line's length at first."""
        if record.run_id not in self._far and _is_new(record):
            await self._count_ahead(record)
        at, place = self._far.get(record.run_id, (float("-inf"), line.total))
        if time.monotonic() - at > FAR_FRESH_SECONDS and len(self._tasks) < TASKS_LIMIT:
            self._soon(record.run_id, self._count_ahead(record))
        return max(1, place)

    async def _count_ahead(self, record: Record) -> None:
        body = _waiting() | _place(record.pool, record.queue)
        if record.expected_at:
            body["flow_runs"]["expected_start_time"] = {"before_": record.expected_at.isoformat()}
        place = await self._api.ask("/flow_runs/count", body)
        if len(self._far) > 10_000:
            self._far.clear()
        self._far[record.run_id] = (time.monotonic(), place)


def _is_new(record: Record) -> bool:
    return datetime.now(UTC) - record.created_at < timedelta(seconds=NEW_SECONDS)


_VIDEOS = {"flows": {"name": {"any_": [marks.FLOW]}}}
_TOMBSTONES = {"flows": {"name": {"any_": [marks.TOMBSTONE_FLOW]}}}


def _waiting(**more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    if more:
        body |= {"sort": "EXPECTED_START_TIME_ASC", **more}
    return body | _VIDEOS


def _place(pool: str, queue: str) -> dict[str, Any]:
    return {
        "work_pools": {"name": {"any_": [pool]}},
        "work_pool_queues": {"name": {"any_": [queue]}},
    }
