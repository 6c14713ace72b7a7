"""The right to rented hosts: a drain's own flow run is the lease, its labels are what it knows.

No table: a run is found by its flow, ends by its state, and shows by a beat that its process
lives. Prefect's labels have no compare-and-set, so only the drain writes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import uuid4

from stillreel.errors import LeaseTaken, PrefectRefused
from stillreel.fleet.calls import PrefectCalls
from stillreel.fleet.decision import Money
from stillreel.jobs.record import FINAL_STATES
from stillreel.prefect_api import Json

FLOW, REAPER = "drain-backlog", "reap-hosts"
NOT_RENTED = "Not rented"
"""Name of the final state of a drain that has asked for no machine."""
BEAT_SECONDS = 60.0
LEASE = timedelta(minutes=10)
"""A drain that has not been heard of for so long has lost its hosts."""
DECIDE_SECONDS = 240.0
"""So long the look at the budget and the promise may take: some calls, each with patience."""
WRITES_MOST = 5
"""Tries to write labels that another writer of the same run has overwritten."""
QUARANTINE = timedelta(days=7)
LONGEST = timedelta(days=3)
"""No drain that began earlier can still have a host."""
LOOK_BACK = timedelta(days=35)
"""Drains since then tell what this month costs, and whether hosts come to work."""

POOL = "stillreel.drain.pool"
NUMBER = "stillreel.drain.number"
"""Of the last machine that was asked for; written before it was."""
HOST = "stillreel.drain.host."
"""+ a number: a machine that may be there, see `Asked`; empty once it is gone or given up."""
TOKEN = "stillreel.drain.token."  # noqa: S105 - a name
"""+ the same number: the hash of its lease token and when it expires; empty once revoked."""
EXECUTION = "stillreel.drain.execution"
"""Of the process that holds the lease: one before it must not go on."""
BEAT = "stillreel.drain.beat"
UNTIL = "stillreel.drain.until"
PRICE = "stillreel.drain.usd_per_hour"
"""Both of the last machine."""
RESERVED = "stillreel.drain.reserved_usd"
"""What the drain costs in all if its hosts live to their deadlines; 0 once it is known."""
USD = "stillreel.drain.usd"
VIDEOS = "stillreel.drain.videos"
BAD = "stillreel.drain.bad."
"""+ a number: a machine that did not come to work."""
BAD_OWNER = "stillreel.drain.bad_owner."
"""+ the same number: whose machine that is."""
BOOTS = "stillreel.drain.boots"
"""A character for each host: whether it came to work, see `circuit`."""


@dataclass(frozen=True)
class Asked:
    """A machine that was asked for and may be there."""

    number: int
    until: datetime
    """When it has to be gone."""
    usd_per_hour: float
    since: datetime | None = None
    """When it was asked for; drains of an earlier version have not written it down."""
    usd_for_bytes: float = 0.0

    def to_text(self) -> str:
        """As one label holds it."""
        since = self.since.isoformat() if self.since else "-"
        return f"{since} {self.until.isoformat()} {self.usd_per_hour!r} {self.usd_for_bytes!r}"

    @classmethod
    def from_text(cls, number: int, text: str) -> Asked:
        """What `to_text` made."""
        since, until, price, for_bytes = text.split()
        return cls(number, _time(until) or _ALWAYS, float(price), _time(since), float(for_bytes))


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
    asked: tuple[Asked, ...] | None = None
    """None: a drain of an earlier version, which had one host at a time."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    execution: str = ""
    boots: str = ""
    bad_owners: tuple[tuple[str, str], ...] = ()
    """Bad machines whose owner is known, and that owner."""
    videos: int | None = None

    def lives(self, now: datetime) -> bool:
        """Whether its hosts have somebody who looks after them.

        A beat far ahead of us proves no more than one long ago: a clock is wrong.
        """
        return not self.is_over and self.beat_at is not None and abs(now - self.beat_at) < LEASE

    def is_silent(self, now: datetime) -> bool:
        """Whether it has not been heard of, and may be dead."""
        return not self.is_over and self.beat_at is not None and not self.lives(now)

    @property
    def hosts(self) -> tuple[Asked, ...]:
        """The machines that may be there."""
        if self.asked is not None:
            return self.asked
        if not self.number:
            return ()
        return (Asked(self.number, self.until or _ALWAYS, self.usd_per_hour),)

    @property
    def is_settled(self) -> bool:
        """Whether it is known what it has cost: nothing of it can be there any more."""
        return self.reserved_usd <= 0


