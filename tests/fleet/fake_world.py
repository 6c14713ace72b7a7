"""Provider, jobs and leases in memory, on a clock that runs as fast as it is asked to.

`World` is where they meet: its hosts boot, take jobs, go idle and end themselves, as real ones do.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from stillreel.errors import (
    CreateUnknown,
    LeaseTaken,
    OfferGone,
    PrefectUnavailable,
    ProviderUnavailable,
)
from stillreel.fleet.backlog import Ended
from stillreel.fleet.decision import Waiting
from stillreel.fleet.leases import TOKEN, Asked, Lease
from stillreel.fleet.provider import Boot, Host, HostState, Leftover, Need, Offer
from stillreel.idle import HAND_OVER_SECONDS

START = datetime(2026, 11, 2, 3, 0, tzinfo=UTC)
STEP = 5.0


class Killed(BaseException):
    """The process dies here, as by kill -9: nothing of it runs any more."""


@dataclass
class FakeHost:
    """A host that boots, works, and ends itself when it is idle or too old."""

    host: Host
    boot: Boot
    born: datetime
    visible_at: datetime
    boots_in: float
    job_seconds: float
    gone_at: datetime | None = None
    quiet_since: datetime | None = None
    busy_until: datetime | None = None

    @property
    def lives(self) -> bool:
        return self.gone_at is None


@dataclass
class World:
    """The clock, and everything that happens when it moves."""

    waiting_jobs: int = 0
    boots_in: float = 300.0
    job_seconds: float = 60.0
    idle: timedelta = timedelta(minutes=5)
    ends_itself: bool = True
    """Whether hosts end themselves when they are idle or past their deadline."""
    at: datetime = START
    working_jobs: int = 0
    videos: int = 0
    keeper: bool = True
    """Whether jobs of a host that is gone wait again; else they do once it is back."""
    stranded: int = 0
    """Jobs that look as if they were at work, on a host that is gone."""
    hosts: list[FakeHost] = field(default_factory=list)
    on_step: Callable[[World], None] | None = None

    def now(self) -> datetime:
        return self.at

    def sleep(self, seconds: float) -> None:
        until = self.at + timedelta(seconds=seconds)
        while self.at < until:
            self.at = min(until, self.at + timedelta(seconds=STEP))
            self._step()

    def living(self) -> list[FakeHost]:
        return [host for host in self.hosts if host.lives]

    def working(self) -> list[FakeHost]:
        return [h for h in self.living() if h.host.state is HostState.RUNNING]

    def usd(self) -> float:
        """What the provider's bill says: all hours of all hosts."""
        return sum(
            ((h.gone_at or self.at) - h.born).total_seconds() / 3600 * h.host.usd_per_hour
            for h in self.hosts
        )

    def end(self, host: FakeHost) -> None:
        """The machine is gone, and bills no more."""
        host.gone_at = self.at
        self.stranded += bool(host.busy_until)
        host.busy_until = None
        self._requeue()

    def _requeue(self) -> None:
        if self.keeper:
            self.working_jobs -= self.stranded
            self.waiting_jobs += self.stranded
            self.stranded = 0

    def _step(self) -> None:
        self._requeue()
        if self.on_step:
            self.on_step(self)
        for host in self.living():
            self._live(host)

    def _live(self, it: FakeHost) -> None:
        if self.ends_itself and self.at >= it.boot.deadline - _s(HAND_OVER_SECONDS):
            self.end(it)
            return
        if it.host.state is HostState.BOOTING and self.at >= it.born + _s(it.boots_in):
            it.host = replace(it.host, state=HostState.RUNNING)
        if it.host.state is not HostState.RUNNING:
            return
        if it.busy_until and self.at >= it.busy_until:
            it.busy_until = None
            self.working_jobs, self.videos = self.working_jobs - 1, self.videos + 1
        if not it.busy_until and self.waiting_jobs:
            self.waiting_jobs, self.working_jobs = self.waiting_jobs - 1, self.working_jobs + 1
            it.busy_until = self.at + _s(it.job_seconds)
        if it.busy_until:
            it.quiet_since = None
            return
        it.quiet_since = it.quiet_since or self.at
        if self.ends_itself and self.at - it.quiet_since >= self.idle:
            self.end(it)


