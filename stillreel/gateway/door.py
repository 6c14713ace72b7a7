"""Lets a rented host in to the objects of a run of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from stillreel.errors import NotLeased, StaleExecution
from stillreel.fleet.leases import lease_of
from stillreel.gateway.access import RunAccess
from stillreel.gateway.lease import CLAIM
from stillreel.gateway.visit import Terms, Visit
from stillreel.job import spec_of
from stillreel.jobs.attempts import begins_attempt
from stillreel.jobs.record import FINAL_STATES

if TYPE_CHECKING:
    from stillreel.gateway.desk import Desk
    from stillreel.gateway.lease import Held, Lease
    from stillreel.jobs.reader import JobReader


class LeaseDoor:
    """Opens by the token of a lease, to runs that were handed to it (see `Door`)."""

    def __init__(self, desk: Desk, reader: JobReader) -> None:
        self._desk, self._leases, self._reader = desk, desk.leases, reader

    async def enter(self, token: str, run_id: str, *, writes: bool = False) -> Visit:
        lease = await self._leases.lease_of(token)
        self._desk.budget.call(lease.id)  # before anything is asked about a run that it names
        return _visit(lease.id, await self._leases.held(lease, run_id, writes=writes), token)

    async def is_current(self, visit: Visit) -> None:
        self._leases.forget(visit.run_id)
        lease = await self._leases.lease_of(visit.token)
        _, record = await asyncio.gather(
            self._leases.held(lease, visit.run_id, writes=True),
            self._reader.record(visit.job_id),
        )
        if record.is_deleted or record.is_settled or record.is_final:
            raise StaleExecution("the job has ended; nothing of it is changed any more")

    async def terms(self, visit: Visit) -> Terms:
        lease = await self._leases.lease_of(visit.token)
        drain, states = await asyncio.gather(
            self._leases.run(lease.drain_id),
            self._desk.api.get(f"/flow_run_states/?flow_run_id={visit.run_id}"),
        )
        host = lease.worker(self._desk.installation)
        return terms_in(drain, states, lease=lease, host=host)


def terms_in(
    drain: Mapping[str, Any], states: Iterable[Mapping[str, Any]], *, lease: Lease, host: str
) -> Terms:
    """The terms, from the drain's run and the states of the run of a job. Raises NotLeased."""
    prices = [x.usd_per_hour for x in lease_of(drain).hosts if x.number == lease.number]
    history = sorted(states, key=_at)
    claims = [state for state in history if state["type"] == "PENDING"]
    if not prices or not claims or claims[-1].get("message") != f"{CLAIM}{lease.id}":
        raise NotLeased("It is not written down what this host costs, or since when it has this.")
    return Terms(host, prices[0], _at(claims[-1]), _had_before(history, claims[-1]))


def _had_before(history: Iterable[Mapping[str, Any]], claim: Mapping[str, Any]) -> float:
    """Seconds between each claim of this round, before this one, and the end of that claim."""
    had, since, before = 0.0, None, ""
    for state in history:
        kind = state["type"]
        if since and (kind in FINAL_STATES or kind in ("SCHEDULED", "PENDING")):
            had, since = had + (_at(state) - since).total_seconds(), None
        if kind == "SCHEDULED" and before in FINAL_STATES and not begins_attempt(state):
            had = 0.0  # somebody has had it started again: another round
        if state is claim:
            break
        since, before = _at(state) if kind == "PENDING" else since, kind
    return had


def _at(state: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(state["timestamp"])


def _visit(lease_id: str, held: Held, token: str) -> Visit:
    given = held.run.get("parameters") or {}
    access = RunAccess(held.run_id, held.job_id, str(given.get("image_key") or ""))
    return Visit(lease_id, held.run_id, held.job_id, access, lambda: spec_of(given), token)