def lease_of(run: Mapping[str, Any]) -> Lease:
    """The lease that this flow run of Prefect's API is."""
    labels = run.get("labels") or {}
    state = run.get("state_type") or "SCHEDULED"
    hosts = {name: str(text) for name, text in sorted(labels.items()) if name.startswith(HOST)}
    asked = tuple(Asked.from_text(int(n.removeprefix(HOST)), x) for n, x in hosts.items() if x)
    videos = labels.get(VIDEOS)
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
        asked=asked if hosts else None,
        started_at=_time(run.get("start_time")),
        ended_at=_time(run.get("end_time")),
        execution=str(labels.get(EXECUTION) or ""),
        boots=str(labels.get(BOOTS) or ""),
        bad_owners=tuple(
            (str(labels.get(BAD + name.removeprefix(BAD_OWNER))), str(owner))
            for name, owner in sorted(labels.items())
            if name.startswith(BAD_OWNER)
        ),
        videos=None if videos is None else int(videos),
    )


def money_of(leases: Collection[Lease], *, but: str, now: datetime) -> Money:
    """What these drains have cost this month, and what they may still cost; one is left out.

    A drain that died before it could say what it cost may cost all that it had promised. One that
    began in an earlier month counts there, and only what it still may cost counts here too.
    """
    first = month_start(now)
    others = [lease for lease in leases if lease.run_id != but]
    here = [x for x in others if not x.started_at or x.started_at >= first]
    open_ = [x for x in others if x in here or x.lives(now) or (x.until and x.until >= first)]
    reserved = sum(max(0.0, x.reserved_usd - x.usd) for x in open_)
    return Money(sum(lease.usd for lease in here), reserved)


class LeaseBook(Protocol):
    """What a drain writes down of itself, and reads of the others. See `Leases`."""

    def claim(self, run_id: str, pool: str, now: datetime) -> Lease | None: ...
    def unfinished(self, pool: str) -> Collection[Lease]: ...
    def deciding(self) -> AbstractContextManager[Callable[[], bool]]: ...
    def ask(
        self, run_id: str, asked: Asked, *, usd: float, reserved_usd: float, now: datetime
    ) -> bool: ...
    def beat(self, run_id: str, *, usd: float, reserved_usd: float, now: datetime) -> bool: ...
    def gone(self, run_id: str, number: int) -> None: ...
    def note_token(self, run_id: str, labels: Mapping[str, str]) -> None: ...
    def end(self, run_id: str, *, usd: float, videos: int, is_settled: bool) -> None: ...
    def quarantine(self, run_id: str, number: int, machine: str, owner: str = "") -> None: ...
    def booted(self, run_id: str, boots: str) -> None: ...
    def circuit_closed_at(self, pool: str) -> datetime | None: ...
    def close_circuit(self, pool: str, now: datetime) -> None: ...
    def read(self, run_ids: Collection[str]) -> Mapping[str, Lease]: ...
    def since(self, at: datetime) -> Collection[Lease]: ...


