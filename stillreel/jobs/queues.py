"""How many jobs are where: counts over Prefect's flow runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from stillreel.jobs import marks
from stillreel.jobs.record import Record, record_of
from stillreel.prefect_api import PAGE, PrefectApi


class Queues:
    """Counts of jobs, read from Prefect each time. Every method raises PrefectUnavailable."""

    def __init__(self, api: PrefectApi) -> None:
        self._api = api

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
        found = await self._api.ask("/flow_runs/filter", waiting(limit=1))
        return datetime.fromisoformat(found[0]["expected_start_time"]) if found else None


def waiting(pool: str = "", queue: str = "", *, limit: int = 0) -> dict[str, Any]:
    """The body that finds what waits, in one queue or in all; with a limit the next ones first."""
    body: dict[str, Any] = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}} | _VIDEOS
    if limit:
        body |= {"sort": "EXPECTED_START_TIME_ASC", "limit": limit}
    if pool:
        body["work_pools"] = {"name": {"any_": [pool]}}
        body["work_pool_queues"] = {"name": {"any_": [queue]}}
    return body


_VIDEOS = {"flows": {"name": {"any_": [marks.FLOW]}}}
_TOMBSTONES = {"flows": {"name": {"any_": [marks.TOMBSTONE_FLOW]}}}
