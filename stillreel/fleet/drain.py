"""A drain: rent a host when it pays, watch it work, and have it gone in every outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from stillreel.errors import (
    HostFailed,
    LeaseLost,
    LeaseTaken,
    OfferGone,
    PrefectRefused,
    PrefectUnavailable,
    ProviderRefused,
    ProviderUnavailable,
    StillreelError,
)
from stillreel.fleet.backlog import Jobs
from stillreel.fleet.clock import Clock
from stillreel.fleet.deciding import Deciding
from stillreel.fleet.decision import Crew, is_triggered
from stillreel.fleet.holding import Holding
from stillreel.fleet.labels import Label, run_prefix
from stillreel.fleet.leases import LONGEST, Asked, Lease, LeaseBook
from stillreel.fleet.limits import Limits, Order
from stillreel.fleet.listen import heard_of
from stillreel.fleet.offers import quarantined, rank_now
from stillreel.fleet.provider import Host, Provider
from stillreel.fleet.ranking import Ranked
from stillreel.fleet.renting import (
    DESTROY_SECONDS,
    find,
    give_back,
    is_given_back,
    rent,
    sweep,
    undestroyed,
)
from stillreel.fleet.report import End, Report, Stay
from stillreel.fleet.watch import Watch

POLL_SECONDS = 15.0
"""Vast.ai wants no more than one look in about ten seconds."""
REQUEUE = timedelta(minutes=5)
"""Jobs of a host that was lost wait again after this time at most."""
GROW = timedelta(minutes=5)
"""So often it is asked whether another host pays."""
FAILURES = 3
"""Hosts of one drain that may fail before it gives up."""
OFFERS_TRIED = 5
ENOUGH = (End.DRAINED, End.DEADLINE, End.STALLED)
"""After these no other host is rented in this drain."""

log = logging.getLogger("stillreel.fleet")


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
        self._interruptible = limits.interruptible
        self._failures = 0
        self._grew_at = clock.now()
        self._may_grow = True
        self._took_over = False
        self._unknown: list[Label] = []
        """Asked for, and no answer yet."""
        self._watches: list[Watch] = []
        """Of the hosts that work, or are to."""
        self._leaving: dict[Label, tuple[Watch, datetime]] = {}
        """Those that are being given back, and since when."""
        self.report = Report(order.pool, clock.now())
        self._holding = Holding(order, book, clock, self.report)
        self._deciding = Deciding(order, limits, book, clock, self._holding, self.report)

    def run(self) -> Report:
        """Drain, and return when no host of this drain is left.

        Raises HostFailed when no host comes to work, LeaseLost when it is not to go on, and
        HostUndestroyed when a host may be left; FleetError, PrefectUnavailable.
        """
        order = self._order
        before = self._book.read([order.run_id]).get(order.run_id)
        lease = self._claim()
        if lease is None:
            self.report.outcome = "already draining"
            if before and before.number:  # this drain was silent for too long
                self._adopt(before)
                self._clear_up()
            return self.report
        self.report.started_at = lease.started_at or self.report.started_at
        try:
            # What one before it has asked for until now; and when it was last heard of.
            self._adopt(replace(lease, beat_at=before.beat_at if before else None))
            self._rent_until_drained()
        except LeaseTaken:
            raise
        except BaseException as exc:
            if not self._is_handed_over(exc):  # else the next execution finds them by their labels
                self._clear_up()
            raise
        self._clear_up()
        return self.report

    def _claim(self) -> Lease | None:
        book, order, clock = self._book, self._order, self._clock
        others = [x for x in book.unfinished(order.pool) if x.run_id != order.run_id]
        if heard_of(book, others, clock):
            return None
        return book.claim(order.run_id, order.pool, clock.now())

    # --- what to rent ---------------------------------------------------------------------------

    def _adopt(self, lease: Lease) -> None:
        """Go on with the hosts that an execution before this one has asked for."""
        self._holding.go_on(lease)
        if not lease.hosts:
            return
        order, told_at = self._order, lease.beat_at or self._clock.now()
        # The version before has named no host: one that is named now would be the only one it has.
        self._may_grow = lease.asked is not None
        labels = {Label(order.installation, order.run_id, x.number): x for x in lease.hosts}
        there = find(self._provider, list(labels), clock=self._clock)
        for label, asked in labels.items():
            host = there.get(label)
            log.info("this drain goes on; %s is %s", label, host.state if host else "not there")
            stay = self._stay(label, asked, host)
            stay.is_interruptible = self._interruptible  # it may be, and cost as much
            stay.usd_per_hour_at_most = self._limits.usd_per_hour_max * self._interruptible
            # What it had cost when it was told last is in the sum that was told; later is not.
            told = (told_at - stay.since).total_seconds() / 3600 * stay.usd_per_hour
            self.report.usd_before -= max(0.0, told) + stay.usd_for_bytes
            self.report.stays.append(stay)
            if host:
                self._watches.append(Watch(stay, host, self._limits, self._clock.now()))
            else:  # nobody saw when it went
                stay.until, stay.end = min(self._clock.now(), stay.deadline), End.UNSEEN
        self.report.usd_before = max(0.0, self.report.usd_before)

    def _rent_until_drained(self) -> None:
        end: End | None = None
        while True:
            if not self._watches and not self._leaving:
                if end in ENOUGH:
                    return
                if self._failures >= FAILURES:
                    raise HostFailed(
                        f"{self._failures} rented hosts of one drain failed; the last one ended "
                        f"as '{end}'. Look at the image and at what the provider says; where none "
                        f"of them came to work, `stillreel fleet resume {self._order.pool}` lets "
                        "drains rent again"
                    )
                if end:
                    self._wait_for_requeue()
                if not self._rent_best():
                    decision = self.report.decision
                    if self._failures and decision and decision.is_circuit_open:
                        raise HostFailed(decision.reason)
                    self.report.outcome = self.report.outcome or "not rented"
                    return
            self._look()
            for watch in list(self._watches):
                if found := watch.end(self._clock.now()):
                    end = found
                    self._dismiss(watch, found)
            self._give_back_leaving()
            if self._watches or self._leaving:
                self._grow()
                self._clock.sleep(POLL_SECONDS)

    def _grow(self) -> None:
        """Every few minutes, rent another host where those that work need long."""
        now = self._clock.now()
        is_full = not 0 < len(self._watches) < self._limits.hosts or self._leaving or self._unknown
        is_late = now - self.report.started_at > self._limits.life  # for ever it would go on else
        if is_full or is_late or not self._may_grow or self._failures or now - self._grew_at < GROW:
            return
        self._grew_at = now
        try:
            self._rent_best()
        except LeaseLost:
            raise
        except StillreelError as exc:  # a quota, say; those that there are go on
            log.warning("no other host now: %s", exc.message)

    def _rent_best(self) -> bool:
        """Rent one host, the best for what waits, if the rule says so."""
        now, limits = self._clock.now(), self._limits
        self._holding.beat()
        waiting, working = self._jobs.waiting(now), self._jobs.working()
        self.report.waiting.append((now, waiting.count + working))
        crew = None
        if self._watches:
            work_hours = (waiting.count + working) * self._order.seconds_per_job / 3600
            crew = Crew(len(self._watches), work_hours, limits.work_hours)
        ranked, jobs = list[Ranked](), max(1, waiting.count // (1 + len(self._watches)))
        if is_triggered(waiting, limits.rule, now=self._deciding.is_asked, crew=crew):
            self._take_over()
            ranked = self._ranked(jobs)
        while True:
            for choice in ranked[:OFFERS_TRIED] or (None,):
                asked = self._deciding.ask(waiting, choice, crew)
                if asked is None or choice is None:
                    return False
                if self._create(choice, asked):
                    return True
            if not ranked[0].offer.is_interruptible:
                break
            log.info("no interruptible machine is to be had; on-demand ones from now on")
            self._interruptible = False
            ranked = self._ranked(jobs)
        raise HostFailed("none of the best offers was to be had; a later drain may succeed")

    def _ranked(self, jobs: int) -> list[Ranked]:
        return rank_now(
            self._provider,
            self._order.need,
            self._limits,
            jobs=jobs,
            seconds_per_job=self._order.seconds_per_job,
            quarantined=quarantined(self._book, self._clock.now()),
            interruptible=self._interruptible,
        )

    def _take_over(self) -> None:
        """Have the hosts of this pool's dead drains gone: two would work on one backlog."""
        if self._took_over:
            return
        now, order = self._clock.now(), self._order
        for lease in self._book.since(now - LONGEST):
            is_dead = lease.pool == order.pool and not lease.is_settled and not lease.lives(now)
            if is_dead and lease.run_id != order.run_id:
                log.info("the drain %s is dead; its hosts are given back", lease.run_id)
                prefix = run_prefix(order.installation, lease.run_id)
                sweep(self._provider, prefix, clock=self._clock, meanwhile=self._holding.beat)
        self._took_over = True

    def _create(self, choice: Ranked, asked: Asked) -> bool:
        """Ask for one machine, once, under a label that is written down; whether it was made."""
        order, label = self._order, self._deciding.label(asked)
        try:
            boot = order.boot(label, choice, asked.until)
        except StillreelError:  # nothing was asked for
            self._holding.note_gone(label)
            raise
        stay = self._stay(label, asked, None, choice)
        self.report.stays.append(stay)
        self._holding.beat()  # this process may have stood still since its promise
        self._unknown.append(label)
        host = None
        try:
            host = rent(self._provider, choice.offer, boot, clock=self._clock)
        except OfferGone as exc:
            log.info("offer %s: %s", choice.offer.id, exc.message)
        except ProviderUnavailable as exc:
            log.warning("offer %s: %s", choice.offer.id, exc.message)
            self._clock.sleep(POLL_SECONDS)
        except ProviderRefused:  # so none was made
            self._unknown.remove(label)
            self._give_up(stay)
            raise
        self._unknown.remove(label)
        if host is None:  # one that appears later is a stray
            self._give_up(stay)
            return False
        log.info("rented %s: %s %s", label, host.provider, host.id)
        stay.machine, stay.owner = host.machine, host.owner
        self._watches.append(Watch(stay, host, self._limits))
        return True

    def _give_up(self, stay: Stay) -> None:
        self.report.stays.remove(stay)
        self._holding.note_gone(stay.label)

    def _stay(
        self, label: Label, asked: Asked, host: Host | None, choice: Ranked | None = None
    ) -> Stay:
        since = asked.since or (host and host.created_at) or asked.until - self._limits.life
        return Stay(
            label,
            self._provider.name,
            host.machine if host else "",
            asked.usd_per_hour,
            since,
            asked.until,
            asked.usd_for_bytes,
            owner=host.owner if host else "",
            is_interruptible=bool(choice and choice.offer.is_interruptible),
            usd_per_hour_at_most=choice.offer.usd_per_hour_at_most if choice else 0.0,
        )

    # --- watching -------------------------------------------------------------------------------

    def _look(self) -> None:
        """See what the provider and Prefect say, and that the lease is ours."""
        self._holding.beat()
        self._look_at_hosts()
        self._holding.beat()
        now = self._clock.now()
        try:
            waiting = self._jobs.waiting(now).count
            open_ = waiting + self._jobs.working()
            ended = self._jobs.ended(self.report.started_at)
            online = {x.stay.label: self._jobs.is_online(str(x.stay.label)) for x in self._watches}
        except (PrefectUnavailable, PrefectRefused) as exc:
            log.warning("Prefect: %s", exc.message)
            return
        for watch in self._watches:
            is_online = online[watch.stay.label]
            watch.see_jobs(now, waiting=waiting, open_=open_, ended=ended, online=is_online)
        self.report.waiting.append((now, open_))
        self.report.videos, self.report.failed = ended.videos, ended.failed

    def _look_at_hosts(self) -> None:
        """By one list; those that it does not show are asked for by name, for lists lag."""
        is_alone = len(self._watches) == 1
        try:
            there = {host.id: host for host in self._provider.list(self._prefix)}
        except ProviderUnavailable as exc:
            log.warning("the provider: %s", exc.message)
            return
        ours = {watch.stay.label for watch in self._watches} | {*self._leaving, *self._unknown}
        for stray in (host for host in there.values() if host.label not in ours):
            log.warning("%s is there after all; it is given back", stray.label)
            is_given_back(self._provider, stray, clock=self._clock)
        for watch in self._watches:
            host = there.get(watch.host.id)
            try:
                if host is None:
                    self._holding.beat()  # in an outage each call takes a minute and more
                    host = self._provider.get(watch.host.id)
            except ProviderUnavailable as exc:
                log.warning("the provider: %s", exc.message)
            else:
                watch.see_host(self._clock.now(), host, is_alone=is_alone)

    def _wait_for_requeue(self) -> None:
        """Give the keeper its time to have the jobs of a lost host wait again."""
        until = self._clock.now() + REQUEUE
        while self._clock.now() < until:
            self._holding.beat()
            try:
                if self._jobs.waiting(self._clock.now()).count or not self._jobs.working():
                    return
            except (PrefectUnavailable, PrefectRefused) as exc:
                log.warning("Prefect: %s", exc.message)
            self._clock.sleep(POLL_SECONDS)

    # --- the end --------------------------------------------------------------------------------

    def _dismiss(self, watch: Watch, end: End) -> None:
        """This host is not wanted any more, or does not work."""
        stay = watch.stay
        stay.end, self.report.outcome = end, str(end)
        self._watches.remove(watch)
        self._leaving[stay.label] = (watch, self._clock.now())
        is_taken_back = end is End.LOST and stay.is_interruptible and stay.ready_at
        if end is End.OUTBID or is_taken_back:  # EC2 does not say which of the two it was
            self._interruptible = False
        elif end not in ENOUGH:
            self._failures += 1
        self._holding.note_end(stay, end)

    def _give_back_leaving(self) -> None:
        """Destroy what is to go, one try each. Raises HostUndestroyed after many."""
        for label, (watch, since) in list(self._leaving.items()):
            self._holding.beat()
            born = watch.stay.since
            if is_given_back(self._provider, watch.host, clock=self._clock, born=born):
                del self._leaving[label]
                watch.stay.until = self._clock.now()
                self._holding.note_gone(label)
            elif (self._clock.now() - since).total_seconds() >= DESTROY_SECONDS:
                raise undestroyed(watch.host)

    def _clear_up(self) -> None:
        """Have no host of this drain left, by our own list and by the provider's."""
        failed: list[StillreelError] = []
        provider, clock, beat = self._provider, self._clock, self._holding.beat_quietly
        there = [*self._watches, *(watch for watch, _ in self._leaving.values())]
        for patience in (0.0, DESTROY_SECONDS):  # each is asked to go before one is waited for
            failed.clear()
            for watch in (watch for watch in there if not watch.stay.until):
                stay, host = watch.stay, watch.host
                stay.end = stay.end or End.ENDED_EARLY
                try:
                    give_back(
                        provider,
                        host,
                        clock=clock,
                        patience=patience,
                        meanwhile=beat,
                        born=stay.since,
                    )
                    stay.until = clock.now()
                except StillreelError as exc:
                    failed.append(exc)
        try:
            if self._holding.number:
                find(provider, self._unknown, clock=clock)  # until it would be listed
                sweep(provider, self._prefix, clock=clock, meanwhile=beat)
            for stay in self.report.stays:
                if not stay.until and not failed:  # it was never seen
                    stay.until, stay.end = min(clock.now(), stay.deadline), End.UNSEEN
        except StillreelError as exc:
            failed.append(exc)
        self._holding.end(self._jobs, is_settled=not failed)
        if failed:
            raise failed[0]
