"""Lets a rented host in to the objects of a run of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillreel.errors import StaleExecution
from stillreel.gateway.access import RunAccess
from stillreel.gateway.visit import Visit
from stillreel.job import spec_of

if TYPE_CHECKING:
    from stillreel.gateway.lease import Held, LeaseReader
    from stillreel.jobs.reader import JobReader


class LeaseDoor:
    """Opens by the token of a lease, to runs that were handed to it (see `Door`)."""

    def __init__(self, leases: LeaseReader, reader: JobReader) -> None:
        self._leases, self._reader = leases, reader

    async def enter(self, token: str, run_id: str, *, writes: bool = False) -> Visit:
        lease = await self._leases.lease_of(token)
        return _visit(lease.id, await self._leases.held(lease, run_id, writes=writes), token)

    async def is_current(self, visit: Visit) -> None:
        self._leases.forget(visit.run_id)
        lease = await self._leases.lease_of(visit.token)
        await self._leases.held(lease, visit.run_id, writes=True)
        record = (await self._reader.get(visit.job_id, fresh=True)).record
        if record.is_deleted or record.is_settled or record.is_final:
            raise StaleExecution("the job has ended; nothing of it is changed any more")


def _visit(lease_id: str, held: Held, token: str) -> Visit:
    given = held.run.get("parameters") or {}
    access = RunAccess(held.run_id, held.job_id, str(given.get("image_key") or ""))
    return Visit(lease_id, held.run_id, held.job_id, access, lambda: spec_of(given), token)
