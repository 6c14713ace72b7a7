"""Has jobs tried again whose execution broke off; those that had all attempts have failed."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from stillreel.api.services import Services
from stillreel.chores.scan import Scan
from stillreel.chores.tally import Tally
from stillreel.errors import JobConflict, PrefectRefused
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.attempts import Over, decide, is_outage
from stillreel.jobs.record import Record, error_of_record
from stillreel.notifications import is_due, settle

REST = timedelta(seconds=2)
"""A crash may be reported twice; the second report is not to hit what was started again."""

log = logging.getLogger("stillreel.keeper")


class Revive:
    """Looks at runs that failed or crashed, and whose round is not settled."""

    def __init__(self, services: Services, tally: Tally) -> None:
        self._services = services
        self._tally = tally
        self._scan = Scan(marks.UNDELIVERED, states=("CRASHED", "FAILED"))

    async def look(self) -> None:
        """One look at them. Raises PrefectUnavailable, StorageUnavailable."""
        rested = datetime.now(UTC) - REST
        for record in await self._scan.read(self._services.api):
            is_wanted = is_due(record) and not record.labels.get(marks.CANCELLED)
            if record.is_broken_off and is_wanted and (record.state_at or rested) <= rested:
                try:
                    await self.revive(record)
                except (JobConflict, PrefectRefused) as exc:
                    log.info("%s is looked at again: %s", record.job_id, exc.message)

    async def revive(self, record: Record) -> None:
        """Start the job again, or settle that it has failed; a stored receipt completes it."""
        services = self._services
        if await services.reader.receipt(record.job_id):
            services.deliveries.start(services, record)
            return
        _, reason = error_of_record(record, JobStatus.FAILED)
        history = await services.api.get(f"/flow_run_states/?flow_run_id={record.run_id}")
        then = decide(
            record.round,
            reason,
            sorted(history, key=lambda state: state["timestamp"]),
            is_outage=is_outage(record.state_type, record.state_message),
            now=datetime.now(UTC),
        )
        if isinstance(then, Over):
            snapshot = await services.reader.get(record.job_id, fresh=True)
            if snapshot.record.state_at == record.state_at:
                await settle(services, replace(snapshot, status=JobStatus.FAILED))
                self._tally.note("gave_up", record.job_id, f"{then.attempts} attempts: {reason}")
                services.deliveries.start(services, record)
            return
        await services.actions.requeue(record, then)
        self._tally.note("requeued", record.job_id, then.message)
