"""The waiting line: which place a job has among those that wait for the same hosts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from stillreel.errors import PrefectRefused, PrefectUnavailable
from stillreel.job import PRIORITIES
from stillreel.jobs.queues import waiting
from stillreel.jobs.record import Record
from stillreel.prefect_api import PAGE, PrefectApi
from stillreel.recent import Recent

log = logging.getLogger("stillreel.jobs")

FRESH_SECONDS, STALE_SECONDS = 2.0, 10.0
"""A line is read anew after 2 s, and told meanwhile for 10 s."""
FAR_FRESH_SECONDS = 15.0
"""For jobs behind the first 200, whose place costs a query each."""
FAR_SHARE = 0.2
"""The part of the time that such queries may take, so that Prefect has the rest for answers."""
FAR_LIMIT = 10_000
NEW = timedelta(seconds=1)
"""So long after its submit somebody waits for the true place of a job."""


@dataclass(frozen=True)
class _Line:
    """One queue of one pool, and the places of the first 200 runs in it."""

    total: int
    places: Mapping[str, int]


class Places:
    """Places of waiting jobs: 2 s old at most near the front, some more far behind."""

    def __init__(self, api: PrefectApi) -> None:
        self._api = api
        self._lines: dict[tuple[str, str], Recent[_Line]] = {}
        self._far = _FarPlaces(api)

    async def place(self, record: Record) -> int:
        """The job's place: 1 is next, 0 starts now. Raises PrefectUnavailable."""
        if record.state_type != "SCHEDULED":
            return 0
        ahead = 0
        for name in PRIORITIES:
            if name == record.queue:
                break
            ahead += (await self._line(record.pool, name)).total
        line = await self._line(record.pool, record.queue)
        found = line.places.get(record.run_id)
        return ahead + (found or await self._far.place(record, line.total))

    async def _line(self, pool: str, queue: str) -> _Line:
        line = self._lines.get((pool, queue))
        if line is None:
            read = partial(self._read_line, pool, queue)
            line = Recent(read, seconds=FRESH_SECONDS, stale=STALE_SECONDS)
            self._lines[pool, queue] = line
        return await line.get()

    async def _read_line(self, pool: str, queue: str) -> _Line:
        found = await self._api.ask("/flow_runs/filter", waiting(pool, queue, limit=PAGE))
        places = {run["id"]: n for n, run in enumerate(found, 1)}
        if len(found) < PAGE:
            return _Line(len(found), places)
        return _Line(await self._api.ask("/flow_runs/count", waiting(pool, queue)), places)


class _FarPlaces:
    """Places behind the first 200, counted one after another beside the answers."""

    def __init__(self, api: PrefectApi) -> None:
        self._api = api
        self._known: dict[str, tuple[float, int]] = {}
        self._wanted: dict[str, Record] = {}
        self._worker: asyncio.Task[None] | None = None

    async def place(self, record: Record, length: int) -> int:
        """The place as it was counted last; the line's length until that has been done."""
        if record.run_id not in self._known and datetime.now(UTC) - record.created_at < NEW:
            await self._count(record)
        at, place = self._known.get(record.run_id, (float("-inf"), length))
        if time.monotonic() - at > FAR_FRESH_SECONDS and len(self._wanted) < FAR_LIMIT:
            self._wanted[record.run_id] = record
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work())
        return max(1, place)

    async def _work(self) -> None:
        while self._wanted:
            run_id = next(reversed(self._wanted))  # who asked last is likely to ask again
            record = self._wanted.pop(run_id)
            started = time.monotonic()
            try:
                await self._count(record)
            except (PrefectUnavailable, PrefectRefused) as exc:
                log.info("a place was not counted: %s", type(exc).__name__)
            took = time.monotonic() - started
            await asyncio.sleep(took * (1 / FAR_SHARE - 1))

    async def _count(self, record: Record) -> None:
        body: dict[str, Any] = waiting(record.pool, record.queue)
        if record.expected_at:
            body["flow_runs"]["expected_start_time"] = {"before_": record.expected_at.isoformat()}
        place = await self._api.ask("/flow_runs/count", body)
        if len(self._known) > FAR_LIMIT:
            self._known.clear()
        self._known[record.run_id] = (time.monotonic(), place)
