"""Jobs by tag and state, so many at a time that a long line of them is no long chore."""

from __future__ import annotations

from collections.abc import Iterable

from stillreel.jobs import marks
from stillreel.jobs.record import Record, record_of
from stillreel.prefect_api import PAGE, PrefectApi

PAGES = 5
"""Pages in one go: a thousand jobs."""


class Scan:
    """Goes through the jobs in some states that have a tag, and on where it was the last time."""

    def __init__(self, *tags: str, states: Iterable[str] = ("SCHEDULED",)) -> None:
        self._tags = list(tags)
        self._states = sorted(states)
        self._offset = 0

    async def read(self, api: PrefectApi) -> list[Record]:
        """The next jobs, those first that are to start first. Raises PrefectUnavailable."""
        found: list[Record] = []
        for _ in range(PAGES):
            page = await self._page(api)
            found += page
            self._offset += PAGE
            if len(page) < PAGE:
                self._offset = 0
                break
        return found

    async def _page(self, api: PrefectApi) -> list[Record]:
        body = {
            "flow_runs": {
                "state": {"type": {"any_": self._states}},
                **({"tags": {"all_": self._tags}} if self._tags else {}),
            },
            "flows": {"name": {"any_": [marks.FLOW]}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": PAGE,
            "offset": self._offset,
        }
        return [record_of(run) for run in await api.ask("/flow_runs/filter", body)]
