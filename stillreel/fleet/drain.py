"""A drain: rent a host when it pays, watch it work, and have it gone in every outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from stillreel.errors import (
    FleetError,
    HostFailed,
    LeaseLost,
    OfferGone,
    PrefectRefused,
    PrefectUnavailable,
    ProviderUnavailable,
)
from stillreel.fleet.backlog import Ended, Jobs
from stillreel.fleet.clock import Clock
from stillreel.fleet.decision import Rule, Waiting, decide
from stillreel.fleet.labels import Label, run_prefix
from stillreel.fleet.leases import (
    BEAT_SECONDS,
    LEASE,
    QUARANTINE,
    Lease,
    LeaseBook,
    money_of,
    month_start,
)
from stillreel.fleet.provider import Boot, Host, HostState, Need, Provider
from stillreel.fleet.ranking import Batch, Ranked, rank
from stillreel.fleet.renting import find, give_back, rent, sweep
from stillreel.fleet.report import End, Report, Stay

POLL_SECONDS = 15.0
"""Vast.ai wants no more than one look in about ten seconds."""
GRACE = timedelta(minutes=2)
"""A host ends itself when it is idle; so much later we do it."""
REQUEUE = timedelta(minutes=5)
"""Jobs of a host that was lost wait again after this time at most."""
MISSING = 3
"""Looks in a row that must not find a host before it counts as gone: lists lag."""
FAILURES = 3
"""Hosts of one drain that may fail before it gives up."""
OFFERS_TRIED = 5
GB_A_JOB = 0.03
"""Images, latents, video: what one job moves, at most and roughly."""

log = logging.getLogger("stillreel.fleet")


@dataclass(frozen=True)
class Limits:
    """What a drain may do; see the settings of the fleet."""

    rule: Rule
    usd_per_hour_max: float
    interruptible: bool
    boot: timedelta
    life: timedelta
    idle: timedelta
    contact: timedelta
    progress: timedelta


@dataclass(frozen=True)
class Order:
    """Which drain this is."""

    run_id: str
    installation: str
    pool: str
    need: Need
    seconds_per_job: float
    env: Callable[[Label, Ranked, datetime], Mapping[str, str]] = field(repr=False)
    """The environment of a host by its label, its price and its deadline."""
    now: bool = False
    """A person asks: one job is enough."""


def rank_now(
    provider: Provider,
    need: Need,
    limits: Limits,
    *,
    jobs: int,
    seconds_per_job: float,
    quarantined: set[str],
    interruptible: bool,
) -> list[Ranked]:
    """The offers of now that fit, the cheapest for so many jobs first.

    Interruptible ones where they are wanted and there are any. Raises FleetError.
    """
    batch = Batch(
        work_hours=jobs * seconds_per_job / 3600,
        down_gb=need.weights_gb + jobs * GB_A_JOB,
        up_gb=jobs * GB_A_JOB,
        idle_hours=limits.idle.total_seconds() / 3600,
    )
    for kind in (True, False) if interruptible else (False,):
        found = rank(
            provider.offers(need, interruptible=kind),
            need,
            batch,
            usd_per_hour_max=limits.usd_per_hour_max,
            quarantined=quarantined,
        )
        if found:
            return found
    return []


class Drain:
    """One drain of one pool. Everything that it knows it can read again from its lease."""

    def __init__(
        self,
        order: Order,
        limits: Limits,
        *,
        provider: Provider,
        jobs: Jobs,
        book: LeaseBook,
        clock: Clock,
        is_handed_over: Callable[[BaseException], bool] = lambda _: False,
    ) -> None:
        self._order, self._limits = order, limits
        self._provider, self._jobs, self._book, self._clock = provider, jobs, book, clock
        self._is_handed_over = is_handed_over
        self._prefix = run_prefix(order.installation, order.run_id)
        self._number, self._usd_before = 0, 0.0
        self._beat_at = clock.now()
        self._interruptible = limits.interruptible
        self._hosts: dict[Label, Host] = {}
        self.report = Report(order.pool, clock.now())

    def run(self) -> Report:
        """Drain, and return when no host of this drain is left.

        Raises HostFailed when no host comes to work, LeaseLost when it is not to go on, and
        HostUndestroyed when a host may be left; FleetError, PrefectUnavailable.
        """
        order = self._order
        lease = self._book.claim(order.run_id, order.pool, self._clock.now())
        if lease is None:
            self.report.outcome = "already draining"
            return self.report
        self._number, self._usd_before = lease.number, lease.usd
        try:
            self._rent_until_drained(lease)
        except BaseException as exc:
            if not self._is_handed_over(exc):  # else the next execution finds them by their labels
                self._clear_up()
            raise
        self._clear_up()
        return self.report

    # --- what to rent ---------------------------------------------------------------------------

    def _rent_until_drained(self, lease: Lease) -> None:
        failures = 0
        stay = self._resume(lease)
        while True:
            stay = stay or self._rent_best()
            if stay is None:
                self.report.outcome = self.report.outcome or "not rented"
                return
            end = self._watch(stay)
            self._close(stay, end)
            self.report.outcome = str(end)
            if end in (End.DRAINED, End.DEADLINE, End.STALLED):
                return
            if end is End.OUTBID:
                self._interruptible = False
            else:
                failures += 1
                if stay.machine:
                    self._book.quarantine(self._order.run_id, stay.label.number, stay.machine)
            if failures >= FAILURES:
                raise HostFailed(
                    f"{failures} rented hosts did not come to work; the last one ended as "
                    f"'{end}'. Look at the image and at what the provider says, then drain again"
                )
            self._wait_for_requeue()
            stay = None

    def _resume(self, lease: Lease) -> Stay | None:
        """The host that an execution before this one asked for last, if it was made."""
        if not self._number:
            return None
        label = Label(self._order.installation, self._order.run_id, self._number)
        host = find(self._provider, label, clock=self._clock)
        log.info("this drain goes on; host %s is %s", label, host.state if host else "not there")
        if host is None:
            return None
        stay = self._enter(host, lease.usd_per_hour, 0.0)
        self._usd_before = max(0.0, lease.usd - stay.usd(self._clock.now()))
        return stay

    def _rent_best(self) -> Stay | None:
        now, order = self._clock.now(), self._order
        waiting = self._jobs.waiting(now)
        self.report.waiting.append((now, waiting.count + self._jobs.working()))
        ranked = self._ranked(waiting)
        reserve = self._reserve(ranked[0]) if ranked else 0.0
        others = money_of(self._book.since(month_start(now)), but=order.run_id, now=now)
        decision = decide(
            waiting,
            self._limits.rule,
            best=ranked[0] if ranked else None,
            reserve_usd=reserve + self._usd(now),
            money=others,
            now=order.now or self._number > 0,
        )
        self.report.decision = decision
        log.info("%s", decision.explain())
        if not decision.rent:
            return None
        for choice in ranked[:OFFERS_TRIED]:
            try:
                stay = self._rent(choice)
            except OfferGone as exc:
                log.info("offer %s: %s", choice.offer.id, exc.message)
                continue
            except ProviderUnavailable as exc:
                log.warning("offer %s: %s", choice.offer.id, exc.message)
                self._clock.sleep(POLL_SECONDS)
                continue
            if stay:
                return stay
        raise HostFailed("none of the best offers was to be had; a later drain may succeed")

    def _ranked(self, waiting: Waiting) -> list[Ranked]:
        if not waiting.count:
            return []
        return rank_now(
            self._provider,
            self._order.need,
            self._limits,
            jobs=waiting.count,
            seconds_per_job=self._order.seconds_per_job,
            quarantined=quarantined(self._book, self._clock.now()),
            interruptible=self._interruptible,
        )

    def _reserve(self, choice: Ranked) -> float:
        """What this host costs if it lives as long as it may."""
        hours = self._limits.life.total_seconds() / 3600
        return hours * choice.offer.usd_per_hour + self._usd_for_bytes(choice)

    def _usd(self, now: datetime) -> float:
        """What this drain has cost so far, its earlier executions included."""
        return self._usd_before + self.report.usd(now)

    def _usd_for_bytes(self, choice: Ranked) -> float:
        return max(0.0, choice.usd - choice.hours * choice.offer.usd_per_hour)

    def _rent(self, choice: Ranked) -> Stay | None:
        """Ask for one machine, once, under a label that is written down before."""
        now, order = self._clock.now(), self._order
        self._number += 1
        label = Label(order.installation, order.run_id, self._number)
        deadline = now + self._limits.life
        reserve = self._reserve(choice) + self._usd(now)
        self._book.ask(
            order.run_id,
            self._number,
            until=deadline,
            usd_per_hour=choice.offer.usd_per_hour,
            reserve_usd=reserve,
            now=now,
        )
        self._beat_at = now
        boot = Boot(
            label=label,
            pool=order.pool,
            model=order.need.model,
            deadline=deadline,
            env=order.env(label, choice, deadline),
            disk_gb=order.need.disk_gb,
        )
        host = rent(self._provider, choice.offer, boot, clock=self._clock)
        if host is None:
            return None
        log.info("rented %s: %s %s", label, host.provider, host.id)
        return self._enter(host, choice.offer.usd_per_hour, self._usd_for_bytes(choice), since=now)

    def _enter(
        self, host: Host, usd_per_hour: float, usd_for_bytes: float, since: datetime | None = None
    ) -> Stay:
        stay = Stay(
            host.label,
            host.provider,
            host.machine,
            usd_per_hour,
            since or host.created_at or self._clock.now(),
            usd_for_bytes,
        )
        self._hosts[host.label] = host
        self.report.stays.append(stay)
        return stay

    # --- watching -------------------------------------------------------------------------------

    def _watch(self, stay: Stay) -> End:
        """Return when this host is not wanted any more, or does not work."""
        watch = _Watch(stay, self._limits)
        while True:
            now = self._clock.now()
            self._beat(now)
            try:
                host = self._provider.get(self._hosts[stay.label].id)
            except ProviderUnavailable as exc:
                log.warning("the provider: %s", exc.message)
            else:
                watch.see_host(host)
            try:
                waiting, working = self._jobs.waiting(now).count, self._jobs.working()
                ended = self._jobs.ended(self.report.started_at)
                online = self._jobs.is_online(str(stay.label))
            except (PrefectUnavailable, PrefectRefused) as exc:
                log.warning("Prefect: %s", exc.message)
            else:
                watch.see_jobs(now, open_=waiting + working, ended=ended, online=online)
                self.report.waiting.append((now, waiting + working))
                self.report.videos, self.report.failed = ended.videos, ended.failed
            if end := watch.end(now):
                return end
            self._clock.sleep(POLL_SECONDS)

    def _beat(self, now: datetime) -> None:
        """Keep the lease; raise LeaseLost when it is lost."""
        if (now - self._beat_at).total_seconds() < BEAT_SECONDS:
            return
        try:
            ours = self._book.beat(self._order.run_id, usd=self._usd(now), now=now)
        except (PrefectUnavailable, PrefectRefused) as exc:
            if now - self._beat_at > LEASE:
                raise LeaseLost from exc
            return
        if not ours:
            raise LeaseLost
        self._beat_at = now

    def _wait_for_requeue(self) -> None:
        """Give the keeper its time to have the jobs of a lost host wait again."""
        until = self._clock.now() + REQUEUE
        while self._clock.now() < until:
            self._beat(self._clock.now())
            try:
                if self._jobs.waiting(self._clock.now()).count or not self._jobs.working():
                    return
            except (PrefectUnavailable, PrefectRefused) as exc:
                log.warning("Prefect: %s", exc.message)
            self._clock.sleep(POLL_SECONDS)

    # --- the end --------------------------------------------------------------------------------

    def _close(self, stay: Stay, end: End) -> None:
        """Give the host of a stay back, and note how it ended once it is gone."""
        stay.end = end
        host = self._hosts[stay.label]
        give_back(
            self._provider,
            host,
            clock=self._clock,
            meanwhile=lambda: self._beat(self._clock.now()),
        )
        stay.until = self._clock.now()

    def _clear_up(self) -> None:
        """Have no host of this drain left, by our own list and by the provider's."""
        failed: list[FleetError] = []
        for stay in self.report.stays:
            if stay.until is None:
                try:
                    stay.end = stay.end or End.ENDED_EARLY
                    give_back(self._provider, self._hosts[stay.label], clock=self._clock)
                    stay.until = self._clock.now()
                except FleetError as exc:
                    failed.append(exc)
        try:
            if self._number:
                sweep(self._provider, self._prefix, clock=self._clock)
        except FleetError as exc:
            failed.append(exc)
        now = self._clock.now()
        try:
            ended = self._jobs.ended(self.report.started_at) if self.report.stays else Ended()
            self.report.videos, self.report.failed = ended.videos, ended.failed
            self._book.end(self._order.run_id, usd=self._usd(now))
        except (PrefectUnavailable, PrefectRefused) as exc:
            log.warning("what this drain cost is not written down: %s", exc.message)
        if failed:
            raise failed[0]