@dataclass
class FakeProvider:
    """A whole provider. Faults are taken in order, one per call of a method.

    A fault is an error to raise, or for `create`: `lost answer` (made, and the answer is lost),
    `nothing made` (the same without a machine), `killed before` and `killed after`. For `get`:
    `absent`, though it is there; for `list` likewise.
    """

    world: World
    on_offer: Sequence[Offer] = ()
    lag: float = 0.0
    name: str = "fake"
    is_trusted: bool = True
    boots: dict[str, float] = field(default_factory=dict)
    """Seconds to boot, by the offer; others as the world says."""
    faults: dict[str, deque[Any]] = field(default_factory=lambda: defaultdict(deque))
    seconds: float = 0.0
    """That a call takes which gives no answer in the end."""
    creates: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter[str])
    left: list[Leftover] = field(default_factory=list)
    is_blind: bool = False
    """Whether a machine that is not listed yet is unknown to `get` and `destroy` too, as at EC2."""

    def offers(self, need: Need, *, interruptible: bool = False) -> list[Offer]:
        self._fault("offers")
        taken = {it.host.machine for it in self.world.living()}
        return [
            offer
            for offer in self.on_offer
            if offer.is_interruptible == interruptible and offer.machine not in taken
        ]

    def create(self, offer: Offer, boot: Boot) -> Host:
        self.creates.append(str(boot.label))
        fault = self.faults["create"].popleft() if self.faults["create"] else None
        if fault == "nothing made":
            raise CreateUnknown
        if fault == "killed before":
            raise Killed
        if isinstance(fault, Exception):
            raise fault
        if all(it.host.machine != offer.machine for it in self.world.living()):
            host = self._make(offer, boot)
        else:
            raise OfferGone
        if fault == "lost answer":
            raise CreateUnknown
        if fault == "killed after":
            raise Killed
        return host

    def get(self, host_id: str) -> Host | None:
        if self._fault("get") == "absent":
            return None
        return next((it.host for it in self._known() if it.host.id == host_id), None)

    def list(self, prefix: str) -> list[Host]:
        if self._fault("list") == "absent":
            return []
        return [
            it.host
            for it in self.world.living()
            if str(it.host.label).startswith(prefix) and it.visible_at <= self.world.at
        ]

    def destroy(self, host_id: str) -> None:
        fault = self.faults["destroy"].popleft() if self.faults["destroy"] else None
        if fault == "lost":
            return
        if fault:
            raise fault
        for it in self._known():
            if it.host.id == host_id:
                self.world.end(it)

    def leftovers(self, prefix: str) -> list[Leftover]:
        self._fault("leftovers")
        return [one for one in self.left if str(one.label).startswith(prefix)]

    def remove(self, leftover: Leftover) -> None:
        self.left = [one for one in self.left if one != leftover]

    def close(self) -> None:
        """There are no connections."""

    def _known(self) -> list[FakeHost]:
        there = self.world.living()
        return [it for it in there if not self.is_blind or it.visible_at <= self.world.at]

    def _make(self, offer: Offer, boot: Boot) -> Host:
        host = Host(
            f"h{len(self.world.hosts) + 1}",
            self.name,
            boot.label,
            HostState.BOOTING,
            offer.usd_per_hour,
            offer.machine,
            self.world.at,
            owner=offer.owner,
        )
        seconds = self.boots.get(offer.id, self.world.boots_in)
        self.world.hosts.append(
            FakeHost(
                host,
                boot,
                self.world.at,
                self.world.at + _s(self.lag),
                seconds,
                self.world.job_seconds,
            )
        )
        return host

    def _fault(self, method: str) -> Any:
        self.calls[method] += 1
        fault = self.faults[method].popleft() if self.faults[method] else None
        if isinstance(fault, BaseException):
            self.world.sleep(self.seconds)
            raise fault
        return fault


@dataclass
class FakeJobs:
    """The jobs of the world's one pool."""

    world: World
    oldest: timedelta = timedelta(hours=1)
    away: Callable[[], bool] = lambda: False

    def waiting(self, now: datetime) -> Waiting:
        self._reach()
        return Waiting(self.world.waiting_jobs, self.oldest)

    def working(self) -> int:
        self._reach()
        return self.world.working_jobs

    def ended(self, since: datetime) -> Ended:
        self._reach()
        return Ended(self.world.videos, 0)

    def is_online(self, worker: str) -> bool:
        self._reach()
        return any(str(it.host.label) == worker for it in self.world.working())

    def _reach(self) -> None:
        if self.away():
            raise PrefectUnavailable


