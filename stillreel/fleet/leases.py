"""The right to rented hosts: a drain's own flow run is the lease, its labels are what it knows.

No table: a run is found by its flow, ends by its state, and shows by a beat that its process
lives. Prefect's labels have no compare-and-set, so only the drain writes its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from stillreel.fleet.calls import PrefectCalls
from stillreel.fleet.decision import Money
from stillreel.jobs.record import FINAL_STATES
from stillreel.prefect_api import Json

FLOW = "drain-backlog"
BEAT_SECONDS = 60.0
LEASE = timedelta(minutes=10)
"""A drain that has not been heard of for so long has lost its hosts."""
QUARANTINE = timedelta(days=7)

POOL = "stillreel.drain.pool"
NUMBER = "stillreel.drain.number"
"""Of the last machine that was asked for; written before it was."""
BEAT = "stillreel.drain.beat"
UNTIL = "stillreel.drain.until"
PRICE = "stillreel.drain.usd_per_hour"
"""Of that machine."""
RESERVED = "stillreel.drain.reserved_usd"
USD = "stillreel.drain.usd"
BAD = "stillreel.drain.bad."
"""+ a number: a machine that did not come to work."""


@dataclass(frozen=True)
class Lease:
    """A drain as Prefect has it."""

    run_id: str
    pool: str
    is_over: bool
    is_running: bool
    number: int
    beat_at: datetime | None
    until: datetime | None
    """When its newest host has to be gone."""
    usd_per_hour: float
    """Of its newest host."""
    reserved_usd: float
    usd: float
    bad_machines: tuple[str, ...]

    def lives(self, now: datetime) -> bool:
        """Whether its hosts have somebody who looks after them."""
        return not self.is_over and self.beat_at is not None and now - self.beat_at < LEASE


def lease_of(run: Mapping[str, Any]) -> Lease:
    """The lease that this flow run of Prefect's API is."""
    labels = run.get("labels") or {}
    state = run.get("state_type") or "SCHEDULED"
    return Lease(
        run_id=str(run["id"]),
        pool=str(labels.get(POOL) or ""),
        is_over=state in FINAL_STATES,
        is_running=state == "RUNNING",
        number=int(labels.get(NUMBER) or 0),
        beat_at=_time(labels.get(BEAT)),
        until=_time(labels.get(UNTIL)),
        usd_per_hour=float(labels.get(PRICE) or 0),
        reserved_usd=float(labels.get(RESERVED) or 0),
        usd=float(labels.get(USD) or 0),
        bad_machines=tuple(str(v) for name, v in sorted(labels.items()) if name.startswith(BAD)),
    )


def money_of(leases: Collection[Lease], *, but: str, now: datetime) -> Money:
    """What these drains have cost, and what those that live may still cost; one is left out."""
    others = [lease for lease in leases if lease.run_id != but]
    reserved = sum(max(0.0, x.reserved_usd - x.usd) for x in others if x.lives(now))
    return Money(sum(lease.usd for lease in others), reserved)


class LeaseBook(Protocol):
    """What a drain writes down of itself, and reads of the others. See `Leases`."""

    def claim(self, run_id: str, pool: str, now: datetime) -> Lease | None: ...
    def ask(
        self,
        run_id: str,
        number: int,
        *,
        until: datetime,
        usd_per_hour: float,
        reserve_usd: float,
        now: datetime,
    ) -> None: ...
    def beat(self, run_id: str, *, usd: float, now: datetime) -> bool: ...
    def end(self, run_id: str, *, usd: float) -> None: ...
    def quarantine(self, run_id: str, number: int, machine: str) -> None: ...
    def read(self, run_ids: Collection[str]) -> Mapping[str, Lease]: ...
    def since(self, at: datetime) -> Collection[Lease]: ...


class Leases:
    """Leases in Prefect. Every method raises PrefectUnavailable, PrefectRefused."""

    def __init__(self, calls: PrefectCalls) -> None:
        self._calls = calls

    def claim(self, run_id: str, pool: str, now: datetime) -> Lease | None:
        """This run's lease on a pool; None while another drain of the pool lives."""
        with self._calls.lock(f"stillreel_drain_{pool.replace('-', '_')}"):
            body = {"flow_runs": {"state": {"type": {"not_any_": sorted(FINAL_STATES)}}}} | _DRAINS
            others = map(lease_of, self._calls.pages("/flow_runs/filter", body))
            if any(x.pool == pool and x.run_id != run_id and x.lives(now) for x in others):
                return None
            self._write(run_id, {POOL: pool, BEAT: now.isoformat()})
        return self.read([run_id])[run_id]

    def ask(
        self,
        run_id: str,
        number: int,
        *,
        until: datetime,
        usd_per_hour: float,
        reserve_usd: float,
        now: datetime,
    ) -> None:
        """Write down that machine `number` is about to be asked for: before it is."""
        self._write(
            run_id,
            {
                NUMBER: number,
                UNTIL: until.isoformat(),
                PRICE: usd_per_hour,
                RESERVED: reserve_usd,
                BEAT: now.isoformat(),
            },
        )

    def beat(self, run_id: str, *, usd: float, now: datetime) -> bool:
        """Say that the drain lives; False when it is not to go on."""
        run = self._calls.get(f"/flow_runs/{run_id}")
        if not lease_of(run).is_running:
            return False
        self._write(run_id, {BEAT: now.isoformat(), USD: usd})
        return True

    def end(self, run_id: str, *, usd: float) -> None:
        """Write down what it has cost in all; the lease is given back."""
        self._write(run_id, {USD: usd, RESERVED: 0.0, BEAT: ""})

    def quarantine(self, run_id: str, number: int, machine: str) -> None:
        """Rent this machine no more for a while."""
        self._write(run_id, {f"{BAD}{number}": machine})

    def read(self, run_ids: Collection[str]) -> dict[str, Lease]:
        """The leases of these runs, by run; those that are not there are left out."""
        if not run_ids:
            return {}
        body = {"flow_runs": {"id": {"any_": sorted(run_ids)}}, **_DRAINS}
        found = map(lease_of, self._calls.pages("/flow_runs/filter", body))
        return {lease.run_id: lease for lease in found}

    def since(self, at: datetime) -> list[Lease]:
        """The drains that have started since then."""
        started: Json = {"start_time": {"after_": at.isoformat()}}
        body = {"flow_runs": started, **_DRAINS}
        return [lease_of(run) for run in self._calls.pages("/flow_runs/filter", body)]

    def _write(self, run_id: str, labels: Json) -> None:
        self._calls.patch(f"/flow_runs/{run_id}/labels", labels)


def month_start(now: datetime) -> datetime:
    """Midnight UTC of the month's first day."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


_DRAINS: Json = {"flows": {"name": {"any_": [FLOW]}}, "sort": "START_TIME_ASC"}


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None