@dataclass
class _Watch:
    """What has been seen of one host, and what follows from it."""

    stay: Stay
    limits: Limits
    host: Host | None = None
    missing: int = 0
    is_open: bool = True
    ended: Ended = field(default_factory=Ended)
    online_at: datetime | None = None
    progress_at: datetime | None = None
    quiet_since: datetime | None = None

    def see_host(self, host: Host | None) -> None:
        self.missing = 0 if host else self.missing + 1
        self.host = host or self.host

    def see_jobs(self, now: datetime, *, open_: int, ended: Ended, online: bool) -> None:
        is_first = online and not self.stay.ready_at
        if online:
            self.stay.ready_at = self.stay.ready_at or now
            self.online_at = now
        if is_first or ended != self.ended or not open_:
            self.ended, self.progress_at = ended, now
        self.is_open = open_ > 0
        self.quiet_since = None if open_ else self.quiet_since or now

    def end(self, now: datetime) -> End | None:
        """How the stay ends now; None while it goes on."""
        limits, ready_at = self.limits, self.stay.ready_at
        broken = End.LOST if ready_at else End.NEVER_READY
        if self.missing >= MISSING:  # it has ended itself, which is right when nothing is left
            return End.DRAINED if ready_at and not self.is_open else broken
        if self.host and self.host.state is HostState.LOST:
            return broken
        if self.host and self.host.state is HostState.STOPPED:
            return End.OUTBID
        if now - self.stay.since >= limits.life:
            return End.DEADLINE
        if not ready_at:
            return End.NEVER_READY if now - self.stay.since > limits.boot else None
        return self._end_of_work(now)

    def _end_of_work(self, now: datetime) -> End | None:
        limits = self.limits
        if self.quiet_since and now - self.quiet_since > limits.idle + GRACE:
            return End.DRAINED
        if self.online_at and now - self.online_at > limits.contact:
            return End.LOST
        if self.progress_at and now - self.progress_at > limits.progress:
            return End.STALLED
        return None


def quarantined(book: LeaseBook, now: datetime) -> set[str]:
    """The machines that failed lately."""
    return {machine for lease in book.since(now - QUARANTINE) for machine in lease.bad_machines}