class Leases:
    """Leases in Prefect, of one process.

    Every method raises PrefectUnavailable, PrefectRefused; those that write for a drain raise
    LeaseTaken when another process has gone on with it.
    """

    def __init__(self, calls: PrefectCalls) -> None:
        self._calls = calls
        self._execution = uuid4().hex

    def claim(self, run_id: str, pool: str, now: datetime) -> Lease | None:
        """This run's lease on a pool; None while another drain of the pool lives."""
        with self._calls.lock(f"stillreel_drain_{_word(pool)}"):
            mine: Json = {POOL: pool, EXECUTION: self._execution}
            if self._is_taken(run_id, pool, now):
                self._write(run_id, mine)
                return None
            self._write(run_id, mine | {BEAT: now.isoformat()})
            # A slow server may have let the lock go to another; then nobody has the pool.
            if self._is_taken(run_id, pool, now):
                self._write(run_id, {BEAT: ""})
                return None
        return self.read([run_id])[run_id]

    def deciding(self) -> AbstractContextManager[Callable[[], bool]]:
        """For the time from the look at the budget to the promise: one drain at a time.

        Gives the question whether that still holds: after the promise was written, for then
        whoever decides later has seen it.
        """
        return self._calls.lock("stillreel_budget", lease=DECIDE_SECONDS)

    def ask(
        self, run_id: str, asked: Asked, *, usd: float, reserved_usd: float, now: datetime
    ) -> bool:
        """Write down that this machine is about to be asked for: before it is.

        False when the drain is not to go on; then it must not be.
        """
        if not self._goes_on(run_id):
            return False
        self._write(
            run_id,
            {
                NUMBER: asked.number,
                f"{HOST}{asked.number}": asked.to_text(),
                UNTIL: asked.until.isoformat(),
                PRICE: asked.usd_per_hour,
                RESERVED: reserved_usd,
                USD: usd,
                BEAT: now.isoformat(),
            },
        )
        return self._goes_on(run_id)  # whoever has taken it over since may not have read this

    def beat(self, run_id: str, *, usd: float, reserved_usd: float, now: datetime) -> bool:
        """Say that the drain lives; False when it is not to go on."""
        if not self._goes_on(run_id):
            return False
        self._write(run_id, {BEAT: now.isoformat(), USD: usd, RESERVED: reserved_usd})
        return True

    def gone(self, run_id: str, number: int) -> None:
        """This machine is gone, or given up: whoever finds it may destroy it.

        Its lease token, where it has one, does not count any more.
        """
        self._write(run_id, {f"{HOST}{number}": "", f"{TOKEN}{number}": ""})

    def note_token(self, run_id: str, labels: Mapping[str, str]) -> None:
        """Write down the token of a machine that is about to be asked for, see `gateway.lease`."""
        self._write(run_id, dict(labels))

    def end(self, run_id: str, *, usd: float, videos: int, is_settled: bool) -> None:
        """Write down what it has cost in all; the lease is given back.

        Where a host may be left its promise stands.
        """
        self._goes_on(run_id)
        settled: Json = {RESERVED: 0.0} if is_settled else {}
        self._write(run_id, {USD: usd, VIDEOS: videos, BEAT: "", **settled})

    def quarantine(self, run_id: str, number: int, machine: str, owner: str = "") -> None:
        """Rent this machine no more for a while; of an owner with several, none."""
        of_owner: Json = {f"{BAD_OWNER}{number}": owner} if owner else {}
        self._write(run_id, {f"{BAD}{number}": machine, **of_owner})

    def booted(self, run_id: str, boots: str) -> None:
        """Note which hosts of this drain came to work, see `circuit`."""
        self._write(run_id, {BOOTS: boots})

    def circuit_closed_at(self, pool: str) -> datetime | None:
        """When a person last closed the circuit of this pool."""
        return _time(self._calls.read_variable(f"stillreel_circuit_{_word(pool)}"))

    def close_circuit(self, pool: str, now: datetime) -> None:
        """Hosts of this pool that failed until now count no more."""
        self._calls.write_variable(f"stillreel_circuit_{_word(pool)}", now.isoformat())

    def read(self, run_ids: Collection[str]) -> dict[str, Lease]:
        """The leases of these runs, by run; those that are not there are left out."""
        if not run_ids:
            return {}
        body = {"flow_runs": {"id": {"any_": sorted(run_ids)}}, **_DRAINS}
        found = map(lease_of, self._calls.pages("/flow_runs/filter", body))
        return {lease.run_id: lease for lease in found}

    def since(self, at: datetime) -> list[Lease]:
        """The drains that have started since then."""
        return [lease_of(run) for run in self._calls.pages("/flow_runs/filter", drains_since(at))]

    def unfinished(self, pool: str) -> list[Lease]:
        """The drains of a pool whose runs are not over."""
        body = {"flow_runs": {"state": {"type": {"not_any_": sorted(FINAL_STATES)}}}} | _DRAINS
        found = map(lease_of, self._calls.pages("/flow_runs/filter", body))
        return [lease for lease in found if lease.pool == pool]

    def _is_taken(self, run_id: str, pool: str, now: datetime) -> bool:
        return any(x.run_id != run_id and x.lives(now) for x in self.unfinished(pool))

    def _goes_on(self, run_id: str) -> bool:
        lease = lease_of(self._calls.get(f"/flow_runs/{run_id}"))
        if lease.execution not in ("", self._execution):
            raise LeaseTaken
        return lease.is_running

    def _write(self, run_id: str, labels: Json) -> None:
        """Prefect reads all labels and writes all back, so one of two writers loses: look again."""
        for _ in range(WRITES_MOST):
            self._calls.patch(f"/flow_runs/{run_id}/labels", labels)
            written = self._calls.get(f"/flow_runs/{run_id}").get("labels") or {}
            if all(written.get(name) == value for name, value in labels.items()):
                return
        raise PrefectRefused(f"labels of the drain {run_id} do not stay as they were written")


def drains_since(at: datetime) -> Json:
    """The filter of the drains that have started since then, for Prefect's API.

    Those that have asked for nothing are left out; with a schedule of minutes they are many.
    """
    started: Json = {
        "start_time": {"after_": at.isoformat()},
        "state": {"name": {"not_any_": [NOT_RENTED]}},
    }
    return {"flow_runs": started, **_DRAINS}


def month_start(now: datetime) -> datetime:
    """Midnight UTC of the month's first day."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


_DRAINS: Json = {"flows": {"name": {"any_": [FLOW]}}, "sort": "START_TIME_ASC"}
_ALWAYS = datetime.max.replace(tzinfo=UTC)


def _word(pool: str) -> str:
    """A pool's name as a part of a variable's name, which has no dots and dashes."""
    return "".join(c if c.isalnum() else "_" for c in pool.lower())


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text and text != "-" else None
