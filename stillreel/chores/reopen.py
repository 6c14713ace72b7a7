"""Opens the next round of ended jobs that somebody has started again in Prefect itself."""

from __future__ import annotations

import logging

from stillreel.api.services import Services
from stillreel.chores.scan import Scan
from stillreel.chores.tally import Tally
from stillreel.errors import PrefectRefused
from stillreel.jobs import marks
from stillreel.jobs.record import Record
from stillreel.notifications import is_reopened

log = logging.getLogger("stillreel.keeper")


class Reopen:
    """Looks at runs that wait or work although a round of them is over."""

    def __init__(self, services: Services, tally: Tally) -> None:
        self._services = services
        self._tally = tally
        self._scan = Scan(marks.OVER, states=("SCHEDULED", "PENDING", "RUNNING"))

    async def look(self) -> None:
        """One look at them. Raises PrefectUnavailable."""
        for record in await self._scan.read(self._services.api):
            try:
                await self._look_at(record)
            except PrefectRefused as exc:  # it is deleted just now
                log.info("%s was not opened: %s", record.job_id, exc.message)

    async def _look_at(self, record: Record) -> None:
        actions = self._services.actions
        if not record.is_settled:  # a retry of ours that was broken off after the labels
            await actions.tag(record.run_id, remove=[marks.OVER])
        elif not record.is_deleted and await is_reopened(self._services, record):
            number = await actions.follow_retry(record)
            self._tally.note("reopened", record.job_id, f"round {number}, started in Prefect")
