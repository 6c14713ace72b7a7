"""Carries out the cancels that were begun and broken off: their process died in between."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from stillreel.api.services import Services
from stillreel.chores.scan import Scan
from stillreel.chores.tally import Tally
from stillreel.errors import JobConflict, JobUnknown, PrefectRefused
from stillreel.jobs import marks
from stillreel.jobs.record import Record

GRACE = timedelta(seconds=10)
"""A cancel this young is being carried out by the process that took it."""

log = logging.getLogger("stillreel.keeper")


class Cancels:
    """Looks at runs that wait or work although their end was asked for.

    A host that takes such a run leaves it at its start; but a run may wait for days.
    """

    def __init__(self, services: Services, tally: Tally) -> None:
        self._services = services
        self._tally = tally
        self._scan = Scan(marks.UNWANTED, states=("SCHEDULED", "PENDING", "PAUSED", "RUNNING"))

    async def look(self) -> None:
        """One look at them. Raises PrefectUnavailable, StorageUnavailable."""
        begun = datetime.now(UTC) - GRACE
        for record in await self._scan.read(self._services.api):
            asked = str(record.labels.get(marks.CANCELLED) or "")
            if not asked or record.is_settled or datetime.fromisoformat(asked) > begun:
                continue
            try:
                await self._carry_out(record)
            except (JobConflict, JobUnknown, PrefectRefused) as exc:
                log.info("%s is looked at again: %s", record.job_id, exc.message)

    async def _carry_out(self, record: Record) -> None:
        services = self._services
        snapshot = await services.reader.get(record.job_id, fresh=True)
        now = snapshot.record
        asked = record.labels.get(marks.CANCELLED)
        if now.is_settled or now.labels.get(marks.CANCELLED) != asked:
            return  # it has ended, or begun its next round, since the list was read
        if await services.actions.cancel(snapshot):
            self._tally.note("cancel_carried_out", record.job_id, "it was begun and broken off")
            services.deliveries.start(services, record)
