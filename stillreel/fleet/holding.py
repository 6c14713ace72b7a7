"""The lease of one drain, as the process that goes on with it holds it."""

from __future__ import annotations

import logging
from datetime import datetime

from stillreel.errors import LeaseLost, LeaseTaken, PrefectRefused, PrefectUnavailable
from stillreel.fleet.backlog import Jobs
from stillreel.fleet.circuit import FAILED, WORKED
from stillreel.fleet.clock import Clock
from stillreel.fleet.labels import Label
from stillreel.fleet.leases import BEAT_SECONDS, LEASE, Asked, Lease, LeaseBook
from stillreel.fleet.limits import Order
from stillreel.fleet.report import End, Report, Stay

log = logging.getLogger("stillreel.fleet")


class Holding:
    """What a drain writes down of itself while it lives, and the sums of its report."""

    def __init__(self, order: Order, book: LeaseBook, clock: Clock, report: Report) -> None:
        self._order, self._book, self._clock, self._report = order, book, clock, report
        self._beat_at = clock.now()
        self._boots = ""
        self._gone: set[int] = set()
        """Hosts that are gone or given up, and not written down as such yet."""
        self.number = 0
        """Of the last machine that was asked for."""

    def go_on(self, lease: Lease) -> None:
        """Begin where an execution before this one has ended."""
        self.number, self._boots = lease.number, lease.boots
        self._report.asked = lease.number
        self._report.usd_before = lease.usd

    def ask(self, asked: Asked, *, at_most_usd: float, now: datetime) -> None:
        """Write down that this machine is about to be asked for.

        Raises LeaseLost when the drain is not to go on; then it must not be.
        """
        self.beat()  # a process that stood still until now is not to begin anew by this
        self.number, usd = asked.number, self._report.usd(now)
        self._report.asked = asked.number
        run_id = self._order.run_id
        if not self._book.ask(run_id, asked, usd=usd, reserved_usd=at_most_usd, now=now):
            raise LeaseLost
        self._beat_at = now

    def beat(self) -> None:
        """Say that the drain lives, once a minute; raise LeaseLost when it is not to go on."""
        now, order = self._clock.now(), self._order
        silent = now - self._beat_at
        if silent.total_seconds() < BEAT_SECONDS:
            return
        usd, at_most = self._report.usd(now), self._report.usd_at_most(now)
        try:
            ours = self._book.beat(order.run_id, usd=usd, reserved_usd=at_most, now=now)
            if ours and silent > LEASE:  # this process stood still, and another drain may live now
                ours = self._book.claim(order.run_id, order.pool, now) is not None
        except (PrefectUnavailable, PrefectRefused) as exc:
            if silent > LEASE:
                raise LeaseLost from exc
            return
        if not ours:
            raise LeaseLost
        self._beat_at = now
        self._write_gone()

    def beat_quietly(self) -> None:
        """Hold the pool while hosts go, if that is still possible."""
        try:
            self.beat()
        except LeaseLost as exc:
            log.info("%s", exc.message)

    def note_gone(self, label: Label) -> None:
        """This machine is gone, or given up; what cannot be written down now is at a later beat.

        Until then its lease token counts.
        """
        self._gone.add(label.number)
        self._write_gone()

    def _write_gone(self) -> None:
        for number in sorted(self._gone):
            try:
                self._book.gone(self._order.run_id, number)
                self._gone.remove(number)
            except (PrefectUnavailable, PrefectRefused) as exc:
                log.warning("that host %d is gone is not written down: %s", number, exc.message)

    def note_end(self, stay: Stay, end: End) -> None:
        """What later drains need to know of this host: does its machine do, did it come to work."""
        run_id, is_bad = self._order.run_id, end in (End.LOST, End.NEVER_READY)
        try:
            if is_bad and stay.machine:
                self._book.quarantine(run_id, stay.label.number, stay.machine, stay.owner)
            if is_bad or stay.ready_at:
                self._boots += WORKED if stay.ready_at else FAILED
                self._book.booted(run_id, self._boots)
        except (PrefectUnavailable, PrefectRefused) as exc:
            log.warning("how %s ended is not written down: %s", stay.label, exc.message)

    def end(self, jobs: Jobs, *, is_settled: bool) -> None:
        """Write down what the drain has cost and made; the lease is given back."""
        report, run_id = self._report, self._order.run_id
        self._write_gone()
        try:
            if report.stays:
                ended = jobs.ended(report.started_at)
                report.videos, report.failed = ended.videos, ended.failed
            usd = report.usd(self._clock.now())
            self._book.end(run_id, usd=usd, videos=report.videos, is_settled=is_settled)
        except (PrefectUnavailable, PrefectRefused, LeaseTaken) as exc:
            log.warning("what this drain cost is not written down: %s", exc.message)
