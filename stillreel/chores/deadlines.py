"""Ends the jobs that were not started before their deadlines."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from stillreel.api.services import Services
from stillreel.chores.scan import Scan
from stillreel.chores.tally import Tally
from stillreel.errors import JobConflict, PrefectRefused
from stillreel.jobs import marks
from stillreel.jobs.record import Record

log = logging.getLogger("stillreel.keeper")


class Deadlines:
    """Expires waiting jobs whose deadline has passed; one that has started once stays.

    What is read as waiting after its deadline has missed it, even if it starts before it is ended:
    its process then finds out by itself (execution.py).
    """

    def __init__(self, services: Services, tally: Tally) -> None:
        self._services = services
        self._tally = tally
        self._scan = Scan(marks.DATED)

    async def expire(self) -> None:
        """One look at the jobs with a deadline. Raises PrefectUnavailable."""
        for record in await self._scan.read(self._services.api):
            try:
                await self._look_at(record)
            except (JobConflict, PrefectRefused) as exc:  # it has ended, or is deleted, just now
                log.info("%s was not expired: %s", record.job_id, exc.message)

    async def _look_at(self, record: Record) -> None:
        actions = self._services.actions
        if record.deadline is None or record.run_count > 0:  # retried, or begun in time
            await actions.tag(record.run_id, remove=[marks.DATED])
        elif record.deadline <= datetime.now(UTC):
            await actions.expire(record)
            self._tally.note("expired", record.job_id, "not started before its deadline")