@dataclass
class FakeBook:
    """Leases in memory."""

    leases: dict[str, Lease] = field(default_factory=dict)
    away: Callable[[], bool] = lambda: False
    is_away: bool = False
    execution: str = field(default_factory=lambda: uuid4().hex)
    closed: dict[str, datetime] = field(default_factory=dict[str, datetime])
    deciders: list[str] = field(default_factory=list)
    """Who holds the lock of the budget; one at most."""
    tokens: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """Labels of lease tokens by run."""
    on_lost: Callable[[], Any] | None = None
    """What happens when the holder loses the lock while it has it; None: it keeps it."""
    loses: int = 1
    """So often."""

    def start(self, run_id: str, **values: Any) -> Lease:
        """A drain's flow run has begun."""
        base = Lease(run_id, "", False, True, 0, None, None, 0.0, 0.0, 0.0, ())
        self.leases[run_id] = replace(base, **values)
        return self.leases[run_id]

    def change(self, run_id: str, **values: Any) -> None:
        self.leases[run_id] = replace(self.leases[run_id], **values)

    def again(self) -> FakeBook:
        """The book of another process."""
        return replace(self, execution=uuid4().hex)

    def claim(self, run_id: str, pool: str, now: datetime) -> Lease | None:
        self._reach()
        others = [x for x in self.leases.values() if x.run_id != run_id and x.pool == pool]
        self.change(run_id, pool=pool, execution=self.execution)
        if any(lease.lives(now) for lease in others):
            return None
        self.change(run_id, beat_at=now)
        return self.leases[run_id]

    def unfinished(self, pool: str) -> list[Lease]:
        self._reach()
        return [x for x in self.leases.values() if x.pool == pool and not x.is_over]

    @contextmanager
    def deciding(self) -> Iterator[Callable[[], bool]]:
        self._reach()
        assert not self.deciders
        self.deciders.append(self.execution)
        try:
            yield self._keeps_lock
        finally:
            self.deciders.remove(self.execution)

    def _keeps_lock(self) -> bool:
        if self.on_lost is None or not self.loses:
            return True
        self.loses -= 1
        self.on_lost()
        return False

    def ask(
        self, run_id: str, asked: Asked, *, usd: float, reserved_usd: float, now: datetime
    ) -> bool:
        assert self.deciders == [self.execution]
        if not self._goes_on(run_id):
            return False
        self.change(
            run_id,
            number=asked.number,
            asked=(*(self.leases[run_id].asked or ()), asked),
            until=asked.until,
            usd_per_hour=asked.usd_per_hour,
            reserved_usd=reserved_usd,
            usd=usd,
            beat_at=now,
        )
        return True

    def beat(self, run_id: str, *, usd: float, reserved_usd: float, now: datetime) -> bool:
        if not self._goes_on(run_id):
            return False
        self.change(run_id, beat_at=now, usd=usd, reserved_usd=reserved_usd)
        return True

    def gone(self, run_id: str, number: int) -> None:
        self._reach()
        kept = tuple(x for x in self.leases[run_id].asked or () if x.number != number)
        self.tokens.setdefault(run_id, {})[f"{TOKEN}{number}"] = ""
        self.change(run_id, asked=kept)

    def note_token(self, run_id: str, labels: Mapping[str, str]) -> None:
        self._reach()
        self.tokens.setdefault(run_id, {}).update(labels)

    def end(self, run_id: str, *, usd: float, videos: int, is_settled: bool) -> None:
        self._goes_on(run_id)
        self.change(run_id, usd=usd, videos=videos, beat_at=None)
        if is_settled:
            self.change(run_id, reserved_usd=0.0)

    def quarantine(self, run_id: str, number: int, machine: str, owner: str = "") -> None:
        self._reach()
        lease = self.leases[run_id]
        self.change(run_id, bad_machines=(*lease.bad_machines, machine))
        if owner:
            self.change(run_id, bad_owners=(*lease.bad_owners, (machine, owner)))

    def booted(self, run_id: str, boots: str) -> None:
        self._reach()
        self.change(run_id, boots=boots)

    def circuit_closed_at(self, pool: str) -> datetime | None:
        self._reach()
        return self.closed.get(pool)

    def close_circuit(self, pool: str, now: datetime) -> None:
        self._reach()
        self.closed[pool] = now

    def read(self, run_ids: Collection[str]) -> dict[str, Lease]:
        self._reach()
        return {name: self.leases[name] for name in run_ids if name in self.leases}

    def since(self, at: datetime) -> list[Lease]:
        self._reach()
        return [x for x in self.leases.values() if not x.started_at or x.started_at > at]

    def _goes_on(self, run_id: str) -> bool:
        self._reach()
        lease = self.leases[run_id]
        if lease.execution not in ("", self.execution):
            raise LeaseTaken
        return lease.is_running

    def _reach(self) -> None:
        if self.away():
            raise PrefectUnavailable


def unavailable(times: int) -> list[Exception]:
    """So many refusals that pass."""
    return [ProviderUnavailable() for _ in range(times)]


def _s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
